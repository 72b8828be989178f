"""``segdet proposals``: computes the region proposals of a dataset and says how well they cover its objects."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segdet.util.errors import UserError
from segdet.util.tables import markdown_table

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

    from segdet.data.formats.reader import Reader
    from segdet.data.proposer import ProposalSource
    from segdet.metrics.proposals import ProposalScores

_SEARCHES = ("single", "fast", "quality")
_INK, _GRID = "#1d2430", "#e6e9ef"
_COLOURS = ("#3b7dd8", "#f2a33a", "#4fb286", "#c65b8f", "#7a6ff0", "#8a94a6")


def main(argv: Sequence[str] | None = None) -> int:
    """``segdet proposals ROOT``: returns the exit status."""
    from segdet.data.formats.detect import CommandParser, run

    parser = CommandParser(
        "segdet proposals", "Compute region proposals of a dataset, keep them, and score them by its objects."
    )
    parser.add_dataset_arguments()
    parser.add_argument(
        "--proposer", nargs="+", default=["fast"], metavar="NAME",
        help="single, fast or quality (Selective Search), windows (uniform ones), the folder or .ckpt file of a "
        "trained FasterRCNN (its RPN), or a .json or .npz file; several are compared (default: fast)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the ranking (default: 0)")
    parser.add_argument(
        "--min_width", type=int, default=20, metavar="PIXELS",
        help="Selective Search leaves out boxes that are narrower or lower (default: 20)",
    )  # fmt: skip
    parser.add_argument(
        "--counts", type=int, nargs="+", default=[100, 300, 1000, 2000], metavar="N",
        help="the numbers of boxes to score (default: 100 300 1000 2000); all are scored as well",
    )  # fmt: skip
    parser.add_argument("--limit", type=int, metavar="N", help="the first so many images of each split alone")
    parser.add_argument("--workers", type=int, metavar="N", help="processes; one per core when not given")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the curves there")
    parser.add_argument(
        "--save", type=Path, metavar="FILE", help="write the proposals there, as .json or .npz (one proposer)"
    )
    return run(parser, argv, _main)


def _main(arguments: argparse.Namespace) -> int:
    for name in ("limit", "workers"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: must be 1 or more")
    if min(arguments.counts) < 1:
        raise UserError(f"--counts {min(arguments.counts)}: must be 1 or more")
    if arguments.save and len(arguments.proposer) > 1:
        raise UserError(f"--save {arguments.save}: holds the boxes of one proposer; name one --proposer")
    if arguments.save and arguments.save.suffix not in (".json", ".npz"):
        raise UserError(f"--save {arguments.save}: proposals are kept in .json or .npz files")
    if arguments.task == "segmentation":
        raise UserError("--task segmentation: proposals are scored by the boxes of objects; leave it out")
    arguments.task = "detection"
    sources = {name: _source(name, arguments) for name in dict.fromkeys(arguments.proposer)}

    from segdet.data.formats.detect import check_output, dataset_from

    dataset = dataset_from(arguments)
    readers = [dataset.open(split) for split in dataset.splits]
    if arguments.save:
        _check_names(arguments.save, readers)
    # Before what may take hours, and not after it.
    check_output("--save", arguments.save)
    check_output("--plot", arguments.plot, (".png", ".jpg", ".jpeg", ".pdf", ".svg"))
    notes: dict[str, None] = {}
    results = {name: _score(name, source, readers, arguments, notes) for name, source in sources.items()}
    title = f"{dataset.root} ({', '.join(dataset.splits)})"
    first = next(iter(results.values()))
    sys.stdout.write(f"{title}: {len(first.best):,} objects in {first.images:,} images\n\n")
    sys.stdout.write(table(results, arguments.counts) + "\n")
    for note in notes:
        sys.stdout.write(f"\n{note}\n")
    if arguments.plot:
        plot(results, arguments.plot, title)
        sys.stdout.write(f"\n{arguments.plot}\n")
    return 0


def _check_names(file: Path, readers: Sequence[Reader]) -> None:
    """Raises `UserError` where two images have one name, by which alone a file of proposals knows them."""
    paths: dict[str, Path] = {}
    for reader in readers:
        for index in range(len(reader)):
            path = reader.image_path(index)
            if paths.setdefault(path.name, path) != path:
                raise UserError(
                    f"--save {file}: {paths[path.name]} and {path} have one name, by which the file would know them; "
                    "rename one, or save each --split in a file of its own"
                )


def _source(name: str, arguments: argparse.Namespace) -> ProposalSource:
    from segdet.proposals import RPN, ProposalFile, SelectiveSearch, UniformWindows

    if name in _SEARCHES:
        return SelectiveSearch(name, min_width=arguments.min_width, seed=arguments.seed)  # type: ignore[arg-type]
    if name == "windows":
        return UniformWindows(seed=arguments.seed)
    if name.endswith((".json", ".npz")):
        return ProposalFile(name)
    if name.endswith(".ckpt") or Path(name).is_dir():
        return RPN(name)
    known = ", ".join((*_SEARCHES, "windows"))
    raise UserError(
        f"--proposer {name}: there is no such one; choose {known}, the folder of a run of FasterRCNN, or a .ckpt, "
        ".json or .npz file"
    )


def _score(
    name: str,
    source: ProposalSource,
    readers: Sequence[Reader],
    arguments: argparse.Namespace,
    notes: dict[str, None],
) -> ProposalScores:
    """The scores of one proposer over all splits; what there is to tell besides goes into ``notes``."""
    import numpy as np

    from segdet.data.result_cache import file_sizes
    from segdet.metrics.proposals import ProposalScores
    from segdet.proposals.cache import CachedProposals
    from segdet.proposals.file import save_proposals
    from segdet.util.errors import BadSample

    # The last number stands for all boxes; a hundred thousand is more than any proposer has.
    counts = np.unique(np.concatenate([np.geomspace(1, 1e4, 60).astype(int), arguments.counts, [100_000]]))
    scores = ProposalScores(counts)
    saved: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
    computed, size, seconds, folder = 0, 0, 0.0, None
    for reader in readers:
        indices = range(len(reader))[: arguments.limit]
        start = time.perf_counter()
        proposals = source.open(reader, indices, arguments.workers)
        if isinstance(proposals, CachedProposals):
            seconds += time.perf_counter() - start
            computed += proposals.computed
            size += file_sizes(proposals.files())
            folder = proposals.folder
        for index in indices:
            try:
                boxes = proposals.boxes(index)
                objects, labels = _objects(reader, index)
            except BadSample as error:
                notes[f"Left out: {error}"] = None
                continue
            scores.add(boxes, objects, labels)
            if arguments.save:
                ranks = proposals.scored(index)[1] if isinstance(proposals, CachedProposals) else None
                saved[reader.image_path(index).name] = boxes, ranks
    if folder is not None:
        told = f"{name}: {size / 1e6:,.1f} MB in {folder}"
        if computed:
            told += f"; {computed:,} images computed in {seconds:,.1f} s"
        notes[told] = None
    if arguments.save:
        save_proposals(arguments.save, saved)
        notes[str(arguments.save)] = None
    return scores


def _objects(reader: Reader, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and labels of the objects that are to be found: no crowds, nothing difficult, nothing degenerate."""
    from segdet.data.cleaning import clean_objects
    from segdet.data.images import image_size

    size = reader.declared_size(index) or image_size(reader.image_path(index))
    objects, _ = clean_objects(reader.objects(index), size)
    objects = objects.select(~(objects.iscrowd | objects.difficult))
    return objects.boxes, objects.labels


def table(results: Mapping[str, ProposalScores], counts: Sequence[int]) -> str:
    """Recall and MABO as a Markdown table: a line for each proposer and number of boxes."""
    rows = [["proposer", "boxes", "recall@.5", "recall@.7", "MABO"]]
    for name, scores in results.items():
        half, strict, mabo = scores.recall(0.5), scores.recall(0.7), scores.mabo()
        # More boxes than there are say what all of them say.
        shown = [count for count in sorted(set(counts)) if count < scores.boxes_per_image]
        for count in [*shown, scores.counts[-1]]:
            at = scores.counts.tolist().index(count)
            number = f"all ({scores.boxes_per_image:,.0f})" if count == scores.counts[-1] else f"{count:,}"
            rows.append([name, number, *(f"{value[at]:.3f}" for value in (half, strict, mabo))])
    return markdown_table(rows)


def plot(results: Mapping[str, ProposalScores], path: Path, title: str = "") -> None:
    """Draw recall and MABO against the number of boxes, and recall against overlap, as one PNG at ``path``."""
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15, wspace=0.03)
    figure = Figure(figsize=(15, 4.4), dpi=110, facecolor="white", layout=layout)
    figure.suptitle(title, color=_INK, fontsize=13, x=0.012, ha="left")
    panels = figure.subplots(1, 4)
    thresholds = np.linspace(0.5, 1, 51)
    for (name, scores), colour in zip(results.items(), _COLOURS * len(results), strict=False):
        # Up to the mean number of boxes, beyond which most images have no more to give; there the dot is all boxes'.
        drawn = scores.counts < max(2, scores.boxes_per_image)
        counts = [*scores.counts[drawn], max(1, scores.boxes_per_image)]
        for panel, values in zip(
            panels, (scores.recall(0.5), scores.recall(0.7), scores.mabo()), strict=False
        ):
            panel.plot(
                counts, [*values[drawn], values[-1]], color=colour, linewidth=1.8, label=name,
                marker="o", markevery=[-1], markersize=5,
            )  # fmt: skip
        at = int(np.searchsorted(scores.counts, 1000))
        best = scores.best[:, at]
        recalls = [(best >= threshold).mean() if len(best) else np.nan for threshold in thresholds]
        panels[3].plot(thresholds, recalls, color=colour, linewidth=1.8, label=name)
    most = max((scores.boxes_per_image for scores in results.values()), default=10)
    for panel, text in zip(panels, ("Recall at IoU .5", "Recall at IoU .7", "MABO"), strict=False):
        panel.set_xscale("log")
        panel.set_xlim(1, most * 1.4)
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        _tidy(panel, text, "boxes an image")
    panels[3].set_xlim(0.5, 1)
    _tidy(panels[3], "Recall of the first 1,000 boxes", "IoU")
    panels[0].legend(frameon=False, fontsize=8.5, labelcolor=_INK, loc="upper left")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise UserError(f"--plot {path}: cannot be written ({error})") from error


def _tidy(axes: Axes, title: str, below: str) -> None:
    axes.set_title(title, loc="left", color=_INK, fontsize=10.5, pad=8)
    axes.set_ylim(0, 1)
    axes.set_xlabel(below, color="#5b6472", fontsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b8bfca")
    axes.tick_params(colors="#5b6472", labelsize=8, length=3)
    axes.tick_params(which="minor", length=0)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
