"""The layout of a run's folder, and functions that read its files.

::

    runs/<name>/
        config.yaml             complete configuration; `segdet fit --config` starts the same run again
        provenance.json         code, packages, hardware, seed, data and command
        inputs.json.gz          digests of the files of code and data
        metrics.csv             every logged value
        checkpoints/best.ckpt   the best checkpoint by the model's monitored metric
        checkpoints/last.ckpt   the checkpoint to resume from
        predictions/            sheets of validation images, and the output of `segdet predict`
        result.json             the result record, the input of reports
        features/               features of the training images that RCNN keeps between its stages
        errors.json             causes of the lost AP in a detector's test, with confusion.png and worst.png
        per_image/              evidence of a test for each image, and small copies of some images
        profile/                reports of --trainer.profiler
        profile.json            FLOPs, memory, latency and stages, from `segdet profile`
        reproduction.json       comparison with the original run, from `segdet reproduce`
        left_out.txt            unusable samples and boxes, if there are any
        wandb/                  files of Weights & Biases
        lightning_logs/         files of loggers in --trainer.logger, such as CSVLogger and TensorBoardLogger
        .owner/                 the process that writes to the folder, see `segdet.runs.ownership`
"""

import json
import shutil
from pathlib import Path
from typing import Any

from segdet.runs.record import RECORD_NAME, Record
from segdet.util.errors import UserError

TIME = "time"
"""The column of ``metrics.csv`` with the time of each row, in seconds since 1970."""

INPUTS_NAME = "inputs.json.gz"
REPRODUCTION_NAME = "reproduction.json"

CONTENTS = (
    "config.yaml",
    "provenance.json",
    INPUTS_NAME,
    "metrics.csv",
    "checkpoints",
    "predictions",
    "features",
    RECORD_NAME,
    "errors.json",
    "confusion.png",
    "worst.png",
    "per_image",
    "wandb",
    "lightning_logs",
    "left_out.txt",
    "profile",
    "profile.json",
    "error.txt",
    REPRODUCTION_NAME,
)
"""The files and folders that a run writes into its folder."""


def holds_run(folder: Path) -> bool:
    """Return whether ``folder`` holds a run with results, or a run that is still in progress."""
    trained = (folder / "metrics.csv").exists() or any((folder / "checkpoints").glob("*.ckpt"))
    return trained or ((folder / "config.yaml").exists() and not (folder / RECORD_NAME).exists())


def clear_run(folder: Path) -> None:
    """Remove the files of a run from ``folder``; keep all others."""
    for name in CONTENTS:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def folder_of_checkpoint(checkpoint: Path) -> Path | None:
    """Return the resolved run folder that contains ``checkpoint``, or None if it lies outside of one."""
    checkpoints = checkpoint.resolve().parent
    is_run = checkpoints.name == "checkpoints" and (checkpoints.parent / "config.yaml").exists()
    return checkpoints.parent if is_run else None


def shown_path(path: Path) -> Path:
    """Return ``path`` for a message: relative to the current folder if it lies below it, else unchanged."""
    absolute, here = path.resolve(), Path.cwd()
    return absolute.relative_to(here) if absolute.is_relative_to(here) else path


def first_provenance(folder: Path) -> dict[str, Any]:
    """Return the provenance of the run's start, or an empty dict if the file is missing or corrupt."""
    try:
        first = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return first if _is_provenance(first) else {}


def _is_provenance(content: Any) -> bool:
    """Return whether ``content`` is a dict, and its values that readers take apart have the right types."""
    if not isinstance(content, dict):
        return False
    types = {"seed": int, "hardware": dict, "git": dict, "packages": dict}
    if any(not isinstance(content.get(name), kind | None) for name, kind in types.items()):
        return False
    resumed = content.get("resumed", [])
    return isinstance(resumed, list) and all(isinstance(part, dict) for part in resumed)


def read_record(folder: Path) -> Record | None:
    """Return the record of the run in ``folder``, or None if it is missing or corrupt."""
    try:
        return Record.read(folder / RECORD_NAME)
    except UserError:
        return None


def recorded_provenance(folder: Path) -> dict[str, Any]:
    """Return the part of the run's provenance that its record repeats, or an empty dict without a valid record."""
    record = read_record(folder)
    if record is None:
        return {}
    return {name: getattr(record, name) for name in ("command", "started", "seed", "fingerprint", "hardware")}


def recorded_fingerprint(folder: Path) -> str:
    """Return the fingerprint of the run's data, empty if unknown; raise `UserError` if the record is corrupt."""
    path = folder / RECORD_NAME
    if path.exists():
        return Record.read(path).fingerprint
    return str(first_provenance(folder).get("fingerprint", ""))


def recorded_commands(folder: Path) -> list[str]:
    """Return the command lines that trained the run, in order; empty if they are unknown."""
    first = first_provenance(folder)
    parts = [first, *first.get("resumed", [])]
    return list(dict.fromkeys(str(part["command"]) for part in parts if part.get("command")))
