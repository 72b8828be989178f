"""Image transforms for training and evaluation, based on albumentations.

A `Recipe` builds one `Pipeline` for training and one for evaluation. A pipeline transforms an image with its masks and
any number of box sets. In evaluation, images are only resized, so that predictions map back to the original image by
scaling.
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
"""ImageNet's mean colour, used for padding. It is close to zero after normalization."""

_CHANNELS = 128
"""Maximum number of channels that OpenCV transforms at once."""


class Pipeline:
    """A sequence of transforms of an image together with its boxes and masks.

    Boxes are clipped to the image. Boxes that leave it, or keep less than ``min_visibility`` of their area, are
    dropped. Several sets of boxes, such as objects and region proposals, go through the same transforms.

    Args:
        transforms: The transforms, in order.
        min_visibility: Share of its area that a box must keep.
        check_each: Whether to clip and drop boxes after every transform instead of once at the end. These checks
            take a third of the time per small image. They are needed only before padding or zooming out after a crop.
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
        """Transform one image with its boxes and masks.

        Args:
            image: uint8 ``[H, W, 3]``.
            box_sets: Named sets of boxes, float32 ``[N, 4]`` xyxy; the objects come first.
            mask: uint8 ``[H, W]``, or ``[H, W, N]`` for N masks.
            seed: Seed of the random transforms; None for new random numbers.

        Returns:
            The image; for each set the remaining boxes float32 ``[M, 4]`` and their previous indices int64 ``[M]``; and
            the mask, ``[H, W]`` if N is 1.
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
        boxes = np.concatenate([boxes.reshape(-1, 4) for boxes in box_sets.values()])
        given["bboxes"] = boxes.astype(np.float32)
        given["index"] = np.arange(sum(lengths))
        given["guides"] = lengths[0]  # transforms that depend on boxes use the first set only
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
    """Name a mask for albumentations, split into parts of at most `_CHANNELS` channels."""
    if mask is None:
        return {}
    if mask.ndim == 2 or mask.shape[2] <= _CHANNELS:
        return {"mask": mask}
    parts = np.array_split(mask, -(-mask.shape[2] // _CHANNELS), 2)
    return {f"mask_{number}": part for number, part in enumerate(parts)}


def _whole(out: dict[str, Any], parts: dict[str, np.ndarray]) -> np.ndarray | None:
    """Concatenate the transformed parts of a mask."""
    found: list[np.ndarray] = [out[name] for name in parts]
    return np.concatenate(found, 2) if len(found) > 1 else found[0] if found else None


def resize(size: Size) -> list[A.BasicTransform]:
    """Return the transform that resizes to ``size``: bilinear for images, nearest for masks; [] if ``size`` is None."""
    if size is None:
        return []
    if isinstance(size, int):
        return [A.SmallestMaxSize(size, interpolation=cv2.INTER_LINEAR)]
    return [A.Resize(size[0], size[1], interpolation=cv2.INTER_LINEAR)]


def resized_size(size: Size, original: tuple[int, int]) -> tuple[int, int]:
    """Return the ``(height, width)`` to which `resize` changes an image of the size ``original``."""
    if size is None:
        return original
    if not isinstance(size, int):
        return size[0], size[1]
    scale = size / min(original)
    return round(original[0] * scale), round(original[1] * scale)


class Recipe(ABC):
    """The transforms of training and evaluation. Derived classes implement `augment`.

    Args:
        size: Image size: ``[height, width]``, or the length of the shorter side; default: the original size.
        min_visibility: Share of its area that a box must keep in training; boxes with less are dropped.
        extra: More albumentations transforms for training, applied last.
    """

    def __init__(
        self, size: Size = None, min_visibility: float = 0.25, extra: list[A.BasicTransform] | None = None
    ) -> None:
        self.size = size
        self.min_visibility = min_visibility
        self.extra = extra or []

    @abstractmethod
    def augment(self) -> list[A.BasicTransform]:
        """Return the transforms of training, including resizing."""

    def train(self) -> Pipeline:
        """Return the pipeline of training."""
        return Pipeline([*self.augment(), *self.extra], self.min_visibility, check_each=bool(self.extra))

    def evaluation(self) -> Pipeline:
        """Return the pipeline of validation, test and prediction, which only resizes."""
        return Pipeline(resize(self.size))


class Plain(Recipe):
    """No augmentation: training uses the transforms of evaluation. For overfitting and debugging."""

    def augment(self) -> list[A.BasicTransform]:
        return resize(self.size)


class ScaleJitter(Recipe):
    """Large-scale jittering (Ghiasi et al., CVPR 2021): random scale, padding or crop, flips and colours.

    Args:
        size: See `Recipe`.
        scale: Range of the random scale.
        crop: ``[height, width]`` of training images; default: ``size``.
        hflip: Probability of a horizontal flip.
        vflip: Probability of a vertical flip.
        rotate90: Probability of a rotation by a multiple of 90 degrees (square crops only).
        brightness: Maximum relative change of brightness.
        contrast: Maximum relative change of contrast.
        saturation: Maximum relative change of saturation.
        hue: Maximum change of hue, as a share of the colour circle.
        min_visibility: See `Recipe`.
        extra: See `Recipe`.
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
            steps.append(A.ColorJitter(self.brightness, self.contrast, self.saturation, self.hue, p=0.8))
        return steps


class SSDAugmentation(Recipe):
    """SSD's augmentation (Liu et al., ECCV 2016, sections 2.2 and 3.6).

    The transforms are photometric distortion, zooming out on a canvas of the mean colour, and a crop with a random
    minimum IoU with an object. The crop is stretched to ``size`` and may be flipped. See `segdet.data.ssd_transforms`.

    Args:
        size: ``[height, width]`` in training and evaluation.
        expand: Maximum factor of zooming out; 1 for none, as in the paper's first results.
        crop_scale: Range of the sides of a crop, as shares of the image's; 0.1 to 1 in the paper, 0.3 to 1 in its code.
        hflip: Probability of a horizontal flip.
        photometric: Whether to distort colours.
        min_visibility: See `Recipe`; 0 as in the paper, which keeps objects by their centres.
        extra: See `Recipe`.

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
            fault = "SSDAugmentation makes images of one size; give [height, width]"
            raise UserError(f"--data.recipe.size {size}: {fault}")
        self.expand = expand
        self.crop_scale = crop_scale
        self.hflip = hflip
        self.photometric = photometric

    def augment(self) -> list[A.BasicTransform]:
        assert isinstance(self.size, tuple | list)
        size, scale = (self.size[0], self.size[1]), (self.crop_scale[0], self.crop_scale[1])
        distort = PhotometricDistort() if self.photometric else None
        return [
            ExpandAndCrop(size, self.expand, scale=scale, hflip=self.hflip, distort=distort, fill=MEAN_COLOUR)
        ]
