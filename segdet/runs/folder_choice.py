"""The choice of a run's folder: a new one, a resumed run's, or a separate one for a test that differs from the run."""

import hashlib
import os
import pkgutil
import warnings
from collections.abc import Container, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from segdet.data.fingerprint import fingerprint
from segdet.runs.checkpoint_file import Checkpoint, latest_checkpoint
from segdet.runs.classes import SUBSETS
from segdet.runs.folder_layout import (
    clear_run,
    folder_of_checkpoint,
    holds_run,
    is_same_folder,
    recorded_fingerprint,
)
from segdet.runs.requeue import MOST_RUNS, folder_of_job, has_several_tasks, is_restarted, job_id
from segdet.util.distributed import RUN_DIR_VARIABLE, rank, under_torchrun
from segdet.util.errors import UserError

RUNS = Path("runs")
"""The parent of the folders that ``--run_dir`` does not name."""

NEUTRAL_OPTIONS = {
    "model": {"boundary_scores", "compile", "channels_last", "crop_batch"},
    "data": {"root", "batch_size", "eval_batch_size", "num_workers"},
}
"""Options that change no score: how the model computes, which scores are left out, where the files are."""


@dataclass
class Run:
    """A run of a command: its folder, what it starts from, and what happened to it.

    Attributes:
        command: The subcommand: fit, validate, test or predict.
        folder: The run's folder.
        command_line: The whole command line.
        checkpoint: The checkpoint to start from, or None.
        resumed: Whether the folder holds the run that this process resumes.
        chosen_by_rank_0: Whether rank 0 chose the folder before it started this process.
        fingerprint: The fingerprint of the data, or None before it is computed.
        restored: Whether everything in the checkpoint has been restored.
        stopped_by: The name of the exception with which the user or SLURM stopped the run, or None.
    """

    command: str
    folder: Path
    command_line: str = ""
    checkpoint: Checkpoint | None = None
    resumed: bool = False
    chosen_by_rank_0: bool = False
    fingerprint: str | None = None
    restored: bool = False
    stopped_by: str | None = None


def place_run(
    command: str,
    command_line: str,
    checkpoint: Checkpoint | None,
    *,
    name: str,
    run_dir: str | None = None,
    overwrite: bool = False,
) -> Run:
    """Choose, claim and create the folder of a run.

    A run whose command SLURM starts again is resumed from its latest checkpoint.

    Args:
        command: The subcommand: fit, validate, test or predict.
        command_line: The whole command line.
        checkpoint: The checkpoint that the user gave, or None.
        name: The start of the name of a new folder: ``<model>-<data>``.
        run_dir: The folder that the user gave, or None.
        overwrite: Whether to remove the run that the folder holds.

    Raises:
        UserError: If the folder holds another run or cannot be created.
    """
    of_checkpoint = folder_of_checkpoint(checkpoint.path) if checkpoint else None
    chosen_by_rank_0 = rank() > 0 and RUN_DIR_VARIABLE in os.environ
    folder = Path(run_dir) if run_dir else of_checkpoint
    fit = command == "fit"
    resumed = fit and folder is not None and is_same_folder(folder, of_checkpoint)
    if chosen_by_rank_0:
        folder = Path(os.environ[RUN_DIR_VARIABLE])
    elif folder is None:
        folder = _new_folder(command, command_line, name, overwrite)
    if not resumed and is_restarted(folder, command, overwrite):
        resumed = True
        checkpoint = checkpoint or latest_checkpoint(folder)
    run = Run(command, folder, command_line, checkpoint, resumed, chosen_by_rank_0)
    if chosen_by_rank_0:
        return run
    if rank() == 0 and fit and not resumed and holds_run(folder):
        if not overwrite:
            raise UserError(
                f"{folder}: holds a run; resume it with --ckpt_path last, replace it with --overwrite true, or give "
                "another --run_dir"
            )
        clear_run(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if rank() == 0:
            (folder / "error.txt").unlink(missing_ok=True)
    except OSError as error:
        raise _not_creatable(folder, error) from error
    _announce(folder)
    return run


def separate_scores(run: Run, data: Any, config: Mapping[str, Any], given: Container[str]) -> None:
    """Move a test to a separate folder if it differs from the run in checkpoint, data or configuration.

    The record of a run holds only scores of its best checkpoint, as it was trained, on its own data.

    Args:
        run: The run, whose folder is changed in place.
        data: The data module.
        config: The complete configuration.
        given: Contains the dotted names of the options that the user gave, such as ``model.tta_flip``.

    Raises:
        UserError: If the processes of a torchrun job would have to agree on a new folder.
    """
    checkpoint = run.checkpoint
    if run.command not in ("test", "validate") or checkpoint is None or run.chosen_by_rank_0:
        return
    tested = folder_of_checkpoint(checkpoint.path)
    if tested is None or not is_same_folder(run.folder, tested):
        return
    run.fingerprint = fingerprint_of(data)
    if (
        checkpoint.path.name == "best.ckpt"
        and _has_data_of(tested, run.fingerprint, config, checkpoint)
        and _is_as_trained(run.command, config, checkpoint.config, given)
    ):
        return
    name = f"{run.folder.name}-{run.command}-"
    parent = run.folder.parent
    if has_several_tasks():
        # A job may run several tests, and all processes of one test have to choose the same folder.
        digest = hashlib.sha256(run.command_line.encode()).hexdigest()[:8]
        run.folder = parent / f"{name}{os.environ['SLURM_JOB_ID']}-{digest}"
        run.folder.mkdir(parents=True, exist_ok=True)
    elif under_torchrun():
        raise UserError(
            f"{tested}: its record holds the scores of best.ckpt as trained, on its own data; give another --run_dir"
        )
    else:
        run.folder = _create_unused(parent, f"{name}{datetime.now():%Y%m%d-%H%M%S}")
    _announce(run.folder)


def fingerprint_of(data: Any) -> str:
    """Return the fingerprint of a data module, or an empty string if one of its subsets is missing."""
    try:
        return "" if data is None else fingerprint(data)
    except UserError as error:  # the missing subset may be one that this command does not read
        warnings.warn(f"the dataset has no fingerprint: {error}", stacklevel=1)
        return ""


def _has_data_of(run: Path, fingerprint: str, config: Mapping[str, Any], checkpoint: Checkpoint) -> bool:
    recorded = recorded_fingerprint(run)
    if recorded or fingerprint:
        return recorded == fingerprint
    return bool(config["data"] == checkpoint.config.get("data"))


def _is_as_trained(
    command: str, config: Mapping[str, Any], trained: Mapping[str, Any], given: Container[str]
) -> bool:
    """Return whether the scores are comparable to those of the run's training.

    That is so for the same model, data options, share of the data and precision. An option that the checkpoint's
    configuration does not contain, because the option is newer, makes a difference only if the user gives it.
    """
    for section, neutral in NEUTRAL_OPTIONS.items():
        now, before = (each.get(section) or {} for each in (config, trained))
        options, known = (each.get("init_args") or {} for each in (now, before))
        if not _is_same_class(now.get("class_path"), before.get("class_path")):
            return False
        if any(options.get(name) != known[name] for name in known.keys() - neutral):
            return False
        if any(f"{section}.{name}" in given for name in options.keys() - known.keys() - neutral):
            return False
    trainer, before = (each.get("trainer") or {} for each in (config, trained))
    if _scored_share(command, trainer) != _scored_share(command, before):
        return False
    # Unless the user gives another precision, a test runs in float32, whatever the training's precision was.
    return trainer.get("precision") in (None, 32, "32", "32-true", before.get("precision"))


def _is_same_class(one: str | None, other: str | None) -> bool:
    """Compare two import paths, which may lead to the same class: ``segdet.data`` exports some."""
    if one is None or other is None or one == other:
        return one == other
    try:
        return pkgutil.resolve_name(one) is pkgutil.resolve_name(other)
    except (AttributeError, ImportError, ValueError):  # a class of an earlier version
        return False


def _scored_share(command: str, trainer: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the trainer's options that limit the split that is scored."""
    limit = trainer.get(f"limit_{SUBSETS[command]}_batches")
    overfit = (trainer.get("overfit_batches") or 0) if command == "validate" else 0
    whole = limit is None or (isinstance(limit, float) and limit == 1)  # 1 is one batch, 1.0 is all batches
    return None if whole else limit, bool(trainer.get("fast_dev_run")), overfit


def _new_folder(command: str, command_line: str, name: str, overwrite: bool) -> Path:
    """Return ``runs/<name>-<time>``, or ``runs/<name>-<job>`` in a SLURM job."""
    if (job := job_id(command)) is not None:
        return folder_of_job(f"{name}-{job}", command, command_line, overwrite, RUNS)
    if under_torchrun():
        raise UserError("--run_dir: missing; under torchrun it names the common folder of all processes")
    return _create_unused(RUNS, f"{name}-{datetime.now():%Y%m%d-%H%M%S}")


def _create_unused(parent: Path, name: str) -> Path:
    """Create ``parent/name``, or ``parent/name-2`` ... if it exists."""
    for number in range(1, MOST_RUNS):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise _not_creatable(folder, error) from error
        return folder
    raise UserError(f"{parent}/: more than {MOST_RUNS} runs of this second; give --run_dir")


def _not_creatable(folder: Path, error: OSError) -> UserError:
    return UserError(f"{folder}: cannot be created ({error.strerror}); give another --run_dir")


def _announce(folder: Path) -> None:
    """Pass the folder on to the processes that this one starts."""
    os.environ[RUN_DIR_VARIABLE] = str(folder.resolve())
