"""The number of cores follows the affinity of the process and its share."""

import os

import pytest

from segdet.data import VOCDataModule
from segdet.util.cores import SHARE, usable_cores
from segdet.util.errors import UserError


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no CPU affinity")
def test_affinity_and_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.delenv(SHARE, raising=False)
    assert usable_cores() == 6
    assert VOCDataModule("voc").num_workers == 5
    for share, left in (("4", 4), ("1", 1), ("16", 6), ("", 6)):
        monkeypatch.setenv(SHARE, share)
        assert usable_cores() == left
        assert VOCDataModule("voc").num_workers == left - 1


@pytest.mark.parametrize("share", ["0", "-1", "two", "1.5"])
def test_a_share_that_is_not_a_number_is_reported_in_one_line(
    share: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SHARE, share)
    with pytest.raises(UserError, match=f"SEGDET_CORES {share}: must be a whole number"):
        usable_cores()
