"""The loggers of a run: ``metrics.csv``, and Weights & Biases (online with an account, otherwise offline)."""

import csv
import os
import secrets
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from segdet.runs.folder_layout import TIME
from segdet.runs.wandb_mode import wandb_mode
from segdet.util.distributed import rank
from segdet.util.files import open_to_append, write_atomically, write_text
from segdet.util.write_guard import check_writable


class MetricsFile(Logger):
    """Write every logged value to ``metrics.csv``, one row per call, with the columns ``epoch``, ``step`` and ``time``.

    The time is in seconds since 1970. The file is in the run's ``folder``. The rows of a resumed run are kept. A new
    metric becomes a new column.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._path = folder / "metrics.csv"
        self._columns: list[str] | None = None
        self._rows: int | None = None

    @property
    def name(self) -> str:
        """The run's name."""
        return self._folder.name

    @property
    def version(self) -> str:
        """An empty string, because each run has its own folder."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self._folder)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: ``config.yaml`` contains the hyperparameters."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append a row."""
        row = {name: _number(value) for name, value in metrics.items()}
        row |= {"step": step, TIME: round(time.time(), 2)}
        if self._columns is None:
            self._columns = self._read_columns()
        new = [name for name in row if name not in self._columns]
        if new:
            self._add_columns(new)
        earlier = self.rows
        with open_to_append(self._path) as stream:
            csv.DictWriter(stream, self._columns).writerow(row)
        self._rows = earlier + 1

    @property
    def rows(self) -> int:
        """The number of rows in the file."""
        if self._rows is None:
            self._rows = len(self._read_rows())
        return self._rows

    def keep(self, number: int) -> None:
        """Remove all rows after the first ``number`` rows."""
        rows = self._read_rows()
        # The process may have been killed while it wrote the last line.
        if len(rows) > number or (rows and not self._path.read_bytes().endswith(b"\n")):
            self._columns = self._read_columns()
            self._write(rows[:number])
        self._rows = min(len(rows), number)

    def _read_columns(self) -> list[str]:
        if not self._path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            return []
        with self._path.open(newline="", encoding="utf-8") as stream:
            return next(csv.reader(stream), [])

    def _read_rows(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        with self._path.open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))

    def _add_columns(self, new: list[str]) -> None:
        rows = self._read_rows()
        assert self._columns is not None
        positions = ("epoch", "step", TIME)
        self._columns = sorted({*self._columns, *new}, key=lambda name: (name not in positions, name))
        self._write(rows)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        assert self._columns is not None
        with (
            write_atomically(self._path) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as stream,
        ):
            writer = csv.DictWriter(stream, self._columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value


class RunWandbLogger(WandbLogger):
    """Lightning's logger for W&B. The run continues if the process of W&B ends.

    SLURM and containers send a signal to all processes of a job. The process of W&B ends at once, while the run
    finishes its batch and saves. A process that does not own the run's folder any more cannot add to the record.
    """

    _lost = False

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B object of the run. Raises the error of the folder's guard if the run was lost."""
        check_writable(Path(str(self.save_dir)))
        return super().experiment

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log values, unless the process of W&B has ended."""
        if not self._lost:
            try:
                super().log_metrics(metrics, step)
            except ConnectionError:
                self._lost = True
                sys.stderr.write("\nsegdet: the process of W&B has ended; its record is not continued\n")


def wandb_logger(folder: Path, project: str, adds_to_run: bool = False) -> list[Logger]:
    """Return the logger of a run's Weights & Biases record, or an empty list if W&B is disabled.

    The ids of the run's records are in ``<folder>/wandb/run_id.txt``. Online, a resumed run continues its record.
    Offline, each part of a resumed run is a record of its own, because records with the same id overwrite each other
    when they are synchronized. The records of a run share its W&B group; use ``trainer/global_step`` as the x-axis.

    Args:
        folder: The run's folder, which contains all files of the logger.
        project: The W&B project, unless WANDB_PROJECT names one.
        adds_to_run: Whether the command adds to a finished run. In offline mode such a command gets no logger,
            because its record would be a run of its own without a training.
    """
    mode = wandb_mode()
    file = folder / "wandb" / "run_id.txt"
    if mode == "disabled" or (adds_to_run and (mode == "offline" or not file.exists())):
        return []
    import wandb

    for name, subfolder in (("WANDB_CACHE_DIR", "cache"), ("WANDB_DATA_DIR", "data")):
        os.environ.setdefault(name, str((folder / "wandb" / subfolder).resolve()))
    settings = wandb.Settings(
        x_transaction_log_flush_interval=1.0,  # with the default of 15 s, a run killed earlier would have no record
        silent=mode == "offline",
        init_timeout=30,
    )
    identifiers = _identifiers(file, new=mode == "offline")
    part = f" (part {len(identifiers)})" if len(identifiers) > 1 and mode == "offline" else ""
    logger = RunWandbLogger(
        name=os.environ.get("WANDB_NAME", folder.name) + part,
        group=os.environ.get("WANDB_RUN_GROUP", folder.name),
        save_dir=str(folder),
        id=os.environ.get("WANDB_RUN_ID") or identifiers[-1],
        project=os.environ.get("WANDB_PROJECT", project),
        mode=mode,
        settings=settings,
    )
    choose_mode(logger)
    return [logger]


def choose_mode(logger: WandbLogger) -> None:
    """Let a logger without a mode record offline if there is no account, because W&B would prompt for one."""
    if logger._wandb_init.get("mode") is None:
        logger._wandb_init["mode"] = wandb_mode()
    logger._wandb_init.pop("anonymous", None)  # Lightning passes it, and W&B warns about it in every run


def _identifiers(file: Path, new: bool) -> list[str]:
    """Return the ids of the run's records, after adding one to the file if there is none or a ``new`` one is needed."""
    identifiers = file.read_text(encoding="utf-8").split() if file.exists() else []
    if rank() > 0:  # the first process records
        return identifiers or [secrets.token_hex(6)]
    if new or not identifiers:
        identifiers.append(secrets.token_hex(6))
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, "\n".join(identifiers) + "\n")
    return identifiers
