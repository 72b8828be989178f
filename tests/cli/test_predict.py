"""``segdet predict``: files and overlays."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_runs import MODELS, TINY

from segdet.cli.main import main
from segdet.data.formats.cityscapes import LABELS
from segdet.data.formats.voc import VOCReader
from segdet.data.shapes.make import make_shapes


def test_boxes(run: Path, shapes: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    for path, name in zip(sorted((shapes / "JPEGImages").iterdir()), ("a", "more/a"), strict=False):
        shutil.copy(path, photos / f"{name}.jpg")
    out = tmp_path / "out"
    arguments = ["--data=ImageFolder", f"--data.root={photos}", f"--run_dir={out}"]
    assert main(["predict", "--ckpt_path", str(run / "checkpoints" / "best.ckpt"), *arguments]) == 0
    results = json.loads((out / "predictions" / "predictions.json").read_text())
    assert {entry["file_name"] for entry in results} <= {"a.jpg", "more/a.jpg"}
    assert results
    for entry in results:
        x, y, width, height = entry["bbox"]
        assert -0.01 <= x <= x + width <= 64.01
        assert -0.01 <= y <= y + height <= 64.01
        assert 0 < entry["score"] <= 1
    overlays = {p.relative_to(out).as_posix() for p in (out / "predictions" / "overlays").rglob("*.png")}
    assert overlays == {"predictions/overlays/a.png", "predictions/overlays/more/a.png"}
    assert not list((out / "predictions").glob(".*"))


def test_photographs_are_upright_and_have_distinct_outputs(run: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    picture = Image.fromarray(np.full((40, 70, 3), 90, np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    picture.save(photos / "a.jpg", exif=exif)
    picture.save(photos / "a.png")
    assert main(["predict", f"--ckpt_path={run}", "--data=ImageFolder", f"--data.root={photos}"]) == 0
    sizes = {}
    for path in (run / "predictions" / "overlays").iterdir():
        with Image.open(path) as overlay:
            sizes[path.name] = overlay.size
    assert sizes == {"a.jpg.png": (40, 70), "a.png.png": (70, 40)}


@pytest.mark.usefixtures("fitted")  # which writes the data
def test_classes_come_from_the_checkpoint(shapes: Path, tmp_path: Path) -> None:
    """The model was trained with a file of class names, an option that a folder of images does not have."""
    folder, photos = tmp_path / "run", tmp_path / "photos"
    classes = VOCReader(shapes, ["train"], "detection").class_names
    (tmp_path / "names.txt").write_text("\n".join(classes) + "\n")
    voc = ["--data=VOCDataModule", f"--data.root={shapes}", f"--data.class_names={tmp_path}/names.txt"]
    tiny = [word for word in TINY if not word.startswith("--data")]
    loading = ["--data.batch_size=4", "--data.num_workers=0"]
    assert main(["fit", *MODELS["detection"], *voc, *loading, *tiny, f"--run_dir={folder}"]) == 0
    photos.mkdir()
    Image.fromarray(np.full((70, 50, 3), 90, np.uint8)).save(photos / "grey.png")
    arguments = ["--data=ImageFolder", f"--data.root={photos}"]
    assert main(["predict", f"--ckpt_path={folder}", *arguments]) == 0
    assert (folder / "predictions" / "predictions.json").exists()


def test_masks(shapes: Path, tmp_path: Path) -> None:
    folder, photos = tmp_path / "run", tmp_path / "photos"
    assert main(["fit", *MODELS["segmentation"], *TINY, f"--data.root={shapes}", f"--run_dir={folder}"]) == 0
    photos.mkdir()
    Image.fromarray(np.full((70, 50, 3), 90, np.uint8)).save(photos / "grey.png")
    arguments = ["--data=ImageFolder", f"--data.root={photos}"]
    assert main(["predict", f"--ckpt_path={folder}", *arguments]) == 0
    with Image.open(folder / "predictions" / "masks" / "grey.png") as mask:
        assert (mask.mode, mask.size) == ("P", (50, 70))
        assert np.asarray(mask).max() <= 6
        assert mask.getpalette()[3:6] == [128, 0, 0]
    assert (folder / "predictions" / "overlays" / "grey.png").exists()


def test_masks_of_cityscapes_hold_its_label_ids(tmp_path: Path) -> None:
    """The checkpoint contains the ids, so this also holds for a folder of photographs."""
    root = make_shapes(
        tmp_path / "city", "cityscapes", train=4, val=2, test=2, size=(64, 64), workers=1, progress=False
    )
    folder, photos = tmp_path / "run", tmp_path / "photos"
    tiny = [word for word in TINY if not word.startswith("--data")]
    data = ["--data=CityscapesDataModule", f"--data.root={root}", "--data.test=test"]
    loading = ["--data.batch_size=2", "--data.num_workers=0"]
    assert main(["fit", *MODELS["segmentation"], *data, *loading, *tiny, f"--run_dir={folder}"]) == 0
    photos.mkdir()
    for image in sorted((root / "leftImg8bit" / "test").rglob("*.png")):
        shutil.copy(image, photos)
    (root / "leftImg8bit" / "train").rename(root / "elsewhere")  # prediction does not need it
    out = [tmp_path / "out", tmp_path / "photos_out"]
    assert main(["predict", f"--ckpt_path={folder}", *data[2:], f"--run_dir={out[0]}"]) == 0
    of_photos = ["--data=ImageFolder", f"--data.root={photos}"]
    assert main(["predict", f"--ckpt_path={folder}", *of_photos, f"--run_dir={out[1]}"]) == 0
    masks = [sorted((place / "predictions" / "masks").rglob("*.png")) for place in out]
    assert [len(paths) for paths in masks] == [2, 2]
    for split, photo in zip(*masks, strict=True):
        with Image.open(split) as one, Image.open(photo) as other:
            assert one.mode == other.mode == "L"
            assert np.array_equal(one, other)
            assert set(np.unique(one)) <= {label.id for label in LABELS if not label.ignore_in_eval}
