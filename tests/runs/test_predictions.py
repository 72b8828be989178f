import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segdet.cli.main import main
from segdet.data.base import Classes
from segdet.data.sample import Batch, Prediction
from segdet.data.shapes.make import make_shapes
from segdet.detection.mask_rcnn import MaskRCNN
from segdet.runs.predictions import PredictionWriter, output_names


class TestIndexImage:
    MASK = np.array([[0, 1], [2, 1]])

    def test_values_of_the_datasets_own_masks(self) -> None:
        gray = Classes(["road", "sidewalk", "building"], [], [7, 8, 11], palette_masks=False)
        image = PredictionWriter(Path(), gray)._index_image(self.MASK)
        assert image.mode == "L"
        assert np.asarray(image).tolist() == [[7, 8], [11, 8]]

    def test_palette(self) -> None:
        image = PredictionWriter(Path(), Classes(["sky", "road", "tree"], [], [0, 2, 3]))._index_image(
            self.MASK
        )
        assert image.mode == "P"
        assert np.asarray(image).tolist() == [[0, 2], [3, 2]]
        assert image.getpalette()[6:9] == [0, 128, 0]  # type: ignore[index]

    def test_class_indices_without_values(self) -> None:
        assert np.asarray(PredictionWriter(Path())._index_image(self.MASK)).tolist() == self.MASK.tolist()


class TestOutputNames:
    def test_stems_below_the_root(self) -> None:
        root = Path("photos")
        paths = [root / "a.jpg", root / "more" / "a.jpg", root / "b.c.png"]
        assert list(output_names(paths, root).values()) == ["a", "more/a", "b.c"]

    def test_repeated_stems_keep_their_endings(self) -> None:
        root = Path("photos")
        paths = [root / name for name in ("a.jpg", "a.png", "a.jpg.bmp", "b.jpg")]
        names = list(output_names(paths, root).values())
        assert names == ["a.jpg", "a.png", "a.jpg.bmp", "b"]

    def test_one_image_twice(self) -> None:
        path = Path("elsewhere/a.jpg")
        assert output_names([path, path], Path("photos")) == {path: "a"}


def test_predictions_before_an_interruption_are_kept(tmp_path: Path) -> None:
    writer = PredictionWriter(tmp_path)
    one: Any = SimpleNamespace(world_size=1)
    writer.on_exception(one, one, KeyboardInterrupt())  # before the first prediction
    assert not list(tmp_path.iterdir())
    writer._rank_file(0).write_text('{"image_id": 1}\n{"image_id": 2}\n')
    writer.on_exception(one, one, KeyboardInterrupt())
    assert json.loads((tmp_path / "predictions.json").read_text()) == [{"image_id": 1}, {"image_id": 2}]
    assert [file.name for file in tmp_path.iterdir()] == ["predictions.json"]


NAMES = ["map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar_1", "mar_10", "mar_100"]
"""COCO's numbers in the order of pycocotools."""


class NearTheTruth:
    """Predict each object a few times, shifted by some pixels. The first six decimal places of all scores are equal."""

    def __init__(self, truth: COCO) -> None:
        self.truth = truth
        self.ids = sorted(truth.getCatIds())

    def __call__(self, batch: Batch) -> list[Prediction]:
        return [self._of(source.image_id, source.original_size) for source in batch.sources]

    def _of(self, image: int, size: tuple[int, int]) -> Prediction:
        generator = torch.Generator().manual_seed(image)
        objects = [each for each in self.truth.loadAnns(self.truth.getAnnIds(image)) for _ in range(4)]
        corners = torch.tensor([each["bbox"] for each in objects]).view(-1, 4)
        corners[:, 2:] += corners[:, :2]
        moved = corners + 2 * torch.randn(corners.shape, generator=generator)
        limit = torch.tensor([size[1], size[0]] * 2)
        scores = 0.5 + 1e-6 * torch.rand(len(objects), generator=generator)
        masks = [np.roll(self.truth.annToMask(each), place % 4) for place, each in enumerate(objects)]
        found: Any = {
            "boxes": moved.clamp(min=0).minimum(limit),
            "scores": scores,
            "labels": torch.tensor([self.ids.index(each["category_id"]) + 1 for each in objects]),
            "masks": torch.from_numpy(np.stack(masks)),
        }
        order = scores.argsort(descending=True)
        return Prediction(**{key: value[order] for key, value in found.items()})


def test_pycocotools_gives_the_scores_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_shapes(
        tmp_path / "coco", "coco", train=2, val=2, test=12, size=(96, 96), workers=1, progress=False
    )
    run = tmp_path / "run"
    model = ["--model=MaskRCNN", "--model.backbone=test_resnet", "--model.width=8", "--model.head_width=8"]
    data = [
        "--data=COCODataModule", f"--data.root={root}", "--data.test=test2017", "--data.masks=true",
        "--data.num_workers=0", "--data.batch_size=2",
    ]  # fmt: skip
    trainer = ["--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--panels.images=0"]
    assert main(["fit", *model, "--model.mask_width=8", *data, *trainer, f"--run_dir={run}"]) == 0
    truth = COCO(root / "annotations" / "instances_test2017.json")
    found = NearTheTruth(truth)
    monkeypatch.setattr(MaskRCNN, "predict_batch", lambda self, batch: found(batch))
    for command in ("test", "predict"):
        assert main([command, f"--ckpt_path={run}"]) == 0
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    written = json.loads((run / "predictions" / "predictions.json").read_text())
    of_masks = [{key: value for key, value in entry.items() if key != "bbox"} for entry in written]
    for kind, prefix, entries in (("bbox", "", written), ("segm", "mask_", of_masks)):
        evaluation = COCOeval(truth, truth.loadRes(entries), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        for name, expected in zip(NAMES, evaluation.stats, strict=False):
            if expected >= 0:  # -1 if there is no object of that size
                assert metrics[f"test/{prefix}{name}"] == pytest.approx(expected, abs=1e-6), (kind, name)
        assert 0.1 < metrics[f"test/{prefix}map"] < 0.9
