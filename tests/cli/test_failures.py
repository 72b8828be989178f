"""Exceptions become one line, tested with the libraries' real messages."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from segdet.cli.failures import find_user_error, is_reported_by_peer, memory_advice
from segdet.util.errors import BadSample, UserError


class TestFindUserError:
    def test_direct_caused_and_unrelated(self) -> None:
        assert find_user_error(UserError("a: b; c")) == "a: b; c"
        try:
            try:
                raise BadSample("x.jpg", "is torn")
            except UserError as error:
                raise RuntimeError("step failed") from error
        except RuntimeError as outer:
            assert find_user_error(outer) == "x.jpg: is torn; fix or remove the file"
        assert find_user_error(RuntimeError("a bug")) is None

    @pytest.mark.parametrize(
        "error", [BadSample("x.jpg", "is torn", "remove it"), UserError("x.jpg: is torn; remove it")]
    )
    def test_from_a_worker_process(self, error: UserError) -> None:
        class Torn(torch.utils.data.Dataset):
            def __len__(self) -> int:
                return 1

            def __getitem__(self, index: int) -> int:
                raise error

        with pytest.raises((UserError, RuntimeError)) as caught:
            next(iter(torch.utils.data.DataLoader(Torn(), num_workers=1)))
        assert "Traceback" in str(caught.value)
        assert find_user_error(caught.value) == "x.jpg: is torn; remove it"


class TestToldByAnother:
    @pytest.fixture
    def told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("SEGDET_RUN_DIR", str(tmp_path))
        monkeypatch.setattr("segdet.cli.failures.PEER_TIMEOUT", 0.0)
        return tmp_path / "error.txt"

    def test_a_lost_peer_is_no_news_once_it_has_spoken(
        self, told: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LOCAL_RANK", "0")
        lost, bug = RuntimeError("[gloo] Connection closed by peer [127.0.0.1]"), RuntimeError("a bug")
        assert not is_reported_by_peer(lost)
        told.write_text("x.jpg: is torn; mend it\n")
        assert is_reported_by_peer(lost)
        assert not is_reported_by_peer(bug)
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert is_reported_by_peer(bug)

    def test_a_process_alone_has_no_peer(self, told: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("LOCAL_RANK", "RANK", "SLURM_PROCID"):
            monkeypatch.delenv(name, raising=False)
        told.write_text("of an earlier run\n")
        assert not is_reported_by_peer(RuntimeError("Connection closed by peer"))


def test_too_little_memory_is_one_line() -> None:
    data = SimpleNamespace(batch_size=64, eval_batch_size=32, num_workers=6)
    device = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 1 GiB.")
    outer = RuntimeError("while it was compiled")
    outer.__cause__ = device
    for error in (device, outer):
        said = memory_advice(error, data) or ""
        assert said.startswith("the device's memory is too small (CUDA out of memory.") and "\n" not in said
        assert "give a smaller --data.batch_size (now 64), --data.eval_batch_size (now 32)" in said
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert "the machine's memory" in (memory_advice(caught.value, data) or "")
    killed = RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")
    killed.__cause__ = RuntimeError(
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out "
        "of shared memory. Please try to raise your shared memory limit."
    )
    said = memory_advice(killed, data) or ""
    assert (
        said.startswith("--data.num_workers 6: a data-loader worker ran out of memory") and "/dev/shm" in said
    )
    assert memory_advice(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), data) is None
