"""The command trains and tests a model for each of the nine combinations of format and task."""

import json
import math
from pathlib import Path

import pytest

from segdet.cli.main import main
from segdet.data.shapes.make import make_shapes

MODELS = {
    "segmentation": ("FCN", ["--model.width=16"], "test/miou"),
    "localization": ("BoxHead", ["--model.width=32"], "test/loc_acc"),
    "detection": ("SSD", ["--model.width=32", "--model.extra_maps=0"], "test/map_50"),
}
FORMATS = {
    "voc": ("VOCDataModule", []),
    "coco": ("COCODataModule", []),
    "cityscapes": ("CityscapesDataModule", []),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("shapes")
    return {
        name: make_shapes(
            root / name, name, train=12, val=5, test=5, size=(64, 64), workers=1, progress=False
        )  # type: ignore[call-overload,arg-type]
        for name in FORMATS
    }


@pytest.mark.parametrize("task", MODELS)
@pytest.mark.parametrize("name", FORMATS)
def test_trains_an_epoch_and_tests(name: str, task: str, folders: dict[str, Path], tmp_path: Path) -> None:
    data, data_options = FORMATS[name]
    model, model_options, headline = MODELS[task]
    run = tmp_path / "run"
    shared = [f"--trainer.{option}" for option in ("accelerator=cpu", "enable_progress_bar=false")]
    status = main(
        [
            "fit", f"--model={model}", "--model.backbone_options={channels: [8, 8, 16, 16]}", *model_options,
            f"--data={data}", f"--data.root={folders[name]}", f"--data.task={task}", "--data.batch_size=4",
            "--data.num_workers=0", *data_options, "--trainer.max_epochs=1", *shared, f"--run_dir={run}",
        ]
    )  # fmt: skip
    assert status == 0
    assert main(["test", f"--ckpt_path={run / 'checkpoints' / 'best.ckpt'}", *shared]) == 0
    record = json.loads((run / "result.json").read_text())
    assert record["task"] == task
    assert record["status"] == "finished"
    assert record["epochs"] == 1
    assert 0 <= record["metrics"][headline] <= 1
    assert headline.replace("test/", "val/") in record["metrics"]
    assert record["cost"]["parameters"] > 0 and record["cost"]["flops"] > 0
    assert record["cost"]["passes_per_image"] == 1
    assert all(value is None or math.isfinite(value) for value in record["metrics"].values())
