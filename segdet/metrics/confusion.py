"""Scores of semantic segmentation from one confusion matrix of the whole dataset."""

from collections.abc import Sequence

import torch
from torch import Tensor

from segdet.data.sample import IGNORE
from segdet.metrics.base import Scores

_VALUES = 256
"""The number of values of a uint8 mask."""


def classes_of(logits: Tensor) -> Tensor:
    """Return the class of the largest logit: from ``[B, C, H, W]`` or ``[C, H, W]``, int64 ``[B, H, W]`` or ``[H, W]``.

    The result equals ``logits.argmax(-3)``: the first of several maxima. This function is much faster on the CPU, where
    argmax over a dimension that is not the last in memory handles one pixel at a time.
    """
    logits = logits.detach()
    classes = logits.shape[-3]
    if logits.device.type != "cpu" or logits.stride(-3) == 1 or classes > _VALUES:
        return logits.max(-3).indices
    # Compare whole maps, which are contiguous. A class that exceeds all previous ones has the largest index so far, so
    # the maximum of the indices is the index of the maximum.
    first, *others = logits.unbind(-3)
    maximum = first.clone()
    best = torch.zeros_like(maximum, dtype=torch.uint8)
    for index, other in enumerate(others, 1):
        larger = (other > maximum).view(torch.uint8).mul_(index)
        torch.maximum(best, larger, out=best)
        torch.maximum(maximum, other, out=maximum)
    return best.long()


class SegmentationScores(Scores):
    """Mean IoU, pixel accuracy, class accuracy and the IoU of each class.

    As in VOC, Cityscapes and CamVid, all are computed from one confusion matrix over all pixels of the dataset, not
    averaged over images. The IoU of a class is ``TP / (TP + FP + FN)`` (Everingham et al., IJCV 2015). ``miou`` equals
    torchmetrics' multiclass ``JaccardIndex``.

    ``compute`` returns

    - ``miou``: the mean IoU of the classes that occur in the target or in the prediction;
    - ``pixel_acc``: the fraction of pixels with the correct class (G in SegNet, PAMI 2017, section 4);
    - ``class_acc``: the mean recall of the classes that occur in the target (C in SegNet);
    - ``iou/<class>``: the IoU of a class; NaN if neither target nor prediction contains it.

    Pixels with the target ``ignore_index`` are left out. The masks must have the original resolution.

    Args:
        class_names: The names of the mask values 0..C-1.
        ignore_index: The mask value, 0..255, of pixels to ignore.

    Attributes:
        confusion: int64 ``[C, C]``. Rows are target classes, columns predicted classes.
    """

    confusion: Tensor
    image_rows: list[Tensor]

    def __init__(self, class_names: Sequence[str], ignore_index: int = IGNORE) -> None:
        super().__init__()
        if not class_names or len(class_names) > _VALUES:
            raise ValueError(f"class_names: {len(class_names)} names, but a mask has 1 to {_VALUES} classes")
        if not 0 <= ignore_index < _VALUES:
            raise ValueError(
                f"ignore_index: {ignore_index} is not a mask value; give one of 0..{_VALUES - 1}"
            )
        self.class_names = list(class_names)
        self.ignore_index = ignore_index
        classes = len(self.class_names)
        self.add_state("confusion", torch.zeros(classes, classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.keeps_images = False

    def keep_images(self) -> None:
        """Keep the confusion matrix of each image from the next update on, in the state ``image_rows``.

        Its rows are int64 ``[., 4]``: the id of the image, the true class, the predicted class and the number of
        pixels. Entries that are zero are left out, except for the first of each image.
        """
        if not self.keeps_images:
            self.keeps_images = True
            self.add_state("image_rows", [], dist_reduce_fx="cat")

    def empty_state(self, state: str) -> Tensor:
        """Return an empty tensor with the columns of ``state``."""
        return torch.zeros(0, 4, dtype=torch.int64, device=self.device)

    def update(self, prediction: Tensor, target: Tensor, image_id: int | None = None) -> None:
        """Add the pixels of a batch or of one image.

        Args:
            prediction: int64 ``[B, H, W]`` or ``[H, W]`` with values 0..C-1, as from `classes_of`.
            target: Of the same shape, with values 0..C-1 or ``ignore_index``.
            image_id: The id of the image, after `keep_images`.

        Raises:
            ValueError: If the shapes differ, a value is out of range, or ``image_id`` is missing.
        """
        if self.keeps_images and image_id is None:
            raise ValueError("image_id is missing; give it for each image after keep_images")
        if prediction.shape != target.shape:
            raise ValueError(
                f"the prediction is {tuple(prediction.shape)} and the target {tuple(target.shape)}; "
                "resize the prediction to the original image first"
            )
        if not target.numel():
            return
        classes = len(self.class_names)
        low, high = target.aminmax()
        # One bin per (prediction, target value 0..255). Ignored pixels and invalid targets have bins of their own, so
        # no pixels have to be selected or compared with C.
        pairs = torch.add(target, prediction, alpha=_VALUES).flatten()
        if int(low) < 0 or int(high) >= _VALUES:
            raise ValueError(self._out_of_range("target", int(low) if low < 0 else int(high)))
        try:
            counts = torch.bincount(pairs, minlength=_VALUES * classes)
        except RuntimeError:
            if (lowest := int(prediction.min())) >= 0:
                raise
            raise ValueError(self._out_of_range("prediction", lowest)) from None
        if len(counts) > _VALUES * classes:
            raise ValueError(self._out_of_range("prediction", int(prediction.max())))
        table = counts.view(classes, _VALUES)
        table[:, self.ignore_index] = 0
        if classes < _VALUES and (invalid := table[:, classes:].sum(0).cpu()).any():
            raise ValueError(self._out_of_range("target", classes + int(invalid.nonzero()[0])))
        confusion = table[:, :classes].T
        self.confusion += confusion
        if image_id is not None and self.keeps_images:
            flat = confusion.flatten()
            entries = flat.nonzero()[:, 0]
            if not len(entries):  # all pixels are ignored
                entries = entries.new_zeros(1)
            columns = torch.full_like(entries, image_id), entries // classes, entries % classes, flat[entries]
            self.image_rows.append(torch.stack(columns, 1))

    def _out_of_range(self, side: str, value: int) -> str:
        ignored = f" and {self.ignore_index} to ignore" if side == "target" else ""
        return f"the {side} holds {value}, but the classes are 0..{len(self.class_names) - 1}{ignored}"

    def compute(self) -> dict[str, Tensor]:
        """Return the scores listed above, over all processes."""
        # Compute on the CPU, because some devices do not support float64.
        confusion = self.confusion.cpu().double()
        correct, targets, predictions = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
        # 0 / 0 is NaN and marks a class as absent.
        iou = correct / (targets + predictions - correct)
        scores = {
            "miou": iou.nanmean(),
            "pixel_acc": correct.sum() / targets.sum(),
            "class_acc": (correct / targets).nanmean(),
        }
        scores |= {f"iou/{name}": value for name, value in zip(self.class_names, iou, strict=True)}
        return self.to_tensors({name: float(value) for name, value in scores.items()})
