"""The options of ``segdet fit|validate|test|predict``: the parser, and the options that the user gave.

Options come from four sources, where later sources override earlier ones: the defaults of the classes, the
configuration in the checkpoint that ``--ckpt_path`` names, ``--config`` files, and the command line.
"""

import argparse
import contextlib
import importlib
import inspect
import json
import pkgutil
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import yaml
from jsonargparse import Namespace, set_dumper, set_loader
from jsonargparse.typing import PositiveInt, import_object
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from segdet.cli.config_option import ConfigOption
from segdet.cli.error_messages import one_line
from segdet.cli.null_values import check_nulls
from segdet.cli.parse_errors import ParseFault, readable
from segdet.data.base import Classes, DataModule
from segdet.data.datamodules import Images
from segdet.nn.weights import restoring
from segdet.report.ladder.rungs import Rung, rung_of
from segdet.runs.checkpoint_file import Checkpoint, latest_checkpoint, open_checkpoint
from segdet.runs.classes import model_classes
from segdet.runs.error_analysis import ErrorAnalysis
from segdet.runs.folder_choice import NEUTRAL_OPTIONS
from segdet.runs.lightning_callbacks import check_callback
from segdet.runs.panels import ImagePanels
from segdet.runs.trainer_options import check_trainer_options
from segdet.task import Task
from segdet.util.errors import UserError
from segdet.util.yaml_text import as_argument, dump_yaml, load_yaml

set_loader("yaml", load_yaml, exceptions=(yaml.YAMLError,))
set_dumper("yaml", dump_yaml)

TRAINER_DEFAULTS: dict[str, Any] = {
    "log_every_n_steps": 50,
    "num_sanity_val_steps": 0,  # scores of two batches are meaningless
    "enable_autolog_hparams": False,  # RunRecorder records the whole configuration
    "enable_model_summary": False,  # the record holds the number of parameters
}
"""Defaults of options of ``lightning.Trainer`` that differ from Lightning's."""

INHERITED = ("seed_everything", "model", "data")
"""The sections of a checkpoint's configuration that set defaults of validate, test and predict; fit uses all."""

_OPTIONS: dict[str, type] = {
    "--model ": Task,
    "--data ": DataModule,
    "--trainer.callbacks ": pl.Callback,
    "--trainer.logger ": Logger,
    "--trainer.profiler ": Profiler,
    "--trainer.strategy ": Strategy,
    "": object,
}
"""The base class of the objects that each option builds. The empty name stands for all other objects."""

_SKIPPED = {"model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule"}
_BATCH_LIMITS = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches")


@dataclass
class RunOptions:
    """The options of a run itself.

    Args:
        seed_everything: The seed of all random numbers; true for the value of PL_GLOBAL_SEED, or 0 if it is unset.
        run_dir: The run's folder. Default: runs/<model>-<data>-<time>, or the folder of --ckpt_path.
        overwrite: Remove the run that --run_dir holds and start a new one.
        resume: auto starts the run in --run_dir, or resumes it from its newest valid checkpoint. A finished run is not
            trained again.
        test: After the training, test the best checkpoint in the same process, with the options of the training.
        wandb: Record on Weights & Biases: online with an account, else offline; WANDB_MODE overrides this choice.
        wandb_project: The project on W&B.
        checkpoint_every_n_steps: Steps between additional saves of last.ckpt, besides the save after every epoch.
        ema: Decay of a moving average of the weights, such as 0.999. The average is validated, saved and tested.
    """

    seed_everything: bool | int = 0
    run_dir: str | None = None
    overwrite: bool = False
    resume: Literal["auto"] | None = None
    test: bool = False
    wandb: bool = True
    wandb_project: str = "segdet"
    checkpoint_every_n_steps: PositiveInt | None = None
    ema: float | None = None


class Parser(LightningArgumentParser):
    """A parser that raises `ParseFault` on an error and accepts no abbreviated options.

    jsonargparse parses the options of nested classes with parsers of this class too.

    Attributes:
        method_arguments: The names of the options that are arguments of the trainer's method.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("prog", "segdet")
        super().__init__(*args, **kwargs)
        self.method_arguments: list[str] = []

    def add_class_arguments(
        self, class_type: type, nested_key: str | None = None, *args: Any, **kwargs: Any
    ) -> list[str]:
        """Add the arguments of a class. The folder of a logger is optional; by default it is the run's folder."""
        if issubclass(class_type, Logger) and "save_dir" in inspect.signature(class_type).parameters:
            help_text = "The folder of the logger's files; empty for the run's folder."
            prefix = f"{nested_key}." if nested_key else ""
            self.add_argument(f"--{prefix}save_dir", type=str, default="", help=help_text)
            kwargs["skip"] = {*(kwargs.get("skip") or ()), "save_dir"}
        return super().add_class_arguments(class_type, nested_key, *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise `ParseFault`."""
        if not self.exit_on_error:  # jsonargparse tries one of several types and handles the error
            super().error(message, ex)
        raise ParseFault(message) from ex


@dataclass(frozen=True)
class GivenOptions:
    """The options that the user gave on the command line and in ``--config`` files.

    Defaults and the options of a checkpoint are not included.

    Attributes:
        values: The given values by dotted name, without jsonargparse's ``init_args``: ``model.optim.lr``. The import
            path of a section's class, such as ``data.class_path``, is included if any of its options is given.
    """

    values: Mapping[str, Any]

    @classmethod
    def parse(cls, parser: Parser, arguments: Sequence[str]) -> "GivenOptions":
        """Parse ``arguments`` without defaults."""
        # Required options may be missing here. The complete configuration is validated later.
        namespace = parser.parse_args(list(arguments), defaults=False, _skip_validation=True)
        return cls({name.replace(".init_args", ""): value for name, value in namespace.items()})

    def __contains__(self, option: object) -> bool:
        """Whether the option, or a part of it, is given."""
        # A given argument may belong to a class in the checkpoint, so it does not imply that class_path is given.
        names = self.values.keys() - {"model.class_path", "data.class_path"}
        return any(name == option or name.startswith(f"{option}.") for name in names)


@dataclass
class Options:
    """A parsed command.

    Attributes:
        command: The subcommand: fit, validate, test or predict.
        command_line: The whole command line.
        parser: The parser of the subcommand.
        config: The complete configuration.
        given: The options that the user gave.
        checkpoint: The checkpoint that ``--ckpt_path`` names, or None.
    """

    command: str
    command_line: str
    parser: Parser
    config: Namespace
    given: GivenOptions
    checkpoint: Checkpoint | None

    def class_of(self, section: str) -> type:
        """Return the class of ``model`` or ``data``."""
        found: type = import_object(self.config[section].class_path)
        return found

    @property
    def rung(self) -> Rung:
        """The rung of the model in the ladder of its task."""
        model, arguments = self.class_of("model"), self.config.model.get("init_args") or {}
        return rung_of(str(getattr(model, "task", "")), model.__name__, dict(arguments))

    def set(self, values: Mapping[str, Any]) -> None:
        """Set options of the configuration by dotted name, such as ``data.init_args.recipe.class_path``."""
        for name, value in values.items():
            self.config[name] = value

    def yaml(self) -> str:
        """Return the configuration to start the same run again, without the options that apply to this run only."""
        config = self.config.clone()
        for name in ("config", "ckpt_path", "images"):  # the section data holds the images
            config.pop(name, None)
        config.run_dir, config.overwrite, config.resume, config.test = None, False, None, False
        return self.parser.dump(config, skip_unset=False)

    def instantiate(self, checkpoint: Checkpoint | None, folder: Path) -> Namespace:
        """Return the configuration with classes instantiated: the data, then the model, which needs the data's classes.

        Args:
            folder: The run's folder, for the files of loggers.
            checkpoint: The checkpoint that the model will be restored from. It contains all weights, so pretrained ones
                are neither downloaded nor read.

        Raises:
            UserError: If a class cannot be instantiated with its arguments.
        """

        failures: list[UserError] = []

        def build(option: str, class_type: type, *args: Any, **kwargs: Any) -> Any:
            name = f"{option}{class_type.__name__}"
            if issubclass(class_type, Logger) and kwargs.get("save_dir") == "":
                kwargs["save_dir"] = str(folder)
            try:
                return class_type(*args, **kwargs)
            except UserError as error:
                failures.append(error)
                raise
            except ImportError as error:
                first_line = one_line(str(error).partition("\n")[0])
                failures.append(UserError(f"{name}: a package is missing ({first_line}); install it"))
                raise failures[-1] from error
            except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
                failures.append(UserError(f"{name}: cannot be built: {one_line(error)}; fix its arguments"))
                raise failures[-1] from error

        instantiators = [(partial(build, option), base, True) for option, base in _OPTIONS.items()]
        restored = contextlib.nullcontext() if checkpoint is None else restoring(checkpoint.weights)
        try:
            with restored:
                return self.parser.instantiate(self.config, instantiators=instantiators)
        except ParseFault as fault:
            raise UserError(readable(str(fault), self.parser, self.command)) from None
        except (ValueError, TypeError):
            if not failures:
                raise
            raise failures[
                0
            ] from None  # jsonargparse tries the other types of the option before it raises an error


def parse_command(argv: Sequence[str]) -> Options:
    """Parse a subcommand and its arguments.

    Raises:
        UserError: If an argument, a ``--config`` file or the checkpoint is not valid.
        SystemExit: After ``--help`` and ``--print_config``.
    """
    import_classes()
    command = argv[0]
    first, arguments = _split(argv[1:], command)
    checkpoint = _checkpoint(first.ckpt_path, first.run_dir, first.resume, command)
    parser = build_parser(command, lambda data: model_classes(data, command, checkpoint))
    try:
        _inherit(parser, command, checkpoint)
        given = GivenOptions.parse(parser, [*_nested_classes(checkpoint, arguments), *arguments])
        _check_images(first, given, command)
        if (
            checkpoint is None and not first.names_no_checkpoint and first.resume is None
        ):  # a --config file may name it
            values = given.values
            checkpoint = _checkpoint(
                values.get("ckpt_path"), values.get("run_dir"), values.get("resume"), command
            )
            _inherit(parser, command, checkpoint)
        if checkpoint is None and command == "fit" and "model.class_path" not in given.values:
            arguments = [*_options_of_stopped_run(given.values), *arguments]
            given = GivenOptions.parse(parser, arguments)
        if checkpoint is None and command != "fit" and first.print_config is None:
            raise UserError(
                f"segdet {command}: no run is given; give --ckpt_path with a run's folder or a checkpoint in it"
            )
        _drop_class_names(parser, checkpoint, given)
        printing = [] if first.print_config is None else [f"--print_config={first.print_config}"]
        config = parser.parse_args([*arguments, *printing])
    except ParseFault as fault:
        raise UserError(readable(str(fault), parser, command, arguments)) from None
    config.ckpt_path = None if checkpoint is None else str(checkpoint.path)
    options = Options(command, shlex.join(["segdet", *argv]), parser, config, given, checkpoint)
    check_nulls(config, given.values)
    _complete(options)
    return options


def import_classes() -> None:
    """Import all models, data modules and proposers, so that the parser accepts their short names."""
    for name in ("segdet.segmentation", "segdet.localization", "segdet.detection"):
        package = importlib.import_module(name)
        for module in pkgutil.iter_modules(package.__path__, f"{name}."):
            importlib.import_module(module.name)
    importlib.import_module("segdet.proposals")


def _split(arguments: Sequence[str], command: str) -> tuple[argparse.Namespace, list[str]]:
    """Separate the options that determine how the other ``arguments`` are parsed.

    The checkpoint contains the classes of model and data, and with them the meaning of options such as
    ``--model.width``. ``--images`` replaces the class of the data.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--ckpt_path")
    parser.add_argument("--run_dir")
    parser.add_argument("--resume")
    parser.add_argument("--print_config", nargs="?", const="")
    if command == "predict":
        parser.add_argument("--images", nargs="+")
    try:
        first, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UserError(f"{error.argument_name}: {error.message}; give it a value") from None
    if getattr(first, "images", None) is not None:
        rest = [f"--data={Images.__name__}", f"--data.paths={json.dumps(first.images)}", *rest]
    rest += [
        f"--{name}={getattr(first, name)}"
        for name in ("run_dir", "resume")
        if getattr(first, name) is not None
    ]
    first.names_no_checkpoint = _is_null(first.ckpt_path)
    for name in ("ckpt_path", "run_dir", "resume"):
        if _is_null(getattr(first, name)):
            setattr(first, name, None)
    return first, rest


def _check_images(first: argparse.Namespace, given: GivenOptions, command: str) -> None:
    """Raise `UserError` if the given images would not be used."""
    if command != "predict":
        return
    if given.values.get("images") is not None:  # _split has removed the option from the command line
        raise UserError("images: give --images on the command line instead of the --config file")
    if first.images is not None and import_object(given.values["data.class_path"]) is not Images:
        raise UserError("--images and --data: give one of them")


def _is_null(value: str | None) -> bool:
    """Return whether a value is YAML's null, as in ``--run_dir null``."""
    return value is not None and value.lower() in ("null", "none")


def _checkpoint(name: Any, run_dir: Any, resume: Any, command: str) -> Checkpoint | None:
    if resume is not None and name is not None:
        raise UserError(f"--resume {resume} and --ckpt_path: give one of them")
    if resume is not None and run_dir is not None and command == "fit":
        return latest_checkpoint(Path(run_dir))
    if name is None:
        return None
    return open_checkpoint(str(name), None if run_dir is None else str(run_dir), command)


def _options_of_stopped_run(given: Mapping[str, Any]) -> list[str]:
    """Return the options of the run that ``--resume auto`` starts again, because it was stopped before a checkpoint."""
    if given.get("resume") is None or given.get("run_dir") is None:
        return []
    config = Path(given["run_dir"]) / "config.yaml"
    return ["--config", str(config)] if config.is_file() else []


def build_parser(command: str, classes: Callable[[DataModule], Classes]) -> Parser:
    """Return the parser of a subcommand; ``classes`` returns the classes of the model for a data module."""
    parser = Parser(prog=f"segdet {command}", description=f"The options of segdet {command}.")
    parser.add_argument(
        "-c", "--config", action=ConfigOption, help="Path to a configuration file in json or yaml format."
    )
    parser.add_class_arguments(RunOptions)
    parser.add_class_arguments(
        pl.Trainer, "trainer", fail_untyped=False, instantiate=False, sub_configs=True, skip={*_BATCH_LIMITS}
    )
    for name in _BATCH_LIMITS:
        # Lightning declares float before int, so 1 (a single batch) would be parsed as 1.0 (all batches).
        parser.add_argument(
            f"--trainer.{name}",
            type=int | float | None,
            default=None,
            help="The number of batches (int), or the fraction of all batches (float).",
        )
    parser.set_defaults({f"trainer.{name}": value for name, value in TRAINER_DEFAULTS.items()})
    parser.add_lightning_class_args(Task, "model", subclass_mode=True)
    parser.add_lightning_class_args(DataModule, "data", subclass_mode=True)
    parser.add_class_arguments(ImagePanels, "panels")
    parser.add_class_arguments(ErrorAnalysis, "error_analysis")
    parser.method_arguments = parser.add_method_arguments(pl.Trainer, command, skip=_SKIPPED)
    if command == "predict":
        parser.add_argument(
            "--images",
            nargs="+",
            metavar="PATH",
            help="Images, videos, folders, quoted patterns such as 'photos/**/*.jpg', or .txt files that list these; "
            "default: the test split of the data.",
        )
        # Predictions are written batch by batch; keeping them would fill the memory.
        parser.set_defaults({"return_predictions": False})
    parser.link_arguments(
        "data", "model.init_args.class_names", lambda data: classes(data).names, "instantiate"
    )
    parser.link_arguments(
        "data", "model.init_args.category_ids", lambda data: classes(data).category_ids, "instantiate"
    )
    return parser


def _inherit(parser: Parser, command: str, checkpoint: Checkpoint | None) -> None:
    """Use the configuration in the checkpoint as the parser's defaults."""
    if checkpoint is None:
        return
    for section, value in checkpoint.config.items():
        if section in ("model", "data"):
            checkpoint.check_class(section)
        if command == "fit" or section in INHERITED:
            _set_default(parser, checkpoint, section, value)


def _set_default(parser: Parser, checkpoint: Checkpoint, section: str, value: Any) -> None:
    try:
        parser.set_defaults({section: value})
    except Exception as error:  # jsonargparse raises KeyError, ValueError, AttributeError and others
        raise UserError(
            f"{checkpoint.path}: its configuration does not suit this version of segdet "
            f"({one_line(error)}); use the version that wrote it"
        ) from error


def _nested_classes(checkpoint: Checkpoint | None, arguments: Sequence[str]) -> Iterator[str]:
    """Yield the options that name the classes in the checkpoint to which given options belong.

    For ``--data.recipe.size`` this is ``--data.recipe=ScaleJitter``. Without it, the parser of the given options cannot
    interpret the size.
    """
    if checkpoint is None:
        return
    given = [argument.partition("=")[0].replace(".init_args", "") for argument in arguments]
    for section in ("model", "data"):
        values = (checkpoint.config.get(section) or {}).get("init_args") or {}
        for name, value in values.items():
            option = f"--{section}.{name}"
            has_class = isinstance(value, dict) and "class_path" in value
            if has_class and option not in given and any(each.startswith(f"{option}.") for each in given):
                yield f"{option}={value['class_path']}"


def _drop_class_names(parser: Parser, checkpoint: Checkpoint | None, given: GivenOptions) -> None:
    """Drop the checkpoint's class names, or their file, if the user gives another class of data module.

    Otherwise, jsonargparse would keep the arguments that both classes have.
    """
    path = given.values.get("data.class_path")
    if checkpoint is None or not checkpoint.config.get("data") or path is None:
        return
    section = checkpoint.config["data"]
    if import_object(path) is not import_object(section["class_path"]):
        arguments = dict(section.get("init_args") or {})
        arguments.pop("class_names", None)
        _set_default(parser, checkpoint, "data", section | {"init_args": arguments})


def _complete(options: Options) -> None:
    """Fill in the task of the data and the class names of images, and check the options of the trainer."""
    if options.config.run_dir is not None and not options.config.run_dir.strip():
        raise UserError("--run_dir: is empty; give a folder, or leave it out")
    _check_test_and_resume(options)
    trainer, data, given = options.config.trainer, options.config.data.init_args, options.given
    if options.command != "fit" and trainer.max_epochs is None:
        trainer.max_epochs = 1  # Lightning would warn that it is not limited
    check_trainer_options(trainer.as_dict())
    given_callbacks = trainer.callbacks if isinstance(trainer.callbacks, list) else [trainer.callbacks]
    for callback in given_callbacks:
        if isinstance(callback, Namespace):
            check_callback(import_object(callback.class_path))
    model_class = options.class_of("model")
    task = getattr(model_class, "task", None)
    if task is not None and "task" in data and data.task != task:
        if "data.task" in given:
            raise UserError(
                f"--data.task {data.task}: {model_class.__name__} is a {task} model; "
                f"give --data.task {task}, or leave it out"
            )
        data.task = task
    checkpoint = options.checkpoint
    images_only = issubclass(options.class_of("data"), Images)
    if (
        checkpoint is not None
        and checkpoint.classes.names
        and images_only
        and "data.class_names" not in given
    ):
        data.class_names = list(checkpoint.classes.names)


def _check_test_and_resume(options: Options) -> None:
    """Raise `UserError` if the options ``test`` and ``resume`` cannot have an effect."""
    config = options.config
    for name in ("test", "resume"):
        if config[name] and options.command != "fit":
            raise UserError(f"--{name}: is an option of segdet fit; leave it out")
    if config.resume and config.overwrite:
        raise UserError("--resume auto and --overwrite true: give one of them")
    unsaved = [("fast_dev_run", True), ("enable_checkpointing", False)]
    for name, value in unsaved:
        given = config.trainer[name]
        if config.test and given is not None and bool(given) is value:
            shown = json.dumps(given)
            raise UserError(
                f"--test true: tests best.ckpt, which --trainer.{name} {shown} does not save; leave out one of them"
            )


TEST_TRAINER = (
    "accelerator",
    "strategy",
    "devices",
    "num_nodes",
    "precision",
    "logger",
    "callbacks",
    "limit_test_batches",
    "enable_progress_bar",
    "deterministic",
    "benchmark",
    "plugins",
)
"""The options of the trainer that a test after the training has in common with it."""


def options_of_test(options: Options, folder: Path) -> Options:
    """Return the command that tests ``best.ckpt`` of a training, with the options of the training.

    Args:
        options: The command of the training.
        folder: The run's folder.

    Raises:
        UserError: If the run has no best checkpoint.
    """
    sections = yaml.safe_load(options.yaml())
    trainer = {name: value for name in TEST_TRAINER if (value := sections["trainer"].get(name)) is not None}
    common = {name: sections[name] for name in ("panels", "error_analysis", "wandb", "wandb_project")}
    words = ["test", f"--ckpt_path={folder / 'checkpoints' / 'best.ckpt'}"]
    words += ["--config", dump_yaml({**common, "trainer": trainer})]
    # The checkpoint contains the other options. These may have changed when the run was resumed after the best epoch.
    for section, names in NEUTRAL_OPTIONS.items():
        arguments = sections[section].get("init_args") or {}
        changed = [
            name for name in sorted(names) if f"{section}.{name}" in options.given and name in arguments
        ]
        words += [as_argument(f"{section}.{name}", arguments[name]) for name in changed]
    test = parse_command(words)
    test.command_line = options.command_line
    return test
