"""Every family on a GPU: training, validation and prediction, scores, and steps that do not wait for the device.

The same functions also run on the CPU, where a GPU is missing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from host_syncs import StepSyncs

import segdet
from experiments.families import FAMILIES
from experiments.processes import TRAINING, data_arguments
from segdet.cli.main import main

GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
REPRESENTATIVE = ["FCN", "BoxHead", "SSD"]

WAITING = {
    "DETR": "the Hungarian algorithm matches queries with objects on the host",
    "FasterRCNN": "torchvision reads the numbers of proposals and sampled regions on the host",
    "MaskRCNN": "torchvision reads the numbers of proposals and sampled regions on the host",
    "TorchvisionFasterRCNN": "torchvision reads the numbers of proposals and sampled regions on the host",
    "TorchvisionMaskRCNN": "torchvision reads the numbers of proposals and sampled regions on the host",
}
"""Families whose training steps wait for the device, with the reason."""


def on_both(cpu: list[str], slow: bool = False) -> list[Any]:
    """Return parameters: all families on a GPU, and those named ``cpu`` on the CPU."""
    marks = [pytest.mark.slow] if slow else []
    here = [pytest.param(name, "cpu", marks=marks, id=f"{name}-cpu") for name in cpu]
    return [*here, *(pytest.param(name, "gpu", marks=GPU, id=f"{name}-gpu") for name in FAMILIES)]


class SyncDebugMode(pl.Callback):
    """Raise an error if a training step waits for the GPU. The first step is exempt, because it fills caches."""

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step > 0:
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")


SYNCS: list[StepSyncs] = []


class Recorded(StepSyncs):
    """`StepSyncs` that adds itself to `SYNCS`, because the command creates its callbacks from their class paths."""

    def __init__(self) -> None:
        super().__init__()
        SYNCS.append(self)


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    SYNCS.clear()
    yield
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("default")


def fit(name: str, device: str, folder: Path, *options: str) -> Path:
    """Train the small network of a family and return its run folder."""
    run = folder / "run"
    family = FAMILIES[name]
    arguments = [*family.arguments(name), *data_arguments(family, folder), f"--trainer.accelerator={device}"]
    common = [
        "--panels.images=0",
        "--wandb=false",
        "--trainer.enable_progress_bar=false",
        "--trainer.devices=1",
    ]
    assert main(["fit", *arguments, *common, f"--run_dir={run}", *options]) == 0
    return run


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor"
)  # torch hides it while it traces a network
@pytest.mark.parametrize(("name", "device"), on_both(REPRESENTATIVE, slow=True))
def test_trains_validates_and_predicts_in_bfloat16_compiled_and_channels_last(
    name: str, device: str, tmp_path: Path
) -> None:
    # Compilation for the CPU takes over ten seconds; its backend "eager" only traces the network.
    compiled = "true" if device == "gpu" else "{backend: eager}"
    run = fit(
        name, device, tmp_path, "--trainer.max_steps=2", "--trainer.max_epochs=1", "--trainer.limit_val_batches=2",
        "--trainer.precision=bf16-mixed", "--model.channels_last=true", f"--model.compile={compiled}",
    )  # fmt: skip
    record = json.loads((run / "result.json").read_text())
    assert (record["status"], record["steps"]) == ("finished", 2)
    assert any(key.startswith("val/") for key in record["metrics"])
    losses = [value for key, value in record["metrics"].items() if key.startswith("train/loss")]
    assert all(value is not None and math.isfinite(value) for value in losses)
    torch._dynamo.reset()
    model = segdet.load(run / "checkpoints" / "last.ckpt").to("cuda" if device == "gpu" else "cpu")
    image = next((tmp_path / f"shapes-{FAMILIES[name].data.get('format', 'voc')}").rglob("*.jpg"))
    with torch.autocast("cuda" if device == "gpu" else "cpu", torch.bfloat16):
        prediction = model.predict_image(image)
    if "mask" in prediction:
        assert prediction["mask"].shape == (64, 64)
    else:
        assert prediction["boxes"].isfinite().all()


@pytest.mark.parametrize(("name", "device"), on_both(REPRESENTATIVE[:1]))
def test_scores_equal_those_of_the_cpu_in_float32(name: str, device: str, tmp_path: Path) -> None:
    run = fit(name, "cpu", tmp_path, *TRAINING)
    found = []
    for accelerator in ("cpu", device):
        folder = tmp_path / f"test-{len(found)}"
        arguments = [f"--ckpt_path={run}", f"--run_dir={folder}", f"--trainer.accelerator={accelerator}"]
        assert main(["test", *arguments, "--trainer.devices=1", "--error_analysis.enabled=false"]) == 0
        metrics = json.loads((folder / "result.json").read_text())["metrics"]
        found.append({key: value for key, value in metrics.items() if key.startswith("test/")})
    assert found[0] and found[1] == pytest.approx(found[0], abs=1e-3 if device == "gpu" else 0)


@pytest.mark.parametrize(
    ("name", "device"),
    [
        *on_both(["FCN", "SSD"]),
        *(
            pytest.param(name, "cpu", marks=pytest.mark.slow, id=f"{name}-cpu")
            for name, family in FAMILIES.items()
            if not family.slow and name not in ("FCN", "SSD")
        ),
    ],
)
def test_no_training_step_waits_for_the_device(name: str, device: str, tmp_path: Path) -> None:
    callback = SyncDebugMode if device == "gpu" else Recorded
    options = [
        "--trainer.max_steps=3", "--trainer.max_epochs=1", "--trainer.limit_val_batches=0",
        f"--trainer.callbacks={__name__}.{callback.__name__}",
    ]  # fmt: skip
    if device == "gpu":
        if name in WAITING:
            pytest.skip(WAITING[name])
        fit(name, device, tmp_path, *options)
        return
    fit(name, device, tmp_path, *options)
    (counted,) = SYNCS
    assert counted.steps == 2
    if name in ("FasterRCNN", "MaskRCNN"):
        assert counted.mode.found  # otherwise the entry in WAITING is out of date
    elif name not in WAITING:
        assert not counted.mode.found
