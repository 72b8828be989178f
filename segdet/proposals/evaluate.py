"""Scores of region proposals on the objects of a dataset: recall and MABO by number of boxes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from segdet.data.cleaning import clean_objects
from segdet.data.images import image_size
from segdet.metrics.proposals import ProposalScores
from segdet.proposals.cache import CachedProposals
from segdet.util.disk_cache import total_size
from segdet.util.errors import BadSample
from segdet.util.tables import markdown_table

if TYPE_CHECKING:
    from segdet.data.formats.reader import Reader
    from segdet.data.proposal_source import ProposalSource

ALL_BOXES = 100_000
"""A number of boxes that no proposer reaches. It stands for the scores of all boxes."""


@dataclass
class Evaluation:
    """The scores of one proposer on all splits of a dataset."""

    scores: ProposalScores  # recall and MABO by number of boxes; the last number is `ALL_BOXES`
    left_out: list[BadSample] = field(default_factory=list)  # the images that cannot be read
    folder: Path | None = None  # the folder of the cached proposals; None if they are not cached
    bytes: int = 0  # the size of the cached proposals
    computed: int = 0  # the number of images that were computed rather than found in the cache
    seconds: float = 0.0  # the time to compute the proposals or find them in the cache
    # The boxes of each image by file name, and their scores if they have any.
    boxes: dict[str, tuple[np.ndarray, np.ndarray | None]] = field(default_factory=dict)


def evaluate(
    source: ProposalSource,
    readers: Sequence[Reader],
    counts: Sequence[int],
    limit: int | None = None,
    workers: int | None = None,
    keep_boxes: bool = False,
) -> Evaluation:
    """Score the proposals of all splits; compute proposals that are not in the cache.

    Args:
        source: The proposals.
        readers: The splits.
        counts: The numbers of boxes in the table; curves have more points.
        limit: The number of images of each split; None for all.
        workers: The number of processes that compute; None for one per core.
        keep_boxes: Whether to return the boxes.
    """
    numbers = np.unique(np.concatenate([np.geomspace(1, 1e4, 60).astype(int), counts, [ALL_BOXES]]))
    result = Evaluation(ProposalScores(numbers))
    for reader in readers:
        indices = range(len(reader))[:limit]
        start = time.perf_counter()
        proposals = source.open(reader, indices, workers)
        if isinstance(proposals, CachedProposals):
            result.seconds += time.perf_counter() - start
            result.computed += proposals.computed
            result.bytes += total_size(proposals.files())
            result.folder = proposals.folder
        for index in indices:
            try:
                boxes = proposals.boxes(index)
                objects, labels = _objects(reader, index)
            except BadSample as error:
                result.left_out.append(error)
                continue
            result.scores.update(boxes, objects, labels)
            if keep_boxes:
                scores = proposals.scored(index)[1] if isinstance(proposals, CachedProposals) else None
                result.boxes[reader.image_path(index).name] = boxes, scores
    return result


def _objects(reader: Reader, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes and labels of an image's objects except crowds, difficult and degenerate objects."""
    size = reader.declared_size(index) or image_size(reader.image_path(index))
    objects, _ = clean_objects(reader.objects(index), size)
    objects = objects.select(~(objects.iscrowd | objects.difficult))
    return objects.boxes, objects.labels


def scores_table(results: Mapping[str, ProposalScores], counts: Sequence[int]) -> str:
    """Return recall and MABO as a Markdown table with a row for each proposer and number of boxes."""
    rows = [["proposer", "boxes", "recall@.5", "recall@.7", "MABO"]]
    for name, scores in results.items():
        columns = scores.recall(0.5), scores.recall(0.7), scores.mabo()
        # Counts beyond the mean number of boxes would repeat the row of all boxes.
        shown = [count for count in sorted(set(counts)) if count < scores.boxes_per_image]
        for count in [*shown, scores.counts[-1]]:
            at = scores.counts.tolist().index(count)
            number = f"all ({scores.boxes_per_image:,.0f})" if count == scores.counts[-1] else f"{count:,}"
            rows.append([name, number, *(f"{values[at]:.3f}" for values in columns)])
    return markdown_table(rows)
