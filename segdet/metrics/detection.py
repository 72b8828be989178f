"""Detection's scores: COCO's twelve numbers and VOC's average precision, as their evaluators give them."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segdet.data.sample import Prediction, Target
from segdet.metrics.average_precision import Evaluation, Found, Truth
from segdet.metrics.base import Scores


class DetectionScores(Scores):
    """COCO's twelve numbers, each class's AP, and VOC's mAP by both of its definitions.

    ``compute`` gives, NaN where there is no object to be found,

    - ``map``, ``map_50``, ``map_75``, ``map_small|medium|large``, ``mar_1|10|100``,
      ``mar_small|medium|large``: equal to pycocotools', with crowds, the annotations' own areas, and at
      most 100 detections an image and class;
    - ``ap/<class>``: the part of ``map`` that is the class's;
    - ``map_voc07``, ``map_voc12``: VOC's mAP at IoU > .5, by eleven recalls as until 2009 and as the
      area under the curve as since. Objects marked ``difficult`` are not counted, and detections of
      them neither.

    In COCO's numbers, which know no ``difficult``, such objects are treated as crowds: detections on them
    are neither right nor wrong and they need not be found, which is what the flag asks for in VOC.
    VOC's numbers count crowds as ``difficult`` for the same reason.

    Detections with a box or score that is not finite are left out, as they can be no answer. An image that
    comes twice (samplers that fill up the last round of several processes) counts once.

    Args:
        class_names: The names of the classes, label 1 first.
        category_ids: The dataset's own id of each class, which ``coco_results`` writes; 1..K if not given.
    """

    images: list[Tensor]
    found: list[Tensor]
    truth: list[Tensor]

    def __init__(self, class_names: Sequence[str], category_ids: Sequence[int] | None = None) -> None:
        super().__init__()
        self.class_names = list(class_names)
        self.category_ids = list(range(1, len(class_names) + 1) if category_ids is None else category_ids)
        if len(self.category_ids) != len(self.class_names):
            raise ValueError(f"{len(self.category_ids)} category_ids for {len(self.class_names)} class_names")
        # images: int64 [n, 3], id, number of detections, number of objects; the rows of found [., 6] (box,
        # score, label) and truth [., 8] (box, label, iscrowd, difficult, area) follow its order. A float has
        # no room for an id, which may be any integer.
        for state in ("images", "found", "truth"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def empty(self, state: str) -> Tensor:
        """The state of a process without a sample."""
        columns = {"images": 3, "found": 6, "truth": 8}[state]
        dtype = torch.int64 if state == "images" else self.precise
        return torch.zeros(0, columns, dtype=dtype, device=self.device)

    def update(
        self, predictions: Sequence[Prediction], targets: Sequence[Target], image_ids: Sequence[int]
    ) -> None:
        """Keep the boxes of a batch, all in the pixels of the original images.

        Args:
            predictions: One per image: ``boxes`` ``[M, 4]``, ``scores`` ``[M]``, ``labels`` ``[M]`` 1..K.
            targets: One per image: ``boxes`` ``[N, 4]``, ``labels`` ``[N]`` 1..K, and where the format has
                them ``iscrowd``, ``difficult`` and ``area`` (the box's if not given), each ``[N]``.
            image_ids: One per image, different for different images.

        Raises:
            ValueError: If the three differ in length.
        """
        if not len(predictions) == len(targets) == len(image_ids):
            raise ValueError(
                f"{len(predictions)} predictions, {len(targets)} targets and {len(image_ids)} image_ids; "
                "give one of each per image"
            )
        if not predictions:
            return
        rows = [
            (int(image_id), len(prediction["labels"]), len(target["labels"]))
            for prediction, target, image_id in zip(predictions, targets, image_ids, strict=True)
        ]
        self.images.append(torch.tensor(rows, device=self.device))
        found = [[prediction[key] for prediction in predictions] for key in ("boxes", "scores", "labels")]
        self.found.append(self._columns(found))
        boxes, labels = [target["boxes"] for target in targets], [target["labels"] for target in targets]
        no = [torch.zeros_like(each) for each in labels]
        iscrowd = [target.get("iscrowd", none) for target, none in zip(targets, no, strict=True)]
        difficult = [target.get("difficult", none) for target, none in zip(targets, no, strict=True)]
        areas = [
            target["area"] if "area" in target else _sizes(target["boxes"].to(self.precise)).prod(1)
            for target in targets
        ]
        self.truth.append(self._columns([boxes, labels, iscrowd, difficult, areas]))

    def _columns(self, columns: Iterable[list[Tensor]]) -> Tensor:
        """Columns, each in one piece per image, as one ``[N, C]`` on the metric's device."""
        whole = [torch.cat([piece.detach().to(self.precise) for piece in pieces]) for pieces in columns]
        return torch.cat([column if column.ndim == 2 else column[:, None] for column in whole], 1).to(
            self.device
        )

    def compute(self) -> dict[str, Tensor]:
        """The scores so far, of all processes: see the class.

        Raises:
            ValueError: If a label is none of 1..K.
        """
        evaluation = Evaluation(self.class_names, *self._gathered())
        return self.numbers(evaluation.coco() | evaluation.voc())

    def _gathered(self) -> tuple[Found, Truth]:
        """All boxes with their image's id, each image once."""
        images, found, truth = (self.joined(state).cpu().numpy() for state in ("images", "found", "truth"))
        found, truth = found.astype(np.float64), truth.astype(np.float64)
        once = np.zeros(len(images), bool)
        once[np.unique(images[:, 0], return_index=True)[1]] = True
        keep = np.repeat(once, images[:, 1]) & np.isfinite(found).all(1)
        found_images, found = np.repeat(images[:, 0], images[:, 1])[keep], found[keep]
        keep = np.repeat(once, images[:, 2])
        truth_images, truth = np.repeat(images[:, 0], images[:, 2])[keep], truth[keep]
        for side, labels in (("prediction", found[:, 5]), ("target", truth[:, 4])):
            wrong = (labels < 1) | (labels > len(self.class_names))
            if wrong.any():
                raise ValueError(
                    f"a {side} has the label {int(labels[wrong][0])}, "
                    f"but the labels are 1..{len(self.class_names)}"
                )
        return (
            Found(found_images, found[:, :4], found[:, 5].astype(np.int64), found[:, 4]),
            Truth(
                truth_images,
                truth[:, :4],
                truth[:, 4].astype(np.int64),
                truth[:, 5] != 0,
                truth[:, 6] != 0,
                truth[:, 7],
            ),
        )

    def results(self) -> list[dict[str, Any]]:
        """What this process has found, as COCO's results list; see ``coco_results``."""
        found, _ = self._gathered()
        return _results(found, self.category_ids)

    def write_results(self, path: Path | str) -> None:
        """Write ``results()`` as the JSON file that COCO's tools and servers read."""
        Path(path).write_text(json.dumps(self.results()), encoding="utf-8")


def coco_results(
    predictions: Sequence[Prediction], image_ids: Sequence[int], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Predictions in the pixels of the original images as COCO's results list.

    Args:
        predictions: One per image.
        image_ids: One per image.
        category_ids: The dataset's id of each class, label 1 first.

    Returns:
        One ``{"image_id", "category_id", "bbox": [x, y, width, height], "score"}`` per box.
    """
    if not predictions:
        return []
    boxes, scores, labels = (
        np.concatenate([prediction[key].detach().cpu().double().numpy() for prediction in predictions])
        for key in ("boxes", "scores", "labels")
    )
    images = np.repeat(np.asarray(image_ids), [len(prediction["labels"]) for prediction in predictions])
    return _results(Found(images, boxes, labels.astype(np.int64), scores), category_ids)


def _results(found: Found, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    categories = np.asarray(category_ids)[found.labels - 1]
    bboxes = np.concatenate([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]], 1)
    return [
        {"image_id": image, "category_id": category, "bbox": box, "score": score}
        for image, category, box, score in zip(
            found.images.tolist(),
            categories.tolist(),
            bboxes.tolist(),
            found.scores.tolist(),
            strict=True,
        )
    ]


def _sizes(boxes: Tensor) -> Tensor:
    """The widths and heights ``[N, 2]`` of xyxy boxes ``[N, 4]``."""
    return boxes[:, 2:] - boxes[:, :2]
