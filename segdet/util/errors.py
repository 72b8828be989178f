"""Errors that a user can fix. Each is one line: what is wrong, where, and how to fix it."""

import signal
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, get_args

from segdet.util.suggest import closest

INTERRUPTED = 130
TERMINATED = 143
"""The exit statuses after SIGINT, and after another signal that stops a run, by the convention of shells."""


def status_of_signal(number: int | None) -> int:
    """Return the exit status of a command that a signal has stopped."""
    return INTERRUPTED if number == signal.SIGINT else TERMINATED


class UserError(Exception):
    """A mistake of the user. The command prints the one-line message without a traceback.

    Attributes:
        status: The exit status of the command: 2 for a mistake, the same as in argparse.
    """

    status = 2


class BadSample(UserError):
    """A file of a dataset that cannot be used.

    Args:
        path: The file.
        fault: Description of the fault, without a final full stop.
        remedy: How to fix it.
    """

    def __init__(self, path: Path | str, fault: str, remedy: str = "fix or remove the file") -> None:
        super().__init__(f"{path}: {fault}; {remedy}")
        self.path = Path(path)
        self.fault = fault
        self.remedy = remedy

    def or_skip(self) -> "BadSample":
        """Return the error with a hint at the option that skips such samples."""
        remedy = f"{self.remedy}, or run without such samples: --data.on_bad_sample skip"
        return BadSample(self.path, self.fault, remedy)

    def __reduce__(self) -> tuple[type, tuple[Path, str, str]]:
        # A data-loader worker pickles the error for its parent, and unpickling calls __init__.
        return type(self), (self.path, self.fault, self.remedy)


class MissingFile(BadSample):
    """A file of a dataset that does not exist."""


def check_choice(option: str, value: object, choices: Any) -> None:
    """Check that ``value`` is a valid choice of an option, in calls from Python; the command's parser checks it too.

    Args:
        option: The option's name for the message, such as ``--model.mode``.
        value: The value.
        choices: The ``Literal`` type of the option, or the choices themselves.

    Raises:
        UserError: If ``value`` is not a valid choice.
    """
    known: Iterable[Any] = get_args(choices) or choices
    if value in known:
        return
    named = [str(choice) for choice in known]
    near = closest(value, named) if isinstance(value, str) else None
    remedy = f"; did you mean {near}?" if near else ""
    raise UserError(f"{option} {value}: must be one of {', '.join(named)}{remedy}")


def check_range(
    option: str,
    value: float | Sequence[float],
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    whole: bool = False,
) -> None:
    """Check that a number, or each number of a list, is within bounds. NaN and an empty list are errors.

    Args:
        option: The option's name for the message, such as ``--model.width``.
        value: The number, or the numbers.
        least: The smallest valid number.
        above: The exclusive lower bound.
        most: The largest valid number.
        below: The exclusive upper bound.
        whole: Whether each number must be an integer. A boolean is not an integer.

    Raises:
        UserError: If a number is out of bounds, or there is none.
    """
    numbers: list[Any] = [value]
    several = isinstance(value, Sequence) and not isinstance(value, str)
    if isinstance(value, Sequence) and several:
        numbers = list(value)
    if not all(isinstance(number, Real) for number in numbers):
        raise UserError(f"{option} {value!r}: must be {'one or more numbers' if several else 'a number'}")
    if whole and not all(isinstance(number, Integral) and not isinstance(number, bool) for number in numbers):
        raise UserError(f"{option} {value!r}: must be {'whole numbers' if several else 'a whole number'}")
    valid = bool(numbers) and all(
        (least is None or number >= least)
        and (above is None or number > above)
        and (most is None or number <= most)
        and (below is None or number < below)
        for number in numbers
    )
    if not valid:
        words = {"at least": least, "above": above, "at most": most, "below": below}
        bounds = " and ".join(f"{word} {bound}" for word, bound in words.items() if bound is not None)
        shown = numbers if several else value
        raise UserError(
            f"{option} {shown}: must be {'one or more numbers, each ' if several else ''}{bounds}"
        )
