"""The images and annotation files of a source folder, and functions that find the split or the image of a file."""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TypeVar

from tqdm import tqdm

from segdet.data.images import SUFFIXES, ImageInfo, image_info
from segdet.util.cores import usable_cores
from segdet.util.errors import BadSample, UserError

Key = TypeVar("Key")

_SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_ROLES = {
    "image", "images", "img", "imgs", "jpegimages", "jpg", "jpegs", "photos", "pictures", "label", "labels",
    "annotation",
    "annotations", "annot", "annots", "ann", "anns", "xml", "xmls", "json", "jsons", "txt", "mask", "masks",
    "segmentationclass", "seg", "segmentation", "gt", "groundtruth", "data", "obj", "leftimg8bit", "input", "inputs",
    "target", "targets", "default",
}  # fmt: skip
_SPLIT_WORD = re.compile(rf"({'|'.join(_SPLITS)})(\d*|annot|s?images|masks?|labels?)")


class Source:
    """The files of a source.

    Hidden files are skipped, as are folders named ``__MACOSX``.

    Args:
        root: A folder, or a single annotation file.
        image_root: Folder of the images, if they are elsewhere.

    Attributes:
        root: The folder.
        files: All files, sorted.
        images: The image files, sorted.
        listed_twice: The images that are in the lists of several splits. The first list is used. The set is empty until
            `split_of` reads the lists.

    Raises:
        UserError: If a folder is missing.
    """

    def __init__(self, root: Path | str, image_root: Path | str | None = None) -> None:
        root = Path(root)
        if not root.exists():
            raise UserError(f"{root}: no such folder; give the folder of images and annotations")
        if root.suffix.lower() in (".zip", ".tar", ".gz", ".7z", ".rar"):
            raise UserError(f"{root}: is an archive; unpack it and give the folder")
        self.root = root.parent if root.is_file() else root
        self.files = [root] if root.is_file() else _files_in(root)
        found = list(self.files)
        self.image_root = Path(image_root) if image_root else None
        if self.image_root is not None:
            if not self.image_root.is_dir():
                raise UserError(f"--images {self.image_root}: no such folder; give the folder of the images")
            found = _files_in(self.image_root)
        elif root.is_file():
            found = _files_in(self.root)
        self.images = [path for path in found if path.suffix.lower() in SUFFIXES]
        self.listed_twice: set[Path] = set()

    def of_suffix(self, suffix: str) -> list[Path]:
        """Return the files with a suffix such as ``.xml``, in upper or lower case."""
        return [path for path in self.files if path.suffix.lower() == suffix]

    def relative(self, path: Path) -> PurePosixPath:
        """Return a path relative to the source or to the folder of the images."""
        for base in (self.image_root, self.root):
            if base is not None and path.is_relative_to(base):
                return PurePosixPath(path.relative_to(base).as_posix())
        return PurePosixPath(path.name)

    def split_of(self, path: Path) -> str | None:
        """Return the split of a file: from a list such as ``train.txt``, else from its folders; None if unknown."""
        same_name = [path] if path in self._listed else self._by_stem.get(folded(path.stem), [])
        listed = {self._listed.get(image) for image in same_name}
        if len(listed) == 1 and None not in listed:
            return listed.pop()
        for part in reversed(self.relative(path).parts[:-1]):
            for word in _words(part):
                match = _SPLIT_WORD.fullmatch(word)
                if match:
                    return _SPLITS[match[1]]
        return None

    @cached_property
    def _listed(self) -> dict[Path, str]:
        """Map each image in lists such as ``train.txt`` to its split.

        If several images have the name in a list, the folders in the list select one of them. If they do not, all are
        used.
        """
        found: dict[Path, str] = {}
        lists = _SPLITS | {"trainval": "train"}
        # trainval comes last, so that it does not replace val.
        for path in sorted(self.of_suffix(".txt"), key=lambda path: path.stem.casefold() == "trainval"):
            split = lists.get(path.stem.casefold())
            if split is None or folded(path.stem) in self._by_stem:
                continue
            for line in _lines(path):
                entry = line if folded(_name_of(line)) in self._by_stem else line.split()[0]
                named = self._by_stem.get(folded(_name_of(entry)), [])
                image = self.find_image(entry) if len(named) > 1 else None
                for each in named if image is None else [image]:
                    if found.setdefault(each, split) != split and path.stem.casefold() != "trainval":
                        self.listed_twice.add(each)
        return found

    @cached_property
    def _infos(self) -> dict[Path, ImageInfo | BadSample]:
        def read(path: Path) -> ImageInfo | BadSample:
            try:
                return image_info(path)
            except BadSample as error:
                return error

        with ThreadPoolExecutor(min(16, usable_cores())) as pool:
            infos = pool.map(read, self.images)
            bar = tqdm(
                infos, "reading image headers", len(self.images), unit=" images", delay=2.0, leave=False
            )
            return dict(zip(self.images, bar, strict=True))

    def info(self, path: Path) -> ImageInfo:
        """Return the header of an image.

        Raises:
            BadSample: If the file is not an image.
        """
        info = self._infos[path]
        if isinstance(info, BadSample):
            raise info
        return info

    def frame(
        self, path: Path, declared: tuple[int, int] | None, upright: bool, annotation: Path | None = None
    ) -> tuple[tuple[int, int], bool]:
        """Return the image size ``(height, width)`` of an annotation, and whether it includes the EXIF rotation.

        Args:
            path: The image.
            declared: The size that the annotation states, or None.
            upright: Whether the annotation tool applies the EXIF rotation. If the declared size fits only one
                orientation, it decides instead.
            annotation: The annotation file, for the message.

        Raises:
            BadSample: If the image cannot be read, or has another size than the annotation states.
        """
        info = self.info(path)
        turned = info.size[::-1] if info.orientation >= 5 else info.size
        if declared is not None and declared not in (info.size, turned):
            there, here = (f"{size[1]}x{size[0]}" for size in (declared, info.size))
            fault = f"is for an image of {there} pixels but {path.name} has {here}"
            raise BadSample(annotation or path, fault, "annotate the image again or restore the original")
        if info.orientation == 1:
            return info.size, False
        if declared is not None and info.size != turned:
            upright = declared == turned
        return (turned, True) if upright else (info.size, False)

    def find_image(self, name: str, near: Path | None = None) -> Path | None:
        """Return the image that an annotation file names; None if no image or several images match.

        Paths are compared from their last component, so that ``C:\\\\photos\\\\a.jpg`` matches ``images/a.jpg``.

        Args:
            name: The name or path, with or without suffix.
            near: The annotation file. Paths relative to it are tried first.
        """
        pure = PureWindowsPath(name.strip())
        parts = [part for part in pure.parts if part not in (pure.anchor, ".", "..")]
        if not parts:
            return None
        if near is not None:
            direct = (near.parent / PurePosixPath(name.replace("\\", "/"))).resolve()
            if direct in self._resolved:
                return self._resolved[direct]
        candidates = self._by_name.get(folded(parts[-1])) or self._by_stem.get(folded(parts[-1]), [])
        if len(candidates) > 1:
            shared = {path: _shared(self.relative(path).parts, parts) for path in candidates}
            best = max(shared.values())
            candidates = [path for path in candidates if shared[path] == best]
        if len(candidates) > 1 and near is not None:
            split = self.split_of(near)
            candidates = [path for path in candidates if path.parent == near.parent] or [
                path for path in candidates if split is not None and self.split_of(path) == split
            ]
        return candidates[0] if len(candidates) == 1 else None

    @cached_property
    def _resolved(self) -> dict[Path, Path]:
        return {path.resolve(): path for path in self.images}

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        return _grouped(self.images, lambda path: folded(path.name))

    @cached_property
    def _by_stem(self) -> dict[str, list[Path]]:
        return _grouped(self.images, lambda path: folded(path.stem))


class Matcher:
    """Find the image that has the name of an annotation file, in the same folder or in another.

    Args:
        source: The source.
        images: The images to choose from.
    """

    def __init__(self, source: Source, images: Sequence[Path]) -> None:
        self.source = source
        self._beside = _grouped(images, lambda path: (path.parent, folded(path.stem)))
        self._apart = _grouped(images, lambda path: (self._place(path), folded(path.stem)))
        self._anywhere = _grouped(images, lambda path: folded(path.stem))

    def find(self, annotation: Path, stem: str | None = None) -> Path | None:
        """Return the image of an annotation file; None if no image or several images match.

        Args:
            annotation: The annotation file.
            stem: The image's name without suffix, if it is not the annotation's.
        """
        name = folded(annotation.stem if stem is None else stem)
        for found in (
            self._beside.get((annotation.parent, name)),
            self._apart.get((self._place(annotation), name)),
            self._anywhere.get(name),
        ):
            if found is not None:
                # Files of one name in one folder are the same picture in several formats. The first one by name is
                # used, so that JPEG precedes PNG.
                same = len({path.parent for path in found}) == 1
                return (
                    found[0] if len(found) == 1 or (same and found is not self._anywhere.get(name)) else None
                )
        return None

    def _place(self, path: Path) -> tuple[str, ...]:
        """Return the folders of a file without words such as ``images`` and ``labels``."""
        kept = []
        for part in self.source.relative(path).parts[:-1]:
            words = [word for word in _words(part) if word not in _ROLES]
            # "trainannot" and "train" are folders of the same split.
            words = [_SPLITS[match[1]] if (match := _SPLIT_WORD.fullmatch(word)) else word for word in words]
            if words:
                kept.append("_".join(words))
        return tuple(kept)


def split_named(name: str) -> str | None:
    """Return the split that a name such as ``instances_train2017`` or ``Train`` contains; None if there is none."""
    for word in _words(name):
        match = _SPLIT_WORD.fullmatch(word)
        if match:
            return _SPLITS[match[1]]
    return None


def folded(name: str) -> str:
    """Return a file name for comparison. macOS writes accents as separate characters, and Windows ignores case."""
    return unicodedata.normalize("NFC", name).casefold()


def read_head(path: Path, count: int = -1) -> bytes:
    """Return the first ``count`` bytes of a file, or all of it; nothing if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return b""


def _lines(path: Path) -> list[str]:
    text = read_head(path).decode("utf-8-sig", errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _name_of(line: str) -> str:
    """Return the file name in a line of a list, without the suffix of an image."""
    name = PureWindowsPath(line).name
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in SUFFIXES else name


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[_\-.\s]+", folded(name)) if word]


def _files_in(root: Path) -> list[Path]:
    found: list[Path] = []
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(found)


def _grouped(paths: Iterable[Path], key: Callable[[Path], Key]) -> dict[Key, list[Path]]:
    groups: defaultdict[Key, list[Path]] = defaultdict(list)
    for path in paths:
        groups[key(path)].append(path)
    return dict(groups)


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the number of equal path components, counted from the end."""
    count = 0
    for first, second in zip(reversed(one), reversed(other), strict=False):
        if folded(first) != folded(second):
            break
        count += 1
    return count
