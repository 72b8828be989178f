"""The files that a run reads: the code, the dataset and the files that its configuration names, with their digests.

They are stored in ``inputs.json.gz`` in the run's folder. An image takes about 10 bytes in addition to its name.
"""

import gzip
import hashlib
import importlib.util
import json
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import segdet
from segdet.data.file_digests import file_digests
from segdet.runs.folder_layout import INPUTS_NAME
from segdet.util.errors import UserError
from segdet.util.files import write_atomically

if TYPE_CHECKING:
    from segdet.data.base import DataModule

Digests = dict[str, str | None]
"""The digest of each file by its path; None for a missing file."""


@dataclass
class Inputs:
    """The files that a run reads.

    Attributes:
        root: The dataset's folder.
        data: For each subset, the digest of each file in the order of the images. Paths are relative to ``root``.
        classes: The names of the classes, in order.
        code: The digest of each module of segdet, relative to the package's parent, and of the modules of other
            classes in the configuration.
        named: The digest of each file that the configuration names, such as weights and proposals.
    """

    root: str = ""
    data: dict[str, Digests] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    code: Digests = field(default_factory=dict)
    named: Digests = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """A digest of all inputs except the location of the dataset: 16 hexadecimal digits."""
        content = {name: value for name, value in asdict(self).items() if name != "root"}
        text = json.dumps({**content, "data": {name: list(each.items()) for name, each in self.data.items()}})
        return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()

    def write(self, folder: Path) -> None:
        """Write the inputs to a run's folder atomically."""
        text = json.dumps(asdict(self)).encode("utf-8", "surrogateescape")
        with write_atomically(folder / INPUTS_NAME) as temporary:
            temporary.write_bytes(gzip.compress(text, mtime=0))

    @classmethod
    def read(cls, folder: Path) -> "Inputs | None":
        """Return the inputs of the run in ``folder``; None if an earlier version did not record them.

        Raises:
            UserError: If the file is corrupt or cannot be read.
        """
        path = folder / INPUTS_NAME
        try:
            return cls(**json.loads(gzip.decompress(path.read_bytes())))
        except FileNotFoundError:
            return None
        except (OSError, EOFError, ValueError, TypeError) as error:
            raise UserError(
                f"{path}: corrupt or unreadable ({error}); remove it to compare without the digests of files"
            ) from None


def inputs_of(data: "DataModule | None", config: Mapping[str, Any]) -> Inputs:
    """Return the inputs of a run as they are now.

    Args:
        data: The data module, or None.
        config: The run's configuration.

    Raises:
        UserError: If the training or validation images cannot be listed.
    """
    from segdet.data.base import SUBSETS  # imports torch, which reading inputs does not need

    inputs = Inputs(code=code_digests(config), named=named_digests(config))
    if data is None:
        return inputs
    inputs.root = str(data.root.absolute())
    listed = {subset: _files(data, subset) for subset in SUBSETS}
    digests = file_digests(path for paths in listed.values() for path in paths)
    inputs.data = {
        subset: {_relative(path, data.root): digests[path] for path in paths}
        for subset, paths in listed.items()
    }
    inputs.classes = [str(name) for name in data.class_names]
    return inputs


def current_state(recorded: Inputs, config: Mapping[str, Any]) -> Inputs:
    """Return the inputs of a recorded run as they are now, for a dataset that can no longer be opened.

    Files that were added to the dataset are not found.
    """
    root = Path(recorded.root)
    digests = file_digests(root / name for files in recorded.data.values() for name in files)
    data = {subset: {name: digests[root / name] for name in files} for subset, files in recorded.data.items()}
    return Inputs(recorded.root, data, recorded.classes, code_digests(config), named_digests(config))


def _files(data: "DataModule", subset: Any) -> list[Path]:
    try:
        reader = data.reader(subset)
    except UserError:
        if subset == "test":  # a training does not read it
            return []
        raise
    pairs = ((reader.image_path(i), *reader.annotation_paths(i, data.task)) for i in range(len(reader)))
    return list(dict.fromkeys(path for paths in pairs for path in paths))


def _relative(path: Path, root: Path) -> str:
    path, root = path.absolute(), root.absolute()
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def code_digests(config: Mapping[str, Any]) -> Digests:
    """Return the digest of each module of segdet, and of the user's own modules with classes in the configuration."""
    package = Path(segdet.__file__).parent
    files = {path.relative_to(package.parent).as_posix(): path for path in sorted(package.rglob("*.py"))}
    for class_path in _strings(config, "class_path"):
        own = _own_module(class_path)
        if own is not None:
            files[str(own)] = own
    digests = file_digests(files.values())
    return {name: digests[path] for name, path in files.items()}


def _own_module(class_path: str) -> Path | None:
    """Return the file of the user's own module that defines a class, or None for an installed package."""
    module = class_path.rpartition(".")[0]
    if not module or module.split(".")[0] == "segdet":
        return None
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    if found is None or found.origin is None or not found.has_location:
        return None
    path = Path(found.origin)
    installed = (Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))
    return None if any(path.is_relative_to(folder) for folder in installed) else path


def named_digests(config: Mapping[str, Any]) -> Digests:
    """Return the digest of each file that the configuration names; for a run's folder, of its best checkpoint."""
    files = []
    for text in _strings({name: config.get(name) for name in ("model", "data", "trainer")}):
        path = Path(text)
        try:
            if path.is_dir():
                path = path / "checkpoints" / "best.ckpt"
            if path.is_file():
                files.append(path)
        except (OSError, ValueError):  # a text that is too long for a name
            continue
    digests = file_digests(files)
    return {str(path): digest for path, digest in digests.items()}


def _strings(node: Any, key: str | None = None, name: str | None = None) -> Iterator[str]:
    """Yield the strings in a configuration, or only those of the option ``key``."""
    if isinstance(node, Mapping):
        for child, value in node.items():
            yield from _strings(value, key, str(child))
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _strings(value, key, name)
    elif isinstance(node, str) and key in (None, name):
        yield node
