"""``segdet fit|validate|test|predict``."""

import contextlib
import gc
import logging
import shlex
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from segdet.cli.error_messages import (
    find_user_error,
    is_lost_peer,
    is_lost_worker,
    memory_advice,
    restore_advice,
    trainer_advice,
    write_line,
)
from segdet.cli.train_options import Options, options_of_test, parse_command
from segdet.runs.assembly import build_trainer
from segdet.runs.classes import check_classes, written_classes
from segdet.runs.defaults import choose_defaults, choose_network, describe
from segdet.runs.folder_choice import Ownership, Run, UnusedFolders, finished_run, place_run, separate_scores
from segdet.runs.interruption import StopSignals, wait_for_children
from segdet.runs.resumed_options import found_values, resumed_changes
from segdet.util.distributed import rank
from segdet.util.errors import INTERRUPTED, UserError, check_range


def main(argv: Sequence[str]) -> int:
    """Run ``segdet fit|validate|test|predict ...``; return 0, or exit with 130 after SIGINT and 143 after SIGTERM."""
    with StopSignals() as signals, without_irrelevant_messages():
        return _execute(parse_command(argv), signals)


def _execute(options: Options, signals: StopSignals) -> int:
    config = options.config
    with contextlib.ExitStack() as at_end:
        finished = (
            finished_run(Path(config.run_dir), config.test) if config.resume and config.run_dir else None
        )
        if finished is not None:
            at_end.callback(finished.release)
            if rank() == 0:
                write_line(
                    f"segdet: {finished.shown_folder}: the training is finished{_not_applied(options)}"
                )
            return 0 if finished.done else _test(options, finished, at_end, signals)
        status, run, launcher = _train(options, at_end, signals)
        if status or signals.stopped_by is not None or not config.test:
            return status
        gc.collect()  # the model and the optimizer of the training
        try:
            return _test(options, run, at_end, signals)
        except BaseException:
            _end_children(launcher)
            raise


def _not_applied(options: Options) -> str:
    """Describe the given options that differ from those of a finished training; empty if there are none."""
    sections = yaml.safe_load(options.yaml())
    try:
        changes = resumed_changes("fit", options.checkpoint, sections, options.given.values)
    except UserError as error:
        return f"; {error}"
    if not changes:
        return ""
    return f", and {', '.join(map(str, changes))} is not applied; to train it longer, resume it with --ckpt_path last"


def _train(options: Options, at_end: contextlib.ExitStack, signals: StopSignals) -> tuple[int, Run, Any]:
    """Run the command. Return its exit status, its run, and the launcher of its processes."""
    with _finished_wandb_record():
        run, trainer, arguments = prepare(options, at_end, signals)
        return _run(run, trainer, arguments), run, trainer.strategy.launcher


def _test(options: Options, trained: Run, at_end: contextlib.ExitStack, signals: StopSignals) -> int:
    """Test the best checkpoint of a training in the folder that the training used."""
    with _finished_wandb_record():
        test = options_of_test(options, trained.folder)
        run, trainer, arguments = prepare(test, at_end, signals, trained.ownership)
        return _run(run, trainer, arguments)


def _run(run: Run, trainer: pl.Trainer, arguments: dict[str, Any]) -> int:
    if rank() == 0:
        sys.stderr.write(f"segdet: {run.command} in {run.shown_folder}\n")
    try:
        getattr(trainer, run.command)(**arguments)
        run.signals.end_deferral()
    except SystemExit as leaving:
        # The callbacks have saved the run.
        if run.signals.stopped_by is None:
            # No handler is installed outside of the main thread. Lightning exits with status 1.
            if isinstance(leaving.__context__, KeyboardInterrupt):
                raise SystemExit(INTERRUPTED) from leaving
            raise
        if run.chosen_by_rank_0:
            return 0  # otherwise Lightning's launcher would kill rank 0, possibly while rank 0 saves the run
        wait_for_children(trainer)
        if rank() == 0:
            _report_interruption(run)
        raise SystemExit(run.signals.status) from leaving
    except Exception as error:
        _end_children(trainer.strategy.launcher)
        if run.signals.stopped_by is not None and (is_lost_peer(error) or is_lost_worker(error)):
            # The signal also ended another process at once, such as a worker that was starting.
            if rank() == 0:
                _report_interruption(run)
            raise SystemExit(run.signals.status) from error
        if run.failure is not None:
            raise UserError(run.failure) from error
        if find_user_error(error) is not None:
            raise
        checkpoint = None if run.checkpoint is None else run.checkpoint.path
        advice = (
            memory_advice(error, arguments["datamodule"])
            or restore_advice(error, checkpoint, run.restored, run.command, run.changes)
            or trainer_advice(error, trainer)
        )
        if advice is None:
            raise
        raise UserError(advice) from error
    return 0


def prepare(
    options: Options,
    at_end: contextlib.ExitStack,
    signals: StopSignals,
    ownership: Ownership | None = None,
) -> tuple[Run, pl.Trainer, dict[str, Any]]:
    """Return the run in its folder, its trainer, and the arguments of the trainer's method.

    Args:
        options: The parsed command.
        at_end: The exit stack of the command, which releases the run's folder and removes it if it is new and empty.
        signals: The signals that stop the run.
        ownership: The ownership of the run's folder, if this process has claimed it already.

    Raises:
        UserError: If an option is not valid, or the folder holds another run.
    """
    config, command = options.config, options.command
    if config.seed_everything is not False:
        seed = None if config.seed_everything is True else config.seed_everything
        if seed is not None:
            check_range("--seed_everything", seed, least=0, most=2**32 - 1)
        config.seed_everything = pl.seed_everything(seed, workers=True)
    # An option that cannot change is refused here already, because place_run may remove the run in the folder.
    resumed_changes(command, options.checkpoint, yaml.safe_load(options.yaml()), options.given.values)
    model_name, data_name = (options.class_of(section).__name__.lower() for section in ("model", "data"))
    run = place_run(
        command,
        options.command_line,
        options.checkpoint,
        name=f"{model_name}-{data_name.removesuffix('datamodule')}",
        run_dir=config.run_dir,
        overwrite=config.overwrite,
        resume=config.resume is not None,
        unused=at_end.enter_context(UnusedFolders()),
    )
    run.ownership = run.ownership or ownership
    at_end.callback(run.release)
    run.signals, signals.started_by_rank_0 = signals, run.chosen_by_rank_0
    checkpoint = run.checkpoint
    if config.resume and checkpoint is not None and rank() == 0:
        write_line(f"segdet: resuming from {checkpoint}")
    if checkpoint is not None and checkpoint is not options.checkpoint:  # SLURM has restarted the run
        options.set(found_values(yaml.safe_load(options.yaml()), checkpoint.config))
    new = command == "fit" and checkpoint is None
    network = choose_network(options.class_of("model"), options.given.values) if new else {}
    options.set(network)
    instances = options.instantiate(checkpoint, run.folder)
    data, model = instances.data, instances.model
    check_classes(data, command, checkpoint)
    # The configuration records the normalization, because a test needs it even if the pretrained weights are deleted.
    saved = {name: model.hparams[name] for name in ("mean", "std") if name in model.hparams}
    options.set({f"model.init_args.{name}": list(values) for name, values in saved.items()})
    chosen = choose_defaults(config, model, data) if command == "fit" else {}
    options.set(chosen)
    instances.trainer.max_epochs = config.trainer.max_epochs
    text = options.yaml()
    sections = yaml.safe_load(text)
    run.changes = resumed_changes(command, checkpoint, sections, options.given.values)
    separate_scores(run, data, sections, options.given)
    trainer = build_trainer(
        run,
        text,
        model,
        instances.trainer.as_dict(),
        panels=instances.panels,
        error_analysis=instances.error_analysis,
        checkpoint_every_n_steps=config.checkpoint_every_n_steps,
        ema=config.ema,
        wandb_project=config.wandb_project if config.wandb else None,
        classes=written_classes(data, command, checkpoint) if command == "predict" else None,
        labels=options.rung.labels,
    )
    if rank() == 0 and (line := describe(network | chosen)):
        write_line(f"segdet: {line}")
    arguments = {name: config[name] for name in options.parser.method_arguments}
    arguments |= {"model": model, "datamodule": data}
    if checkpoint is not None:
        arguments["ckpt_path"] = str(checkpoint.path)
    return run, trainer, arguments


def _report_interruption(run: Run) -> None:
    if run.command != "fit":  # the checkpoint is from a training run, which may be finished
        write_line("segdet: interrupted")
        return
    last = run.folder / "checkpoints" / "last.ckpt"
    if last.exists():
        path = shlex.quote(str(run.shown_folder / "checkpoints" / "last.ckpt"))
        write_line(f"segdet: interrupted; resume with: segdet fit --ckpt_path {path}")
    else:
        write_line("segdet: interrupted before the first checkpoint")


def _end_children(launcher: Any) -> None:
    """Kill the child processes, which would wait in a collective operation forever."""
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
            try:
                wandb.finish(exit_code=status)
            except ConnectionError:  # a signal to all processes of a job has ended the process of W&B
                with contextlib.suppress(ConnectionError):
                    wandb.teardown()  # otherwise it is attempted at exit


IRRELEVANT_WARNINGS = (
    # A resumed run keeps its checkpoints in this folder.
    r".*Checkpoint directory .* exists and is not empty",
    # A test needs no callback that saves checkpoints.
    r".*callbacks used to create the checkpoint need to be provided",
    # Lightning 2.6 causes this warning with torch 2.13 and later.
    r".*isinstance\(treespec, LeafSpec\)",
    # config.yaml contains tuples as lists; the parser converts lists to the arguments' types.
    r"(?s).*Dump of a value that does not round-trip",
    # The data modules choose the number of workers based on the number of cores.
    r".*does not have many workers",
    # The data modules restore their position within an epoch.
    r".*resuming from a checkpoint that ended before the epoch ended",
    # BackboneFinetuning trains the batch normalization of the backbone from the start.
    r"The provided params to be frozen already exist within another group",
    # A cluster's login node has srun, and a run there need not be a job.
    r"The `srun` command is available on your system but is not used",
    # This is the purpose of overfit_batches.
    r"You requested to overfit but enabled .* shuffling",
    # Small datasets have fewer batches than log_every_n_steps.
    r".*The number of training batches .* is smaller than the logging",
)
"""Warnings of libraries that do not apply to segdet."""


@contextlib.contextmanager
def without_irrelevant_messages() -> Iterator[None]:
    """Suppress Lightning's general messages and `IRRELEVANT_WARNINGS`."""
    shown = {
        "lightning.pytorch": logging.WARNING,
        "lightning.fabric": logging.WARNING,
        "asyncio": logging.ERROR,  # each write to a process of W&B that has ended
        "lightning.pytorch.callbacks": logging.INFO,  # messages that the user requests, such as a model summary
    }
    levels = {name: logging.getLogger(name).level for name in shown}
    with warnings.catch_warnings():
        for pattern in IRRELEVANT_WARNINGS:
            warnings.filterwarnings("ignore", pattern)
        # Lightning uses names of jsonargparse that are deprecated.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(lightning|jsonargparse)\b")
        for name, level in shown.items():
            logging.getLogger(name).setLevel(level)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
