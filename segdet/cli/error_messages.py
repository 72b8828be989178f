"""Turn exceptions into one line for the user.

Error texts of torch are matched here. Importing this module does not import torch, so that a mistake in the command
itself is reported at once.
"""

import os
import re
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from segdet.util.distributed import RUN_DIR_VARIABLE, is_launched, rank, world_size
from segdet.util.errors import UserError
from segdet.util.suggest import did_you_mean
from segdet.util.write_guard import check_writable

PEER_TIMEOUT = 5.0
"""Seconds to wait for the error report of another process of the run after that process has ended."""

_LOST_PEER = re.compile(
    r"(connection (closed|reset|aborted|refused)|socket (closed|timeout)|broken pipe|remote process exited"
    r"|peer (closed|has exited)|timed out waiting \d+ ?ms)",
    re.IGNORECASE,
)
"""Messages of Gloo, NCCL and torch's store about another process that has ended."""

_KILLED_WORKER = re.compile(r"DataLoader worker .* is killed by signal: (Bus error|Killed)")
"""Message of torch about a killed data-loader worker. The kernel kills workers when memory is exhausted."""

_ENDED_WORKER = re.compile(r"DataLoader worker .*(is killed by signal|exited unexpectedly)")
"""Messages of torch about a data-loader worker that has ended for any reason."""

_OTHER_WEIGHTS = re.compile(r"Error\(s\) in loading state_dict")
"""Message of torch about weights that do not fit a module."""

_CPU_ALLOCATOR = "DefaultCPUAllocator"
"""Part of the message of the RuntimeError that torch raises if it cannot allocate memory on the CPU."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the exception, its cause and its context, then theirs, and so on."""
    seen: set[int] = set()
    pending = [error]
    while pending:
        current = pending.pop(0)
        if current is not None and id(current) not in seen:
            seen.add(id(current))
            yield current
            pending += [current.__cause__, current.__context__]


def find_user_error(error: BaseException) -> str | None:
    """Return the message of the `UserError` behind ``error`` in one line, or None if there is none.

    The `UserError` is ``error`` itself, one of its causes, or was raised in a data-loader worker.
    """
    for each in causes(error):
        from_worker = _worker_message(str(each))
        if from_worker is not None:
            return from_worker
        if isinstance(each, UserError):
            return " ".join(str(each).split("\n"))
    return None


def status_of(error: BaseException) -> int:
    """Return the exit status after an error: that of the `UserError` behind it, or 1 if another process was lost."""
    found = (each.status for each in causes(error) if isinstance(each, UserError))
    return next(found, UserError.status if lost_peer_advice(error) is None else 1)


def _worker_message(text: str) -> str | None:
    """Return the message of the `UserError` at the end of a formatted traceback, or None.

    If a worker fails, torch raises an exception in the main process. Its message contains the worker's traceback.
    """
    if "Traceback (most recent call last)" not in text:
        return None
    names = {cls.__name__ for cls in subclasses(UserError)}
    for line in reversed(text.splitlines()):
        match = re.match(r"(?:[\w.]+\.)?(\w+): (.+)", line)
        if match and match[1] in names:
            return match[2]
    return None


def subclasses(cls: type) -> list[type]:
    """Return a class and all its direct and indirect subclasses that have been imported."""
    children: list[type] = type.__subclasses__(cls)
    return [cls, *(member for child in children for member in subclasses(child))]


def memory_advice(error: BaseException, data: Any) -> str | None:
    """Return advice in one line if ``error`` reports exhausted memory, else None.

    The advice names the batch sizes and the number of workers of the data module ``data``.
    """
    import torch

    sizes = f"--data.batch_size (now {data.batch_size}), --data.eval_batch_size (now {data.eval_batch_size})"
    for each in causes(error):
        text = one_line(each)
        if isinstance(each, torch.OutOfMemoryError):
            return f"the device's memory is too small ({text}); give a smaller {sizes}, or smaller images"
        if isinstance(each, MemoryError) or _CPU_ALLOCATOR in text:
            return f"the machine's memory is too small ({text}); give a smaller {sizes}, or smaller images"
        if _KILLED_WORKER.match(text):
            return (
                f"--data.num_workers {data.num_workers}: a data-loader worker ran out of memory, or of shared memory "
                f"in /dev/shm ({text}); give fewer workers, or 0, or more memory (docker run --shm-size 8g)"
            )
    return None


def restore_advice(
    error: BaseException,
    checkpoint: Path | None,
    restored: bool,
    command: str,
    changes: Sequence[object] = (),
) -> str | None:
    """Return advice in one line if ``error`` was raised while a checkpoint was being restored, else None.

    Args:
        error: The exception that ended the run.
        checkpoint: The checkpoint file, or None.
        restored: Whether the whole checkpoint had been restored before the error.
        command: The subcommand.
        changes: The options that differ from those in the checkpoint.
    """
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    mismatches = ValueError | KeyError | RuntimeError | MisconfigurationException
    if checkpoint is None or restored or not isinstance(error, mismatches) or is_lost_peer(error):
        return None
    if command != "fit" and not _OTHER_WEIGHTS.match(str(error)):
        return None
    fault, fix = "does not fit the model with these settings", "give the settings of the checkpoint"
    if command == "fit":
        fault = "the training cannot be resumed from it with these settings"
        if changes:
            fault += f": {', '.join(map(str, changes))}"
        fix += f", or start a new run from its weights with --model.weights {checkpoint}"
    return f"{checkpoint}: {fault} ({one_line(error)}); {fix}"


def trainer_advice(error: BaseException, trainer: Any) -> str | None:
    """Return the error in one line if an option of the trainer or a callback caused it, else None.

    Args:
        error: The exception that ended the run.
        trainer: The ``lightning.Trainer``.
    """
    from lightning.pytorch.callbacks import EarlyStopping
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from segdet.runs.trainer_options import trainer_fault

    if isinstance(error, MisconfigurationException):
        return trainer_fault(error, trainer)
    if isinstance(error, ImportError):
        return f"a package is missing: {one_line(error)}; install it, or leave out the option that needs it"
    if isinstance(error, RuntimeError):
        for callback in trainer.early_stopping_callbacks:
            if callback.monitor not in trainer.callback_metrics:
                kind, known = EarlyStopping.__name__, sorted(trainer.callback_metrics)
                fix = did_you_mean(callback.monitor, known) if known else "nothing is logged here"
                return f"--trainer.callbacks {kind}: its monitor '{callback.monitor}' has no value; {fix}"
    name = _failed_callback(error)
    return f"--trainer.callbacks {name}: {one_line(error)}" if name else None


def _failed_callback(error: BaseException) -> str | None:
    """Return the class of the Lightning callback that raised the error by itself, or None."""
    from lightning.pytorch import Callback

    name = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__", ""))
        owner = frame.f_locals.get("self")
        if isinstance(owner, Callback) and module.startswith("lightning."):
            name = type(owner).__name__
        elif module.startswith("segdet."):  # the callback called code of segdet, which raised the error
            name = None
    return name


def one_line(error: BaseException | str, most: int = 240) -> str:
    """Return a message, or the message of an exception, in one line of at most ``most`` characters."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= most else line[: most - 3] + "..."


def claims_report(message: str, status: int) -> bool:
    """Return whether this process has to report the error of its run.

    The first process that fails reports its ``message``. It creates a file with the message and its exit status in the
    run's folder. The other processes find this file, report nothing, and end with the same status.
    """
    report = _report_file()
    if report is None:
        return True
    try:
        check_writable(report)
    except UserError:  # other processes own the run now, so rank 0 reports the error
        return rank() == 0
    try:
        with report.open("x", encoding="utf-8") as stream:
            stream.write(f"{message}\nexit status {status}\n")
    except FileExistsError:
        return False
    except OSError:  # a missing folder or a full or read-only disk must not hide the message
        return True
    return True


def status_of_peer(error: BaseException) -> int | None:
    """Return the exit status of another process of the run that has reported the cause of ``error``, else None."""
    report = _report_file()
    if report is None:
        return None
    lost = is_lost_peer(error)
    end = time.monotonic() + PEER_TIMEOUT
    while lost and not report.exists() and time.monotonic() < end:
        time.sleep(0.1)
    if not report.exists() or not (lost or rank() > 0):
        return None
    found = re.search(r"^exit status (\d+)$", report.read_text(encoding="utf-8"), re.MULTILINE)
    return int(found[1]) if found else UserError.status


def _report_file() -> Path | None:
    """Return the file for the error report in the run's folder; None for a run of one process."""
    folder = os.environ.get(RUN_DIR_VARIABLE)
    return Path(folder) / "error.txt" if folder is not None and is_launched() else None


def is_lost_peer(error: BaseException) -> bool:
    """Return whether ``error`` reports that another process of the run has ended."""
    torch = sys.modules.get("torch")
    typed: tuple[type[BaseException], ...] = ()
    if torch is not None and torch.distributed.is_available():
        typed = (torch.distributed.DistNetworkError, torch.distributed.DistStoreError)
    return any(isinstance(each, typed) or _LOST_PEER.search(str(each)) for each in causes(error))


def is_lost_worker(error: BaseException) -> bool:
    """Return whether ``error`` reports that a data-loader worker has ended."""
    return any(_ENDED_WORKER.search(str(each)) for each in causes(error))


def lost_peer_advice(error: BaseException) -> str | None:
    """Return advice in one line if a run of several processes failed because one of them has ended, else None."""
    if world_size() == 1 or not isinstance(error, RuntimeError) or not is_lost_peer(error):
        return None
    return (
        f"another process of the run has ended or does not respond ({one_line(error, 120)}); see its messages, then "
        "start the command again (for a training, with --resume auto)"
    )


def write_line(line: str) -> None:
    """Write a line to stderr without buffering."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
