"""DETR: detection as set prediction with a transformer, without anchors and without suppression."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.ops import box_convert, clip_boxes_to_image, generalized_box_iou

from segdet.data.sample import Prediction, Target
from segdet.detection.base import Detector, detections_stage
from segdet.detection.torchvision_network import COCO_NAMES
from segdet.nn.backbones import build_backbone
from segdet.nn.boxes import paired_giou_loss
from segdet.nn.weights import Normalization, StateDict, load_weights
from segdet.task import Stage, View
from segdet.training.fine_tune import ClassRows
from segdet.util.errors import UserError, check_range
from segdet.util.stage_timing import stage

_NO_OBJECT_WEIGHT = 0.1
"""The weight of the class "no object" in the class loss (section 3.1)."""

_MATCHING_COSTS = {"class": 1.0, "box": 5.0, "giou": 2.0}
"""The weights of the parts of the matching cost (the authors' code)."""

_LOSS_WEIGHTS = {"class": 1.0, "box": 5.0, "giou": 2.0}
"""The weights of the losses (section A.4)."""

_SPREAD = 0.1
"""The initial standard deviation of a query's spatial prior, relative to the image's sides."""


class DETR(Detector):
    """DETR (Carion et al., ECCV 2020, "End-to-End Object Detection with Transformers") on any backbone.

    An encoder applies self-attention to the cells of the backbone's coarsest map. A decoder with a fixed number of
    learned queries applies self-attention among the queries and cross-attention to the cells. Each query predicts one
    box with its class, or no object. In training every object is matched with exactly one query, so that the network
    learns not to predict duplicates. Anchors and suppression are not needed. The cost is one pass of the backbone.

    Attention ignores the padding of images in a batch, and positions are relative to the size of each image without
    padding. The backbone's convolutions do not mask the padding, as in the paper. In evaluation nothing is padded. The
    box losses are averages over the objects of all processes, as in the authors' code, so that all objects have equal
    weight. The class loss is an average over the queries of one process.

    The defaults are the paper's, for training on COCO for 300 to 500 epochs. For small images and short training use
    few layers, a finer map and the spatial prior.

    Args:
        backbone: See `segdet.nn.backbones.build_backbone`.
        weights: A local file of the whole network's weights as published by the authors (``detr-r50-e632da11.pth``, for
            ``resnet50``), or null. If all classes have COCO names, the outputs of these classes are used; otherwise the
            class layer keeps its random weights.
        weights_backbone: Weights of the backbone alone, as ``weights`` of `segdet.nn.backbones.build_backbone`; ignored
            if there are ``weights``.
        backbone_options: See `segdet.nn.backbones.build_backbone`; ``{output_stride: 16}`` with a stride of 16 is
            DETR-DC5.
        stride: The stride of the backbone's map.
        width: The channels of the transformer; a multiple of 4 and of ``heads``.
        heads: The number of heads of each attention.
        encoder_layers: The number of encoder layers.
        decoder_layers: The number of decoder layers.
        feedforward: The hidden channels of each layer's feed-forward network.
        dropout: The dropout rate of all transformer layers.
        queries: The maximum number of detections per image.
        auxiliary: Whether to compute losses for all decoder layers instead of only the last (section 3.2).
        spatial_prior: Whether each query has a learned reference point (`SpatialPrior`). The query's attention is
            higher near this point, and the centre of its box is predicted relative to the point.
        score_threshold: Detections must exceed this score; 0 keeps all queries, as in the paper.
        kwargs: See `Detector`.
    """

    class_rows = {"class_embed": ClassRows(classes_first=True)}

    default_lr_factor = 0.1  # training from scratch diverges or stalls with the default rate

    def __init__(
        self,
        class_names: list[str],
        backbone: str = "resnet50",
        weights: bool | str | None = None,
        weights_backbone: bool | str | None = None,
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
        # The NMS threshold and the limit apply only to merged views. Detections of one view are not suppressed.
        super().__init__(class_names, score_threshold, nms_threshold=0.5, detections_per_image=None, **kwargs)
        if self.class_agnostic_nms and not self.several_views:
            raise UserError(
                "--model.class_agnostic_nms: DETR has no suppression, except between several views; leave it out"
            )
        if width % 4 or width % heads:
            raise UserError(
                f"--model.width {width}: cannot be divided by {heads} heads and by the sines and cosines of two "
                "coordinates; give a multiple of 4 and of --model.heads"
            )
        for name, value in (("queries", queries), ("decoder_layers", decoder_layers)):
            check_range(f"--model.{name}", value, least=1)
        self.auxiliary = auxiliary
        backbone_weights = None if weights else weights_backbone
        self.backbone = build_backbone(backbone, backbone_weights, [stride], **(backbone_options or {}))
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
            load_weights(
                self, weights, "DETR", convert=lambda state: self._convert_weights(state, str(weights))
            )

    def forward(
        self, images: Tensor, sizes: list[tuple[int, int]] | None = None, need_attention: bool = False
    ) -> DETROutput:
        """Return the predictions of each decoder layer for images ``[B, 3, H, W]``.

        Args:
            images: Normalized, padded at the bottom and on the right.
            sizes: ``(height, width)`` of each image without padding; None if nothing is padded.
            need_attention: Whether to return the attention of the queries.
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
        positions = torch.stack([across, down], -1).flatten(1, 2)  # [B or 1, S, 2]
        centres = positions - 0.5 / valid.flip(1)[:, None]
        attention_bias = None if self.prior is None else self.prior(centres)
        with stage("head"):
            outputs, attention = self.transformer(
                features.flatten(2).transpose(1, 2),
                sine_encoding(positions, width),
                padding,
                self.query_embed.weight,
                attention_bias,
                need_attention,
            )
        boxes = self.bbox_embed(outputs).float()
        if self.prior is not None:
            boxes = boxes + F.pad(torch.logit(self.prior.centres.weight, eps=1e-3), (0, 2))
        if attention is not None:
            attention = attention.unflatten(-1, (rows, columns))
        return DETROutput(self.class_embed(outputs).float(), boxes.sigmoid(), attention)

    def losses(
        self, images: Tensor, targets: list[Target], sizes: list[tuple[int, int]] | None = None
    ) -> dict[str, Tensor]:
        """Return the parts of the loss of a batch (sections 3.1 and A.2); for ``sizes`` see `forward`."""
        logits, predicted, _ = self(images, sizes)
        if not self.auxiliary:
            logits, predicted = logits[-1:], predicted[-1:]
        counts = [len(target["labels"]) for target in targets]
        sides = [[w, h, w, h] for h, w in sizes or [(images.shape[2], images.shape[3])] * len(targets)]
        scale = torch.tensor(sides, dtype=torch.float32, device=images.device)
        labels = torch.cat([target["labels"] for target in targets]) - 1
        corners = torch.cat([target["boxes"] / side for target, side in zip(targets, scale, strict=True)])
        image, query, matched = match(logits.detach(), predicted.detach(), labels, corners, counts)

        layer = torch.arange(len(logits), device=images.device)[:, None]
        target_labels = torch.full(logits.shape[:-1], logits.shape[-1] - 1, device=images.device)
        target_labels[layer, image, query] = labels[matched]
        weight: Tensor = self.class_weight  # type: ignore[assignment]
        class_loss = F.cross_entropy(
            logits.flatten(0, 2), target_labels.flatten(), weight, reduction="none"
        ).view(len(logits), -1)
        paired, target_boxes = predicted[layer, image, query], corners[matched]  # [layers, pairs, 4]
        l1_loss = F.l1_loss(paired, box_convert(target_boxes, "xyxy", "cxcywh"), reduction="none")
        giou_loss = paired_giou_loss(box_convert(paired, "cxcywh", "xyxy"), target_boxes)
        count = _mean_object_count(sum(counts), images.device)
        parts = {
            "class": class_loss.sum(1) / weight[target_labels].sum((1, 2)),
            "box": l1_loss.sum((1, 2)) / count,
            "giou": giou_loss.sum(1) / count,
        }
        weighted = {name: _LOSS_WEIGHTS[name] * part for name, part in parts.items()}
        losses = {name: part[-1] for name, part in weighted.items()}
        if len(logits) > 1:
            losses["auxiliary"] = torch.stack([part[:-1].sum() for part in weighted.values()]).sum()
        return losses

    def predict(self, images: Tensor) -> list[Prediction]:
        with stage("network"):
            output = self(images)
        with stage("nms"):
            return self._detections(output, (images.shape[2], images.shape[3]))

    def stages(self, image: Tensor) -> Iterator[Stage]:
        output = self(image, need_attention=True)
        size = (image.shape[2], image.shape[3])
        assert output.attention is not None
        scores, labels = output.logits[:, 0].softmax(-1)[..., :-1].max(-1)  # [layers, Q]
        boxes = in_pixels(output.boxes[:, 0], size)
        if self.prior is not None:
            points = self.prior.centres.weight.detach() * image.new_tensor([size[1], size[0]])
            caption = "The learned reference points of the queries."
            yield Stage("points", boxes=torch.cat([points - 2, points + 2], 1), caption=caption)
        best = scores[-1].topk(min(3, scores.shape[1])).indices
        for place, query in enumerate(best.tolist(), 1):
            name = self.class_names[int(labels[-1, query])]
            yield Stage(
                f"attention {place}, {name}",
                boxes=boxes[-1, query][None],
                scores=scores[-1, query][None],
                map=output.attention[0, query],
                caption="The attention of a query of high score in the last decoder layer.",
            )
        for layer, (b, s) in enumerate(zip(boxes, scores, strict=True), 1):
            caption = "The predictions of all queries after this layer."
            yield Stage(f"queries, layer {layer}", boxes=b, scores=s, caption=caption)
        (final,) = self._detections(output, size)
        caption = (
            "The most probable class of each query. Avoiding duplicates is learned; there is no suppression."
        )
        yield detections_stage(final, caption)

    def _detections(self, output: DETROutput, size: tuple[int, int]) -> list[Prediction]:
        """Return each query's most probable class, even if "no object" is more probable (section 4)."""
        scores, labels = output.logits[-1].softmax(-1)[..., :-1].max(-1)
        scores, order = scores.sort(1, descending=True)
        labels = labels.gather(1, order) + 1
        boxes = output.boxes[-1].gather(1, order[..., None].expand(-1, -1, 4))
        boxes = clip_boxes_to_image(in_pixels(boxes, size), size)
        keep = scores > self.score_threshold
        return [
            Prediction(boxes=b[k], scores=s[k], labels=c[k])
            for b, s, c, k in zip(boxes, scores, labels, keep, strict=True)
        ]

    def loss_inputs(self, view: View) -> dict[str, Any]:
        return {"sizes": view.sizes}

    @classmethod
    def weights_normalization(cls, arguments: Mapping[str, Any]) -> Normalization | None:
        if arguments.get("weights"):
            return None  # the authors' weights expect the default
        return super().weights_normalization(arguments)

    def _convert_weights(self, state: StateDict, path: str) -> StateDict:
        """Rename the authors' weights to our parameter names, and select the outputs of our classes."""
        own = self.state_dict()
        theirs = {name: _published_name(name) for name in own}
        unused = [
            name for name in state.keys() - set(theirs.values()) if not name.endswith("num_batches_tracked")
        ]
        if unused:
            raise UserError(
                f"{path}: not the weights of this DETR, which has no parameters for {len(unused)} of them, such as "
                f"{min(unused)}; use the backbone and the options that the file was trained with"
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


class DETROutput(NamedTuple):
    """The predictions of the queries."""

    logits: Tensor  # float32 [layers, B, Q, K + 1]: class logits; the last class is "no object"
    boxes: Tensor  # float32 [layers, B, Q, 4]: centre, width and height relative to the image
    attention: Tensor | None  # [B, Q, h, w], the attention weights of each query in the last layer, or None


def match(
    logits: Tensor, predicted: Tensor, labels: Tensor, corners: Tensor, counts: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Match each image's objects one-to-one with queries at minimum cost, in each layer (section 3.1, equation 1).

    The cost of a pair is the weighted sum of minus the probability of the object's class, the L1 distance of the boxes,
    and minus the boxes' generalized IoU. All costs are copied at once to the host, which runs the Hungarian algorithm.

    Args:
        logits: ``[layers, B, Q, K + 1]``.
        predicted: The queries' boxes, ``[layers, B, Q, 4]``: centre, width and height relative to the image.
        labels: The labels of all objects of the batch, by image, int64 ``[N]`` of 0..K-1.
        corners: The boxes of these objects, ``[N, 4]``, xyxy relative to the image.
        counts: The number of objects of each image.

    Returns:
        Image, query and object (in the order of ``labels``) of each pair, int64 ``[layers, P]`` each. If an image has
        more objects than queries, the remaining objects are not matched.
    """
    # Costs with objects of other images are computed too, which is faster than a loop over images.
    flat = predicted.flatten(0, 2)
    cost = (
        -_MATCHING_COSTS["class"] * logits.softmax(-1).flatten(0, 2)[:, labels]
        + _MATCHING_COSTS["box"] * torch.cdist(flat, box_convert(corners, "xyxy", "cxcywh"), p=1)
        - _MATCHING_COSTS["giou"] * generalized_box_iou(box_convert(flat, "cxcywh", "xyxy"), corners)
    )
    # SciPy's assignment raises an error for NaN. A diverged network should have a loss of NaN, as in other families.
    table = cost.nan_to_num(0.0).unflatten(0, predicted.shape[:3]).cpu().numpy()
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
    image, query, matched = torch.from_numpy(np.stack(pairs, 1)).to(predicted.device)
    return image, query, matched


def _mean_object_count(count: int, device: torch.device) -> Tensor | int:
    """Return the mean number of objects per process, at least 1; ``count`` is the number in this process.

    Gradients are averaged over processes. Division by this mean therefore divides the sum of all losses by the number
    of all objects.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return max(1, count)
    total = torch.full((), float(count), device=device)
    torch.distributed.all_reduce(total)
    return (total / torch.distributed.get_world_size()).clamp(min=1)


def in_pixels(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Convert boxes ``[..., 4]`` from centre, width and height relative to an image of ``size`` to xyxy in pixels."""
    return box_convert(boxes, "cxcywh", "xyxy") * boxes.new_tensor([size[1], size[0]] * 2)


def sine_encoding(positions: Tensor, width: int) -> Tensor:
    """Encode positions ``[..., 2]``, x and y relative to the image, as ``[..., width]`` sines and cosines.

    The first half of the channels encodes y, the second x, with alternating sines and cosines. Periods range from the
    side of the image to 10,000 times the side (section A.4, after Vaswani et al., NeurIPS 2017, section 3.5; with the
    factor 2 pi of the code).
    """
    half = width // 2
    steps = torch.arange(0, half, 2, device=positions.device) / half
    angles = positions.flip(-1)[..., None] * (2 * math.pi * 10_000.0**-steps)  # [..., 2, width / 4]
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-3)


class Transformer(nn.Module):
    """The paper's transformer (section A.3, figure 10): positions are added to the queries and keys of every attention.

    Args:
        width: The channels.
        heads: The number of heads of each attention.
        encoder_layers: The number of encoder layers.
        decoder_layers: The number of decoder layers.
        feedforward: The hidden channels of each layer's feed-forward network.
        dropout: The dropout rate in all attentions and feed-forward networks, and after each.
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
        self.encoder = nn.Module()  # parameter names as in the published weights
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
        attention_bias: Tensor | None = None,
        need_attention: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the outputs of each decoder layer.

        Args:
            cells: ``[B, S, width]``.
            positions: The encoded positions of the cells, ``[B or 1, S, width]``.
            padding: True for cells of padding, bool ``[B, S]``; None if there is no padding.
            queries: ``[Q, width]``.
            attention_bias: Added to the logits of each query's attention to the cells, ``[B or 1, Q, S]``, or None.
            need_attention: Whether to return the attention weights.

        Returns:
            The outputs ``[decoder layers, B, Q, width]``, normalized, and the attention weights of each query in the
            last layer, ``[B, Q, S]``, or None.
        """
        for layer in self.encoder.layers:  # type: ignore[union-attr]
            cells = layer(cells, positions, padding)
        output = torch.zeros_like(queries).expand(len(cells), -1, -1)
        if attention_bias is not None:
            if padding is not None:
                attention_bias, padding = attention_bias.masked_fill(padding[:, None], -torch.inf), None
            heads = self.decoder.layers[0].multihead_attn.num_heads  # type: ignore[index,union-attr]
            attention_bias = attention_bias.expand(len(cells), -1, -1).repeat_interleave(heads, 0)
        outputs, attention = [], None
        for layer in self.decoder.layers:  # type: ignore[union-attr]
            output, attention = layer(
                output, queries, cells, positions, padding, attention_bias, need_attention
            )
            outputs.append(self.decoder.norm(output))  # type: ignore[operator]
        return torch.stack(outputs), attention


class EncoderLayer(nn.Module):
    """A layer of self-attention and a feed-forward network, each followed by dropout and normalization.

    The arguments are those of `Transformer`.
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
        """Return the next cells ``[B, S, width]``; see `Transformer.forward`."""
        keys = cells + positions
        attended, _ = self.self_attn(keys, keys, cells, padding, need_weights=False)
        cells = self.norm1(cells + self.dropout(attended))
        transformed = self.linear2(self.dropout(F.relu(self.linear1(cells))))
        return self.norm2(cells + self.dropout(transformed))


class DecoderLayer(nn.Module):
    """A layer of self-attention, cross-attention and a feed-forward network.

    Each is followed by dropout and normalization. The arguments are those of `Transformer`.
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
        output: Tensor,
        queries: Tensor,
        cells: Tensor,
        positions: Tensor,
        padding: Tensor | None,
        attention_bias: Tensor | None = None,
        need_attention: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the next outputs ``[B, Q, width]`` and the attention to the cells; see `Transformer.forward`."""
        keys = output + queries
        attended, _ = self.self_attn(keys, keys, output, need_weights=False)
        output = self.norm1(output + self.dropout(attended))
        attended, attention = self.multihead_attn(
            output + queries,
            cells + positions,
            cells,
            padding,
            need_weights=need_attention,
            attn_mask=attention_bias,
        )
        output = self.norm2(output + self.dropout(attended))
        transformed = self.linear2(self.dropout(F.relu(self.linear1(output))))
        return self.norm3(output + self.dropout(transformed)), attention


class SpatialPrior(nn.Module):
    """A learned reference point per query. Higher attention near this point shortens training.

    The logarithm of a Gaussian is added to the attention logits, as in SMCA (Gao, Zheng, Wang, Dai, Li, ICCV 2021,
    "Fast Convergence of DETR with Spatially Modulated Co-Attention", section 3.2). The centre and widths of the
    Gaussian are parameters of the query; SMCA computes them from the image for each head.

    Args:
        queries: The number of queries. Their initial points are evenly distributed over the image.
    """

    def __init__(self, queries: int) -> None:
        super().__init__()
        self.centres = nn.Embedding(queries, 2)
        self.log_spreads = nn.Embedding(queries, 2)
        with torch.no_grad():
            self.centres.weight.copy_(torch.quasirandom.SobolEngine(2).draw(queries + 1)[1:])
        nn.init.constant_(self.log_spreads.weight, math.log(_SPREAD))

    def forward(self, positions: Tensor) -> Tensor:
        """Return the logarithm of each query's Gaussian at positions ``[B, S, 2]``: ``[B, Q, S]``."""
        distance = (positions[:, None] - self.centres.weight[:, None]) / self.log_spreads.weight.exp()[
            :, None
        ]
        return -distance.square().sum(-1) / 2


class MLP(nn.Module):
    """Linear layers with ReLUs between them; ``width`` is the number of input and hidden channels."""

    def __init__(self, width: int, out: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(width, width if layer < layers - 1 else out) for layer in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., width]`` to ``[..., out]``."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


def _published_name(name: str) -> str:
    """Convert the name of a parameter or buffer of `DETR` to its name in the authors' files."""
    if not name.startswith("backbone."):
        return name
    parts = name.split(".")[1:]
    while parts[0] in ("body", "extractor"):  # wrappers of our backbones
        parts = parts[1:]
    return ".".join(["backbone.0.body", *parts])
