"""Fingerprint of the dataset of a run."""

import hashlib

from segdet.data.base import SUBSETS, DataModule
from segdet.util.errors import UserError


def fingerprint(data: DataModule) -> str:
    """Return a digest of the names and sizes of all files that a DataModule reads: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for subset in SUBSETS:
        try:
            reader = data.reader(subset)
        except UserError:  # a subset that the run does not use may be missing
            digest.update(f"{subset} is absent\n".encode())
            continue
        for index in range(len(reader)):
            for path in (reader.image_path(index), *reader.annotation_paths(index, data.task)):
                size = path.stat().st_size if path.is_file() else -1
                digest.update(f"{subset} {path.name} {size}\n".encode())
    return digest.hexdigest()[:16]
