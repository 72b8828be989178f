"""Tests of the error analysis of `segdet test`, from the command to the files."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segdet.cli.main import main
from segdet.data.sample import Prediction, Target
from segdet.metrics.detection_errors import KINDS, SPECIAL
from segdet.metrics.region_detection import RegionScores
from segdet.runs.error_analysis import ErrorAnalysis, _text
from segdet.util.drawing import draw_matrix

DATA = [
    "--data=ShapesDataModule", "--data.num_train=8", "--data.num_val=4", "--data.num_test=6",
    "--data.image_size=[64, 64]", "--data.batch_size=4", "--data.num_workers=0", "--panels.images=0",
    "--trainer.accelerator=cpu", "--trainer.max_epochs=1",
]  # fmt: skip
MODELS = {
    "segmentation": ["--model=FCN", "--model.width=8"],
    "localization": ["--model=BoxHead"],
    "detection": ["--model=SSD", "--model.width=16", "--model.score_threshold=0.001"],
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data") / "shapes"


def run_of(task: str, shapes: Path, folder: Path, *options: str) -> Path:
    """Train a small model for one epoch, test it, and return the run's folder."""
    model = [*MODELS[task], "--model.backbone=test_resnet"]
    assert main(["fit", *model, *DATA, f"--data.root={shapes}", f"--run_dir={folder}"]) == 0
    assert main(["test", f"--ckpt_path={folder}", f"--run_dir={folder}", *options]) == 0
    return folder


def test_testing_a_detector_reports_the_errors_that_lower_its_ap(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = []

    def draw(counts: np.ndarray, rows: list[str], columns: list[str], **options: Any) -> np.ndarray:
        axes.append((rows, columns))
        return draw_matrix(counts, rows, columns, **options)

    monkeypatch.setattr("segdet.runs.error_analysis.draw_matrix", draw)
    run = run_of("detection", shapes, tmp_path / "run", "--error_analysis.min_score=0.01")
    message = capsys.readouterr().err
    assert "would gain without errors of one kind: " in message and str(run / "errors.json") in message
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    content = json.loads((run / "errors.json").read_text())
    assert content["map_50"] == pytest.approx(metrics["test/map_50"], abs=1e-6)
    assert set(content["dap"]) == {*KINDS, *SPECIAL}
    for kind, gain in content["dap"].items():
        assert metrics[f"test/dap_{kind}"] == pytest.approx(gain, abs=1e-6)
    assert content["min_score"] == 0.01 and content["classes"][-1] == "background"
    assert axes == [(content["classes"], content["classes"])]
    confusion = np.array(content["confusion"])
    assert confusion.shape == (len(content["classes"]),) * 2
    assert confusion[:-1].sum() > 0
    row = content["images"][0]
    assert (shapes / row["file_name"]).is_file() and row["f1"] == min(
        each["f1"] for each in content["images"]
    )
    assert sum(each["right"] for each in content["images"]) <= np.trace(confusion)
    for name in ("confusion.png", "worst.png"):
        picture = np.asarray(Image.open(run / name))
        assert picture.ndim == 3 and picture.std() > 5
    capsys.readouterr()
    assert main(["report", str(run)]) == 0
    assert "without one kind of error" in capsys.readouterr().out

    # Without the analysis, there are no files. With `worst=0`, there are files, but no picture of the worst images.
    options = [f"--ckpt_path={run}", f"--run_dir={tmp_path / 'off'}"]
    assert main(["test", *options, "--error_analysis.enabled=false"]) == 0
    assert not {"errors.json", "confusion.png", "worst.png"} & {each.name for each in tmp_path.glob("off/*")}
    assert not any(
        "dap" in name for name in json.loads((tmp_path / "off/result.json").read_text())["metrics"]
    )
    assert main(["test", *options, "--error_analysis.worst=0"]) == 0
    assert (tmp_path / "off/errors.json").exists() and not (tmp_path / "off/worst.png").exists()


def test_the_analysis_contains_the_recall_of_proposals(tmp_path: Path) -> None:
    scores = RegionScores(["a"])
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]])
    found = Prediction(boxes=boxes[:1], scores=torch.tensor([0.9]), labels=torch.tensor([1]))
    target = Target(boxes=boxes, labels=torch.ones(2, dtype=torch.int64))
    proposals = torch.tensor([[20.0, 20, 40, 35], [0, 0, 10, 10], [0, 0, 9, 9]])
    scores.update([found], [target], [1], [proposals])
    analysis = ErrorAnalysis()
    module: Any = SimpleNamespace(log_dict=lambda values, **options: None)
    trainer: Any = SimpleNamespace(is_global_zero=True, default_root_dir=tmp_path)
    analysis.read_scores(module, "test", scores)
    analysis.on_test_end(trainer, module)
    content = json.loads((tmp_path / "errors.json").read_text())["proposals"]
    assert content["per_image"] == 3
    assert (content["counts"][:2], content["counts"][-1]) == ([1, 2], None)
    assert content["ious"] == [percent / 100 for percent in range(50, 100, 5)]
    # The first proposal has an IoU of .75 with the second object, the second one of 1 with the first object.
    assert content["recall"][0] == [0.5] * 6 + [0] * 4
    assert content["recall"][1] == content["recall"][-1] == [1] * 6 + [0.5] * 4


def test_segmentation_has_a_confusion_matrix_and_localization_has_no_files(
    shapes: Path, tmp_path: Path
) -> None:
    run = run_of("segmentation", shapes, tmp_path / "segmentation")
    assert np.asarray(Image.open(run / "confusion.png")).std() > 5
    assert not (run / "errors.json").exists() and not (run / "worst.png").exists()
    run = run_of("localization", shapes, tmp_path / "localization")
    assert not (run / "confusion.png").exists() and not (run / "errors.json").exists()


def test_a_wrong_option_is_reported_in_one_line(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = [*MODELS["detection"], "--model.backbone=test_resnet", *DATA, f"--data.root={shapes}"]
    assert main(["fit", *model, f"--run_dir={tmp_path / 'run'}", "--error_analysis.worst=-1"]) == 2
    (*_, message) = capsys.readouterr().err.splitlines()
    assert message == "segdet: error: --error_analysis.worst -1: must be at least 0"


def test_nan_becomes_null() -> None:
    content = {"map_50": math.nan, "dap": {"missed": math.nan}, "images": [], "confusion": [[0, 1], [2, 3]]}
    assert json.loads(_text(content)) == {
        "map_50": None, "dap": {"missed": None}, "images": [], "confusion": [[0, 1], [2, 3]],
    }  # fmt: skip
