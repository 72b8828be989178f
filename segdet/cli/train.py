"""``segdet fit|validate|test|predict``."""

import contextlib
import logging
import shlex
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from segdet.cli.error_messages import find_user_error, memory_advice, restore_advice, write_line
from segdet.cli.train_options import Options, parse_command
from segdet.nn.weights import restoring
from segdet.runs.assembly import Assembly, build_trainer, check_precision
from segdet.runs.classes import check_classes, written_classes
from segdet.runs.folder_choice import Placement, RunRequest, place_run, separate_scores
from segdet.runs.folder_layout import shown_path
from segdet.runs.record_callback import RunSettings
from segdet.util.distributed import rank
from segdet.util.errors import UserError

INTERRUPTED = 130
"""The exit status after an interrupt from the keyboard, by the convention of shells."""

TERMINATED = 143
"""The exit status after SIGTERM, by the convention of shells."""


def main(argv: Sequence[str]) -> int:
    """Run ``segdet fit|validate|test|predict ...``.

    Args:
        argv: The subcommand and its arguments.

    Returns:
        The exit status: 0, or 130 when interrupted from the keyboard.
    """
    with _without_irrelevant_messages(), _finished_wandb_record():
        run = prepare(parse_command(argv))
        try:
            run.start()
        except SystemExit as leaving:
            # Lightning exits with 1 after Ctrl-C, and with an exception of its own after SIGTERM, when its callbacks
            # have saved the run.
            stopped_by = run.assembly.recorder.stopped_by
            if stopped_by is None:
                raise
            _report_interruption(run)
            if stopped_by == KeyboardInterrupt.__name__:
                return INTERRUPTED
            raise SystemExit(TERMINATED) from leaving
        except Exception as error:
            _end_children(run.assembly.trainer)
            advice = None
            if find_user_error(error) is None:
                advice = memory_advice(error, run.data) or _restore_advice(error, run)
            if advice is None:
                raise
            raise UserError(advice) from error
    return 0


@dataclass
class Run:
    """A run that is ready to start."""

    options: Options
    placement: Placement
    data: Any
    assembly: Assembly
    arguments: dict[str, Any]

    def start(self) -> None:
        """Fit, validate, test or predict."""
        if rank() == 0:
            sys.stderr.write(f"segdet: {self.options.command} in {shown_path(self.placement.folder)}\n")
        getattr(self.assembly.trainer, self.options.command)(**self.arguments)


def prepare(options: Options) -> Run:
    """Choose the run's folder and build its data, model and trainer.

    Raises:
        UserError: If an option is not valid, or the folder holds another run.
    """
    config, command = options.config, options.command
    if config.seed_everything is not False:
        seed = None if config.seed_everything is True else config.seed_everything
        config.seed_everything = pl.seed_everything(seed, workers=True)
    check_precision(config.trainer.precision)
    request = RunRequest(
        command,
        options.command_line,
        options.class_of("model").__name__,
        options.class_of("data").__name__,
        run_dir=Path(config.run_dir) if config.run_dir else None,
        overwrite=config.overwrite,
    )
    placement = place_run(request, options.checkpoint)
    checkpoint = placement.checkpoint
    # The checkpoint contains all weights, so pretrained ones are neither downloaded nor read.
    with contextlib.nullcontext() if checkpoint is None else restoring(checkpoint.weights):
        instances = options.instantiate()
    data, model = instances.data, instances.model
    check_classes(data, command, checkpoint)
    text = options.yaml()
    separate_scores(placement, request, data, yaml.safe_load(text), options.given)
    settings = RunSettings(
        folder=placement.folder,
        config=text,
        resumed=placement.resumed,
        command=command,
        command_line=options.command_line,
        seed=int(config.seed_everything),
        fingerprint=placement.fingerprint,
        checkpoint="" if checkpoint is None else str(checkpoint),
    )
    classes = written_classes(data, command, checkpoint) if command == "predict" else None
    assembly = build_trainer(
        instances.trainer.as_dict(), settings, model, options.run_parts(instances), classes
    )
    arguments = options.method_arguments() | {"model": model, "datamodule": data}
    if checkpoint is not None:
        arguments["ckpt_path"] = str(checkpoint.path)
    return Run(options, placement, data, assembly, arguments)


def _restore_advice(error: BaseException, run: Run) -> str | None:
    checkpoint = run.placement.checkpoint
    path = None if checkpoint is None else checkpoint.path
    return restore_advice(error, path, run.assembly.restoration.complete, run.options.command)


def _report_interruption(run: Run) -> None:
    if run.options.command != "fit":  # the folder's checkpoint is that of a training, which may be finished
        write_line("segdet: interrupted")
        return
    last = run.placement.folder / "checkpoints" / "last.ckpt"
    if last.exists():
        path = shlex.quote(str(shown_path(last)))
        write_line(f"segdet: interrupted; resume with: segdet fit --ckpt_path {path}")
    else:
        write_line("segdet: interrupted before the first checkpoint")


def _end_children(trainer: pl.Trainer) -> None:
    """Kill the processes that this one started, which would wait in a collective operation for ever."""
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher):
        launcher.kill(signal.SIGKILL)


@contextlib.contextmanager
def _finished_wandb_record() -> Iterator[None]:
    """End the Weights & Biases record together with the command; otherwise it ends with the process."""
    status = 1
    try:
        yield
        status = 0
    finally:
        wandb = sys.modules.get("wandb")
        if wandb is not None and wandb.run is not None:
            wandb.finish(exit_code=status)


IRRELEVANT_WARNINGS = (
    # A resumed run's checkpoints are meant to be there.
    r".*Checkpoint directory .* exists and is not empty",
    # A test needs no callback that saves checkpoints.
    r".*callbacks used to create the checkpoint need to be provided",
    # Lightning 2.6 causes it with torch from 2.13 on.
    r".*isinstance\(treespec, LeafSpec\)",
    # config.yaml contains tuples as lists; the parser converts them by the arguments' types.
    r"(?s).*Dump of a value that does not round-trip",
    # The data modules choose the number of workers by the number of cores.
    r".*does not have many workers",
    # The data modules restore their position within an epoch.
    r".*resuming from a checkpoint that ended before the epoch ended",
    # Small datasets have fewer batches than log_every_n_steps.
    r".*The number of training batches .* is smaller than the logging",
)
"""Warnings of libraries that do not apply to segdet."""


@contextlib.contextmanager
def _without_irrelevant_messages() -> Iterator[None]:
    """Suppress Lightning's general messages and `IRRELEVANT_WARNINGS`."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for pattern in IRRELEVANT_WARNINGS:
            warnings.filterwarnings("ignore", pattern)
        # Lightning uses names of jsonargparse that are deprecated.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(lightning|jsonargparse)\b")
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
