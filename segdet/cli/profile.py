"""``segdet profile``: measure the FLOPs, memory, latency and stages of models."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdet.cli.error_messages import write_line
from segdet.util.errors import UserError, check_range

if TYPE_CHECKING:
    from segdet.profiling.profiler import Subject


def main(argv: Sequence[str]) -> int:
    """Run ``segdet profile CONFIG|RUN...``.

    Returns:
        The exit status, always 0. A precision that was not reached is a remark in the output.

    Raises:
        UserError: If an option, a configuration or a run is not valid, or a model cannot predict.
    """
    arguments, options = _parse(argv)
    from segdet.cli.train import without_irrelevant_messages

    with ExitStack() as at_end, without_irrelevant_messages():
        _profile(arguments, options, shlex.join(["segdet", "profile", *argv]), at_end)
    return 0


def _profile(arguments: argparse.Namespace, options: list[str], command: str, at_end: ExitStack) -> None:
    import torch

    from segdet.profiling.profiler import ProfileOptions, profile_models
    from segdet.profiling.result import PROFILE_NAME
    from segdet.report.profiles import profile_tables
    from segdet.runs.ownership import Ownership

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    names = _distinct_names(arguments.models)
    for source in arguments.models:
        if source.is_dir():  # an error now is better than one after the measurement
            at_end.callback(Ownership(source).release)
    subjects = [_subject(source, name, options) for source, name in zip(arguments.models, names, strict=True)]
    untrained = [subject.name for subject in subjects if subject.weights == "random"]
    if untrained:
        write_line(
            f"segdet: {', '.join(untrained)}: random weights; the time of NMS depends on the weights, so profile a "
            "trained run to measure it"
        )
    measured = ProfileOptions(arguments.images, arguments.batch_size, arguments.time_limit)
    profiles = profile_models(subjects, measured, command)
    for source, profile in zip(arguments.models, profiles, strict=True):
        if source.is_dir():
            profile.write(source / PROFILE_NAME)
            write_line(f"segdet: see {source / PROFILE_NAME}")
    if arguments.output is not None:
        profiles[0].write(arguments.output)
    sys.stdout.write(profile_tables(profiles))


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="segdet profile",
        allow_abbrev=False,
        description="Measure the FLOPs, memory, latency, throughput and stages of models. Several models are measured "
        "in turn on the same images, so that other work on the machine affects all of them alike.",
        epilog="Other options, such as --data.root DIR, are those of segdet fit and apply to all models.",
    )
    parser.add_argument(
        "models", nargs="+", type=Path, metavar="CONFIG|RUN",
        help="configuration files, with random weights, and folders of runs, with their best checkpoint; the profile "
        "of a run is also written to profile.json in its folder",
    )  # fmt: skip
    parser.add_argument(
        "--images", type=int, default=16, metavar="N", help="number of test images (default: 16)"
    )
    parser.add_argument(
        "--batch_size", type=int, default=8, metavar="N", help="batch size of the throughput (default: 8)"
    )
    parser.add_argument(
        "--time_limit", type=float, default=60.0, metavar="SECONDS",
        help="maximum time for the latency of each model; it ends earlier if the interval of p50 is within 2%% "
        "(default: 60)",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=int, metavar="N", help="threads of torch (default: torch's own choice)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="also write the profile to this file (only with one model)",
    )
    arguments, options = parser.parse_known_args(argv)
    for name in ("images", "batch_size", "threads"):
        value = getattr(arguments, name)
        if value is not None:
            check_range(f"--{name}", value, least=1)
    check_range("--time_limit", arguments.time_limit, above=0)
    if arguments.output is not None and len(arguments.models) > 1:
        raise UserError(
            f"--output {arguments.output}: the file holds one profile; give one configuration or run"
        )
    if arguments.output is not None:
        from segdet.cli.arguments import check_output

        check_output("--output", arguments.output)
    return arguments, options


def _distinct_names(sources: Sequence[Path]) -> list[str]:
    """Return the name of each run and configuration, with its parent folder if two have the same name."""
    names = [source.resolve().name if source.is_dir() else source.stem for source in sources]
    return [
        f"{source.resolve().parent.name}/{name}" if names.count(name) > 1 else name
        for source, name in zip(sources, names, strict=True)
    ]


def _subject(source: Path, name: str, options: Sequence[str]) -> Subject:
    """Build the model and the data of a configuration or a run."""
    import lightning as L
    from lightning.fabric import Fabric

    from segdet.cli.train_options import parse_command
    from segdet.profiling.profiler import Subject
    from segdet.runs.checkpoint_file import open_checkpoint
    from segdet.runs.defaults import choose_defaults
    from segdet.runs.trainer_options import choose_precision
    from segdet.training.untrained import PreparesUntrained

    config = source / "config.yaml" if source.is_dir() else source
    if not config.is_file():
        reason = "no run in it" if source.is_dir() else "no such file or folder"
        raise UserError(f"{source}: {reason}; give a configuration, or the folder of a run of segdet fit")
    checkpoint = open_checkpoint(str(source), None, "test") if source.is_dir() else None
    parsed = parse_command(["fit", "--config", str(config), *options])
    seed = parsed.config.seed_everything
    L.seed_everything(0 if isinstance(seed, bool) else seed, verbose=False)
    # A profile logs nothing and trains for two steps only.
    parsed.set({"trainer.logger": None, "trainer.callbacks": None, "trainer.profiler": None})
    instances = parsed.instantiate(checkpoint, config.parent)
    model, data = instances.model, instances.data
    choose_defaults(parsed.config, model, data)
    if checkpoint is None:
        model.configure_model()
        if isinstance(model, PreparesUntrained):
            model.prepare_untrained()
    else:
        model = type(model).load_from_checkpoint(checkpoint.path)
    trainer = parsed.config.trainer
    precision: Any = choose_precision(trainer.precision, trainer.accelerator) or "32-true"
    fabric = Fabric(accelerator=trainer.accelerator or "auto", devices=1, precision=precision)
    model.to(fabric.device)
    weights = "random" if checkpoint is None else str(checkpoint.path)
    if checkpoint is None and any(
        parsed.config.model.init_args.get(key) for key in ("weights", "weights_backbone")
    ):
        weights = "pretrained"
    return Subject(name, str(source), model, data, weights, str(precision), fabric.autocast)
