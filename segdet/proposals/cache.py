"""The proposals of a whole dataset, computed once, in parallel, and kept on disk.

Each image has a file of its own, which appears only when it is complete. Whatever stops the computing, what
is there stays, and the next call computes the rest. A file that is torn all the same is computed anew.

    <cache folder>/proposals/<class>-<key of the settings>/settings.json
    <cache folder>/proposals/<class>-<key of the settings>/3f/3f09...c2.npy   float32 [N, 5]: box and score

An image is known by its file's content, so that a dataset that is moved or copied need not be computed again, while
a changed image is. To look into a file takes a fortieth of the time of decoding it (JPEG and PNG, one core).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, fields
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from tqdm import tqdm

from segdet.data.images import read_image
from segdet.data.proposer import ImageProposals
from segdet.data.result_cache import Arrays, cache_folder, cached, files_key
from segdet.proposals.base import Proposer
from segdet.util.cores import usable_cores
from segdet.util.errors import BadSample, UserError
from segdet.util.files import unwritable, write_atomically, write_text

if TYPE_CHECKING:
    from segdet.data.formats.reader import Reader

_COLUMNS = 5
_FIX = "free disk space, or name another folder in SEGDET_CACHE"
_STALE = 3600.0
"""Seconds after which a temporary file belongs to nobody."""


@dataclass(frozen=True)
class _Job:
    """One image to be done: what to read, how, and where its proposals belong."""

    image: Path
    declared_size: tuple[int, int] | None
    upright: bool
    file: Path


@dataclass(frozen=True)
class _Digest:
    """What is in an image's file, as long as its size and its time of change are these."""

    size: int
    changed: int
    content: str


_DIGEST = tuple(each.name for each in fields(_Digest))


class CachedProposals(ImageProposals):
    """The proposals of the images of a reader, on disk.

    Args:
        proposer: What makes them.
        reader: The split.
        folder: Where they are kept; a place in `segdet.data.result_cache.cache_folder` when null.

    Attributes:
        computed: How many images `compute` had to do.
    """

    def __init__(self, proposer: Proposer, reader: Reader, folder: Path | None = None) -> None:
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
        """Boxes float32 ``[N, 4]`` and scores float32 ``[N]`` of an image, computed now if they are not there.

        Raises:
            BadSample: If the image cannot be read.
        """
        job = self._job(index)
        rows = _read(job.file)
        if rows is None:
            rows = _do(job, self.proposer)
        return rows[:, :4], rows[:, 4]

    def files(self) -> Collection[Path]:
        return self._files

    def compute(self, indices: Sequence[int] | np.ndarray, workers: int | None = None) -> None:
        """Computes what is not there yet, and lists in ``bad`` the images that cannot be read.

        Args:
            indices: The images that are wanted.
            workers: Processes; one a core when null.

        Raises:
            UserError: If the cache cannot be written, or a process was killed.
        """
        self._read_all(indices, workers)
        jobs = []
        for index in indices:
            try:
                job = self._job(int(index))
            except BadSample as error:
                self.bad.append(error)
                continue
            self._files.add(job.file)
            if not _whole(job.file):
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
            for fault in self._done(jobs, workers):
                if fault is not None:
                    self.bad.append(fault)
                else:
                    self.computed += 1
                progress.update()

    def _done(self, jobs: list[_Job], workers: int) -> Iterator[BadSample | None]:
        # The first here: what has to be compiled is then on disk before several processes ask for it.
        yield _attempt(jobs[0], self.proposer)
        if workers == 1 or len(jobs) == 2:
            yield from (_attempt(job, self.proposer) for job in jobs[1:])
            return
        # Not forked: this process may hold threads and a GPU.
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start, (self.proposer,))
        try:
            yield from pool.map(_work, jobs[1:])
        except BrokenProcessPool as error:
            raise UserError(
                "a process that computed proposals was killed, perhaps for want of memory; call again with fewer "
                "workers, what is done is kept"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)

    def _prepare(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            told = self.folder / "settings.json"
            if not told.exists():
                settings = {"proposer": type(self.proposer).__name__, **self.proposer.settings}
                write_text(told, json.dumps(settings, indent=1, default=str) + "\n", _FIX)
            for left in self.folder.glob("*/.*.tmp"):
                with contextlib.suppress(OSError):
                    if time.time() - left.stat().st_mtime > _STALE:
                        left.unlink()
        except OSError as error:
            raise unwritable(self.folder, error, _FIX) from error

    def _read_all(self, indices: Sequence[int] | np.ndarray, workers: int | None) -> None:
        """Looks into all files at once, or remembers what was in the same files at the same places.

        Those that cannot be read speak up when their turn comes.
        """
        paths = [self.reader.image_path(int(index)) for index in indices]
        # The places too: splits or cameras may name and date their images alike.
        key = files_key(paths, [str(path.absolute()) for path in paths])

        def compute() -> Arrays:
            with ThreadPoolExecutor(workers or usable_cores()) as pool:
                done = pool.map(_read_digest, paths)
                found = list(tqdm(done, "reading images", len(paths), unit=" images", delay=2.0))
            return {name: np.array([getattr(each, name) for each in found]) for name in _DIGEST}

        known = cached("image_contents", key, compute)
        for index, digest in zip(
            indices, zip(*(known[name].tolist() for name in _DIGEST), strict=True), strict=True
        ):
            self._digests[int(index)] = _Digest(*digest)

    def _job(self, index: int) -> _Job:
        path = self.reader.image_path(index)
        content = self._digest(index, path)
        declared = self.reader.declared_size(index)
        upright = self.reader.upright(index)
        told = json.dumps([content, declared, upright])
        name = hashlib.blake2b(told.encode(), digest_size=16).hexdigest()
        return _Job(path, declared, upright, self.folder / name[:2] / f"{name}.npy")

    def _digest(self, index: int, path: Path) -> str:
        """Of the file's content, read again only when its size or time changed."""
        try:
            status = path.stat()
            known = self._digests.get(index)
            if known is None or (known.size, known.changed) != (status.st_size, status.st_mtime_ns):
                known = self._digests[index] = _digest(path)
        except OSError as error:
            raise BadSample(
                path, f"cannot be read ({error.strerror})", "put it there or take it out"
            ) from error
        return known.content


def _digest(path: Path) -> _Digest:
    status = path.stat()
    content = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    return _Digest(status.st_size, status.st_mtime_ns, content)


def _read_digest(path: Path) -> _Digest:
    """That of a file that may not be readable: of no size, then."""
    try:
        return _digest(path)
    except OSError:
        return _Digest(-1, -1, "")


_proposer: Proposer | None = None


def _start(proposer: Proposer) -> None:
    """Readies a process of the pool."""
    global _proposer
    _proposer = proposer
    cv2.setNumThreads(0)
    # Of torch, which a proposer may load from now on: there is a process a core.
    os.environ["OMP_NUM_THREADS"] = "1"
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    """Ends this process with the one that started it, which may have been killed without a word to its pool."""
    wait([sentinel])
    os._exit(1)


def _work(job: _Job) -> BadSample | None:
    assert _proposer is not None
    return _attempt(job, _proposer)


def _attempt(job: _Job, proposer: Proposer) -> BadSample | None:
    try:
        _do(job, proposer)
    except BadSample as error:
        return error
    return None


def _do(job: _Job, proposer: Proposer) -> np.ndarray:
    """Computes and keeps the proposals of an image: float32 ``[N, 5]``."""
    image = read_image(job.image, job.declared_size, job.upright)
    boxes, scores = proposer(image)
    rows = np.concatenate([boxes, scores[:, None]], axis=1).astype(np.float32)
    with (
        write_atomically(job.file, _FIX, parents=True, sync=False) as temporary,
        temporary.open("wb") as stream,
    ):
        np.save(stream, rows, allow_pickle=False)
    return rows


def _read(file: Path) -> np.ndarray | None:
    """The rows of a file, or None where it is missing or torn."""
    try:
        with file.open("rb") as stream:
            rows = np.load(stream, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return rows if rows.ndim == 2 and rows.shape[1] == _COLUMNS and rows.dtype == np.float32 else None


def _whole(file: Path) -> bool:
    """Whether a file is there in full, by its header and its size."""
    try:
        with file.open("rb") as stream:
            if np.lib.format.read_magic(stream) != (1, 0):
                return False
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
            end = stream.tell() + int(np.prod(shape)) * dtype.itemsize
            return (
                shape[1:] == (_COLUMNS,) and dtype == np.float32 and os.fstat(stream.fileno()).st_size == end
            )
    except (OSError, ValueError, EOFError):
        return False
