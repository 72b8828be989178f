"""Semantic segmentation's scores, from one confusion matrix of the whole dataset."""

from collections.abc import Sequence

import torch
from torch import Tensor

from segdet.data.sample import IGNORE
from segdet.metrics.base import Scores

_BYTE = 256


def classes_of(logits: Tensor) -> Tensor:
    """The best class of every pixel: ``[B, C, H, W]`` (or ``[C, H, W]``) logits to int64 ``[B, H, W]``.

    The same answer as ``logits.argmax(-3)``, of equal logits the first, and much faster on the CPU, where
    argmax over a dimension that is not the last in memory goes through the pixels one by one.
    """
    logits = logits.detach()
    classes = logits.shape[-3]
    if logits.device.type != "cpu" or logits.stride(-3) == 1 or classes > _BYTE:
        return logits.max(-3).indices
    # Whole maps at a time, which are contiguous: where a class beats all before it, its number, which is
    # the largest so far, is written over theirs.
    best, *others = logits.unbind(-3)
    best = best.clone()
    answer = torch.zeros_like(best, dtype=torch.uint8)
    for number, other in enumerate(others, 1):
        better = (other > best).view(torch.uint8).mul_(number)
        torch.maximum(answer, better, out=answer)
        torch.maximum(best, other, out=best)
    return answer.long()


class SegmentationScores(Scores):
    """Mean IoU, pixel accuracy, class accuracy and each class's IoU.

    They come from ONE confusion matrix over all pixels of the dataset, as VOC, Cityscapes and CamVid define
    them; a mean over images is another number. Give masks at the original resolution.

    ``compute`` gives

    - ``miou``: the mean IoU of the classes that are present in the target or in the prediction;
    - ``pixel_acc``: the share of the counted pixels that are right (SegNet's G);
    - ``class_acc``: the mean recall of the classes that are present in the target (SegNet's C);
    - ``iou/<class>``: NaN for a class that is in neither.

    Pixels whose target is ``ignore_index`` are not counted, whatever was predicted there.

    Args:
        class_names: The names of the mask values 0..C-1.
        ignore_index: The mask value, 0..255, that is not counted.

    Attributes:
        confusion: int64 ``[C, C]``, rows the target, columns the prediction.
    """

    confusion: Tensor

    def __init__(self, class_names: Sequence[str], ignore_index: int = IGNORE) -> None:
        super().__init__()
        if not class_names or len(class_names) > _BYTE:
            raise ValueError(f"class_names: {len(class_names)} names, but a mask has 1 to {_BYTE} classes")
        if not 0 <= ignore_index < _BYTE:
            raise ValueError(f"ignore_index: {ignore_index} is no mask value; give one of 0..{_BYTE - 1}")
        self.class_names = list(class_names)
        self.ignore_index = ignore_index
        classes = len(self.class_names)
        self.add_state("confusion", torch.zeros(classes, classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count the pixels of a batch or of one image.

        Args:
            prediction: int64 ``[B, H, W]`` or ``[H, W]``, 0..C-1 (``classes_of(logits)``).
            target: Of the same shape, 0..C-1 or ``ignore_index``.

        Raises:
            ValueError: If the shapes differ, or a value is none of these.
        """
        if prediction.shape != target.shape:
            raise ValueError(
                f"the prediction is {tuple(prediction.shape)} and the target {tuple(target.shape)}; "
                "resize the prediction to the original image first"
            )
        if not target.numel():
            return
        classes = len(self.class_names)
        low, high = target.aminmax()
        # One bin for every (prediction, byte): what is ignored or no class has bins of its own, so that
        # neither a selection of pixels nor a comparison of each with C is needed.
        pairs = torch.add(target, prediction, alpha=_BYTE).flatten()
        if int(low) < 0 or int(high) >= _BYTE:
            raise ValueError(self._no_class("target", int(low) if low < 0 else int(high)))
        try:
            counts = torch.bincount(pairs, minlength=_BYTE * classes)
        except RuntimeError:
            if (lowest := int(prediction.min())) >= 0:
                raise
            raise ValueError(self._no_class("prediction", lowest)) from None
        if len(counts) > _BYTE * classes:
            raise ValueError(self._no_class("prediction", int(prediction.max())))
        table = counts.view(classes, _BYTE)
        table[:, self.ignore_index] = 0
        if classes < _BYTE and (odd := table[:, classes:].sum(0).cpu()).any():
            raise ValueError(self._no_class("target", classes + int(odd.nonzero()[0])))
        self.confusion += table[:, :classes].T

    def _no_class(self, side: str, value: int) -> str:
        ignored = f" and {self.ignore_index} to ignore" if side == "target" else ""
        return f"the {side} holds {value}, but the classes are 0..{len(self.class_names) - 1}{ignored}"

    def compute(self) -> dict[str, Tensor]:
        """The scores so far, of all processes: see the class."""
        # On the CPU, where float64 always is; C x C numbers are nothing to move.
        confusion = self.confusion.cpu().double()
        right, targets, predictions = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
        # 0 / 0 is the NaN that marks a class as absent.
        iou = right / (targets + predictions - right)
        scores = {
            "miou": iou.nanmean(),
            "pixel_acc": right.sum() / targets.sum(),
            "class_acc": (right / targets).nanmean(),
        }
        scores |= {f"iou/{name}": value for name, value in zip(self.class_names, iou, strict=True)}
        return self.numbers({name: float(value) for name, value in scores.items()})
