"""Curves of the scores of region proposals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from segdet.metrics.proposals import ProposalScores
from segdet.util.plots import COLOURS, GRID, INK, new_figure, save_figure, style_axes


def plot_scores(results: Mapping[str, ProposalScores], path: Path, title: str = "") -> None:
    """Draw recall and MABO by number of boxes, and recall by IoU of the first 1,000 boxes.

    Raises:
        UserError: If ``path`` cannot be written.
    """
    figure = new_figure(15, 4.4, title)
    panels = figure.subplots(1, 4)
    thresholds = np.linspace(0.5, 1, 51)
    for (name, scores), colour in zip(results.items(), COLOURS * len(results), strict=False):
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
    panels[0].legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="upper left")
    save_figure(figure, path)


def _style(axes: Axes, title: str, label: str) -> None:
    axes.set_ylim(0, 1)
    axes.set_xlabel(label)
    axes.grid(color=GRID, linewidth=0.8)
    style_axes(axes, title)
