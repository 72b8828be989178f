"""The results of a sweep, in its folder: the best configuration, a table, importances and plots."""

import contextlib
import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segdet.launch.sweep_file import Metric, Sweep
from segdet.launch.sweep_plots import plot_history, plot_importances, plot_parallel
from segdet.launch.sweep_trials import SweepTrials, Trial
from segdet.runs.folder_layout import read_record
from segdet.util.files import write_text
from segdet.util.nouns import counted
from segdet.util.tables import markdown_table

if TYPE_CHECKING:
    import optuna


def read_values(folder: Path, name: str) -> list[float]:
    """Return the values of a metric in a run's ``metrics.csv``, in order.

    A step that was repeated after a crash counts once. Values that are not finite are left out.
    """
    by_step: dict[str, float] = {}
    try:
        with (folder / "metrics.csv").open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                with contextlib.suppress(TypeError, ValueError):  # a row without the metric, or half a row
                    by_step[row["step"]] = float(row[name])
    except (OSError, KeyError, csv.Error):
        return []
    return [value for value in by_step.values() if math.isfinite(value)]


def read_score(folder: Path, metric: Metric) -> float | None:
    """Return the score of a run: the best value in ``metrics.csv``, otherwise the value in its record."""
    values = read_values(folder, metric.name)
    if values:
        return max(values) if metric.goal == "maximize" else min(values)
    record = read_record(folder)
    score = None if record is None else record.metrics.get(metric.name)
    return score if score is not None and math.isfinite(score) else None


def best_trial(sweep: Sweep, trials: Sequence[Trial]) -> Trial | None:
    """Return the finished trial with the best score; of equal ones, the first."""
    finished = [trial for trial in trials if trial.state == "finished" and trial.score is not None]
    if sweep.metric is None:
        return None
    sign = 1 if sweep.metric.goal == "maximize" else -1
    return max(finished, key=lambda trial: (sign * (trial.score or 0.0), -trial.number), default=None)


def write_results(trials: SweepTrials, folder: Path) -> str:
    """Write ``table.md``, ``best.yaml`` and the plots to the sweep's folder, and return the table.

    Args:
        trials: The trials.
        folder: The folder of the sweep, which contains the run folders.

    Raises:
        UserError: If a file cannot be written.
    """
    sweep, found = trials.sweep, trials.all()
    best = best_trial(sweep, found)
    importances = importances_of(trials.study)
    text = _table(sweep, found, folder)
    ending = [f"importance of the parameters (PED-ANOVA): {_shares(importances)}"] if importances else []
    if best is not None and _write_best(sweep, best, len(found), folder):
        ending.append(f"best: {best.name}; segdet fit --config {folder / 'best.yaml'}")
    page = f"# {sweep.name}\n\n`segdet sweep {sweep.path}`\n\n{text}\n"
    page += "".join(f"\n{line}\n" for line in ending)
    write_text(folder / "table.md", page)
    if sweep.metric is not None and any(trial.values or trial.score is not None for trial in found):
        plot_history(sweep, found, folder / "history.png")
        plot_parallel(sweep, found, folder / "parallel.png")
        if importances:
            plot_importances(importances, sweep.metric.name, folder / "importances.png")
    return "\n".join([text, "", *ending])


def importances_of(study: "optuna.Study") -> dict[str, float]:
    """Return the importance of each parameter by PED-ANOVA, largest first.

    The importance of a parameter is its share in the variance of the good scores. Trials that were stopped early count
    with their score. The result is empty if fewer than four trials have a score, or all have the same.
    """
    import optuna
    from optuna.trial import TrialState

    ended = study.get_trials(states=[TrialState.COMPLETE, TrialState.PRUNED])
    scored = [trial for trial in ended if trial.value is not None]
    if len(scored) < 4 or len({trial.value for trial in scored}) < 2:
        return {}
    copy = optuna.create_study(direction=study.direction)
    for trial in scored:
        trial.state = TrialState.COMPLETE
    copy.add_trials(scored)
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    return optuna.importance.get_param_importances(copy, evaluator=evaluator)


def _shares(importances: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.0%}" for name, value in importances.items())


def _table(sweep: Sweep, trials: Sequence[Trial], folder: Path) -> str:
    """Return the Markdown table of all trials, best first."""
    names = list(sweep.space.searched())
    sign = -1 if sweep.metric is not None and sweep.metric.goal == "maximize" else 1
    states = ["finished", "stopped", "running", "failed"]

    def order(trial: Trial) -> tuple[int, float, int]:
        score = 0.0 if trial.score is None else sign * trial.score
        return states.index(trial.state), score, trial.number

    rows = [
        [
            "trial",
            "state",
            *names,
            *([] if sweep.metric is None else [sweep.metric.name]),
            "min:s",
            "attempts",
        ]
    ]
    for trial in sorted(trials, key=order):
        state = f"{trial.state}: {trial.reason}" if trial.reason else trial.state
        record = read_record(folder / trial.name)
        seconds = None if record is None else record.cost.train_seconds
        score = [] if sweep.metric is None else ["" if trial.score is None else f"{trial.score:.4f}"]
        time = "" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
        values = [shown_value(trial.point[name]) for name in names]
        rows.append([trial.name, state, *values, *score, time, str(trial.claim.attempts)])
    return markdown_table(rows, text_columns=2)


def shown_value(value: object) -> str:
    """Return a parameter's value for tables: numbers with four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _write_best(sweep: Sweep, best: Trial, count: int, folder: Path) -> bool:
    """Write the complete configuration of the best trial to ``best.yaml``, and return whether its run has one."""
    assert sweep.metric is not None and best.score is not None
    try:
        config = (folder / best.name / "config.yaml").read_text(encoding="utf-8")
    except OSError:
        return False  # its run folder is on another machine, or was removed
    heading = (
        f"# The best of {counted(count, 'trial')} of {sweep.path}: {best.name}, {sweep.metric.name} {best.score:.4f}.\n"
        f"# segdet fit --config {folder / 'best.yaml'}\n"
    )
    write_text(folder / "best.yaml", heading + config)
    return True
