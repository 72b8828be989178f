"""Stop a run on a signal: after a step, in all of its processes, with its state saved.

The handlers only record the signal. At the end of each batch, all processes agree on the signal that one of them has
received, and end the run together, so that no process waits for another one. Lightning's own handlers are not used.
They save and communicate within the handler. A checkpoint in the middle of a step is not exact. If the other processes
are in another collective operation, all processes wait forever.

In a SLURM job, SIGUSR1 also stops the run, and the job is requeued.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from lightning.pytorch.utilities.exceptions import SIGTERMException

from segdet.training.callback_interfaces import DefersSignals
from segdet.util.distributed import TIMEOUT, rank
from segdet.util.errors import status_of_signal

NOTICE = b"\nsegdet: stopping after this batch; interrupt again to stop at once, without saving\n"

CHILD_SECONDS = 20.0
"""The seconds for which the first process waits for the end of the processes that it has started."""


class Stopped(SystemExit):
    """A signal that arrived before the first step or after the last one."""


class StopSignals:
    """The handlers of the signals that stop a run: SIGINT, SIGTERM, and SIGUSR1 in a SLURM job.

    A context manager. On exit it restores the earlier handlers, and requeues the SLURM job if SIGUSR1 stopped the run.

    Attributes:
        received: The first signal that this process received, or None.
        agreed: The signal on which all processes of the run have agreed, or None.
        deferred: Whether a signal takes effect after the batch. If not, it takes effect at once.
        started_by_rank_0: Whether Lightning started this process for another rank of the same command.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.agreed: int | None = None
        self.deferred = False
        self.started_by_rank_0 = False
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    @property
    def stopped_by(self) -> int | None:
        """The signal that stops the run, or None."""
        return self.agreed or self.received

    @property
    def status(self) -> int:
        """The exit status of a run that a signal has stopped."""
        return status_of_signal(self.stopped_by)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGINT, signal.SIGTERM]
            if _is_slurm_job():
                numbers.append(signal.SIGUSR1)
            for number in numbers:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as for a job in a shell's background
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
        if _is_slurm_job() and self.stopped_by == signal.SIGUSR1 and rank() == 0:
            requeue()

    def defer(self) -> None:
        """Let signals take effect after the batch from now on."""
        self._process = os.getpid()  # with the strategy ddp_fork, training processes are forks
        self.deferred = True

    def end_deferral(self) -> None:
        """End the run now if it has received a signal; let later signals take effect at once.

        Raises:
            Stopped: If a signal was received.
        """
        self.deferred = False
        if self.stopped_by is not None:
            if self.started_by_rank_0 and self.received is not None and self.agreed is None:
                # A second SIGINT would stop the first process without saving.
                self._pass_on(signal.SIGTERM if self.received == signal.SIGINT else self.received)
            raise Stopped(self.status)

    def _pass_on(self, number: int) -> None:
        """Send a signal to the first process, which may be waiting for this one. It ends the run."""
        with contextlib.suppress(OSError):
            os.kill(os.getppid(), number)

    def _receive(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:  # a fork of this process, such as a worker of a pool
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        again = self.received is not None
        self.received = self.received or number
        if not self.deferred:
            if self.started_by_rank_0:
                self._pass_on(number)
                raise Stopped(0)  # the first process reports the status
            raise Stopped(self.status)
        if number == signal.SIGINT:
            if again and self.received == number:
                raise KeyboardInterrupt
            os.write(2, NOTICE)  # a handler may interrupt a write to sys.stderr


class Agreement:
    """The agreement of all processes of a run on a number, without waiting for each other.

    The processes exchange their numbers while they work on the next batch, so that the result is that of the batch
    before. A single process exchanges nothing.

    Args:
        world_size: The number of processes.
    """

    def __init__(self, world_size: int) -> None:
        self._group: Any = None
        self._exchange: tuple[Any, torch.Tensor] | None = None
        if world_size > 1 and dist.is_available() and dist.is_initialized():
            # Tensors on the CPU need no synchronization with a GPU.
            self._group = dist.new_group(backend="gloo", timeout=TIMEOUT)

    def largest(self, number: int) -> int:
        """Return the largest number of all processes; all of them receive the same one in the same call."""
        if self._group is None:
            return number
        agreed = 0
        if self._exchange is not None:
            work, result = self._exchange
            work.wait()
            agreed = int(result)
        tensor = torch.tensor(number)
        self._exchange = (
            dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group, async_op=True),
            tensor,
        )
        return agreed


class AgreedStop(pl.Callback, DefersSignals):
    """Stop all processes of a run after the same batch if one of them has received a signal.

    Within accumulated gradients the run continues to the next optimizer step, because gradients are not saved. A
    single process defers signals only in a training, because the other commands have nothing to save.

    Args:
        signals: The handlers.
    """

    def __init__(self, signals: StopSignals) -> None:
        self.signals = signals
        self._agreement: Agreement | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Defer signals from now on."""
        self.signals.defer()
        self._agreement = Agreement(trainer.world_size)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Defer signals in an evaluation of several processes."""
        if trainer.state.fn != "fit" and trainer.world_size > 1:
            self.on_train_start(trainer, pl_module)

    on_test_start = on_predict_start = on_validation_start

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Agree on a signal; Lightning ends the run after the batch, or after the epoch if it was the last batch."""
        if self._agreement is None:
            return
        if self.signals.agreed is None:
            self.signals.agreed = self._agreement.largest(self.signals.received or 0) or None
        if self.signals.agreed is not None and not _accumulates(trainer):
            trainer._signal_connector.received_sigterm = True

    on_validation_batch_end = on_test_batch_end = on_train_batch_end

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Let signals take effect at once inside this context.

        Raises:
            Stopped: If a signal was received before.
        """
        deferred = self.signals.deferred
        if deferred:
            self.signals.end_deferral()
        yield
        self.signals.deferred = deferred

    def on_predict_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Agree on a signal.

        Raises:
            SIGTERMException: In all processes, if one has received a signal.
        """
        self.on_train_batch_end(trainer)
        if trainer.received_sigterm:
            raise SIGTERMException


def _accumulates(trainer: pl.Trainer) -> bool:
    """Return whether no optimizer step followed the last training batch, so that its gradients are kept."""
    if trainer.state.fn != "fit" or trainer.is_last_batch:
        return False
    return (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches != 0


class _NoHandlers(_SignalConnector):
    """A replacement for the part of a Trainer that installs Lightning's signal handlers."""

    def register_signal_handlers(self) -> None:
        """Install no handler."""
        self.received_sigterm = False


def leave_signals_to_segdet(trainer: pl.Trainer) -> None:
    """Make ``trainer`` install no handlers. Lightning has no option for this."""
    trainer._signal_connector = _NoHandlers(trainer)


def wait_for_children(trainer: pl.Trainer) -> None:
    """Wait for the processes that Lightning has started for the other ranks; kill them if they do not end."""
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher):
        for process in launcher.procs:
            try:
                process.wait(CHILD_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _is_slurm_job() -> bool:
    return "SLURM_JOB_ID" in os.environ


def requeue() -> None:
    """Requeue this SLURM job, or this task of a job array. SLURM then ends the job and starts it again."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
        failure = done.stderr.strip() if done.returncode else None
    except OSError as error:
        failure = f"scontrol: {error.strerror}"
    if failure is None:
        line = f"job {job} is requeued"
    else:
        reason = re.sub(r"\s+", " ", failure)
        line = f"job {job} cannot be requeued ({reason}); submit it again to resume the run"
    sys.stderr.write(f"segdet: {line}\n")
