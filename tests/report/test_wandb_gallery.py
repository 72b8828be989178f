"""The gallery on Weights & Biases: layers of annotation and prediction for the same images of all runs."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from random_runs import write_run

from segdet.report.page import page_of
from segdet.report.wandb_gallery import wandb_galleries
from segdet.report.wandb_records import tables_of
from segdet.report.wandb_views import view_of
from segdet.runs.evidence import IGNORED
from segdet.runs.gallery import GALLERY_FOLDER, read_gallery


def test_boxes_are_those_of_the_evidence_in_pixels_of_the_picture(tmp_path: Path) -> None:
    evidence = write_run(tmp_path / "ssd")
    write_run(tmp_path / "rcnn", seed=1)
    (gallery,) = wandb_galleries(page_of([tmp_path]))
    assert list(gallery.pictures) == ["rcnn", "ssd"] and len(gallery.names) == 6
    assert gallery.disagreement == sorted(gallery.disagreement, reverse=True)
    for name, picture in zip(gallery.names, gallery.pictures["ssd"], strict=True):
        index = evidence.file_names.index(name)
        layers = {layer._key: layer._val for layer in picture._boxes.values()}
        scores = [entry["scores"]["score"] for entry in layers["prediction"]]
        own = (evidence.image == index) & (evidence.match[:, 0] != IGNORED)
        order = np.argsort(-evidence.score[own], kind="stable")
        assert scores == pytest.approx(evidence.score[own][order])
        places = [entry["position"] for entry in layers["prediction"]]
        boxes = np.array([[p["minX"], p["minY"], p["maxX"], p["maxY"]] for p in places])
        expected = 2 * evidence.box[own][order]  # the pictures are twice as large as the images
        np.testing.assert_allclose(boxes.reshape(-1, 4), expected, atol=0.11)
        assert len(layers["ground_truth"]) == (evidence.object_image == index).sum()


def test_masks_are_those_of_the_gallery(tmp_path: Path) -> None:
    write_run(tmp_path / "fcn", "segmentation")
    (gallery,) = wandb_galleries(page_of([tmp_path]))
    folder = tmp_path / "fcn" / GALLERY_FOLDER
    files = {image.file_name: image for image in read_gallery(folder)}
    picture, image = gallery.pictures["fcn"][0], files[gallery.names[0]]
    for key, name in (("ground_truth", image.truth), ("prediction", image.predicted)):
        with Image.open(folder / name) as opened, Image.open(picture._masks[key]._path) as recorded:
            assert (np.asarray(opened) == np.asarray(recorded)).all()


def test_each_run_is_a_column_of_the_table_and_the_workspace_shows_the_images(tmp_path: Path) -> None:
    for seed, name in enumerate(("ssd", "yolo")):
        write_run(tmp_path / name, seed=seed, metrics={"test/map": 0.5})
    page = page_of([tmp_path])
    galleries = wandb_galleries(page)
    tables = {table.name: table for table in tables_of(page, galleries)}
    table = tables["gallery/detection"]
    assert table.columns == ["image", "disagreement", "ssd", "yolo"] and len(table.rows) == 6
    panels = [panel for section in view_of(page, "p", list(tables)).sections for panel in section.panels]
    assert [panel.metric for panel in panels if panel.kind == "media"] == ["test/images"]


def test_the_cells_of_confusion_matrices_sum_to_the_test_set(tmp_path: Path) -> None:
    write_run(tmp_path / "fcn", "segmentation")
    evidence = write_run(tmp_path / "box_head", "localization")
    tables = {table.name: table for table in tables_of(page_of([tmp_path]))}
    cells = [row for row in tables["confusion"].rows if row[0] == "box_head"]
    assert sum(row[3] for row in cells) == len(evidence) and {row[4] for row in cells} == {"images"}
    right = sum(row[3] for row in cells if row[1] == row[2])
    assert right == (evidence.label == evidence.predicted[:, 0]).sum()


def test_runs_without_a_gallery_have_none(tmp_path: Path) -> None:
    write_run(tmp_path / "ssd", gallery=0, metrics={"test/map": 0.5})
    page = page_of([tmp_path])
    assert wandb_galleries(page) == []
    assert not [table.name for table in tables_of(page) if table.name.startswith("gallery")]
