"""``segdet fit|validate|test|predict``: LightningCLI with a run folder, checkpoints that know their own
configuration, and mistakes told in one line."""

import contextlib
import hashlib
import importlib
import logging
import os
import pkgutil
import re
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import yaml
from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt
from lightning.pytorch.accelerators import (
    Accelerator,
    CPUAccelerator,
    CUDAAccelerator,
    MPSAccelerator,
    XLAAccelerator,
)
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from segdet import detection, localization, segmentation
from segdet.cli.main import INTERRUPTED, RUN_DIR_VARIABLE, causes, find_user_error
from segdet.cli.parse_errors import ParseFault, readable
from segdet.data.datamodule import Classes, DataModule, Subset
from segdet.data.datamodules import ImageFolder
from segdet.nn.weights import restoring
from segdet.runs.checkpoints import BestCheckpoint, LastCheckpoint, LastValidation
from segdet.runs.error_analysis import ErrorAnalysis
from segdet.runs.folder import (
    EMBEDDED,
    MetricsFile,
    RunFolder,
    RunSettings,
    clear_run,
    fingerprint_of,
    folder_of_checkpoint,
    holds_run,
    recorded_commands,
    recorded_fingerprint,
    recorded_status,
    requeued_checkpoints,
)
from segdet.runs.left_out import LeftOut
from segdet.runs.loggers import wandb_logger
from segdet.runs.panels import ImagePanels
from segdet.runs.predictions import PredictionWriter
from segdet.task import Task
from segdet.training.ema import EMA
from segdet.training.precision import REFUSED, affordable
from segdet.training.progress import Progress, StepLogger
from segdet.training.trainer_defaults import TRAINER_DEFAULTS
from segdet.util.distributed import rank, under_torchrun
from segdet.util.errors import UserError
from segdet.util.suggest import did_you_mean

DEFAULT_EPOCHS = 12

NO_SCORES = {
    "model": {"boundary_scores", "compile", "channels_last", "crop_batch"},
    "data": {"root", "batch_size", "eval_batch_size", "num_workers"},
}
"""Options that no score depends on, or that leave some out: how the model computes, where equal files lie."""

SUBSETS: dict[str, Subset] = {"fit": "train", "validate": "val", "test": "test", "predict": "test"}
"""What each subcommand reads first, and whose classes are to be the checkpoint's."""

TERMINATED = 143
"""The exit status after SIGTERM, as shells have it."""

# Lightning says `Optional[Union[int, float]]`, but of equal unions typing gives the first that anybody made, which is
# `Union[float, int, None]`: by it 1, which is one batch, would be read as 1.0, which is all of them. A union that
# equals no other keeps its order.
for _name in ("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches"):
    pl.Trainer.__init__.__annotations__[_name] = Literal[1] | int | float | None


def main(argv: Sequence[str]) -> int:
    """``segdet fit|validate|test|predict ...``.

    Args:
        argv: The subcommand and what follows it.

    Returns:
        The exit status: 0, or 130 when interrupted from the keyboard.
    """
    with _quiet(), _finished_record():
        _import_classes()
        arguments, checkpoint = with_embedded_config(list(argv))
        if argv[0] != "fit" and checkpoint is None and not _asks_for_help(argv):
            raise UserError(
                f"segdet {argv[0]}: of which run? give --ckpt_path with the run's folder or a checkpoint in it"
            )
        cli = SegdetCLI(arguments, checkpoint, shlex.join(["segdet", *argv]))
        try:
            cli.run()
        except SystemExit as leaving:
            # Lightning leaves with 1 after Ctrl-C and by an exception of its own after SIGTERM; its
            # callbacks have saved by then.
            stopped = cli.run_folder is not None and cli.run_folder.stopped_by
            if not stopped:
                raise
            _tell_how_to_resume(cli)
            if stopped == "KeyboardInterrupt":
                return INTERRUPTED
            raise SystemExit(TERMINATED) from leaving
        except Exception as error:
            _end_children(cli.trainer)
            fault = None
            if not find_user_error(error):
                fault = too_little_memory(error, cli.datamodule) or _does_not_go_on(error, cli)
            if fault is None:
                raise
            raise UserError(fault) from error
    return 0


def _asks_for_help(argv: Sequence[str]) -> bool:
    """Whether the command is to explain itself and not to run."""
    return any(re.match(r"-h$|--([\w.]+\.)?help(=|$)|--print_config(=|$)", argument) for argument in argv)


def too_little_memory(error: BaseException, data: Any) -> str | None:
    """What to do about ``error`` in one line, where it says that a run has not the memory it needs; else None.

    Args:
        error: What ended the run.
        data: The data module, which has the sizes of the batches.
    """
    sizes = f"--data.batch_size (now {data.batch_size}), --data.eval_batch_size (now {data.eval_batch_size})"
    for one in causes(error):
        said = _one_line(one)
        if isinstance(one, torch.OutOfMemoryError):
            return f"the device's memory is too small ({said}); give a smaller {sizes}, or smaller images"
        if isinstance(one, MemoryError) or "DefaultCPUAllocator" in said:
            return f"the machine's memory is too small ({said}); give a smaller {sizes}, or smaller images"
        if re.match(r"DataLoader worker .* is killed by signal: (Bus error|Killed)", said):
            return (
                f"--data.num_workers {data.num_workers}: a process that reads images was ended for want of memory, or "
                f"of shared memory in /dev/shm ({said}); give fewer, or 0, or more memory (docker run --shm-size 8g)"
            )
    return None


def _does_not_go_on(error: Exception, cli: "SegdetCLI") -> str | None:
    """That a checkpoint does not fit the settings, where ``error`` came of taking it up; else None.

    What an optimizer was given of another one it finds out in its first step.
    """
    callbacks = cli.trainer.callbacks  # type: ignore[attr-defined]
    last = next((one for one in callbacks if isinstance(one, LastCheckpoint)), None)
    restores = ValueError | KeyError | RuntimeError | MisconfigurationException
    if cli.checkpoint is None or last is None or not isinstance(error, restores):
        return None
    if last.begun or (last.restored and not _is_an_optimizers(error)):
        return None
    return (
        f"{cli.checkpoint.path}: the training cannot go on from it with these settings ({_one_line(error)}); give "
        "those that it was begun with, or begin a new run"
    )


def _is_an_optimizers(error: Exception) -> bool:
    """Whether an optimizer raised the error, and nothing that it called to compute gradients."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    module = str(frames[-1].f_globals.get("__name__")) if frames else ""
    return module.startswith(("torch.optim", "segdet.training.optim", "segdet.training.muon"))


def _end_children(trainer: pl.Trainer) -> None:
    """Ends the processes that this one started: without it they wait in a collective for ever."""
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher):
        launcher.kill(signal.SIGKILL)


@contextlib.contextmanager
def _finished_record() -> Iterator[None]:
    """Ends the Weights & Biases record with the command, not only with the process."""
    status = 1
    try:
        yield
        status = 0
    finally:
        wandb = sys.modules.get("wandb")
        if wandb is not None and wandb.run is not None:
            wandb.finish(exit_code=status)


def _import_classes() -> None:
    """Loads all models, data modules and proposers, whose short names the parser knows once they are loaded."""
    importlib.import_module("segdet.proposals")
    for package in (segmentation, localization, detection):
        for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            importlib.import_module(module.name)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leaves out what Lightning says to everybody and what does not apply here."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        # Our checkpoints folder and CSV file are meant to be there when a run is resumed.
        warnings.filterwarnings("ignore", r".*Checkpoint directory .* exists and is not empty")
        # A test needs no callback that saves checkpoints.
        warnings.filterwarnings("ignore", r".*callbacks used to create the checkpoint need to be provided")
        # Lightning 2.6 with torch from 2.13 on; nothing that we could do about it.
        warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)")
        # config.yaml has tuples as lists, which the parser makes tuples again by the arguments' types.
        warnings.filterwarnings("ignore", r"(?s).*Dump of a value that does not round-trip")
        # Lightning calls jsonargparse by names that it is about to change.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(lightning|jsonargparse)\b")
        # The data modules choose the number of workers by the cores.
        warnings.filterwarnings("ignore", r".*does not have many workers")
        # The data modules know where in its epoch a checkpoint was saved.
        warnings.filterwarnings("ignore", r".*resuming from a checkpoint that ended before the epoch ended")
        # Small datasets have fewer batches than log_every_n_steps.
        warnings.filterwarnings("ignore", r".*The number of training batches .* is smaller than the logging")
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _tell_how_to_resume(cli: "SegdetCLI") -> None:
    if cli.chosen != "fit":  # the checkpoint in its folder is that of a training which may well be over
        sys.stderr.write("segdet: interrupted\n")
        return
    last = cli.run_dir / "checkpoints" / "last.ckpt"
    if last.exists():
        sys.stderr.write(
            f"segdet: interrupted; go on with: segdet fit --ckpt_path {shlex.quote(str(_shown(last)))}\n"
        )
    else:
        sys.stderr.write("segdet: interrupted before there was anything to resume from\n")


# The checkpoint's own configuration.


class Checkpoint:
    """What a checkpoint file says of itself.

    Args:
        path: The file.

    Attributes:
        steps: After how many steps of training it was written.
        weights: The names of what it has weights of.
        config: The run's configuration, empty where it holds none.
        classes: What was trained on.

    Raises:
        UserError: If there is no such file or it is no checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except FileNotFoundError:
            raise UserError(f"{path}: no such checkpoint; see what the run's folder holds") from None
        except PermissionError:
            raise UserError(f"{path}: may not be read; mend its rights") from None
        except Exception as error:  # torch raises OSError, RuntimeError, UnpicklingError and others
            raise UserError(f"{path}: torn or no checkpoint; give another --ckpt_path") from error
        if not isinstance(content, dict) or "state_dict" not in content:
            raise UserError(f"{path}: no checkpoint of a training; give one that `segdet fit` wrote")
        about = content.get(EMBEDDED) or {}
        self.steps = int(content.get("global_step", 0))
        self.weights = frozenset(content["state_dict"])
        self.config: dict[str, Any] = yaml.safe_load(about.get("config", "")) or {}
        self.classes = Classes(
            about.get("class_names", []),
            about.get("category_ids", []),
            about.get("mask_values", []),
            about.get("palette_masks", True),
        )


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The whole checkpoint in ``folder`` that was written last, of a run that SLURM starts again.

    Every process of the run looks for itself, before they know of each other: of files of the same time all choose
    the one with the most steps, then by name. (`RunFolder` makes sure that they chose the same.)
    """
    present = []
    for file in (folder / "checkpoints" / "last.ckpt", *requeued_checkpoints(folder)):
        # What is opened is looked up on a network's file server, and not in what this machine remembers of it.
        with contextlib.suppress(OSError), file.open("rb") as stream:
            present.append((os.fstat(stream.fileno()).st_mtime_ns, file))
    whole: list[tuple[int, int, str, Checkpoint]] = []
    for time, file in sorted(present, reverse=True):
        if whole and time != whole[0][0]:
            break
        try:
            checkpoint = Checkpoint(file)
        except UserError as error:  # the machine went away while it was written
            if rank() == 0:
                sys.stderr.write(f"segdet: {error}\n")
            continue
        whole.append((time, checkpoint.steps, file.name, checkpoint))
    return max(whole, key=lambda one: one[:3])[3] if whole else None


def with_embedded_config(argv: list[str]) -> tuple[list[str], Checkpoint | None]:
    """Puts the configuration that ``--ckpt_path`` holds before everything else that is given.

    What stands later on the command line wins over what stands earlier, so a checkpoint alone is enough
    to test it, and yet nothing that is given is overruled by it. ``best`` and ``last`` and a run folder
    become the file that they mean.

    Args:
        argv: The subcommand and what follows it.

    Returns:
        The completed arguments and the checkpoint, if one is given.
    """
    position, given = _option(argv, "--ckpt_path")
    if position is None or given is None or given.lower() in ("null", "none"):
        return argv, None
    _, run_dir = _option(argv, "--run_dir")
    path = _checkpoint_path(given, run_dir, argv[0])
    checkpoint = Checkpoint(path)
    embedded = checkpoint.config
    if argv[0] != "fit":
        embedded = {name: embedded[name] for name in ("seed_everything", "model", "data") if name in embedded}
    before, now = embedded.get("data", {}), _data_class(argv)
    if now is not None and now != before.get("class_path", "").rsplit(".", 1)[-1]:
        # The parser would hand one class's choice of names, or its file of them, to the other.
        (before.get("init_args") or {}).pop("class_names", None)
    argv = list(argv)
    if argv[position].startswith("--ckpt_path="):
        argv[position] = f"--ckpt_path={path}"
    else:
        argv[position + 1] = str(path)
    if embedded:
        argv[1:1] = ["--config", yaml.safe_dump(embedded, sort_keys=False)]
    return argv, checkpoint


def _option(argv: Sequence[str], name: str) -> tuple[int | None, str | None]:
    """Where the last option ``name`` stands and its value."""
    for position in reversed(range(len(argv))):
        if argv[position].startswith(name + "="):
            return position, argv[position].split("=", 1)[1]
        if argv[position] == name and position + 1 < len(argv):
            return position, argv[position + 1]
    return None, None


def _checkpoint_path(given: str, run_dir: str | None, command: str) -> Path:
    if given in ("best", "last"):
        if run_dir is None:
            raise UserError(f"--ckpt_path {given}: of which run? give its folder as --run_dir too")
        path = Path(run_dir) / "checkpoints" / f"{given}.ckpt"
        if not path.is_file():
            raise UserError(f"{path}: no such checkpoint; the run in {run_dir} has not saved one")
        return path
    path = Path(given)
    if path.is_dir():
        path = path / "checkpoints" / ("last.ckpt" if command == "fit" else "best.ckpt")
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; give the file, or 'best' or 'last' with --run_dir")
    return path


# The command line.


class Parser(LightningArgumentParser):
    """Reports a fault as an exception, which the command then words in one line."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raises `ParseFault`."""
        if not self.exit_on_error:  # within a trial of one of several types
            super().error(message, ex)
        raise ParseFault(message) from ex


class SegdetCLI(LightningCLI):
    """The command line of one subcommand; `run` runs it.

    Args:
        argv: The subcommand and what follows it, completed by `with_embedded_config`.
        checkpoint: The checkpoint that ``--ckpt_path`` names.
        command_line: As it was given, for the records.

    Raises:
        UserError: If something given is wrong.
    """

    config: Any

    def __init__(self, argv: list[str], checkpoint: Checkpoint | None = None, command_line: str = "") -> None:
        self.argv = argv
        self.command_line = command_line
        self.checkpoint = checkpoint
        self.chosen = argv[0]
        self.run_folder: RunFolder | None = None
        self.run_dir = Path()
        self.resumed = False
        self.follows = False
        self.fingerprint: str | None = None
        super().__init__(
            Task,
            DataModule,
            save_config_callback=None,  # RunFolder writes it
            trainer_defaults=dict(TRAINER_DEFAULTS),
            seed_everything_default=0,
            parser_class=Parser,
            parser_kwargs={"prog": "segdet"},
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=argv,
            auto_configure_optimizers=False,  # Task configures them
            load_from_checkpoint_support=False,  # the checkpoint holds the whole configuration
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The one subcommand that is to run; building the parsers of the others would take time."""
        return {self.chosen: LightningCLI.subcommands()[self.chosen]}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser that takes no abbreviations: ``--trainer.max_epoch`` is a mistake."""
        return super().init_parser(allow_abbrev=False, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds what belongs to the run folder and the records."""
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="The run's folder. Default: runs/<model>-<data>-<time>, or that of --ckpt_path.",
        )
        parser.add_argument(
            "--overwrite",
            type=bool,
            default=False,
            help="Remove the run that --run_dir holds and start anew.",
        )
        parser.add_argument(
            "--wandb",
            type=bool,
            default=True,
            help="Record on Weights & Biases: online with an account, else offline; WANDB_MODE decides.",
        )
        parser.add_argument("--wandb_project", type=str, default="segdet", help="The project there.")
        parser.add_argument(
            "--checkpoint_every_n_steps",
            type=PositiveInt | None,
            default=None,
            help="Save last.ckpt after so many steps too, not only after every epoch.",
        )
        parser.add_argument(
            "--ema",
            type=float | None,
            default=None,
            help="Decay of a moving average of the weights, such as 0.999, which is validated, saved and tested.",
        )
        parser.add_lightning_class_args(ImagePanels, "panels")
        parser.add_class_arguments(ErrorAnalysis, "error_analysis")
        parser.link_arguments(
            "data", "model.init_args.class_names", lambda data: self._classes(data).names, "instantiate"
        )
        parser.link_arguments(
            "data",
            "model.init_args.category_ids",
            lambda data: self._classes(data).category_ids,
            "instantiate",
        )

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "predict":
            # The writer puts predictions on disk batch by batch; keeping them would fill the memory.
            parser.set_defaults({"return_predictions": False})
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses, words faults, and completes what follows from other things given."""
        try:
            self.config = parser.parse_args(args)
        except ParseFault as fault:
            raise UserError(
                readable(str(fault), self._subcommand_parsers[self.chosen], self.chosen)
            ) from None
        config = self.config[self.chosen]
        _refuse_abbreviations(self.argv, config)
        trainer = config.trainer
        if trainer.max_epochs is None and trainer.max_steps == -1 and trainer.max_time is None:
            trainer.max_epochs = DEFAULT_EPOCHS
        self._complete_data(config)

    def _parse_ckpt_path(self) -> None:
        """Does nothing: Lightning would let the checkpoint's arguments overrule those that are given."""

    def _complete_data(self, config: Namespace) -> None:
        """Lets the data's task follow the model, and a folder of images take the checkpoint's classes."""
        model_class, data_class = _class_of(config.model), _class_of(config.data)
        arguments = config.data.init_args
        task = getattr(model_class, "task", None)
        if task is not None and "task" in arguments and arguments.task != task:
            if _gives_task(self.argv):
                raise UserError(
                    f"--data.task {arguments.task}: {model_class.__name__} is a {task} model; "
                    f"give --data.task {task}, or none at all"
                )
            arguments.task = task
        if (
            self.checkpoint is not None
            and issubclass(data_class, ImageFolder)
            and self.checkpoint.classes.names
            and not any(re.match(r"--data\.(init_args\.)?class_names\+?(=|$)", a) for a in self.argv)
        ):
            arguments.class_names = list(self.checkpoint.classes.names)

    # What is built.

    def before_instantiate_classes(self) -> None:
        """Decides on the run's folder.

        Raises:
            UserError: If not even boxes and losses are to be computed in float32.
        """
        asked = self.config[self.chosen].trainer.precision
        if asked in REFUSED:
            raise UserError(
                f"--trainer.precision {asked}: boxes, losses and scores are computed in float32; give 32-true, or "
                "bf16-mixed or 16-mixed for what loses little by it"
            )
        self.run_dir, self.resumed = self._choose_folder()

    def instantiate_classes(self) -> None:
        """Builds data, model and trainer; an argument's mistake that shows only here is one line too.

        Where there is a checkpoint, the model's weights are all its own, and what they started from is not asked for.

        Raises:
            UserError: For whatever keeps them from being built.
        """
        begun = contextlib.nullcontext() if self.checkpoint is None else restoring(self.checkpoint.weights)
        try:
            with begun:
                super().instantiate_classes()
        except ParseFault as fault:
            raise UserError(
                readable(str(fault), self._subcommand_parsers[self.chosen], self.chosen)
            ) from None
        except (ValueError, RuntimeError) as error:
            mistake = find_user_error(error)  # the parser wraps what is raised while it asks for the classes
            if mistake is not None:
                raise UserError(mistake) from error
            key = "data" if _raised_in(error, "segdet.data") else "model"
            name = _class_of(self.config[self.chosen][key]).__name__
            raise UserError(
                f"--{key} {name}: cannot be built: {_one_line(error)}; mend its arguments"
            ) from error

    def _classes(self, data: DataModule) -> Classes:
        """The classes of the model: the checkpoint's where it is not trained any further."""
        if self.chosen != "fit" and self.checkpoint is not None and self.checkpoint.classes.names:
            data.known_classes = self.checkpoint.classes
        return data.classes

    def _compare_classes(self) -> None:
        """Refuses a checkpoint of other classes than those of the data that it is used on."""
        if self.checkpoint is None or not self.checkpoint.classes.names:
            return
        data, subset = self.datamodule, SUBSETS[self.chosen]
        found, known = Classes.of(data.reader(subset), data.task), self.checkpoint.classes
        trained, here = known.names, found.names
        if len(trained) != len(here) or (trained != here and set(trained) == set(here)):
            raise UserError(
                f"{self.checkpoint.path}: was trained on {len(trained)} classes ({_listed(trained)}), the "
                f"data has {len(here)} ({_listed(here)}); give data with the same classes in the same order"
            )
        if rank() > 0:
            return  # the first process says it for all
        if trained != here:
            sys.stderr.write(
                f"segdet: the checkpoint calls the classes {_listed(trained)}, the data {_listed(here)}\n"
            )
        elif (
            data.reader(subset).states_classes
            and data.task != "segmentation"
            and known.category_ids not in ([], found.category_ids)
        ):
            sys.stderr.write(
                "segdet: the data numbers the categories otherwise than those that the checkpoint was trained "
                "on; results are written with the data's ids\n"
            )

    def _written_classes(self) -> Classes:
        """How predictions are to number the classes: as the data at hand, or as those that were trained on."""
        data, subset = self.datamodule, SUBSETS[self.chosen]
        if self.checkpoint is None or data.reader(subset).states_classes:
            return Classes.of(data.reader(subset), data.task)
        return self.checkpoint.classes

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The trainer, with our loggers and callbacks beside those of the configuration."""
        self._compare_classes()
        self._keep_apart()
        config = self.config_init[self.chosen].trainer
        settings = RunSettings(
            folder=self.run_dir,
            config=self._config_text(),
            resumed=self.resumed,
            command=self.chosen,
            command_line=self.command_line,
            seed=int(self.config[self.chosen].seed_everything),
            fingerprint=self.fingerprint,
            begins_at=""
            if self.checkpoint is None
            else f"{self.checkpoint.path.name} of step {self.checkpoint.steps}",
        )
        self.run_folder = RunFolder(settings)
        callbacks: list[pl.Callback] = [self.run_folder, LeftOut(self.run_dir)]
        if self.chosen == "fit":
            callbacks += [StepLogger(), LastValidation()]
            if config.enable_checkpointing is not False and not config.fast_dev_run:
                callbacks += self._checkpoint_callbacks()
            if self.config[self.chosen].ema is not None:
                # Last of all but checkpoint callbacks, so that pictures after a validation show the average.
                callbacks.append(EMA(self.config[self.chosen].ema))
        if self.chosen == "test":
            # What the record says stands last.
            callbacks.insert(0, self.config_init[self.chosen].error_analysis)
        if config.enable_progress_bar is not False:
            callbacks.insert(0, Progress())  # its line is to end before another callback says something
        if self.chosen == "predict":
            callbacks.append(PredictionWriter(self.run_dir / "predictions", self._written_classes()))
        given = config.callbacks or []
        given = list(given) if isinstance(given, list | tuple) else [given]
        if self.chosen != "fit":
            kwargs["enable_checkpointing"] = False
        kwargs["precision"] = chosen_precision(config)
        loggers = self._loggers(config.logger)
        try:
            trainer = super().instantiate_trainer(
                callbacks=[*given, *callbacks],
                logger=loggers,
                default_root_dir=str(self.run_dir),
                **kwargs,
            )
        except (MisconfigurationException, ImportError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"--trainer: {_one_line(error)}") from error
        if (
            config.sync_batchnorm
            and trainer.num_devices * trainer.num_nodes > 1
            and _runs_on_cpu(config.accelerator)
        ):
            raise UserError(
                "--trainer.sync_batchnorm true: torch has it on GPUs alone; leave it out on the CPU"
            )
        return trainer

    def _checkpoint_callbacks(self) -> list[pl.Callback]:
        folder = self.run_dir / "checkpoints"
        best = BestCheckpoint(folder, self.model.monitor, self.model.monitor_mode)
        every = self.config[self.chosen].checkpoint_every_n_steps
        within = [] if every is None else [LastCheckpoint(folder, every)]
        return [best, *within, LastCheckpoint(folder)]

    def _loggers(self, given: Any) -> list[Logger] | bool:
        if given is False:
            return False
        loggers: list[Logger] = []
        if isinstance(given, Logger):
            loggers = [given]
        elif isinstance(given, list | tuple):
            loggers = list(given)
        if self.chosen == "predict":
            return loggers or False
        config = self.config[self.chosen]
        ours: list[Logger] = [MetricsFile(self.run_dir)]
        if config.wandb and not config.trainer.fast_dev_run:
            ours += wandb_logger(self.run_dir, config.wandb_project, continues=self.chosen != "fit")
        return ours + loggers

    def _config_text(self) -> str:
        """The configuration that starts the same run anew, without what belongs to this one alone."""
        config = self.config[self.chosen].clone()
        for name in ("config", "ckpt_path"):
            config.pop(name, None)
        config.run_dir, config.overwrite = None, False
        text = self._subcommand_parsers[self.chosen].dump(config, skip_unset=False)
        return text if text.endswith("\n") else text + "\n"

    def _choose_folder(self) -> tuple[Path, bool]:
        """The run's folder and whether it goes on with the run that the folder holds."""
        config = self.config[self.chosen]
        given = Path(config.run_dir) if config.run_dir else None
        of_checkpoint = folder_of_checkpoint(self.checkpoint.path) if self.checkpoint else None
        folder = given or of_checkpoint
        resumed = self.chosen == "fit" and folder is not None and folder_equal(folder, of_checkpoint)
        self.follows = rank() > 0 and RUN_DIR_VARIABLE in os.environ
        if self.follows:
            folder = Path(os.environ[RUN_DIR_VARIABLE])
            return folder, resumed or self._goes_on(folder)
        if folder is None:
            folder = self._new_folder(config)
            resumed = self._goes_on(folder)
        elif not resumed and self._goes_on(folder):
            resumed = True
        elif rank() == 0 and self.chosen == "fit" and not resumed and holds_run(folder):
            if not config.overwrite:
                raise UserError(
                    f"{folder}: holds a run; go on with it by --ckpt_path last, replace it by --overwrite "
                    "true, or give another --run_dir"
                )
            clear_run(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if rank() == 0:
                (folder / "error.txt").unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot be made ({error.strerror}); give another --run_dir") from error
        os.environ[RUN_DIR_VARIABLE] = str(folder.resolve())
        return folder, resumed

    def _may_go_on(self, folder: Path) -> bool:
        """Whether SLURM starts the command of the run in ``folder`` once more."""
        if self.chosen != "fit" or not holds_run(folder):
            return False
        restarted = os.environ.get("SLURM_RESTART_COUNT", "").isdecimal() and (
            int(os.environ["SLURM_RESTART_COUNT"]) > 0
        )
        return restarted or (
            bool(requeued_checkpoints(folder))
            and not self.config[self.chosen].overwrite
            and recorded_status(folder) != "finished"
        )

    def _goes_on(self, folder: Path) -> bool:
        """Whether SLURM starts the command of the run in ``folder`` once more; finds where to go on."""
        if not self._may_go_on(folder):
            return False
        if self.checkpoint is None:
            self.checkpoint = latest_checkpoint(folder)
        return True

    def _keep_apart(self) -> None:
        """Gives a folder of its own to a test that is none of the run's best checkpoint, data and configuration."""
        if self.chosen not in ("test", "validate") or self.checkpoint is None or self.follows:
            return
        tested = folder_of_checkpoint(self.checkpoint.path)
        if tested is None or not folder_equal(self.run_dir, tested):
            return
        self.fingerprint = fingerprint_of(self.datamodule)
        if self.checkpoint.path.name == "best.ckpt" and self._has_data_of(tested) and self._is_as_trained():
            return
        name = f"{self.run_dir.name}-{self.chosen}-"
        if "SLURM_JOB_ID" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1:
            # Of one job there may be several tests, and all processes of one are to name the same folder.
            told = hashlib.sha256(self.command_line.encode()).hexdigest()[:8]
            self.run_dir = self.run_dir.parent / f"{name}{os.environ['SLURM_JOB_ID']}-{told}"
            self.run_dir.mkdir(parents=True, exist_ok=True)
        elif under_torchrun():
            raise UserError(
                f"{tested}: its scores are those of best.ckpt as trained, on its own data; give another --run_dir"
            )
        else:
            self.run_dir = _fresh(self.run_dir.parent, f"{name}{datetime.now():%Y%m%d-%H%M%S}")
        os.environ[RUN_DIR_VARIABLE] = str(self.run_dir.resolve())

    def _has_data_of(self, run: Path) -> bool:
        """Whether the data are those that the run in ``run`` was trained and tested on."""
        recorded = recorded_fingerprint(run)
        if recorded or self.fingerprint:
            return recorded == self.fingerprint
        assert self.checkpoint is not None
        return bool(yaml.safe_load(self._config_text())["data"] == self.checkpoint.config.get("data"))

    def _is_as_trained(self) -> bool:
        """Whether the run's record has scores of this kind: of its model, data and share of them, in its precision.

        An option that the checkpoint does not know yet changes nothing, unless it is given.
        """
        assert self.checkpoint is not None
        config, trained = yaml.safe_load(self._config_text()), self.checkpoint.config
        for section, neutral in NO_SCORES.items():
            given, before = (each.get(section) or {} for each in (config, trained))
            options, known = (each.get("init_args") or {} for each in (given, before))
            if given.get("class_path") != before.get("class_path"):
                return False
            if any(options.get(name) != known[name] for name in known.keys() - neutral):
                return False
            if any(self._gives(f"{section}.{name}") for name in options.keys() - known.keys() - neutral):
                return False
        trainer, before = (each.get("trainer") or {} for each in (config, trained))
        if self._share(trainer) != self._share(before):
            return False
        # A test is in float32 unless it is told otherwise, whatever was trained in.
        return trainer.get("precision") in (None, 32, "32", "32-true", before.get("precision"))

    def _gives(self, option: str) -> bool:
        """Whether the command line names the option, as ``model.tta_flip``."""
        section, name = option.split(".", 1)
        names = (f"--{option}", f"--{section}.init_args.{name}")
        return any(word.split("=")[0].startswith(names) for word in self.argv)

    def _share(self, trainer: Mapping[str, Any]) -> tuple[Any, ...]:
        """What the trainer's options leave of the split that is scored."""
        limit = trainer.get(f"limit_{SUBSETS[self.chosen]}_batches")
        overfit = (trainer.get("overfit_batches") or 0) if self.chosen == "validate" else 0
        every = limit is None or (isinstance(limit, float) and limit == 1)  # 1 is one batch, 1.0 are all
        return None if every else limit, bool(trainer.get("fast_dev_run")), overfit

    def _new_folder(self, config: Namespace) -> Path:
        """``runs/<model>-<data>-<time>``, a folder that nobody has yet; in a job of SLURM's, that of the job."""
        model = _class_of(config.model).__name__.lower()
        data = _class_of(config.data).__name__.lower().removesuffix("datamodule")
        if (job := _job(alone=self.chosen != "fit")) is not None:
            return self._folder_of_job(f"{model}-{data}-{job}")
        if under_torchrun():
            raise UserError("under torchrun the processes need a common folder; give --run_dir")
        return _fresh(Path("runs"), f"{model}-{data}-{datetime.now():%Y%m%d-%H%M%S}")

    def _folder_of_job(self, name: str) -> Path:
        """The folder of this command in its SLURM job, the same one whenever the job is started again.

        A job may run several commands after one another, each in a folder of its own. The processes of one
        command, which know nothing of each other yet, would not agree on a number behind the name: a job of
        several tasks has one folder.
        """
        parent = Path("runs")
        if int(os.environ.get("SLURM_NTASKS", "1")) > 1:
            if rank() == 0 and not self._may_use(parent / name):
                raise UserError(f"{parent / name}: holds another run of this job; give --run_dir")
            return parent / name
        for number in range(1, 1000):
            folder = parent / (name if number == 1 else f"{name}-{number}")
            if self._may_use(folder):
                return folder
        raise UserError(f"{parent}/: too many runs of this job; give --run_dir")

    def _may_use(self, folder: Path) -> bool:
        """Whether ``folder`` holds no run, or one that this very command began and is to go on with."""
        mine = self.command_line in recorded_commands(folder)[:1]
        return not holds_run(folder) or (mine and self._may_go_on(folder))

    # What is run.

    def _run_subcommand(self, subcommand: str) -> None:
        """Does nothing yet: `run` does, when the caller holds this object."""

    def run(self) -> None:
        """Fits, validates, tests or predicts."""
        if rank() == 0:
            sys.stderr.write(f"segdet: {self.chosen} in {_shown(self.run_dir)}\n")
        arguments = self._prepare_subcommand_kwargs(self.chosen)
        if self.checkpoint is not None:
            arguments["ckpt_path"] = str(self.checkpoint.path)
        function: Callable[..., Any] = getattr(self.trainer, self.chosen)
        function(**arguments)


def chosen_precision(trainer: Namespace) -> Any:
    """The precision to compute in: float32 in place of bfloat16 where this machine's CPU has it not, which is said.

    The run's configuration keeps what is asked for, so that it means the same on another machine.

    Args:
        trainer: The trainer's part of the configuration.
    """
    asked = trainer.precision
    if not _runs_on_cpu(trainer.accelerator) or affordable(asked) == asked:
        return asked
    if rank() == 0:
        sys.stderr.write(
            f"segdet: this CPU has no bfloat16 and would be slow at it; precision {asked} becomes "
            f"{affordable(asked)}\n"
        )
    return affordable(asked)


def _runs_on_cpu(accelerator: Any) -> bool:
    """Whether ``--trainer.accelerator`` means the CPU on this machine."""
    if accelerator in ("auto", None):
        others: list[type[Accelerator]] = [CUDAAccelerator, MPSAccelerator, XLAAccelerator]
        return not any(other.is_available() for other in others)
    return accelerator == "cpu" or isinstance(accelerator, CPUAccelerator)


def folder_equal(one: Path, other: Path | None) -> bool:
    """Whether two paths are the same folder."""
    return other is not None and one.resolve() == other.resolve()


def _class_of(section: Any) -> type:
    from jsonargparse.typing import import_object

    found: type = import_object(section.class_path)
    return found


def _fresh(parent: Path, name: str) -> Path:
    """A folder that nobody has yet, ``name`` or ``name-2`` ... in ``parent``, made."""
    for number in range(1, 1000):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"{folder}: cannot be made ({error.strerror}); give --run_dir") from error
        return folder
    raise UserError(f"{parent}/: too many runs of this second; give --run_dir")


def _raised_in(error: BaseException, package: str) -> bool:
    """Whether the innermost code of ours that ``error`` came through belongs to ``package``."""
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = [name for name in modules if name.startswith("segdet.") and name != __name__]
    return bool(ours) and ours[-1].startswith(package)


def _one_line(error: BaseException, most: int = 240) -> str:
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= most else line[: most - 3] + "..."


def _job(alone: bool) -> str | None:
    """The SLURM job that a folder is to be named after: that of several tasks, or of a script.

    Args:
        alone: Whether a command of one task that is started again may begin anew.
    """
    several = int(os.environ.get("SLURM_NTASKS", "1")) > 1
    by_hand = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")  # srun --pty bash, salloc
    return os.environ.get("SLURM_JOB_ID") if several or not (alone or by_hand) else None


def _refuse_abbreviations(argv: Sequence[str], config: Namespace) -> None:
    """Raises `UserError` for ``--model.optim.nam``: jsonargparse completes names inside of classes, always."""
    for argument in argv:
        if not (match := re.match(r"--((?:model|data)\.[\w.]+)", argument)):
            continue
        node: Any = config
        for part in match[1].split("."):
            if isinstance(node, Namespace) and part not in node and "init_args" in node:
                node = node.init_args
            if not isinstance(node, Namespace) or part == "help" or part.endswith("+"):
                break  # a free dictionary, or nothing more to look into
            if part not in node:
                hint = did_you_mean(part, vars(node))
                raise UserError(f"--{match[1]}: no such key {part!r}; {hint}")
            node = node[part]


def _gives_task(argv: Sequence[str]) -> bool:
    """Whether ``--data.task`` is given, on the command line or in a configuration file."""
    if any(re.match(r"--data\.(init_args\.)?task(=|$)", argument) for argument in argv):
        return True
    sections = [section for section in _data_sections(argv) if isinstance(section, dict)]
    arguments = [section.get("init_args", section) for section in sections]
    return any(isinstance(given, dict) and "task" in given for given in arguments)


def _data_class(argv: Sequence[str]) -> str | None:
    """The short name of the data module that is given last, on the command line or in a configuration file."""
    named = None
    for section in _data_sections(argv):
        path = section.get("class_path") if isinstance(section, dict) else section
        if isinstance(path, str):
            named = path.rsplit(".", 1)[-1]
    return named


def _data_sections(argv: Sequence[str]) -> Iterator[Any]:
    """What each option gives for ``data``: a class, or a mapping of ``class_path`` and ``init_args`` or of the latter.

    A file that cannot be read gives nothing here; the parser will say so.
    """
    for position, argument in enumerate(argv):
        name, sign, value = argument.partition("=")
        if name not in ("--config", "-c", "--data", "--data.class_path"):
            continue
        if not sign and position + 1 < len(argv):
            value = argv[position + 1]
        if name == "--data.class_path":
            yield value
            continue
        try:
            is_file = len(value) < 4096 and Path(value).is_file()
            section = yaml.safe_load(Path(value).read_text(encoding="utf-8") if is_file else value)
        except (OSError, ValueError, yaml.YAMLError):
            continue
        if name != "--data":
            section = section.get("data") if isinstance(section, dict) else None
        if section is not None:
            yield section


def _shown(path: Path) -> Path:
    """``path`` from here, where it lies below."""
    absolute, here = path.resolve(), Path.cwd()
    return absolute.relative_to(here) if absolute.is_relative_to(here) else path


def _listed(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
