"""Tests of proposals in samples: transformed like objects, limited in number, in training and evaluation."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from segdet.cli.main import main
from segdet.data import Images, VOCDataModule
from segdet.data.sample import collate
from segdet.data.transforms import Plain, Recipe, ScaleJitter
from segdet.data.video import VideoWriter
from segdet.proposals import ProposalFile, UniformWindows, save_proposals
from segdet.util.errors import UserError


def module(shapes: Path, recipe: Recipe, **kwargs) -> VOCDataModule:
    return VOCDataModule(shapes, recipe=recipe, batch_size=2, num_workers=0, **kwargs)


@pytest.fixture
def objects_file(shapes: Path, tmp_path: Path) -> Path:
    """Write a file of proposals. Those of each image are the whole image, two boxes that exceed it, and the objects."""
    data = module(shapes, Plain())
    boxes = {}
    for subset in ("train", "val"):
        reader = data.reader(subset)
        for index in range(len(reader)):
            more = np.array([[0, 0, 128, 96], [-20, 10, 30, 400], [200, 200, 300, 300]], np.float32)
            boxes[reader.image_path(index).name] = np.concatenate([more, reader.objects(index).boxes]), None
    save_proposals(tmp_path / "objects.npz", boxes)
    return tmp_path / "objects.npz"


def test_proposals_are_transformed_like_objects(shapes: Path, objects_file: Path) -> None:
    recipe = ScaleJitter(size=(96, 128), scale=(0.8, 1.2), min_visibility=0.0)
    dataset = module(shapes, recipe, proposals=ProposalFile(objects_file)).dataset("train")
    for index in range(4):
        target = dataset[index].target
        proposals, objects = target["proposals"], target["boxes"]
        assert proposals.dtype == torch.float32 and len(proposals) >= len(objects)
        torch.testing.assert_close(proposals[len(proposals) - len(objects) :], objects)


def test_evaluation_converts_proposals_to_network_pixels_and_clips_them(
    shapes: Path, objects_file: Path
) -> None:
    data = module(shapes, Plain(size=(48, 64)), proposals=ProposalFile(objects_file))
    batch = next(iter(data.val_dataloader()))
    # The proposal outside the image is removed.
    expected = torch.tensor([[0.0, 0, 64, 48], [0, 5, 15, 48]])
    for target in batch.targets:
        torch.testing.assert_close(target["proposals"][:2], expected)
        torch.testing.assert_close(target["proposals"][2:], target["boxes"])
    assert "proposals" not in batch.originals[0]


def test_max_proposals_keeps_the_best(shapes: Path) -> None:
    data = module(shapes, Plain(), proposals=UniformWindows(), max_proposals=7)
    sample = data.dataset("val")[0]
    best = data.dataset("val").proposals.boxes(0)[:7]
    assert sample.target["proposals"].tolist() == best.tolist()
    batch = collate([sample, data.dataset("val")[1]]).to("cpu")
    assert [len(target["proposals"]) for target in batch.targets] == [7, 7]


def test_targets_have_no_proposals_by_default(shapes: Path) -> None:
    assert "proposals" not in module(shapes, Plain()).dataset("train")[0].target


def test_only_the_images_in_use_are_computed(shapes: Path, cache: Path) -> None:
    module(shapes, Plain(), proposals=UniformWindows(), limit_train=2).dataset("train")
    assert len(list(cache.rglob("*.npy"))) == 2


@pytest.mark.parametrize(
    ("stage", "count"),
    [
        (TrainerFn.FITTING, 4 + 2),
        (TrainerFn.VALIDATING, 2),
        (TrainerFn.TESTING, 2),
        (TrainerFn.PREDICTING, 2),
    ],
)
def test_one_process_prepares_what_the_stage_reads(
    stage: TrainerFn, count: int, shapes: Path, cache: Path
) -> None:
    data = module(shapes, Plain(), proposals=UniformWindows())
    data.trainer = SimpleNamespace(state=SimpleNamespace(fn=stage), lightning_module=None)
    data.prepare_data()
    assert len(list(cache.rglob("*.npy"))) == count


def test_images_without_annotations_have_proposals(shapes: Path) -> None:
    data = Images(
        str(shapes / "JPEGImages"), class_names=["a"], recipe=Plain(size=(48, 64)), proposals=UniformWindows(),
        num_workers=0,
    )  # fmt: skip
    target = next(iter(data.predict_dataloader()[0])).targets[0]
    assert len(target["proposals"]) > 100 and target["proposals"].max() <= 64.01


def test_frames_of_a_video_have_proposals(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "clip.mp4", 10)
    for value in (0, 100):
        writer.write(np.full((48, 64, 3), value, np.uint8))
    writer.close()
    arguments: Any = {"class_names": ["a"], "recipe": Plain(size=(24, 32)), "num_workers": 0}
    data = Images(str(tmp_path / "clip.mp4"), proposals=UniformWindows(), max_proposals=50, **arguments)
    (batch,) = data.predict_dataloader()[0]
    for target in batch.targets:
        assert len(target["proposals"]) == 50 and target["proposals"].max() <= 32.01
    save_proposals(tmp_path / "boxes.json", {"a.jpg": (np.zeros((1, 4), np.float32), None)})
    data = Images(str(tmp_path / "clip.mp4"), proposals=ProposalFile(tmp_path / "boxes.json"), **arguments)
    with pytest.raises(UserError, match="a file of proposals has none for the frames of a video"):
        next(iter(data.predict_dataloader()[0]))


def test_mistakes_are_reported_in_one_line(shapes: Path) -> None:
    with pytest.raises(UserError, match="segmentation does not use region proposals"):
        module(shapes, Plain(), task="segmentation", proposals=UniformWindows())
    with pytest.raises(UserError, match="max_proposals 0: must be at least 1"):
        module(shapes, Plain(), max_proposals=0)


def test_a_configuration_names_the_class(shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "fit", "--model", "SSD", "--data", "VOCDataModule", f"--data.root={shapes}", "--data.proposals",
        "SelectiveSearch", "--data.proposals.strategy", "quality", "--print_config",
    ]  # fmt: skip
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "class_path: segdet.proposals" in text and "strategy: quality" in text
