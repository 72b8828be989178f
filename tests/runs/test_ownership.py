"""A run's folder has one writer at a time."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from stopped_runs import Training
from tiny_runs import MODELS, TINY

from segdet.cli.main import main
from segdet.runs import ownership
from segdet.runs.checkpoint_io import AtomicCheckpointIO
from segdet.runs.loggers import MetricsFile, RunWandbLogger
from segdet.runs.ownership import (
    LEASE,
    OWNER,
    Claim,
    OutdatedError,
    OwnedError,
    Ownership,
    _start_of,
    owner_of,
)
from segdet.runs.predictions import PredictionWriter
from segdet.runs.record import Cost, Record
from segdet.util import write_guard
from segdet.util.errors import UserError
from segdet.util.files import open_to_append, write_atomically, write_text


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
    (tmp_path / "config.yaml").write_text("")
    with owned_by_another(tmp_path) as pid:
        for _ in range(2):
            with pytest.raises(
                OwnedError, match=f"process {pid} on {socket.gethostname()} is writing to this run"
            ):
                Ownership(tmp_path)
        os.kill(pid, signal.SIGSTOP)  # a process that is stopped may continue
        with pytest.raises(OwnedError, match=str(pid)):
            Ownership(tmp_path)
        owner = owner_of(tmp_path)
        assert owner is not None
        assert (owner.number, owner.host, owner.pid, owner.alive) == (1, socket.gethostname(), pid, True)
    owner = owner_of(tmp_path)  # the killed process could not give it up
    assert owner is not None
    assert (owner.pid, owner.alive) == (pid, False)
    own = Ownership(tmp_path)
    assert own.fence.number == 2
    own.release()
    own.release()
    assert owner_of(tmp_path) is None
    assert [path.name for path in (tmp_path / OWNER).iterdir()] == ["00000002.json"]
    assert Ownership(tmp_path).fence.number == 3  # a number is never used again


def test_an_unused_folder_is_empty_after_the_release(tmp_path: Path) -> None:
    Ownership(tmp_path).release()
    assert list(tmp_path.iterdir()) == []
    assert owner_of(tmp_path) is None


def set_claim(folder: Path, seconds: float, **changes: Any) -> None:
    """Write the claim of another owner, with the last renewal ``seconds`` ago."""
    claim = replace(
        Claim.of_this_process(), **{"host": "elsewhere", "pid": 1, "machine": "m", "started": "5"} | changes
    )
    (folder / OWNER).mkdir(exist_ok=True)
    path = folder / OWNER / "00000007.json"
    path.write_text(json.dumps(asdict(claim)))
    past = time.time() - seconds
    os.utime(path, (past, past))


def test_an_owner_on_another_machine_keeps_the_folder_while_it_renews_its_claim(tmp_path: Path) -> None:
    set_claim(tmp_path, LEASE / 2)
    with pytest.raises(OwnedError, match=r"process 1 on elsewhere is .*\(if it was killed, wait 120 s\)"):
        Ownership(tmp_path)
    set_claim(tmp_path, 2 * LEASE)
    own = Ownership(tmp_path)
    assert own.fence.number == 8
    own.release()


@pytest.mark.parametrize(
    ("changes", "alive"),
    [
        ({"pid": os.getpid(), "started": "5"}, False),  # another process has this id now
        ({"pid": os.getppid(), "started": _start_of(os.getppid())}, True),
        (
            {"machine": "restarted", "pid": os.getpid(), "started": "5"},
            True,
        ),  # or another machine of the same name
    ],
)
def test_the_end_of_an_owner_on_this_machine(changes: dict[str, Any], alive: bool, tmp_path: Path) -> None:
    here = Claim.of_this_process()
    set_claim(tmp_path, 0, **{"host": here.host, "machine": here.machine} | changes)
    owner = owner_of(tmp_path)
    assert owner is not None
    assert owner.alive is alive


def test_the_clock_of_this_machine_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_claim(tmp_path, 0)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 10 * LEASE)
    with pytest.raises(OwnedError):
        Ownership(tmp_path)


def test_a_claim_that_is_not_written_yet(tmp_path: Path) -> None:
    (tmp_path / OWNER).mkdir()
    path = tmp_path / OWNER / "00000001.json"
    path.touch()
    with pytest.raises(OwnedError, match="another process is writing"):
        Ownership(tmp_path)
    os.utime(path, (0, 0))  # its process was killed
    Ownership(tmp_path).release()


def test_the_owner_renews_its_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "RENEWAL", 0.01)
    own = Ownership(tmp_path)
    path = tmp_path / OWNER / "00000001.json"
    os.utime(path, (0, 0))
    end = time.monotonic() + 30
    while path.stat().st_mtime == 0 and time.monotonic() < end:
        time.sleep(0.01)
    assert path.stat().st_mtime > 0
    own.release()


@pytest.mark.parametrize(
    ("variables", "earlier", "others"),
    [
        (
            {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2", "TORCHELASTIC_RUN_ID": "r"},
            {"job": "7", "restarts": 1, "torchrun_restarts": 3},
            [{"job": "8", "restarts": 1}, {"job": "7", "restarts": 2}, {"job": "7", "restarts": 3}],
        ),
        (
            {"TORCHELASTIC_RUN_ID": "r", "TORCHELASTIC_RESTART_COUNT": "1"},
            {"torchrun": "r", "torchrun_restarts": 0},
            [{"torchrun": "s", "torchrun_restarts": 0}, {"torchrun": None, "torchrun_restarts": 0}],
        ),
    ],
)
def test_a_job_that_a_launcher_restarts_takes_its_folder_over_at_once(
    variables: dict[str, str],
    earlier: dict[str, Any],
    others: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for other in others:
        set_claim(tmp_path, 0, **other)
        with pytest.raises(OwnedError):
            Ownership(tmp_path)
    set_claim(tmp_path, 0, **earlier)
    Ownership(tmp_path).release()


def test_an_earlier_part_of_a_restarted_job_gets_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    set_claim(tmp_path, 2 * LEASE, job="7", restarts=1, released=True)
    with pytest.raises(OwnedError, match="of a later start of the same job"):
        Ownership(tmp_path)


@pytest.mark.parametrize(
    ("seconds", "released", "free"), [(0, True, True), (2 * LEASE, False, True), (0, False, False)]
)
def test_a_torchrun_job_that_was_restarted_can_be_launched_again_under_its_id(
    seconds: float, released: bool, free: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "r")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    set_claim(tmp_path, seconds, torchrun="r", torchrun_restarts=3, released=released)
    if free:
        Ownership(tmp_path).release()
    else:
        with pytest.raises(OwnedError, match="of a later start of the same job"):
            Ownership(tmp_path)


RACE = """
import sys, time
from pathlib import Path
from segdet.runs import ownership
from segdet.runs.ownership import OwnedError, Ownership

folder = Path(sys.argv[1])
for number in range(60):
    place = folder / str(number)
    while not (folder / f"start{number}").exists():
        pass
    try:
        own = Ownership(place)
    except OwnedError:
        print("-", flush=True)
        continue
    (place / f"{own.fence.number}-{sys.argv[2]}").touch()
    print(own.fence.number, flush=True)
"""


def test_processes_that_claim_at_the_same_moment_get_different_numbers(tmp_path: Path) -> None:
    """Without locks: in each of 60 rounds, exactly one of three processes gets the folder."""
    for number in range(60):
        (tmp_path / str(number)).mkdir()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(tmp_path), str(index)], stdout=subprocess.PIPE, text=True
        )
        for index in range(3)
    ]
    for number in range(60):
        (tmp_path / f"start{number}").touch()
        lines = [process.stdout.readline().strip() for process in processes if process.stdout is not None]
        assert sorted(lines) == ["-", "-", "1"], lines
    for process in processes:
        assert process.wait(60) == 0
        assert process.stdout is not None
        process.stdout.close()


def test_a_number_that_was_used_during_a_pause_is_not_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process pauses between the listing and its claim, and three other owners come and go."""
    (tmp_path / "config.yaml").write_text("")
    real, pauses = ownership._check_free, [True]

    def paused(*arguments: Any) -> bool:
        free = real(*arguments)
        if pauses.pop() if pauses else False:
            for _ in range(3):
                Ownership(tmp_path).release()
        return free

    Ownership(tmp_path).release()
    monkeypatch.setattr(ownership, "_check_free", paused)
    own = Ownership(tmp_path)
    assert own.fence.number == 5
    own.fence.check()
    assert [path.name for path in (tmp_path / OWNER).glob("*.json")] == ["00000005.json"]
    own.release()


def taken_over(folder: Path) -> Ownership:
    """Claim a folder that this process owns, as another process would after the end of the lease."""
    guards = dict(write_guard._GUARDS)
    later = Ownership(folder)
    write_guard._GUARDS.update(guards)  # the writes of this test are those of the earlier owner
    return later


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and OWNER not in path.parts
    }


def test_an_outdated_process_cannot_write_into_the_run(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    last = tmp_path / "checkpoints" / "last.ckpt"
    io, metrics = AtomicCheckpointIO(), MetricsFile(tmp_path)
    first = Ownership(tmp_path)
    io.save_checkpoint({"step": 1}, last)
    metrics.log_metrics({"a": 1.0}, 1)
    later = taken_over(tmp_path)
    before = files_of(tmp_path)
    record = Record("r", "segmentation", "FCN", "S", 0, "finished", {}, Cost())
    writes: list[Callable[[], Any]] = [
        lambda: io.save_checkpoint({"step": 2}, last),
        lambda: io.remove_checkpoint(last),
        lambda: metrics.log_metrics({"a": 2.0}, 2),
        lambda: metrics.log_metrics({"b": 2.0}, 2),
        lambda: record.write(tmp_path / "result.json"),
        lambda: PredictionWriter(tmp_path / "predictions").on_predict_batch_end(*[None] * 5),  # type: ignore[arg-type]
        lambda: RunWandbLogger(save_dir=str(tmp_path), offline=True).experiment,
    ]
    for write in writes:
        with pytest.raises(OutdatedError, match=f"process {os.getpid()} on .* has taken over this run"):
            write()
    assert files_of(tmp_path) == before
    first.release()
    assert owner_of(tmp_path) is not None  # the release of an outdated process changes nothing
    later.release()


def test_a_write_that_was_checked_before_the_takeover_has_no_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is paused between the check and the rename, or between the check and the new row."""
    last = tmp_path / "last.ckpt"
    write_text(last, "first")
    (tmp_path / "metrics.csv").write_text("step\n")
    first = Ownership(tmp_path)
    monkeypatch.setattr(first.fence, "check", lambda: None)  # all checks came before the takeover
    later: list[Ownership] = []
    with pytest.raises(UserError, match="cannot be written"), write_atomically(last) as temporary:
        temporary.write_text("outdated")
        later.append(taken_over(tmp_path))
    with pytest.raises(UserError, match="cannot be written"):
        write_text(tmp_path / "result.json", "outdated")
    with open_to_append(tmp_path / "metrics.csv") as stream:
        later.append(taken_over(tmp_path))
        stream.write("outdated\n")
    assert files_of(tmp_path) == {"last.ckpt": b"first", "metrics.csv": b"step\n"}
    for each in (first, *later):
        each.release()


def test_a_run_with_its_checkpoints_on_another_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename is not possible between file systems, so the temporary file is beside the checkpoint."""
    if Path("/dev/shm").stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is not another file system")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as disk:
        (tmp_path / "checkpoints").symlink_to(disk)
        first = Ownership(tmp_path)
        write_text(tmp_path / "checkpoints" / "last.ckpt", "first")
        later = taken_over(tmp_path)
        with pytest.raises(OutdatedError):
            write_text(tmp_path / "checkpoints" / "last.ckpt", "outdated")
        assert files_of(Path(disk)) == {"last.ckpt": b"first"}
        first.release()
        later.release()


def test_a_forked_process_is_not_the_owner(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    own = Ownership(tmp_path)

    def release() -> None:
        write_text(tmp_path / "worker.txt", "a worker writes under the number of its parent")
        own.release()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about fork in a process with threads
        worker = multiprocessing.get_context("fork").Process(target=release)
        worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    owner = owner_of(tmp_path)
    assert owner is not None
    assert owner.alive
    assert (tmp_path / "worker.txt").exists()
    own.release()


def test_a_running_training_cannot_be_resumed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_of(run)
    with owned_by_another(run) as pid:
        assert main(["fit", f"--ckpt_path={run}", "--trainer.max_epochs=2"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"segdet: error: {run}: process {pid} on ")
        # A test has a folder of its own, unless the user gives the folder that is in use.
        assert main(["test", f"--ckpt_path={run}", "--wandb=false"]) == 0
        assert f"process {pid} on {socket.gethostname()} is writing to {run}" in capsys.readouterr().err
        assert files_of(run) == before
        (separate,) = run.parent.glob("run-test-*")
        assert json.loads((separate / "result.json").read_text())["metrics"]
    assert main(["fit", f"--ckpt_path={run}", "--trainer.max_epochs=2"]) == 0
    assert owner_of(run) is None


@pytest.mark.slow
def test_a_training_that_was_paused_for_longer_than_its_lease_ends_without_writing(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    training = Training(
        ["fit", *MODELS["segmentation"], *TINY, f"--data.root={shapes}", f"--run_dir={run}",
         "--trainer.max_epochs=1000", "--checkpoint_every_n_steps=1"],
        tmp_path / "log",
    )  # fmt: skip
    assert training.wait_for((run / "checkpoints" / "last.ckpt").exists), training.messages
    training.process.send_signal(signal.SIGSTOP)
    try:
        time.sleep(0.6)
        monkeypatch.setattr(ownership, "LEASE", 0.5)
        own = Ownership(run)
        before = files_of(run)
    finally:
        training.process.send_signal(signal.SIGCONT)
    status, seconds = training.end()
    assert status == 1, training.messages
    assert seconds < 30
    assert files_of(run) == before
    (line,) = [line for line in training.messages.splitlines() if "error" in line]
    assert line.startswith(f"segdet: error: {run}: process {os.getpid()} on ")
    assert "Traceback" not in training.messages
    assert own.fence.number == 2
    own.release()
