"""DETR: detection as the prediction of a set, with nothing to choose before and nothing to suppress after."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.ops import box_convert, clip_boxes_to_image, generalized_box_iou, generalized_box_iou_loss

from segdet.data.sample import Prediction, Target
from segdet.detection.base import Detector
from segdet.detection.torchvision_network import COCO_NAMES
from segdet.nn.backbones import build_backbone
from segdet.nn.weights import StateDict, load_weights
from segdet.task import Stage, View
from segdet.util.errors import UserError
from segdet.util.stages import stage

_NO_OBJECT_WEIGHT = 0.1
"""What a query that finds nothing counts in the class loss (section 3.1)."""

_MATCHING_COSTS = {"class": 1.0, "box": 5.0, "giou": 2.0}
"""How much each disagreement of a query and an object counts in their matching (the authors' code)."""

_LOSS_WEIGHTS = {"class": 1.0, "box": 5.0, "giou": 2.0}
"""The weights of the losses (section A.4)."""


_SPREAD = 0.1
"""How far around its point a query looks at first, in shares of the image's sides."""


class DETR(Detector):
    """DETR (Carion et al., ECCV 2020, "End-to-End Object Detection with Transformers") on any backbone.

    An encoder lets all cells of the backbone's coarsest map look at one another, and a decoder lets a fixed number
    of learned queries look at the cells and at one another; each query then says one box with its class, or
    that it found nothing. In training every object is matched with exactly one query, so that none is found twice:
    there are no anchors, and no suppression of duplicates. It costs one pass of the backbone.

    Images of different sizes in a batch are told apart from their padding: no cell looks at it, and places count in
    shares of each image's own size. What the backbone's convolutions see of it at an image's edge remains, as in the
    paper; in evaluation nothing is padded. The losses of boxes are averages over the objects of all processes, as in
    the authors' code, so that each object weighs as much as any other; that of the classes is one over the queries of a
    process.

    The defaults are the paper's, which trains them for 300 to 500 epochs of COCO; on small images and with little time
    it takes few layers, a finer map and the spatial prior.

    Args:
        backbone: See `segdet.nn.backbones.build_backbone`.
        weights: A local file of the whole network's weights, as the authors publish them (``detr-r50-e632da11.pth``,
            for ``resnet50``), or null. If all classes here have names of COCO's, their outputs are taken; if not, the
            layer of the classes, and only it, stays new.
        weights_backbone: Of the backbone alone, which `backbone` calls its weights; not looked at when there are
            ``weights``.
        backbone_options: See there; ``{output_stride: 16}`` with a stride of 16 makes DETR-DC5.
        stride: The backbone's map that is looked at.
        width: The channels of the transformer; a multiple of 4 and of ``heads``.
        heads: Of each attention.
        encoder_layers: How often the cells look at one another.
        decoder_layers: How often the queries look.
        feedforward: The channels within each layer's perceptron.
        dropout: In all layers of the transformer.
        queries: The most objects that can be found in an image.
        auxiliary: Whether every layer of the decoder learns to answer, not only the last (section 3.2).
        spatial_prior: Whether each query has a learned point of the image, near which it looks and from which its box's
            centre is told (`SpatialPrior`).
        score_threshold: Detections must exceed this score; all queries are scored by the paper.
        kwargs: As for `Detector`.
    """

    def __init__(
        self,
        class_names: list[str],
        backbone: str = "resnet50",
        weights: str | None = None,
        weights_backbone: str | bool | None = None,
        backbone_options: dict[str, Any] | None = None,
        stride: int = 32,
        width: int = 256,
        heads: int = 8,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        feedforward: int = 2048,
        dropout: float = 0.1,
        queries: int = 100,
        auxiliary: bool = True,
        spatial_prior: bool = False,
        score_threshold: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        if self.class_agnostic_nms and not self.several_views:
            raise UserError(
                "--model.class_agnostic_nms: DETR suppresses nothing, but for what several views find; leave it out"
            )
        if width % 4 or width % heads:
            raise UserError(
                f"--model.width {width}: cannot be shared by {heads} heads and by the sines and cosines of two "
                "coordinates; give a multiple of 4 and of --model.heads"
            )
        for name, value in (("queries", queries), ("decoder_layers", decoder_layers)):
            if value < 1:
                raise UserError(f"--model.{name} {value}: nothing could be found; give 1 or more")
        self.auxiliary = auxiliary
        self.score_threshold = score_threshold
        first = None if weights else weights_backbone
        self.backbone = build_backbone(backbone, first, [stride], **(backbone_options or {}))
        self.stride = stride
        self.input_proj = nn.Conv2d(self.backbone.channels[0], width, 1)
        self.transformer = Transformer(width, heads, encoder_layers, decoder_layers, feedforward, dropout)
        self.class_embed = nn.Linear(width, len(class_names) + 1)
        self.bbox_embed = MLP(width, 4, 3)
        self.query_embed = nn.Embedding(queries, width)
        self.prior = SpatialPrior(queries) if spatial_prior else None
        weight = torch.ones(len(class_names) + 1)
        weight[-1] = _NO_OBJECT_WEIGHT
        self.register_buffer("class_weight", weight, persistent=False)
        if weights:
            load_weights(self, weights, "DETR", convert=lambda state: self._renamed(state, weights))

    def forward(
        self, images: Tensor, sizes: list[tuple[int, int]] | None = None, look: bool = False
    ) -> Answer:
        """What each layer of the decoder says of images ``[B, 3, H, W]``.

        Args:
            images: Normalized, padded at the bottom and on the right.
            sizes: The ``(height, width)`` of each without the padding; None if nothing is padded.
            look: Whether to tell where the queries look, too.
        """
        (features,) = self.backbone(images)
        features = self.input_proj(features)
        width, rows, columns = features.shape[1:]
        device = features.device
        y, x = torch.arange(rows, device=device), torch.arange(columns, device=device)
        padding = None
        if sizes is None or all(size == tuple(images.shape[-2:]) for size in sizes):
            valid = torch.tensor([[rows, columns]], device=device)
        else:
            cells = [[min(-(-h // self.stride), rows), min(-(-w // self.stride), columns)] for h, w in sizes]
            valid = torch.tensor(cells, device=device)
            padding = (y[:, None] >= valid[:, :1, None]) | (x >= valid[:, 1:, None])  # [B, rows, columns]
            padding = padding.flatten(1)
        down = ((y + 1) / valid[:, :1])[:, :, None].expand(-1, -1, columns)
        across = ((x + 1) / valid[:, 1:])[:, None].expand(-1, rows, -1)
        places = torch.stack([across, down], -1).flatten(1, 2)  # [B or 1, S, 2]
        near = None if self.prior is None else self.prior(places - 0.5 / valid.flip(1)[:, None])
        answers, attention = self.transformer(
            features.flatten(2).transpose(1, 2),
            sine_encoding(places, width),
            padding,
            self.query_embed.weight,
            near,
            look,
        )
        boxes = self.bbox_embed(answers).float()
        if self.prior is not None:
            boxes = boxes + F.pad(torch.logit(self.prior.centres.weight, eps=1e-3), (0, 2))
        if attention is not None:
            attention = attention.unflatten(-1, (rows, columns))
        return Answer(self.class_embed(answers).float(), boxes.sigmoid(), attention)

    def loss_inputs(self, view: View) -> dict[str, Any]:
        return {"sizes": view.sizes}

    def losses(
        self, images: Tensor, targets: list[Target], sizes: list[tuple[int, int]] | None = None
    ) -> dict[str, Tensor]:
        """The parts of the loss of a batch (sections 3.1 and A.2), to be summed.

        Args:
            images: Normalized, float ``[B, 3, H, W]``; padding is zero.
            targets: One per image, in its pixels.
            sizes: The ``(height, width)`` of each image without its padding; None if nothing is padded.
        """
        logits, found, _ = self(images, sizes)
        if not self.auxiliary:
            logits, found = logits[-1:], found[-1:]
        counts = [len(target["labels"]) for target in targets]
        sides = [[w, h, w, h] for h, w in sizes or [(images.shape[2], images.shape[3])] * len(targets)]
        scale = torch.tensor(sides, dtype=torch.float32, device=images.device)
        labels = torch.cat([target["labels"] for target in targets]) - 1
        corners = torch.cat([target["boxes"] / side for target, side in zip(targets, scale, strict=True)])
        image, query, which = match(logits.detach(), found.detach(), labels, corners, counts)

        layer = torch.arange(len(logits), device=images.device)[:, None]
        wanted = torch.full(logits.shape[:-1], logits.shape[-1] - 1, device=images.device)
        wanted[layer, image, query] = labels[which]
        weight: Tensor = self.class_weight  # type: ignore[assignment]
        names = F.cross_entropy(logits.flatten(0, 2), wanted.flatten(), weight, reduction="none")
        paired, goal = found[layer, image, query], corners[which]  # [layers, pairs, 4]
        beside = F.l1_loss(paired, box_convert(goal, "xyxy", "cxcywh"), reduction="none").sum((1, 2))
        apart = generalized_box_iou_loss(box_convert(paired, "cxcywh", "xyxy"), goal).sum(1)
        count = _share_of_objects(sum(counts), images.device)
        parts = {
            "class": names.view(len(logits), -1).sum(1) / weight[wanted].sum((1, 2)),
            "box": beside / count,
            "giou": apart / count,
        }
        weighted = {name: _LOSS_WEIGHTS[name] * part for name, part in parts.items()}
        losses = {name: part[-1] for name, part in weighted.items()}
        if len(logits) > 1:
            losses["auxiliary"] = torch.stack([part[:-1].sum() for part in weighted.values()]).sum()
        return losses

    def predict(self, images: Tensor) -> list[Prediction]:
        with stage("network"):
            answer = self(images)
        with stage("decode"):
            return self._detections(answer, (images.shape[2], images.shape[3]))

    def _detections(self, answer: Answer, size: tuple[int, int]) -> list[Prediction]:
        """Of each query the likeliest class, even where it is likelier that it found nothing (section 4)."""
        scores, labels = answer.logits[-1].softmax(-1)[..., :-1].max(-1)
        scores, order = scores.sort(1, descending=True)
        labels = labels.gather(1, order) + 1
        boxes = answer.boxes[-1].gather(1, order[..., None].expand(-1, -1, 4))
        boxes = clip_boxes_to_image(in_pixels(boxes, size), size)
        keep = scores > self.score_threshold
        return [
            Prediction(boxes=b[k], scores=s[k], labels=c[k])
            for b, s, c, k in zip(boxes, scores, labels, keep, strict=True)
        ]

    def stages(self, image: Tensor) -> Iterator[Stage]:
        answer = self(image, look=True)
        size = (image.shape[2], image.shape[3])
        assert answer.attention is not None
        scores, labels = answer.logits[:, 0].softmax(-1)[..., :-1].max(-1)  # [layers, Q]
        boxes = in_pixels(answer.boxes[:, 0], size)
        if self.prior is not None:
            points = self.prior.centres.weight.detach() * image.new_tensor([size[1], size[0]])
            about = "Where the queries stand before they have seen the image."
            yield Stage("points", boxes=torch.cat([points - 2, points + 2], 1), about=about)
        surest = scores[-1].topk(min(3, scores.shape[1])).indices
        for place, query in enumerate(surest.tolist(), 1):
            name = self.class_names[int(labels[-1, query])]
            yield Stage(
                f"attention {place}, {name}",
                boxes=boxes[-1, query][None],
                scores=scores[-1, query][None],
                map=answer.attention[0, query],
                about="Where a query that is among the surest looks in the decoder's last layer.",
            )
        for layer, (b, s) in enumerate(zip(boxes, scores, strict=True), 1):
            yield Stage(f"queries, layer {layer}", boxes=b, scores=s, about="What each query says by then.")
        (final,) = self._detections(answer, size)
        about = "Each query's likeliest class, unsuppressed: that none is found twice is learned."
        yield Stage("detections", boxes=final["boxes"], scores=final["scores"], about=about)

    def _renamed(self, state: StateDict, path: str) -> StateDict:
        """The authors' weights by the names here, with the outputs of the classes that both have."""
        own = self.state_dict()
        theirs = {name: _published_name(name) for name in own}
        over = [
            name for name in state.keys() - set(theirs.values()) if not name.endswith("num_batches_tracked")
        ]
        if over:
            raise UserError(
                f"{path}: not the weights of this DETR, which has no place for {len(over)} of them, such as "
                f"{min(over)}; choose the backbone and the options that the file was learned with"
            )
        fitted = {name: state[theirs[name]] for name in own if theirs[name] in state}
        for name in ("class_embed.weight", "class_embed.bias"):
            if name in fitted and fitted[name].shape != own[name].shape:
                if len(fitted[name]) == len(COCO_NAMES) + 1 and set(self.class_names) <= set(COCO_NAMES):
                    rows = [*(COCO_NAMES.index(known) for known in self.class_names), len(COCO_NAMES)]
                    fitted[name] = fitted[name][rows]
                else:
                    fitted[name] = own[name]
        return fitted


class Answer(NamedTuple):
    """What the queries say.

    Attributes:
        logits: float32 ``[layers, B, Q, K + 1]``: of the classes, and last that there is no object.
        boxes: float32 ``[layers, B, Q, 4]``: centre, width and height in shares of the image's.
        attention: ``[B, Q, h, w]``, the shares of its attention that each query gives the cells in the last layer, or
            None.
    """

    logits: Tensor
    boxes: Tensor
    attention: Tensor | None


def match(
    logits: Tensor, found: Tensor, labels: Tensor, corners: Tensor, counts: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """The cheapest one-to-one matching of each image's objects with queries, in each layer (section 3.1, equation 1).

    A pair costs minus the probability of the object's class, the L1 distance of the boxes and minus their
    generalized IoU. All costs come to the host at once, where the Hungarian algorithm runs.

    Args:
        logits: ``[layers, B, Q, K + 1]``.
        found: The queries' boxes, ``[layers, B, Q, 4]``: centre, width and height in shares of the image's.
        labels: Of all objects of the batch, image by image, int64 ``[N]`` of 0..K-1.
        corners: Their boxes ``[N, 4]``, xyxy in shares of their image's sides.
        counts: How many of them each image has.

    Returns:
        Image, query and object (in the order of ``labels``) of each pair, int64 ``[layers, P]`` each. Objects beyond
        the number of queries are in no pair.
    """
    # Objects of other images are compared in vain: that is cheaper than going through the images.
    flat = found.flatten(0, 2)
    cost = (
        -_MATCHING_COSTS["class"] * logits.softmax(-1).flatten(0, 2)[:, labels]
        + _MATCHING_COSTS["box"] * torch.cdist(flat, box_convert(corners, "xyxy", "cxcywh"), p=1)
        - _MATCHING_COSTS["giou"] * generalized_box_iou(box_convert(flat, "cxcywh", "xyxy"), corners)
    )
    # A diverged network is to be seen by its loss, as everywhere, and not by what the matching says to it.
    table = cost.nan_to_num(0.0).unflatten(0, found.shape[:3]).cpu().numpy()
    pairs = []
    for layer in table:
        parts = np.split(layer, np.cumsum(counts)[:-1], -1)
        start = 0
        of_layer = []
        for image, (part, count) in enumerate(zip(parts, counts, strict=True)):
            queries, objects = linear_sum_assignment(part[image])
            of_layer.append(np.stack([np.full_like(queries, image), queries, objects + start]))
            start += count
        pairs.append(np.concatenate(of_layer, 1))
    image, query, which = torch.from_numpy(np.stack(pairs, 1)).to(found.device)
    return image, query, which


def _share_of_objects(count: int, device: torch.device) -> Tensor | int:
    """What a process that has ``count`` objects divides by: the mean of all processes' counts, at least 1.

    The processes' gradients are averaged, and so their sums of losses come to be divided by the number of all objects.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return max(1, count)
    everyones = torch.full((), float(count), device=device)
    torch.distributed.all_reduce(everyones)
    return (everyones / torch.distributed.get_world_size()).clamp(min=1)


def in_pixels(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes ``[..., 4]`` of centre, width and height in shares of an image of ``size``, as xyxy in its pixels."""
    return box_convert(boxes, "cxcywh", "xyxy") * boxes.new_tensor([size[1], size[0]] * 2)


def sine_encoding(places: Tensor, width: int) -> Tensor:
    """Places ``[..., 2]``, x and y in shares of the image's sides, as ``[..., width]`` sines and cosines.

    The first half is of y and the second of x, a sine and a cosine in turns, of one period over the image down to
    10,000 times as slow (section A.4, after Vaswani et al., NeurIPS 2017, section 3.5; by 2 pi as in the code).
    """
    half = width // 2
    steps = torch.arange(0, half, 2, device=places.device) / half
    angles = places.flip(-1)[..., None] * (2 * math.pi * 10_000.0**-steps)  # [..., 2, width / 4]
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-3)


class Transformer(nn.Module):
    """The paper's transformer (section A.3, figure 10): places are added wherever attention asks or is asked.

    Args:
        width: The channels.
        heads: Of each attention.
        encoder_layers: Of the cells.
        decoder_layers: Of the queries.
        feedforward: The channels within each layer's perceptron.
        dropout: In all layers.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        encoder_layers: int,
        decoder_layers: int,
        feedforward: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.encoder = nn.Module()  # under the names of the published weights
        self.encoder.layers = nn.ModuleList(
            EncoderLayer(width, heads, feedforward, dropout) for _ in range(encoder_layers)
        )
        self.decoder = nn.Module()
        self.decoder.layers = nn.ModuleList(
            DecoderLayer(width, heads, feedforward, dropout) for _ in range(decoder_layers)
        )
        self.decoder.norm = nn.LayerNorm(width)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self,
        cells: Tensor,
        positions: Tensor,
        padding: Tensor | None,
        queries: Tensor,
        near: Tensor | None = None,
        look: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """What the queries have become after each layer of the decoder.

        Args:
            cells: ``[B, S, width]``.
            positions: Their encoded places, ``[B or 1, S, width]``.
            padding: True where a cell is none of the image's, bool ``[B, S]``; None if all are.
            queries: ``[Q, width]``.
            near: What is added to how much each query wants to look at each cell, ``[B or 1, Q, S]``, or None.
            look: Whether to return the second of the two.

        Returns:
            ``[decoder layers, B, Q, width]``, normalized, and how much of its attention each query gives each cell in
            the last layer, ``[B, Q, S]``, or None.
        """
        for layer in self.encoder.layers:  # type: ignore[union-attr]
            cells = layer(cells, positions, padding)
        answer = torch.zeros_like(queries).expand(len(cells), -1, -1)
        if near is not None:
            if padding is not None:
                near, padding = near.masked_fill(padding[:, None], -torch.inf), None
            heads = self.decoder.layers[0].multihead_attn.num_heads  # type: ignore[index,union-attr]
            near = near.expand(len(cells), -1, -1).repeat_interleave(heads, 0)
        answers, attention = [], None
        for layer in self.decoder.layers:  # type: ignore[union-attr]
            answer, attention = layer(answer, queries, cells, positions, padding, near, look)
            answers.append(self.decoder.norm(answer))  # type: ignore[operator]
        return torch.stack(answers), attention


class EncoderLayer(nn.Module):
    """A layer in which cells look at one another, normalized after each step.

    Args:
        width: The channels.
        heads: Of the attention.
        feedforward: The channels within the perceptron.
        dropout: In attention and perceptron, and after both.
    """

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.linear1 = nn.Linear(width, feedforward)
        self.linear2 = nn.Linear(feedforward, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, cells: Tensor, positions: Tensor, padding: Tensor | None) -> Tensor:
        """Cells ``[B, S, width]`` to the same; see `Transformer.forward`."""
        placed = cells + positions
        seen, _ = self.self_attn(placed, placed, cells, padding, need_weights=False)
        cells = self.norm1(cells + self.dropout(seen))
        thought = self.linear2(self.dropout(F.relu(self.linear1(cells))))
        return self.norm2(cells + self.dropout(thought))


class DecoderLayer(nn.Module):
    """A layer in which queries look at one another and at the cells, normalized after each step.

    Args:
        width: The channels.
        heads: Of both attentions.
        feedforward: The channels within the perceptron.
        dropout: In attentions and perceptron, and after each.
    """

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.linear1 = nn.Linear(width, feedforward)
        self.linear2 = nn.Linear(feedforward, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        answer: Tensor,
        queries: Tensor,
        cells: Tensor,
        positions: Tensor,
        padding: Tensor | None,
        near: Tensor | None = None,
        look: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Answers ``[B, Q, width]`` so far to the next, and where they looked; see `Transformer.forward`."""
        placed = answer + queries
        seen, _ = self.self_attn(placed, placed, answer, need_weights=False)
        answer = self.norm1(answer + self.dropout(seen))
        seen, attention = self.multihead_attn(
            answer + queries, cells + positions, cells, padding, need_weights=look, attn_mask=near
        )
        answer = self.norm2(answer + self.dropout(seen))
        thought = self.linear2(self.dropout(F.relu(self.linear1(answer))))
        return self.norm3(answer + self.dropout(thought)), attention


class SpatialPrior(nn.Module):
    """Near which point of the image each query looks: what the paper's queries take most of their training to find out.

    The logarithm of a Gaussian is added to the attention's own, as in SMCA (Gao, Zheng, Wang, Dai, Li, ICCV 2021, "Fast
    Convergence of DETR with Spatially Modulated Co-Attention", section 3.2); but its centre and its widths are
    learned for each query, and not computed from the image for each head.

    Args:
        queries: How many. Their points are evenly spread over the image at first.
    """

    def __init__(self, queries: int) -> None:
        super().__init__()
        self.centres = nn.Embedding(queries, 2)
        self.log_spreads = nn.Embedding(queries, 2)
        with torch.no_grad():
            self.centres.weight.copy_(torch.quasirandom.SobolEngine(2).draw(queries + 1)[1:])
        nn.init.constant_(self.log_spreads.weight, math.log(_SPREAD))

    def forward(self, places: Tensor) -> Tensor:
        """The logarithm of each query's Gaussian at places ``[B, S, 2]``: ``[B, Q, S]``."""
        away = (places[:, None] - self.centres.weight[:, None]) / self.log_spreads.weight.exp()[:, None]
        return -away.square().sum(-1) / 2


class MLP(nn.Module):
    """Linear layers with ReLUs between, as wide within as what comes in.

    Args:
        width: The channels.
        out: Those of the last layer.
        layers: How many.
    """

    def __init__(self, width: int, out: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(width, width if layer < layers - 1 else out) for layer in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width]`` to ``[..., out]``."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


def _published_name(name: str) -> str:
    """What a parameter or buffer of `DETR` is called in the authors' files."""
    if not name.startswith("backbone."):
        return name
    parts = name.split(".")[1:]
    while parts[0] in ("body", "extractor"):  # how our backbones wrap the libraries'
        parts = parts[1:]
    return ".".join(["backbone.0.body", *parts])
