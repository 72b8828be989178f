"""Atomic writes: a file is always either missing, or complete in its earlier or its new version.

A process that is killed while it writes leaves a temporary file. The next process that writes into the folder removes
it. A writer holds a lock on its temporary file, so the files of running writers are kept. Locks of other machines may
be invisible on a network file system. Their files are removed when they have not changed for `STALE_SECONDS`.

Writes into a guarded folder (`segdet.util.write_guard`) fail after its guard has ended the permission, also if this
happens between the check and the rename: the temporary file is then in a folder that does not exist any more.
"""

import contextlib
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TextIO

from segdet.util.errors import UserError
from segdet.util.write_guard import Guard, check_writable, guard_of

FIX = "free disk space or make the folder writable"
"""The default advice for a file that cannot be written."""

STALE_SECONDS = 24 * 3600.0
"""The age at which temporary files of other machines are removed."""


@contextlib.contextmanager
def write_atomically(
    path: Path, fix: str = FIX, *, parents: bool = False, sync: bool = True
) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` when the block ends without an exception.

    The temporary name is unique, so several processes and machines may write the same file at once: the last
    rename takes effect. After an exception ``path`` is unchanged and the temporary file is removed.

    A device or pipe such as ``/dev/null`` or ``/dev/stdout`` is not replaced; the content is written to it at the end.

    Args:
        path: The file to write.
        fix: The advice that ends the error message.
        parents: Whether to create missing parent folders.
        sync: Whether to flush the content to disk before the rename, so that it survives a power failure. Pass
            False for many small files that can be computed again.

    Raises:
        UserError: If the block or the rename raises an `OSError`, or the guard of the folder does not permit the write.
    """
    if _is_stream(path):
        with tempfile.TemporaryDirectory() as folder:
            content = Path(folder) / path.name
            yield content
            with open_to_append(path) as stream:
                stream.buffer.write(content.read_bytes())
        return
    guard = guard_of(path)
    temporary = _hidden_beside(path, "tmp")
    if guard is not None and _is_on_same_disk(path.parent, guard.staging):
        temporary = guard.staging / temporary.name
    lock = None
    try:
        with _renamed(temporary, path, fix, guard):
            if parents:
                path.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale_once(path.parent, ".*.tmp")
            lock = _create_locked(temporary)
            yield temporary
            if sync:
                with temporary.open("rb") as stream:
                    os.fsync(stream.fileno())
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if lock is not None:
            os.close(lock)


def write_text(path: Path, text: str, fix: str = FIX) -> None:
    """Write ``text`` to ``path`` in UTF-8, atomically.

    Raises:
        UserError: If the file cannot be written.
    """
    with write_atomically(path, fix) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def open_to_append(path: Path) -> Iterator[TextIO]:
    """Open a text file for appending, in UTF-8 and with line ends unchanged.

    Raises:
        UserError: If the file cannot be written, or the guard of the folder does not permit the write.
    """
    try:
        with path.open("a", newline="", encoding="utf-8") as stream:
            # Check after opening: the next owner of a folder replaces the file, so that an open one is harmless.
            check_writable(path)
            yield stream
    except OSError as error:
        raise unwritable(path, error) from error


@contextlib.contextmanager
def create_folder_atomically(path: Path, fix: str = FIX) -> Iterator[Path]:
    """Yield a new temporary folder beside ``path``; rename it to ``path`` when the block ends without an exception.

    After an exception the temporary folder and its content are removed.

    Args:
        path: The folder to create. It may exist if it is empty.
        fix: The advice that ends the error message.

    Raises:
        UserError: If the block or the rename raises an `OSError`.
    """
    temporary = _hidden_beside(path, "partial")
    lock = None
    try:
        with _renamed(temporary, path, fix):
            _remove_stale_once(path.parent, ".*.partial")
            temporary.mkdir(parents=True)
            lock = os.open(temporary, os.O_RDONLY)
            _lock(lock)
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def remove_stale(folder: Path, pattern: str = ".*.tmp") -> None:
    """Remove the temporary files or folders of killed writers in ``folder``; keep those of running writers."""
    for path in folder.glob(pattern):
        match = re.fullmatch(r"\..+\.([0-9a-f]{8})-[0-9a-f]{12}\.\w+", path.name)
        if match is None:  # not written by this module
            continue
        with contextlib.suppress(
            OSError
        ):  # another process may remove the file, or the folder may be read-only
            lock = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
            try:
                own = match[1] == machine() and _lock(lock)
                if own or time.time() - _last_change(path) > STALE_SECONDS:
                    if path.is_dir():
                        shutil.rmtree(path)
                    else:
                        path.unlink()
            finally:
                os.close(lock)


def remove_used_folder(path: Path) -> None:
    """Remove a folder in which another process may be creating files, so that it cannot rename any of them.

    Processes on the same machine lose the folder when it is renamed. Processes on other machines, which may have opened
    it over a network file system, lose it when it is removed.
    """
    removed = _hidden_beside(path, "partial")
    with contextlib.suppress(OSError):
        path.rename(removed)
    for _ in range(100):
        shutil.rmtree(removed, ignore_errors=True)
        if not removed.exists():
            break


@lru_cache
def _remove_stale_once(folder: Path, pattern: str) -> None:
    """Call `remove_stale` once for each folder, because listing a large folder for each file would be slow."""
    remove_stale(folder, pattern)


def _hidden_beside(path: Path, suffix: str) -> Path:
    """Return a new hidden path beside ``path``, with the name of this machine, by which leftovers are recognized."""
    return path.with_name(f".{path.name}.{machine()}-{uuid.uuid4().hex[:12]}.{suffix}")


def _is_stream(path: Path) -> bool:
    """Return whether a path is a device or pipe, or a link to a file that this process has open."""
    if path.is_symlink() and str(path.readlink()).startswith("/proc/"):  # /dev/stdout
        return True
    return path.exists() and not path.is_file() and not path.is_dir()


@lru_cache
def machine() -> str:
    """Return an identifier of the running kernel, within which locks are visible to all processes."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")[:8]
    except OSError:  # not Linux
        return f"{uuid.getnode() & 0xFFFFFFFF:08x}"


def _create_locked(path: Path) -> int:
    """Create a file and return a descriptor that holds its lock."""
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        _lock(descriptor)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # `remove_stale` removed the file before it was locked


def _lock(descriptor: int) -> bool:
    """Lock an open file; return False if another process has the lock, or locks are not supported."""
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _last_change(path: Path) -> float:
    """Return the time of the last change of a file, or of a folder and everything in it."""
    return max(each.stat().st_mtime for each in (path, *path.rglob("*")))


@contextlib.contextmanager
def _renamed(temporary: Path, path: Path, fix: str, guard: Guard | None = None) -> Iterator[None]:
    """Rename ``temporary`` to ``path`` when the block ends without an exception and ``guard`` permits it."""
    try:
        yield
        if guard is not None:
            guard.check()
        temporary.replace(path)
    except OSError as error:
        if guard is not None:
            with contextlib.suppress(OSError):
                guard.check()
        raise unwritable(path, error, fix) from error


def _is_on_same_disk(folder: Path, staging: Path) -> bool:
    """Return whether a file can be renamed from ``staging`` into ``folder``, which may not exist yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return folder.stat().st_dev == staging.stat().st_dev
    except OSError:  # the guard has ended the permission; the write must fail
        return True


def unwritable(path: Path, error: OSError, fix: str = FIX) -> UserError:
    """Return the error to raise when ``path`` cannot be written."""
    return UserError(f"{path}: cannot be written ({error.strerror or error}); {fix}")
