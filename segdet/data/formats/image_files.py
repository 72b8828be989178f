"""Find the images and videos for a prediction: files, folders, glob patterns and lists of these.

Each file is found once. A file that is not used is reported with the reason: see `Skipped`.
"""

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segdet.data import images, video
from segdet.data.formats.reader import Reader
from segdet.data.sample import Objects, TaskName
from segdet.util.errors import BadSample, UserError

LIST_SUFFIX = ".txt"
"""The suffix of a file that lists paths, one per line."""


class Skipped(NamedTuple):
    """A file or folder that is not used, and the reason.

    Attributes:
        path: The file or folder.
        reason: The reason.
        group: Description of all files with this reason, such as ``hidden files``; None if each has its own reason.
    """

    path: Path
    reason: str
    group: str | None = None

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass
class ImageFiles:
    """The files for a prediction.

    Attributes:
        root: The folder to which the names of outputs are relative: the given folder, or the common parent of several
            files and folders.
        images: Image files, in the order given; those of a folder or pattern in natural order (``2.jpg`` before
            ``10.jpg``).
        videos: Videos, in the same order.
        skipped: Files that are not used.
    """

    root: Path = field(default_factory=Path)
    images: list[Path] = field(default_factory=list)
    videos: list[video.Video] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def find_image_files(paths: Sequence[str | Path]) -> ImageFiles:
    """Find images and videos.

    Args:
        paths: Each is an image, a video, a folder (with its subfolders), a glob pattern such as ``photos/**/*.jpg``, or
            a ``.txt`` file with one of these per line. Lines are relative to the folder of the list, or else to the
            current folder. Files are recognized by their suffix. A file that is given directly may have another
            suffix; it is then recognized by its content. Hidden files and folders are skipped unless they are given
            directly.

    Raises:
        UserError: If a path does not exist, a pattern matches nothing, or nothing can be used.
    """
    finder = _Finder()
    for path in paths:
        finder.add(str(path))
    found = finder.found
    if not found.images and not found.videos:
        names = ", ".join(str(path) for path in paths) or "no path"
        skipped = found.skipped
        reason = f" ({len(skipped)} skipped; the first: {skipped[0]})" if skipped else ""
        suffixes = ", ".join(sorted(images.SUFFIXES | video.SUFFIXES))
        raise UserError(f"{names}: no image or video{reason}; give files of {suffixes}")
    found.root = Path(os.path.commonpath([_absolute(base) for base in finder.bases]))
    here = Path.cwd()
    if found.root.is_relative_to(here):  # messages contain relative paths
        found.root = found.root.relative_to(here)
    return found


def natural_key(path: Path) -> list[list[tuple[bool, int, str]]]:
    """Return a sorting key by which ``a2.jpg`` precedes ``a10.jpg``, the same on every machine."""
    return [
        [
            (not part.isdecimal(), int(part) if part.isdecimal() else 0, part)
            for part in re.split(r"(\d+)", name)
        ]
        for name in path.parts
    ]


class _Finder:
    """Collect files; see `find_image_files`.

    Attributes:
        found: The files so far.
        bases: The folders given, and the folders of the files given.
    """

    def __init__(self) -> None:
        self.found = ImageFiles()
        self.bases: list[Path] = []
        self._seen: dict[Path, Path] = {}

    def add(self, name: str) -> None:
        """Add the files that an argument names."""
        path = Path(name).expanduser()
        if path.is_dir():
            self._add_folder(path)
        elif path.suffix.lower() == LIST_SUFFIX and path.is_file():
            self._add_list(path)
        elif path.is_file():
            self._add_given(path)
        elif glob.has_magic(name):
            self._add_pattern(str(path))
        else:
            raise UserError(f"{name}: no such file or folder; fix the path")

    def _add_folder(self, folder: Path) -> None:
        self.bases.append(folder)
        found: list[Path] = []
        for parent, folders, files in os.walk(folder, onerror=self._skip_folder):
            found += [Path(parent, name) for name in files]
            found += [Path(parent, name) for name in folders if name.startswith(".")]
            folders[:] = [name for name in folders if not name.startswith(".")]
        for path in sorted(found, key=natural_key):
            self._add_found(path)

    def _add_pattern(self, pattern: str) -> None:
        matches = sorted(map(Path, glob.glob(pattern, recursive=True)), key=natural_key)  # noqa: PTH207  keeps "./" out
        files = [path for path in matches if path.is_file()]
        if not files:
            folders = f"; it matches {len(matches)} folders, add /*" if matches else "; fix the pattern"
            raise UserError(f"{pattern}: the pattern matches no file{folders}")
        fixed: list[str] = []
        for part in Path(pattern).parts:
            if glob.has_magic(part):
                break
            fixed.append(part)
        self.bases.append(Path(*fixed))
        for path in files:
            self._add_found(path)

    def _add_list(self, file: Path) -> None:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{file}: cannot be read as a list of paths ({error}); save it as UTF-8 text"
            ) from None
        for number, line in enumerate(map(str.strip, lines), 1):
            if not line:
                continue
            path = Path(line).expanduser()
            entry = file.parent / path if _exists(file.parent / path) else path
            if entry.suffix.lower() == LIST_SUFFIX and entry.is_file():
                self._skip(entry, f"a list within the list {file}, line {number}")
            elif _exists(entry):
                self.add(str(entry))
            else:
                self._skip(path, f"no such file (line {number} of {file})")

    def _add_given(self, path: Path) -> None:
        """Add a file that is given directly, whatever its suffix."""
        if path.suffix.lower() in images.SUFFIXES:
            self._add_image(path)
        elif path.suffix.lower() in video.SUFFIXES:
            self._add_video(path)
        else:
            try:
                images.image_info(path)
            except BadSample:
                try:
                    video.Video(path)
                except BadSample:
                    self._skip(path, "neither an image nor a video")
                    return
                self._add_video(path)
            else:
                self._add_image(path)
        self.bases.append(path.parent)

    def _add_found(self, path: Path) -> None:
        """Add a file of a folder or pattern, depending on its suffix."""
        suffix = path.suffix.lower()
        if path.name.startswith("."):
            kind = "folder" if path.is_dir() else "file"
            self._skip(path, f"a hidden {kind}", f"hidden {kind}s")
        elif suffix in images.SUFFIXES:
            self._add_image(path)
        elif suffix in video.SUFFIXES:
            self._add_video(path)
        else:
            unread = "read as images or videos"
            group = f"files {f'of the type {suffix}' if suffix else 'without a suffix'} are not {unread}"
            self._skip(path, group if suffix else f"a file without a suffix is not {unread}", group)

    def _add_image(self, path: Path) -> None:
        if not self._is_duplicate(path):
            self.found.images.append(path)

    def _add_video(self, path: Path) -> None:
        if self._is_duplicate(path):
            return
        try:
            self.found.videos.append(video.Video(path))
        except BadSample as error:
            self._skip(path, f"{error.fault}; {error.remedy}")

    def _is_duplicate(self, path: Path) -> bool:
        resolved = path.resolve()
        first = self._seen.setdefault(resolved, path)
        if first is path:
            return False
        self._skip(path, "given more than once" if first == path else f"the same file as {first}")
        return True

    def _skip(self, path: Path, reason: str, group: str | None = None) -> None:
        self.found.skipped.append(Skipped(path, reason, group))

    def _skip_folder(self, error: OSError) -> None:
        self._skip(Path(error.filename), f"the folder cannot be read ({error.strerror})")


def _exists(path: Path) -> bool:
    return path.exists() or (glob.has_magic(str(path)) and any(glob.iglob(str(path), recursive=True)))  # noqa: PTH207


def _absolute(path: Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100  keeps symbolic links, whose names the user gave


class ImageFilesReader(Reader):
    """Image files without annotations. The EXIF rotation is applied.

    Args:
        paths: The files.
        class_names: Class names of the model that predicts on the images.
    """

    annotated = False
    states_classes = False

    def __init__(self, paths: Sequence[Path], class_names: list[str]) -> None:
        self.paths = list(paths)
        self.class_names = self.mask_names = class_names
        self.category_ids = list(range(1, len(class_names) + 1))

    def __len__(self) -> int:
        return len(self.paths)

    def image_path(self, index: int) -> Path:
        return self.paths[index]

    def upright(self, index: int) -> bool:
        return True

    def declared_size(self, index: int) -> tuple[int, int] | None:
        return None

    def objects(self, index: int) -> Objects:
        return Objects()

    def mask(self, index: int) -> np.ndarray:
        raise NotImplementedError("images for a prediction have no masks")

    def annotation_paths(self, index: int, task: TaskName) -> list[Path]:
        return []
