"""The choice of a run's folder: a new one, that of a resumed run, or a separate one for a test with other settings.

A requeued SLURM job (stopped and started again) or restarted torchrun job uses the same folder and resumes its run.
"""

import contextlib
import hashlib
import os
import sys
import warnings
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from segdet.data.fingerprint import fingerprint
from segdet.runs.checkpoint_file import Checkpoint, latest_checkpoint
from segdet.runs.classes import SUBSETS, is_same_class
from segdet.runs.folder_layout import (
    clear_run,
    folder_of_checkpoint,
    holds_run,
    read_record,
    recorded_commands,
    recorded_fingerprint,
    shown_path,
)
from segdet.runs.interruption import StopSignals
from segdet.runs.ownership import OwnedError, Ownership
from segdet.runs.resumed_options import Change
from segdet.util.distributed import RUN_DIR_VARIABLE, is_restarted, is_slurm_shell, rank, under_torchrun
from segdet.util.errors import UserError

RUNS = Path("runs")
"""The parent of run folders if ``--run_dir`` is not given."""

MOST_RUNS = 1000
"""The maximum number of folders with names that differ only by a number."""

NEUTRAL_OPTIONS = {
    "model": {"boundary_scores", "compile", "channels_last", "crop_batch"},
    "data": {"root", "batch_size", "eval_batch_size", "num_workers"},
}
"""Options that do not change scores: speed and memory settings, optional scores, and the location of files."""


@dataclass
class Run:
    """A run of a command: its folder, the checkpoint that it starts from, and its state.

    Attributes:
        command: The subcommand: fit, validate, test or predict.
        folder: The run's folder.
        command_line: The whole command line.
        checkpoint: The checkpoint to start from, or None.
        resumed: Whether the folder holds the run that this process resumes.
        chosen_by_rank_0: Whether rank 0 chose the folder before it started this process.
        fingerprint: The fingerprint of the data, or None before it is computed.
        restored: Whether everything in the checkpoint has been restored.
        failure: The message of a training that diverged, or None.
        changes: The options that differ from those of the checkpoint from which the training resumes.
        ownership: The ownership of the folder; None in processes of other ranks.
        signals: The signals that stop the run.
        done: Whether the run is finished, and tested if it has to be.
    """

    command: str
    folder: Path
    command_line: str = ""
    checkpoint: Checkpoint | None = None
    resumed: bool = False
    chosen_by_rank_0: bool = False
    fingerprint: str | None = None
    restored: bool = False
    failure: str | None = None
    changes: list[Change] = field(default_factory=list)
    ownership: Ownership | None = None
    signals: StopSignals = field(default_factory=StopSignals)
    done: bool = False

    @property
    def shown_folder(self) -> Path:
        """The folder for a message."""
        return shown_path(self.folder)

    def release(self) -> None:
        """Give the folder up, so that another process may write to it."""
        if self.ownership is not None:
            self.ownership.release()
            self.ownership = None


class UnusedFolders:
    """The folders that a command creates. On exit, folders that are still empty are removed, as after an error."""

    def __init__(self) -> None:
        self._folders: set[Path] = set()

    def expect(self, folder: Path) -> None:
        """Add ``folder`` and its parents if they do not exist and will therefore be created."""
        path = folder.absolute()
        self._folders |= {each for each in (path, *path.parents) if not each.exists()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for folder in sorted(self._folders, key=lambda each: -len(each.parts)):
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()


def place_run(
    command: str,
    command_line: str,
    checkpoint: Checkpoint | None,
    *,
    name: str,
    run_dir: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    unused: UnusedFolders | None = None,
) -> Run:
    """Choose, claim and create the folder of a run.

    If SLURM or torchrun restarts a run's command, the run is resumed from its latest checkpoint. With ``resume``, or
    after such a restart, a run that has no valid checkpoint is started again: it was stopped before the first one.

    Args:
        command: The subcommand.
        command_line: The whole command line, which identifies the run of a restarted command.
        checkpoint: The checkpoint that the user gave, or None.
        name: The start of the name of a new folder: ``<model>-<data>``.
        run_dir: The folder that the user gave, or None.
        overwrite: Whether to remove the run that the folder holds.
        resume: Whether to resume the run that the folder holds from ``checkpoint``.
        unused: Receives the folders that are created.

    Raises:
        UserError: If the folder holds another run or cannot be created.
    """
    of_checkpoint = folder_of_checkpoint(checkpoint.path) if checkpoint else None
    chosen_by_rank_0 = rank() > 0 and RUN_DIR_VARIABLE in os.environ
    folder = Path(run_dir) if run_dir else of_checkpoint
    unused = unused or UnusedFolders()
    fit = command == "fit"
    resumed = fit and folder is not None and folder.resolve() == of_checkpoint
    if chosen_by_rank_0:
        folder = Path(os.environ[RUN_DIR_VARIABLE])
    elif folder is None:
        if resume and _job_id(command) is None:
            raise UserError("--resume auto: the run's folder is missing; give --run_dir")
        folder = _new_folder(command, command_line, name, unused)
    restarted = not resumed and _is_restarted(folder, command)
    if restarted:
        checkpoint = checkpoint or latest_checkpoint(folder)
        resumed = checkpoint is not None
    run = Run(command, folder, command_line, checkpoint, resumed, chosen_by_rank_0)
    if chosen_by_rank_0:
        return run
    occupied = rank() == 0 and fit and not resumed and holds_run(folder)
    if occupied and not (overwrite or resume or restarted):
        raise UserError(
            f"{folder}: holds a run; resume it with --resume auto, replace it with --overwrite true, or give "
            "another --run_dir"
        )
    unused.expect(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if fit:
            _own(run)
        if occupied:
            clear_run(folder)
        if rank() == 0:
            (folder / "error.txt").unlink(missing_ok=True)
    except OSError as error:
        raise _not_creatable(folder, error) from error
    _announce(folder)
    return run


def finished_run(folder: Path, test: bool) -> Run | None:
    """Return the run in ``folder`` if its training is finished, else None.

    The folder is claimed if the run still has to be tested.

    Args:
        folder: The run's folder.
        test: Whether the run has to be tested.

    Raises:
        OwnedError: If another process is testing the run.
    """
    record = read_record(folder)
    if record is None or record.status != "finished":
        return None
    run = Run("fit", folder, resumed=True, done=record.is_tested or not test)
    if not run.done:
        _own(run)
    return run


def _own(run: Run) -> None:
    if rank() == 0 and run.ownership is None:
        run.ownership = Ownership(run.folder)


def separate_scores(run: Run, data: Any, config: Mapping[str, Any], given: Container[str]) -> None:
    """Move a test to a separate folder if it differs from the run in checkpoint, data or configuration.

    The record of a run holds only scores of its best checkpoint, with the configuration and data of its training. If
    another process writes to the run's folder, all commands except fit also use a separate folder.

    Args:
        run: The run; its folder is changed in place.
        data: The data module.
        config: The complete configuration.
        given: The dotted names of the options that the user gave, such as ``model.tta_flip``.

    Raises:
        UserError: If the processes of a torchrun job would have to agree on a new folder, or another process writes to
            the folder that the user gave.
    """
    if run.command == "fit" or run.chosen_by_rank_0:
        return
    if _differs(run, data, config, given):
        run.release()
        _separate(run, "its record holds the scores of best.ckpt as trained, on its own data")
    try:
        _own(run)
    except OwnedError as error:
        tested = folder_of_checkpoint(run.checkpoint.path) if run.checkpoint else None
        if run.folder.resolve() != tested or _slurm_tasks() > 1 or under_torchrun():
            raise
        _separate(run, str(error))
        _own(run)
        sys.stderr.write(
            f"segdet: {error.owner} is writing to {tested}; this {run.command} has its own folder\n"
        )
    except OSError as error:
        raise _not_creatable(run.folder, error) from error


def _differs(run: Run, data: Any, config: Mapping[str, Any], given: Container[str]) -> bool:
    """Return whether a test in the folder of its run differs from the run in checkpoint, data or configuration."""
    checkpoint = run.checkpoint
    if run.command not in ("test", "validate") or checkpoint is None:
        return False
    tested = folder_of_checkpoint(checkpoint.path)
    if tested is None or run.folder.resolve() != tested:
        return False
    run.fingerprint = fingerprint_of(data)
    trained = checkpoint.config
    if checkpoint.path.name == "best.ckpt" and _is_as_trained(run.command, config, trained, given):
        recorded = recorded_fingerprint(tested)
        # Without fingerprints, data with the same options is assumed to be the same.
        return not (recorded == run.fingerprint and (recorded or config["data"] == trained.get("data")))
    return True


def _separate(run: Run, reason: str) -> None:
    """Create a new folder beside that of the run, for a command that uses the checkpoint of the run."""
    separate = f"{run.folder}-{run.command}"
    if _slurm_tasks() > 1:
        # A job may run several tests, and all processes of one test have to choose the same folder.
        digest = hashlib.sha256(run.command_line.encode()).hexdigest()[:8]
        run.folder = Path(f"{separate}-{os.environ['SLURM_JOB_ID']}-{digest}")
        run.folder.mkdir(parents=True, exist_ok=True)
    elif under_torchrun():
        raise UserError(f"{run.folder}: {reason}; give another --run_dir")
    else:
        run.folder = _create_unused(Path(f"{separate}-{datetime.now():%Y%m%d-%H%M%S}"), UnusedFolders())
    _announce(run.folder)


def fingerprint_of(data: Any) -> str:
    """Return the fingerprint of a data module, or an empty string if one of its subsets is missing."""
    try:
        return "" if data is None else fingerprint(data)
    except UserError as error:  # this command may not need the missing subset
        warnings.warn(f"the dataset has no fingerprint: {error}", stacklevel=1)
        return ""


def _is_as_trained(
    command: str, config: Mapping[str, Any], trained: Mapping[str, Any], given: Container[str]
) -> bool:
    """Return whether the scores are comparable to those of the run's training.

    Model, data options, share of the data and precision must be the same. An option that is newer than the checkpoint,
    and therefore missing in its configuration, makes a difference only if the user gives the option.
    """
    for section, neutral in NEUTRAL_OPTIONS.items():
        now, before = (each.get(section) or {} for each in (config, trained))
        options, known = (each.get("init_args") or {} for each in (now, before))
        if not is_same_class(now.get("class_path"), before.get("class_path")):
            return False
        if any(options.get(name) != known[name] for name in known.keys() - neutral):
            return False
        if any(f"{section}.{name}" in given for name in options.keys() - known.keys() - neutral):
            return False
    trainer, before = (each.get("trainer") or {} for each in (config, trained))
    if _scored_share(command, trainer) != _scored_share(command, before):
        return False
    # Unless the user gives another precision, a test runs in float32, even after training in another precision.
    return trainer.get("precision") in (None, 32, "32", "32-true", before.get("precision"))


def _scored_share(command: str, trainer: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the trainer's options that limit the split that is scored."""
    limit = trainer.get(f"limit_{SUBSETS[command]}_batches")
    overfit = (trainer.get("overfit_batches") or 0) if command == "validate" else 0
    whole = limit is None or (isinstance(limit, float) and limit == 1)  # 1 is one batch, 1.0 is all batches
    return None if whole else limit, bool(trainer.get("fast_dev_run")), overfit


def _new_folder(command: str, command_line: str, name: str, unused: UnusedFolders) -> Path:
    """Return ``runs/<name>-<time>``, or ``runs/<name>-<job>`` in a SLURM job."""
    if (job := _job_id(command)) is not None:
        return _folder_of_job(RUNS / f"{name}-{job}", command, command_line)
    if under_torchrun():
        raise UserError("--run_dir: missing; under torchrun it names the common folder of all processes")
    return _create_unused(RUNS / f"{name}-{datetime.now():%Y%m%d-%H%M%S}", unused)


def _create_unused(folder: Path, unused: UnusedFolders) -> Path:
    """Create the first of ``folder``, ``folder-2`` ... that does not exist."""
    for candidate in _numbered(folder):
        unused.expect(candidate)
        try:
            candidate.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise _not_creatable(candidate, error) from error
        return candidate
    raise UserError(f"{folder}: {MOST_RUNS} numbered folders of this name exist; give --run_dir")


def _numbered(folder: Path) -> Iterator[Path]:
    yield folder
    yield from (folder.with_name(f"{folder.name}-{number}") for number in range(2, MOST_RUNS + 1))


def _not_creatable(folder: Path, error: OSError) -> UserError:
    return UserError(f"{folder}: cannot be created ({error.strerror}); give another --run_dir")


def _announce(folder: Path) -> None:
    """Pass the folder to the child processes."""
    os.environ[RUN_DIR_VARIABLE] = str(folder.resolve())


def _job_id(command: str) -> str | None:
    """Return the SLURM job id to use in the name of the run's folder, or None to use the time instead.

    The processes of a job with several tasks need a common name, and a restarted training run must find its folder
    again. A shell on a node (``srun --pty bash``, ``salloc``) is not restarted.
    """
    if _slurm_tasks() > 1 or (command == "fit" and not is_slurm_shell()):
        return os.environ.get("SLURM_JOB_ID")
    return None


def _folder_of_job(folder: Path, command: str, command_line: str) -> Path:
    """Return the folder of a command in its SLURM job. A restarted job gets the same folder.

    A job with one task may run several commands, in ``folder``, ``folder-2`` ... A restarted command finds its folder
    by the command line. The processes of a job with several tasks cannot communicate yet and could choose different
    numbers, so such a job has only one folder.
    """

    def is_available(folder: Path) -> bool:
        same_command = command_line in recorded_commands(folder)[:1]
        return not holds_run(folder) or (same_command and _is_restarted(folder, command))

    if _slurm_tasks() > 1:
        if rank() == 0 and not is_available(folder):
            raise UserError(f"{folder}: holds another run of this job; give --run_dir")
        return folder
    for candidate in _numbered(folder):
        if is_available(candidate):
            return candidate
    raise UserError(f"{folder}: this job has {MOST_RUNS} runs; give --run_dir")


def _is_restarted(folder: Path, command: str) -> bool:
    """Return whether the launcher has restarted the command of the run in ``folder``. Only fit is resumed."""
    return command == "fit" and holds_run(folder) and is_restarted()


def _slurm_tasks() -> int:
    return int(os.environ.get("SLURM_NTASKS") or 1) if "SLURM_JOB_ID" in os.environ else 1
