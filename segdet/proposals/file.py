"""Proposal files, to import proposals of other programs and to export proposals.

Images are identified by file name, ``000012.jpg``. Boxes are xyxy in pixels, ``x1`` and ``y1`` exclusive (a box's
width is ``x1 - x0``). Without scores, boxes are listed best first.

``.json``: an object with one entry per image::

    {"000012.jpg": {"boxes": [[156, 97, 351, 270], ...], "scores": [0.9, ...]}, ...}

``.npz``, which is smaller and faster to read: arrays with the boxes of all images concatenated:

- ``names``, strings ``[M]``: the images' file names;
- ``counts``, integers ``[M]``: the number of boxes of each image;
- ``boxes``, float32 ``[N, 4]``, N the sum of ``counts``;
- ``scores``, float32 ``[N]`` (optional).
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segdet.data.proposal_source import ImageProposals, ProposalSource
from segdet.util.errors import BadSample, UserError
from segdet.util.files import write_atomically

if TYPE_CHECKING:
    from segdet.data.formats.reader import Reader


class ProposalFile(ProposalSource):
    """Proposals of another program, from a file.

    Args:
        path: A ``.json`` or ``.npz`` file (see this module).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"ProposalFile({str(self.path)!r})"

    def open(
        self, reader: Reader, indices: Sequence[int] | np.ndarray, workers: int | None = None
    ) -> ImageProposals:
        proposals = load_proposals(self.path)
        names = [reader.image_path(int(index)).name for index in indices]
        missing = [name for name in names if name not in proposals]
        if missing:
            others = f" and {len(missing) - 1:,} more images" if len(missing) > 1 else ""
            raise UserError(
                f"{self.path}: no proposals for {missing[0]}{others}; compute them for the whole split"
            )
        if len(set(names)) < len(names):
            duplicate = next(name for name in names if names.count(name) > 1)
            raise UserError(f"{self.path}: several images of the dataset are named {duplicate}; rename them")
        return _FileProposals(reader, proposals)


class _FileProposals(ImageProposals):
    def __init__(self, reader: Reader, proposals: Mapping[str, np.ndarray]) -> None:
        self.reader = reader
        self.proposals = proposals
        self.bad: list[BadSample] = []

    def boxes(self, index: int) -> np.ndarray:
        return self.proposals[self.reader.image_path(index).name]


def save_proposals(path: Path, proposals: Mapping[str, tuple[np.ndarray, np.ndarray | None]]) -> None:
    """Write boxes float32 ``[N, 4]`` with their scores float32 ``[N]`` (or None) by image file name.

    Scores are written only if all images have them.

    Raises:
        UserError: If ``path`` is neither ``.json`` nor ``.npz``, or cannot be written.
    """
    _kind(path)
    scored = all(scores is not None for _, scores in proposals.values())
    with write_atomically(path, parents=True) as temporary:
        if path.suffix == ".json":
            document: dict[str, dict[str, Any]] = {}
            for name, (boxes, scores) in proposals.items():
                document[name] = {"boxes": boxes.tolist()}
                if scores is not None and scored:
                    document[name]["scores"] = scores.tolist()
            temporary.write_text(json.dumps(document), encoding="utf-8")
        else:
            all_boxes = [boxes for boxes, _ in proposals.values()]
            arrays = {
                "names": np.array(list(proposals), np.str_),
                "counts": np.array([len(boxes) for boxes in all_boxes], np.int64),
                "boxes": np.concatenate([np.zeros((0, 4)), *all_boxes]).astype(np.float32),
            }
            if scored:
                each = [scores for _, scores in proposals.values() if scores is not None]
                arrays["scores"] = np.concatenate([np.zeros(0), *each]).astype(np.float32)
            with temporary.open("wb") as stream:
                np.savez(stream, allow_pickle=False, **arrays)


def load_proposals(path: Path) -> dict[str, np.ndarray]:
    """Return the boxes of each image by file name, float32 ``[N, 4]``, best first.

    Raises:
        UserError: If the file is missing, corrupt or not in the format of this module.
    """
    try:
        return _load_json(path) if _kind(path) == ".json" else _load_npz(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; give a .json or .npz file of proposals") from error
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: not a file of proposals ({error}); write it as segdet proposals --save does"
        ) from error


def check_names(path: Path, readers: Sequence[Reader]) -> None:
    """Raise `UserError` if two images of ``readers`` have the same file name, which identifies them in ``path``."""
    images: dict[str, Path] = {}
    for reader in readers:
        for index in range(len(reader)):
            image = reader.image_path(index)
            if images.setdefault(image.name, image) != image:
                raise UserError(
                    f"--save {path}: {images[image.name]} and {image} have the same name, which identifies images in "
                    "the file; rename one, or save each --split to its own file"
                )


def _kind(path: Path) -> str:
    if path.suffix not in (".json", ".npz"):
        raise UserError(f"{path}: the file of proposals must end in .json or .npz; change the suffix")
    return path.suffix


def _load_json(path: Path) -> dict[str, np.ndarray]:
    document = json.loads(path.read_text(encoding="utf-8"))
    return {
        name: _best_first(np.array(entry["boxes"], np.float32).reshape(-1, 4), entry.get("scores"), name)
        for name, entry in document.items()
    }


def _load_npz(path: Path) -> dict[str, np.ndarray]:
    # The file is opened here, because NumPy does not close a corrupt archive that it opened.
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        names, counts, boxes = file["names"], file["counts"], file["boxes"].astype(np.float32, copy=False)
        scores = file["scores"] if "scores" in file.files else None
    if len(names) != len(counts) or boxes.shape != (counts.sum(), 4):
        raise ValueError(
            f"{len(names)} names, {len(counts)} counts of sum {counts.sum()}, boxes {boxes.shape}"
        )
    if scores is not None and len(scores) != len(boxes):
        raise ValueError(f"{len(boxes)} boxes but {len(scores)} scores")
    stops = np.cumsum(counts)
    return {
        str(name): _best_first(boxes[start:stop], None if scores is None else scores[start:stop], str(name))
        for name, start, stop in zip(names, stops - counts, stops, strict=True)
    }


def _best_first(boxes: np.ndarray, scores: Any, name: str) -> np.ndarray:
    if not (np.isfinite(boxes).all() and (boxes[:, 2:] > boxes[:, :2]).all()):
        raise ValueError(f"{name} has a box that is not x0 < x1, y0 < y1")
    if scores is None:
        return boxes
    scores = np.asarray(scores, np.float32)
    if scores.shape != (len(boxes),) or not np.isfinite(scores).all():
        raise ValueError(f"{name} has {len(boxes)} boxes but not as many finite scores")
    return boxes[np.argsort(-scores, kind="stable")]
