"""A list of unusable boxes and skipped samples, printed at the end of a command."""

import sys
from collections import Counter
from pathlib import Path

import lightning.pytorch as pl

from segdet.runs.folder_layout import shown_path
from segdet.util.distributed import gather_objects
from segdet.util.files import write_text

LINES = 20
"""The maximum number of entries that are printed, without groups. ``left_out.txt`` in the folder lists all entries."""


class LeftOut(pl.Callback):
    """Count and list the boxes and samples that the dataset readers of all processes left out.

    Args:
        folder: The run's folder, or its folder of predictions.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """List the data left out by the command."""
        self._report(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """List the data left out by `segdet validate`; `on_fit_end` covers validation during training."""
        if trainer.state.fn == "validate":
            self._report(trainer)

    on_test_end = on_predict_end = on_fit_end

    def _report(self, trainer: pl.Trainer) -> None:
        own: dict[str, str | None] = dict(getattr(trainer.datamodule, "notes", {}))  # type: ignore[attr-defined]
        group_of = {note: group for part in gather_objects(own) for note, group in part.items()}
        notes = sorted(group_of)
        if not notes or not trainer.is_global_zero:
            return
        path = self.folder / "left_out.txt"
        # Keep the entries of the training when a test adds its own.
        earlier = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        write_text(path, "\n".join(sorted({*earlier, *notes})) + "\n")
        sizes = Counter(group for group in group_of.values() if group is not None)
        grouped = {group: count for group, count in sizes.items() if count > 1}
        single = [note for note in notes if group_of[note] not in grouped]
        lines = [f"{count:,} {group}, listed in {shown_path(path)}" for group, count in grouped.items()]
        shown = "".join(f"  {line}\n" for line in [*lines, *single[:LINES]])
        more = f"  ... and {len(single) - LINES} more in {shown_path(path)}\n" if len(single) > LINES else ""
        sys.stderr.write(f"segdet: left out of the data, {len(notes)} in all:\n{shown}{more}")
