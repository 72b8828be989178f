"""Class names: lists, and the text files in which annotation tools write them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from segdet.data.images import Colour
from segdet.util.errors import UserError

CLASS_FILES = ("labels.txt", "class_names.txt", "labelmap.txt")
"""Names of class files in a dataset's folder, as written by LabelMe, LabelMe's converter and CVAT."""

IGNORED = "__ignore__"
"""LabelMe's class name of pixels that do not count. In a mask they are 255."""

_NUMBERED_LINE = re.compile(r"(\d+)(?:\s*[:.,;=]\s*|\s+)(\S.*)")
_LABELMAP_LINE = re.compile(r"([^:]+):(?:(\d+),(\d+),(\d+))?:[^:]*:[^:]*")


@dataclass(frozen=True)
class ClassList:
    """Class names, one per mask value from 0, or one per object class.

    Attributes:
        names: The names.
        colours: The name of each colour in masks that are coded by colour.
        file: The file that contains the names, if any.
    """

    names: list[str]
    colours: dict[Colour, str] = field(default_factory=dict)
    file: Path | None = None


def read_class_file(path: Path) -> ClassList:
    """Read a text file with one class name per line, or CVAT's class file with lines ``name:r,g,b:parts:actions``.

    Lines may start with their number, counted from 0. One line may contain all names, separated by commas.

    Raises:
        UserError: If the file cannot be read, is empty, or contains a name or a colour twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file of class names; give a list such as [cat, dog], or an existing file"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as class names ({error}); save it as UTF-8 text") from None
    lines = [line.strip() for line in lines if line.strip()]
    entries = [_LABELMAP_LINE.fullmatch(line) for line in lines if not line.startswith("#")]
    matched = [entry for entry in entries if entry is not None]
    if not matched or len(matched) < len(entries):
        return ClassList(checked_names(_plain_names(lines), str(path)), file=path)
    colours: dict[Colour, str] = {}
    for entry in matched:
        if entry[2] is None:
            continue
        colour = (int(entry[2]), int(entry[3]), int(entry[4]))
        if max(colour) > 255:
            raise UserError(f"{path}: the colour {colour} of {entry[1]} is above 255; fix it")
        if colour in colours:
            raise UserError(
                f"{path}: {colours[colour]} and {entry[1]} have the same colour; give each its own"
            )
        colours[colour] = entry[1].strip()
    return ClassList(checked_names([entry[1].strip() for entry in matched], str(path)), colours, path)


def _plain_names(lines: list[str]) -> list[str]:
    """Return the names in lines of text, without numbers that are equal to their position."""
    if len(lines) == 1:
        lines = [name.strip() for name in lines[0].split(",") if name.strip()]
    numbered = [_NUMBERED_LINE.fullmatch(line) for line in lines]
    if all(match is not None and int(match[1]) == place for place, match in enumerate(numbered)):
        return [match[2] for match in numbered if match is not None]
    return lines


def names_from(file: Path | str, root: Path) -> list[str]:
    """Read class names from a text file; a relative path is looked up in ``root`` first. See `read_class_file`."""
    return read_class_file(_inside(root, file)).names


def class_list(class_names: Sequence[str] | Path | str, root: Path) -> ClassList:
    """Return the classes in a list of names, or in a text file (looked up in ``root`` first)."""
    if isinstance(class_names, str | Path):
        return read_class_file(_inside(root, class_names))
    return ClassList(checked_names(list(class_names), "class_names"))


def class_files_in(folders: Sequence[Path]) -> list[Path]:
    """Return the class files in several folders, in the order in which they are looked up."""
    paths = [folder / name for folder in folders for name in CLASS_FILES]
    return [path for path in dict.fromkeys(paths) if path.is_file()]


def class_names_from(argument: str | None, root: Path) -> list[str] | None:
    """Return the class names in a command-line argument: ``a,b,c`` or a text file (see `names_from`)."""
    if argument is None:
        return None
    is_file = (root / argument).is_file() or Path(argument).is_file()
    if is_file or "/" in argument or argument.endswith(".txt"):
        return names_from(argument, root)
    return checked_names([name.strip() for name in argument.split(",") if name.strip()], "--class_names")


def checked_names(names: list[str], origin: str) -> list[str]:
    """Return ``names`` without a leading ``__ignore__``, labelme's name for the mask value 255.

    Raises:
        UserError: If there are no names or a name is repeated; the message starts with ``origin``.
    """
    if names and names[0] == IGNORED:
        names = names[1:]
    if not names:
        raise UserError(f"{origin}: no class names; give one name per class")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"{origin}: the class {repeated[0]!r} is named twice; name each class once")
    return names


def is_ignored(name: str) -> bool:
    """Return whether a class name is labelme's name for pixels that do not count."""
    return name == IGNORED


def _inside(root: Path, file: Path | str) -> Path:
    inside = root / file
    return inside if inside.is_file() else Path(file)
