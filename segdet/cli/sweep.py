"""``segdet sweep``: search the parameters in a sweep file of Weights & Biases, without an account."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from segdet.cli.error_messages import write_line
from segdet.cli.launch_options import add_launch_options, check_launch_options, slurm_settings
from segdet.launch.slurm import read_queue
from segdet.launch.slurm_sweep import worker_array
from segdet.launch.sweep import STORAGE, SweepJobs, run_workers
from segdet.launch.sweep_command import fit_arguments
from segdet.launch.sweep_file import Sweep, notes, read_sweep
from segdet.launch.sweep_results import write_results
from segdet.launch.sweep_space import Point
from segdet.launch.sweep_trials import LEASE, SweepTrials
from segdet.util.errors import UserError, check_range
from segdet.util.nouns import counted


def main(argv: Sequence[str]) -> int:
    """Run ``segdet sweep FILE``.

    Returns:
        The exit status: 0, 1 if a trial failed, 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        UserError: If the sweep file is invalid, or the storage contains the sweep with another search space.
    """
    arguments = _parser().parse_args(argv)
    sweep = read_sweep(arguments.file)
    for note in notes(sweep):
        write_line(f"segdet: note: {note}")
    if arguments.check:
        check_options(sweep)
        _print_summary(sweep)
        return 0
    check_range("--workers", arguments.workers, least=1)
    check_range("--lease", arguments.lease, least=1)
    check_launch_options(arguments)
    if sweep.size is None:
        raise sweep.error(("method",), f"method {sweep.method} never ends without run_cap; add run_cap: 20")
    folder = arguments.runs_dir / sweep.folder_name
    url = arguments.storage or f"sqlite:///{folder / STORAGE}"
    trials = SweepTrials(sweep, url, arguments.seed, arguments.lease)
    if not trials.all():
        check_options(sweep)
    wandb = {"RUN_GROUP": sweep.name, "PROJECT": sweep.project, "ENTITY": sweep.entity}
    for name, value in wandb.items():
        if value is not None:
            os.environ.setdefault(f"WANDB_{name}", value)
    if arguments.launcher == "slurm" and not trials.is_complete():
        return _submit(sweep, folder, arguments)
    status = run_workers(
        SweepJobs(trials, folder, arguments.test), arguments.workers, arguments.devices_per_run
    )
    sys.stdout.write(write_results(trials, folder) + "\n")
    if status:
        sys.stdout.flush()
        write_line(
            f"stopped; to resume the running trials: segdet sweep {arguments.file}, with the same options"
        )
    return status or int(any(trial.state == "failed" for trial in trials.all()))


def _submit(sweep: Sweep, folder: Path, arguments: argparse.Namespace) -> int:
    """Submit the workers that are not in the queue."""
    settings = slurm_settings(arguments)
    command = [
        "sweep",
        str(arguments.file),
        f"--runs_dir={arguments.runs_dir}",
        f"--lease={arguments.lease:g}",
    ]
    command += [
        f"--{name}={value}"
        for name in ("storage", "seed", "devices_per_run")
        if (value := getattr(arguments, name)) is not None
    ]
    command += ["--test"] if arguments.test else []
    queue = read_queue(folder)
    workers = worker_array(sweep.folder_name, folder, settings, command, arguments.workers, queue)
    if arguments.dry_run:
        sys.stdout.write(workers.preview(queue))
        return 0
    for name, number in workers.submit(queue).items():
        write_line(f"{name}: submitted as {number}")
    for name, entry in queue.items():
        write_line(f"{name}: {entry.describe()}")
    write_line(
        f"states: segdet status {folder}; when all trials have ended, the same command prints the results"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segdet sweep",
        allow_abbrev=False,
        description="Search the parameters in a sweep file of Weights & Biases, without an account.",
    )
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="sweep file, such as sweeps/segmentation.yaml")
    add("--runs_dir", type=Path, default=Path("runs"), metavar="DIR", help="folder of runs (default: runs)")
    add("--workers", type=int, default=1, metavar="N", help="trials at a time (default: 1)")
    devices_help = "GPUs of each trial (default: 1, or all with one worker)"
    add("--devices_per_run", type=int, metavar="N", help=devices_help)
    storage_help = (
        "postgresql://USER@HOST/DATABASE, for several machines (default: a file in the sweep's folder)"
    )
    add("--storage", metavar="URL", help=storage_help)
    add("--seed", type=int, metavar="N", help="seed of the search (default: 0)")
    add(
        "--lease",
        type=float,
        default=LEASE,
        metavar="SECONDS",
        help="time after which the trial of a worker that does not respond is continued (default: %(default)g)",
    )
    add_launch_options(parser, "worker")
    dry_run_help = "print the job scripts of --launcher slurm without submitting them"
    add("--dry_run", action="store_true", help=dry_run_help)
    add("--test", action="store_true", help="test each trial after training")
    add(
        "--check",
        action="store_true",
        help="validate the file and the options of the trials, and start nothing",
    )
    return parser


def check_options(sweep: Sweep) -> None:
    """Check that ``segdet fit`` accepts every value of each choice and both ends of each range.

    Raises:
        UserError: If it does not. If a single parameter is the cause, the message names its line.
    """
    for point in sweep.space.covering_points():
        fault = _fault(sweep, point)
        if fault is None:
            continue
        for name, path in zip(sweep.space.named(), sweep.space.leaves, strict=True):
            if _fault(sweep, point, without=name) is None:
                key = tuple(part for each in path for part in ("parameters", each))
                raise sweep.error(key, f"segdet fit does not accept {name}={point[name]}: {fault}")
        raise sweep.error(("command",), f"segdet fit does not accept the command: {fault}")


def _fault(sweep: Sweep, point: Point, without: str | None = None) -> UserError | None:
    """Return the error of ``segdet fit`` for a point, optionally without one of its parameters."""
    from segdet.cli.train_options import parse_command  # imports torch

    arguments = fit_arguments(sweep.command_line(point, Path("arguments.json"), without))
    assert arguments is not None  # read_sweep has checked it
    try:
        parse_command(arguments)
    except UserError as error:
        return error
    return None


def _print_summary(sweep: Sweep) -> None:
    trials = "no limit of trials" if sweep.size is None else counted(sweep.size, "trial")
    point = next(sweep.space.covering_points())
    line = shlex.join(sweep.command_line(point, Path("arguments.json")))
    sys.stdout.write(f"{sweep.path}: valid; {sweep.method}, {trials}, such as\n{line}\n")
