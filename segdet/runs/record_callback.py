"""The callback that fills a run's folder: configuration, provenance and the result record."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.loggers import WandbLogger

from segdet.data.base import DataModule
from segdet.runs.checkpoint_file import remaining_checkpoints
from segdet.runs.cost import measure_cost, peak_memory_mb
from segdet.runs.evidence_writer import EvidenceWriter
from segdet.runs.folder_choice import Run, fingerprint_of
from segdet.runs.folder_layout import (
    CONTENTS,
    INPUTS_NAME,
    first_provenance,
    recorded_commands,
    recorded_provenance,
)
from segdet.runs.inputs import Inputs, inputs_of
from segdet.runs.ownership import OutdatedError
from segdet.runs.provenance import now, provenance
from segdet.runs.record import RECORD_NAME, Cost, Record, Status, first_sentence
from segdet.task import Task
from segdet.training.divergence import DivergedError
from segdet.training.load_checkpoint import DESCRIPTION
from segdet.training.progress import read_losses
from segdet.util.disk_cache import total_size
from segdet.util.distributed import run_on_all_ranks
from segdet.util.errors import UserError
from segdet.util.files import write_text
from segdet.util.yaml_text import dump_yaml


class RunRecorder(pl.Callback):
    """Write a run's configuration, provenance and record, and embed the configuration in its checkpoints.

    The ``val/...`` scores of the record are those of the best epoch, at which ``best.ckpt`` was saved. ``segdet
    test`` adds its scores and the model's cost to the record of the run that it tests. A resumed run changes nothing
    in its folder until training starts.

    Args:
        run: The run.
        config: The complete configuration, as YAML.
        labels: Further values of the configuration on Weights & Biases, by which runs are grouped.
    """

    def __init__(self, run: Run, config: str, labels: Mapping[str, Any] | None = None) -> None:
        self.run = run
        self.labels = dict(labels or {})
        self.folder = run.folder
        self.config = config
        self.sections: dict[str, Any] = yaml.safe_load(config) or {}
        self.seed = int(self.sections.get("seed_everything", 0))
        self.best: dict[str, float] = {}
        self.losses: dict[str, float] = {}
        self.earlier_seconds = 0.0
        self.start: float | None = None
        self.started = now()
        self.peak_memory: float | None = None
        self.provenance: dict[str, Any] = {}
        self.inputs: Inputs | None = None

    # Before the first step.

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write ``config.yaml`` and ``provenance.json``, unless the run is resumed.

        Raises:
            UserError: In all processes, if they do not start from the same checkpoint.
        """
        self._check_same_checkpoint(trainer)
        if stage == "fit":
            # The first run on a large dataset reads all files, which may exceed the timeout of the process group.
            run_on_all_ranks(lambda: self._collect_inputs(trainer))
        if not trainer.is_global_zero:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        fingerprint = self.run.fingerprint
        if fingerprint is None:
            fingerprint = fingerprint_of(getattr(trainer, "datamodule", None))
        self.provenance = provenance(self.run.command_line) | {
            "seed": self.seed,
            "fingerprint": fingerprint,
            "processes": trainer.world_size,
            "precision": str(trainer.precision),
            "launcher": _launcher(),
        }
        if self.inputs is not None:
            self.provenance["inputs"] = self.inputs.digest
        self.started = self.provenance["started"]
        if not (self.folder / "config.yaml").exists() or (stage == "fit" and not self.run.resumed):
            self._write_description(trainer)
        if self.inputs is not None and not (self.run.resumed and (self.folder / INPUTS_NAME).exists()):
            self.inputs.write(self.folder)

    def _collect_inputs(self, trainer: pl.Trainer) -> None:
        data = getattr(trainer, "datamodule", None)
        if trainer.is_global_zero and isinstance(data, DataModule):
            self.inputs = inputs_of(data, self.sections)

    def _check_same_checkpoint(self, trainer: pl.Trainer) -> None:
        """Compare the checkpoints that the processes start from, because each process chooses one by itself."""
        if trainer.world_size == 1:
            return
        own = str(self.run.checkpoint or "")
        first = trainer.strategy.broadcast(own)
        if not trainer.strategy.reduce_boolean_decision(own == first):
            raise UserError(
                f"{self.folder}: the processes found different checkpoints (this one starts from {own or 'none'}, "
                f"rank 0 from {first or 'none'}); start the command again, or give --ckpt_path"
            )

    def _write_description(self, trainer: pl.Trainer) -> None:
        header = f"{self.folder.name}, {self.provenance['started']}: {self.provenance['command']}"
        # The command may contain YAML text of several lines.
        comment = "".join(f"# {line}\n" for line in header.splitlines())
        write_text(self.folder / "config.yaml", comment + self.config)
        content = self.provenance
        if self.run.resumed and (first := first_provenance(self.folder) or recorded_provenance(self.folder)):
            self.started = first.get("started", self.started)
            resumed = self.provenance | {"changes": [str(change) for change in self.run.changes]}
            content = first | {"resumed": [*first.get("resumed", []), resumed]}
        write_text(self.folder / "provenance.json", json.dumps(content, indent=1) + "\n")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                labels = self.labels | {"seed": self.seed}
                logger.log_hyperparams(labels | self.sections | {"provenance": self.provenance})

    def change_config(self, trainer: pl.Trainer, values: Mapping[tuple[str, ...], Any]) -> None:
        """Record values that replace those of the configuration, such as a learning rate that was found.

        Args:
            trainer: The trainer.
            values: The values by their path in the configuration.
        """
        for (*sections, name), value in values.items():
            node = self.sections
            for section in sections:
                node = node[section]
            node[name] = value
        self.config = dump_yaml(self.sections)
        if trainer.is_global_zero:
            self._write_description(trainer)

    # During the run.

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock; rewrite the configuration and provenance of a resumed run, because settings may differ."""
        self.start = time.monotonic()
        if trainer.is_global_zero and self.run.resumed:
            self._write_description(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the peak memory while the model is still on the device of the training."""
        self.peak_memory = peak_memory_mb(pl_module.device)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the scores of the best epoch."""
        if trainer.sanity_checking:
            return
        scores = _scores(trainer, "val/")
        name = str(pl_module.monitor)
        sign = 1 if getattr(pl_module, "monitor_mode", "max") == "max" else -1
        # As in `BestCheckpoint`, the first score is the best so far even if it is NaN.
        better = sign * scores.get(name, float("nan")) > sign * self.best.get(name, float("nan"))
        if better or name not in self.best or self.best[name] != self.best[name]:
            self.best = scores

    def state_dict(self) -> dict[str, Any]:
        """Return the best scores so far and the seconds of training."""
        return {"best": dict(self.best), "seconds": self._seconds()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the scores and the seconds of a resumed run."""
        if self.run.resumed:
            self.best = dict(state["best"])
            self.losses = dict(state.get("losses", {}))
            self.earlier_seconds = state["seconds"]

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Embed the configuration and the last losses; the model adds its class path and class names."""
        checkpoint.setdefault(DESCRIPTION, {})["config"] = self.config
        # A run that is killed after its last step has no step that computes them again.
        checkpoint["callbacks"][self.state_key]["losses"] = read_losses(pl_module) or self.losses

    # At the end.

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the record of the training."""
        if not trainer.is_global_zero:
            return
        path = self.folder / RECORD_NAME
        if self.start is None and (self.run.resumed or path.exists()):
            sys.stderr.write(f"segdet: nothing is left to train; see {self.folder}\n")
            # The run may have been stopped after its last step, or resumed with an end before the current step.
            complete = _is_complete(self.folder, trainer)
            record = Record.read(path) if path.exists() else self._record(trainer, pl_module, "interrupted")
            (replace(record, status="finished") if complete else record).write(path)
            return
        record = self._record(trainer, pl_module, "finished")
        record.write(path)
        self._report_training(pl_module, record)

    def _report_training(self, pl_module: pl.LightningModule, record: Record) -> None:
        score = record.metrics.get(str(pl_module.monitor))
        best = "" if score is None else f"best {pl_module.monitor} {score:.4f}, "
        minutes, seconds = divmod(round(record.cost.train_seconds or 0), 60)
        duration = f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
        sys.stderr.write(
            f"segdet: {best}{record.epochs} epoch{'s' * (record.epochs != 1)} in {duration}; see {self.folder}\n"
        )

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Write the record of a run that was stopped or failed.

        A run that could not be resumed keeps its record; a run that failed after it was resumed keeps the earlier
        measurements. The record of a new run that failed before its first step marks the folder as free.
        """
        if isinstance(exception, OutdatedError):
            return
        if isinstance(exception, DivergedError):
            self.run.failure = f"{exception}; {remaining_checkpoints(self.folder)}"
        if (
            trainer.state.fn != "fit"
            or not trainer.is_global_zero
            or not (self.folder / "config.yaml").exists()
        ):
            return
        path = self.folder / RECORD_NAME
        if self.start is None and (self.run.resumed or path.exists()):
            return
        status: Status = "diverged" if isinstance(exception, DivergedError) else "failed"
        stopped = isinstance(exception, KeyboardInterrupt | SystemExit)
        if stopped or (status == "failed" and self.run.signals.stopped_by is not None):
            status = "interrupted"
        record = self._record(trainer, pl_module, status)
        if self.run.resumed and path.exists():
            with contextlib.suppress(UserError):  # a corrupt record is replaced
                record = _merged_with_earlier(Record.read(path), record, str(pl_module.monitor))
        record.write(path)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the cost; add it and the scores to the record."""
        if trainer.is_global_zero:
            self._merge(trainer, pl_module, "test", _cost(trainer, pl_module))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Add the scores of `segdet validate` to the record."""
        if stage == "validate" and trainer.is_global_zero and trainer.state.status.value != "interrupted":
            self._merge(trainer, pl_module, "val", None)

    def _merge(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, split: str, cost: Cost | None
    ) -> None:
        path = self.folder / RECORD_NAME
        scores = _scores(trainer, f"{split}/")
        record = Record.read(path) if path.exists() else self._record(trainer, pl_module, "finished")
        record = record.merge(scores, cost)
        if split == "test":  # the evidence of an earlier test does not belong to these scores
            record = replace(record, per_image=_written_evidence(trainer))
        record.write(path)
        name = f"{split}/" + str(pl_module.monitor).split("/", 1)[-1]
        score = f"{name} {scores[name]:.4f}; " if name in scores else ""
        sys.stderr.write(f"segdet: {score}see {path}\n")

    def _record(self, trainer: pl.Trainer, pl_module: pl.LightningModule, status: Status) -> Record:
        trained = self.run.command == "fit"
        complete = trained and status == "finished"
        memory = peak_memory_mb(pl_module.device) if self.peak_memory is None else self.peak_memory
        model, data = (self.sections.get(section) or {} for section in ("model", "data"))
        backbone = (model.get("init_args") or {}).get("backbone")
        return Record(
            name=self.folder.name,
            task=str(getattr(pl_module, "task", "")),
            model=_class_name(model) or type(pl_module).__name__,
            data=_class_name(data),
            seed=self.seed,
            status=status,
            metrics={**self.best, **(read_losses(pl_module) or self.losses)},
            cost=Cost(
                parameters=sum(parameter.numel() for parameter in pl_module.parameters()),
                train_seconds=round(self._seconds(), 2) if trained else None,
                peak_memory_mb=memory,
                disk_mb=_disk_mb(self.folder, getattr(trainer, "datamodule", None)) if complete else None,
            ),
            epochs=trainer.current_epoch if trained else 0,
            steps=trainer.global_step if trained else 0,
            hardware=self.provenance.get("hardware", {})
            | {"processes": trainer.world_size, "precision": str(trainer.precision)},
            fingerprint=self.provenance.get("fingerprint", ""),
            command=" && ".join(recorded_commands(self.folder)) or self.provenance.get("command", ""),
            started=self.started,
            finished=now(),
            backbone=backbone if isinstance(backbone, str) else None,
            launcher=_launcher(),
            description=first_sentence(type(pl_module).__doc__),
        )

    def _seconds(self) -> float:
        return self.earlier_seconds + (0.0 if self.start is None else time.monotonic() - self.start)


def _is_complete(folder: Path, trainer: pl.Trainer) -> bool:
    """Return whether the run in ``folder`` has reached the end that its own configuration sets.

    A run that is resumed with an end before its current step has nothing left to train, but it is not complete.
    """
    try:
        own = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["trainer"]
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return False
    ends = (
        (own.get("max_epochs"), trainer.fit_loop.epoch_progress.current.processed),  # type: ignore[attr-defined]
        (own.get("max_steps"), trainer.global_step),
    )
    return any(end not in (None, -1) and reached >= end for end, reached in ends)


def _disk_mb(folder: Path, data: Any) -> float:
    """Return the megabytes of the run's files (without Weights & Biases) and of the cache files of its data."""
    files = {
        file for name in CONTENTS if name != "wandb" for file in (folder / name, *(folder / name).rglob("*"))
    }
    if isinstance(data, DataModule):
        files |= data.cached_files()
    return round(total_size(files) / 1e6, 2)


def _merged_with_earlier(earlier: Record, record: Record, monitor: str) -> Record:
    """Return the record of a resumed run, with the earlier measurements that are still valid."""
    if earlier.metrics.get(monitor) != record.metrics.get(monitor):  # a new best checkpoint is not tested yet
        kept = {name: value for name, value in earlier.metrics.items() if not name.startswith("test/")}
        earlier = replace(earlier, metrics=kept, per_image=None)
    return replace(
        earlier.merge(record.metrics, record.cost),
        status=record.status,
        epochs=max(earlier.epochs, record.epochs),
        steps=max(earlier.steps, record.steps),
        finished=record.finished,
        command=record.command,
    )


def _class_name(section: dict[str, Any]) -> str:
    return str(section.get("class_path", "")).rsplit(".", 1)[-1]


def _scores(trainer: pl.Trainer, prefix: str) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(prefix)}


def _written_evidence(trainer: pl.Trainer) -> str | None:
    writers = (each for each in trainer.callbacks if isinstance(each, EvidenceWriter))  # type: ignore[attr-defined]
    return next((each.written for each in writers), None)


def _launcher() -> str | None:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "torchrun"
    return "slurm" if "SLURM_JOB_ID" in os.environ and "SLURM_PROCID" in os.environ else None


def _cost(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Cost | None:
    """Return the cost of one image of the test set; None, with a message, if it cannot be measured."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    try:
        # The FLOP counter intercepts single operations, which inference mode hides.
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
