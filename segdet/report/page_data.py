"""The input of a section of the HTML page, and its output."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path

from markupsafe import Markup

from segdet.report.charts import Charts, Style, style_of
from segdet.report.run_data import SCORES, RunData, RunGroup, group_runs


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        id: The id of the element, which links refer to.
        title: The heading, also in the navigation.
        html: The content, the output of a template (`segdet.report.html.render`).
    """

    id: str
    title: str
    html: Markup


@dataclass
class PageData:
    """The data of a page.

    Attributes:
        title: The title.
        folders: The folders that were searched for runs.
        runs: The runs.
        faults: A line for each run that is not shown.
        written: When the page was written.
        charts: Renders charts; the page contains their data once.
        refresh: The seconds after which the browser reloads the page, or None.
    """

    title: str
    folders: list[Path]
    runs: list[RunData]
    faults: list[str] = field(default_factory=list)
    written: datetime = field(default_factory=lambda: datetime.now().astimezone())
    charts: Charts = field(default_factory=Charts)
    refresh: float | None = None

    @property
    def all_faults(self) -> list[str]:
        """`faults`, and a line for each file of a run that could not be read so far."""
        return [*self.faults, *(fault for run in self.runs for fault in dict.fromkeys(run.faults))]

    @cached_property
    def groups(self) -> list[RunGroup]:
        """The runs without their seeds: the rows of tables."""
        return group_runs(self.runs)

    @cached_property
    def tasks(self) -> list[str]:
        """The tasks of the runs."""
        return [task for task in SCORES if any(run.task == task for run in self.runs)]

    def groups_of(self, task: str) -> list[RunGroup]:
        """Return the groups of one task."""
        return [group for group in self.groups if group.task == task]

    def runs_of(self, task: str) -> list[RunData]:
        """Return the runs of one task."""
        return [run for run in self.runs if run.task == task]

    def split_of(self, task: str) -> str:
        """Return the split of the scores of a task: ``test``, or ``val`` if no run has been tested."""
        main = f"test/{SCORES[task][0]}"
        return "test" if any(main in run.record.metrics for run in self.runs_of(task)) else "val"

    @cached_property
    def styles(self) -> dict[str, Style]:
        """The colour, shape and dash of each group by its name. Groups of different tasks share them."""
        styles: dict[str, Style] = {}
        for task in self.tasks:
            for position, group in enumerate(self.groups_of(task)):
                styles.setdefault(group.name, style_of(position))
        return styles

    def styles_of(self, names: Iterable[str]) -> dict[str, Style]:
        """Return the styles of some groups, in the order of ``names``."""
        return {name: self.styles[name] for name in dict.fromkeys(names)}
