"""The errors that a user can mend: each is one line that names the thing, the fault and the remedy."""

from pathlib import Path


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

    def __reduce__(self) -> tuple[type, tuple[Path, str, str]]:
        # A worker process sends the error to its parent by pickling, which replays __init__.
        return type(self), (self.path, self.fault, self.remedy)
