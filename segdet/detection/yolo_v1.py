"""YOLO version 1: one regression from the whole image to a grid of cells, a few boxes and one class each."""

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
from segdet.task import Stage, View
from segdet.util.errors import UserError
from segdet.util.stages import stage

_SLOPE = 0.1
"""Of the leaky rectifier (section 2.1)."""

_ROUNDING = 1e-6
"""The share of a cell that is no cell."""


@dataclass(frozen=True)
class Grid:
    """The cells of an image.

    Attributes:
        height: The image's height in cells; with a fraction where the last row reaches beyond the image.
        width: Its width in cells, likewise.
    """

    height: float
    width: float

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

    The image is a grid of S x S cells. The cell in which an object's centre falls is to find it: each cell says
    once what class it would hold, and for each of B boxes where it is and how sure it is of it. No proposals, no
    anchors: all of it is one regression of squared errors, from one pass over the whole image. What that costs is
    that a cell holds one object only, and small ones in groups are missed (section 2.4).

    The network is the paper's of 24 convolutions and two fully connected layers (figure 3) when ``backbone``
    is null: twenty, which the authors trained on ImageNet first, and four that are added for detection, the
    second of them with stride 2. Any other backbone takes the place of the twenty.

    Of several objects in one cell the first counts, as in Darknet; of a cell's boxes that one is responsible
    which overlaps the object most, or is the least far off where none overlaps it (Darknet too).

    Without fully connected layers (``hidden`` 0) a cell sees only what is near it: in images that are resized for
    training or testing at several scales cells become more or fewer, and sides remain shares of the images as the data
    gave them. With these layers there are S x S cells in any case, and images of another size than in training
    make no sense to them: ``tta_scales`` is refused.

    Args:
        backbone: See `segdet.nn.backbones.build_backbone`; null for the paper's twenty convolutions.
        weights: See there; for the paper's, a local file of them.
        backbone_options: See there.
        stride: The backbone's map that the four convolutions stand on; 32 in the paper.
        grid: S, the cells on each side. A map of another size becomes as large as that by averaging: each cell has
            of the map what lies over its own pixels.
        boxes: B, the boxes of each cell.
        width: The channels of the four convolutions.
        hidden: The units of the first fully connected layer. With 0 a 1x1 convolution takes the place of both, which
            is not the paper's: cells then share their weights, and less has to be learned.
        batch_norm: Whether batch normalization follows each convolution; it does in Darknet, not in the paper.
        dropout: The rate behind the first fully connected layer.
        coordinate_weight: The paper's lambda of the two box losses.
        no_object_weight: The paper's lambda of the confidence of boxes that hold nothing.
        score_threshold: Detections must exceed this score.
        nms_threshold: Of two boxes of a class with a greater IoU, the worse is dropped.
        detections_per_image: How many remain.
        kwargs: As for `Detector`.
    """

    def __init__(
        self,
        class_names: list[str],
        backbone: str | None = None,
        weights: str | bool | None = None,
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
        nms_threshold: float = 0.5,
        detections_per_image: int = 200,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        if grid < 1 or boxes < 1:
            raise UserError(
                f"model: a grid of {grid} with {boxes} boxes a cell finds nothing; give 1 or more of both"
            )
        if hidden and self.tta_scales != [1.0]:
            raise UserError(
                f"--model.tta_scales {self.tta_scales}: YOLO's fully connected layers know images of one size; "
                "leave it out, or train with --model.hidden 0"
            )
        self.grid = grid
        self.pitch = 2 * stride
        self.fully_connected = hidden > 0
        self.boxes = boxes
        self.coordinate_weight = coordinate_weight
        self.no_object_weight = no_object_weight
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.detections_per_image = detections_per_image
        self.backbone: nn.Module
        if backbone is None:
            self.backbone, channels = _paper_backbone(weights, batch_norm, backbone_options, stride)
        else:
            network = build_backbone(backbone, weights, [stride], **(backbone_options or {}))
            self.backbone, channels = network, network.channels[-1]
        self.neck = nn.Sequential(
            _conv(channels, width, 3, 1, batch_norm),
            _conv(width, width, 3, 2, batch_norm),
            _conv(width, width, 3, 1, batch_norm),
            _conv(width, width, 3, 1, batch_norm),
        )
        outputs = 5 * boxes + len(class_names)
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
        for layer in [*self.neck.modules(), *self.head.modules()]:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, _SLOPE, nonlinearity="leaky_relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        last = self.head[-2] if isinstance(self.head, nn.Sequential) else self.head
        assert isinstance(last, nn.Linear | nn.Conv2d) and last.bias is not None
        # At first every cell says: a box in the middle, a tenth as large as the image, that holds nothing.
        begin = torch.tensor([0.5, 0.5, 0.3, 0.3, 0.0] * boxes + [0.0] * len(class_names))
        nn.init.normal_(last.weight, std=0.01)
        last.bias.data.copy_(begin.repeat_interleave(len(last.bias) // outputs))

    def cells(self, scale: tuple[float, float] = (1.0, 1.0)) -> Grid:
        """Return the grid of images that were resized by ``scale``: S x S cells if they were not, or if there are
        fully connected layers."""
        height, width = (1.0, 1.0) if self.fully_connected else scale
        return Grid(self.grid * height, self.grid * width)

    def loss_inputs(self, view: View) -> dict[str, Any]:
        return {"scale": view.scale}

    def predict_inputs(self, targets: list[Target], view: View) -> dict[str, Any]:
        return {"scale": view.scale}

    def forward(
        self, images: Tensor, scale: tuple[float, float] = (1.0, 1.0)
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Images ``[B, 3, H, W]`` to the outputs of S * S cells, row by row.

        Args:
            images: Normalized.
            scale: Their height and width divided by those of the loaded images.

        Returns:
            Boxes ``[B, S * S, boxes, 4]``: the centre's place in its cell, 0..1 from its left and upper edge, and the
            square roots of width and height as shares of the image's; confidences ``[B, S * S, boxes]``;
            class scores ``[B, S * S, K]``. All of them are linear, as in the paper.
        """
        features = self.neck(_last(self.backbone(images)))
        size = (images.shape[2], images.shape[3])
        cells = self.cells(scale)
        pitches = [size[0] / cells.height, size[1] / cells.width]
        if features.shape[-2:] != cells.shape or any(abs(p - self.pitch) > _ROUNDING * p for p in pitches):
            features = self._averaged(features, cells, pitches)
        # [B, outputs, S, S] to [B, S * S, outputs]
        answer = self.head(features).float().flatten(2).transpose(1, 2)
        boxes = answer[..., : 5 * self.boxes].unflatten(-1, (self.boxes, 5))
        return boxes[..., :4], boxes[..., 4], answer[..., 5 * self.boxes :]

    def _averaged(self, features: Tensor, cells: Grid, pitches: list[float]) -> Tensor:
        """The map ``[B, C, h, w]``, averaged over each cell of so many pixels' height and width."""
        rows, columns = (
            _shares(number, pitch / self.pitch, there).to(features)
            for number, pitch, there in zip(cells.shape, pitches, features.shape[-2:], strict=True)
        )
        return rows @ features @ columns.T

    def losses(
        self, images: Tensor, targets: list[Target], scale: tuple[float, float] = (1.0, 1.0)
    ) -> dict[str, Tensor]:
        """Return the five sums of equation 3, each divided by the number of images."""
        found, confidence, classes = self(images, scale)
        cells = self.cells(scale)
        size = (images.shape[2], images.shape[3])
        boxes, labels = pad_targets(targets, images.device)
        has_object, wanted, wanted_labels = self._assign(boxes, labels, size, cells)
        with torch.no_grad():
            goal = self._encode(wanted, cells)[:, :, None]
            decoded = self._decode(found, cells)
            iou = pairwise_iou(decoded, wanted[:, :, None]).squeeze(-1)
            distance = (found - goal).square().sum(-1)
            nearness = torch.where(iou.amax(-1, keepdim=True) > 0, iou, -distance)
            best = nearness.argmax(-1, keepdim=True)
            responsible = torch.zeros_like(iou, dtype=torch.bool).scatter_(-1, best, True)
            responsible &= has_object[..., None]
        off = (found - goal).square()
        wrong = (confidence - torch.where(responsible, iou, 0.0)).square()
        one_hot = F.one_hot((wanted_labels - 1).clamp(min=0), classes.shape[-1])
        images_count = len(images)
        place, extent = off[..., :2].sum(-1), off[..., 2:].sum(-1)
        misnamed = (classes - one_hot).square().sum(-1)
        return {
            "coord_xy": self.coordinate_weight * torch.where(responsible, place, 0.0).sum() / images_count,
            "coord_wh": self.coordinate_weight * torch.where(responsible, extent, 0.0).sum() / images_count,
            "obj": torch.where(responsible, wrong, 0.0).sum() / images_count,
            "noobj": self.no_object_weight * torch.where(responsible, 0.0, wrong).sum() / images_count,
            "class": torch.where(has_object, misnamed, 0.0).sum() / images_count,
        }

    def predict(self, images: Tensor, scale: tuple[float, float] = (1.0, 1.0)) -> list[Prediction]:
        with stage("network"):
            found, confidence, classes = self(images, scale)
        size = (images.shape[2], images.shape[3])
        return self._detections(found, confidence, classes, size, self.cells(scale))

    def stages(self, image: Tensor) -> Iterator[Stage]:
        size = (image.shape[2], image.shape[3])
        found, confidence, classes = self(image)
        sure = confidence[0].clamp(0, 1)
        cells = self.cells()
        rows, columns = cells.shape
        grid = cells.sides(image.float())
        corner = cells.corners(grid) / grid
        pixels = image.new_tensor([size[1], size[0]] * 2, dtype=torch.float32)
        yield Stage(
            f"grid cells {columns}x{rows}",
            boxes=torch.cat([corner, corner + 1 / grid], -1) * pixels,
            scores=sure.amax(-1),
            about="Each cell is to find the object whose centre is in it; its score is that of its surer box.",
        )
        yield Stage(
            "confidence",
            map=sure.amax(-1).view(rows, columns),
            about="How sure the cells are to hold an object.",
        )
        named = classes[0].clamp(0, 1).amax(-1).view(rows, columns)
        yield Stage(
            "class", map=named, about="How sure each cell is of the class that an object in it would have."
        )
        yield Stage(
            "boxes",
            boxes=(self._decode(found, cells)[0] * pixels).flatten(0, 1),
            scores=sure.flatten(),
            about=f"All {rows * columns * self.boxes} boxes with their confidence, unsuppressed.",
        )
        final = self._detections(found, confidence, classes, size, cells)[0]
        yield detections_stage(final)

    def _detections(
        self, found: Tensor, confidence: Tensor, classes: Tensor, size: tuple[int, int], cells: Grid
    ) -> list[Prediction]:
        with stage("nms"):
            boxes = (self._decode(found, cells) * found.new_tensor([size[1], size[0]] * 2)).flatten(1, 2)
            # Linear outputs may leave 0..1; two that are below it must not make a sure detection (equation 1).
            scores = (confidence.clamp(0, 1)[..., None] * classes.clamp(0, 1)[:, :, None]).flatten(1, 2)
            return self.selected(boxes, scores, size)

    def _assign(
        self, boxes: Tensor, labels: Tensor, size: tuple[int, int], grid: Grid
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The object of each cell: whether there is one ``[B, S * S]``, its box as a share of the image, its label.

        Args:
            boxes: ``[B, G, 4]`` in pixels, from `pad_targets`.
            labels: ``[B, G]``.
            size: ``(height, width)`` of the images.
            grid: Their cells.
        """
        batch, most = labels.shape
        rows, columns = grid.shape
        cells = rows * columns
        boxes = boxes / boxes.new_tensor([size[1], size[0]] * 2)
        column, row = ((boxes[..., :2] + boxes[..., 2:]) / 2 * grid.sides(boxes)).long().unbind(-1)
        column, row = column.clamp(0, columns - 1), row.clamp(0, rows - 1)
        # What is absent goes to one cell too many, which is cut off.
        cell = torch.where(labels > 0, row * columns + column, cells)
        order = torch.arange(most, device=labels.device).expand(batch, most)
        first = torch.full((batch, cells + 1), most, dtype=torch.int64, device=labels.device)
        first = first.scatter_reduce(1, cell, order, "amin")[:, :-1]
        has_object = first < most
        first = first.clamp(max=most - 1)
        return has_object, boxes.gather(1, first[..., None].expand(-1, -1, 4)), labels.gather(1, first)

    def _encode(self, boxes: Tensor, cells: Grid) -> Tensor:
        """Boxes ``[B, S * S, 4]`` xyxy, shares of the image, one a cell, as that cell is to say them."""
        grid = cells.sides(boxes)
        centre = (boxes[..., :2] + boxes[..., 2:]) / 2 * grid - cells.corners(boxes)
        sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0) * (grid / self.grid)
        return torch.cat([centre, sides.sqrt()], -1)

    def _decode(self, found: Tensor, cells: Grid) -> Tensor:
        """What cells say of boxes, ``[B, S * S, boxes, 4]``, as boxes xyxy, shares of the image."""
        grid = cells.sides(found)
        centre = (found[..., :2] + cells.corners(found)[:, None]) / grid
        # A root below zero stands for no size at all.
        half = found[..., 2:].clamp(min=0).square() / (2 * grid / self.grid)
        return torch.cat([centre - half, centre + half], -1)


def _paper_backbone(
    weights: str | bool | None, batch_norm: bool, options: dict[str, Any] | None, stride: int
) -> tuple[nn.Sequential, int]:
    """The first twenty convolutions of figure 3, and their channels."""
    if options:
        raise UserError(
            "--model.backbone_options: YOLO's own backbone has no options; name a backbone, or give none"
        )
    if stride != 32:
        raise UserError(
            f"--model.stride {stride}: YOLO's own backbone has stride 32; name another backbone, or give 32"
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
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, _SLOPE, nonlinearity="leaky_relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    if weights:
        load_weights(network, weights, "YOLOv1's backbone")
    return network, 1024


def _shares(cells: int, side: float, places: int) -> Tensor:
    """By how much each cell of so many ``places``, one long, averages each of them: ``[cells, places]``, sums of 1."""
    start = (torch.arange(cells)[:, None] * side).clamp(max=places - 1)
    place = torch.arange(places)
    overlap = (torch.minimum(start + side, place + 1) - torch.maximum(start, place)).clamp(min=0)
    return overlap / overlap.sum(1, keepdim=True)


def _last(maps: Any) -> Tensor:
    return maps if isinstance(maps, Tensor) else maps[-1]


def _conv(channels: int, out: int, kernel: int, stride: int, batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=not batch_norm)]
    layers += [nn.BatchNorm2d(out)] if batch_norm else []
    return nn.Sequential(*layers, nn.LeakyReLU(_SLOPE, inplace=True))
