"""The proposals of a whole dataset, computed once, in parallel, and kept on disk.

Each image has its own file, which is written atomically. After an interruption the next call computes only the missing
files. A corrupt file is computed again.

    <cache folder>/proposals/<class>-<key of the settings>/settings.json
    <cache folder>/proposals/<class>-<key of the settings>/3f/3f09...c2.npy   float32 [N, 5]: box and score

Images are identified by the content of their files. A moved or copied dataset is not computed again, but a changed
image is. Hashing a file takes a fortieth of the time of decoding it (JPEG and PNG, one core).
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import cv2
import numpy as np
from tqdm import tqdm

from segdet.data.images import read_image
from segdet.data.proposal_source import ImageProposals
from segdet.util.cores import usable_cores
from segdet.util.disk_cache import Arrays, cache_folder, cached, files_key
from segdet.util.errors import BadSample, UserError
from segdet.util.files import remove_stale, unwritable, write_atomically, write_text

if TYPE_CHECKING:
    from segdet.data.formats.reader import Reader

_COLUMNS = 5
_FIX = "free disk space, or name another folder in SEGDET_CACHE"


class ImageProposer(Protocol):
    """An algorithm that computes boxes from an image and its settings only; see `segdet.proposals.base.Proposer`."""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings by name."""

    @property
    def key(self) -> str:
        """A digest of the algorithm and its settings."""

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return boxes float32 ``[N, 4]`` and scores float32 ``[N]`` of an image uint8 ``[H, W, 3]``."""


@dataclass(frozen=True)
class _Job:
    """An image to compute, and the file of its proposals."""

    image: Path
    declared_size: tuple[int, int] | None
    upright: bool
    max_pixels: int
    file: Path


class _Digest(NamedTuple):
    """A digest of an image file, valid while its size and its modification time stay the same."""

    size: int
    changed: int
    content: str


class CachedProposals(ImageProposals):
    """The proposals of a reader's images, on disk.

    Args:
        proposer: The algorithm.
        reader: The split.
        folder: The folder of the files; null for a folder within `segdet.util.disk_cache.cache_folder`.

    Attributes:
        computed: The number of images that `compute` did not find in the cache.
    """

    def __init__(self, proposer: ImageProposer, reader: Reader, folder: Path | None = None) -> None:
        self.proposer = proposer
        self.reader = reader
        self.folder = folder or cache_folder() / "proposals" / f"{type(proposer).__name__}-{proposer.key}"
        self.bad: list[BadSample] = []
        self.computed = 0
        self._files: set[Path] = set()
        self._digests: dict[int, _Digest] = {}

    def boxes(self, index: int) -> np.ndarray:
        return self.scored(index)[0]

    def scored(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return boxes float32 ``[N, 4]`` and scores float32 ``[N]`` of an image; compute them if necessary.

        Raises:
            BadSample: If the image cannot be read.
        """
        job = self._job(index)
        rows = _read(job.file)
        rows = _compute(job, self.proposer) if rows is None else rows
        return rows[:, :4], rows[:, 4]

    def files(self) -> Collection[Path]:
        return self._files

    def compute(self, indices: Sequence[int] | np.ndarray, workers: int | None = None) -> None:
        """Compute the proposals that are not in the cache, and list images that cannot be read in ``bad``.

        Args:
            indices: The images.
            workers: The number of processes; null for one per core.

        Raises:
            UserError: If the cache cannot be written, or a process was killed.
        """
        self._digest_all(indices, workers)
        jobs = []
        for index in indices:
            try:
                job = self._job(int(index))
            except BadSample as error:
                self.bad.append(error)
                continue
            self._files.add(job.file)
            if not _is_complete(job.file):
                jobs.append(job)
        if not jobs:
            return
        self._prepare()
        workers = min(workers or usable_cores(), len(jobs))
        present = len(indices) - len(jobs) - len(self.bad)
        with tqdm(
            total=len(indices), initial=present, desc=f"proposals of {type(self.proposer).__name__}",
            unit=" images", delay=0.5,
        ) as progress:  # fmt: skip
            for fault in self._run(jobs, workers):
                if fault is not None:
                    self.bad.append(fault)
                else:
                    self.computed += 1
                progress.update()

    def _run(self, jobs: list[_Job], workers: int) -> Iterator[BadSample | None]:
        # The first job runs here, so that compiled code is on disk before several processes need it.
        yield _try(jobs[0], self.proposer)
        if workers == 1 or len(jobs) == 2:
            yield from (_try(job, self.proposer) for job in jobs[1:])
            return
        # Processes are not forked, because this process may have threads and use a GPU.
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start, (self.proposer,))
        try:
            yield from pool.map(_work, jobs[1:])
        except BrokenProcessPool as error:
            raise UserError(
                "a process that computed proposals was killed, perhaps because memory ran out; run again with fewer "
                "workers, finished images are kept"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)

    def _prepare(self) -> None:
        """Create the folder, describe the settings in it, and remove stale temporary files."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            description = self.folder / "settings.json"
            if not description.exists():
                settings = {"proposer": type(self.proposer).__name__, **self.proposer.settings}
                write_text(description, json.dumps(settings, indent=1, default=str) + "\n", _FIX)
            for folder in self.folder.glob("*/"):
                remove_stale(folder)
        except OSError as error:
            raise unwritable(self.folder, error, _FIX) from error

    def _digest_all(self, indices: Sequence[int] | np.ndarray, workers: int | None) -> None:
        """Hash all image files in parallel, or read the digests of unchanged files from the cache.

        Files that cannot be read are reported by `_job`.
        """
        paths = [self.reader.image_path(int(index)) for index in indices]
        # Paths are part of the key: images of different splits or cameras may have equal names and times.
        key = files_key(paths, [str(path.absolute()) for path in paths])

        def compute() -> Arrays:
            with ThreadPoolExecutor(workers or usable_cores()) as pool:
                done = pool.map(_digest_or_none, paths)
                digests = list(tqdm(done, "reading images", len(paths), unit=" images", delay=2.0))
            return {name: np.array([getattr(each, name) for each in digests]) for name in _Digest._fields}

        known = cached("image_contents", key, compute)
        columns = (known[name].tolist() for name in _Digest._fields)
        for index, *digest in zip(indices, *columns, strict=True):
            self._digests[int(index)] = _Digest(*digest)

    def _job(self, index: int) -> _Job:
        path = self.reader.image_path(index)
        content = self._content(index, path)
        declared = self.reader.declared_size(index)
        upright = self.reader.upright(index)
        identity = json.dumps([content, declared, upright])
        name = hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
        return _Job(path, declared, upright, self.reader.max_pixels, self.folder / name[:2] / f"{name}.npy")

    def _content(self, index: int, path: Path) -> str:
        """Return the digest of the file's content. It is computed again only if the file's size or time changed."""
        try:
            status = path.stat()
            known = self._digests.get(index)
            if known is None or (known.size, known.changed) != (status.st_size, status.st_mtime_ns):
                known = self._digests[index] = _digest(path)
        except OSError as error:
            fault = f"cannot be read ({error.strerror})"
            raise BadSample(path, fault, "restore the file or remove its entry") from error
        return known.content


def _digest(path: Path) -> _Digest:
    status = path.stat()
    content = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    return _Digest(status.st_size, status.st_mtime_ns, content)


def _digest_or_none(path: Path) -> _Digest:
    """Return the digest of a file, or one of size -1 if it cannot be read."""
    try:
        return _digest(path)
    except OSError:
        return _Digest(-1, -1, "")


_proposer: ImageProposer | None = None


def _start(proposer: ImageProposer) -> None:
    """Initialize a process of the pool."""
    global _proposer
    _proposer = proposer
    cv2.setNumThreads(0)
    # A proposer may import torch later. One thread is enough for torch, because there is one process per core.
    os.environ["OMP_NUM_THREADS"] = "1"
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    """End this process when its parent ends. A killed parent does not close the pool."""
    wait([sentinel])
    os._exit(1)


def _work(job: _Job) -> BadSample | None:
    assert _proposer is not None
    return _try(job, _proposer)


def _try(job: _Job, proposer: ImageProposer) -> BadSample | None:
    try:
        _compute(job, proposer)
    except BadSample as error:
        return error
    return None


def _compute(job: _Job, proposer: ImageProposer) -> np.ndarray:
    """Compute the proposals of an image, float32 ``[N, 5]``, and write them to its file."""
    image = read_image(job.image, job.declared_size, job.upright, job.max_pixels)
    boxes, scores = proposer(image)
    rows = np.concatenate([boxes, scores[:, None]], axis=1).astype(np.float32)
    with (
        write_atomically(job.file, _FIX, parents=True, sync=False) as temporary,
        temporary.open("wb") as stream,
    ):
        np.save(stream, rows, allow_pickle=False)
    return rows


def _read(file: Path) -> np.ndarray | None:
    """Return the rows of a file, or None if it is missing or corrupt."""
    try:
        with file.open("rb") as stream:
            rows = np.load(stream, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return rows if rows.ndim == 2 and rows.shape[1] == _COLUMNS and rows.dtype == np.float32 else None


def _is_complete(file: Path) -> bool:
    """Return whether a file has the expected header, and the size that the header specifies."""
    try:
        with file.open("rb") as stream:
            if np.lib.format.read_magic(stream) != (1, 0):
                return False
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
            end = stream.tell() + int(np.prod(shape)) * dtype.itemsize
            complete = os.fstat(stream.fileno()).st_size == end
            return shape[1:] == (_COLUMNS,) and dtype == np.float32 and complete
    except (OSError, ValueError, EOFError):
        return False
