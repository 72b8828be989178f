"""``segdet test`` and ``segdet validate``: the scores in the record."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from tiny_runs import MODELS, TINY, Line

from segdet.cli.main import main
from segdet.data.formats.voc import VOCReader
from segdet.data.shapes.make import make_shapes
from segdet.training.load_checkpoint import DESCRIPTION


def test_test_adds_to_the_record_of_the_run(run: Path) -> None:
    config = (run / "config.yaml").read_text()
    assert main(["test", "--ckpt_path", str(run / "checkpoints" / "best.ckpt")]) == 0
    record = json.loads((run / "result.json").read_text())
    assert {"val/map", "test/map"} <= record["metrics"].keys()
    assert record["cost"]["flops"] > 0
    assert record["cost"]["ms_per_image"] > 0
    assert record["cost"]["passes_per_image"] == 1
    assert record["cost"]["train_seconds"] > 0
    assert record["command"].startswith("segdet fit")
    assert (run / "config.yaml").read_text() == config


def test_validate_gives_the_score_of_the_fit(run: Path) -> None:
    fitted = json.loads((run / "result.json").read_text())["metrics"]
    assert main(["validate", "--ckpt_path", "best", "--run_dir", str(run)]) == 0
    again = json.loads((run / "result.json").read_text())["metrics"]
    assert again["val/map_50"] == pytest.approx(fitted["val/map_50"])


@pytest.mark.parametrize("form", ["argument", "config"])
def test_given_options_override_the_checkpoint(form: str, run: Path, tmp_path: Path) -> None:
    given = ["--model.score_threshold", "0.875"]
    if form == "config":
        (tmp_path / "more.yaml").write_text("model: {init_args: {score_threshold: 0.875}}")
        given = ["--config", str(tmp_path / "more.yaml")]
    other = tmp_path / "other"
    assert main(["test", "--ckpt_path", str(run), "--run_dir", str(other), *given]) == 0
    arguments = yaml.safe_load((other / "config.yaml").read_text())["model"]["init_args"]
    assert arguments["score_threshold"] == 0.875
    assert arguments["backbone"] == "test_resnet"
    assert not json.loads((other / "result.json").read_text())["metrics"]["test/mar_100"]


@pytest.mark.parametrize("option", ["--data.recipe.size", "--data.init_args.recipe.init_args.size"])
def test_an_option_of_a_class_in_the_checkpoint_needs_no_class(
    option: str, run: Path, tmp_path: Path
) -> None:
    given = [option, "[48,64]", "--trainer.limit_test_batches=1"]
    assert main(["test", "--ckpt_path", str(run), "--run_dir", str(tmp_path / "other"), *given]) == 0
    recipes = [
        yaml.safe_load((folder / "config.yaml").read_text())["data"]["init_args"]["recipe"]
        for folder in (run, tmp_path / "other")
    ]
    assert recipes[1]["init_args"]["size"] == [48, 64] != recipes[0]["init_args"]["size"]
    assert recipes[1] == recipes[0] | {"init_args": recipes[0]["init_args"] | {"size": [48, 64]}}


def test_no_checkpoint(line: Line) -> None:
    for command in ("test", "validate", "predict"):
        message = line([command, *MODELS["detection"], *TINY])
        assert message.startswith(f"segdet {command}: no run is given; give --ckpt_path")
        assert line([command]) == message


def test_other_classes_are_refused(run: Path, tmp_path: Path, line: Line) -> None:
    arguments = ["--data=Images", f"--data.paths={run}/predictions", "--data.class_names=[cat, dog]"]
    message = line(["test", "--ckpt_path", str(run / "checkpoints" / "best.ckpt"), *arguments])
    assert "the data has 2 (cat, dog)" in message


class TestOnlyTheTestFolder:
    """A folder with only the split to test or predict on is enough: the checkpoint contains the classes."""

    @pytest.fixture
    def folder(self, shapes: Path, tmp_path: Path) -> Path:
        """A folder with two images of the test split and no other split. Some classes do not occur."""
        folder = tmp_path / "only"
        for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (folder / name).mkdir(parents=True)
        stems = (shapes / "ImageSets" / "Main" / "test.txt").read_text().split()[:2]
        (folder / "ImageSets" / "Main" / "test.txt").write_text("\n".join(stems) + "\n")
        for stem in stems:
            shutil.copy(shapes / "Annotations" / f"{stem}.xml", folder / "Annotations")
            shutil.copy(next((shapes / "JPEGImages").glob(f"{stem}.*")), folder / "JPEGImages")
        return folder

    @staticmethod
    def options(run: Path, folder: Path) -> list[str]:
        data = ["--data=VOCDataModule", f"--data.root={folder}", "--data.test=[test]"]
        return [f"--ckpt_path={run}", *data, f"--run_dir={folder.parent}/out", "--trainer.accelerator=cpu"]

    @staticmethod
    def with_other_ids(tmp_path: Path) -> tuple[Path, Path, dict[str, Any]]:
        """Return a COCO folder, the file of its test split, and the content of that file with other category ids."""
        folder = make_shapes(
            tmp_path / "coco", "coco", train=1, val=1, test=2, size=(64, 64), workers=1, progress=False
        )
        file = folder / "annotations" / "instances_test2017.json"
        document = json.loads(file.read_text())
        for entry in (*document["categories"], *document["annotations"]):
            key = "category_id" if "category_id" in entry else "id"
            entry[key] += 500
        return folder, file, document

    def test_test(self, run: Path, folder: Path, recwarn: pytest.WarningsRecorder) -> None:
        trained = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)[DESCRIPTION]["class_names"]
        found = VOCReader(folder, ["test"], "detection").class_names
        assert set(found) < set(trained)
        assert main(["test", *self.options(run, folder)]) == 0
        metrics = json.loads((folder.parent / "out" / "result.json").read_text())["metrics"]
        assert {name.removeprefix("test/ap/") for name in metrics if "/ap/" in name} == set(found)

    def test_predict(self, run: Path, folder: Path) -> None:
        assert main(["predict", *self.options(run, folder)]) == 0
        assert len(list((folder.parent / "out" / "predictions" / "overlays").rglob("*.png"))) == 2

    def test_predict_without_annotations(self, run: Path, folder: Path) -> None:
        shutil.rmtree(folder / "Annotations")
        assert main(["predict", *self.options(run, folder)]) == 0
        assert len(list((folder.parent / "out" / "predictions" / "overlays").rglob("*.png"))) == 2

    def test_a_test_without_annotations_is_reported_in_one_line(
        self, run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (missing,) = sorted((folder / "Annotations").iterdir())[:1]
        missing.unlink()
        assert main(["test", *self.options(run, folder)]) == 2
        assert f"error: {missing}: " in capsys.readouterr().err

    def test_predict_on_the_images_of_cocos_server(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The server publishes image ids and categories, but not the annotations."""
        folder, file, document = self.with_other_ids(tmp_path)
        del document["annotations"]
        file.rename(file.with_name("image_info_test-dev2017.json")).write_text(json.dumps(document))
        data = ["--data=COCODataModule", f"--data.root={folder}", "--data.test=test-dev2017"]
        assert main(["predict", f"--ckpt_path={run}", *data]) == 0
        results = json.loads((run / "predictions" / "predictions.json").read_text())
        assert {entry["image_id"] for entry in results} <= {image["id"] for image in document["images"]}
        assert results
        ids = {category["id"]: category["name"] for category in document["categories"]}
        assert all(ids[entry["category_id"]] == entry["category"] for entry in results)
        assert "results are written with the data's ids" in capsys.readouterr().err
        assert main(["test", f"--ckpt_path={run}", *data]) == 2
        error = capsys.readouterr().err
        assert f"{folder}/annotations/image_info_test-dev2017.json: images without annotations" in error
        for command in ("check", "stats", "show"):
            assert main(["data", command, str(folder), "--split", "test-dev2017"]) == 2
            assert "lists images without annotations; use it with `segdet predict`" in capsys.readouterr().err

    def test_an_image_without_annotation_is_upright(self, run: Path, folder: Path) -> None:
        """An image without annotation is turned upright, as in a folder of images. With annotation it is not."""
        exif = Image.Exif()
        exif[0x0112] = 6
        names = (folder / "ImageSets" / "Main" / "test.txt").read_text().split()
        for name in names:
            (path,) = (folder / "JPEGImages").glob(f"{name}.*")
            path.unlink()
            Image.new("RGB", (60, 40)).save(path.with_suffix(".jpg"), exif=exif)
        annotation = folder / "Annotations" / f"{names[1]}.xml"
        annotation.write_text(re.sub(r"<(width|height)>\d+", r"<\1>0", annotation.read_text()))
        (folder / "Annotations" / f"{names[0]}.xml").unlink()
        assert main(["predict", *self.options(run, folder)]) == 0
        sizes = []
        for name in names:
            (picture,) = (folder.parent / "out" / "predictions" / "overlays").rglob(f"{name}.png")
            with Image.open(picture) as overlay:
                sizes.append(overlay.size)
        assert sizes == [(320, 480), (480, 320)]  # enlarged

    def test_a_class_that_is_not_in_the_checkpoint(
        self, run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        annotation = sorted((folder / "Annotations").iterdir())[0]
        annotation.write_text(
            re.sub(r"<name>\w+</name>", "<name>zebra</name>", annotation.read_text(), count=1)
        )
        assert main(["test", *self.options(run, folder)]) == 2
        assert f"error: {annotation}: unknown class 'zebra'" in capsys.readouterr().err

    def test_categories_with_other_ids(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder, file, document = self.with_other_ids(tmp_path)
        file.write_text(json.dumps(document))
        (folder / "annotations" / "instances_train2017.json").unlink()
        data = ["--data=COCODataModule", f"--data.root={folder}", "--data.test=test2017"]
        assert main(["predict", f"--ckpt_path={run}", *data]) == 0
        results = json.loads((run / "predictions" / "predictions.json").read_text())
        assert results
        assert min(entry["category_id"] for entry in results) > 500
        assert "results are written with the data's ids" in capsys.readouterr().err
