"""Train, test and predict on masks in the forms that annotation tools write."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_runs import MODELS
from voc_files import write_list

from segdet.cli.main import main

SMALL = [
    *MODELS["segmentation"], "--data=VOCDataModule", "--data.task=segmentation", "--data.batch_size=2",
    "--data.num_workers=0", "--panels.images=0", "--trainer.accelerator=cpu", "--trainer.max_epochs=1",
]  # fmt: skip


def write_folder(root: Path, object_value: int = 255, background: int = 0) -> Path:
    """Write a VOC folder with masks of two values: a to d in train, e and f in val."""
    for folder in ("JPEGImages", "SegmentationClass"):
        (root / folder).mkdir(parents=True)
    for seed, name in enumerate("abcdef"):
        pixels = np.random.default_rng(seed).integers(0, 120, (48, 64, 3), dtype=np.uint8)
        mask = np.full((48, 64), background, np.uint8)
        y, x = 4 + 3 * seed, 30 - 4 * seed
        mask[y : y + 20, x : x + 30] = object_value
        pixels[mask == object_value] += 120
        Image.fromarray(pixels).save(root / f"JPEGImages/{name}.png")
        Image.fromarray(mask).save(root / f"SegmentationClass/{name}.png")
    write_list(root, "train", "a\nb\nc\nd\n", kind="Segmentation")
    write_list(root, "val", "e\nf\n", kind="Segmentation")
    return root


def test_255_is_a_class_if_mask_values_contain_it(tmp_path: Path) -> None:
    root, run = write_folder(tmp_path / "data"), tmp_path / "run"
    options = ["--data.class_names=[background,cat]", "--data.mask_values=[0,255]"]
    assert main(["fit", *SMALL, f"--data.root={root}", f"--run_dir={run}", *options]) == 0
    assert main(["test", f"--ckpt_path={run}"]) == 0
    scores = json.loads((run / "result.json").read_text())["metrics"]
    assert {"test/iou/background", "test/iou/cat"} <= scores.keys()
    assert main(["predict", f"--ckpt_path={run}"]) == 0
    masks = [np.array(Image.open(path)) for path in (run / "predictions/masks").rglob("*.png")]
    assert len(masks) == 2 and set(np.unique(masks)) <= {0, 255}


@pytest.mark.parametrize("command", ["check", "stats"])
def test_the_data_commands_have_the_same_option(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_folder(tmp_path / "data")
    options = ["--class_names", "background,cat", "--mask_values"]
    assert main(["data", command, str(root), *options, "[0,255]"]) == 0
    assert "2 in val), 0 without objects" in (out := capsys.readouterr().out) or "pixels ignored" in out
    assert main(["data", command, str(root), *options, "0;255"]) == 2
    assert "--mask_values 0;255: is not a list of whole numbers" in capsys.readouterr().err


def error_of(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the last line that a mistaken command prints."""
    capsys.readouterr()
    assert main(argv) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_run_without_a_validation_score_is_tested_with_its_last_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, run = write_folder(tmp_path / "data", object_value=1), tmp_path / "run"
    (root / "labels.txt").write_text("background\ncat\n")
    for name in "ef":
        Image.fromarray(np.full((48, 64), 255, np.uint8)).save(root / f"SegmentationClass/{name}.png")
    assert main(["fit", *SMALL, f"--data.root={root}", f"--run_dir={run}"]) == 0
    printed = capsys.readouterr().err
    cause = "no pixel counts in scores: all 6,144 are ignored; there will be no score, and no best checkpoint"
    assert f"segdet: val: {root / 'SegmentationClass'}: {cause}\n" in printed and "UserWarning" not in printed
    line = error_of(["test", f"--ckpt_path={run}"], capsys)
    best, _, remedy = line.partition(
        ": no best checkpoint, because no validation of the run had a score; give "
    )
    assert best.endswith("run/checkpoints/best.ckpt")
    last = remedy.split()
    assert last == ["--ckpt_path", str(run / "checkpoints/last.ckpt")]
    assert "no pixel counts in scores" in error_of(["test", *last], capsys)
    assert main(["test", *last, "--data.test=[train]"]) == 0


def test_a_training_on_ignored_pixels_does_not_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, run = write_folder(tmp_path / "data", background=255), tmp_path / "run"
    (root / "labels.txt").write_text("background\ncat\n")
    line = error_of(["fit", *SMALL, f"--data.root={root}", f"--run_dir={run}"], capsys)
    folder = root / "SegmentationClass"
    assert line == (
        f"segdet: error: {folder}: training has no pixel to learn from: all 12,288 are ignored; "
        "if 255 is a class, give --data.mask_values [0,255] (segdet data: --mask_values [0,255])"
    )
    assert not (run / "checkpoints").exists()
