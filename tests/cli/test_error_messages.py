"""Exceptions become messages of one line. The tests use the libraries' real exceptions where possible."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from two_processes import other_process, process_of_two

from segdet.cli.error_messages import (
    claims_report,
    find_user_error,
    is_lost_peer,
    memory_advice,
    restore_advice,
    status_of_peer,
)
from segdet.cli.main import main
from segdet.util.errors import BadSample, UserError


class Failing(Dataset[int]):
    """One sample, which cannot be read."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        if self.error is not None:
            raise self.error
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory is exhausted
        return 0


class TestFindUserError:
    def test_direct_caused_and_unrelated(self) -> None:
        assert find_user_error(UserError("a: b; c")) == "a: b; c"
        try:
            try:
                raise BadSample("x.jpg", "is corrupt")
            except UserError as error:
                raise RuntimeError("step failed") from error
        except RuntimeError as outer:
            assert find_user_error(outer) == "x.jpg: is corrupt; fix or remove the file"
        assert find_user_error(RuntimeError("a bug")) is None

    @pytest.mark.parametrize(
        "error", [BadSample("x.jpg", "is corrupt", "remove it"), UserError("x.jpg: is corrupt; remove it")]
    )
    def test_from_a_worker_process(self, error: UserError) -> None:
        with pytest.raises((UserError, RuntimeError)) as caught:
            next(iter(DataLoader(Failing(error), num_workers=1)))
        assert "Traceback" in str(caught.value)
        assert find_user_error(caught.value) == "x.jpg: is corrupt; remove it"

    def test_a_bug_in_a_worker_process_keeps_its_traceback(self) -> None:
        with pytest.raises(ZeroDivisionError) as caught:
            next(iter(DataLoader(Failing(ZeroDivisionError("a bug")), num_workers=1)))
        assert find_user_error(caught.value) is None


class TestMemory:
    data = SimpleNamespace(batch_size=64, eval_batch_size=32, num_workers=6)

    def test_of_the_device(self) -> None:
        device = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 1 GiB.")
        outer = RuntimeError("while it was compiled")
        outer.__cause__ = device
        for error in (device, outer):
            advice = memory_advice(error, self.data) or ""
            assert advice.startswith("the device's memory is too small (CUDA out of memory.")
            assert "\n" not in advice
            assert "give a smaller --data.batch_size (now 64), --data.eval_batch_size (now 32)" in advice

    def test_of_the_machine(self) -> None:
        with pytest.raises(RuntimeError) as caught:
            torch.empty(1 << 60, dtype=torch.uint8)
        assert "the machine's memory" in (memory_advice(caught.value, self.data) or "")

    def test_of_a_worker(self) -> None:
        with pytest.raises(RuntimeError) as caught:
            next(iter(DataLoader(Failing(), num_workers=1)))
        advice = memory_advice(caught.value, self.data) or ""
        assert advice.startswith("--data.num_workers 6: a data-loader worker ran out of memory")

    def test_shared_memory(self) -> None:
        killed = RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")
        killed.__cause__ = RuntimeError(
            "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are "
            "out of shared memory. Please try to raise your shared memory limit."
        )
        assert "/dev/shm" in (memory_advice(killed, self.data) or "")

    def test_other_errors(self) -> None:
        assert memory_advice(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), self.data) is None


def test_restore_advice_is_given_only_before_the_restoration_is_complete() -> None:
    checkpoint = Path("run/last.ckpt")
    with pytest.raises(RuntimeError, match="size mismatch") as caught:
        torch.nn.Linear(2, 1).load_state_dict(torch.nn.Linear(3, 1).state_dict())
    error = caught.value
    advice: Any = restore_advice(error, checkpoint, False, "fit")
    assert advice.startswith(
        "run/last.ckpt: the training cannot be resumed from it with these settings (Error(s)"
    )
    assert restore_advice(error, checkpoint, False, "test").startswith(  # type: ignore[union-attr]
        "run/last.ckpt: does not fit the model with these settings (Error(s)"
    )
    assert restore_advice(ValueError("a bug"), checkpoint, False, "test") is None
    assert restore_advice(RuntimeError("Connection closed by peer"), checkpoint, False, "fit") is None
    assert restore_advice(error, checkpoint, True, "fit") is None
    assert restore_advice(error, None, False, "fit") is None
    assert restore_advice(ZeroDivisionError(), checkpoint, False, "fit") is None


def _leave(folder: Path) -> None:
    with process_of_two(1, folder, seconds=60):
        torch.distributed.all_reduce(torch.ones(1))
        os._exit(0)


def test_the_end_of_the_other_process_is_recognized(tmp_path: Path) -> None:
    with (
        other_process(_leave, tmp_path, 60),
        pytest.raises(RuntimeError) as caught,
        process_of_two(0, tmp_path, 60),
    ):
        torch.distributed.all_reduce(torch.ones(1))
        torch.distributed.all_reduce(torch.ones(1))
    assert is_lost_peer(caught.value)


@pytest.mark.parametrize(
    ("error", "processes", "lost"),
    [
        (RuntimeError("[gloo/pair.cc:553] Connection closed by peer [10.7.0.2]:5"), "2", True),
        (RuntimeError("Timed out waiting 1800000ms for recv operation to complete"), "2", True),
        (torch.distributed.DistNetworkError("client socket has failed"), "2", True),
        (RuntimeError("Connection closed by peer"), "1", False),
        (ConnectionResetError("Connection reset by peer"), "2", False),  # a server outside of the run
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "2", False),
    ],
)
def test_a_lost_process_is_one_line_with_status_1(
    error: Exception,
    processes: str,
    lost: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WORLD_SIZE", processes)
    monkeypatch.setattr("segdet.cli.error_messages.PEER_TIMEOUT", 0.0)

    def fail(argv: Sequence[str]) -> int:
        raise error

    monkeypatch.setattr("segdet.cli.main._dispatch", fail)
    if not lost:
        with pytest.raises(type(error)):
            main([])
        return
    assert main([]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("segdet: error: another process of the run has ended or does not respond (")
    assert line.endswith("start the command again (for a training, with --resume auto)")


class TestReportedByPeer:
    @pytest.fixture
    def report(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The file with the error that one process of a run has reported."""
        monkeypatch.setenv("SEGDET_RUN_DIR", str(tmp_path))
        monkeypatch.setattr("segdet.cli.error_messages.PEER_TIMEOUT", 0.0)
        return tmp_path / "error.txt"

    @pytest.mark.parametrize("status", [1, 2])
    def test_a_lost_peer_that_has_reported(
        self, report: Path, status: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LOCAL_RANK", "0")
        lost, bug = RuntimeError("[gloo] Connection closed by peer [127.0.0.1]"), RuntimeError("a bug")
        assert status_of_peer(lost) is None
        assert claims_report("x.jpg: is corrupt; fix it", status)
        assert not claims_report("a later message", 3 - status)
        assert status_of_peer(lost) == status
        assert status_of_peer(bug) is None
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert status_of_peer(bug) == status

    def test_a_single_process_has_no_peer(self, report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("LOCAL_RANK", "RANK", "SLURM_PROCID"):
            monkeypatch.delenv(name, raising=False)
        report.write_text("of an earlier run\n")
        assert status_of_peer(RuntimeError("Connection closed by peer")) is None
