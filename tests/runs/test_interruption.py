"""A signal to one process of a run stops all of them after the same batch."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_runs import MODELS, TINY

from segdet.cli.main import main
from segdet.runs.interruption import AgreedInterrupt, AgreedStop, AgreedTermination


class Strategy:
    """A strategy that combines the decision of this process with ``others``, the decisions of another process."""

    def __init__(self, *others: bool) -> None:
        self.others = list(others)

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        assert not all
        return decision or self.others.pop(0)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, AgreedInterrupt), (signal.SIGTERM, AgreedTermination)]
)
def test_a_signal_takes_effect_after_the_batch(number: signal.Signals, error: type[BaseException]) -> None:
    before = signal.getsignal(number)
    trainer: Any = SimpleNamespace(world_size=2, strategy=Strategy(False, False, False))
    stop = AgreedStop()
    stop.on_train_start(trainer, trainer)
    stop.on_train_batch_end(trainer)
    os.kill(os.getpid(), number)
    with pytest.raises(error):
        stop.on_validation_batch_end(trainer)
    stop.on_train_end(trainer, trainer)
    assert signal.getsignal(number) == before


@pytest.mark.parametrize(("interrupted", "error"), [(True, AgreedInterrupt), (False, AgreedTermination)])
def test_a_signal_to_another_process(interrupted: bool, error: type[BaseException]) -> None:
    trainer: Any = SimpleNamespace(world_size=2, strategy=Strategy(True, interrupted))
    stop = AgreedStop()
    stop.on_train_start(trainer, trainer)
    with pytest.raises(error):
        stop.on_train_batch_end(trainer)
    stop.on_train_end(trainer, trainer)


def test_a_second_interrupt_takes_effect_at_once() -> None:
    trainer: Any = SimpleNamespace(world_size=2)
    stop = AgreedStop()
    stop.on_train_start(trainer, trainer)
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    stop.on_train_end(trainer, trainer)


def test_a_single_process_keeps_its_handlers() -> None:
    before = signal.getsignal(signal.SIGTERM)
    trainer: Any = SimpleNamespace(world_size=1)
    AgreedStop().on_train_start(trainer, trainer)
    assert signal.getsignal(signal.SIGTERM) == before


def children(pid: int) -> list[int]:
    """Return the processes that ``pid`` has started."""
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    return [int(number) for number in listed.stdout.split()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "of_launcher", "status"), [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 143)]
)
def test_a_signal_to_one_of_two_processes(
    number: signal.Signals, of_launcher: bool, status: int, tmp_path: Path
) -> None:
    """The run is saved, both processes end, and a single process resumes it."""
    folder, last = tmp_path / "run", tmp_path / "run" / "checkpoints" / "last.ckpt"
    arguments = [
        *MODELS["segmentation"], *TINY, f"--data.root={tmp_path}/shapes", f"--run_dir={folder}", "--wandb=false",
        "--trainer.max_epochs=1000", "--trainer.devices=2", "--trainer.strategy=ddp", "--panels.images=0",
    ]  # fmt: skip
    command = [sys.executable, "-m", "segdet", "fit", *arguments]
    launcher = subprocess.Popen(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True
    )
    try:
        end = time.monotonic() + 200
        while not last.exists() and time.monotonic() < end:
            assert launcher.poll() is None
            time.sleep(0.2)
        (other,) = children(launcher.pid)
        os.kill(launcher.pid if of_launcher else other, number)
        _, message = launcher.communicate(timeout=120)
    finally:
        launcher.kill()
    assert launcher.returncode == status, message
    assert f"resume with: segdet fit --ckpt_path {last}" in message
    assert not Path(f"/proc/{other}/cmdline").exists() or not Path(f"/proc/{other}/cmdline").read_bytes()
    record = json.loads((folder / "result.json").read_text())
    steps = torch.load(last, weights_only=True)["global_step"]
    assert (record["status"], record["steps"]) == ("interrupted", steps)
    again = [
        "--trainer.devices=1",
        "--trainer.strategy=auto",
        "--trainer.max_epochs=-1",
        f"--trainer.max_steps={steps + 1}",
    ]
    assert main(["fit", f"--ckpt_path={folder}", *again]) == 0
    assert json.loads((folder / "result.json").read_text())["steps"] == steps + 1


def test_sigterm_to_the_process_group_saves_the_run(tmp_path: Path) -> None:
    """The data-loader workers belong to the group, and the training needs them until its batch ends."""
    folder, last = tmp_path / "run", tmp_path / "run" / "checkpoints" / "last.ckpt"
    options = [option for option in TINY if "max_epochs" not in option and "num_workers" not in option]
    arguments = [
        *MODELS["detection"], *options, f"--data.root={tmp_path}/shapes", f"--run_dir={folder}", "--wandb=false",
        "--trainer.max_epochs=1000", "--data.num_workers=2", "--panels.images=0",
    ]  # fmt: skip
    training = subprocess.Popen(
        [sys.executable, "-m", "segdet", "fit", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        end = time.monotonic() + 200
        while not last.exists() and time.monotonic() < end:
            assert training.poll() is None
            time.sleep(0.2)
        workers = children(training.pid)
        os.killpg(training.pid, signal.SIGTERM)
        _, message = training.communicate(timeout=120)
    finally:
        training.kill()
    assert training.returncode == 143, message
    assert "Traceback" not in message and f"resume with: segdet fit --ckpt_path {last}" in message
    assert json.loads((folder / "result.json").read_text())["status"] == "interrupted"
    assert len(workers) >= 2 and not any(Path(f"/proc/{worker}").exists() for worker in workers)
