"""The HTML page of a report: one file without any reference to other files or to the network."""

from collections.abc import Sequence
from pathlib import Path

from segdet.report.charts import vega_bundle
from segdet.report.html import render
from segdet.report.page_data import PageData, Section
from segdet.report.run_data import load_runs
from segdet.report.sections import SECTIONS
from segdet.report.table import describe_hardware
from segdet.util.encodable import encodable
from segdet.util.files import write_text

PAGE_NAME = "report.html"
"""The default name of the page."""


def page_of(folders: Sequence[Path], title: str | None = None, refresh: float | None = None) -> PageData:
    """Load the runs in ``folders`` and return the data of their page.

    Args:
        folders: Folders of runs.
        title: The title. By default the names of the folders.
        refresh: The seconds after which the browser reloads the page, or None.

    Raises:
        UserError: If a folder does not exist.
    """
    runs, faults = load_runs(folders)
    title = title or ", ".join(folder.resolve().name for folder in folders)
    return PageData(title, list(folders), runs, faults, refresh=refresh)


def render_page(page: PageData) -> str:
    """Return the page. Sections without content are left out."""
    sections: list[Section] = [section for build in SECTIONS if (section := build(page)) is not None]
    bundle = vega_bundle() if page.charts.rows else ""
    html = render("base.html.j2", page=page, facts=_facts(page), sections=sections, vega_bundle=bundle)
    return encodable(html)


def _facts(page: PageData) -> list[tuple[str, str]]:
    """Return the names and values below the title: number of runs, date, data and machines."""
    seeds = {run.record.seed for run in page.runs}
    counts = (
        f"{len(page.groups)} in {len(page.runs)} seeds"
        if len(page.groups) < len(page.runs)
        else len(page.runs)
    )
    machines = dict.fromkeys(filter(None, (describe_hardware(run.record.hardware) for run in page.runs)))
    data = dict.fromkeys(run.record.data.removesuffix("DataModule") for run in page.runs)
    facts = [("runs", str(counts)), ("seeds", ", ".join(map(str, sorted(seeds)))), ("data", ", ".join(data))]
    facts.append(("machine" if len(machines) == 1 else "machines", "; ".join(machines)))
    facts.append(("updated", page.written.strftime("%Y-%m-%d %H:%M %Z")))
    return [(name, value) for name, value in facts if value]


def write_page(page: PageData, path: Path) -> None:
    """Write the page to ``path``, atomically.

    Raises:
        UserError: If the file cannot be written.
    """
    write_text(path, render_page(page))
