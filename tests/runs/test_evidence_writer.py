"""The evidence and the gallery of a test: its scores, its files, and the record that names them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from evidence_scores import scores_of
from PIL import Image
from tiny_runs import MODELS, TINY

from segdet.cli.main import main
from segdet.runs.evidence import EVIDENCE_NAME, SegmentationEvidence, read_evidence
from segdet.runs.gallery import GALLERY_FOLDER, MOST_IMAGES, gallery_order, read_gallery
from segdet.runs.record import RECORD_NAME, Record
from segdet.util.errors import UserError

IMAGES = 30


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A trained and tested run of each task, on the same images."""
    folder = tmp_path_factory.mktemp("evidence")
    for task, model in MODELS.items():
        options = [*model, *TINY, f"--data.num_test={IMAGES}", f"--data.root={folder / 'shapes'}"]
        options += ["--model.score_threshold=0.001"] if task == "detection" else []
        assert main(["fit", *options, f"--run_dir={folder / task}", "--test=true"]) == 0
    return {task: folder / task for task in MODELS}


@pytest.mark.parametrize("task", MODELS)
def test_the_evidence_of_a_test_has_the_scores_of_its_record(task: str, runs: dict[str, Path]) -> None:
    record = Record.read(runs[task] / RECORD_NAME)
    assert record.per_image == EVIDENCE_NAME
    evidence = read_evidence(runs[task] / record.per_image)
    assert (evidence.task, evidence.class_names[-1]) == (task, "ring")
    assert MOST_IMAGES < len(evidence) <= IMAGES  # localization needs a dominant object
    assert evidence.file_names[0] == "JPEGImages/000013.jpg"
    assert evidence.sizes.tolist() == [[64, 64]] * len(evidence)
    needed = {"segmentation": "miou", "localization": "loc_acc", "detection": "map_voc12"}
    scores = scores_of(evidence)
    assert needed[task] in scores
    for name, score in scores.items():
        logged = record.metrics.get(f"test/{name}")
        # Lightning keeps logged values in single precision; undefined scores are not logged.
        assert np.isnan(score) if logged is None else np.float32(score) == np.float32(logged), name


@pytest.mark.parametrize("task", MODELS)
def test_the_gallery_has_the_images_that_a_hash_of_the_file_name_selects(
    task: str, runs: dict[str, Path]
) -> None:
    images, evidence = read_gallery(runs[task] / GALLERY_FOLDER), read_evidence(runs[task] / EVIDENCE_NAME)
    names = [image.file_name for image in images]
    assert names == sorted(evidence.file_names, key=gallery_order)[:MOST_IMAGES] != sorted(names)
    assert [image.index for image in images] == list(range(MOST_IMAGES))
    positions = np.searchsorted(evidence.image_ids, [image.image_id for image in images])
    assert [evidence.file_names[each] for each in positions] == names


def test_the_gallery_of_segmentation_has_the_masks_that_were_scored(runs: dict[str, Path]) -> None:
    folder = runs["segmentation"] / GALLERY_FOLDER
    evidence = read_evidence(runs["segmentation"] / EVIDENCE_NAME)
    assert isinstance(evidence, SegmentationEvidence)
    for image in read_gallery(folder):
        with Image.open(folder / image.picture) as picture:
            assert picture.size == (64, 64) and image.scale == 1
        truth, predicted = (np.asarray(Image.open(folder / name)) for name in (image.truth, image.predicted))
        rows = evidence.image == np.searchsorted(evidence.image_ids, image.image_id)
        counts = np.zeros((256, 256), int)
        counts[evidence.truth[rows], evidence.predicted[rows]] = evidence.pixels[rows]
        counted = truth != 255
        pairs = np.bincount(truth[counted].astype(int) * 256 + predicted[counted], minlength=256**2)
        np.testing.assert_array_equal(pairs.reshape(256, 256), counts)
    assert not list((runs["detection"] / GALLERY_FOLDER).glob("*.png"))


def test_a_record_names_only_the_evidence_of_its_own_test(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test that fails while it writes leaves a record without evidence; a new training removes the files."""
    run = Path(shutil.copytree(runs["localization"], tmp_path / "run"))

    def fail(*_: object) -> None:
        raise UserError("the disk is full")

    monkeypatch.setattr("segdet.runs.evidence_writer.write_gallery", fail)
    command = ["test", f"--ckpt_path={run}", f"--run_dir={run}", "--trainer.accelerator=cpu"]
    assert main(command) == 2
    assert Record.read(run / RECORD_NAME).per_image is None
    monkeypatch.undo()
    assert main(command) == 0
    assert Record.read(run / RECORD_NAME).per_image == EVIDENCE_NAME
    other = tmp_path / "other"
    assert main([*command[:2], f"--run_dir={other}", "--trainer.accelerator=cpu"]) == 0
    assert (other / EVIDENCE_NAME).read_bytes() == (run / EVIDENCE_NAME).read_bytes()
    assert Record.read(other / RECORD_NAME).per_image == EVIDENCE_NAME
    root = json.loads((run / "provenance.json").read_text())["command"].split("--data.root=")[1].split()[0]
    options = [*MODELS["localization"], *TINY, f"--data.num_test={IMAGES}", f"--data.root={root}"]
    assert main(["fit", *options, f"--run_dir={run}", "--overwrite=true"]) == 0
    assert Record.read(run / RECORD_NAME).per_image is None and not (run / "per_image").exists()


def test_a_gallery_that_cannot_be_read_is_reported_in_one_line(tmp_path: Path) -> None:
    assert read_gallery(tmp_path) == []
    (tmp_path / "gallery.json").write_text('[{"index": 0}]')
    with pytest.raises(UserError, match=r"gallery.json: corrupt"):
        read_gallery(tmp_path)
