"""Three commands lead from the files of an annotation tool to a tested model: import, fit and test."""

import json
from pathlib import Path
from typing import Any

import pytest
from annotation_tools import labelme, labelme_shape, voc_xml, write
from PIL import Image
from tiny_runs import MODELS

from segdet.cli.main import main
from segdet.data.formats.outlines import mask_polygons
from segdet.data.shapes.scenes import SHAPES_CLASSES, Scenes

TRAINING = ["--data.num_workers=0", "--trainer.accelerator=cpu", "--panels.images=2", "--seed_everything=0"]


def write_xml_beside_images(root: Path, count: int, side: int) -> None:
    """Write scenes as LabelImg does: an image and an XML file of the same name."""
    root.mkdir()
    for number, scene in enumerate(Scenes(3, range(count), (side, side))):
        Image.fromarray(scene.image).save(root / f"photo {number}.JPG", "JPEG", quality=95)
        objects = [
            (SHAPES_CLASSES[label - 1], [x0 + 1, y0 + 1, x1, y1])
            for label, (x0, y0, x1, y1) in zip(scene.labels.tolist(), scene.boxes.tolist(), strict=True)
        ]
        write(root / f"photo {number}.xml", voc_xml(f"photo {number}.JPG", objects, (side, side)))


def write_labelme(root: Path, count: int, side: int) -> None:
    """Write scenes as LabelMe does: an image and a JSON file of the same name."""
    root.mkdir()
    for number, scene in enumerate(Scenes(3, range(count), (side, side))):
        Image.fromarray(scene.image).save(root / f"photo {number}.JPG", "JPEG", quality=95)
        shapes = [
            labelme_shape(SHAPES_CLASSES[label - 1], "polygon", points.astype(float).tolist(), group_id=index)
            for index, label in enumerate(scene.labels.tolist())
            for points in mask_polygons(scene.instances == index + 1)[0]
        ]
        write(root / f"photo {number}.json", labelme(f"photo {number}.JPG", shapes, (side, side)))


def train_and_test(photos: Path, tmp_path: Path, model: list[str], *options: str) -> dict[str, Any]:
    """Run the three commands and return the record of the run."""
    root, run = tmp_path / "imported", tmp_path / "run"
    assert main(["data", "import", str(photos), str(root)]) == 0
    data = ["--data=VOCDataModule", f"--data.root={root}", "--data.test=[test]", f"--run_dir={run}"]
    assert main(["fit", *model, *data, *TRAINING, *options]) == 0
    assert main(["test", f"--ckpt_path={run}"]) == 0
    record: dict[str, Any] = json.loads((run / "result.json").read_text())
    return record


@pytest.mark.parametrize(
    ("write_photos", "task", "score"),
    [(write_xml_beside_images, "detection", "test/map"), (write_labelme, "segmentation", "test/miou")],
)
def test_three_commands(tmp_path: Path, write_photos: Any, task: str, score: str) -> None:
    photos = tmp_path / "photos"
    write_photos(photos, 20, 64)
    options = ["--data.batch_size=4", "--trainer.max_epochs=1"]
    record = train_and_test(photos, tmp_path, MODELS[task], *options)
    assert 0 <= record["metrics"][score] <= 1
    assert (record["task"], record["status"]) == (task, "finished")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_detector_learns_from_xml_beside_images(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    write_xml_beside_images(photos, 600, 64)
    model = [
        "--model=SSD", "--model.backbone=small_vgg", "--model.backbone_options={channels: [16, 32, 64, 96]}",
        "--model.strides=[4, 8, 16]", "--model.extra_maps=0", "--model.width=32",
        "--model.scales=[0.3, 0.5, 0.75, 1.0]",
        "--model.top_down=true",
        "--model.optim={name: muon, lr: 2.0e-3, momentum: 0.95, weight_decay: 0.01, schedule: cosine}",
    ]  # fmt: skip
    options = ["--data.batch_size=8", "--trainer.max_epochs=12", "--trainer.check_val_every_n_epoch=12"]
    record = train_and_test(photos, tmp_path, model, *options)
    assert record["metrics"]["test/map_50"] > 0.3


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_segmenter_learns_from_labelme_files(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    write_labelme(photos, 600, 64)
    model = [
        "--model=FCN", "--model.backbone=small_vgg", "--model.backbone_options={channels: [16, 32, 64, 96]}",
        "--model.strides=[2, 4, 8, 16]", "--model.width=24", "--model.dropout=0", "--model.loss=cross_entropy_dice",
        "--model.optim={name: muon, lr: 5.0e-3, momentum: 0.95, weight_decay: 0.05, schedule: cosine}",
    ]  # fmt: skip
    options = ["--data.batch_size=8", "--trainer.max_epochs=12", "--trainer.check_val_every_n_epoch=12"]
    record = train_and_test(photos, tmp_path, model, *options)
    assert record["metrics"]["test/miou"] > 0.3
