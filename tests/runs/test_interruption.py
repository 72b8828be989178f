"""A signal stops all processes of a run after the same batch."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException
from stopped_runs import Training, differences, group_members, rows_of
from tiny_runs import MODELS, TINY
from two_processes import other_process, process_of_two

from segdet.cli.main import main
from segdet.runs.interruption import AgreedStop, Agreement, Stopped, StopSignals
from segdet.training.callback_interfaces import interruptible


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> Iterator[StopSignals]:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with StopSignals() as signals:
        yield signals


def trainer(batch: int = 0, accumulate: int = 1, fn: str = "fit") -> Any:
    """A trainer of one process after ``batch``."""
    return SimpleNamespace(
        world_size=1, state=SimpleNamespace(fn=fn), is_last_batch=False, accumulate_grad_batches=accumulate,
        fit_loop=SimpleNamespace(batch_idx=batch), _signal_connector=SimpleNamespace(received_sigterm=False),
    )  # fmt: skip


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_takes_effect_at_once_before_training_and_after_the_batch_in_training(
    number: signal.Signals, status: int, signals: StopSignals
) -> None:
    with pytest.raises(Stopped) as stopped:
        os.kill(os.getpid(), number)
    assert stopped.value.code == signals.status == status
    signals.received = None
    stop, run = AgreedStop(signals), trainer()
    stop.on_train_start(run, run)
    stop.on_train_batch_end(run)
    assert not run._signal_connector.received_sigterm
    os.kill(os.getpid(), number)
    stop.on_train_batch_end(run)
    assert run._signal_connector.received_sigterm
    with pytest.raises(Stopped):
        signals.end_deferral()


def test_the_earlier_handlers_are_restored() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with StopSignals():
        assert all(signal.getsignal(number) != handler for number, handler in before.items())
    assert {number: signal.getsignal(number) for number in before} == before


def test_accumulated_gradients_are_used_before_the_stop(signals: StopSignals) -> None:
    stop = AgreedStop(signals)
    stop.on_train_start(trainer(), trainer())
    signals.received = signal.SIGTERM
    stopped = []
    for batch in range(3):
        run = trainer(batch, accumulate=3)
        stop.on_train_batch_end(run)
        stopped.append(run._signal_connector.received_sigterm)
    assert stopped == [False, False, True]


def test_a_second_interrupt_takes_effect_at_once(
    signals: StopSignals, capfd: pytest.CaptureFixture[str]
) -> None:
    signals.defer()
    os.kill(os.getpid(), signal.SIGINT)
    assert "interrupt again to stop at once" in capfd.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_takes_effect_at_once_in_long_work_that_follows_a_checkpoint(signals: StopSignals) -> None:
    stop, run = AgreedStop(signals), trainer()
    run.callbacks = [stop]
    stop.on_train_start(run, run)
    with interruptible(run):
        assert not signals.deferred
    assert signals.deferred
    with pytest.raises(Stopped), interruptible(run):
        os.kill(os.getpid(), signal.SIGTERM)
    signals.deferred = True
    with pytest.raises(Stopped), interruptible(run):
        raise AssertionError("the signal arrived before")


@pytest.mark.parametrize(
    ("received", "agreed", "sent"),
    [
        (signal.SIGTERM, None, [signal.SIGTERM]),
        (signal.SIGINT, None, [signal.SIGTERM]),
        (signal.SIGTERM, signal.SIGTERM, []),
        (None, signal.SIGTERM, []),
    ],
)
def test_the_first_process_gets_a_signal_of_another_one_that_came_too_late_for_an_agreement(
    received: int | None,
    agreed: int | None,
    sent: list[int],
    signals: StopSignals,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise the first process goes on to the test, and waits for a process that has ended."""
    found: list[tuple[int, int]] = []
    signals.defer()
    signals.started_by_rank_0, signals.received, signals.agreed = True, received, agreed
    with monkeypatch.context() as patched:
        patched.setattr(os, "kill", lambda *call: found.append(call))
        with pytest.raises(Stopped):
            signals.end_deferral()
    assert found == [(os.getppid(), number) for number in sent]


def test_a_fork_keeps_the_default_effect_of_a_signal(signals: StopSignals) -> None:
    signals.defer()
    child = os.fork()
    if not child:
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def test_a_prediction_of_several_processes_ends_after_the_batch(signals: StopSignals) -> None:
    stop, run = AgreedStop(signals), trainer(fn="predict")
    stop.on_predict_start(run, run)
    assert not signals.deferred  # a single process has nothing to save
    stop.on_train_start(run, run)
    signals.received = signal.SIGTERM
    run.received_sigterm = True
    with pytest.raises(SIGTERMException):
        stop.on_predict_batch_end(run)


def _exchange(folder: Path) -> None:
    with process_of_two(1, folder, 60):
        agreement = Agreement(2)
        assert [agreement.largest(number) for number in (0, 15, 0, 0)] == [0, 0, 15, 0]


def test_all_processes_agree_in_the_same_batch(tmp_path: Path) -> None:
    with other_process(_exchange, tmp_path, 60), process_of_two(0, tmp_path, 60):
        agreement = Agreement(2)
        assert [agreement.largest(number) for number in (0, 0, 0, 0)] == [0, 0, 15, 0]


@pytest.mark.parametrize(
    ("fails", "line"), [(False, "job 7_3 is requeued"), (True, "submit it again to resume")]
)
def test_a_slurm_job_is_requeued_after_its_signal(
    fails: bool,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\nexit {int(fails)}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for name, value in {"JOB_ID": "9", "ARRAY_JOB_ID": "7", "ARRAY_TASK_ID": "3"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    with pytest.raises(Stopped), StopSignals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert not (tmp_path / "called").exists()  # SLURM itself requeues a job that it preempts
    with pytest.raises(Stopped), StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGUSR1)
    assert signals.status == 143
    assert (tmp_path / "called").read_text() == "requeue 7_3\n"
    assert line in capsys.readouterr().err


SMALL = [option for option in TINY if "max_epochs" not in option and "num_workers" not in option]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data") / "shapes"


def command(shapes: Path, run: Path, *options: str) -> list[str]:
    return [
        "fit", *MODELS["segmentation"], *SMALL, f"--data.root={shapes}", f"--run_dir={run}", "--panels.images=0",
        *options,
    ]  # fmt: skip


def test_sigterm_to_the_process_group_saves_the_run(shapes: Path, tmp_path: Path) -> None:
    """The data-loader workers belong to the group, and the training needs them until its batch ends."""
    run = tmp_path / "run"
    options = command(shapes, run, "--trainer.max_epochs=1000", "--data.num_workers=2")
    training = Training(options, tmp_path / "log")
    try:
        assert training.wait_for(lambda: len(rows_of(run)) > 3)
        assert len(training.children()) >= 2
        os.killpg(training.process.pid, signal.SIGTERM)
        status, seconds = training.end()
    finally:
        training.kill()
    assert status == 143, training.messages
    assert seconds < 60
    assert "Traceback" not in training.messages
    assert f"resume with: segdet fit --ckpt_path {run}/checkpoints/last.ckpt" in training.messages
    assert json.loads((run / "result.json").read_text())["status"] == "interrupted"
    assert group_members(training.process.pid) == []


def test_sigterm_to_the_process_group_while_a_worker_starts(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The worker does not ignore signals yet, and inherits that SIGTERM is blocked. It starts during the training."""
    run = tmp_path / "run"

    def receive_signal() -> None:
        if (run / "metrics.csv").exists():
            for process in (os.getppid(), os.getpid()):
                os.kill(process, signal.SIGTERM)

    monkeypatch.setattr("segdet.data.base.leave_signals_to_parent", receive_signal)
    options = ["--data.num_workers=1", "--trainer.log_every_n_steps=1", "--wandb=false"]
    assert main(command(shapes, run, *options)) == 143
    messages = capfd.readouterr().err
    assert "Traceback" not in messages
    assert f"resume with: segdet fit --ckpt_path {run}/checkpoints/last.ckpt" in messages
    assert json.loads((run / "result.json").read_text())["status"] == "interrupted"
    assert (run / "checkpoints" / "last.ckpt").exists()


TARGETS = {
    "group": lambda training: os.killpg(training.process.pid, signal.SIGTERM),
    "first": lambda training: os.kill(training.process.pid, signal.SIGTERM),
    "other": lambda training: os.kill(training.other_rank(), signal.SIGTERM),
    "interrupt": lambda training: os.killpg(training.process.pid, signal.SIGINT),
}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_stopped_run_ends_like_an_uninterrupted_one(processes: int, shapes: Path, tmp_path: Path) -> None:
    """Each signal arrives after the third row of ``metrics.csv`` or a little later."""
    options = [
        "--trainer.max_epochs=4", "--data.num_workers=1", "--data.eval_batch_size=1", "--trainer.log_every_n_steps=1",
        f"--trainer.devices={processes}", *(["--trainer.strategy=ddp"] if processes > 1 else []),
    ]  # fmt: skip
    expected = tmp_path / "expected"
    assert Training(command(shapes, expected, *options), tmp_path / "log").end()[0] == 0
    for target, send in TARGETS.items():
        if target == "other" and processes == 1:
            continue
        run = tmp_path / target
        training = Training(command(shapes, run, *options), tmp_path / f"{target}.log")
        assert training.wait_for(lambda: len(rows_of(run)) >= 3), training.messages  # noqa: B023
        send(training)
        status, seconds = training.end()
        assert status == (130 if target == "interrupt" else 143), training.messages
        assert seconds < 60 and "Traceback" not in training.messages
        again = Training(["fit", f"--run_dir={run}", "--ckpt_path=last"], tmp_path / f"{target}.log")
        assert again.end()[0] == 0, again.messages
        assert differences(run, expected) == []
