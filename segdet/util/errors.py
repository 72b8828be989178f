"""The errors that a user can mend: each is one line that names the thing, the fault and the remedy."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from segdet.util.suggest import closest


class UserError(Exception):
    """A mistake in what the user gave: shown as its one line, without a traceback, exit status 2."""


class BadSample(UserError):
    """A file of a dataset that cannot be used as it is.

    Args:
        path: The file at fault.
        fault: What is wrong with it, without a final full stop.
        remedy: What to do about it.
    """

    def __init__(self, path: Path | str, fault: str, remedy: str = "mend or remove the file") -> None:
        super().__init__(f"{path}: {fault}; {remedy}")
        self.path = Path(path)
        self.fault = fault
        self.remedy = remedy

    def or_skip(self) -> "BadSample":
        """The same error, which says too how a run does without such samples."""
        remedy = f"{self.remedy}, or run without such samples: --data.on_bad_sample skip"
        return BadSample(self.path, self.fault, remedy)

    def __reduce__(self) -> tuple[type, tuple[Path, str, str]]:
        # A worker process sends the error to its parent by pickling, which replays __init__.
        return type(self), (self.path, self.fault, self.remedy)


class MissingFile(BadSample):
    """A file of a dataset that does not exist."""


def check_choice(option: str, value: object, choices: Any) -> None:
    """Refuses what is none of an option's choices; the command line does so by itself, a call in Python does not.

    Args:
        option: As it is to be named, such as ``--model.mode``.
        value: What was given.
        choices: The ``Literal`` of the option's type, or the choices themselves.

    Raises:
        UserError: If ``value`` is not among them.
    """
    known: Iterable[Any] = get_args(choices) or choices
    if value in known:
        return
    named = [str(choice) for choice in known]
    near = closest(value, named) if isinstance(value, str) else None
    remedy = f"; did you mean {near}?" if near else ""
    raise UserError(f"{option} {value}: is none of {', '.join(named)}{remedy}")
