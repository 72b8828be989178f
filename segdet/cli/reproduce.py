"""``segdet reproduce``: list what differs from a run, train it again, and compare the results."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from segdet.launch.local import run_command
from segdet.runs.comparison import CONFIDENCE, FEWEST_SEEDS, Comparison, Deviation
from segdet.runs.differences import KINDS, Difference
from segdet.runs.folder_layout import REPRODUCTION_NAME, holds_run, shown_path
from segdet.runs.reproduction import Original, compare, find_differences, reproduce
from segdet.util.errors import UserError

IDENTICAL, DIFFERENT, WITHIN_NOISE = 0, 1, 3
"""The exit statuses. After a user's mistake, the status is 2."""

MOST_LISTED = 10
"""The largest number of lines of one kind that are printed. The others are only counted."""


def main(argv: Sequence[str]) -> int:
    """Run ``segdet reproduce RUN``.

    Returns:
        The exit status: 0 if the runs are identical, 1 if they differ, 3 if they differ within the seed noise. With
        ``--check``: 0 if nothing differs, else 1.

    Raises:
        UserError: If the folder holds no run, a file of the dataset is missing, or the training fails.
    """
    arguments = _parser().parse_args(argv)
    original = Original.read(arguments.run)
    if arguments.against is not None:
        comparison, found = compare(original, arguments.against)
        _print_differences(found)
        return _print_comparison(comparison, arguments.against)
    listed = find_differences(original)
    _print_differences(listed)
    if arguments.check:
        return DIFFERENT if listed else IDENTICAL
    folder = arguments.run_dir or _new_folder(arguments.run)
    if holds_run(folder):
        raise UserError(f"{folder}: holds a run; give another --run_dir, or compare with --against {folder}")
    log = folder.with_name(f"{folder.name}.log")

    def run(command: Sequence[str]) -> int:
        sys.stderr.write(f"segdet: training again in {shown_path(folder)}; log: {shown_path(log)}\n")
        return run_command(command, log, "wb")

    comparison, found = reproduce(original, folder, run, listed)
    later = [each for each in found if each not in listed]
    if later:
        _print_differences(later)
    return _print_comparison(comparison, folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segdet reproduce",
        allow_abbrev=False,
        description="List what differs from a run (data, code, settings, packages, hardware), train it again in a new "
        "folder, and compare all metrics and weights.",
        epilog="Exit status: 0 identical, 3 different within the seed noise, 1 different, 2 a mistake. The seed noise "
        f"is estimated from at least {FEWEST_SEEDS} runs: RUN, and runs in the same parent folder with the same "
        "configuration and other seeds.",
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="folder of the run to reproduce")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--check", action="store_true", help="only list what differs; exit status 1 if anything does"
    )
    choice.add_argument(
        "--against", type=Path, metavar="DIR", help="compare with the run in this folder instead of training"
    )
    choice.add_argument(
        "--run_dir", type=Path, metavar="DIR", help="the new folder (default: RUN-reproduced)"
    )
    return parser


def _new_folder(run: Path) -> Path:
    first = run.resolve().with_name(f"{run.resolve().name}-reproduced")
    number = 2
    folder = first
    while folder.exists():
        folder = first.with_name(f"{first.name}-{number}")
        number += 1
    return shown_path(folder)


def _print_differences(found: Sequence[Difference]) -> None:
    if not found:
        sys.stdout.write("no difference from the original in data, code, settings, packages and hardware\n")
    for kind in KINDS:
        lines = [str(each) for each in found if each.kind == kind]
        sys.stdout.writelines(f"{line}\n" for line in lines[:MOST_LISTED])
        if len(lines) > MOST_LISTED:
            sys.stdout.write(f"{kind}: {len(lines) - MOST_LISTED:,} more differences\n")
    sys.stdout.flush()


def _print_comparison(comparison: Comparison, folder: Path) -> int:
    lines = [
        f"{comparison.outcome}: {comparison.metrics:,} metric values and {comparison.weights:,} weights of "
        f"{' and '.join(comparison.checkpoints) or 'no checkpoint'}"
    ]
    for title, deviations in (
        ("metric values", comparison.metric_deviations),
        ("weights", comparison.weight_deviations),
    ):
        if deviations:
            lines.append(f"{len(deviations):,} {title} differ, the largest first:")
            lines += [f"  {_shown(each)}" for each in deviations[:MOST_LISTED]]
    if comparison.untested is not None:
        lines.append(f"the scores of the test are not compared, because {comparison.untested} is not tested")
    if comparison.outcome != "identical":
        lines.append(_noise(comparison))
    lines.append(f"all differences: {folder / REPRODUCTION_NAME}")
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return {"identical": IDENTICAL, "different": DIFFERENT, "within seed noise": WITHIN_NOISE}[
        comparison.outcome
    ]


def _shown(deviation: Deviation) -> str:
    if deviation.before is None and deviation.now is None:
        return f"{deviation.name}: missing in one run, or of another shape"
    if deviation.now is None and ": " in deviation.name:
        return f"{deviation.name}: by up to {deviation.difference:.3g}, its largest value is {deviation.before:.3g}"
    before, now = ("none" if value is None else f"{value:.9g}" for value in (deviation.before, deviation.now))
    return f"{deviation.name}: {before} -> {now}"


def _noise(comparison: Comparison) -> str:
    noise = comparison.noise
    seeds = ", ".join(map(str, noise.seeds))
    if not noise.limits:
        return (
            f"the seed noise is unknown: at least {FEWEST_SEEDS} runs with the same configuration and different seeds "
            f"are needed in the folder that contains the original (found seeds: {seeds or 'none'})"
        )
    limits = ", ".join(f"{name} {limit:.4f}" for name, limit in noise.limits.items())
    return (
        f"seed noise: two runs with different seeds differ by up to {limits} ({CONFIDENCE:.0%} of pairs, estimated "
        f"from seeds {seeds})"
    )
