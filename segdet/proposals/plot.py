"""Curves of the scores of region proposals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from segdet.metrics.proposals import ProposalScores
from segdet.util.errors import UserError

_INK, _GRID = "#1d2430", "#e6e9ef"
_COLOURS = ("#3b7dd8", "#f2a33a", "#4fb286", "#c65b8f", "#7a6ff0", "#8a94a6")


def plot_scores(results: Mapping[str, ProposalScores], path: Path, title: str = "") -> None:
    """Draw recall and MABO by number of boxes, and recall by IoU of the first 1,000 boxes.

    Raises:
        UserError: If ``path`` cannot be written.
    """
    layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15, wspace=0.03)
    figure = Figure(figsize=(15, 4.4), dpi=110, facecolor="white", layout=layout)
    figure.suptitle(title, color=_INK, fontsize=13, x=0.012, ha="left")
    panels = figure.subplots(1, 4)
    thresholds = np.linspace(0.5, 1, 51)
    for (name, scores), colour in zip(results.items(), _COLOURS * len(results), strict=False):
        # Curves end at the mean number of boxes, where a dot marks the score of all boxes.
        drawn = scores.counts < max(2, scores.boxes_per_image)
        counts = [*scores.counts[drawn], max(1, scores.boxes_per_image)]
        curves = scores.recall(0.5), scores.recall(0.7), scores.mabo()
        for panel, values in zip(panels[:3], curves, strict=True):
            panel.plot(
                counts, [*values[drawn], values[-1]], color=colour, linewidth=1.8, label=name,
                marker="o", markevery=[-1], markersize=5,
            )  # fmt: skip
        best = scores.best[:, int(np.searchsorted(scores.counts, 1000))]
        recalls = [(best >= threshold).mean() if len(best) else np.nan for threshold in thresholds]
        panels[3].plot(thresholds, recalls, color=colour, linewidth=1.8, label=name)
    most = max((scores.boxes_per_image for scores in results.values()), default=10)
    titles = ("Recall at IoU .5", "Recall at IoU .7", "MABO")
    for panel, text in zip(panels[:3], titles, strict=True):
        panel.set_xscale("log")
        panel.set_xlim(1, most * 1.4)
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        _style(panel, text, "boxes per image")
    panels[3].set_xlim(0.5, 1)
    _style(panels[3], "Recall of the first 1,000 boxes", "IoU")
    panels[0].legend(frameon=False, fontsize=8.5, labelcolor=_INK, loc="upper left")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise UserError(f"--plot {path}: cannot be written ({error}); give another file") from error


def _style(axes: Axes, title: str, label: str) -> None:
    axes.set_title(title, loc="left", color=_INK, fontsize=10.5, pad=8)
    axes.set_ylim(0, 1)
    axes.set_xlabel(label, color="#5b6472", fontsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b8bfca")
    axes.tick_params(colors="#5b6472", labelsize=8, length=3)
    axes.tick_params(which="minor", length=0)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
