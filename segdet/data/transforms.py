"""Image transforms: albumentations pipelines that carry boxes of several kinds and masks along.

A `Recipe` says how the images of a task are prepared for training and for evaluation; a `Pipeline`
runs what it says. In evaluation an image is only ever resized, so that what a network predicts maps
back to the original image by a plain scale.
"""

from abc import ABC, abstractmethod
from typing import Any

import albumentations as A
import cv2
import numpy as np

from segdet.data.sample import IGNORE
from segdet.data.ssd_transforms import ExpandAndCrop, PhotometricDistort
from segdet.util.errors import UserError

Size = int | tuple[int, int] | None
"""An exact ``(height, width)``, or the length of the shorter side, or None for the image's own size."""

MEAN_COLOUR = (124, 116, 104)
"""ImageNet's mean colour, which padding takes: it becomes about zero when the image is normalized."""


_CHANNELS = 128
"""OpenCV takes no more channels at once."""


class Pipeline:
    """A sequence of transforms applied to an image together with its sets of boxes and its mask.

    Boxes that leave the image are clipped; those that vanish, or of which less than
    ``min_visibility`` of the area remains, are dropped. Any number of box sets travels through the
    same transforms: the objects, and region proposals beside them.

    Args:
        transforms: What to do, in order.
        min_visibility: The share of its area that a box must keep to stay.
        check_each: Whether boxes are clipped and dropped after every transform, which takes a third of the time of
            a small image, or once at the end. Once is enough unless what has left the image could come back: a crop
            that is followed by padding or zooming out.
    """

    def __init__(
        self, transforms: list[A.BasicTransform], min_visibility: float = 0.0, check_each: bool = False
    ) -> None:
        boxes = A.BboxParams(
            format="pascal_voc",
            label_fields=["index"],
            clip=True,
            min_area=1.0,
            min_visibility=min_visibility,
            check_each_transform=check_each,
        )
        transforms = transforms or [A.NoOp(p=1.0)]
        self._with_boxes = A.Compose(transforms, bbox_params=boxes)
        self._without_boxes = A.Compose(transforms)

    def __call__(
        self,
        image: np.ndarray,
        box_sets: dict[str, np.ndarray] | None = None,
        mask: np.ndarray | None = None,
        seed: int | None = None,
    ) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]], np.ndarray | None]:
        """Transforms one image and what belongs to it.

        Args:
            image: uint8 ``[H, W, 3]``.
            box_sets: float32 ``[N, 4]`` xyxy boxes by the name of their set; the objects come first.
            mask: uint8 ``[H, W]``, or ``[H, W, N]`` for any number of masks.
            seed: Makes the random choices repeatable; None draws new ones.

        Returns:
            The image, for each set its remaining boxes float32 ``[M, 4]`` with their former indices
            int64 ``[M]``, and the mask, whose last axis is gone where it was 1.
        """
        box_sets = box_sets or {}
        compose = self._with_boxes if box_sets else self._without_boxes
        if seed is not None:
            compose.set_random_seed(seed)
        parts = _parts(mask)
        if len(parts) > 1:
            compose.add_targets(dict.fromkeys(parts, "mask"))
        given: dict[str, Any] = {"image": image} | parts
        if not box_sets:
            out = compose(**given)
            return out["image"], {}, _whole(out, parts)
        lengths = [len(boxes) for boxes in box_sets.values()]
        given["bboxes"] = np.concatenate([boxes.reshape(-1, 4) for boxes in box_sets.values()]).astype(
            np.float32
        )
        given["index"] = np.arange(sum(lengths))
        given["guides"] = lengths[0]  # a transform that goes by the boxes goes by those of the first set
        out = compose(**given)
        boxes = np.asarray(out["bboxes"], np.float32).reshape(-1, 4)
        index = np.asarray(out["index"], np.int64).reshape(-1)
        after: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        start = 0
        for name, length in zip(box_sets, lengths, strict=True):
            mine = (index >= start) & (index < start + length)
            after[name] = boxes[mine], index[mine] - start
            start += length
        return out["image"], after, _whole(out, parts)


def _parts(mask: np.ndarray | None) -> dict[str, np.ndarray]:
    """A mask under the name that albumentations knows, or in parts of no more channels than it can take."""
    if mask is None:
        return {}
    if mask.ndim == 2 or mask.shape[2] <= _CHANNELS:
        return {"mask": mask}
    parts = np.array_split(mask, -(-mask.shape[2] // _CHANNELS), 2)
    return {f"mask_{number}": part for number, part in enumerate(parts)}


def _whole(out: dict[str, Any], parts: dict[str, np.ndarray]) -> np.ndarray | None:
    """What has become of the parts of a mask, in one again."""
    found: list[np.ndarray] = [out[name] for name in parts]
    return np.concatenate(found, 2) if len(found) > 1 else found[0] if found else None


def resize(size: Size) -> list[A.BasicTransform]:
    """Resizing to ``size``: bilinear for images, nearest for masks; nothing when None."""
    if size is None:
        return []
    if isinstance(size, int):
        return [A.SmallestMaxSize(size, interpolation=cv2.INTER_LINEAR)]
    return [A.Resize(size[0], size[1], interpolation=cv2.INTER_LINEAR)]


class Recipe(ABC):
    """How images are prepared: one pipeline for training, one for evaluation.

    Args:
        size: What images are resized to: ``[height, width]``, or the shorter side, or null for their own size.
        min_visibility: The share of its area that a box must keep to stay in training.
        extra: Further albumentations transforms for training, applied last.
    """

    def __init__(
        self, size: Size = None, min_visibility: float = 0.25, extra: list[A.BasicTransform] | None = None
    ) -> None:
        self.size = size
        self.min_visibility = min_visibility
        self.extra = extra or []

    @abstractmethod
    def augment(self) -> list[A.BasicTransform]:
        """The transforms that training adds to, or has in place of, resizing."""

    def train(self) -> Pipeline:
        """The pipeline of training."""
        return Pipeline([*self.augment(), *self.extra], self.min_visibility, check_each=bool(self.extra))

    def evaluation(self) -> Pipeline:
        """The pipeline of validation, test and prediction: resizing alone."""
        return Pipeline(resize(self.size))


class Plain(Recipe):
    """No augmentation: training sees what evaluation sees. For overfitting and for debugging."""

    def augment(self) -> list[A.BasicTransform]:
        return resize(self.size)


class ScaleJitter(Recipe):
    """Resize, scale at random, pad or crop at random to one size, flip, and vary the colours.

    The "large-scale jittering" of Ghiasi et al. (CVPR 2021), which serves segmentation and detection
    alike: zooming out shows small objects, zooming in crops.

    Args:
        size: As for `Recipe`.
        scale: The range of the random scale.
        crop: The ``[height, width]`` of what training sees; the size itself when null.
        hflip: The probability of a left-right flip.
        vflip: The probability of an upside-down flip.
        rotate90: The probability of a rotation by a multiple of 90 degrees (square crops only).
        brightness: The greatest relative change of brightness, and likewise of
        contrast: contrast,
        saturation: saturation, and
        hue: hue (of half the colour circle).
        min_visibility: As for `Recipe`.
        extra: As for `Recipe`.
    """

    def __init__(
        self,
        size: Size = None,
        scale: tuple[float, float] = (0.5, 2.0),
        crop: tuple[int, int] | None = None,
        hflip: float = 0.5,
        vflip: float = 0.0,
        rotate90: float = 0.0,
        brightness: float = 0.2,
        contrast: float = 0.2,
        saturation: float = 0.2,
        hue: float = 0.0,
        min_visibility: float = 0.25,
        extra: list[A.BasicTransform] | None = None,
    ) -> None:
        super().__init__(size, min_visibility, extra)
        if crop is None and isinstance(size, tuple | list):
            crop = (size[0], size[1])
        self.scale = scale
        self.crop = crop
        self.hflip = hflip
        self.vflip = vflip
        self.rotate90 = rotate90
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue

    def augment(self) -> list[A.BasicTransform]:
        steps = resize(self.size)
        if tuple(self.scale) != (1.0, 1.0):
            low, high = self.scale
            steps.append(A.RandomScale((low - 1.0, high - 1.0), interpolation=cv2.INTER_LINEAR, p=1.0))
        if self.crop is not None:
            height, width = self.crop
            steps.append(
                A.PadIfNeeded(height, width, position="random", border_mode=cv2.BORDER_CONSTANT,
                              fill=MEAN_COLOUR, fill_mask=IGNORE)
            )  # fmt: skip
            steps.append(A.RandomCrop(height, width))
        if self.hflip:
            steps.append(A.HorizontalFlip(p=self.hflip))
        if self.vflip:
            steps.append(A.VerticalFlip(p=self.vflip))
        if self.rotate90:
            steps.append(A.RandomRotate90(p=self.rotate90))
        if self.brightness or self.contrast or self.saturation or self.hue:
            steps.append(
                A.ColorJitter(
                    _around_one(self.brightness), _around_one(self.contrast), _around_one(self.saturation),
                    (-self.hue, self.hue), p=0.8,
                )
            )  # fmt: skip
        return steps


class SSDAugmentation(Recipe):
    """SSD's augmentation (Liu et al., ECCV 2016, sections 2.2 and 3.6), which its accuracy hangs on.

    Photometric distortion, zooming out on a canvas of the mean colour, a crop that overlaps an object by a drawn
    IoU, resizing to one size whatever the shape, and a flip. See `segdet.data.ssd_transforms`.

    Args:
        size: ``[height, width]`` of what training and evaluation see.
        expand: The greatest factor of zooming out; 1 for none, as in the paper's first results.
        crop_scale: The range of a crop's sides as shares of the image's; 0.1 to 1 in the paper, 0.3 to 1 in its code.
        hflip: The probability of a left-right flip.
        photometric: Whether colours are distorted.
        min_visibility: As for `Recipe`; 0 as in the paper, where it decides whether an object's centre is left.
        extra: As for `Recipe`.

    Raises:
        UserError: If ``size`` is not a height and a width.
    """

    def __init__(
        self,
        size: Size = (300, 300),
        expand: float = 4.0,
        crop_scale: tuple[float, float] = (0.3, 1.0),
        hflip: float = 0.5,
        photometric: bool = True,
        min_visibility: float = 0.0,
        extra: list[A.BasicTransform] | None = None,
    ) -> None:
        super().__init__(size, min_visibility, extra)
        if not isinstance(size, tuple | list):
            raise UserError(
                f"--data.recipe.size {size}: SSDAugmentation makes images of one size; give [height, width]"
            )
        self.expand = expand
        self.crop_scale = crop_scale
        self.hflip = hflip
        self.photometric = photometric

    def augment(self) -> list[A.BasicTransform]:
        assert isinstance(self.size, tuple | list)
        return [
            ExpandAndCrop(
                (self.size[0], self.size[1]),
                self.expand,
                scale=(self.crop_scale[0], self.crop_scale[1]),
                hflip=self.hflip,
                distort=PhotometricDistort() if self.photometric else None,
                fill=MEAN_COLOUR,
            )
        ]


def _around_one(reach: float) -> tuple[float, float]:
    return max(0.0, 1.0 - reach), 1.0 + reach
