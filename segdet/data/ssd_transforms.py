"""SSD's augmentation (Liu et al., ECCV 2016, sections 2.2 and 3.6) as albumentations transforms.

An image expanded by a factor of 4 has 16 times as many pixels. The following crop discards most of them.
`ExpandAndCrop` therefore never creates the expanded image. It chooses the crop from the boxes and resamples the visible
part of the image directly to the final size. Colours are distorted at this size.
"""

from typing import Any

import albumentations as A
import cv2
import numpy as np

from segdet.data.sample import IGNORE

MIN_IOUS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Minimum IoUs of a crop and an object; one of them is drawn at random."""

WHOLE, ANY = 2.0, 0.0
"""The choices "whole canvas" and "any crop", drawn together with the minimum IoUs."""


class PhotometricDistort(A.ImageOnlyTransform):
    """Random brightness, contrast, saturation and hue, each with probability 1/2.

    As in SSD's code, contrast comes before or after saturation and hue. Brightness is added, contrast multiplies the
    values without subtracting their mean, and saturation and hue are changed in OpenCV's 8-bit HSV. Lookup tables
    implement these per-pixel functions.

    Args:
        brightness: Maximum offset of the values 0..255.
        contrast: Range of the factor.
        saturation: Range of the factor.
        hue: Maximum shift, in OpenCV's units of 2 degrees.
        p: Probability of applying the transform.
    """

    def __init__(
        self,
        brightness: float = 32.0,
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: float = 18.0,
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue

    def get_params(self) -> dict[str, Any]:
        return self.draw(self.random_generator)

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """Draw the parameters of `apply` for one image."""
        brightness, contrast, saturation, hue = rng.random(4) < 0.5
        return {
            "added": rng.uniform(-self.brightness, self.brightness) if brightness else 0.0,
            "contrast": rng.uniform(*self.contrast) if contrast else 1.0,
            "contrast_first": rng.random() < 0.5,
            "saturation": rng.uniform(*self.saturation) if saturation else 1.0,
            "shift": rng.uniform(-self.hue, self.hue) if hue else 0.0,
        }

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        contrast, first = params["contrast"], params["contrast_first"]
        values = _to_bytes(np.arange(256) + params["added"])
        if first:
            values = _to_bytes(values * contrast)
        img = _apply_table(img, values)
        if params["saturation"] != 1.0 or params["shift"]:
            levels = np.arange(256)
            table = np.stack(
                [
                    np.rint(levels + params["shift"]) % 180,  # hue is periodic
                    _to_bytes(levels * params["saturation"]),
                    levels,
                ],
                -1,
            ).astype(np.uint8)
            img = cv2.cvtColor(img, cv2.COLOR_RGB2HSV)
            img = cv2.cvtColor(cv2.LUT(img, table[None]), cv2.COLOR_HSV2RGB)
        return img if first else _apply_table(img, _to_bytes(np.arange(256) * contrast))


class ExpandAndCrop(A.DualTransform):
    """Zoom out on a canvas of one colour, crop by overlap with objects, resize and flip, in one step.

    1. With probability ``expand_p``, the image is placed at random on a canvas of up to ``expand`` times its sides.
    2. One of these choices is drawn: the whole canvas, any crop, or a crop whose IoU with some object is at least .1,
       .3, .5, .7 or .9. The first of ``trials`` random crops that fits the choice is used. If none fits, another
       choice is drawn.
    3. Objects whose centre is outside the crop are dropped (section 2.2); others are clipped.

    All crops of an image are drawn at once and compared with all objects. Canvas and crop have integer coordinates.

    Args:
        size: ``(height, width)`` of the result.
        expand: Maximum factor of zooming out.
        expand_p: Probability of zooming out.
        scale: Range of the sides of a crop, as shares of the canvas's sides; .1 to 1 in the paper, .3 to 1 in its code.
        aspect_ratio: Range of the aspect ratio (width / height) of a crop.
        trials: Number of random crops.
        hflip: Probability of a horizontal flip.
        distort: Distortion of the image's colours, which leaves the canvas unchanged; None for no distortion.
        fill: Colour of the canvas.
        fill_mask: Mask value of the canvas.
        p: Probability of applying the transform.
    """

    def __init__(
        self,
        size: tuple[int, int],
        expand: float = 4.0,
        expand_p: float = 0.5,
        scale: tuple[float, float] = (0.3, 1.0),
        aspect_ratio: tuple[float, float] = (0.5, 2.0),
        trials: int = 50,
        hflip: float = 0.5,
        distort: PhotometricDistort | None = None,
        fill: tuple[int, int, int] = (124, 116, 104),
        fill_mask: int = IGNORE,
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        self.size = size
        self.expand = expand
        self.expand_p = expand_p
        self.scale = scale
        self.aspect_ratio = aspect_ratio
        self.trials = trials
        self.hflip = hflip
        self.distort = distort
        self.fill = fill
        self.fill_mask = fill_mask

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        height, width = params["shape"][:2]
        boxes = data.get("bboxes")
        objects = np.zeros((0, 4)) if boxes is None or not len(boxes) else np.asarray(boxes)
        if objects.shape[1] > 4 and "guides" in data:
            # Boxes of other sets, such as proposals, have higher indices and do not influence the crop.
            objects = objects[objects[:, 4] < data["guides"]]
        canvas = self._canvas(height, width)
        crop = self._crop(canvas, objects[:, :4] * (width, height, width, height))
        flip = self.random_generator.random() < self.hflip
        colours = None if self.distort is None else self.distort.draw(self.random_generator)
        return {"crop": crop, "flip": flip, "colours": colours}

    def _canvas(self, height: int, width: int) -> np.ndarray:
        """Return the canvas around the image, xyxy in pixels of the image."""
        rng = self.random_generator
        if rng.random() >= self.expand_p:
            return np.array([0, 0, width, height], np.float64)
        ratio = rng.uniform(1, self.expand)
        extent = np.rint(ratio * np.array([width, height]))
        corner = -np.rint(rng.random(2) * (extent - (width, height)))
        return np.concatenate([corner, corner + extent])

    def _crop(self, canvas: np.ndarray, objects: np.ndarray) -> np.ndarray:
        """Return the crop of the canvas, xyxy in pixels of the image."""
        rng = self.random_generator
        # The whole canvas is one of the choices, so the loop always returns a crop.
        choices = rng.permutation([WHOLE, ANY, *MIN_IOUS])
        if choices[0] == WHOLE:
            return canvas
        extent = canvas[2:] - canvas[:2]
        sides = np.rint(extent * rng.uniform(*self.scale, (self.trials, 2))).clip(1)
        corners = canvas[:2] + np.rint((extent - sides) * rng.random((self.trials, 2)))
        ratio = sides[:, 0] / sides[:, 1]
        fits = (ratio >= self.aspect_ratio[0]) & (ratio <= self.aspect_ratio[1])
        crops = np.concatenate([corners, corners + sides], 1)[fits]
        # The maximum IoU of each crop with the objects that have their centre in it; -1 if there are none.
        overlap = np.where(contains_centres(crops, objects), iou(crops, objects), -1.0).max(1, initial=-1.0)
        for least in choices:
            if least == WHOLE:
                return canvas
            good = overlap >= least if len(objects) else np.full(len(crops), least == ANY)
            if good.any():
                return crops[good.argmax()]
        raise AssertionError("the whole canvas is one of the choices")

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        out = self._resampled(img, params["crop"], cv2.INTER_LINEAR, self.fill)
        if self.distort is not None and params["colours"] is not None:
            height, width = img.shape[:2]
            scale = np.tile(self.size[::-1] / (params["crop"][2:] - params["crop"][:2]), 2)
            visible = (np.array([0, 0, width, height]) - np.tile(params["crop"][:2], 2)) * scale
            x0, y0, x1, y1 = np.rint(visible).clip(0, np.tile(self.size[::-1], 2)).astype(int)
            if x0 < x1 and y0 < y1:
                out[y0:y1, x0:x1] = self.distort.apply(
                    np.ascontiguousarray(out[y0:y1, x0:x1]), **params["colours"]
                )
        return cv2.flip(out, 1) if params["flip"] else out

    def apply_to_mask(self, mask: np.ndarray, **params: Any) -> np.ndarray:
        out = self._resampled(mask, params["crop"], cv2.INTER_NEAREST, self.fill_mask)
        return cv2.flip(out, 1) if params["flip"] else out

    def _resampled(self, image: np.ndarray, crop: np.ndarray, interpolation: int, fill: Any) -> np.ndarray:
        height, width = self.size
        x0, y0, x1, y1 = (int(value) for value in crop)
        if x0 >= 0 and y0 >= 0 and x1 <= image.shape[1] and y1 <= image.shape[0]:
            return cv2.resize(image[y0:y1, x0:x1], (width, height), interpolation=interpolation)
        scale_x, scale_y = (x1 - x0) / width, (y1 - y0) / height
        # Map pixel centres of the result to pixel centres of the image.
        matrix = np.array([[scale_x, 0, x0 + scale_x / 2 - 0.5], [0, scale_y, y0 + scale_y / 2 - 0.5]])
        flags = interpolation | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(image, matrix, (width, height), flags=flags, borderValue=fill)

    def apply_to_bboxes(self, bboxes: np.ndarray, **params: Any) -> np.ndarray:
        height, width = params["shape"][:2]
        crop = params["crop"] / (width, height, width, height)
        bboxes = bboxes[contains_centres(crop[None], bboxes[:, :4])[0]].copy()
        bboxes[:, :4] = (bboxes[:, :4] - np.tile(crop[:2], 2)) / np.tile(crop[2:] - crop[:2], 2)
        if params["flip"]:
            bboxes[:, [0, 2]] = 1 - bboxes[:, [2, 0]]
        return bboxes  # the pipeline clips boxes, and drops boxes outside


def contains_centres(crops: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return whether each crop ``[T, 4]`` contains the centre of each box ``[N, 4]``, xyxy: bool ``[T, N]``."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    return ((centre > crops[:, None, :2]) & (centre < crops[:, None, 2:])).all(-1)


def iou(crops: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the IoU of each crop ``[T, 4]`` with each box ``[N, 4]``, xyxy: ``[T, N]``."""
    shared = np.minimum(crops[:, None, 2:], boxes[:, 2:]) - np.maximum(crops[:, None, :2], boxes[:, :2])
    common = shared.clip(0).prod(-1)
    areas = (crops[:, 2:] - crops[:, :2]).prod(-1)[:, None] + (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    return common / np.maximum(areas - common, 1e-9)


def _to_bytes(values: np.ndarray) -> np.ndarray:
    return np.rint(values).clip(0, 255).astype(np.uint8)


def _apply_table(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    return image if (values == np.arange(256)).all() else cv2.LUT(image, values)
