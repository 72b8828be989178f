"""Compare two runs of the same configuration: metric by metric and weight by weight."""

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor

from segdet.runs.folder_layout import RECORD_NAME, TIME, read_record
from segdet.runs.record import Record
from segdet.training.load_checkpoint import read_checkpoint

Outcome = Literal["identical", "within seed noise", "different"]

FEWEST_SEEDS = 3
"""The smallest number of seeds, including that of the original, from which the noise is estimated."""

CONFIDENCE = 0.95
"""The probability that two runs that differ only in their seeds are within the noise of each other."""

Curve = dict[tuple[str, int], float | None]
"""Logged values by name and step."""


@dataclass(frozen=True)
class Deviation:
    """A value that differs between two runs.

    Attributes:
        name: The metric, with its step if it is a logged value, or the weight with its checkpoint.
        before: The value of the original; for weights, the largest absolute weight. None if it is missing.
        now: The other value; for weights, None.
        difference: The absolute difference; for weights, the largest of the tensor. Infinite if one value is missing.
    """

    name: str
    before: float | None
    now: float | None
    difference: float


@dataclass
class Noise:
    """The noise of the main scores between runs that differ only in their seeds.

    Attributes:
        seeds: The seeds.
        limits: The largest difference of each main score that the noise explains.
    """

    seeds: list[int] = field(default_factory=list)
    limits: dict[str, float] = field(default_factory=dict)


@dataclass
class Comparison:
    """The comparison of a run with its reproduction.

    Attributes:
        outcome: Whether they are identical, or differ within the seed noise or beyond it.
        metrics: The number of compared values.
        weights: The number of compared tensors.
        checkpoints: The compared checkpoint files.
        metric_deviations: The metrics that differ, the largest difference first.
        weight_deviations: The weights that differ, the largest difference first.
        noise: The noise; without limits if it is unknown.
        untested: The folder of the untested run if only the other run is tested, or None. If there is such a run, test
            scores are not compared.
    """

    outcome: Outcome
    metrics: int
    weights: int
    checkpoints: list[str]
    metric_deviations: list[Deviation]
    weight_deviations: list[Deviation]
    noise: Noise
    untested: Path | None = None


def compare_runs(
    original: Path, other: Path, main_scores: Sequence[str], complete: bool = True
) -> Comparison:
    """Compare the logged values, the final scores and the checkpoints of two runs.

    Args:
        original: The folder of the original run.
        other: The folder of the other run.
        main_scores: The scores that decide whether a difference is within the noise.
        complete: Whether both runs ended by themselves. The values that only one of two stopped runs logged, and
            their ``best.ckpt``, are not compared.

    Raises:
        UserError: If a checkpoint is corrupt.
    """
    old, new = logged_values(original), logged_values(other)
    scores = [_scores(folder) for folder in (original, other)]
    if complete:
        old |= scores[0]
        new |= scores[1]
    untested = [folder for folder, values in ((original, old), (other, new)) if not _has_test(values)]
    if len(untested) == 1:
        old, new = ({k: v for k, v in values.items() if not _is_test(k)} for values in (old, new))
    names = list(dict.fromkeys([*old, *new])) if complete else [name for name in old if name in new]
    metrics = [
        deviation
        for name in names
        if (deviation := _deviation(_label(name), old.get(name), new.get(name))) is not None
    ]
    weights: list[Deviation] = []
    tensors = 0
    files = [
        name
        for name in (("best.ckpt", "last.ckpt") if complete else ("last.ckpt",))
        if (original / "checkpoints" / name).exists() or (other / "checkpoints" / name).exists()
    ]
    for name in files:
        states = [_weights(folder / "checkpoints" / name) for folder in (original, other)]
        tensors += len(states[0].keys() | states[1].keys())
        weights += _weight_deviations(name, *states)
    noise = seed_noise(original, [name for name in main_scores if (name, -1) in old])
    outcome: Outcome = "different"
    if not metrics and not weights and (tensors or names):
        outcome = "identical"
    elif complete and noise.limits and _within(noise, *scores):
        outcome = "within seed noise"
    return Comparison(
        outcome=outcome,
        metrics=len(names),
        weights=tensors,
        checkpoints=files,
        metric_deviations=_sorted(metrics),
        weight_deviations=_sorted(weights),
        noise=noise,
        untested=untested[0] if len(untested) == 1 else None,
    )


def logged_values(folder: Path) -> Curve:
    """Return the values in ``metrics.csv``. A step that a resumed run logged twice has the later value."""
    values: Curve = {}
    try:
        with (folder / "metrics.csv").open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                step = int(float(row.pop("step", None) or 0))
                for name in ("epoch", TIME):
                    row.pop(name, None)
                values |= {(name, step): float(text) for name, text in row.items() if text}
    except FileNotFoundError:
        pass
    return values


def _is_test(name: tuple[str, int]) -> bool:
    return name[0].startswith("test/")


def _has_test(values: Curve) -> bool:
    return any(map(_is_test, values))


def _scores(folder: Path) -> Curve:
    """Return the scores of a run's record, as values of step -1."""
    record = read_record(folder)
    if record is None:
        return {}
    values: Curve = {(name, -1): value for name, value in record.metrics.items()}
    return values | {("epochs", -1): record.epochs, ("steps", -1): record.steps}


def _label(name: tuple[str, int]) -> str:
    metric, step = name
    return metric if step < 0 else f"{metric} at step {step}"


def _deviation(name: str, before: float | None, now: float | None) -> Deviation | None:
    if before == now or (before is not None and now is not None and math.isnan(before) and math.isnan(now)):
        return None
    missing = before is None or now is None or math.isnan(before) or math.isnan(now)
    return Deviation(name, before, now, math.inf if missing else abs(before - now))  # type: ignore[operator]


def _weights(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        return {}
    state = read_checkpoint(path)["state_dict"]
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _weight_deviations(file: str, before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> list[Deviation]:
    found = []
    for name in dict.fromkeys([*before, *now]):
        label = f"{file}: {name}"
        old, new = before.get(name), now.get(name)
        if old is None or new is None or old.shape != new.shape or old.dtype != new.dtype:
            found.append(Deviation(label, None, None, math.inf))
        elif not torch.equal(old, new):
            difference = (old.double() - new.double()).abs()
            # NaN in both is equal, NaN in one is the largest difference.
            difference[old.isnan() & new.isnan()] = 0
            largest = float(difference.nan_to_num(math.inf, math.inf).max())
            if largest > 0:
                found.append(Deviation(label, float(old.double().abs().max()), None, largest))
    return found


def _sorted(deviations: list[Deviation]) -> list[Deviation]:
    return sorted(deviations, key=lambda each: -each.difference)


def seed_noise(original: Path, main_scores: Sequence[str]) -> Noise:
    """Return the noise of the main scores.

    It is estimated from the original and from runs in the same parent folder that differ only in their seeds. The
    difference of two such runs has a standard deviation of sqrt(2) times that of one run. The limit is the quantile of
    Student's t distribution for `CONFIDENCE` times this standard deviation.
    """
    records: dict[int, Record] = {}
    own = _without_seed(original)
    for folder in sorted(original.resolve().parent.iterdir()) if own is not None else ():
        if not (folder / RECORD_NAME).exists() or _without_seed(folder) != own:
            continue
        record = read_record(folder)
        if record is not None and record.status == "finished":
            records.setdefault(record.seed, record)
    noise = Noise(sorted(records))
    if len(records) < FEWEST_SEEDS:
        return noise
    from scipy.stats import t

    for name in main_scores:
        values = [record.metrics.get(name) for record in records.values()]
        known = [value for value in values if value is not None]
        if len(known) == len(records):
            quantile = float(t.ppf((1 + CONFIDENCE) / 2, len(known) - 1))
            noise.limits[name] = quantile * math.sqrt(2) * statistics.stdev(known)
    return noise


def _without_seed(folder: Path) -> dict[str, Any] | None:
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return {**config, "seed_everything": None} if isinstance(config, dict) else None


def _within(noise: Noise, before: Curve, now: Curve) -> bool:
    for name, limit in noise.limits.items():
        old, new = before.get((name, -1)), now.get((name, -1))
        if old is None or new is None or not abs(old - new) <= limit:
            return False
    return True
