"""Find the files of a VOC folder: split lists, images, masks and annotations."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from segdet.data.formats.splits import IMPORT_COMMAND, import_remedy, voc_list, voc_lists
from segdet.data.sample import TaskName
from segdet.util.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
"""Suffixes of images, in the order of preference if several images have the same name."""

MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".jpg", ".jpeg")
"""Suffixes of masks, in the order of preference; a JPEG is refused when it is read."""

_FLAG = re.compile(r"-1|0|1")


class Member(NamedTuple):
    """An image of a split list.

    Attributes:
        folder: Its VOC folder.
        name: Its name without suffix; may contain subfolders.
        suffix: The suffix in the list, or an empty string.
        mask: The path of the mask as stated in the list, relative to ``folder``, or an empty string.
    """

    folder: Path
    name: str
    suffix: str = ""
    mask: str = ""


class Files:
    """Find files of VOC folders by their name without suffix. Each folder is listed once and then kept in memory."""

    def __init__(self) -> None:
        self._listed: dict[tuple[Path, Sequence[str]], dict[str, list[str]]] = {}

    def named(self, folder: Path, name: str, suffixes: Sequence[str]) -> list[Path]:
        """Return the files ``folder/name`` with one of the suffixes, in the order of ``suffixes``.

        Args:
            folder: The folder.
            name: A name without suffix; may contain subfolders.
            suffixes: The suffixes, in lower case. The suffixes of the files may be in upper case.
        """
        place = (folder / name).parent
        return [place / file for file in self._list(place, suffixes).get(Path(name).name, [])]

    def images(self, member: Member) -> list[Path]:
        """Return the images with the name of a member: in ``JPEGImages``, or else at the path in the list."""
        folders = (member.folder / "JPEGImages", member.folder)
        found = (self.named(folder, member.name, IMAGE_SUFFIXES) for folder in folders)
        return next((paths for paths in found if paths), [])

    def image(self, member: Member) -> Path:
        """Return the image of a member; if there is none, the path where it would be."""
        found = self.images(member)
        listed = [path for path in found if path.suffix == member.suffix]
        missing = member.folder / "JPEGImages" / f"{member.name}{member.suffix or '.jpg'}"
        return (listed or found or [missing])[0]

    def masks(self, member: Member) -> list[Path]:
        """Return the masks of a member: the one in the list, or else all with the member's name."""
        listed = member.folder / member.mask
        if member.mask and (listed.is_file() or listed.stem != Path(member.name).name):
            return [listed]
        folder = self.mask_folder(member.folder)
        return self._annotations(folder, member, MASK_SUFFIXES) or [folder / f"{member.name}.png"]

    def xml(self, member: Member) -> Path:
        """Return the XML file of a member; if there is none, the path where it would be."""
        folder = member.folder / "Annotations"
        return (self._annotations(folder, member, (".xml",)) or [folder / f"{member.name}.xml"])[0]

    def mask_folder(self, folder: Path) -> Path:
        """Return the folder of a VOC folder's masks.

        This is ``SegmentationClass``, or ``SegmentationClassPNG`` if the former contains no images. LabelMe's converter
        writes arrays to the former and images to the latter.
        """
        masks, images = folder / "SegmentationClass", folder / "SegmentationClassPNG"
        return masks if self._list(masks, MASK_SUFFIXES) or not images.is_dir() else images

    def object_masks(self, member: Member) -> list[Path]:
        """Return the masks in ``SegmentationObject`` of a member."""
        return self._annotations(member.folder / "SegmentationObject", member, MASK_SUFFIXES)

    def _list(self, folder: Path, suffixes: Sequence[str]) -> dict[str, list[str]]:
        if (folder, suffixes) not in self._listed:
            self._listed[folder, suffixes] = _by_stem(folder, suffixes)
        return self._listed[folder, suffixes]

    def _annotations(self, folder: Path, member: Member, suffixes: Sequence[str]) -> list[Path]:
        """Return the annotations of a member, by its name or else by its name without folders."""
        found = (self.named(folder, name, suffixes) for name in (member.name, Path(member.name).name))
        return next((paths for paths in found if paths), [])


def voc_folder_of(root: Path, name: str) -> tuple[Path, str]:
    """Return the VOC folder and the split of a set name, such as ``2007/trainval``.

    Raises:
        UserError: If there is no such folder.
    """
    year, _, split = name.rpartition("/")
    if not year:
        if (root / "ImageSets").is_dir():
            return root, split
        advice = f"to make split lists: {IMPORT_COMMAND.format(shlex.quote(str(root)))}"
        if years := _years_in(root):
            advice = f"give the year as well, for example {years[0]}/{split} (there are {', '.join(years)})"
        elif not (root / "JPEGImages").is_dir():
            fallback = "give the folder that contains JPEGImages/, ImageSets/ and the annotations"
            advice = import_remedy(root) or fallback
        raise UserError(f"{root}: no ImageSets/ folder in it; {advice}")
    for folder in (root / f"VOC{year}", root / "VOCdevkit" / f"VOC{year}", root / year):
        if folder.is_dir():
            return folder, split
    years = _years_in(root)
    there = f"there are {', '.join(years)}" if years else "there is no VOC folder"
    raise UserError(f"{root}: neither VOC{year}/ nor VOCdevkit/VOC{year}/ in it; {there}")


def read_list(folder: Path, split: str, task: TaskName, files: Files) -> list[Member]:
    """Read a split list. A line contains a name, possibly with spaces, and may end in a flag or the path of a mask.

    A name may include the suffix of the image and its path, absolute or relative to the VOC folder.

    Raises:
        UserError: If the list is missing, empty or not text.
    """
    path = voc_list(folder, split, task)
    if path is None:
        kind = "Segmentation" if task == "segmentation" else "Main"
        missing = folder / "ImageSets" / kind / f"{split}.txt"
        raise UserError(f"{missing}: no such split list for {task}; {_existing_lists(folder)}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error}); save it as UTF-8") from None
    lines = [line.strip() for line in lines if line.strip()]
    if not lines:
        raise UserError(f"{path}: the split list is empty; {_existing_lists(folder)}")
    return [_member(folder, line, files) for line in lines]


def flagged_lines(folder: Path, split: str, task: TaskName) -> bool:
    """Return whether each line of a split list ends in a flag -1, 0 or 1, as in VOC's lists of one class."""
    path = voc_list(folder, split, task)
    lines = path.read_text(encoding="utf-8-sig").splitlines() if path is not None else []
    words = [line.split() for line in lines if line.strip()]
    return bool(words) and all(len(each) == 2 and _FLAG.fullmatch(each[1]) for each in words)


def split_suffix(name: str) -> tuple[str, str]:
    """Split a file name into stem and suffix; the suffix is empty if it is not that of an image."""
    stem, dot, suffix = name.rpartition(".")
    return (stem, dot + suffix) if f".{suffix.lower()}" in IMAGE_SUFFIXES and stem else (name, "")


def _member(folder: Path, line: str, files: Files) -> Member:
    def there(name: str) -> bool:
        return bool(files.named(folder / "JPEGImages", name, IMAGE_SUFFIXES))

    whole = split_suffix(_in_images(folder, line))
    if len(line.split()) == 1 or there(whole[0]):
        return Member(folder, *whole)
    before, last = line.rsplit(maxsplit=1)
    first = split_suffix(_in_images(folder, before))
    if _FLAG.fullmatch(last):
        return Member(folder, *first)
    if split_suffix(last)[1] and (first[1] or there(first[0])):
        return Member(folder, *first, last.replace("\\", "/"))
    return Member(folder, *whole)


def _in_images(folder: Path, written: str) -> str:
    """Return the path of an image from a split list. If it is in ``JPEGImages``, it becomes relative to that folder."""
    path = written.replace("\\", "/").removeprefix("./")
    parts = path.split("/")
    if "JPEGImages" in parts[:-1]:
        return "/".join(parts[len(parts) - parts[::-1].index("JPEGImages") :])
    return path


def _by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, list[str]]:
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return {}
    found: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        stem, dot, suffix = name.rpartition(".")
        if (ending := f"{dot}{suffix.lower()}") in suffixes and stem:
            found.setdefault(stem, []).append((suffixes.index(ending), name))
    return {stem: [name for _, name in sorted(several)] for stem, several in found.items()}


def _existing_lists(folder: Path) -> str:
    by_kind: dict[str, list[str]] = {}
    for path in voc_lists(folder):
        kind = path.parent.name if path.parent.name != "ImageSets" else "directly in ImageSets"
        by_kind.setdefault(kind, []).append(path.stem)
    found = "; ".join(f"{kind}: {shortened(names)}" for kind, names in by_kind.items())
    return f"there are {found}" if found else f"there is no list in {folder / 'ImageSets'}"


def shortened(values: Sequence[object]) -> str:
    """Return the first eight values as text, and the number of all if there are more."""
    return ", ".join(map(str, values[:8])) + (f" ... ({len(values)})" if len(values) > 8 else "")


def _years_in(root: Path) -> list[str]:
    folders = [*root.glob("VOC*"), *root.glob("VOCdevkit/VOC*")]
    return sorted({path.name[3:] for path in folders if (path / "ImageSets").is_dir()})
