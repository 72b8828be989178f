"""Detection scores: COCO's twelve numbers and VOC's average precision, equal to those of their evaluators."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor
from torchvision.ops import box_area

from segdet.data.sample import Prediction, Target
from segdet.metrics.average_precision import Detections, Evaluation, MaskOverlaps, Objects
from segdet.metrics.base import Scores
from segdet.metrics.detection_errors import DetectionErrors


class DetectionScores(Scores):
    """COCO's twelve numbers, the AP of each class, and VOC's mAP by both of its definitions.

    ``compute`` returns these scores, NaN where there is no object:

    - ``map``, ``map_50``, ``map_75``, ``map_small|medium|large``, ``mar_1|10|100``, ``mar_small|medium|large``: equal
      to pycocotools', with crowds, the annotations' own areas, and at most 100 detections per image and class (Lin et
      al., ECCV 2014);
    - ``ap/<class>``: the AP of the class; ``map`` is the mean over the classes;
    - ``map_voc07``, ``map_voc12``: VOC's mAP at IoU > .5, at eleven recalls (until 2009) and as the area under the
      curve (since 2010), equal to ``voc_eval.py`` of the Fast R-CNN release. Objects marked ``difficult`` and
      detections of them are ignored (Everingham et al., IJCV 2010, section 4.2).

    COCO has no ``difficult`` flag: in its numbers, difficult objects are treated as crowds, so that neither detecting
    nor missing them is an error. In VOC's numbers, crowds are treated as difficult.

    Detections with a box or score that is not finite are left out. An image that occurs twice, for example because a
    sampler pads the last batch of several processes, counts once.

    With ``masks``, COCO's numbers and the AP of each class are also computed for the masks, under the same names with
    the prefix ``mask_``: equal to pycocotools' for segmentations. The state keeps the overlaps, not the masks.

    Args:
        class_names: The names of the classes, label 1 first.
        masks: Whether to score masks.
    """

    images: list[Tensor]
    detections: list[Tensor]
    objects: list[Tensor]
    pairs: list[Tensor]

    def __init__(self, class_names: Sequence[str], masks: bool = False) -> None:
        super().__init__()
        self.masks = masks
        self.class_names = list(class_names)
        # Columns of the states; the rows of the last three are in the order of the images:
        #   images     int64 [., 4]: id, and the numbers of detections, objects and pairs
        #   detections float [., 7]: box, score, label, area of the mask
        #   objects    float [., 8]: box, label, iscrowd, difficult, area
        #   pairs      float [., 3]: index of a detection and of an object of its class in the image, overlap of masks
        # Ids are integers of any size, which floats cannot represent.
        for state in ("images", "detections", "objects", "pairs"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def empty_state(self, state: str) -> Tensor:
        """Return an empty tensor with the columns and dtype of ``state``."""
        columns = {"images": 4, "detections": 7, "objects": 8, "pairs": 3}[state]
        dtype = torch.int64 if state == "images" else self.float_dtype
        return torch.zeros(0, columns, dtype=dtype, device=self.device)

    def update(
        self, predictions: Sequence[Prediction], targets: Sequence[Target], image_ids: Sequence[int]
    ) -> None:
        """Add a batch. All boxes are xyxy in pixels of the original images.

        Args:
            predictions: One per image: ``boxes`` ``[M, 4]``, ``scores`` ``[M]``, ``labels`` ``[M]`` 1..K; and
                ``masks`` ``[M, H, W]`` if masks are scored.
            targets: One per image: ``boxes`` ``[N, 4]``, ``labels`` ``[N]`` 1..K; where the format has them,
                ``iscrowd``, ``difficult`` and ``area`` (by default the box's), each ``[N]``; and ``masks``
                ``[N, H, W]`` if masks are scored.
            image_ids: One per image, unique.

        Raises:
            ValueError: If the arguments differ in length.
        """
        if not len(predictions) == len(targets) == len(image_ids):
            raise ValueError(
                f"{len(predictions)} predictions, {len(targets)} targets and {len(image_ids)} image_ids; "
                "give one of each per image"
            )
        if not predictions:
            return
        boxes, scores, labels = (
            [prediction[key] for prediction in predictions] for key in ("boxes", "scores", "labels")
        )
        if self.masks:
            areas, pairs = zip(*map(_mask_overlaps, predictions, targets), strict=True)
        else:
            areas = tuple(torch.zeros(len(each)) for each in labels)
            pairs = (torch.zeros(0, 3),) * len(predictions)
        rows = [
            (int(image_id), len(found), len(target["labels"]), len(overlaps))
            for image_id, found, target, overlaps in zip(image_ids, labels, targets, pairs, strict=True)
        ]
        self.images.append(torch.tensor(rows, device=self.device))
        mask_areas = [each.to(scores[0].device) for each in areas]
        self.detections.append(self._columns([boxes, scores, labels, mask_areas]))
        self.pairs.append(torch.cat(pairs).to(self.device, self.float_dtype))
        boxes, labels = [target["boxes"] for target in targets], [target["labels"] for target in targets]
        zeros = [torch.zeros_like(each) for each in labels]
        iscrowd = [target.get("iscrowd", zero) for target, zero in zip(targets, zeros, strict=True)]
        difficult = [target.get("difficult", zero) for target, zero in zip(targets, zeros, strict=True)]
        box_areas = [
            target["area"] if "area" in target else box_area(target["boxes"].to(self.float_dtype))
            for target in targets
        ]
        self.objects.append(self._columns([boxes, labels, iscrowd, difficult, box_areas]))

    def _columns(self, columns: Iterable[list[Tensor]]) -> Tensor:
        """Concatenate columns, given as one tensor per image, to one ``[N, C]`` on the metric's device."""
        whole = [torch.cat([part.detach().to(self.float_dtype) for part in parts]) for parts in columns]
        table = torch.cat([column if column.ndim == 2 else column[:, None] for column in whole], 1)
        return table.to(self.device)

    def compute(self) -> dict[str, Tensor]:
        """Return the scores listed above, over all processes.

        Raises:
            ValueError: If a label is not one of 1..K.
        """
        detections, objects, mask_overlaps, _ = self._gathered()
        evaluation = Evaluation(self.class_names, detections, objects)
        scores = evaluation.coco() | evaluation.voc()
        if self.masks:
            by_mask = Evaluation(self.class_names, detections, objects, mask_overlaps).coco()
            scores |= {f"mask_{name}": value for name, value in by_mask.items()}
        return self.to_tensors(scores)

    def errors(self) -> DetectionErrors:
        """Return the errors of the boxes, over all processes. All processes must call this method.

        Raises:
            ValueError: If a label is not one of 1..K.
        """
        with self.sync_context():
            detections, objects, *_ = self._gathered()
        return DetectionErrors(self.class_names, detections, objects)

    def evaluations(self) -> tuple[np.ndarray, Evaluation, Evaluation | None]:
        """Return the evaluation of each image, over all processes. All processes must call this method.

        Returns:
            The ids of all images, ascending; the evaluation of the boxes; that of the masks, if they are scored.

        Raises:
            ValueError: If a label is not one of 1..K.
        """
        with self.sync_context():
            detections, objects, mask_overlaps, images = self._gathered()
        by_box = Evaluation(self.class_names, detections, objects)
        by_mask = Evaluation(self.class_names, detections, objects, mask_overlaps) if self.masks else None
        return images, by_box, by_mask

    def _gathered(self) -> tuple[Detections, Objects, MaskOverlaps, np.ndarray]:
        """Return the finite detections, the objects, the overlaps of their masks, and the ids of all images.

        Each image occurs once; the ids ascend.
        """
        images, detections, objects, pairs = (
            self.concatenated_state(state).cpu().numpy()
            for state in ("images", "detections", "objects", "pairs")
        )
        detections, objects, pairs = (each.astype(np.float64) for each in (detections, objects, pairs))
        keep_image = np.zeros(len(images), bool)
        image_ids, first = np.unique(images[:, 0], return_index=True)
        keep_image[first] = True
        # Convert the pairs' indices within an image to row indices, then to row indices among the kept rows.
        first = np.cumsum(images[:, 1:3], 0) - images[:, 1:3]
        pair_rows = pairs[:, :2].astype(np.int64) + np.repeat(first, images[:, 3], 0)
        keep_detection = np.repeat(keep_image, images[:, 1]) & np.isfinite(detections).all(1)
        keep_pair = np.repeat(keep_image, images[:, 3]) & keep_detection[pair_rows[:, 0]]
        keep_object = np.repeat(keep_image, images[:, 2])
        detection_index, object_index = np.cumsum(keep_detection) - 1, np.cumsum(keep_object) - 1
        detection_images = np.repeat(images[:, 0], images[:, 1])[keep_detection]
        object_images = np.repeat(images[:, 0], images[:, 2])[keep_object]
        detections, objects = detections[keep_detection], objects[keep_object]
        mask_overlaps = MaskOverlaps(
            detections[:, 6],
            detection_index[pair_rows[keep_pair, 0]],
            object_index[pair_rows[keep_pair, 1]],
            pairs[keep_pair, 2],
        )
        for side, labels in (("prediction", detections[:, 5]), ("target", objects[:, 4])):
            wrong = (labels < 1) | (labels > len(self.class_names))
            if wrong.any():
                raise ValueError(
                    f"a {side} has the label {int(labels[wrong][0])}, "
                    f"but the labels are 1..{len(self.class_names)}"
                )
        found = Detections(
            detection_images, detections[:, :4], detections[:, 5].astype(np.int64), detections[:, 4]
        )
        crowd, difficult = (objects[:, 5:7] != 0).T
        labels = objects[:, 4].astype(np.int64)
        truth = Objects(object_images, objects[:, :4], labels, crowd, difficult, objects[:, 7])
        return found, truth, mask_overlaps, image_ids


def _mask_overlaps(prediction: Prediction, target: Target) -> tuple[Tensor, Tensor]:
    """Return the areas ``[M]`` of the predicted masks of an image, and the pairs ``[P, 3]`` that overlap by .5 or more.

    A pair is the index of a detection, the index of an object of its class, and their overlap as pycocotools computes
    it: the IoU, or for ignored objects the intersection over the detection's area.
    """
    found, truth = run_lengths(prediction["masks"]), run_lengths(target["masks"])
    areas = torch.from_numpy(mask_areas(found))
    if not found or not truth:
        return areas, torch.zeros(0, 3)
    none = torch.zeros(len(truth), dtype=torch.bool)
    ignored = target.get("iscrowd", none).cpu() | target.get("difficult", none).cpu()
    overlaps = rle.iou(found, truth, ignored.numpy().astype(np.uint8))
    same_class = prediction["labels"].cpu().numpy()[:, None] == target["labels"].cpu().numpy()
    detections, objects = np.nonzero(same_class & (overlaps >= 0.5))
    return areas, torch.from_numpy(np.stack([detections, objects, overlaps[detections, objects]], 1))


def mask_areas(encoded: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return the areas of run-length encodings, float64 ``[N]``."""
    # pycocotools refuses more than 255 masks at once with NumPy 2.
    return np.array([rle.area(each) for each in encoded], np.float64)


def run_lengths(masks: Tensor) -> list[dict[str, Any]]:
    """Return masks ``[N, H, W]`` as COCO's run-length encodings."""
    by_column = np.asfortranarray(masks.to(torch.uint8).cpu().numpy().transpose(1, 2, 0))
    encoded: list[dict[str, Any]] = rle.encode(by_column) if len(masks) else []
    return encoded
