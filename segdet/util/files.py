"""Atomic writes: a file is always either missing, or complete in its earlier or its new version."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from segdet.util.errors import UserError

FIX = "free disk space or make the folder writable"
"""The default advice for a file that cannot be written."""


@contextlib.contextmanager
def write_atomically(
    path: Path, fix: str = FIX, *, parents: bool = False, sync: bool = True
) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` when the block ends without an exception.

    The temporary name is unique, so several processes and machines may write the same file at once: the last
    rename takes effect. After an exception ``path`` is unchanged and the temporary file is removed.

    Args:
        path: The file to write.
        fix: The advice that ends the error message.
        parents: Whether to create missing parent folders.
        sync: Whether to flush the content to disk before the rename, so that it survives a power failure. Pass
            False for many small files that can be computed again.

    Raises:
        UserError: If the block or the rename raises an `OSError`.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with _renamed(temporary, path, fix):
            if parents:
                path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if sync:
                with temporary.open("rb") as stream:
                    os.fsync(stream.fileno())
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, fix: str = FIX) -> None:
    """Write ``text`` to ``path`` in UTF-8, atomically.

    Raises:
        UserError: If the file cannot be written.
    """
    with write_atomically(path, fix) as temporary:
        temporary.write_text(text, encoding="utf-8")


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
    temporary = path.with_name(f"{path.name}.partial-{uuid.uuid4().hex[:12]}")
    try:
        with _renamed(temporary, path, fix):
            temporary.mkdir(parents=True)
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _renamed(temporary: Path, path: Path, fix: str) -> Iterator[None]:
    """Rename ``temporary`` to ``path`` when the block ends without an exception."""
    try:
        yield
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error, fix) from error


def unwritable(path: Path, error: OSError, fix: str = FIX) -> UserError:
    """Return the error to raise when ``path`` cannot be written."""
    return UserError(f"{path}: cannot be written ({error.strerror or error}); {fix}")
