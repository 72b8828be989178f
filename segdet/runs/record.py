"""The result record: what one run was, what it scored and what it cost, as ``result.json`` in its folder.

Whatever compares runs (tables, plots, later bootstraps) reads this file and nothing else. It is small,
plain JSON, and reading it imports no torch.
"""

import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from segdet.util.errors import UserError
from segdet.util.files import write_text

SCHEMA = 1
"""The version of the record's form. A new optional key keeps it; a key that changes its meaning raises it."""

RECORD_NAME = "result.json"
"""The record's file name in a run folder."""

Status = Literal["finished", "interrupted", "failed"]


@dataclass
class Cost:
    """What a run and its network cost; None is "not measured".

    Attributes:
        parameters: Number of parameters of the network, frozen ones included.
        flops: Floating-point operations of one image's prediction, a multiply-add counted as two.
        ms_per_image: Milliseconds of one image's prediction at batch size one, decoding left out.
        passes_per_image: How often the network runs for one image: 1 for a single shot, thousands for a
            sliding window.
        train_seconds: Seconds of training, validation included, over all resumed parts of the run.
        peak_memory_mb: Peak memory in MiB, of the device where it is a GPU, else of the process.
        disk_mb: Megabytes (10**6 bytes) that the training left on disk: its folder without Weights & Biases' files,
            and the region proposals of its images.
        stages_ms: Milliseconds of each named stage of one image's prediction, in their order; empty where the model
            names none.
    """

    parameters: int | None = None
    flops: int | None = None
    ms_per_image: float | None = None
    passes_per_image: float | None = None
    train_seconds: float | None = None
    peak_memory_mb: float | None = None
    disk_mb: float | None = None
    stages_ms: dict[str, float] = field(default_factory=dict)


@dataclass
class Record:
    """The result of one run (one configuration, one seed).

    Attributes:
        name: The run's name, which is its folder's.
        task: ``segmentation``, ``localization`` or ``detection``.
        model: The model's class.
        data: The data module's class.
        seed: The run's seed.
        status: How training ended.
        metrics: Final scores by their logged names (``val/miou``, ``test/map_50``); None is "undefined"
            (NaN when it was measured).
        cost: What it cost.
        epochs: Finished training epochs.
        steps: Optimizer steps.
        hardware: What it ran on, by name (``cpu``, ``gpu``, ``cores`` ...).
        fingerprint: The dataset's; equal ones read the same files.
        command: The command line that trained it; of a run that went on, all of them, joined by ``&&``.
        started: When training started, ISO 8601.
        finished: When it ended, ISO 8601.
        backbone: The backbone's name, where the model has one.
        per_image: The file of per-image scores, relative to the record, which resampling reads.
        launcher: What started the processes (``torchrun``, ``slurm`` ...), None for none.
    """

    name: str
    task: str
    model: str
    data: str
    seed: int
    status: Status
    metrics: dict[str, float | None] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    epochs: int = 0
    steps: int = 0
    hardware: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    command: str = ""
    started: str = ""
    finished: str = ""
    backbone: str | None = None
    per_image: str | None = None
    launcher: str | None = None

    def merge(
        self, metrics: Mapping[str, float | None], cost: Cost | None = None, per_image: str | None = None
    ) -> "Record":
        """This record with later measurements added, such as the test scores to those of the fit.

        Args:
            metrics: Added to the record's; equal names are replaced.
            cost: Its measured fields replace the record's, those that are None leave them. Of the peak
                memory the larger one is kept, for the run had need of it.
            per_image: Replaces the record's where given.
        """
        merged = self.cost
        if cost is not None:
            measured = {f.name: getattr(cost, f.name) for f in fields(cost)}
            measured = {name: value for name, value in measured.items() if value is not None and value != {}}
            if "peak_memory_mb" in measured:
                measured["peak_memory_mb"] = max(measured["peak_memory_mb"], merged.peak_memory_mb or 0)
            merged = replace(merged, **measured)
        return replace(
            self,
            metrics={**self.metrics, **metrics},
            cost=merged,
            per_image=self.per_image if per_image is None else per_image,
        )

    def write(self, path: Path | str) -> None:
        """Writes the record to ``path`` (a file), whole or not at all: a reader never sees half a record.

        Raises:
            UserError: If the file cannot be written.
        """
        path = Path(path)
        text = json.dumps(_plain({"schema": SCHEMA, **asdict(self)}), indent=1, allow_nan=False)
        write_text(path, text + "\n")

    @classmethod
    def read(cls, path: Path | str) -> "Record":
        """The record in the file ``path``. Keys that this version does not know are passed over.

        Raises:
            UserError: If the file is missing, torn, of another schema or holds a wrong value.
        """
        path = Path(path)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{path}: no such result record; run segdet fit first") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); mend its rights") from error
        except ValueError as error:  # bad JSON and bad UTF-8 alike
            raise UserError(f"{path}: torn or no JSON ({error}); run it again") from None
        if not isinstance(values, dict) or "schema" not in values:
            raise UserError(f"{path}: not a result record (no key 'schema'); remove it or run it again")
        if values["schema"] != SCHEMA:
            raise UserError(
                f"{path}: has schema {values['schema']!r}, this segdet reads {SCHEMA}; "
                "use the segdet that wrote it or run it again"
            )
        return _build(cls, values, path, "")


def _plain(value: Any) -> Any:
    """``value`` in JSON's own types; what is not finite becomes null, which JSON has in its place."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # a scalar of numpy or torch
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


@cache
def _types(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _build(cls: type, values: Mapping[str, Any], path: Path, prefix: str) -> Any:
    """The dataclass ``cls`` of checked ``values``."""
    given = {}
    for f in fields(cls):
        if f.name in values:
            given[f.name] = _checked(values[f.name], _types(cls)[f.name], path, prefix + f.name)
    try:
        return cls(**given)
    except TypeError:
        missing = next(f.name for f in fields(cls) if f.name not in given)
        raise UserError(f"{path}: key '{prefix}{missing}' is missing; run it again") from None


def _checked(value: Any, expected: Any, path: Path, key: str) -> Any:
    """``value`` if it is of the type ``expected``, a hint of `Record` or `Cost`."""
    if expected is Cost and isinstance(value, dict):
        return _build(Cost, value, path, key + ".")
    if expected == dict[str, Any] and isinstance(value, dict):
        return value
    if typing.get_origin(expected) is dict and isinstance(value, dict):
        item = typing.get_args(expected)[1]
        return {name: _checked(entry, item, path, f"{key}.{name}") for name, entry in value.items()}
    if _is(value, expected):
        return value
    raise UserError(
        f"{path}: key '{key}' is {value!r} and should be {_said(expected)}; mend it or run it again"
    )


def _is(value: Any, expected: Any) -> bool:
    if isinstance(expected, types.UnionType):
        return any(_is(value, option) for option in typing.get_args(expected))
    if typing.get_origin(expected) is Literal:
        return value in typing.get_args(expected)
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(expected, type) and isinstance(value, expected)


def _said(expected: Any) -> str:
    """A type hint in words."""
    if expected is Cost or typing.get_origin(expected) is dict:
        return "a mapping"
    if isinstance(expected, types.UnionType):
        return " or ".join(_said(option) for option in typing.get_args(expected))
    if typing.get_origin(expected) is Literal:
        return "one of " + ", ".join(typing.get_args(expected))
    return {float: "a number", int: "a whole number", str: "a text", type(None): "null"}[expected]
