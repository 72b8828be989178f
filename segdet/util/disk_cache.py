"""Results that are dear to compute and the same again from the same files, kept on disk from run to run.

An entry is a few named arrays in one ``.npz`` file, found by a kind (what was computed) and a key (from
what: see `key_of` and `files_key`). Nothing there is precious: what is missing, torn or of another format is
computed again, and the whole folder may be removed at any time.
"""

import contextlib
import hashlib
import os
import stat
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import platformdirs

from segdet.util.errors import UserError
from segdet.util.files import write_atomically

VARIABLE = "SEGDET_CACHE"
"""The environment variable that names another folder."""

Arrays = dict[str, np.ndarray]


def cache_folder() -> Path:
    """``$SEGDET_CACHE``, or the platform's folder for caches of a user (``~/.cache/segdet`` on Linux)."""
    named = os.environ.get(VARIABLE)
    return Path(named).expanduser() if named else Path(platformdirs.user_cache_dir("segdet", appauthor=False))


def file_sizes(files: Iterable[Path]) -> int:
    """The bytes of those of ``files`` that are there; links and folders have none."""
    total = 0
    for file in files:
        with contextlib.suppress(OSError):
            status = file.lstat()
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def key_of(*parts: object) -> str:
    """A key of everything that a result depends on, each part by its ``repr``: 32 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        text = repr(part).encode()
        digest.update(f"{len(text)}:".encode() + text)
    return digest.hexdigest()[:32]


def files_key(paths: Iterable[Path], *parts: object) -> str:
    """A key of files, by their names, sizes and times of change, and of any other ``parts``.

    Folders do not count, so that data copied with their times to a faster disk need no second count.
    """
    seen: dict[Path, tuple[str, int, int]] = {}
    for path in paths:
        if path not in seen:
            try:
                status = path.stat()
            except OSError:
                seen[path] = (path.name, -1, -1)
            else:
                seen[path] = (path.name, status.st_size, status.st_mtime_ns)
    return key_of(list(seen.values()), *parts)


def path_of(kind: str, key: str) -> Path:
    """Where an entry lies, if it is there."""
    # A folder with an entry for every image of COCO would be slow to list.
    return cache_folder() / kind / key[:2] / f"{key}.npz"


def load(kind: str, key: str) -> Arrays | None:
    """The arrays of an entry; None where it is missing, torn or no entry at all."""
    try:
        # NumPy leaves a file open that it opened itself and found torn.
        with path_of(kind, key).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, TypeError, zipfile.BadZipFile):
        return None


def save(kind: str, key: str, arrays: Mapping[str, np.ndarray]) -> bool:
    """Writes an entry whole or not at all; what stands there is replaced.

    Returns:
        False where the folder cannot be written, which is told on stderr: a cache saves time, no more.
    """
    fix = f"{kind} will be computed again next time; name another folder in {VARIABLE}"
    try:
        with (
            write_atomically(path_of(kind, key), fix, parents=True, sync=False) as temporary,
            temporary.open("xb") as file,
        ):
            np.savez(file, **arrays)  # type: ignore[arg-type]
    except UserError as error:
        sys.stderr.write(f"segdet: {error}\n")
        return False
    return True


def cached(kind: str, key: str, compute: Callable[[], Arrays]) -> Arrays:
    """The arrays of an entry, computed and written if it is not there.

    Args:
        kind: What is computed; a folder's name.
        key: From what: see `key_of` and `files_key`.
        compute: Is called where there is no whole entry.
    """
    found = load(kind, key)
    if found is None:
        found = compute()
        save(kind, key, found)
    return found
