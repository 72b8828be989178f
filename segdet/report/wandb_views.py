"""The workspace and the report on Weights & Biases that show the records of `segdet.report.wandb_records`.

`view_of` describes both as plain values. `check_view` turns them into objects of the library wandb-workspaces, which
validate them without a network. `create_view` creates them online.
"""

import importlib.util
import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from segdet.report.ladder.rungs import RUNGS
from segdet.report.page_data import PageData
from segdet.report.run_data import SCORES
from segdet.report.wandb_records import IMAGES, STEP
from segdet.util.errors import UserError
from segdet.util.files import write_text

FILE_NAME = "view.json"
"""The file with the description, in the folder ``wandb/`` beside the page."""


@dataclass(frozen=True)
class Panel:
    """A panel.

    Attributes:
        kind: The kind of panel. ``bar`` and ``line`` average the runs of a rung, ``media`` shows the images of runs.
        metric: The metric; for ``table``, the name of the table; for ``media``, that of the images.
        x: The metric of the x-axis, for ``scatter`` and ``line``.
        title: The heading.
    """

    kind: Literal["bar", "line", "scatter", "table", "media"]
    metric: str
    x: str = ""
    title: str = ""


@dataclass(frozen=True)
class PanelSection:
    """A section of panels.

    Attributes:
        title: The heading.
        text: A sentence below the heading of the report, in Markdown.
        panels: The panels.
    """

    title: str
    text: str
    panels: list[Panel]


@dataclass(frozen=True)
class View:
    """The description of the workspace and of the report.

    Attributes:
        project: The project.
        title: The name of both.
        sections: The sections of both, in order.
    """

    project: str
    title: str
    sections: list[PanelSection]

    def __str__(self) -> str:
        panels = sum(len(section.panels) for section in self.sections)
        return f"workspace and report '{self.title}' with {panels} panels in {len(self.sections)} sections"

    def write(self, path: Path) -> None:
        """Write the description as JSON.

        Raises:
            UserError: If the file cannot be written.
        """
        write_text(path, json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")


def view_of(page: PageData, project: str, tables: list[str]) -> View:
    """Return the description for a page.

    Args:
        page: The page.
        project: The project that contains the records.
        tables: The names of the recorded tables.
    """
    sections = []
    for task in page.tasks:
        score = f"{page.split_of(task)}/{SCORES[task][0]}"
        best = f"val/{SCORES[task][0]}"
        ideas = [
            f"- **{r.name}**: {r.idea}" for r in RUNGS if r.task == task and _has_rung(page, task, r.family)
        ]
        panels = [Panel("table", name, title=name) for name in tables if name.startswith(f"ladder/{task}")]
        panels += [
            Panel("bar", score, title=f"{score} by rung"),
            Panel("scatter", score, "cost/ms_per_image", f"{score} against time per image"),
            Panel("scatter", score, "cost/flops", f"{score} against operations"),
            Panel("scatter", score, "cost/train_seconds", f"{score} against training time"),
            Panel("line", best, STEP, f"{best} by step"),
            Panel("line", "train/loss", STEP, "loss by step"),
        ]
        panels += [
            Panel("table", name, title=name)
            for name in tables
            if name.startswith((f"runs/{task}", f"gallery/{task}"))
        ]
        if f"gallery/{task}" in tables:
            panels.append(Panel("media", IMAGES, title="test images"))
        sections.append(PanelSection(task.capitalize(), "\n".join(ideas), panels))
    rest = [name for name in tables if not name.startswith(("ladder/", "runs/", "gallery/"))]
    if rest:
        sections.append(PanelSection("Details", "", [Panel("table", name, title=name) for name in rest]))
    return View(project, f"segdet: {page.title}"[:128], sections)


def _has_rung(page: PageData, task: str, family: str) -> bool:
    return any(run.record.model == family for run in page.runs_of(task))


def can_create_views() -> bool:
    """Return whether the library wandb-workspaces is installed."""
    return importlib.util.find_spec("wandb_workspaces") is not None


def check_view(view: View) -> None:
    """Build the objects of wandb-workspaces, which validate their values."""
    _workspace(view, "entity")
    _report(view, "entity", "")


def create_view(view: View) -> list[str]:
    """Create the workspace and the report online, and return their addresses.

    Raises:
        UserError: If Weights & Biases refuses or does not respond.
    """
    import wandb

    try:
        entity = str(wandb.Api().default_entity)
        workspace = _workspace(view, entity).save()
        report = _report(view, entity, workspace.url).save()
    except (wandb.errors.Error, OSError) as error:  # requests raises subclasses of OSError
        raise UserError(
            f"the {view} cannot be created on Weights & Biases ({' '.join(str(error).split())}); run the command again"
        ) from error
    return [workspace.url, report.url]


def _library() -> tuple[Any, Any]:
    """Return the modules for workspaces and for reports of wandb-workspaces."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it uses an old interface of pydantic
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    return workspaces, reports


def _panels(panels: list[Panel]) -> list[Any]:
    _, wr = _library()
    built: list[Any] = []
    for panel in panels:
        if panel.kind == "table":
            built.append(wr.WeavePanelSummaryTable(table_name=panel.metric))
        elif panel.kind == "media":
            built.append(wr.MediaBrowser(title=panel.title, media_keys=[panel.metric]))
        elif panel.kind == "bar":
            built.append(wr.BarPlot(title=panel.title, metrics=[panel.metric], groupby="config.rung"))
        elif panel.kind == "line":
            built.append(wr.LinePlot(title=panel.title, x=panel.x, y=[panel.metric]))
        else:
            built.append(wr.ScatterPlot(title=panel.title, x=panel.x, y=panel.metric, log_x=True))
    return built


def _workspace(view: View, entity: str) -> Any:
    ws, _ = _library()
    sections = [
        ws.Section(name=section.title, panels=_panels(section.panels), is_open=True)
        for section in view.sections
    ]
    runs = ws.RunsetSettings(groupby=[ws.Config("rung")])
    return ws.Workspace(
        entity=entity, project=view.project, name=view.title, sections=sections, runset_settings=runs
    )


def _report(view: View, entity: str, workspace: str) -> Any:
    _, wr = _library()
    blocks: list[Any] = [wr.MarkdownBlock(f"[Workspace]({workspace})")] if workspace else []
    for section in view.sections:
        blocks.append(wr.H1(section.title))
        if section.text:
            blocks.append(wr.MarkdownBlock(section.text))
        runs = wr.Runset(entity=entity, project=view.project, groupby=["config.rung"])
        blocks.append(wr.PanelGrid(runsets=[runs], panels=_panels(section.panels)))
    return wr.Report(project=view.project, entity=entity, title=view.title, blocks=blocks)
