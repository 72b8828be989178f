"""A cache on disk for results that are expensive to compute and depend only on files and settings.

An entry consists of named arrays in one ``.npz`` file. Its kind describes the result, and its key identifies the files
and settings from which the result was computed (see `key_of` and `files_key`). Missing and corrupt entries are computed
again, so the folder may be deleted at any time.
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
"""The environment variable that sets the cache folder."""

Arrays = dict[str, np.ndarray]


def cache_folder() -> Path:
    """Return ``$SEGDET_CACHE``, or the user's cache folder (``~/.cache/segdet`` on Linux)."""
    named = os.environ.get(VARIABLE)
    return Path(named).expanduser() if named else Path(platformdirs.user_cache_dir("segdet", appauthor=False))


def total_size(files: Iterable[Path]) -> int:
    """Return the total size of the regular ``files`` that exist, in bytes."""
    total = 0
    for file in files:
        with contextlib.suppress(OSError):
            status = file.lstat()
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def key_of(*parts: object) -> str:
    """Return a key for all inputs of a result, computed from the ``repr`` of each part: 32 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        text = repr(part).encode()
        digest.update(f"{len(text)}:".encode() + text)
    return digest.hexdigest()[:32]


def files_key(paths: Iterable[Path], *parts: object) -> str:
    """Return a key for files (their names, sizes and modification times) and other ``parts``.

    The key does not include folders. It stays the same if the data are copied to a faster disk with their modification
    times.
    """
    seen: list[tuple[str, int, int]] = []
    for path in dict.fromkeys(paths):
        try:
            status = path.stat()
            seen.append((path.name, status.st_size, status.st_mtime_ns))
        except OSError:
            seen.append((path.name, -1, -1))
    return key_of(seen, *parts)


def path_of(kind: str, key: str) -> Path:
    """Return the file of an entry."""
    # Use subfolders, because one folder with an entry per image of COCO would be slow to list.
    return cache_folder() / kind / key[:2] / f"{key}.npz"


def load(kind: str, key: str) -> Arrays | None:
    """Return the arrays of an entry; None if it is missing or corrupt."""
    try:
        # Open the file here, because NumPy does not close a corrupt file that it has opened.
        with path_of(kind, key).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, TypeError, zipfile.BadZipFile):
        return None


def save(kind: str, key: str, arrays: Mapping[str, np.ndarray]) -> bool:
    """Write an entry atomically, replacing an existing one.

    Returns:
        False if the folder cannot be written; a warning is printed to stderr.
    """
    fix = f"{kind} will be computed again next time; set {VARIABLE} to another folder"
    try:
        with (
            write_atomically(path_of(kind, key), fix, parents=True, sync=False) as temporary,
            temporary.open("wb") as file,
        ):
            np.savez(file, **arrays)  # type: ignore[arg-type]
    except UserError as error:
        sys.stderr.write(f"segdet: {error}\n")
        return False
    return True


def cached(kind: str, key: str, compute: Callable[[], Arrays]) -> Arrays:
    """Return the arrays of an entry; call ``compute`` and save the result if it is missing or corrupt."""
    found = load(kind, key)
    if found is None:
        found = compute()
        save(kind, key, found)
    return found
