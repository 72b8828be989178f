"""A run's folder: what lies where, and the callback that fills it.

::

    runs/<name>/
        config.yaml             complete; `segdet fit --config` of it starts the same run anew
        provenance.json         code, packages, hardware, seed, data and command
        metrics.csv             every logged value, a row a time
        checkpoints/best.ckpt   by the model's monitored metric
        checkpoints/last.ckpt   to resume from
        predictions/            sheets of validation images, and what `segdet predict` writes
        result.json             the record that the report reads
        features/               what a family keeps of its training images between two stages (RCNN)
        errors.json             where a tested detector lost its AP, and confusion.png and worst.png with it
        left_out.txt            what of the data could not be used, if anything
        wandb/                  Weights & Biases' own files
"""

import contextlib
import csv
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from segdet.data.datamodule import Classes, DataModule
from segdet.data.fingerprint import fingerprint
from segdet.runs.cost import measure_cost, peak_memory_mb
from segdet.runs.provenance import now, provenance
from segdet.runs.record import RECORD_NAME, Cost, Record, Status
from segdet.task import Task
from segdet.training.progress import read_losses
from segdet.util.disk_cache import file_sizes
from segdet.util.errors import UserError
from segdet.util.files import write_atomically, write_text

EMBEDDED = "segdet"
"""The key of a checkpoint under which its own configuration and classes stand."""

CONTENTS = (
    "config.yaml",
    "provenance.json",
    "metrics.csv",
    "checkpoints",
    "predictions",
    "features",
    RECORD_NAME,
    "errors.json",
    "confusion.png",
    "worst.png",
    "wandb",
    "left_out.txt",
    "error.txt",
)
"""What a run writes into its folder."""

REQUEUED = ("hpc_ckpt_*.ckpt", "checkpoints/hpc_ckpt_*.ckpt")
"""What Lightning saves when SLURM takes the machine away, and puts the job into the queue again."""


def holds_run(folder: Path) -> bool:
    """Whether ``folder`` holds a run whose results would be lost, or one that is still going on."""
    trained = (folder / "metrics.csv").exists() or any((folder / "checkpoints").glob("*.ckpt"))
    return trained or ((folder / "config.yaml").exists() and not (folder / RECORD_NAME).exists())


def clear_run(folder: Path) -> None:
    """Removes what a run wrote into ``folder`` and leaves everything else."""
    for name in CONTENTS:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for path in requeued_checkpoints(folder):  # Lightning would go on from it without being asked to
        path.unlink(missing_ok=True)


def requeued_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of the moments at which SLURM stopped the run to start it again later."""
    return [path for pattern in REQUEUED for path in folder.glob(pattern)]


def folder_of_checkpoint(checkpoint: Path) -> Path | None:
    """The run folder that ``checkpoint`` lies in, or None if it lies in none."""
    folder = checkpoint.resolve().parent.parent
    if checkpoint.resolve().parent.name == "checkpoints" and (folder / "config.yaml").exists():
        return folder
    return None


class MetricsFile(Logger):
    """``metrics.csv``: every logged value, a row each time, with the columns ``epoch`` and ``step``.

    Rows that are there already, of the run that is resumed, stay. A new metric becomes a new column.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._path = folder / "metrics.csv"
        self._columns: list[str] | None = None

    @property
    def name(self) -> str:
        """The run's name."""
        return self._folder.name

    @property
    def version(self) -> str:
        """Empty: the folder is the version."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self._folder)

    @property
    def log_dir(self) -> str:
        """The run's folder."""
        return str(self._folder)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: ``config.yaml`` has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Appends a row."""
        row = {name: _number(value) for name, value in metrics.items()}
        row["step"] = step
        if self._columns is None:
            self._columns = self._read_columns()
        new = [name for name in row if name not in self._columns]
        if new:
            self._widen(new)
        with self._path.open("a", newline="", encoding="utf-8") as stream:
            csv.DictWriter(stream, self._columns).writerow(row)

    def _read_columns(self) -> list[str]:
        if not self._path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            return []
        with self._path.open(newline="", encoding="utf-8") as stream:
            return next(csv.reader(stream), [])

    def _widen(self, new: list[str]) -> None:
        """Rewrites the file with the columns ``new`` beside the present ones."""
        rows: list[dict[str, Any]] = []
        if self._path.exists():
            with self._path.open(newline="", encoding="utf-8") as stream:
                rows = list(csv.DictReader(stream))
        assert self._columns is not None
        self._columns = _ordered({*self._columns, *new})
        with (
            write_atomically(self._path) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as stream,
        ):
            writer = csv.DictWriter(stream, self._columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)


def _ordered(names: set[str]) -> list[str]:
    first = [name for name in ("epoch", "step") if name in names]
    return first + sorted(names - set(first))


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value


@dataclass
class RunSettings:
    """What the command knows of a run and its callbacks need.

    Attributes:
        folder: The run's folder.
        config: The complete configuration, as YAML.
        resumed: Whether the folder holds a run that goes on.
        command: The subcommand: fit, validate, test or predict.
        command_line: As it was given.
        seed: The run's seed.
        fingerprint: The dataset's, where it has been taken already.
        begins_at: The checkpoint that this process begins with, in words; empty for none.
        sections: The configuration, read; follows from ``config``.
    """

    folder: Path
    config: str
    resumed: bool = False
    command: str = "fit"
    command_line: str = ""
    seed: int = 0
    fingerprint: str | None = None
    begins_at: str = ""
    sections: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sections = yaml.safe_load(self.config) or {}

    def init_args(self, section: str) -> dict[str, Any]:
        """The arguments of the section's class."""
        return (self.sections.get(section) or {}).get("init_args") or {}

    def class_name(self, section: str) -> str:
        """The name of the section's class."""
        return str((self.sections.get(section) or {}).get("class_path", "")).rsplit(".", 1)[-1]


class RunFolder(pl.Callback):
    """Fills a run's folder: configuration, provenance, the record, and each checkpoint's own configuration.

    The record's ``val/...`` scores are those of the best epoch, the one ``best.ckpt`` was saved at.
    ``segdet test`` adds its scores and the model's cost to the record of the run that it tests. A run
    that goes on changes nothing in its folder before it trains.

    Args:
        settings: Of this run.
    """

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings
        self.folder = settings.folder
        self.best: dict[str, float] = {}
        self.last: dict[str, float] = {}
        self.earlier_seconds = 0.0
        self.start: float | None = None
        self.started = now()
        self.peak_memory: float | None = None
        self.stopped_by: str | None = None
        self.about: dict[str, Any] = {}

    # What is written before the first step.

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Writes ``config.yaml`` and ``provenance.json``, those of a run that goes on excepted.

        Raises:
            UserError: In all processes, if they do not begin with the same checkpoint.
        """
        self._agree(trainer)
        if not trainer.is_global_zero:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.about = provenance(self.settings.command_line or None) | {
            "seed": self.settings.seed,
            "fingerprint": self._fingerprint(trainer),
            "processes": trainer.world_size,
            "precision": str(trainer.precision),
            "launcher": _launcher(),
        }
        self.started = self.about["started"]
        if not (self.folder / "config.yaml").exists() or (stage == "fit" and not self.settings.resumed):
            self._describe(trainer)

    def _agree(self, trainer: pl.Trainer) -> None:
        """Compares what the processes begin with, which each chose for itself."""
        if trainer.world_size == 1:
            return
        mine = self.settings.begins_at
        first = trainer.strategy.broadcast(mine)
        if not trainer.strategy.reduce_boolean_decision(mine == first):
            raise UserError(
                f"{self.folder}: the processes do not see the same checkpoints in it (this one begins with "
                f"{mine or 'none'}, the first with {first or 'none'}); start the command again, or name a --ckpt_path"
            )

    def _fingerprint(self, trainer: pl.Trainer) -> str:
        if self.settings.fingerprint is None:
            return fingerprint_of(getattr(trainer, "datamodule", None))
        return self.settings.fingerprint

    def _describe(self, trainer: pl.Trainer) -> None:
        write_text(self.folder / "config.yaml", _header(self.settings, self.about) + self.settings.config)
        file = self.folder / "provenance.json"
        first = _first_provenance(self.folder) or _recorded(self.folder) if self.settings.resumed else {}
        if first:
            self.started = first.get("started", self.started)
            about = first | {"resumed": [*first.get("resumed", []), self.about]}
        else:
            about = self.about
        write_text(file, json.dumps(about, indent=1) + "\n")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_hyperparams(self.settings.sections | {"provenance": self.about})

    # What is kept while it trains.

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock; from here on a run that goes on is another one than it was."""
        self.start = time.monotonic()
        if trainer.is_global_zero and self.settings.resumed:
            self._describe(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the peak of the memory, as long as the model is still where it was trained."""
        self.peak_memory = peak_memory_mb(pl_module.device)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keeps the scores, and those of the best epoch apart."""
        if trainer.sanity_checking:
            return
        scores = _scores(trainer, "val/")
        name = str(pl_module.monitor)
        sign = 1 if getattr(pl_module, "monitor_mode", "max") == "max" else -1
        self.last = scores
        # A first score counts even if it is not a number, as it does for the checkpoint.
        better = sign * scores.get(name, float("nan")) > sign * self.best.get(name, float("nan"))
        if better or name not in self.best or self.best[name] != self.best[name]:
            self.best = scores

    def state_dict(self) -> dict[str, Any]:
        """The best scores so far and the time spent."""
        return {"best": dict(self.best), "seconds": self._seconds()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes them up again when the run goes on."""
        if self.settings.resumed:
            self.best = dict(state["best"])
            self.earlier_seconds = state["seconds"]

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Puts the configuration and the classes into the checkpoint, as plain text and lists."""
        classes = getattr(getattr(trainer, "datamodule", None), "classes", None) or Classes([], [])
        checkpoint[EMBEDDED] = {
            "config": self.settings.config,
            "task": str(getattr(pl_module, "task", "")),
            "class_names": [str(name) for name in classes.names],
            "category_ids": [int(number) for number in classes.category_ids],
            "mask_values": [int(value) for value in classes.mask_values],
            "palette_masks": bool(classes.palette_masks),
        }

    # What is written at the end.

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the record of the training."""
        if not trainer.is_global_zero:
            return
        path = self.folder / RECORD_NAME
        if self.start is None and (self.settings.resumed or path.exists()):
            sys.stderr.write(f"segdet: nothing is left to train; see {self.folder}\n")
            # It may have been stopped at its very end, or be asked for an end that lies behind it.
            complete = _is_complete(self.folder, trainer)
            record = Record.read(path) if path.exists() else self._record(trainer, pl_module, "interrupted")
            (replace(record, status="finished") if complete else record).write(path)
            return
        record = self._record(trainer, pl_module, "finished")
        record.write(path)
        self._tell(pl_module, record)

    def _tell(self, pl_module: pl.LightningModule, record: Record) -> None:
        score = record.metrics.get(str(pl_module.monitor))
        best = "" if score is None else f"{pl_module.monitor} {score:.4f} at its best, "
        minutes, seconds = divmod(round(record.cost.train_seconds or 0), 60)
        took = f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
        sys.stderr.write(
            f"segdet: {best}{record.epochs} epoch{'s' * (record.epochs != 1)} in {took}; see {self.folder}\n"
        )

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Writes the record of a run that did not end as it should.

        A run that was to go on and never did so keeps its record; one that did go on keeps what was
        measured before. A new run that failed before its first step has a record too, which says that its
        folder may be used again.
        """
        if isinstance(exception, KeyboardInterrupt | SIGTERMException):
            self.stopped_by = type(exception).__name__
        fit = trainer.state.fn is not None and trainer.state.fn.value == "fit"
        if not fit or not trainer.is_global_zero or not (self.folder / "config.yaml").exists():
            return
        path = self.folder / RECORD_NAME
        if self.start is None and (self.settings.resumed or path.exists()):
            return
        status: Status = "interrupted" if self.stopped_by else "failed"
        record = self._record(trainer, pl_module, status)
        if self.settings.resumed and path.exists():
            with contextlib.suppress(UserError):  # a torn one is replaced
                record = _continued(Record.read(path), record, str(pl_module.monitor))
        record.write(path)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures the cost and adds it and the scores to the record."""
        if trainer.is_global_zero:
            self._merge(trainer, pl_module, "test", _cost(trainer, pl_module))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Adds the scores of `segdet validate` to the record."""
        if stage == "validate" and trainer.is_global_zero and trainer.state.status.value != "interrupted":
            self._merge(trainer, pl_module, "val", None)

    def _merge(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, split: str, cost: Cost | None
    ) -> None:
        path = self.folder / RECORD_NAME
        scores = _scores(trainer, f"{split}/")
        record = Record.read(path) if path.exists() else self._record(trainer, pl_module, "finished")
        record.merge(scores, cost).write(path)
        name = f"{split}/" + str(pl_module.monitor).split("/", 1)[-1]
        said = f"{name} {scores[name]:.4f}; " if name in scores else ""
        sys.stderr.write(f"segdet: {said}see {path}\n")

    def _record(self, trainer: pl.Trainer, pl_module: pl.LightningModule, status: Status) -> Record:
        trained = self.settings.command == "fit"
        backbone = self.settings.init_args("model").get("backbone")
        return Record(
            name=self.folder.name,
            task=str(getattr(pl_module, "task", "")),
            model=self.settings.class_name("model") or type(pl_module).__name__,
            data=self.settings.class_name("data"),
            seed=self.settings.seed,
            status=status,
            metrics={**self.best, **read_losses(pl_module)},
            cost=Cost(
                parameters=sum(parameter.numel() for parameter in pl_module.parameters()),
                train_seconds=round(self._seconds(), 2) if trained else None,
                peak_memory_mb=peak_memory_mb(pl_module.device)
                if self.peak_memory is None
                else self.peak_memory,
                disk_mb=_disk_mb(self.folder, getattr(trainer, "datamodule", None))
                if status == "finished" and trained
                else None,
            ),
            epochs=trainer.current_epoch if trained else 0,
            steps=trainer.global_step if trained else 0,
            hardware=self.about.get("hardware", {})
            | {"processes": trainer.world_size, "precision": str(trainer.precision)},
            fingerprint=self.about.get("fingerprint", ""),
            command=" && ".join(recorded_commands(self.folder)) or self.about.get("command", ""),
            started=self.started,
            finished=now(),
            backbone=backbone if isinstance(backbone, str) else None,
            launcher=_launcher(),
        )

    def _seconds(self) -> float:
        return self.earlier_seconds + (0.0 if self.start is None else time.monotonic() - self.start)


def _header(settings: RunSettings, about: Mapping[str, Any]) -> str:
    said = f"{settings.folder.name}, {about['started']}: {about['command']}"
    return "".join(f"# {line}\n" for line in said.splitlines())  # the command may hold a whole YAML text


def _first_provenance(folder: Path) -> dict[str, Any]:
    """What ``provenance.json`` says of the run's beginning; nothing where there is none or it is torn."""
    try:
        first = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return first if isinstance(first, dict) else {}


def _recorded(folder: Path) -> dict[str, Any]:
    """What the record says of the run's beginning, where ``provenance.json`` is torn; nothing without a whole one."""
    try:
        record = Record.read(folder / RECORD_NAME)
    except UserError:
        return {}
    return {name: getattr(record, name) for name in ("command", "started", "seed", "fingerprint", "hardware")}


def _is_complete(folder: Path, trainer: pl.Trainer) -> bool:
    """Whether the run in ``folder`` has been trained for as long as its own configuration says.

    One that is asked to go on to an end which lies behind it has nothing left to train, and is not complete for that.
    """
    try:
        own = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["trainer"]
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return False
    done = (
        (own.get("max_epochs"), trainer.fit_loop.epoch_progress.current.processed),  # type: ignore[attr-defined]
        (own.get("max_steps"), trainer.global_step),
    )
    return any(end not in (None, -1) and reached >= end for end, reached in done)


def _disk_mb(folder: Path, data: Any) -> float:
    """What a run keeps in its folder, Weights & Biases' files aside, and with its data: in megabytes."""
    files = {
        file for name in CONTENTS if name != "wandb" for file in (folder / name, *(folder / name).rglob("*"))
    }
    if isinstance(data, DataModule):
        files |= data.kept_files()
    return round(file_sizes(files) / 1e6, 2)


def recorded_fingerprint(folder: Path) -> str:
    """The fingerprint of the data that the run in ``folder`` was trained on; empty where it is unknown.

    Raises:
        UserError: If the run's record is torn.
    """
    path = folder / RECORD_NAME
    if path.exists():
        return Record.read(path).fingerprint
    return str(_first_provenance(folder).get("fingerprint", ""))


def recorded_commands(folder: Path) -> list[str]:
    """The command lines that trained the run in ``folder``, the one that began it first; none where it is unknown."""
    first = _first_provenance(folder)
    parts = [first, *first.get("resumed", [])]
    return list(dict.fromkeys(str(part["command"]) for part in parts if part.get("command")))


def recorded_status(folder: Path) -> Status | None:
    """How the run in ``folder`` ended, None where that is not recorded.

    Raises:
        UserError: If the run's record is torn.
    """
    path = folder / RECORD_NAME
    return Record.read(path).status if path.exists() else None


def _continued(earlier: Record, record: Record, monitor: str) -> Record:
    """The record of a run that went on, with what was measured before and still holds."""
    if earlier.metrics.get(monitor) != record.metrics.get(monitor):  # another best checkpoint, not yet tested
        kept = {name: value for name, value in earlier.metrics.items() if not name.startswith("test/")}
        earlier = replace(earlier, metrics=kept)
    return replace(
        earlier.merge(record.metrics, record.cost),
        status=record.status,
        epochs=max(earlier.epochs, record.epochs),
        steps=max(earlier.steps, record.steps),
        finished=record.finished,
        command=record.command,
    )


def _scores(trainer: pl.Trainer, prefix: str) -> dict[str, float]:
    scores = {name: value for name, value in trainer.callback_metrics.items() if name.startswith(prefix)}
    return {name: float(value) for name, value in scores.items()}


def fingerprint_of(data: Any) -> str:
    """The fingerprint of a data module; empty where it has none, for one of its subsets is absent."""
    try:
        return "" if data is None else fingerprint(data)
    except UserError as error:  # a set that this command does not read may be absent
        warnings.warn(f"the dataset has no fingerprint: {error}", stacklevel=1)
        return ""


def _launcher() -> str | None:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "torchrun"
    return "slurm" if "SLURM_JOB_ID" in os.environ and "SLURM_PROCID" in os.environ else None


def _cost(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Cost | None:
    """What one image of the test set costs; None, and a line that says so, where it cannot be measured."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    try:
        # Counting operations looks at single ones, which inference mode hides.
        with torch.inference_mode(False), trainer.precision_plugin.forward_context():
            sample = data.dataset("test")[0]
            inputs = pl_module.benchmark_inputs(sample) if isinstance(pl_module, Task) else {}
            return measure_cost(pl_module, sample.image[None].to(pl_module.device), inputs=inputs)  # type: ignore[arg-type]
    except UserError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[:1]
        sys.stderr.write(f"segdet: the cost was not measured: {type(error).__name__} {' '.join(reason)}\n")
        return None
