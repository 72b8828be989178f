"""Tests of R-CNN: training in three stages, and equal results after an interruption in any of them."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from killed_process import run_until_killed
from readers import open_readers
from region_scenes import map_50, scenes, train

from segdet.cli.main import main
from segdet.data.sample import Target
from segdet.detection import rcnn, rcnn_training
from segdet.detection.rcnn import RCNN
from segdet.detection.rcnn_features import FeatureFolder, ImageFeatures, file_bytes
from segdet.detection.rcnn_training import LaterStages
from segdet.nn.boxes import paired_iou
from segdet.nn.warp import warp
from segdet.proposals import UniformWindows
from segdet.proposals.cache import CachedProposals
from segdet.runs.cost import measure_cost
from segdet.training import linear_svm
from segdet.training.progress import StepLogger
from segdet.util.disk_cache import total_size
from segdet.util.errors import BadSample, UserError


def small(**kwargs: Any) -> RCNN:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "backbone": "small_vgg", "backbone_options": {"channels": [16, 32], "convolutions": 1}, "stride": 4, "pool": 4,
        "width": 64, "dropout": 0.0, "warp_size": 24, "context": 2,
    }  # fmt: skip
    return RCNN(["red", "green"], **options | kwargs)


def trained_model(folder: Path, **kwargs: Any) -> RCNN:
    """Train a model with all three stages on the eight scenes."""
    pictures, targets = scenes()
    model = small(**kwargs)
    train(model, pictures, targets, steps=25, rate=3e-3)
    files = FeatureFolder(folder, "key", range(len(targets)))
    files.prepare()
    with torch.inference_mode():
        for position, target in enumerate(targets):
            image = model.normalize(pictures[position : position + 1])
            files.write(position, model.later_stages().image_features(image, target))
        model.later_stages().fit(files)
    return model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RCNN:
    return trained_model(tmp_path_factory.mktemp("features"))


def test_the_settings_of_the_paper() -> None:
    default = RCNN(["a"], backbone="test_resnet", width=8)
    assert (default.warp_size, default.context, default.nms_threshold) == (227, 16, 0.3)
    options = default.stage_options
    assert (default.regions_per_batch, default.positive_share) == (128, 0.25)
    assert (options.svm_negatives_below, options.ridge_penalty, options.ridge_above) == (0.3, 1000, 0.6)
    mining = options.svm
    assert (mining.cost, mining.bias, mining.positive_weight) == (1e-3, 10, 2)
    assert (mining.hard, mining.easy, mining.retrain) == (-1.0001, -1.2, 2000)


def test_overfits_a_few_images_with_svms_and_regression(model: RCNN) -> None:
    assert map_50(model, *scenes()) >= 0.95


def test_scores_are_logistic_functions_of_margins(model: RCNN) -> None:
    """A score of 0.27 is a margin of -1, one of 0.05 a margin of -2.94."""
    pictures, targets = scenes(images=1)
    margins: list[torch.Tensor] = []
    handle = model.svms.register_forward_hook(lambda _, __, output: margins.append(output))
    with torch.inference_mode():
        scores, _ = model.classify(model.normalize(pictures), [targets[0]["proposals"]])
    handle.remove()
    found = torch.cat(margins)
    assert torch.equal(scores > torch.tensor(-2.944).sigmoid(), found > -2.944)
    assert float(torch.tensor(-2.944).sigmoid()) == pytest.approx(model.score_threshold, abs=1e-4)
    assert float(torch.tensor(-1.0).sigmoid()) == pytest.approx(0.27, abs=2e-3)
    assert 0 < (found > -1).float().mean() < (found > -2.944).float().mean()


@pytest.mark.parametrize("broken", ["svms", "warp", "regression"])
def test_a_broken_part_lowers_the_score(model: RCNN, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = scenes(jitter=0.12)
    if broken == "svms":
        monkeypatch.setattr(model.svms, "forward", lambda features: torch.zeros(len(features), 2))
        assert map_50(model, *data) < 0.5
    elif broken == "warp":
        whole = torch.tensor([[0.0, 0, 96, 64]])

        def everything(images: torch.Tensor, rois: torch.Tensor, *rest: int) -> torch.Tensor:
            return warp(images, torch.cat([rois[:, :1], whole.expand(len(rois), 4)], 1), *rest)

        monkeypatch.setattr(rcnn, "warp", everything)
        assert map_50(model, *data) < 0.5
    else:
        # Shifted boxes miss their objects; another test covers the gain of regression.
        monkeypatch.setattr(model.coder, "decode", lambda offsets, boxes: (boxes + 30).expand_as(offsets))
        assert map_50(model, *data) < 0.5


def test_regression_increases_the_iou(model: RCNN) -> None:
    pictures, targets = scenes()
    moved, still = [], []
    with torch.inference_mode():
        _, boxes = model.classify(model.normalize(pictures), [target["proposals"] for target in targets])
    for target, own in zip(
        targets, boxes.split([len(target["proposals"]) for target in targets]), strict=True
    ):
        for number in range(2):
            mine = target["proposals"][number:12:2]
            true = target["boxes"][number].expand_as(mine)
            still.append(paired_iou(mine, true))
            moved.append(paired_iou(own[number:12:2, number], true))
    assert torch.cat(moved).mean() > torch.cat(still).mean() + 0.03


def test_softmax_without_regression_needs_no_further_stage() -> None:
    pictures, targets = scenes()
    plain = small(classifier="softmax", box_regression=False)
    train(plain, pictures, targets, steps=40, rate=3e-3)
    assert map_50(plain, pictures, targets) >= 0.95


@pytest.mark.parametrize(
    ("options", "message"),
    [({}, "no linear SVMs yet"), ({"classifier": "softmax"}, "no box regression yet")],
)
def test_a_network_without_its_later_stages_is_refused(options: dict[str, str], message: str) -> None:
    pictures, targets = scenes(images=1)
    with pytest.raises(UserError, match=message):
        small(**options).eval().predict_tensors(pictures, targets=[Target(proposals=targets[0]["proposals"])])


def test_fine_tuning_samples_32_positive_and_96_negative_regions_per_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampled = []
    real = rcnn.sample_rois
    monkeypatch.setattr(rcnn, "sample_rois", lambda *a, **k: sampled.append(real(*a, **k)) or sampled[-1])
    pictures, targets = scenes()
    network = small()
    losses = network.losses(network.normalize(pictures), targets)
    assert list(losses) == ["class"]
    labels = sampled[0].labels
    assert ((labels > 0).sum(), (labels == 0).sum()) == (32, 96)


def test_crowds_and_difficult_objects_are_neither_positive_nor_negative() -> None:
    pictures, (target,) = scenes(images=1)
    target["difficult"] = torch.tensor([False, True])
    network = small().eval()
    with torch.inference_mode():
        found = network.later_stages().image_features(network.normalize(pictures), target)
    assert found.labels.tolist() == [1]
    assert (found.overlaps[1:][1:12:2, 1] > 0.3).all()  # so that they are not negatives of green
    assert set(found.pair_labels.tolist()) == {1}
    assert len(found.features) == 1 + len(target["proposals"])


@pytest.mark.parametrize(
    ("options", "svms", "regression"),
    [({}, True, True), ({"classifier": "softmax"}, False, True), ({"box_regression": False}, True, False)],
)
def test_only_regions_of_later_stages_are_extracted(
    options: dict[str, Any], svms: bool, regression: bool, tmp_path: Path
) -> None:
    pictures, (target,) = scenes(images=1)
    network, whole = small(**options).eval(), small().eval()
    seen: list[int] = []
    network.backbone.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    with torch.inference_mode():
        found = network.later_stages().image_features(network.normalize(pictures), target)
        expected = whole.later_stages().image_features(whole.normalize(pictures), target)
    regions, pairs = 2 + len(target["proposals"]), len(expected.pairs)
    assert 2 < pairs <= regions / 2
    assert sum(seen) == (regions if svms else pairs)
    assert found.features.shape == (regions if svms else 0, 64)
    assert found.overlaps.shape == (regions if svms else 0, 2)
    assert found.pair_features.shape == (pairs if regression else 0, 512)
    for name in ("features", "overlaps") * svms + ("pairs", "pair_labels", "pair_offsets") * regression:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    if regression:
        np.testing.assert_allclose(found.pair_features, expected.pair_features, atol=1e-2)
    files = FeatureFolder(tmp_path, "key", [0])
    files.prepare()
    files.write(0, found)
    described = np.array([len(found.features)])
    assert 0 <= file_bytes(described, np.array([len(found.pairs)]), 64, 2, 512)[0] - files.size() < 2000


def test_softmax_trains_the_same_regression_on_fewer_features(tmp_path: Path, model: RCNN) -> None:
    softmax = trained_model(tmp_path, classifier="softmax")
    torch.testing.assert_close(softmax.regressors.weight, model.regressors.weight, rtol=0, atol=1e-4)
    assert softmax.regressors.weight.any() and map_50(softmax, *scenes()) >= 0.9


def test_an_image_costs_one_pass_per_proposal(model: RCNN) -> None:
    pictures, targets = scenes(images=1)
    model.proposer, model.max_proposals = UniformWindows(), 40
    assert measure_cost(model, pictures, repeats=1).passes_per_image == 40
    known = {"targets": [Target(proposals=targets[0]["proposals"][:7])]}
    assert measure_cost(model, pictures, repeats=1, inputs=known).passes_per_image == 7


def test_later_stages_without_a_data_module_are_reported_in_one_line() -> None:
    stages = LaterStages(small(), small().stage_options, SimpleNamespace(datamodule=None))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"RCNN: .* pass one to Trainer\.fit"):
        stages.run([], [])


def test_too_much_context_is_reported_in_one_line() -> None:
    with pytest.raises(UserError, match=r"model\.context 12: leaves nothing of a crop of 24 pixels"):
        small(context=12)


def test_features_that_exceed_the_disk_are_refused_beforehand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = FeatureFolder(tmp_path, "key", range(3))
    files.prepare()
    files.check_space(10_000_000, 3)
    assert "features of 3 images take up to about 10.0 MB" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"are free; free disk space, or give a smaller --model\.svm_images"):
        files.check_space(1 << 60, 3)


def test_the_estimate_does_not_depend_on_a_single_image() -> None:
    """The first image has neither objects nor proposals, the second is unreadable, the others exceed the limit."""

    class Images:
        proposals = property(lambda self: self)
        reader = property(lambda self: self)
        indices, max_proposals = np.arange(10), 30

        def __len__(self) -> int:
            return 10

        def boxes(self, index: int) -> np.ndarray:
            if index == 1:
                raise BadSample("b.jpg", "is empty")
            return np.zeros((0 if index == 0 else 40, 4))

        def objects(self, index: int) -> list[int]:
            return [] if index == 0 else [1, 2]

    def expected(**options: Any) -> float:
        return small(**options).later_stages().estimate_bytes(Images(), 90) / 90  # type: ignore[arg-type]

    mean = 32 * 8 / 9  # the mean number of regions of readable images
    of_region, of_pair = 2 * 64 + 2 * 2 + 8, 2 * 512 + 32
    names = file_bytes(np.zeros(1), np.zeros(1), 64, 2, 512)[0]
    assert expected() == pytest.approx(names + mean * (of_region + of_pair), abs=1)
    assert expected(box_regression=False) == pytest.approx(names + mean * of_region, abs=1)
    assert expected(classifier="softmax", ridge_regions=9) == pytest.approx(names + 8 * of_pair, abs=1)


def test_the_shares_of_processes_do_not_depend_on_existing_files(tmp_path: Path) -> None:
    files = FeatureFolder(tmp_path, "key", [0, 2, 4, 6, 8])
    files.prepare()
    assert files.missing(0, 2) == [0, 4, 8] and files.missing(1, 2) == [2, 6]
    nothing = np.zeros(0)
    files.write(0, ImageFeatures(nothing, nothing, nothing, nothing, nothing, nothing, nothing))
    assert files.missing(0, 2) == [4, 8] and files.missing(1, 2) == [2, 6]
    assert files.missing() == [2, 4, 6, 8] and files.present() == [0]


def test_only_the_features_of_objects_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    regions, width = 1000, 64
    one = np.ones((regions, width), np.float16)
    empty = np.zeros(0, np.int64)
    files = FeatureFolder(tmp_path, "key", range(40))
    files.prepare()
    for position in files.positions:
        files.write(
            position, ImageFeatures(one, np.zeros((regions, 2)), np.array([1]), empty, one, empty, empty)
        )
    held = []

    def mine(*_: Any) -> tuple[np.ndarray, np.ndarray]:
        held.append(tracemalloc.get_traced_memory()[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(rcnn_training, "mine", mine)
    network = small()
    tracemalloc.start()
    with pytest.raises(KeyboardInterrupt):
        network.later_stages().fit_svms(files)
    tracemalloc.stop()
    # The bound allows the features of one image and Python's overhead.
    assert held[0] < 10 * regions * width * 4


# All stages in one command, with interruptions.

ARGUMENTS = [
    "fit", "--model=RCNN", "--model.backbone=small_vgg", "--model.backbone_options={channels: [8, 8]}",
    "--model.stride=4", "--model.pool=2", "--model.width=16", "--model.warp_size=16", "--model.context=1",
    "--model.regions_per_batch=16", "--model.svm.retrain=40", "--data=ShapesDataModule", "--data.num_train=8",
    "--data.num_val=3", "--data.num_test=3", "--data.image_size=[64, 64]", "--data.batch_size=2",
    "--data.num_workers=0", "--data.recipe=ScaleJitter", "--data.proposals=UniformWindows", "--data.max_proposals=30",
    "--panels.images=0", "--trainer.accelerator=cpu", "--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=2",
    "--trainer.enable_progress_bar=false",
]  # fmt: skip


def _die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(arguments: list[str], where: str) -> None:
    """Run the command in a separate process that is killed within a stage."""

    def run() -> None:
        if where == "fine-tuning":
            done = StepLogger.on_train_batch_end
            StepLogger.on_train_batch_end = (  # type: ignore[method-assign]
                lambda self, trainer, *rest: (
                    _die() if trainer.global_step == 6 else done(self, trainer, *rest)
                )
            )
        elif where == "features":
            write = FeatureFolder.write
            FeatureFolder.write = (  # type: ignore[method-assign]
                lambda self, position, image: _die() if position == 5 else write(self, position, image)
            )
        else:
            trained = linear_svm._SVM.train
            linear_svm._SVM.train = (  # type: ignore[method-assign]
                lambda self: _die() if self.label == 2 and len(self.rows) > self.positives else trained(self)
            )
        main(arguments)

    run_until_killed(run)


def checkpoint(run: Path, name: str = "last") -> dict[str, Any]:
    state: dict[str, Any] = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return state


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Return a run without interruption, and its arguments; its output on stderr is in ``stderr.txt``."""
    root = tmp_path_factory.mktemp("runs")
    arguments = [*ARGUMENTS, f"--data.root={root / 'shapes'}"]
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        assert main([*arguments, f"--run_dir={root / 'whole'}"]) == 0
    (root / "stderr.txt").write_text(stderr.getvalue())
    return root / "whole", arguments


def test_one_fit_has_all_stages(whole: tuple[Path, list[str]]) -> None:
    run, _ = whole
    output = (run.parent / "stderr.txt").read_text()
    (line,) = (line for line in output.splitlines() if line.startswith("segdet: the features of "))
    match = re.fullmatch(
        r"segdet: the features of 8 images take up to about (\S+) MB in (\S+)", line.rstrip()
    )
    assert match and Path(match[2]).parent == run / "features"
    size = FeatureFolder(run / "features", Path(match[2]).name, []).size() / 1e6
    assert size - 0.05 <= float(match[1]) <= 2 * size + 0.05 and float(match[1]) > 0
    for name in ("best", "last"):
        state = checkpoint(run, name)["state_dict"]
        assert state["svms.fitted"] and state["regressors.fitted"]
        assert state["svms.weight"].any(1).all()
    metrics = (run / "metrics.csv").read_text()
    header = metrics.splitlines()[0].split(",")
    assert {"train/ridge_pairs", "train/ridge_iou_after", "val/map_50"} <= set(header)
    assert any(name.startswith("train/svm_hard_negatives/") for name in header)
    assert len(list((run / "features").glob("*/*/*.npz"))) == 8
    assert main(["test", f"--ckpt_path={run}"]) == 0
    record = json.loads((run / "result.json").read_text())
    assert record["cost"]["passes_per_image"] == 30
    assert list(record["cost"]["stages_ms"]) == ["proposals", "warps", "network", "head", "nms"]
    assert record["metrics"]["test/map_50"] >= 0
    # The run keeps checkpoints, features, and the proposals of the images on disk.
    files = [*(run / "checkpoints").iterdir(), *(run / "features").rglob("*.npz")]
    readers = open_readers(run.parent / "shapes")
    for split, images in (("train", 8), ("val", 3)):
        proposals = UniformWindows().open(readers[split], range(images), workers=1)
        assert isinstance(proposals, CachedProposals) and proposals.computed == 0
        assert len(proposals.files()) == images and total_size(proposals.files()) > 1e5
        files += proposals.files()
    small = record["cost"]["disk_mb"] - total_size(files) / 1e6
    assert 0.001 < small < 0.05  # the configuration and other small files


@pytest.mark.parametrize("where", ["fine-tuning", "features", "svms"])
def test_a_killed_run_ends_with_the_same_results(
    where: str, whole: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, arguments = whole
    run = tmp_path / "run"
    killed([*arguments, f"--run_dir={run}"], where)
    files = {file: file.stat().st_mtime_ns for file in (run / "features").glob("*/*/*.npz")}
    assert len(files) == {"fine-tuning": 0, "features": 5, "svms": 8}[where]
    steps = []
    step = RCNN.training_step
    monkeypatch.setattr(RCNN, "training_step", lambda self, *rest: steps.append(1) or step(self, *rest))
    assert main(["fit", f"--run_dir={run}", "--ckpt_path=last"]) == 0
    assert len(steps) == (4 if where == "fine-tuning" else 0)  # fine-tuning is not repeated
    assert all(file.stat().st_mtime_ns == time for file, time in files.items())
    ours, theirs = checkpoint(run), checkpoint(expected)
    assert ours["global_step"] == theirs["global_step"] == 8
    for name, value in theirs["state_dict"].items():
        assert torch.equal(value, ours["state_dict"][name]), name
    for name in ("best", "last"):
        assert checkpoint(run, name)["state_dict"]["svms.fitted"]
    scores = [json.loads((folder / "result.json").read_text())["metrics"] for folder in (run, expected)]
    assert {k: v for k, v in scores[0].items() if k.startswith("val/")} == {
        k: v for k, v in scores[1].items() if k.startswith("val/")
    }


def test_without_a_validation_the_later_stages_run_at_the_end(
    whole: tuple[Path, list[str]], tmp_path: Path
) -> None:
    expected, arguments = whole
    run = tmp_path / "run"
    assert main([*arguments, f"--run_dir={run}", "--trainer.limit_val_batches=0"]) == 0
    ours, theirs = checkpoint(run)["state_dict"], checkpoint(expected)["state_dict"]
    assert np.array_equal(ours["svms.weight"], theirs["svms.weight"])
    assert torch.equal(ours["regressors.weight"], theirs["regressors.weight"])


def test_later_stages_at_the_end_use_the_averaged_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    fit = LaterStages.fit

    def record(stages: LaterStages, files: FeatureFolder) -> None:
        seen.append(stages.model.layers.fc6.weight.clone())  # type: ignore[attr-defined]
        fit(stages, files)

    monkeypatch.setattr(LaterStages, "fit", record)
    options = ["--ema=0.5", "--trainer.limit_val_batches=0", "--trainer.max_epochs=1"]
    run = tmp_path / "run"
    assert main([*ARGUMENTS, f"--data.root={tmp_path / 'shapes'}", f"--run_dir={run}", *options]) == 0
    last = checkpoint(run)
    assert last["state_dict"]["svms.fitted"] and last["state_dict"]["regressors.fitted"]
    (weight,) = seen
    assert torch.equal(weight, last["state_dict"]["layers.fc6.weight"])
    assert not torch.equal(weight, last["current_model_state"]["layers.fc6.weight"])


@pytest.mark.slow
def test_two_processes_share_the_features_and_have_the_same_svms(
    whole: tuple[Path, list[str]], tmp_path: Path
) -> None:
    _, arguments = whole
    run = tmp_path / "run"
    two = ["--trainer.devices=2", "--trainer.strategy=ddp_fork", f"--run_dir={run}"]
    # In a separate process, because a fork does not copy the threads of this one.
    command = [sys.executable, "-m", "segdet", *arguments, *two]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("segdet: linear SVMs: ") == 1
    state = checkpoint(run)["state_dict"]
    assert state["svms.fitted"] and state["regressors.fitted"]
    assert len(list((run / "features").glob("*/*/*.npz"))) == 8
    fitted = json.loads((run / "result.json").read_text())["metrics"]
    alone = tmp_path / "alone"
    assert main(["validate", f"--ckpt_path={run}", f"--run_dir={alone}", "--trainer.devices=1",
                 "--trainer.strategy=auto"]) == 0  # fmt: skip
    scores = json.loads((alone / "result.json").read_text())["metrics"]
    assert {k: v for k, v in scores.items() if k.startswith("val/")} == pytest.approx(
        {k: v for k, v in fitted.items() if k.startswith("val/")}, abs=1e-6
    )
