"""Bad samples stop `segdet fit` and `segdet validate` with one line that names the file, or are skipped and listed."""

from pathlib import Path

import pytest
from PIL import Image

from segdet.cli.main import main
from segdet.data.shapes.make import make_shapes


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    return make_shapes(
        tmp_path / "shapes", "voc", train=6, val=3, test=2, size=(64, 64), workers=1, progress=False
    )


def _fit(folder: Path, run: Path, *options: str) -> int:
    return main(
        [
            "fit", "--model=SSD", "--model.backbone=small_vgg", "--model.backbone_options={channels: [4, 4, 8, 8, 8]}",
            "--model.width=8", "--model.extra_maps=0", "--data=VOCDataModule", f"--data.root={folder}",
            "--data.batch_size=2", "--trainer.max_epochs=1", "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false", f"--run_dir={run}", *options,
        ]
    )  # fmt: skip


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("fault", ["truncated", "empty", "missing", "large", "xml"])
def test_a_bad_sample_stops_with_one_line(
    workers: int, fault: str, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = sorted((folder / "JPEGImages").iterdir())[0]
    if fault == "truncated":
        path.write_bytes(path.read_bytes()[:-700])
    elif fault == "empty":
        path.write_bytes(b"")
    elif fault == "missing":
        path.unlink()
    elif fault == "large":
        Image.new("RGB", (80, 80)).save(path)
    else:
        path = folder / "Annotations" / f"{path.stem}.xml"
        path.write_text("<annotation><object>")
    assert _fit(folder, tmp_path / "run", f"--data.num_workers={workers}", "--data.max_pixels=5000") == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("segdet: error:")]
    assert len(lines) == 1
    assert path.name in lines[0] and ";" in lines[0]
    assert lines[0].endswith(", or run without such samples: --data.on_bad_sample skip")


def test_skipped_samples_are_counted_and_listed(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second, third = sorted((folder / "JPEGImages").iterdir())[:3]
    first.write_bytes(b"")
    second.unlink()
    Image.new("RGB", (80, 80)).save(third)
    options = ["--data.num_workers=0", "--data.on_bad_sample=skip", "--data.max_pixels=5000"]
    assert _fit(folder, tmp_path / "run", *options) == 0
    listed = (tmp_path / "run" / "left_out.txt").read_text()
    assert first.name in listed and second.name in listed
    assert f"{third}: is 80x80, which is more than 5,000 pixels" in listed
    printed = capfd.readouterr().err
    assert f"left out of the data, {len(listed.splitlines())} in all" in printed
    assert first.name in printed


def test_validate_adds_to_the_list_of_skipped_samples(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = (folder / "ImageSets" / "Main" / "train.txt").read_text().split()
    trained = folder / "JPEGImages" / f"{names[0]}.jpg"
    trained.write_bytes(b"")
    run = tmp_path / "run"
    assert _fit(folder, run, "--data.num_workers=0", "--data.on_bad_sample=skip") == 0
    names = (folder / "ImageSets" / "Main" / "val.txt").read_text().split()
    validated = folder / "JPEGImages" / f"{names[0]}.jpg"
    validated.write_bytes(validated.read_bytes()[:-700])
    capfd.readouterr()
    assert main(["validate", f"--ckpt_path={run}", f"--run_dir={run}", "--data.num_workers=0"]) == 0
    printed = capfd.readouterr().err
    assert "left out of the data, 1 in all" in printed and validated.name in printed
    folders = [run, *tmp_path.glob("run-validate-*")]
    listed = "".join(
        (each / "left_out.txt").read_text() for each in folders if (each / "left_out.txt").exists()
    )
    assert trained.name in listed and validated.name in listed


def test_a_validation_split_without_objects_trains_without_a_warning_of_a_library(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in (folder / "ImageSets/Main/val.txt").read_text().split():
        (folder / "Annotations" / f"{name}.xml").write_text("<annotation></annotation>")
    assert _fit(folder, tmp_path / "run", "--data.num_workers=0") == 0
    printed = capfd.readouterr().err
    assert "segdet: val: " in printed and "there will be no score, and no best checkpoint" in printed
    assert printed.count("segdet: val/map has no value; best.ckpt is not updated") == 1
    assert "Warning" not in printed
    assert not (tmp_path / "run/checkpoints/best.ckpt").exists()
