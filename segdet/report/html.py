"""Templates of the HTML page. Every value is escaped unless it is `Markup`, the output of another template."""

import json
from functools import cache
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from segdet.report import numbers
from segdet.runs.record import to_json

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, **values: Any) -> Markup:
    """Return the output of a template.

    Args:
        template: The file name in ``segdet/report/templates/``.
        values: The variables of the template. A missing one is an error.
    """
    return Markup(_environment().get_template(template).render(values))


def json_script(value: Any, identifier: str | None = None, kind: str = "application/json") -> Markup:
    """Return a ``<script>`` element that contains ``value`` as JSON for the page's code.

    NaN and infinity become null. ``<``, ``>`` and ``&`` are escaped, so that no text can end the element.

    Args:
        value: Plain types, dataclasses excluded.
        identifier: The id of the element, or None.
        kind: The type of the element. Browsers do not execute JSON types.
    """
    text = json.dumps(to_json(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    name = Markup(' id="{}"').format(identifier) if identifier else ""
    return Markup('<script type="{}"{}>{}</script>').format(kind, name, Markup(text))


def page_source(name: str) -> Markup:
    """Return a file of ``segdet/report/templates/`` unchanged, such as the page's style sheet."""
    environment = _environment()
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, name)[0])


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("segdet.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "significant": numbers.significant,
        "count": numbers.count,
        "minutes": numbers.minutes,
        "score": numbers.score,
        "short_count": numbers.short_count,
    }
    environment.globals |= {"json_script": json_script, "page_source": page_source}
    return environment
