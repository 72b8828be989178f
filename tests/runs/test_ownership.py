"""A run's folder has one writer at a time."""

import json
import multiprocessing
import os
import signal
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from segdet.cli.main import main
from segdet.runs import ownership
from segdet.runs.ownership import LEASE, OwnedError, Ownership


@contextmanager
def owned_by_another(folder: Path) -> Iterator[int]:
    """Let another process own ``folder``; yield its id. The process is killed at the end."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()

    def own() -> None:
        Ownership(folder)
        ready.set()
        time.sleep(300)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about fork in a process with threads
        process = context.Process(target=own)
        process.start()
    try:
        assert ready.wait(60)
        assert process.pid is not None
        yield process.pid
    finally:
        process.kill()
        process.join(60)


def test_a_folder_is_free_after_the_end_of_its_owner(tmp_path: Path) -> None:
    with owned_by_another(tmp_path) as pid:
        for _ in range(2):
            with pytest.raises(
                OwnedError, match=f"process {pid} on {socket.gethostname()} is writing to this run"
            ):
                Ownership(tmp_path)
        os.kill(pid, signal.SIGSTOP)  # a process that is stopped may continue
        with pytest.raises(OwnedError, match=str(pid)):
            Ownership(tmp_path)
    own = Ownership(tmp_path)  # the killed process could not give it up
    assert json.loads((tmp_path / "owner.json").read_text())["pid"] == os.getpid()
    own.release()
    own.release()
    assert list(tmp_path.iterdir()) == []


def other_machine(folder: Path, seconds: float, **owner: Any) -> None:
    """Write the file of an owner on another machine, with the last update ``seconds`` ago."""
    path = folder / "owner.json"
    path.write_text(
        json.dumps({"host": "elsewhere", "pid": 1, "started": "5", "job": None, "restarts": 0} | owner)
    )
    past = time.time() - seconds
    os.utime(path, (past, past))


def test_an_owner_on_another_machine_keeps_the_folder_while_it_updates_the_file(tmp_path: Path) -> None:
    other_machine(tmp_path, LEASE / 2)
    with pytest.raises(OwnedError, match=r"process 1 on elsewhere is .*\(if it was killed, wait 120 s\)"):
        Ownership(tmp_path)
    other_machine(tmp_path, 2 * LEASE)
    Ownership(tmp_path).release()


def test_the_owner_updates_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "RENEWAL", 0.01)
    own = Ownership(tmp_path)
    os.utime(tmp_path / "owner.json", (0, 0))
    end = time.monotonic() + 30
    while (tmp_path / "owner.json").stat().st_mtime == 0 and time.monotonic() < end:
        time.sleep(0.01)
    assert (tmp_path / "owner.json").stat().st_mtime > 0
    own.release()


def test_a_job_that_slurm_restarts_on_another_machine_owns_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    for other in ({"job": "8"}, {"job": "7", "restarts": 2}):
        other_machine(tmp_path, 0, **other)
        with pytest.raises(OwnedError):
            Ownership(tmp_path)
    other_machine(tmp_path, 0, job="7", restarts=1)
    Ownership(tmp_path).release()


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a lock, the folder is in use as long as the process in the file exists."""
    monkeypatch.setattr(ownership, "fcntl", None)
    other_machine(tmp_path, 0, host=socket.gethostname(), pid=os.getppid(), started="5")
    Ownership(tmp_path).release()  # another process has the number of the owner now
    with owned_by_another(tmp_path) as pid, pytest.raises(OwnedError, match=f"process {pid} "):
        Ownership(tmp_path)
    Ownership(tmp_path).release()


def test_a_running_training_cannot_be_resumed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with owned_by_another(run) as pid:
        assert main(["fit", f"--ckpt_path={run}", "--trainer.max_epochs=2"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"segdet: error: {run}: process {pid} on ")
        # A test has a folder of its own, unless the user gives the folder that is in use.
        assert main(["test", f"--ckpt_path={run}", "--wandb=false"]) == 0
        assert f"process {pid} on {socket.gethostname()} is writing to {run}" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in before} == before
        (separate,) = run.parent.glob("run-test-*")
        assert json.loads((separate / "result.json").read_text())["metrics"]
    assert main(["fit", f"--ckpt_path={run}", "--trainer.max_epochs=2"]) == 0
    assert not (run / "owner.json").exists()
