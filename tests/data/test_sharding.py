"""Each sample is used once per epoch by all processes together, for any sampler setting of the Trainer."""

import json
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

from segdet.data import ShapesDataModule
from segdet.data.sample import Batch
from segdet.segmentation.fcn import FCN


class Seen(pl.Callback):
    """Write the images that this process has used to a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.train: list[list[int]] = []
        self.val: list[list[int]] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.train.append([])
        self.val.append([])

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        self.train[-1] += [source.image_id for source in batch.sources]

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Batch, *_: Any) -> None:
        self.val[-1] += [source.image_id for source in batch.sources if not source.duplicate]

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        path = self.folder / f"{trainer.global_rank}.json"
        path.write_text(json.dumps({"train": self.train, "val": self.val}))


@pytest.mark.parametrize(("distributed", "overfit"), [(True, 0), (True, 2), (False, 2)])
def test_two_processes_share_the_samples(distributed: bool, overfit: int, tmp_path: Path) -> None:
    data = ShapesDataModule(
        tmp_path / "shapes", num_train=9, num_val=5, num_test=2, image_size=(64, 64), task="segmentation",
        batch_size=2, num_workers=0,
    )  # fmt: skip
    data.prepare_data()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's warnings, which the command suppresses
        pl.Trainer(
            accelerator="cpu", devices=2, strategy="ddp_fork", max_epochs=2, logger=False, num_sanity_val_steps=0,
            use_distributed_sampler=distributed, overfit_batches=overfit, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[Seen(tmp_path)],
        ).fit(FCN(data.class_names, backbone="test_resnet", width=8), data)  # fmt: skip
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for epoch in range(2):
        trained, validated = (sorted(ranks[0][key][epoch] + ranks[1][key][epoch]) for key in ("train", "val"))
        assert validated == [1, 2, 3, 4, 5]
        assert len(trained) == len(set(trained)) == 8  # the ninth does not fill a batch on both processes
    assert (ranks[0]["train"][0] == ranks[0]["train"][1]) == bool(overfit)
