"""Conversion of constructor arguments to types that a checkpoint can contain."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import pytest
import torch

from segdet.util.saved_arguments import plain, plain_arguments


@dataclass
class Options:
    rate: float = 0.5


class Kind(StrEnum):
    MAX = "max"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float64(0.5), 0.5),
        (np.float32(0.5), 0.5),
        (np.str_("a"), "a"),
        (Kind.MAX, "max"),
        (True, True),
        (np.bool_(True), True),
        ((np.float32(0.5), np.int64(2)), (0.5, 2)),
        (np.array([1.0, 2.0]), [1.0, 2.0]),
        (torch.tensor([1, 2]), [1, 2]),
        (Path("a/b"), "a/b"),
        ({"a": Options()}, {"a": {"rate": 0.5}}),
        (None, None),
    ],
)
def test_values_become_exactly_plain_types(value: object, expected: object) -> None:
    found = plain(value)
    assert found == expected
    assert type(found) is type(expected)
    if isinstance(found, tuple):
        assert [type(part) for part in found] == [float, int]


def test_other_types_are_left_out() -> None:
    assert plain_arguments({"width": 3, "hook": print}) == {"width": 3}
