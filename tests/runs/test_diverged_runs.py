"""A training that diverges keeps its last good checkpoints."""

import json
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_runs import MODELS, TINY

from segdet.cli.main import main
from segdet.data import ShapesDataModule
from segdet.segmentation.fcn import FCN
from segdet.training.divergence import DivergedError


def diverge_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the loss of FCN NaN in ``step``, counted from 1."""
    losses = FCN.losses

    def nan(self: FCN, *arguments: Any, **options: Any) -> dict[str, torch.Tensor]:
        parts = losses(self, *arguments, **options)
        if self._trainer is not None and self.global_step + 1 == step:
            parts["segmentation"] = parts["segmentation"] * math.nan
        return parts

    monkeypatch.setattr(FCN, "losses", nan)


def checkpoints(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.name: torch.load(path, weights_only=True) for path in folder.glob("*.ckpt")}


@pytest.mark.parametrize("step", [3, 6])  # in the first step and in the last one of a later epoch
@pytest.mark.parametrize("options", [[], ["--checkpoint_every_n_steps=1"], ["--ema=0.9"]])
def test_no_checkpoint_has_nan_weights(
    step: int, options: list[str], shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    diverge_at(step, monkeypatch)
    arguments = [*MODELS["segmentation"], *TINY, f"--data.root={shapes}", f"--run_dir={tmp_path}", *options]
    assert main(["fit", *arguments, "--trainer.max_epochs=3"]) == 2
    kept = step - 1 if "--checkpoint_every_n_steps=1" in options else (step - 1) // 2 * 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "loss_segmentation became NaN or infinite at step " + str(step) in error
    assert f"last.ckpt of step {kept}, best.ckpt of step" in error or kept == 2
    assert f"to resume, give --ckpt_path {tmp_path}/checkpoints/" in error
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "diverged"
    saved = checkpoints(tmp_path / "checkpoints")
    assert saved["last.ckpt"]["global_step"] == kept
    for content in saved.values():
        assert all(value.isfinite().all() for value in content["state_dict"].values())


@pytest.mark.filterwarnings("ignore")  # Lightning's warnings, which the command suppresses
def test_a_script_saves_no_nan_weights(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    diverge_at(3, monkeypatch)
    data = ShapesDataModule(
        shapes, num_train=8, num_val=4, num_test=4, image_size=(64, 64), task="segmentation", batch_size=4,
        num_workers=0,
    )  # fmt: skip
    data.prepare_data()
    model = FCN(data.class_names, backbone="test_resnet", width=8)
    saves = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=3, logger=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0, callbacks=[saves],
    )  # fmt: skip
    with pytest.raises(DivergedError, match="loss_segmentation became NaN or infinite at step 3"):
        trainer.fit(model, data)
    assert sorted(checkpoints(tmp_path)) == ["step=1.ckpt", "step=2.ckpt"]
