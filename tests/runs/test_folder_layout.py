"""The layout of a run's folder."""

import json
from pathlib import Path
from typing import Any

import pytest

from segdet.runs.folder_layout import clear_run, first_provenance, folder_of_checkpoint, holds_run


class TestHoldsRun:
    def test_nothing_and_other_files(self, tmp_path: Path) -> None:
        assert not holds_run(tmp_path / "missing")
        (tmp_path / "notes.txt").write_text("")
        assert not holds_run(tmp_path)

    def test_results(self, tmp_path: Path) -> None:
        (tmp_path / "checkpoints").mkdir()
        assert not holds_run(tmp_path)
        (tmp_path / "checkpoints" / "last.ckpt").write_text("")
        assert holds_run(tmp_path)

    def test_a_run_in_progress_and_one_that_failed_before_its_first_step(self, tmp_path: Path) -> None:
        (tmp_path / "config.yaml").write_text("")
        assert holds_run(tmp_path)
        (tmp_path / "result.json").write_text("{}")
        assert not holds_run(tmp_path)


def test_clear_run_keeps_other_files(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    for name in ("config.yaml", "checkpoints/last.ckpt", "mine.txt"):
        (tmp_path / name).write_text("")
    clear_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    "fault",
    [{"seed": "abc"}, {"seed": 0.5}, {"hardware": [1]}, {"git": "main"}, {"packages": 3}, {"resumed": ["a"]},
     {"resumed": None}],
)  # fmt: skip
def test_provenance_with_a_value_of_a_wrong_type_is_corrupt(fault: dict[str, Any], tmp_path: Path) -> None:
    valid = {"seed": 3, "git": None, "packages": {}, "resumed": [{"command": "segdet fit"}], "other": 1}
    path = tmp_path / "provenance.json"
    path.write_text(json.dumps(valid))
    assert first_provenance(tmp_path) == valid
    path.write_text(json.dumps(valid | fault))
    assert first_provenance(tmp_path) == {}


def test_folder_of_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "run" / "checkpoints" / "best.ckpt"
    assert folder_of_checkpoint(file) is None
    file.parent.mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("")
    assert folder_of_checkpoint(file) == tmp_path / "run"
    assert folder_of_checkpoint(tmp_path / "run" / "elsewhere" / "best.ckpt") is None
