"""Tells, at the end, what of the data was left out: unusable boxes, and bad samples that were skipped."""

import sys
from pathlib import Path

import lightning.pytorch as pl
import torch.distributed as dist

LINES = 20
"""How many are shown; all of them stand in the run folder's ``left_out.txt``."""


class LeftOut(pl.Callback):
    """Counts and lists what the readers dropped, over all processes.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lists what training and validation met."""
        self._tell(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lists what `segdet validate` met; validation within training is told of with that."""
        if trainer.state.fn is not None and trainer.state.fn.value == "validate":
            self._tell(trainer)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lists what the test met."""
        self._tell(trainer)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lists the images that could not be predicted on."""
        self._tell(trainer)

    def _tell(self, trainer: pl.Trainer) -> None:
        notes = list(getattr(trainer.datamodule, "notes", ()))  # type: ignore[attr-defined]
        if trainer.world_size > 1 and dist.is_initialized():
            gathered: list[list[str]] = [[] for _ in range(trainer.world_size)]
            dist.all_gather_object(gathered, notes)
            notes = [note for part in gathered for note in part]
        notes = sorted(set(notes))
        if not notes or not trainer.is_global_zero:
            return
        path = self.folder / "left_out.txt"
        # A test must not hide what training left out before it, in the same folder.
        earlier = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        path.write_text("\n".join(sorted({*earlier, *notes})) + "\n", encoding="utf-8")
        shown = "".join(f"  {note}\n" for note in notes[:LINES])
        more = f"  ... and {len(notes) - LINES} more in {path}\n" if len(notes) > LINES else ""
        sys.stderr.write(f"segdet: left out of the data, {len(notes)} in all:\n{shown}{more}")
