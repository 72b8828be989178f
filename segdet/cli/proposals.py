"""``segdet proposals``: compute the region proposals of a dataset and score them on its objects."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segdet.util.errors import UserError, check_range
from segdet.util.nouns import counted

if TYPE_CHECKING:
    from segdet.data.proposal_source import ProposalSource

_SEARCHES = ("single", "fast", "quality")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``segdet proposals ROOT`` and return the exit status."""
    from segdet.cli.arguments import CommandParser, run_command

    parser = CommandParser(
        "segdet proposals", "Compute the region proposals of a dataset, cache them, and score them on its objects."
    )  # fmt: skip
    parser.add_dataset_arguments()
    parser.add_argument(
        "--proposer", nargs="+", default=["fast"], metavar="NAME",
        help="single, fast or quality (Selective Search), windows (uniform ones), the folder or .ckpt file of a "
        "trained FasterRCNN (its RPN), or a .json or .npz file; several are compared (default: fast)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the ranking (default: 0)")
    parser.add_argument(
        "--min_width", type=int, default=20, metavar="PIXELS",
        help="minimum width and height of Selective Search's boxes (default: 20)",
    )  # fmt: skip
    parser.add_argument(
        "--counts", type=int, nargs="+", default=[100, 300, 1000, 2000], metavar="N",
        help="numbers of best boxes to score; all boxes are scored as well (default: 100 300 1000 2000)",
    )  # fmt: skip
    parser.add_argument("--limit", type=int, metavar="N", help="use only the first N images of each split")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="number of processes (default: one per core)"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the curves to this file")
    parser.add_argument(
        "--save", type=Path, metavar="FILE",
        help="write the proposals to this .json or .npz file (only with one proposer)",
    )  # fmt: skip
    return run_command(parser, argv, _main)


def _main(arguments: argparse.Namespace) -> int:
    _check(arguments)
    sources = {name: _source(name, arguments) for name in dict.fromkeys(arguments.proposer)}

    from segdet.cli.arguments import check_output, dataset_from
    from segdet.proposals.evaluate import evaluate, scores_table
    from segdet.proposals.file import check_names, save_proposals

    arguments.task = "detection"
    dataset = dataset_from(arguments)
    readers = [dataset.open(split) for split in dataset.splits]
    if arguments.save:
        check_names(arguments.save, readers)
    # The computation may take hours, so the output files are checked first.
    check_output("--save", arguments.save)
    check_output("--plot", arguments.plot, (".png", ".jpg", ".jpeg", ".pdf", ".svg"))
    notes: dict[str, None] = {}
    results = {}
    for name, source in sources.items():
        evaluation = evaluate(
            source, readers, arguments.counts, arguments.limit, arguments.workers, bool(arguments.save)
        )
        results[name] = evaluation.scores
        notes.update(dict.fromkeys(f"Left out: {error}" for error in evaluation.left_out))
        if evaluation.folder is not None:
            note = f"{name}: {evaluation.bytes / 1e6:,.1f} MB in {evaluation.folder}"
            if evaluation.computed:
                note += f"; {counted(evaluation.computed, 'image')} computed in {evaluation.seconds:,.1f} s"
            notes[note] = None
        if arguments.save:
            save_proposals(arguments.save, evaluation.boxes)
            notes[str(arguments.save)] = None
    title = f"{dataset.root} ({', '.join(dataset.splits)})"
    first = next(iter(results.values()))
    sys.stdout.write(f"{title}: {counted(len(first.best), 'object')} in {counted(first.images, 'image')}\n\n")
    sys.stdout.write(scores_table(results, arguments.counts) + "\n")
    for note in notes:
        sys.stdout.write(f"\n{note}\n")
    if arguments.plot:
        from segdet.proposals.plot import plot_scores

        plot_scores(results, arguments.plot, title)
        sys.stdout.write(f"\n{arguments.plot}\n")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    for name in ("limit", "workers"):
        value = getattr(arguments, name)
        if value is not None:
            check_range(f"--{name}", value, least=1)
    check_range("--counts", min(arguments.counts), least=1)
    if arguments.save and len(arguments.proposer) > 1:
        raise UserError(
            f"--save {arguments.save}: the file holds the boxes of one proposer; give one --proposer"
        )
    if arguments.save and arguments.save.suffix not in (".json", ".npz"):
        raise UserError(
            f"--save {arguments.save}: the file of proposals must end in .json or .npz; change the suffix"
        )
    if arguments.task == "segmentation":
        raise UserError("--task segmentation: proposals are scored on boxes of objects; leave the option out")


def _source(name: str, arguments: argparse.Namespace) -> ProposalSource:
    from segdet.proposals import ProposalFile, SelectiveSearch, UniformWindows

    if name in _SEARCHES:
        return SelectiveSearch(name, min_width=arguments.min_width, seed=arguments.seed)  # type: ignore[arg-type]
    if name == "windows":
        return UniformWindows(seed=arguments.seed)
    if name.endswith((".json", ".npz")):
        return ProposalFile(name)
    if name.endswith(".ckpt") or Path(name).is_dir():
        from segdet.detection.rpn_proposer import RPN

        return RPN(name)
    known = ", ".join((*_SEARCHES, "windows"))
    raise UserError(
        f"--proposer {name}: unknown; choose {known}, the folder of a run of FasterRCNN, or a .ckpt, .json or .npz "
        "file"
    )
