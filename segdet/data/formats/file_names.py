"""File names of images in annotation files that were written on another machine or by a web service."""

import re
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit


def is_foreign_name(name: str) -> bool:
    """Return whether a name may be a path on another machine, a URL, or encoded as in a URL."""
    return re.match(r"/|[A-Za-z]:[/\\]", name) is not None or any(part in name for part in ("%", "\\", "://"))


def name_in(folder: Path, name: str) -> str | None:
    """Return the name of the file in ``folder`` that a foreign ``name`` probably means, or None.

    Args:
        folder: The folder of images.
        name: The path of an image on another machine, its URL, or its name with ``%20`` in place of a space.
    """
    path = urlsplit(name).path if "://" in name else name.replace("\\", "/")
    for each in (unquote(path), PurePosixPath(path).name, PurePosixPath(unquote(path)).name):
        if each not in ("", name) and not each.startswith("/") and (folder / each).is_file():
            return each
    return None


def missing_file_advice(folder: Path, name: str) -> str:
    """Return how to fix a foreign ``name`` of an image that does not exist."""
    found = name_in(folder, name)
    if found is not None:
        return f"{found} is in {folder}: use this name as file_name"
    return f"give file_name relative to {folder}, without URL encoding"
