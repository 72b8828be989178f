"""Guards of folders: a process may write into a guarded folder only while the folder's guard permits it.

`segdet.runs.ownership` guards the folder of a run. `segdet.util.files` asks the guard before every write.
"""

import os
from pathlib import Path
from typing import Protocol


class Guard(Protocol):
    """The permission of this process to write into a folder.

    Attributes:
        staging: The folder for temporary files. It disappears when the permission ends, so that a file in it cannot be
            renamed to its final path any more.
    """

    staging: Path

    def check(self) -> None:
        """Raise an exception if this process must not write into the folder any more."""


_GUARDS: dict[Path, Guard] = {}


def guard_folder(folder: Path, guard: Guard) -> None:
    """Let ``guard`` decide about writes into ``folder``."""
    for path in _names(folder):
        _GUARDS[path] = guard


def remove_guard(guard: Guard) -> None:
    """Permit all writes into the folder of ``guard``."""
    for path in [path for path, known in _GUARDS.items() if known is guard]:
        del _GUARDS[path]


def guard_of(path: Path) -> Guard | None:
    """Return the guard of the innermost guarded folder that contains ``path``, or None."""
    if not _GUARDS:
        return None
    for name in _names(path):
        for parent in (name, *name.parents):
            if parent in _GUARDS:
                return _GUARDS[parent]
    return None


def check_writable(path: Path) -> None:
    """Raise an exception if the guard of the folder that contains ``path`` does not permit writes."""
    guard = guard_of(path)
    if guard is not None:
        guard.check()


def _names(path: Path) -> tuple[Path, ...]:
    """Return the absolute path as given and with all links resolved, because a run may link to another disk."""
    return Path(os.path.abspath(path)), path.resolve()  # noqa: PTH100  Path.absolute keeps ".."
