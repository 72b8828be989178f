"""YOLO version 1: one regression from the image to a grid of cells with boxes and classes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.data.sample import Prediction, Target
from segdet.detection.base import Detector, detections_stage
from segdet.nn.backbones import build_backbone
from segdet.nn.boxes import pad_targets, pairwise_iou
from segdet.nn.weights import load_weights
from segdet.task import Stage
from segdet.training.fine_tune import ClassRows
from segdet.util.errors import UserError, check_range
from segdet.util.stage_timing import stage

_SLOPE = 0.1
"""The negative slope of the leaky ReLU (section 2.1)."""

_ROUNDING = 1e-6
"""Fractions of a cell below this are rounding errors."""


@dataclass(frozen=True)
class Grid:
    """The cells of an image."""

    height: float  # the height of the image in cells; fractional if the last row exceeds the image
    width: float  # the width of the image in cells; fractional if the last column exceeds the image

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        # A rounding error beyond a whole number of cells does not add a cell.
        return math.ceil(self.height - _ROUNDING), math.ceil(self.width - _ROUNDING)

    def sides(self, like: Tensor) -> Tensor:
        """Return width and height in cells, ``[2]``, with the type and device of ``like``."""
        return like.new_tensor([self.width, self.height])

    def corners(self, like: Tensor) -> Tensor:
        """Return the column and row of each cell, ``[S * S, 2]``, with the type and device of ``like``."""
        rows, columns = self.shape
        cell = torch.arange(rows * columns, device=like.device)
        return torch.stack([cell % columns, cell // columns], -1).to(like.dtype)


class YOLOv1(Detector):
    """You Only Look Once, version 1 (Redmon, Divvala, Girshick, Farhadi, CVPR 2016).

    The image is a grid of S x S cells. The cell that contains an object's centre is responsible for it. Each cell
    predicts one distribution over classes, and B boxes with a confidence each. There are no proposals and no anchors:
    detection is one regression with squared errors, from one pass over the whole image. As a consequence each cell can
    detect only one object, and groups of small objects are missed (section 2.4).

    With ``backbone: null`` the network is the paper's, of 24 convolutions and two fully connected layers (figure 3).
    The authors pretrained the first twenty convolutions on ImageNet. The last four are for detection, and the second of
    these has stride 2. Any other backbone replaces the first twenty.

    If several objects have their centre in one cell, the first is used, as in Darknet. The cell's box of highest IoU
    with the object is responsible. If no box overlaps the object, the box of smallest distance is responsible, also as
    in Darknet.

    Without fully connected layers (``hidden`` 0) the network is convolutional. Multi-scale training and test-time
    augmentation then change the number of cells, and sides remain relative to the loaded image. With fully connected
    layers there are always S x S cells, and images must have the training size: ``tta_scales`` raises an error.

    Args:
        backbone: See `segdet.nn.backbones.build_backbone`; null for the paper's twenty convolutions.
        weights: See `segdet.nn.backbones.build_backbone`; for the paper's convolutions a local file.
        backbone_options: See `segdet.nn.backbones.build_backbone`.
        stride: The stride of the backbone's map that the four convolutions follow; 32 in the paper.
        grid: S, the number of cells per side. A map of another size is resized by averaging over the area of each cell.
        boxes: B, the number of boxes per cell.
        width: The channels of the four convolutions.
        hidden: The units of the first fully connected layer. With 0 a 1x1 convolution replaces both layers, unlike in
            the paper: cells share their weights, and there are fewer parameters.
        batch_norm: Whether batch normalization follows each convolution, as in Darknet but not in the paper.
        dropout: The dropout rate after the first fully connected layer.
        coordinate_weight: The paper's weight of the two box losses, lambda_coord.
        no_object_weight: The paper's weight of the confidence loss of boxes without an object, lambda_noobj.
        kwargs: See `Detector`.
    """

    uses_scale = True

    default_lr_factor = 0.1  # training from scratch diverges or stalls with the default rate

    def __init__(
        self,
        class_names: list[str],
        backbone: str | None = None,
        weights: bool | str | None = None,
        backbone_options: dict[str, Any] | None = None,
        stride: int = 32,
        grid: int = 7,
        boxes: int = 2,
        width: int = 1024,
        hidden: int = 4096,
        batch_norm: bool = False,
        dropout: float = 0.5,
        coordinate_weight: float = 5.0,
        no_object_weight: float = 0.5,
        score_threshold: float = 0.001,
        detections_per_image: int = 200,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, score_threshold, detections_per_image=detections_per_image, **kwargs)
        check_range("--model.grid", grid, least=1)
        check_range("--model.boxes", boxes, least=1)
        if hidden and self.tta_scales != [1.0]:
            raise UserError(
                f"--model.tta_scales {self.tta_scales}: YOLO's fully connected layers need images of one size; "
                "leave it out, or train with --model.hidden 0"
            )
        self.grid = grid
        self.cell_side = 2 * stride
        self.fully_connected = hidden > 0
        self.boxes = boxes
        self.coordinate_weight = coordinate_weight
        self.no_object_weight = no_object_weight
        self.backbone: nn.Module
        if backbone is None:
            self.backbone, channels = _paper_backbone(weights, batch_norm, backbone_options, stride)
        else:
            network = build_backbone(backbone, weights, [stride], **(backbone_options or {}))
            self.backbone, channels = network, network.channels[-1]
        layers = [_conv(channels, width, 3, 1, batch_norm)]
        layers += [_conv(width, width, 3, step, batch_norm) for step in (2, 1, 1)]
        self.neck = nn.Sequential(*layers)
        outputs = 5 * boxes + len(class_names)
        if hidden:
            self.class_rows = {"head.": ClassRows(per_class=grid * grid)}
        self.head: nn.Module
        if hidden:
            self.head = nn.Sequential(
                nn.Flatten(),
                nn.Linear(grid * grid * width, hidden),
                nn.LeakyReLU(_SLOPE, inplace=True),
                nn.Dropout(dropout),
                nn.Linear(hidden, grid * grid * outputs),
                nn.Unflatten(1, (outputs, grid, grid)),
            )
        else:
            self.head = nn.Conv2d(width, outputs, 1)
        _init_weights(self.neck)
        _init_weights(self.head)
        last = self.head[-2] if isinstance(self.head, nn.Sequential) else self.head
        assert isinstance(last, nn.Linear | nn.Conv2d) and last.bias is not None
        # Initially every cell predicts boxes at its centre, of 0.09 times the image's sides, with confidence 0.
        initial = torch.tensor([0.5, 0.5, 0.3, 0.3, 0.0] * boxes + [0.0] * len(class_names))
        nn.init.normal_(last.weight, std=0.01)
        last.bias.data.copy_(initial.repeat_interleave(len(last.bias) // outputs))

    def forward(
        self, images: Tensor, scale: tuple[float, float] = (1.0, 1.0)
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Map images ``[B, 3, H, W]`` to the outputs of S * S cells, by row and column.

        Args:
            images: Normalized.
            scale: The images' height and width, divided by the height and width of the loaded images.

        Returns:
            Boxes ``[B, S * S, boxes, 4]``: the position of the centre in its cell, 0..1 from its left and upper edge,
            and the square roots of width and height relative to the image; confidences ``[B, S * S, boxes]``; class
            scores ``[B, S * S, K]``. All outputs are linear, as in the paper.
        """
        features = self.backbone(images)  # the paper's backbone has one map
        features = self.neck(features if isinstance(features, Tensor) else features[-1])
        size = (images.shape[2], images.shape[3])
        cells = self.cells(scale)
        cell_sides = [size[0] / cells.height, size[1] / cells.width]
        if features.shape[-2:] != cells.shape or any(
            abs(side - self.cell_side) > _ROUNDING * side for side in cell_sides
        ):
            features = self._average(features, cells, cell_sides)
        # [B, outputs, S, S] to [B, S * S, outputs]
        with stage("head"):
            output = self.head(features).float().flatten(2).transpose(1, 2)
        boxes = output[..., : 5 * self.boxes].unflatten(-1, (self.boxes, 5))
        return boxes[..., :4], boxes[..., 4], output[..., 5 * self.boxes :]

    def losses(
        self, images: Tensor, targets: list[Target], scale: tuple[float, float] = (1.0, 1.0)
    ) -> dict[str, Tensor]:
        """Return the five sums of equation 3, each divided by the number of images."""
        predicted, confidence, classes = self(images, scale)
        cells = self.cells(scale)
        size = (images.shape[2], images.shape[3])
        boxes, labels = pad_targets(targets, images.device)
        has_object, target_boxes, target_labels = self._assign(boxes, labels, size, cells)
        with torch.no_grad():
            encoded = self._encode(target_boxes, cells)[:, :, None]
            iou = pairwise_iou(self._decode(predicted, cells), target_boxes[:, :, None]).squeeze(-1)
            distance = (predicted - encoded).square().sum(-1)
            rank = torch.where(iou.amax(-1, keepdim=True) > 0, iou, -distance)
            best = rank.argmax(-1, keepdim=True)
            responsible = torch.zeros_like(iou, dtype=torch.bool).scatter_(-1, best, True)
            responsible &= has_object[..., None]
        box_error = (predicted - encoded).square()
        centre_error, side_error = box_error[..., :2].sum(-1), box_error[..., 2:].sum(-1)
        confidence_error = (confidence - torch.where(responsible, iou, 0.0)).square()
        one_hot = F.one_hot((target_labels - 1).clamp(min=0), classes.shape[-1])
        class_error = (classes - one_hot).square().sum(-1)
        count = len(images)
        return {
            "coord_xy": self.coordinate_weight * torch.where(responsible, centre_error, 0.0).sum() / count,
            "coord_wh": self.coordinate_weight * torch.where(responsible, side_error, 0.0).sum() / count,
            "obj": torch.where(responsible, confidence_error, 0.0).sum() / count,
            "noobj": self.no_object_weight * torch.where(responsible, 0.0, confidence_error).sum() / count,
            "class": torch.where(has_object, class_error, 0.0).sum() / count,
        }

    def predict(self, images: Tensor, scale: tuple[float, float] = (1.0, 1.0)) -> list[Prediction]:
        with stage("network"):
            predicted, confidence, classes = self(images, scale)
        size = (images.shape[2], images.shape[3])
        with stage("nms"):
            return self._detections(predicted, confidence, classes, size, self.cells(scale))

    def stages(self, image: Tensor) -> Iterator[Stage]:
        size = (image.shape[2], image.shape[3])
        predicted, confidence, classes = self(image)
        confidences = confidence[0].clamp(0, 1)
        cells = self.cells()
        rows, columns = cells.shape
        grid = cells.sides(image.float())
        corner = cells.corners(grid) / grid
        pixels = image.new_tensor([size[1], size[0]] * 2, dtype=torch.float32)
        yield Stage(
            f"grid cells {columns}x{rows}",
            boxes=torch.cat([corner, corner + 1 / grid], -1) * pixels,
            scores=confidences.amax(-1),
            caption="The cells. Each is responsible for objects centred in it; its score is its highest confidence.",
        )
        highest = confidences.amax(-1).view(rows, columns)
        yield Stage("confidence", map=highest, caption="The highest confidence of each cell.")
        highest = classes[0].clamp(0, 1).amax(-1).view(rows, columns)
        yield Stage(
            "class", map=highest, caption="The highest class score of each cell, given an object in it."
        )
        yield Stage(
            "boxes",
            boxes=(self._decode(predicted, cells)[0] * pixels).flatten(0, 1),
            scores=confidences.flatten(),
            caption=f"All {rows * columns * self.boxes} boxes with their confidence, before suppression.",
        )
        final = self._detections(predicted, confidence, classes, size, cells)[0]
        yield detections_stage(final)

    def cells(self, scale: tuple[float, float] = (1.0, 1.0)) -> Grid:
        """Return the grid of images that were resized by ``scale``.

        It has S x S cells if they were not resized, or if there are fully connected layers.
        """
        height, width = (1.0, 1.0) if self.fully_connected else scale
        return Grid(self.grid * height, self.grid * width)

    def _average(self, features: Tensor, cells: Grid, cell_sides: list[float]) -> Tensor:
        """Average the map ``[B, C, h, w]`` over cells with these sides (vertical, horizontal) in pixels."""
        rows, columns = (
            _cell_weights(number, side / self.cell_side, places).to(features)
            for number, side, places in zip(cells.shape, cell_sides, features.shape[-2:], strict=True)
        )
        return rows @ features @ columns.T

    def _detections(
        self, predicted: Tensor, confidence: Tensor, classes: Tensor, size: tuple[int, int], cells: Grid
    ) -> list[Prediction]:
        with stage("nms"):
            boxes = (self._decode(predicted, cells) * predicted.new_tensor([size[1], size[0]] * 2)).flatten(
                1, 2
            )
            # Linear outputs may exceed 0..1: the product of two negative ones must not be a high score (equation 1).
            scores = (confidence.clamp(0, 1)[..., None] * classes.clamp(0, 1)[:, :, None]).flatten(1, 2)
            return self.select(boxes, scores, size)

    def _assign(
        self, boxes: Tensor, labels: Tensor, size: tuple[int, int], grid: Grid
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Assign an object to each cell; boxes ``[B, G, 4]`` (in pixels) and labels ``[B, G]`` are from `pad_targets`.

        Returns:
            Whether there is an object, bool ``[B, S * S]``; its box ``[B, S * S, 4]`` relative to the image; its label.
        """
        batch, most = labels.shape
        rows, columns = grid.shape
        cells = rows * columns
        boxes = boxes / boxes.new_tensor([size[1], size[0]] * 2)
        column, row = ((boxes[..., :2] + boxes[..., 2:]) / 2 * grid.sides(boxes)).long().unbind(-1)
        column, row = column.clamp(0, columns - 1), row.clamp(0, rows - 1)
        # Padding among the objects is assigned to an extra cell, which is removed.
        cell = torch.where(labels > 0, row * columns + column, cells)
        order = torch.arange(most, device=labels.device).expand(batch, most)
        first = torch.full((batch, cells + 1), most, dtype=torch.int64, device=labels.device)
        first = first.scatter_reduce(1, cell, order, "amin")[:, :-1]
        has_object = first < most
        first = first.clamp(max=most - 1)
        return has_object, boxes.gather(1, first[..., None].expand(-1, -1, 4)), labels.gather(1, first)

    def _encode(self, boxes: Tensor, cells: Grid) -> Tensor:
        """Encode one box per cell, ``[B, S * S, 4]`` xyxy relative to the image, as the target outputs of the cells."""
        grid = cells.sides(boxes)
        centre = (boxes[..., :2] + boxes[..., 2:]) / 2 * grid - cells.corners(boxes)
        sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0) * (grid / self.grid)
        return torch.cat([centre, sides.sqrt()], -1)

    def _decode(self, predicted: Tensor, cells: Grid) -> Tensor:
        """Decode the outputs of cells, ``[B, S * S, boxes, 4]``, to boxes xyxy relative to the image."""
        grid = cells.sides(predicted)
        centre = (predicted[..., :2] + cells.corners(predicted)[:, None]) / grid
        # A negative square root is a side of 0.
        half = predicted[..., 2:].clamp(min=0).square() / (2 * grid / self.grid)
        return torch.cat([centre - half, centre + half], -1)


def _paper_backbone(
    weights: bool | str | None, batch_norm: bool, options: dict[str, Any] | None, stride: int
) -> tuple[nn.Sequential, int]:
    """Return the first twenty convolutions of figure 3, and their output channels."""
    if options:
        raise UserError(
            "--model.backbone_options: the paper's backbone has no options; name a backbone, or give none"
        )
    if stride != 32:
        raise UserError(
            f"--model.stride {stride}: the paper's backbone has stride 32; name another backbone, or give 32"
        )

    def conv(channels: int, out: int, kernel: int, stride: int = 1) -> nn.Sequential:
        return _conv(channels, out, kernel, stride, batch_norm)

    layers = [conv(3, 64, 7, 2), nn.MaxPool2d(2), conv(64, 192, 3), nn.MaxPool2d(2)]
    layers += [conv(192, 128, 1), conv(128, 256, 3), conv(256, 256, 1), conv(256, 512, 3), nn.MaxPool2d(2)]
    for _ in range(4):
        layers += [conv(512, 256, 1), conv(256, 512, 3)]
    layers += [conv(512, 512, 1), conv(512, 1024, 3), nn.MaxPool2d(2)]
    for _ in range(2):
        layers += [conv(1024, 512, 1), conv(512, 1024, 3)]
    network = nn.Sequential(*layers)
    _init_weights(network)
    if weights:
        load_weights(network, weights, "YOLOv1's backbone")
    return network, 1024


def _init_weights(network: nn.Module) -> None:
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, _SLOPE, nonlinearity="leaky_relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _cell_weights(cells: int, side: float, places: int) -> Tensor:
    """Return the weights that average a map over grid cells, along one axis.

    Args:
        cells: The number of grid cells.
        side: The side of a grid cell in pixels of the map.
        places: The number of pixels of the map.

    Returns:
        ``[cells, places]``; rows sum to 1.
    """
    start = (torch.arange(cells)[:, None] * side).clamp(max=places - 1)
    place = torch.arange(places)
    overlap = (torch.minimum(start + side, place + 1) - torch.maximum(start, place)).clamp(min=0)
    return overlap / overlap.sum(1, keepdim=True)


def _conv(channels: int, out: int, kernel: int, stride: int, batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=not batch_norm)]
    layers += [nn.BatchNorm2d(out)] if batch_norm else []
    return nn.Sequential(*layers, nn.LeakyReLU(_SLOPE, inplace=True))
