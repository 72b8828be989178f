"""Signals to data-loader workers."""

import os
import signal

from torch.utils.data import Dataset

from segdet.data.worker_signals import StopSafeLoader, leave_signals_to_parent


class Numbers(Dataset[int]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        return index


def send_sigterm_then_leave_signals(_: int) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    leave_signals_to_parent()


def test_a_signal_to_a_starting_worker_does_not_end_it() -> None:
    loader = StopSafeLoader(Numbers(), num_workers=1, worker_init_fn=send_sigterm_then_leave_signals)
    assert [int(each) for each in loader] == [0, 1, 2, 3]


def test_the_parent_receives_signals_after_the_workers_have_started() -> None:
    received: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        iterator = iter(
            StopSafeLoader(Numbers(), num_workers=1, worker_init_fn=send_sigterm_then_leave_signals)
        )
        os.kill(os.getpid(), signal.SIGTERM)
        assert received == [signal.SIGTERM]
        assert len(list(iterator)) == 4
    finally:
        signal.signal(signal.SIGTERM, previous)
