"""Digests of the content of files, kept in the cache so that each file is read once."""

import hashlib
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from segdet.util.cores import usable_cores
from segdet.util.disk_cache import key_of, load, save

KIND = "file_digests"
"""The kind of the cache entries."""

SETTLED_NS = 2_000_000_000
"""The minimum time since a file's last change for its digest to be cached, in nanoseconds.

File systems store times in steps of up to two seconds. A younger file may change again within the same step.
"""

Status = tuple[int, int, int, int]
"""Size, modification time, time of the last change of the file's status, and inode.

Programs can set the modification time, but not the time of the last change of the status.
"""


def file_digests(files: Iterable[Path], delay: float = 2.0) -> dict[Path, str | None]:
    """Return the digest of each file's content: BLAKE2b, 16 hexadecimal digits; None for a missing file.

    Unchanged files are not read again. The cache entry is identified by the common folder of ``files``.

    Args:
        files: The files.
        delay: Seconds before a progress bar appears.
    """
    paths = list(dict.fromkeys(files))
    if not paths:
        return {}
    folder = os.path.commonpath([path.absolute().parent for path in paths])
    key = key_of(folder)
    known = _read(key)
    digests: dict[Path, str | None] = {}
    pending: list[tuple[Path, Status]] = []
    for path in paths:
        status = _status(path)
        before = known.get(str(path.absolute()))
        if status is None:
            digests[path] = None
        elif before is not None and before[0] == status:
            digests[path] = before[1]
        else:
            pending.append((path, status))
    if pending:
        newest = time.time_ns() - SETTLED_NS
        with ThreadPoolExecutor(min(16, usable_cores())) as pool:
            results = pool.map(_digest, (path for path, _ in pending))
            for (path, status), digest in zip(
                pending,
                tqdm(results, "reading files", len(pending), unit=" files", delay=delay, leave=False),
                strict=True,
            ):
                digests[path] = digest
                if digest is not None and max(status[1:3]) < newest and _status(path) == status:
                    known[str(path.absolute())] = (status, digest)
        _write(key, known)
    return {path: digests[path] for path in paths}


def _status(path: Path) -> Status | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _digest(path: Path) -> str | None:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
    except OSError:
        return None


def _read(key: str) -> dict[str, tuple[Status, str]]:
    entry = load(KIND, key)
    if entry is None or not {"names", "status", "digests"} <= entry.keys():
        return {}
    names = entry["names"].tobytes().decode("utf-8", "surrogateescape").split("\0")
    rows = zip(names, entry["status"].tolist(), entry["digests"].tolist(), strict=True)
    return {name: (tuple(status), f"{digest:016x}") for name, status, digest in rows}


def _write(key: str, known: dict[str, tuple[Status, str]]) -> None:
    if not known:
        return
    names = "\0".join(known).encode("utf-8", "surrogateescape")
    status = np.array([status for status, _ in known.values()], np.int64)
    digests = np.array([int(digest, 16) for _, digest in known.values()], np.uint64)
    save(KIND, key, {"names": np.frombuffer(names, np.uint8), "status": status, "digests": digests})
