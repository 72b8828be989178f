"""Settings that differ between runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segdet.report.html import render
from segdet.report.page_data import PageData, Section
from segdet.report.run_data import RunGroup
from segdet.runs.differences import NEUTRAL, flat_settings

IGNORED = NEUTRAL | {"seed_everything", "resume", "test", "ckpt_path", "panels", "error_analysis"}
"""Top-level options that do not change a trained model, or change in each seed."""


@dataclass(frozen=True)
class Table:
    """The settings of a task.

    Attributes:
        task: The task.
        names: The settings that differ, by dotted name.
        rows: The runs, each with the texts of its values; None where its configuration has no such setting.
        equal: The number of settings that are the same in all runs that have them.
    """

    task: str
    names: list[str]
    rows: list[tuple[RunGroup, list[str | None]]]
    equal: int


def section(page: PageData) -> Section | None:
    """Return a table of each task that has at least two configurations."""
    tables = []
    for task in page.tasks:
        groups = [group for group in page.groups_of(task) if group.runs[0].config]
        if len(groups) > 1:
            tables.append(_table(task, groups))
    if not tables:
        return None
    return Section("settings", "Settings that differ", render("settings.html.j2", page=page, tables=tables))


def differing_settings(configs: Sequence[Mapping[str, Any]]) -> tuple[list[str], int]:
    """Return the settings with several values, and the number of all others.

    Args:
        configs: The settings of each run by dotted name. Runs without a setting are ignored when its values are
            compared.
    """
    names = dict.fromkeys(name for config in configs for name in config)
    differing = [
        name for name in names if len({_text(config[name]) for config in configs if name in config}) > 1
    ]
    return differing, len(names) - len(differing)


def _table(task: str, groups: list[RunGroup]) -> Table:
    configs = [settings_of(group.runs[0].config) for group in groups]
    names, equal = differing_settings(configs)
    rows = [
        (group, [_text(config[name]) if name in config else None for name in names])
        for group, config in zip(groups, configs, strict=True)
    ]
    return Table(task, names, rows, equal)


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in a ``config.yaml`` that can change a model, by dotted name."""
    return {name: value for name, value in flat_settings(config).items() if name.split(".")[0] not in IGNORED}


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return str(value)
