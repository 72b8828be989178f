"""Write a complete dataset folder and its image files.

A folder is written under a temporary name in the same parent folder and renamed at the end. It is therefore either
complete or missing.
"""

import multiprocessing
import shutil
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps
from tqdm import tqdm

from segdet.data.images import image_info, read_image
from segdet.data.writers.record import AnnotatedImage
from segdet.util.errors import BadSample, UserError
from segdet.util.files import create_folder_atomically

JPEG: dict[str, Any] = {"quality": 95, "subsampling": 0}
"""PIL's options of JPEG files."""

_Write = Callable[[Path, str, int, int, AnnotatedImage], Any]
_DELAY = 2.0  # seconds before a progress bar appears
_POOL_FROM = 64  # with fewer images, starting processes takes more time than it saves


@contextmanager
def written_folder(
    root: Path,
    folders: Iterable[str],
    splits: Mapping[str, Sequence[AnnotatedImage]],
    write: _Write,
    *,
    workers: int = 1,
    progress: bool = False,
    files: Mapping[str, str] | None = None,
) -> Iterator[tuple[Path, dict[str, list[Any]]]]:
    """Write all images to a folder that becomes ``root`` if the block succeeds.

    Args:
        root: The folder to create.
        folders: Its subfolders.
        splits: The images of each split. With several ``workers``, the sequences are indexed in worker processes.
        write: Function to write one image: ``write(folder, split, position, number, image)``, with
            the position in the split and a running number from 1.
        workers: Number of processes.
        progress: Whether to show a progress bar.
        files: Additional small text files, by name.

    Yields:
        The folder to write in, and the results of ``write`` by split.
    """
    check_target(root)
    with create_folder_atomically(root, "choose another folder or free some space") as folder:
        for name in folders:
            (folder / name).mkdir(parents=True)
        places = [(split, position) for split, images in splits.items() for position in range(len(images))]
        results: dict[str, list[Any]] = {split: [] for split in splits}
        write_at = partial(_write_at, folder, splits, write)
        with _mapping(write_at, workers if len(places) >= _POOL_FROM else 1) as mapping:
            done = mapping(places, range(1, len(places) + 1))
            bar = tqdm(
                done, f"writing {root.name}", len(places), unit="image", disable=not progress, delay=_DELAY
            )
            for (split, _), result in zip(places, bar, strict=True):
                results[split].append(result)
        yield folder, results
        for name, text in (files or {}).items():
            (folder / name).write_text(text, encoding="utf-8")


def check_target(root: Path) -> None:
    """Raise `UserError` if ``root`` exists and is not an empty folder."""
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise UserError(f"{root}: exists already; choose another folder or remove this one")


def _write_at(
    folder: Path,
    splits: Mapping[str, Sequence[AnnotatedImage]],
    write: _Write,
    place: tuple[str, int],
    number: int,
) -> Any:
    split, position = place
    return write(folder, split, position, number, splits[split][position])


@contextmanager
def _mapping(function: Callable[..., Any], workers: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Yield a function that maps ``function`` over its arguments, in a pool of processes if ``workers`` > 1."""
    if workers <= 1:
        yield partial(map, function)
        return
    # A forked process has all modules imported already.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    with warnings.catch_warnings():
        # A fork is safe: NumPy, Pillow and OpenCV start no threads for the small arrays that the children process.
        warnings.filterwarnings("ignore", message=r".*use of fork\(\).*", category=DeprecationWarning)
        context = multiprocessing.get_context(method)
        # The function, with all splits, is sent once per process, not with each task.
        pool = ProcessPoolExecutor(workers, context, _start_worker, (function,))
        try:
            yield partial(pool.map, _call_in_worker, chunksize=16)
        finally:
            pool.shutdown(cancel_futures=True)


_worker_function: list[Callable[..., Any]] = []  # in a worker process: the function to call


def _start_worker(function: Callable[..., Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles interrupts
    cv2.setNumThreads(0)
    _worker_function[:] = [function]


def _call_in_worker(*arguments: Any) -> Any:
    return _worker_function[0](*arguments)


def save_image(
    record: AnnotatedImage, target: Path, copy: bool = False, kept: Sequence[str] | None = None
) -> str:
    """Save the image of a record as ``target`` with a suffix, and return the file name.

    A file is linked or copied and keeps its suffix, in lower case. If the annotation refers to the image after an EXIF
    rotation, the rotated pixels are written as PNG. An array is written as JPEG.

    Args:
        record: The annotated image.
        target: The path without suffix.
        copy: Whether to copy files instead of linking them.
        kept: Suffixes that the format allows; other files are written as PNG. Default: all.

    Raises:
        UserError: If the image cannot be read, or the folder does not support links.
    """
    source = record.image
    if isinstance(source, np.ndarray):
        path = with_suffix(target, ".jpg")
        Image.fromarray(source).save(path, **JPEG)
    elif record.upright and is_rotated(source):
        path = with_suffix(target, ".png")
        Image.fromarray(upright_pixels(source)).save(path, compress_level=3)
    elif isinstance(source, bytes):
        path = with_suffix(target, f".{(Image.open(BytesIO(source)).format or 'png').lower()}")
        path.write_bytes(source)
    elif kept is not None and source.suffix.lower() not in kept:
        path = with_suffix(target, ".png")
        Image.fromarray(read_image(source)).save(path, compress_level=3)
    else:
        path = with_suffix(target, source.suffix.lower())
        _copy(source, path) if copy else _link(source, path)
    return path.name


def with_suffix(target: Path, suffix: str) -> Path:
    """Return ``target`` with ``suffix`` appended; unlike `Path.with_suffix`, dots in the name are kept."""
    return target.with_name(f"{target.name}{suffix}")


def is_rotated(source: Path | bytes) -> bool:
    """Return whether an image file, or the content of one, has an EXIF rotation."""
    if isinstance(source, Path):
        return image_info(source).orientation != 1
    return Image.open(BytesIO(source)).getexif().get(ExifTags.Base.Orientation, 1) != 1


def upright_pixels(source: Path | bytes) -> np.ndarray:
    """Return the pixels of an image file after its EXIF rotation: uint8 ``[H, W, 3]`` RGB."""
    if isinstance(source, Path):
        return read_image(source, upright=True)
    return np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(source))).convert("RGB"))


def _copy(source: Path, path: Path) -> None:
    try:
        shutil.copyfile(source, path)
    except OSError as error:
        if error.filename == str(source):
            raise BadSample(source, f"cannot be read ({error.strerror or error})") from None
        raise


def _link(source: Path, path: Path) -> None:
    try:
        path.symlink_to(source.resolve())
    except OSError as error:
        fault = f"links cannot be created there ({error.strerror or error})"
        raise UserError(f"{path.parent}: {fault}; give --copy") from None
