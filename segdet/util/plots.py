"""The style of all matplotlib plots."""

from pathlib import Path
from typing import TYPE_CHECKING

from segdet.util.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#22262e"
"""Colour of titles."""

FAINT = "#5b6472"
"""Colour of labels and ticks."""

GRID = "#e4e7ec"
"""Colour of grid lines."""

COLOURS = ("#3b7dd8", "#f2a33a", "#4fb286", "#c65b8f", "#7a6ff0", "#8a94a6")
"""Colours of the data series, in order."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".pdf", ".svg")
"""File suffixes that `save_figure` accepts."""


def new_figure(width: float, height: float, title: str = "") -> "Figure":
    """Create a figure of ``width`` x ``height`` inches with a title at the top left."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15, wspace=0.03, hspace=0.03)
    figure = Figure(figsize=(width, height), dpi=110, facecolor="white", layout=layout)
    figure.suptitle(title, color=INK, fontsize=14, x=0.012, ha="left")
    return figure


def style_axes(axes: "Axes", title: str) -> None:
    """Apply the style to axes: a title at the left, spines at the left and bottom, small grey labels."""
    axes.set_title(title, loc="left", color=INK, fontsize=10.5, pad=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b8bfca")
    axes.tick_params(colors=FAINT, labelsize=8, length=3)
    axes.tick_params(which="minor", length=0)
    axes.xaxis.label.set(color=FAINT, fontsize=8.5)
    axes.yaxis.label.set(color=FAINT, fontsize=8.5)
    axes.set_axisbelow(True)


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure to ``path`` in the format of its suffix.

    Raises:
        UserError: If the file cannot be written.
    """
    with write_atomically(path, parents=True) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix("."))
