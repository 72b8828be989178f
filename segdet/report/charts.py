"""Charts of the HTML page: Vega-Altair specifications that the browser draws, each with a static SVG.

The static SVG is shown in print, without JavaScript, and until the browser has drawn the chart. Colours are CSS
variables of ``templates/page.css`` (``var(--series-1)``), so that all charts follow the colour scheme. Every chart has
two parameters that the page's code sets: ``selected``, the selected run or null, and ``shown``, the list of runs that
match the filter or null. Rows of data name their run in the field ``run``.
"""

import hashlib
import importlib.metadata
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from segdet.report.html import render
from segdet.util.disk_cache import cache_folder
from segdet.util.files import write_text

if TYPE_CHECKING:
    import altair as alt

HUES = 8
"""The number of colours ``--series-1`` ... ``--series-8``, Okabe and Ito's set with a grey for its yellow."""

OUTLINES = {
    "circle": "M5 0A5 5 0 1 1-5 0A5 5 0 1 1 5 0",
    "square": "M-4.5-4.5h9v9h-9z",
    "triangle-up": "M0-5L5.5 4.5h-11z",
    "diamond": "M0-6L6 0 0 6-6 0z",
    "cross": "M-2-5.5h4V-2h3.5v4H2v3.5h-4V2h-3.5v-4H-2z",
    "triangle-down": "M0 5L5.5-4.5h-11z",
}
"""The symbols of runs as SVG paths, by their names in Vega."""

SHAPES = tuple(OUTLINES)
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])

SELECTED = "selected == null || datum.run == selected"
"""The Vega expression for marks to emphasize."""

SHOWN = "shown == null || indexof(shown, datum.run) >= 0"
"""The Vega expression for rows that match the filter."""

STATIC_WIDTH = 340
"""The width of a static chart in pixels, and the smallest width of one on the page."""

WIDE = 720
"""The width of a static chart that takes the full width of the page."""


@dataclass(frozen=True)
class Style:
    """The appearance of a run in all charts. Shape and dash distinguish runs with the same colour.

    Attributes:
        colour: A CSS colour.
        shape: A symbol of Vega.
        dash: The lengths of dashes and gaps.
    """

    colour: str
    shape: str
    dash: tuple[int, ...]

    @property
    def outline(self) -> str:
        """The shape as an SVG path that fits into a square from -6 to 6."""
        return OUTLINES[self.shape]


def style_of(position: int) -> Style:
    """Return the style of the run at a position."""
    cycle = position // HUES
    shape = SHAPES[(position % HUES + cycle) % len(SHAPES)]
    return Style(f"var(--series-{position % HUES + 1})", shape, tuple(DASHES[cycle % len(DASHES)]))


def colour_scale(styles: Mapping[str, Style]) -> "alt.Scale":
    """Return a scale from the names of runs to their colours."""
    import altair as alt

    return alt.Scale(domain=list(styles), range=[style.colour for style in styles.values()])


def shape_scale(styles: Mapping[str, Style]) -> "alt.Scale":
    """Return a scale from the names of runs to their symbols."""
    import altair as alt

    return alt.Scale(domain=list(styles), range=[style.shape for style in styles.values()])


def dash_scale(styles: Mapping[str, Style]) -> "alt.Scale":
    """Return a scale from the names of runs to their dashes."""
    import altair as alt

    return alt.Scale(domain=list(styles), range=[list(style.dash) for style in styles.values()])


def emphasis(normal: float = 1.0, others: float = 0.15) -> Any:
    """Return an opacity: ``normal`` for the selected run, or for all if none is selected."""
    import altair as alt

    return alt.condition(SELECTED, alt.value(normal), alt.value(others))


@dataclass
class Charts:
    """Renders the charts of a page and collects their data.

    Attributes:
        rows: The data of the charts by an identifier. Charts with the same data share them.
    """

    rows: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)

    def data(self, rows: Sequence[Mapping[str, Any]]) -> "alt.NamedData":
        """Register rows, and return the data of a chart that refers to them.

        Args:
            rows: The rows: finite numbers, texts, booleans or None by field. The run of a row is in the field ``run``.
        """
        import altair as alt

        identifier = "d" + hashlib.sha256(json.dumps(rows, allow_nan=False).encode()).hexdigest()[:12]
        self.rows.setdefault(identifier, list(rows))
        return alt.NamedData(name=identifier)

    def figure(
        self,
        chart: "alt.TopLevelMixin",
        title: str,
        label: str,
        caption: str = "",
        width: int = STATIC_WIDTH,
    ) -> Markup:
        """Return a ``<figure>`` with a chart.

        Args:
            chart: The chart. It fills the width of its place on the page. Its data come from `data`.
            title: The heading above the chart.
            label: A description of the chart for screen readers.
            caption: A sentence below the chart.
            width: The width of the static chart.
        """
        spec = chart.to_dict(validate=False)  # validation takes most of the time
        names = list(dict.fromkeys(_data_names(spec)))
        del spec["$schema"]
        spec["background"] = None
        spec["config"] = _config()
        spec["params"] = [
            *spec.get("params", []),
            {"name": "selected", "value": None},
            {"name": "shown", "value": None},
        ]
        spec["autosize"] = {"type": "fit-x", "contains": "padding"}
        svg = _static({**spec, "width": width, "datasets": {name: self.rows[name] for name in names}})
        spec["width"] = "container"
        values = {"spec": spec, "data": names}
        return render("chart.html.j2", values=values, svg=svg, title=title, label=label, caption=caption)

    def columns(self) -> dict[str, dict[str, Any]]:
        """Return all data as columns, which take less space on the page than rows."""
        return {identifier: columns_of(rows) for identifier, rows in self.rows.items()}


def _data_names(node: Any) -> Iterator[str]:
    """Yield the identifiers of the data in a specification."""
    if isinstance(node, dict):
        if isinstance(node.get("data"), dict) and "name" in node["data"]:
            yield node["data"]["name"]
        for value in node.values():
            yield from _data_names(value)
    elif isinstance(node, list):
        for value in node:
            yield from _data_names(value)


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return rows as columns. A column of texts is a list of the distinct texts and the position of each row's text."""
    columns: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        if values and all(isinstance(value, str) for value in values):
            positions = {text: position for position, text in enumerate(dict.fromkeys(values))}
            columns[name] = {"texts": list(positions), "at": [positions[value] for value in values]}
        else:
            columns[name] = values
    return columns


def _static(spec: dict[str, Any]) -> Markup:
    """Return a chart as an SVG element. Vega escapes its texts."""
    import vl_convert

    return Markup(vl_convert.vegalite_to_svg(spec, allowed_base_urls=[]))


@cache
def vega_bundle() -> Markup:
    """Return the JavaScript of Vega, Vega-Lite and vega-embed, without network. It is kept in the cache folder.

    Building the bundle takes several seconds.
    """
    import vl_convert

    versions = (
        importlib.metadata.version("vl-convert-python"),
        vl_convert.get_vega_version(),
        vl_convert.get_vega_embed_version(),
    )
    path = Path(cache_folder() / "charts" / f"vega-{'-'.join(versions)}.js")
    try:
        return Markup(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        text = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return Markup(text)


def _config() -> dict[str, Any]:
    """Return the style of all charts."""
    return {
        "font": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif",
        "view": {"stroke": None, "continuousHeight": 240},
        "axis": {
            "labelColor": "var(--ink-2)",
            "titleColor": "var(--ink-2)",
            "gridColor": "var(--grid)",
            "domainColor": "var(--line)",
            "tickColor": "var(--line)",
            "labelFontSize": 11,
            "titleFontSize": 11,
            "titleFontWeight": "normal",
            "titlePadding": 8,
            "labelPadding": 4,
            "tickSize": 4,
        },
        "axisX": {"grid": False, "labelFlush": False},
        "axisY": {"domain": False, "ticks": False, "labelPadding": 6},
        "legend": {
            "labelColor": "var(--ink-2)",
            "titleColor": "var(--ink-2)",
            "labelFontSize": 11,
            "titleFontSize": 11,
            "labelLimit": 180,
            "symbolStrokeWidth": 2,
        },
        "header": {"labelColor": "var(--ink-2)", "titleColor": "var(--ink-2)", "labelFontSize": 11},
        "text": {"color": "var(--ink)", "fontSize": 11},
        "rule": {"color": "var(--line)"},
        "bar": {"color": "var(--series-1)"},
        "point": {"filled": True, "size": 70},
    }


def logarithmic_ticks(low: float, high: float) -> list[float]:
    """Return the ticks of a logarithmic axis: 1, 2 and 5 times powers of ten, or only the powers if there are many."""
    powers = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    ticks = [(factor * 10.0**power, factor) for power in powers for factor in (1, 2, 5)]
    ticks = [(value, factor) for value, factor in ticks if low <= value <= high]
    return [value for value, factor in ticks if factor == 1 or len(ticks) <= 6]


def shorten(name: str, most: int = 18) -> str:
    """Return a name for a label in a chart, with at most ``most`` characters."""
    return name if len(name) <= most else f"{name[: most - 1]}…"
