"""Detection's scores: COCO's twelve numbers and VOC's average precision, as their evaluators give them."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor

from segdet.data.sample import Prediction, Target
from segdet.metrics.average_precision import Evaluation, Found, Overlaps, Truth
from segdet.metrics.base import Scores
from segdet.metrics.detection_errors import DetectionErrors


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

    With ``masks``, there are COCO's numbers and each class's AP by the masks as well, under the same names after
    ``mask_``: equal to pycocotools' for segmentations. What of each image is kept are the overlaps and not the masks.

    Args:
        class_names: The names of the classes, label 1 first.
        category_ids: The dataset's own id of each class, which ``coco_results`` writes; 1..K if not given.
        masks: See above.
    """

    images: list[Tensor]
    found: list[Tensor]
    truth: list[Tensor]
    pairs: list[Tensor]

    def __init__(
        self, class_names: Sequence[str], category_ids: Sequence[int] | None = None, masks: bool = False
    ) -> None:
        super().__init__()
        self.masks = masks
        self.class_names = list(class_names)
        self.category_ids = list(range(1, len(class_names) + 1) if category_ids is None else category_ids)
        if len(self.category_ids) != len(self.class_names):
            raise ValueError(f"{len(self.category_ids)} category_ids for {len(self.class_names)} class_names")
        # images: int64 [n, 4], id, number of detections, of objects, of pairs; the rows of found [., 7] (box,
        # score, label, the mask's area), truth [., 8] (box, label, iscrowd, difficult, area) and pairs [., 3] (place in
        # the image of a detection and of an object of its class, their masks' overlap) follow its order. A float
        # has no room for an id, which may be any integer.
        for state in ("images", "found", "truth", "pairs"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def empty(self, state: str) -> Tensor:
        """The state of a process without a sample."""
        columns = {"images": 4, "found": 7, "truth": 8, "pairs": 3}[state]
        dtype = torch.int64 if state == "images" else self.precise
        return torch.zeros(0, columns, dtype=dtype, device=self.device)

    def update(
        self, predictions: Sequence[Prediction], targets: Sequence[Target], image_ids: Sequence[int]
    ) -> None:
        """Keep the boxes of a batch, all in the pixels of the original images.

        Args:
            predictions: One per image: ``boxes`` ``[M, 4]``, ``scores`` ``[M]``, ``labels`` ``[M]`` 1..K.
            targets: One per image: ``boxes`` ``[N, 4]``, ``labels`` ``[N]`` 1..K, and where the format has
                them ``iscrowd``, ``difficult`` and ``area`` (the box's if not given), each ``[N]``. Both have
                ``masks``, ``[M, H, W]`` and ``[N, H, W]``, if these are scored.
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
        found = [[prediction[key] for prediction in predictions] for key in ("boxes", "scores", "labels")]
        if self.masks:
            areas, pairs = zip(*map(_overlapping_masks, predictions, targets), strict=True)
        else:
            areas = tuple(torch.zeros(len(labels)) for labels in found[2])
            pairs = (torch.zeros(0, 3),) * len(predictions)
        rows = [
            (int(image_id), len(prediction["labels"]), len(target["labels"]), len(overlaps))
            for prediction, target, image_id, overlaps in zip(
                predictions, targets, image_ids, pairs, strict=True
            )
        ]
        self.images.append(torch.tensor(rows, device=self.device))
        self.found.append(self._columns([*found, [each.to(found[1][0].device) for each in areas]]))
        self.pairs.append(torch.cat(pairs).to(self.device, self.precise))
        boxes, labels = [target["boxes"] for target in targets], [target["labels"] for target in targets]
        no = [torch.zeros_like(each) for each in labels]
        iscrowd = [target.get("iscrowd", none) for target, none in zip(targets, no, strict=True)]
        difficult = [target.get("difficult", none) for target, none in zip(targets, no, strict=True)]
        sizes = [
            target["area"] if "area" in target else _sizes(target["boxes"].to(self.precise)).prod(1)
            for target in targets
        ]
        self.truth.append(self._columns([boxes, labels, iscrowd, difficult, sizes]))

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
        found, truth, overlaps = self._gathered()
        evaluation = Evaluation(self.class_names, found, truth)
        scores = evaluation.coco() | evaluation.voc()
        if self.masks:
            by_mask = Evaluation(self.class_names, found, truth, overlaps).coco()
            scores |= {f"mask_{name}": value for name, value in by_mask.items()}
        return self.numbers(scores)

    def errors(self) -> DetectionErrors:
        """The mistakes so far, of all processes, by the boxes; every process has to ask for them.

        Raises:
            ValueError: If a label is none of 1..K.
        """
        with self.sync_context():
            found, truth, _ = self._gathered()
        return DetectionErrors(self.class_names, found, truth)

    def _gathered(self) -> tuple[Found, Truth, Overlaps]:
        """All boxes with their image's id, and the overlaps of their masks, each image once."""
        images, found, truth, pairs = (
            self.joined(state).cpu().numpy() for state in ("images", "found", "truth", "pairs")
        )
        found, truth, pairs = found.astype(np.float64), truth.astype(np.float64), pairs.astype(np.float64)
        once = np.zeros(len(images), bool)
        once[np.unique(images[:, 0], return_index=True)[1]] = True
        # Pairs by the rows that their detection and object have in all, and then among what is kept.
        first = np.cumsum(images[:, 1:3], 0) - images[:, 1:3]
        of_pairs = pairs[:, :2].astype(np.int64) + np.repeat(first, images[:, 3], 0)
        keep = np.repeat(once, images[:, 1]) & np.isfinite(found).all(1)
        keep_pair = np.repeat(once, images[:, 3]) & keep[of_pairs[:, 0]]
        place = np.cumsum(keep) - 1
        found_images, found = np.repeat(images[:, 0], images[:, 1])[keep], found[keep]
        keep = np.repeat(once, images[:, 2])
        truth_place = np.cumsum(keep) - 1
        truth_images, truth = np.repeat(images[:, 0], images[:, 2])[keep], truth[keep]
        overlaps = Overlaps(
            found[:, 6],
            place[of_pairs[keep_pair, 0]],
            truth_place[of_pairs[keep_pair, 1]],
            pairs[keep_pair, 2],
        )
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
            overlaps,
        )

    def results(self) -> list[dict[str, Any]]:
        """What this process has found, as COCO's results list; see ``coco_results``."""
        found, *_ = self._gathered()
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


def _overlapping_masks(prediction: Prediction, target: Target) -> tuple[Tensor, Tensor]:
    """The areas ``[M]`` of the masks found in an image, and the pairs ``[P, 3]`` of each with an object of its class:
    their places, and their overlap where it is a half or more, by COCO's own library."""
    found, truth = run_lengths(prediction["masks"]), run_lengths(target["masks"])
    areas = torch.from_numpy(np.asarray(rle.area(found), np.float64).reshape(-1))
    if not found or not truth:
        return areas, torch.zeros(0, 3)
    none = torch.zeros(len(truth), dtype=torch.bool)
    ignored = target.get("iscrowd", none).cpu() | target.get("difficult", none).cpu()
    share = rle.iou(found, truth, ignored.numpy().astype(np.uint8))
    same = prediction["labels"].cpu().numpy()[:, None] == target["labels"].cpu().numpy()
    one, other = np.nonzero(same & (share >= 0.5))
    return areas, torch.from_numpy(np.stack([one, other, share[one, other]], 1))


def run_lengths(masks: Tensor) -> list[dict[str, Any]]:
    """Masks ``[N, H, W]`` as COCO's run lengths."""
    by_column = np.asfortranarray(masks.to(torch.uint8).cpu().numpy().transpose(1, 2, 0))
    encoded: list[dict[str, Any]] = rle.encode(by_column) if len(masks) else []
    return encoded


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
