"""Checkpoint files: read the description of the run, and choose the file to start from."""

import contextlib
import json
import pkgutil
import shlex
import sys
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from segdet.data.base import Classes
from segdet.runs.folder_layout import read_record, shown_path
from segdet.training.load_checkpoint import DESCRIPTION, read_checkpoint
from segdet.util.distributed import rank
from segdet.util.errors import UserError


class Checkpoint:
    """A checkpoint file.

    Args:
        path: The file.

    Attributes:
        steps: The number of training steps after which it was written.
        weights: The names of its weights.
        resumable: Whether it holds the state of the training besides the weights.
        by_lightning: Whether it has Lightning's format, which a Trainer can load.
        config: The run's configuration; for a script's checkpoint, only the model's section.
        classes: The classes of the training data.

    Raises:
        UserError: If the file is missing or corrupt, or is not a checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        content = read_checkpoint(path)
        description = content.get(DESCRIPTION) or {}
        self.steps = int(content.get("global_step", 0))
        self.weights = frozenset(content["state_dict"])
        self.config: dict[str, Any] = _parsed(str(description.get("config", "")), path)
        if not self.config and "class_path" in description and "hyper_parameters" in content:
            self.config = {"model": _model_section(description["class_path"], content["hyper_parameters"])}
        self.classes = Classes(
            description.get("class_names", []),
            description.get("category_ids", []),
            description.get("mask_values", []),
            description.get("palette_masks", True),
        )

        self.resumable = "optimizer_states" in content
        self.by_lightning = "pytorch-lightning_version" in content

    def check_class(self, section: str) -> None:
        """Raise `UserError` if the class of ``model`` or ``data`` cannot be imported."""
        class_path = (self.config.get(section) or {}).get("class_path", "")
        try:
            pkgutil.resolve_name(class_path)
        except (AttributeError, ImportError, ValueError) as error:
            raise UserError(
                f"{self.path}: its {section} class {class_path} cannot be imported ({error}); it was moved or renamed, "
                "so use the version of segdet or install the package that wrote the checkpoint"
            ) from error

    def __str__(self) -> str:
        return f"{self.path.name} of step {self.steps}"


def _parsed(config: str, path: Path) -> dict[str, Any]:
    try:
        sections = yaml.safe_load(config) or {}
    except yaml.YAMLError:
        sections = None
    if not isinstance(sections, dict):
        raise UserError(f"{path}: the configuration in it is corrupt; give another file")
    return sections


def _model_section(class_path: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the ``model`` section of a configuration; the classes are taken from the data."""
    given = {name: value for name, value in arguments.items() if name not in ("class_names", "category_ids")}
    return {"class_path": class_path, "init_args": json.loads(json.dumps(given))}  # tuples become lists


def find_checkpoint(name: str, run_dir: str | None, command: str) -> Path:
    """Return the checkpoint file that ``--ckpt_path`` names.

    Args:
        name: A file, a run's folder, or ``best`` or ``last`` of the run in ``run_dir``.
        run_dir: The run's folder, if ``--run_dir`` names it.
        command: The subcommand. In a run's folder, fit uses ``last.ckpt``, and the others use ``best.ckpt``.

    Raises:
        UserError: If there is no such file.
    """
    if name in ("best", "last"):
        if run_dir is None:
            raise UserError(f"--ckpt_path {name}: the run is not given; give its folder as --run_dir too")
        path = Path(run_dir) / "checkpoints" / f"{name}.ckpt"
    elif Path(name).is_dir():
        path = Path(name) / "checkpoints" / ("last.ckpt" if command == "fit" else "best.ckpt")
    else:
        path = Path(name)
    last = path.with_name("last.ckpt")
    if path.name == "best.ckpt" and last.is_file() and not path.is_file():
        record = read_record(path.parent.parent)
        scored = record is not None and any(name.startswith("val/") for name in record.metrics)
        reason = "" if scored else ", because no validation of the run had a score"
        raise UserError(
            f"{path}: no best checkpoint{reason}; give --ckpt_path {shlex.quote(str(shown_path(last)))}"
        )
    if not path.exists() and (run_dir is not None or not path.suffix) and not Path(run_dir or name).exists():
        raise UserError(f"{run_dir or name}: no such run; give the folder of a run, or a checkpoint file")
    if not path.is_file():
        raise UserError(
            f"{path}: no such checkpoint; give an existing file, or 'best' or 'last' with the --run_dir of a run that "
            "has saved one"
        )
    return path


def open_checkpoint(name: str, run_dir: str | None, command: str) -> Checkpoint:
    """Return the checkpoint that ``--ckpt_path`` names. The arguments are those of `find_checkpoint`.

    Raises:
        UserError: If the file is missing or corrupt. The message names the valid checkpoints in the same folder.
    """
    path = find_checkpoint(name, run_dir, command)
    try:
        checkpoint = Checkpoint(path)
        if not checkpoint.by_lightning:
            raise UserError(
                f"{path}: holds weights, but is not a checkpoint of Lightning; load the weights with --model.weights"
            )
        return checkpoint
    except UserError as error:
        others = _valid(path.parent.glob("*.ckpt"), path)
        if not others:
            raise
        raise UserError(f"{error}: {_listed(others)}") from error


def remaining_checkpoints(folder: Path) -> str:
    """Describe the valid checkpoints of the run in ``folder``, the last one first, and how to resume from it."""
    valid = [each for each in _valid((folder / "checkpoints").glob("*.ckpt")) if each.resumable]
    if not valid:
        return "no checkpoint was saved before"
    return f"{_listed(valid)}; to resume, give --ckpt_path {shlex.quote(str(shown_path(valid[0].path)))}"


def _valid(files: Iterable[Path], but: Path | None = None) -> list[Checkpoint]:
    """Return the valid checkpoints among ``files`` except ``but``, the one with the most steps first."""
    valid = []
    for file in sorted(files, reverse=True):
        with contextlib.suppress(UserError):
            if file != but:
                valid.append(Checkpoint(file))
    return sorted(valid, key=lambda checkpoint: checkpoint.steps, reverse=True)


def _listed(checkpoints: list[Checkpoint], most: int = 5) -> str:
    named = ", ".join(str(each) for each in checkpoints[:most]) + (", ..." if len(checkpoints) > most else "")
    return f"{named} {'is' if len(checkpoints) == 1 else 'are'} valid"


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the checkpoint from which the run in ``folder`` is resumed, or None if there is no valid one.

    This is ``last.ckpt``. If it is corrupt, one line reports that, and the valid checkpoint with the most steps is
    used. Each process of a run calls this function before the processes can communicate. `RunRecorder` checks that all
    of them have chosen the same file.
    """
    last = folder / "checkpoints" / "last.ckpt"
    # On a network file system, opening a file refreshes this machine's cached metadata.
    with contextlib.suppress(OSError), last.open("rb"):
        pass
    damaged = False
    if last.exists():
        try:
            checkpoint = Checkpoint(last)
            damaged = not _is_intact(last)
            if not damaged:
                return checkpoint
        except UserError:
            damaged = True
    others = [
        each for each in _valid(last.parent.glob("*.ckpt"), last) if each.resumable and _is_intact(each.path)
    ]
    if damaged and rank() == 0:
        fix = f"the run resumes from {others[0]}" if others else "the run starts again"
        sys.stderr.write(f"segdet: {last}: the file is corrupt; {fix}\n")
    return others[0] if others else None


def _is_intact(path: Path) -> bool:
    """Return whether the checksums in a checkpoint are correct; torch does not check them."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError):
        return False
