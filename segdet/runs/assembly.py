"""Assemble a run's trainer with the callbacks and loggers of segdet and of the configuration."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from segdet.data.base import Classes
from segdet.runs.checkpoint_callbacks import BestCheckpoint, LastCheckpoint, LastValidation, Restoration
from segdet.runs.checkpoint_io import write_checkpoints_atomically
from segdet.runs.error_analysis import ErrorAnalysis
from segdet.runs.evidence_writer import EvidenceWriter
from segdet.runs.folder_choice import Run
from segdet.runs.interruption import AgreedStop, leave_signals_to_segdet
from segdet.runs.launched_processes import launched_devices, set_tasks_per_node, starts_own_processes
from segdet.runs.left_out import LeftOut
from segdet.runs.lightning_callbacks import FoundValues, StopReport, adapted_callbacks
from segdet.runs.loggers import MetricsFile, choose_mode, wandb_logger
from segdet.runs.loop_position import LoopPosition
from segdet.runs.ownership_check import OwnershipCheck
from segdet.runs.panels import ImagePanels
from segdet.runs.predictions import PredictionWriter
from segdet.runs.record_callback import RunRecorder
from segdet.runs.rendezvous import choose_rendezvous
from segdet.runs.trainer_options import choose_precision, placed_profiler, runs_on_cpu, trainer_fault
from segdet.task import Task
from segdet.training.ema import EMA
from segdet.training.progress import Progress, StepLogger
from segdet.util.errors import UserError


def build_trainer(
    run: Run,
    config: str,
    model: Task,
    options: dict[str, Any],
    *,
    panels: ImagePanels,
    error_analysis: ErrorAnalysis,
    checkpoint_every_n_steps: int | None,
    ema: float | None,
    wandb_project: str | None,
    classes: Classes | None,
    labels: Mapping[str, Any],
) -> pl.Trainer:
    """Return the trainer of a run with its callbacks and loggers.

    Args:
        run: The run.
        config: The run's complete configuration, as YAML.
        model: The model.
        options: The trainer's arguments, with callbacks and loggers as objects.
        panels: The callback that draws validation images.
        error_analysis: The callback that analyses the errors of a test.
        checkpoint_every_n_steps: Steps between additional saves of ``last.ckpt``; None to save after every epoch only.
        ema: The decay of a moving average of the weights; None for none.
        wandb_project: The project on Weights & Biases; None to record nothing there.
        classes: The classes that define the class numbers in prediction files; for predict only.
        labels: Values by which runs are grouped on Weights & Biases, such as the task and the rung of the model.

    Raises:
        UserError: If the trainer does not accept its arguments, or they do not fit the processes of the launcher.
    """
    fit = run.command == "fit"
    # Lightning calls callbacks in this order, but callbacks that save checkpoints come last.
    saves = fit and options.get("enable_checkpointing") is not False and not options.get("fast_dev_run")
    recorder = RunRecorder(run, config, labels)
    callbacks: list[Any] = [OwnershipCheck(run)]
    callbacks += adapted_callbacks(_as_list(options.get("callbacks")), run, saves)
    if fit:
        callbacks += [FoundValues(recorder), StopReport()]
    own_bar = not any(isinstance(callback, ProgressBar) for callback in callbacks)
    if own_bar and options.get("enable_progress_bar") is not False:
        callbacks.append(Progress())  # ends its line before another callback prints one
    if run.command == "test":
        callbacks += [
            error_analysis,
            EvidenceWriter(),
        ]  # before the recorder, which reports and names their files
    # Restoration comes before the recorder, so that a failed restoration does not count as a started training.
    predictions = run.folder / "predictions"
    left_out = LeftOut(predictions if run.command == "predict" else run.folder)
    callbacks += [Restoration(run), recorder, left_out]
    if fit:
        callbacks += [StepLogger(), LastValidation()]
        if saves:
            folder = run.folder / "checkpoints"
            callbacks.append(LoopPosition(run.resumed))
            callbacks.append(BestCheckpoint(folder, model.monitor, model.monitor_mode))
            callbacks.append(LastCheckpoint(folder, checkpoint_every_n_steps))
    if run.command == "predict":
        callbacks.append(PredictionWriter(predictions, classes))
    callbacks.append(panels)
    if fit and ema is not None:
        callbacks.append(EMA(ema))  # restores the trained weights after the panels are drawn
    callbacks.append(AgreedStop(run.signals))
    options = options | {
        "callbacks": callbacks,
        "logger": _loggers(options, run, wandb_project),
        "default_root_dir": str(run.folder),
        "profiler": placed_profiler(options.get("profiler"), run.folder / "profile"),
        "precision": choose_precision(options.get("precision"), options.get("accelerator")),
    }
    options |= launched_devices(options)
    if starts_own_processes(options["devices"]):
        options["plugins"] = [*_as_list(options.get("plugins")), LightningEnvironment()]
    if not fit:
        options["enable_checkpointing"] = False
    set_tasks_per_node()
    choose_rendezvous()
    try:
        trainer = pl.Trainer(**options)
    except (MisconfigurationException, ImportError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(trainer_fault(error)) from error
    write_checkpoints_atomically(trainer)
    leave_signals_to_segdet(trainer)
    several_devices = trainer.num_devices * trainer.num_nodes > 1
    if several_devices and options.get("sync_batchnorm") and runs_on_cpu(options.get("accelerator")):
        raise UserError(
            "--trainer.sync_batchnorm true: torch supports it on GPUs only; leave it out on the CPU"
        )
    return trainer


def _loggers(options: dict[str, Any], run: Run, wandb_project: str | None) -> list[Logger] | bool:
    given = options.get("logger")
    if given is False:
        return False
    loggers: list[Logger] = [] if given is True else _as_list(given)
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            choose_mode(logger)
    if run.command == "predict":
        return loggers or False
    own: list[Logger] = [MetricsFile(run.folder)]
    own_wandb = not any(isinstance(logger, WandbLogger) for logger in loggers)
    if own_wandb and wandb_project is not None and not options.get("fast_dev_run"):
        own += wandb_logger(run.folder, wandb_project, adds_to_run=run.command != "fit")
    return own + loggers


def _as_list(given: Any) -> list[Any]:
    if given is None:
        return []
    return list(given) if isinstance(given, Sequence) else [given]
