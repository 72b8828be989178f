"""Reproduce a run: find what differs from the original, train again in a new folder, and compare the results."""

import copy
import json
import pkgutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml

from segdet.data.base import DataModule
from segdet.runs.comparison import Comparison, compare_runs
from segdet.runs.differences import Description, Difference, description_of, differences
from segdet.runs.folder_layout import REPRODUCTION_NAME, first_provenance, read_record
from segdet.runs.inputs import Inputs, current_state, inputs_of
from segdet.runs.provenance import provenance
from segdet.runs.record import Record, to_json
from segdet.task import Task
from segdet.training.load_checkpoint import read_checkpoint
from segdet.util.errors import TERMINATED, UserError
from segdet.util.files import write_text


class InterruptAt(pl.Callback):
    """Interrupt a training after a step, as a scheduler does.

    The reproduction of an interrupted run ends at the same step, with the learning rates of the whole schedule.

    Args:
        step: The number of optimizer steps after which the training is interrupted.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Send SIGTERM to this process at the step, and end the training after this batch."""
        if trainer.global_step >= self.step:
            signal.raise_signal(signal.SIGTERM)
            # Every process stops here, so they need no agreement, which would take effect one batch later.
            trainer._signal_connector.received_sigterm = True


@dataclass
class Original:
    """The run to reproduce.

    Attributes:
        folder: Its folder.
        config: Its configuration.
        record: Its record, or None for a run that was killed.
    """

    folder: Path
    config: dict[str, Any]
    record: Record | None

    @classmethod
    def read(cls, folder: Path) -> "Original":
        """Read the run in ``folder``.

        Raises:
            UserError: If the folder holds no run that saved a checkpoint.
        """
        path = folder / "config.yaml"
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{folder}: no run in it; give the folder of a run of segdet fit") from None
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(
                f"{path}: cannot be read ({' '.join(str(error).split())}); fix the file"
            ) from None
        if not isinstance(config, dict) or not {"model", "data", "trainer"} <= config.keys():
            raise UserError(
                f"{path}: not the configuration of a training; give the folder of a run of segdet fit"
            )
        if not any((folder / "checkpoints").glob("*.ckpt")):
            raise UserError(f"{folder}: has no checkpoint to compare with; give a run that saved one")
        return cls(folder, config, read_record(folder))

    @property
    def is_complete(self) -> bool:
        """Whether the training ended by itself; if not, it was stopped."""
        return self.record is not None and self.record.status in ("finished", "diverged")

    @property
    def is_tested(self) -> bool:
        """Whether the run was finished and tested."""
        return self.record is not None and self.record.status == "finished" and self.record.is_tested

    @cached_property
    def last_step(self) -> int:
        """The number of steps in ``last.ckpt``; 0 if it is missing."""
        path = self.folder / "checkpoints" / "last.ckpt"
        return int(read_checkpoint(path).get("global_step", 0)) if path.exists() else 0

    @property
    def main_scores(self) -> list[str]:
        """The main score of validation, by which the best checkpoint is chosen, and that of a test."""
        monitor = str(getattr(_class_of(self.config["model"], Task), "monitor", ""))
        return [monitor, monitor.replace("val/", "test/")] if self.is_tested else [monitor]

    def check_launch(self) -> None:
        """Raise `UserError` if another program started the processes of the original."""
        recorded = first_provenance(self.folder)
        if (launcher := recorded.get("launcher")) and recorded.get("processes", 1) > 1:
            raise UserError(
                f"{self.folder}: {launcher} started its {recorded['processes']} processes; start segdet fit --config "
                f"{self.folder / 'config.yaml'} --run_dir NEW in the same way, then compare with --against NEW"
            )


def find_differences(original: Original) -> list[Difference]:
    """Return what differs now from the conditions of the original run.

    Raises:
        UserError: If the dataset cannot be opened and its files were not recorded.
    """
    before = description_of(original.folder, original.config)
    data = build_data(original.config)
    try:
        inputs = inputs_of(data, original.config)
    except UserError:
        if before.inputs is None:
            raise
        inputs = current_state(before.inputs, original.config)
        if inputs.data == before.inputs.data:
            raise
    now = provenance("")
    if before.inputs is None and first_provenance(original.folder).get("fingerprint"):
        from segdet.runs.folder_choice import fingerprint_of

        now["fingerprint"] = fingerprint_of(data)
    if (
        before.provenance.get("processes", 1) > 1
    ):  # Lightning divides the cores among the processes that it starts
        now["hardware"].pop("threads")
    return differences(before, Description(now, inputs, original.config))


def build_data(config: dict[str, Any]) -> DataModule:
    """Return the data module of a configuration.

    Raises:
        UserError: If its class or its arguments are not valid.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DataModule, "data")
    try:
        instances = parser.instantiate(parser.parse_object({"data": config["data"]}))
    except UserError:
        raise
    except Exception as error:  # jsonargparse raises errors of many types
        raise UserError(
            f"the data of the configuration cannot be built: {' '.join(str(error).split())}"
        ) from error
    data: DataModule = instances.data
    return data


def reproduce(
    original: Original, folder: Path, run: Callable[[Sequence[str]], int], listed: Sequence[Difference]
) -> tuple[Comparison, list[Difference]]:
    """Train the original run again in a new folder, test it if the original was tested, and compare both.

    Args:
        original: The original run.
        folder: The new folder.
        run: A function that runs a segdet command with the given arguments and returns its exit status.
        listed: The differences that are known before the training.

    Returns:
        The comparison, and all differences, including those that the training found.

    Raises:
        UserError: If a file of the dataset is missing, or a command failed.
    """
    original.check_launch()
    missing = [each for each in listed if each.missing and each.kind == "data"]
    if missing:
        more = f" and {len(missing) - 1:,} more files" if len(missing) > 1 else ""
        recorded = Inputs.read(original.folder)
        root = f"{recorded.root}: " if recorded is not None else ""
        raise UserError(
            f"{root}{missing[0].subject}{more}: missing in the dataset; restore the data, then try again"
        )
    config = copy.deepcopy(original.config)
    stopped = not original.is_complete
    if stopped:
        if original.last_step == 0:
            raise UserError(
                f"{original.folder}: was stopped and has no last.ckpt, which determines the last step to reproduce; "
                "resume the run first"
            )
        own = {"class_path": f"{__name__}.InterruptAt", "init_args": {"step": original.last_step}}
        callbacks = config["trainer"].get("callbacks") or []
        config["trainer"]["callbacks"] = [*(callbacks if isinstance(callbacks, list) else [callbacks]), own]
    file = folder.with_name(f"{folder.name}.yaml")
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, yaml.safe_dump(config, sort_keys=False))
    command = ["fit", "--config", str(file), "--run_dir", str(folder)]
    try:
        status = run([*command, "--test", "true"] if original.is_tested else command)
    finally:
        file.unlink(missing_ok=True)
    diverged = original.record is not None and original.record.status == "diverged"
    expected = {TERMINATED} if stopped else {0, 2} if diverged else {0}
    if status not in expected or not any((folder / "checkpoints").glob("*.ckpt")):
        raise UserError(
            f"{folder}: the training ended with status {status}; fix the error above and try again"
        )
    return compare(original, folder)


def compare(original: Original, folder: Path) -> tuple[Comparison, list[Difference]]:
    """Compare the original with the run in ``folder``; write the result to its ``reproduction.json``.

    Returns:
        The comparison, and what differs between both runs.

    Raises:
        UserError: If the folder holds no run with checkpoints, or is that of the original.
    """
    other = Original.read(folder)
    if folder.resolve() == original.folder.resolve():
        raise UserError(f"{folder}: is the original run itself; give the folder of another run")
    config = copy.deepcopy(other.config)
    callbacks = config["trainer"].get("callbacks")
    if isinstance(callbacks, list):
        own = f"{__name__}.InterruptAt"
        config["trainer"]["callbacks"] = [each for each in callbacks if each.get("class_path") != own] or None
    before, now = description_of(original.folder, original.config), description_of(folder, config)
    found = differences(before, now)
    comparison = compare_runs(original.folder, folder, original.main_scores, original.is_complete)
    content = {
        "original": str(original.folder.resolve()),
        "differences": [asdict(each) for each in found],
        **asdict(comparison),
    }
    write_text(folder / REPRODUCTION_NAME, json.dumps(to_json(content), indent=1) + "\n")
    return comparison, found


def _class_of(section: dict[str, Any], base: type) -> type:
    """Return the class of a configuration's section, or ``base`` if it cannot be imported."""
    try:
        found = pkgutil.resolve_name(str(section.get("class_path", "")))
    except (AttributeError, ImportError, ValueError):
        return base
    return found if isinstance(found, type) else base
