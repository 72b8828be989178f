import json
import subprocess
import sys
from pathlib import Path

import pytest

from segdet.runs.record import Cost, Record
from segdet.util.errors import UserError


@pytest.fixture
def record() -> Record:
    return Record(
        name="fcn",
        task="segmentation",
        model="FCN",
        data="VOCDataModule",
        seed=0,
        status="finished",
        metrics={"val/miou": 0.5, "val/iou/star": float("nan")},
        cost=Cost(parameters=10, ms_per_image=1.5, train_seconds=60.0),
        hardware={"cpu": "x", "cores": 2, "gpu": None},
    )


def test_a_written_record_is_read_back(record: Record, tmp_path: Path) -> None:
    record.write(tmp_path / "result.json")
    again = Record.read(tmp_path / "result.json")
    record.metrics["val/iou/star"] = None  # JSON has no NaN
    assert again == record
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    assert json.loads((tmp_path / "result.json").read_text())["schema"] == 1


def test_scalars_of_numpy_and_torch_are_written(record: Record, tmp_path: Path) -> None:
    import numpy as np
    import torch

    record.metrics = {"a": np.float32(0.5), "b": torch.tensor(0.25)}  # type: ignore[dict-item]
    record.write(tmp_path / "result.json")
    assert Record.read(tmp_path / "result.json").metrics == {"a": 0.5, "b": 0.25}


def test_merge_adds_the_test_and_keeps_the_fit(record: Record) -> None:
    merged = record.merge(
        {"test/miou": 0.4}, Cost(ms_per_image=2.0, stages_ms={"network": 1.0}), per_image="predictions/x.json"
    )
    assert merged.metrics["val/miou"] == 0.5 and merged.metrics["test/miou"] == 0.4
    assert (merged.cost.ms_per_image, merged.cost.parameters, merged.cost.train_seconds) == (2.0, 10, 60.0)
    assert merged.cost.stages_ms == {"network": 1.0}
    assert merged.per_image == "predictions/x.json"
    assert "test/miou" not in record.metrics and record.cost.ms_per_image == 1.5
    assert merged.merge({}).cost == merged.cost
    memory = merged.merge({}, Cost(peak_memory_mb=9.0)).merge({}, Cost(peak_memory_mb=5.0))
    assert memory.cost.peak_memory_mb == 9.0


def test_a_failed_write_leaves_the_old_record(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    record.write(path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left"):
        record.merge({"test/miou": 0.1}).write(path)
    assert "test/miou" not in Record.read(path).metrics
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "has schema 2, but this version of segdet reads 1"),
        ({"seed": "0"}, "seed is '0' and should be a whole number"),
        (
            {"status": "done"},
            "status is 'done' and should be one of 'finished', 'interrupted', 'failed' or 'diverged'",
        ),
        (
            {"metrics": {"val/miou": "high"}},
            "metrics.val/miou is 'high' and should be a number",
        ),
        ({"metrics": None}, "metrics is None and should be a mapping"),
        ({"cost": {"flops": "many"}}, "cost.flops is 'many' and should be a whole number"),
        ({"task": None}, "task is None and should be a string"),
    ],
)
def test_a_wrong_value_is_reported_in_one_line(
    record: Record, tmp_path: Path, change: dict, message: str
) -> None:
    path = tmp_path / "result.json"
    record.write(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError) as error:
        Record.read(path)
    assert str(error.value).startswith(f"{path}: {message}") and "\n" not in str(error.value)


def test_the_error_for_a_corrupt_or_missing_file_has_one_line(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    with pytest.raises(UserError, match="no such result record"):
        Record.read(path)
    record.write(path)
    path.write_text(path.read_text()[:-30])
    with pytest.raises(UserError, match="corrupt, or not JSON") as error:
        Record.read(path)
    assert "\n" not in str(error.value)
    path.write_text("[]")
    with pytest.raises(UserError, match="not a result record"):
        Record.read(path)
    path.write_text('{"schema": 1}')
    with pytest.raises(UserError, match="has no key 'name'"):
        Record.read(path)


def test_a_key_of_a_later_version_is_ignored(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    record.write(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "energy": 3}))
    assert Record.read(path).name == "fcn"


def test_reading_does_not_import_torch() -> None:
    code = "import sys, segdet.runs.record; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
