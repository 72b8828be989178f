"""The rows of the ladder: for each run its rung, its scores and costs, and what changed from the rung above."""

import math
import shlex
import statistics as numbers_of_seeds
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from tqdm import tqdm

from segdet.profiling.result import Profile
from segdet.report import numbers
from segdet.report.comparisons import compare_runs, usable_tests
from segdet.report.ladder.rungs import TASKS, Rung, rung_of
from segdet.report.run_data import SCORES, RunData, RunGroup
from segdet.report.statistics import LEVEL, Difference, estimate, holm

DASH = "–"  # noqa: RUF001  an en dash: the value was not measured


@dataclass(frozen=True)
class Value:
    """A number of a row.

    Attributes:
        number: The number, or None if it was not measured.
        text: The number as text; an en dash if it was not measured.
        notes: Further lines: an interval, or a comparison with the rung above.
        hint: An explanation. For a number that was not measured, the command that measures it.
        low: The lower end of the interval, or None.
        high: The upper end of the interval, or None.
        p_better: For a difference, the probability that the run is better than the other one, or None.
        is_clear: Whether a difference is significant after Holm's correction over the ladder; None if unknown.
    """

    number: float | None
    text: str
    notes: tuple[str, ...] = ()
    hint: str = ""
    low: float | None = None
    high: float | None = None
    p_better: float | None = None
    is_clear: bool | None = None


def missing(hint: str) -> Value:
    """Return a number that was not measured, with the reason or the command that measures it."""
    return Value(None, DASH, hint=hint)


@dataclass(frozen=True)
class LadderRow:
    """A run with its seeds on its rung.

    Attributes:
        group: The run with its seeds.
        rung: The rung.
        is_first: Whether it is the first run of its rung. The others differ from it in their settings.
        settings: The settings that distinguish the runs of the rung, such as ``stride 16``.
        values: The numbers by the key of their column, see `COLUMNS`.
    """

    group: RunGroup
    rung: Rung
    is_first: bool
    settings: str
    values: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Ladder:
    """The rows of one task on one dataset.

    Attributes:
        task: The task.
        title: The heading; empty if the page has only one ladder.
        score: The name of the main score.
        split: The split of the scores.
        rows: The rows in order.
    """

    task: str
    title: str
    score: str
    split: str
    rows: Sequence[LadderRow]


@dataclass(frozen=True)
class Column:
    """A column of costs.

    Attributes:
        key: The field of `segdet.runs.record.Cost`.
        title: The heading.
        unit: The unit.
        per_image: Whether the number is that of one image.
        form: A function that converts a number to text.
        scale: The unit of the column in units of the field.
        compared: Whether the row has the ratio to the rung above.
        command: The command that measures the number, without the run.
        profiled: A function that returns the number from a profile, or None if profiles do not have it.
    """

    key: str
    title: str
    unit: str = ""
    per_image: bool = False
    form: Callable[[float], str] = numbers.significant
    scale: float = 1.0
    compared: bool = False
    command: str = "segdet test --ckpt_path"
    profiled: Callable[[Profile], float | None] = lambda profile: None

    @property
    def per(self) -> str:
        """The second line of the heading."""
        return f"{self.unit} per image".strip() if self.per_image else self.unit


COLUMNS = (
    Column(
        "ms_per_image", "time", "ms", per_image=True, compared=True, profiled=lambda profile: profile.latency.p50.value
    ),
    Column(
        "passes_per_image", "passes", per_image=True, form=numbers.count, profiled=lambda profile: profile.passes.mean
    ),
    Column("flops", "GFLOPs", per_image=True, scale=1e9, profiled=lambda profile: profile.flops.mean),
    Column(
        "parameters", "parameters", "M", scale=1e6, command="segdet profile",
        profiled=lambda profile: profile.parameters,
    ),
    Column(
        "peak_memory_mb", "memory", "MiB", command="segdet profile",
        profiled=lambda profile: profile.memory.training_mb,
    ),
    Column(
        "train_seconds", "training", "min:s", form=numbers.minutes, command="segdet fit --resume auto --run_dir"
    ),
)  # fmt: skip
"""The columns of costs, from left to right."""


def ladders_of(groups: Sequence[RunGroup], split_of: Callable[[str], str]) -> list[Ladder]:
    """Return a ladder for each task and dataset.

    Args:
        groups: The runs.
        split_of: A function that returns the split of the scores of a task.
    """
    tested = [run for group in groups for run in group.runs if run.record.is_tested]
    for run in tqdm(tested, "resampling images", unit=" runs", leave=False, delay=2):
        run.bootstrap  # noqa: B018  cached; large test sets take seconds
    places = dict.fromkeys((group.task, _dataset(group)) for group in groups)
    ladders = []
    for task, dataset in sorted(places, key=lambda place: TASKS.index(place[0])):
        own = [group for group in groups if (group.task, _dataset(group)) == (task, dataset)]
        title = task.capitalize() if len(places) > 1 else ""
        if sum(place[0] == task for place in places) > 1:
            title += f" on {dataset}"
        split = split_of(task)
        ladders.append(Ladder(task, title, SCORES[task][0], split, ladder_rows(own, task, split)))
    return ladders


def _dataset(group: RunGroup) -> str:
    """Return the name of the data: the folder, or the class of the data module if it has no folder."""
    data = group.runs[0].config.get("data")
    arguments = data.get("init_args") if isinstance(data, Mapping) else None
    root = arguments.get("root") if isinstance(arguments, Mapping) else None
    return str(root or group.record.data)


def ladder_rows(groups: Sequence[RunGroup], task: str, split: str) -> list[LadderRow]:
    """Return the rows of one task in the order of the ladder.

    Args:
        groups: The runs of the task.
        task: The task.
        split: The split of the scores, ``test`` or ``val``.
    """
    rungs = [
        (rung_of(task, g.record.model, settings_of_model(g.runs[0]), g.record.description), g) for g in groups
    ]
    rungs.sort(key=lambda pair: pair[0].order)
    # Profiles include reading the file, so times of profiles and of tests are not compared with each other.
    all_profiled = all(any(run.profile for run in group.runs) for group in groups)
    settings: dict[str, str] = {}
    for _, members in groupby(rungs, key=lambda pair: pair[0].name):
        same = [group for _, group in members]
        settings |= dict(zip((group.name for group in same), _distinct_settings(same), strict=True))
    rows: list[LadderRow] = []
    differences: list[Difference | None] = []
    for rung, group in rungs:
        is_first = not rows or rows[-1].rung.name != rung.name
        # Further runs of a rung are compared with its first run, and rungs with the first run of the rung above.
        above = next((row for row in reversed(rows) if row.is_first), None)
        values = {"score": _score(group, task, split)}
        values["difference"], difference = _difference(group, above, task, split)
        differences.append(difference)
        values |= {column.key: _cost(group, column, above, all_profiled) for column in COLUMNS}
        rows.append(LadderRow(group, rung, is_first, settings[group.name], values))
    return [
        replace(row, values=values) for row, values in zip(rows, _corrected(rows, differences), strict=True)
    ]


def _corrected(
    rows: Sequence[LadderRow], differences: Sequence[Difference | None]
) -> Iterator[Mapping[str, Value]]:
    """Yield the values of each row, with Holm's correction of the differences."""
    adjusted = holm([math.nan if each is None else each.p_value for each in differences])
    compared = sum(not math.isnan(value) for value in adjusted)
    for row, p_value in zip(rows, adjusted, strict=True):
        value = row.values["difference"]
        if not math.isnan(p_value):
            hint = f"{value.hint}; P-value {p_value:.2g} after Holm's correction for {compared} comparisons"
            value = replace(value, hint=hint, is_clear=p_value <= 1 - LEVEL)
        yield {**row.values, "difference": value}


def settings_of_model(run: RunData) -> dict[str, Any]:
    """Return the options of the model of a run."""
    model = run.config.get("model")
    arguments = model.get("init_args") if isinstance(model, Mapping) else None
    return dict(arguments) if isinstance(arguments, Mapping) else {}


def _distinct_settings(groups: Sequence[RunGroup]) -> list[str]:
    """Return the options of the model in which each run of a rung differs from the others."""
    settings = [_flat(settings_of_model(group.runs[0])) for group in groups]
    texts: dict[str, set[str]] = {}
    for name in {name for each in settings for name in each}:
        texts[name] = {_shown(each.get(name)) for each in settings}
    differing = sorted(name for name, values in texts.items() if len(values) > 1)
    return [", ".join(f"{name} {_shown(each.get(name))}" for name in differing) for each in settings]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)


def _command(group: RunGroup, command: str) -> str:
    return f"{command} {shlex.quote(str(group.runs[0].folder))}"


def _score(group: RunGroup, task: str, split: str) -> Value:
    name = f"{split}/{SCORES[task][0]}"
    values = group.values(name)
    if not values:
        return missing(f"Not tested: {_command(group, 'segdet test --ckpt_path')}")
    mean = numbers_of_seeds.fmean(values)
    deviation = (f"± {numbers.score(numbers_of_seeds.stdev(values))}",) if len(values) > 1 else ()
    if split != "test":
        return Value(mean, numbers.score(mean), deviation)
    tests, reason = usable_tests(group)
    if reason:
        if any(run.bootstrap is None for run in group.runs if run.record.is_tested):
            reason = _command(group, "segdet test --ckpt_path")
        return Value(mean, numbers.score(mean), deviation, f"No interval: {reason}")
    estimated = estimate(tests, SCORES[task][0])
    interval = estimated.images if estimated.combined is None else estimated.combined
    if not interval.is_defined:
        return Value(mean, numbers.score(mean), deviation, "No interval: too few images have the score")
    images = f"{len(tests[0].image_ids)} images"
    hint = (
        f"95% interval over {images}"
        if estimated.combined is None
        else f"95% interval over {images} and seeds"
    )
    notes = (f"[{interval.low:.3f}, {interval.high:.3f}]", *deviation)
    return Value(mean, numbers.score(mean), notes, hint, interval.low, interval.high)


def _difference(
    group: RunGroup, above: LadderRow | None, task: str, split: str
) -> tuple[Value, Difference | None]:
    """Return the difference of the main score from the rung above, and its statistics if both runs have evidence."""
    if above is None:
        return Value(None, ""), None
    score = SCORES[task][0]
    own, other = group.values(f"{split}/{score}"), above.group.values(f"{split}/{score}")
    if not own or not other:
        return missing("One of the two runs is not tested"), None
    mean = numbers_of_seeds.fmean(own) - numbers_of_seeds.fmean(other)
    plain = Value(mean, signed(mean), hint=f"{group.name} minus {above.group.name}")
    if split != "test" or usable_tests(group)[1] or usable_tests(above.group)[1]:
        return plain, None  # the scores have the reason
    pair = compare_runs(group, above.group, score)
    difference = pair.difference
    if difference is None:
        return replace(plain, hint=f"{plain.hint}; no interval: {pair.reason}"), None
    low, high, p_better = difference.interval.low, difference.interval.high, difference.p_better
    if not difference.interval.is_defined:
        return plain, None
    notes = (f"[{signed(low)}, {signed(high)}]", f"P(better) {probability(p_better)}")
    return replace(plain, notes=notes, low=low, high=high, p_better=p_better), difference


def _cost(group: RunGroup, column: Column, above: LadderRow | None, all_profiled: bool) -> Value:
    """Return a cost: from the profiles if all runs have one, otherwise from the record, or else from a profile."""
    recorded = group.costs(column.key)
    profiles = [run.profile for run in group.runs if run.profile is not None]
    profiled = [value for profile in profiles if (value := column.profiled(profile)) is not None]
    from_profile = bool(profiled) and (all_profiled or not recorded)
    values = profiled if from_profile else recorded
    if not values:
        return missing(f"Not measured: {_command(group, column.command)}")
    mean = numbers_of_seeds.fmean(values) / column.scale
    before = above.values[column.key].number if above else None
    notes = (ratio(mean, before),) if column.compared and before and mean else ()
    return Value(mean, column.form(mean), notes, hint=_source(column, profiles[0]) if from_profile else "")


def _source(column: Column, profile: Profile) -> str:
    """Return how a profile measured a cost."""
    if column.key == "ms_per_image":
        p50, p90, p99 = profile.latency.p50, profile.latency.p90, profile.latency.p99
        interval = "" if p50.low is None or p50.high is None else f" (95%: {p50.low:.3g} to {p50.high:.3g})"
        return (
            f"segdet profile: median of {profile.latency.count} predictions from the file{interval}; "
            f"90% below {p90.value:.3g} ms, 99% below {p99.value:.3g} ms"
        )
    if column.key == "peak_memory_mb":
        memory = profile.memory
        return f"segdet profile: a training step; prediction of one image needs {memory.inference_mb:.0f} MiB"
    if column.key == "flops" and profile.flops.varies:
        return (
            f"segdet profile: {profile.flops.minimum / 1e9:.3g} to {profile.flops.maximum / 1e9:.3g} by image"
        )
    return "segdet profile"


def signed(value: float) -> str:
    """Return a difference with three decimals and its sign; 0.000 without one."""
    text = f"{value:+.3f}"
    return "0.000" if float(text) == 0 else text


def probability(value: float) -> str:
    """Return a probability with two decimals. Values that round to 0 or 1 are bounded instead."""
    if value < 0.005:
        return "< 0.01"
    return "> 0.99" if value > 0.995 else f"{value:.2f}"


def ratio(value: float, before: float) -> str:
    """Return how much faster a time is than the time ``before``, such as ``62x faster``."""
    factor = before / value
    if 0.95 < factor < 1.05:
        return "as fast"
    times, word = (factor, "faster") if factor > 1 else (1 / factor, "slower")
    return f"{times:.0f}x {word}" if times >= 10 else f"{times:.1f}x {word}"
