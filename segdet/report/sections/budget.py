"""Accuracy against training budget: runs with equal settings except for the length of their training."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from segdet.report.charts import SHOWN, emphasis
from segdet.report.html import render
from segdet.report.page_data import PageData, Section
from segdet.report.run_data import SCORES, RunGroup
from segdet.report.sections.settings import settings_of
from segdet.runs.record import to_json

BUDGET = {
    f"trainer.{name}"
    for name in (
        *("max_epochs", "min_epochs", "max_steps", "min_steps", "max_time"),
        *("check_val_every_n_epoch", "val_check_interval", "log_every_n_steps"),
    )
} | {"model.optim.warmup_steps", "checkpoint_every_n_steps"}
"""Settings that may differ between the budgets of a family."""

HEIGHT = 280
"""The height of a plot in pixels."""


@dataclass(frozen=True)
class Family:
    """The budgets of one model with equal settings.

    Attributes:
        name: The name of its shortest run.
        groups: The runs, the shortest first.
    """

    name: str
    groups: list[RunGroup]


def section(page: PageData) -> Section | None:
    """Return a chart of each task that has families with several budgets, otherwise a note that they are missing."""
    parts, missing = [], []
    for task in page.tasks:
        groups = [group for group in page.groups_of(task) if group.record.steps]
        families = [family for family in families_of(groups) if len(family.groups) > 1]
        if families:
            parts.append((task, _chart(page, task, families)))
        elif len(groups) > 1:
            missing.append(task)
    if not parts and not missing:
        return None
    html = render("budget.html.j2", parts=parts, missing=missing)
    return Section("budget", "Accuracy and training budget", html)


def families_of(groups: Sequence[RunGroup]) -> list[Family]:
    """Group the runs whose settings are equal except for the length of training."""
    families: dict[str, list[RunGroup]] = {}
    for group in groups:
        families.setdefault(_key(group), []).append(group)
    found = []
    for members in families.values():
        by_steps = {group.record.steps: group for group in members}
        ordered = [by_steps[steps] for steps in sorted(by_steps)]
        found.append(Family(ordered[0].name, ordered))
    return found


def _key(group: RunGroup) -> str:
    config: Mapping[str, Any] = group.runs[0].config
    if not config:
        return f"run {group.name}"
    settings = {name: value for name, value in settings_of(config).items() if name not in BUDGET}
    return json.dumps(to_json(settings), sort_keys=True, default=str)


def _chart(page: PageData, task: str, families: Sequence[Family]) -> Markup:
    import altair as alt

    score = f"{page.split_of(task)}/{SCORES[task][0]}"
    rows = [
        {
            "run": group.name,
            "family": family.name,
            "steps": group.record.steps,
            "epochs": group.record.epochs,
            "score": statistics.fmean(group.values(score)),
        }
        for family in families
        for group in family.groups
        if group.values(score)
    ]
    names = [family.name for family in families]
    colour = alt.Color(
        "family:N",
        scale=alt.Scale(domain=names, range=[page.styles[name].colour for name in names]),
        legend=alt.Legend(title=None, orient="top", symbolType="circle") if len(names) > 1 else None,
    )
    base = (
        alt.Chart(page.charts.data(rows))
        .transform_filter(SHOWN)
        .encode(
            x=alt.X("steps:Q", title="optimizer steps", axis=alt.Axis(format="~s", tickCount=5)),
            y=alt.Y("score:Q", title=score, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5)),
            color=colour,
        )
    )
    lines = base.mark_line(strokeWidth=1.8).encode(detail="family:N")
    points = base.mark_point(filled=True, size=80, cursor="pointer", opacity=1).encode(
        opacity=emphasis(),
        tooltip=[
            alt.Tooltip("run:N"),
            alt.Tooltip("epochs:Q"),
            alt.Tooltip("steps:Q"),
            alt.Tooltip("score:Q", format=".3f", title=score),
        ],
    )
    label = f"{score} by the number of optimizer steps, of {len(families)} models with several budgets."
    return page.charts.figure(
        alt.layer(lines, points).properties(height=HEIGHT), f"{score} by training budget", label
    )
