"""The trials of a sweep, read from its folder without its sweep file."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdet.launch.sweep_results import importances_of
from segdet.launch.sweep_trials import Trial, trial_of
from segdet.util.errors import UserError

if TYPE_CHECKING:
    import optuna

DATABASE = "trials.db"
"""The file of the trials in the folder of a sweep, unless they are in a PostgreSQL database."""


@dataclass(frozen=True)
class SweepHistory:
    """The trials of a sweep.

    Attributes:
        folder: The folder of the sweep, which contains the run folders.
        name: Its name.
        metric: The metric; empty if the sweep has none.
        goal: ``maximize`` or ``minimize``.
        parameters: The names of the searched parameters.
        trials: The trials by number.
        importances: The importance of each parameter, see `segdet.launch.sweep_results.importances_of`.
    """

    folder: Path
    name: str
    metric: str
    goal: str
    parameters: list[str]
    trials: list[Trial]
    importances: dict[str, float]


def read_history(folder: Path) -> SweepHistory | None:
    """Return the history of the sweep in ``folder``, or None if the folder has no database of trials.

    Raises:
        UserError: If the database cannot be read.
    """
    path = folder / DATABASE
    if not path.exists():
        return None
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{path}", skip_table_creation=True)
        try:
            return _read(folder, storage)
        finally:
            storage.engine.dispose()
    except (optuna.exceptions.StorageInternalError, KeyError) as error:
        raise UserError(
            f"{path}: not the trials of a sweep; repeat segdet sweep, or remove the file"
        ) from error


def _read(folder: Path, storage: "optuna.storages.RDBStorage") -> SweepHistory | None:
    import optuna

    names = optuna.get_all_study_names(storage)
    if not names:
        return None
    name = folder.name if folder.name in names else names[0]
    study = optuna.load_study(study_name=name, storage=storage)
    settings: dict[str, Any] = study.user_attrs.get("settings", {})
    metric = settings.get("metric") or {}
    frozen = study.get_trials()
    return SweepHistory(
        folder=folder,
        name=name,
        metric=str(metric.get("name", "")),
        goal=str(metric.get("goal", "minimize")),
        parameters=list(dict.fromkeys(parameter for trial in frozen for parameter in trial.params)),
        trials=[trial_of(trial) for trial in frozen],
        importances=importances_of(study),
    )
