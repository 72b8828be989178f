"""``segdet bench``: train, test and compare the runs of an experiment file."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from segdet.cli.launch_options import add_launch_options, check_launch_options, slurm_settings
from segdet.launch.bench import Bench, plan, run_folder
from segdet.launch.experiment import Experiment, read_experiment
from segdet.launch.job import Job
from segdet.launch.local import LocalExecutor, print_status
from segdet.launch.slurm_bench import SlurmBench, sole_submission
from segdet.report.comparisons import Comparisons
from segdet.report.run_data import group_runs
from segdet.report.table import find_records, table
from segdet.runs.record import RECORD_NAME
from segdet.util.devices import visible_gpus
from segdet.util.errors import UserError, check_range
from segdet.util.files import write_text


def main(argv: Sequence[str]) -> int:
    """Run ``segdet bench FILE``.

    Returns:
        The exit status: 0, 1 if a run failed, 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        UserError: If the experiment file is invalid, or a run was trained with other settings.
    """
    arguments = _parser().parse_args(argv)
    experiment = read_experiment(arguments.file)
    if arguments.at_once is not None:
        check_range("--at_once", arguments.at_once, least=1)
        experiment = experiment.model_copy(update={"at_once": arguments.at_once})
    check_launch_options(arguments)
    if arguments.devices_per_run is not None and arguments.launcher == "slurm":
        raise UserError(
            "--devices_per_run: has no effect with --launcher slurm; set gpus in the file of --slurm"
        )
    jobs = plan(experiment, arguments.runs_dir, arguments.only, arguments.overrides, arguments.rerun)
    if arguments.launcher == "slurm":
        return _submit(experiment, jobs, arguments)
    if arguments.dry_run:
        _print_commands(experiment, jobs)
        return 0
    executor = LocalExecutor(experiment.at_once, visible_gpus(), arguments.devices_per_run)
    status = Bench(experiment, jobs, arguments.runs_dir, executor).run()
    if status in (0, 1):
        _print_table(experiment, arguments.runs_dir)
    return status


def _submit(experiment: Experiment, jobs: Sequence[Job], arguments: argparse.Namespace) -> int:
    """Submit the runs that have not finished and are not in the queue; print the table if all have finished."""
    settings = slurm_settings(arguments)
    folder = arguments.runs_dir / experiment.name
    if arguments.dry_run:
        bench = SlurmBench.plan(experiment, jobs, folder, settings, arguments.at_once)
        sys.stdout.write(bench.preview())
        return 0
    if all(job.action == "skip" for job in jobs):
        _print_table(experiment, arguments.runs_dir)
        return 0
    with sole_submission(folder):
        bench = SlurmBench.plan(experiment, jobs, folder, settings, arguments.at_once)
        print_status(bench.describe(bench.submit()))
    print_status(
        f"states: segdet status {folder}; when all runs have ended, the same command prints the table"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segdet bench",
        allow_abbrev=False,
        description="Train, test and compare the runs of an experiment file.",
    )
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="experiment file, such as experiments/demo.yaml")
    add("--runs_dir", type=Path, default=Path("runs"), metavar="DIR", help="folder of runs (default: runs)")
    at_once_help = "number of runs to train at once (default: the value in the file, else 1)"
    add("--at_once", type=int, metavar="N", help=at_once_help)
    devices_help = "GPUs of each run (default: 1, or all if one run trains at a time)"
    add("--devices_per_run", type=int, metavar="N", help=devices_help)
    add("--only", nargs="+", default=[], metavar="NAME", help="runs to train and test (default: all)")
    add(
        "--overrides",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="settings for all runs; they take precedence over the file",
    )
    add("--rerun", action="store_true", help="retrain runs that were trained with other settings")
    add_launch_options(parser, "run")
    add("--dry_run", action="store_true", help="print the commands or job scripts without running them")
    return parser


def _print_commands(experiment: Experiment, jobs: Sequence[Job]) -> None:
    """Print the commands that are left to run."""
    for words in experiment.prepare if any(job.action != "skip" for job in jobs) else ():
        sys.stdout.write(f"segdet {shlex.join(words)}\n")
    for job in jobs:
        if job.action == "skip":
            sys.stdout.write(f"# {job.name} is finished\n")
            continue
        sys.stdout.write(f"segdet {shlex.join(job.command)}\n")


def _print_table(experiment: Experiment, runs_dir: Path) -> None:
    """Print the table of all runs that have a record, in the order of the file.

    Write the table to ``table.md`` and the page to ``report.html``.
    """
    folders = [
        run_folder(experiment, name, seed, runs_dir) for name in experiment.runs for seed in experiment.seeds
    ]
    folders = [folder for folder in folders if (folder / RECORD_NAME).exists()]
    if not folders:
        return
    # Import here: the charts take a second, and most commands end before they are drawn.
    from segdet.report.page import PAGE_NAME, page_of, write_page

    page = page_of(folders, title=experiment.name)
    finished = [run for run in page.runs if run.record.status == "finished"]
    records, faults = find_records(folders)
    text = table(records, faults=faults, comparisons=Comparisons(group_runs(finished)))
    path = runs_dir / experiment.name / "table.md"
    write_text(path, f"# {experiment.name}\n\n`segdet bench {experiment.path}`\n\n{text}")
    sys.stdout.write(text)
    sys.stdout.flush()
    write_page(page, path.with_name(PAGE_NAME))
    print_status(f"table: {path}\npage: {path.with_name(PAGE_NAME)}")
