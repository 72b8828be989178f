"""Plots of a sweep: the history of the scores, the importances of the parameters, and parallel coordinates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segdet.launch.sweep_file import Sweep
from segdet.launch.sweep_space import LogUniform, Normal
from segdet.launch.sweep_trials import Trial
from segdet.util.plots import COLOURS, FAINT, GRID, INK, new_figure, save_figure, style_axes

_STATES = {"finished": COLOURS[0], "stopped": COLOURS[1], "running": COLOURS[5]}
_MOST_LABELS = 12


def plot_history(sweep: Sweep, trials: Sequence[Trial], path: Path) -> None:
    """Draw the score of each trial with the best one so far, and the values of each trial over time.

    Raises:
        UserError: If ``path`` cannot be written.
    """
    assert sweep.metric is not None
    better = max if sweep.metric.goal == "maximize" else min
    figure = new_figure(12, 4.4, sweep.name)
    history, curves = figure.subplots(1, 2)
    best: list[tuple[int, float]] = []
    for state, colour in _STATES.items():
        points = [
            (each.number, each.score) for each in trials if each.state == state and each.score is not None
        ]
        if points:
            history.scatter(*zip(*points, strict=True), color=colour, s=28, label=state, zorder=3)
    for trial in trials:
        if trial.state == "finished" and trial.score is not None:
            best.append((trial.number, better([trial.score, *(score for _, score in best)])))
    if best:
        history.step(*zip(*best, strict=True), where="post", color=INK, linewidth=1.2, label="best so far")
    failed = [trial.number for trial in trials if trial.state == "failed"]
    if failed:
        bottom = history.get_ylim()[0]
        history.scatter(
            failed, [bottom] * len(failed), marker="x", color=COLOURS[3], s=30, label="failed", zorder=3
        )
    history.xaxis.get_major_locator().set_params(integer=True)
    history.set_xlabel("trial")
    history.set_ylabel(sweep.metric.name)
    history.grid(color=GRID, linewidth=0.8)
    style_axes(history, "Score of each trial")
    handles, _ = history.get_legend_handles_labels()
    if handles:
        history.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    top = better([score for _, score in best]) if best else None
    for trial in sorted(trials, key=lambda each: each.score == top):
        if trial.values:
            is_best = trial.state == "finished" and trial.score == top
            colour = INK if is_best else _STATES.get(trial.state, COLOURS[3])
            curves.plot(
                list(trial.values), list(trial.values.values()), color=colour, marker=".",
                linewidth=2.2 if is_best else 1.0, alpha=1.0 if is_best else 0.6,
            )  # fmt: skip
    curves.xaxis.get_major_locator().set_params(integer=True)
    curves.set_xlabel("validation")
    curves.grid(color=GRID, linewidth=0.8)
    style_axes(curves, f"{sweep.metric.name} during training, the best trial in bold")
    save_figure(figure, path)


def plot_importances(importances: Mapping[str, float], metric: str, path: Path) -> None:
    """Draw the importance of each parameter as bars.

    Raises:
        UserError: If ``path`` cannot be written.
    """
    figure = new_figure(8, 1.4 + 0.42 * len(importances), "")
    axes = figure.subplots()
    names = list(importances)[::-1]
    bars = axes.barh(names, [importances[name] for name in names], color=COLOURS[0], height=0.6)
    axes.bar_label(bars, [f"{importances[name]:.0%}" for name in names], padding=4, color=FAINT, fontsize=8.5)
    axes.set_xlim(0, 1.1 * max(importances.values()))
    axes.set_xlabel("share of the variance of good scores (PED-ANOVA)")
    style_axes(axes, f"Importance of the parameters for {metric}")
    save_figure(figure, path)


def plot_parallel(sweep: Sweep, trials: Sequence[Trial], path: Path) -> None:
    """Draw parallel coordinates: an axis for each searched parameter and one for the metric, a line for each trial.

    Raises:
        UserError: If ``path`` cannot be written.
    """
    from matplotlib import colormaps

    assert sweep.metric is not None
    scored = [trial for trial in trials if trial.score is not None]
    if not scored:
        return
    names = list(sweep.space.searched())
    columns = [_positions(sweep, name, [trial.point[name] for trial in scored]) for name in names]
    scores = [trial.score or 0.0 for trial in scored]
    low, high = min(scores), max(scores)
    heights = [(score - low) / (high - low) if high > low else 0.5 for score in scores]
    ticks = (
        [(step / 4, f"{low + step / 4 * (high - low):.3g}") for step in range(5)]
        if high > low
        else [(0.5, f"{low:.3g}")]
    )
    columns.append((heights, ticks))
    figure = new_figure(max(6.0, 2.1 * len(columns)), 4.6, sweep.name)
    axes = figure.subplots()
    good = heights if sweep.metric.goal == "maximize" else [1 - height for height in heights]
    for index in sorted(range(len(scored)), key=good.__getitem__):
        line = [positions[index] for positions, _ in columns]
        is_best = good[index] == 1.0 and scored[index].state == "finished"
        axes.plot(
            line, color=colormaps["viridis_r"](0.1 + 0.85 * good[index]), linewidth=2.4 if is_best else 1.1,
            alpha=1.0 if is_best else 0.75, linestyle="-" if scored[index].state == "finished" else ":",
        )  # fmt: skip
    for column, (_, labels) in enumerate(columns):
        axes.axvline(column, color="#b8bfca", linewidth=1.0, zorder=0)
        for height, label in labels:
            axes.annotate(
                label, (column, height), xytext=(4, 0), textcoords="offset points", fontsize=8, color=FAINT,
                va="center", bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8},
            )  # fmt: skip
    axes.set_xticks(range(len(columns)), [*names, sweep.metric.name])
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(columns) - 1 + 0.35)
    style_axes(axes, "Parameters of each trial; dark lines are better, dotted ones were stopped early")
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(axis="x", length=0, labelsize=9, colors=INK)
    save_figure(figure, path)


def _positions(sweep: Sweep, name: str, values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Return the height of each value on the axis of a parameter, and the labels of the axis."""
    leaf = sweep.space.named()[name]
    grid = leaf.grid()
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if grid is not None and (len(grid) <= _MOST_LABELS or not numeric):
        places = [str(value) for value in grid]
        step = 1 / max(1, len(places) - 1)
        labels = [(index * step, place) for index, place in enumerate(places)]
        return [places.index(str(value)) * step for value in values], labels[
            :: math.ceil(len(labels) / _MOST_LABELS)
        ]
    logarithmic = isinstance(leaf, LogUniform) or (isinstance(leaf, Normal) and leaf.log)
    scale = math.log if logarithmic and min(values) > 0 else float
    low, high = min(map(scale, values)), max(map(scale, values))
    span = high - low or 1.0
    back = math.exp if scale is math.log else float
    labels = [(step / 4, f"{back(low + step / 4 * span):.3g}") for step in range(5)]
    return [(scale(value) - low) / span for value in values], labels
