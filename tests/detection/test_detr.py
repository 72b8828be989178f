"""Tests of DETR: matching and losses against their definition, the transformer, padding, published weights."""

import itertools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.ops import box_convert, generalized_box_iou
from two_processes import other_process, process_of_two

from segdet.data.sample import Batch, Source, Target
from segdet.detection.detr import (
    DETR,
    DecoderLayer,
    DETROutput,
    EncoderLayer,
    _published_name,
    in_pixels,
    match,
    sine_encoding,
)
from segdet.detection.torchvision_network import COCO_NAMES
from segdet.nn.backbones import Backbone
from segdet.util.errors import UserError

SIZE = (64, 96)
_WRAPPED = r"backbone\.(body\.|extractor\.)+"
"""Prefix of the parameter names in a backbone; it depends on the library of the backbone."""
Overfit = Callable[..., float]
Few = Callable[[int], tuple[Tensor, list[Target]]]


def _small(**kwargs: Any) -> DETR:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "backbone": "small_vgg", "backbone_options": {"channels": [16, 24, 32], "convolutions": 1}, "stride": 8,
        "width": 64, "heads": 4, "encoder_layers": 1, "decoder_layers": 2, "feedforward": 128, "dropout": 0.0,
        "queries": 20,
    }  # fmt: skip
    return DETR(["red", "green"], **(options | kwargs))


def _targets() -> list[Target]:
    return [
        Target(
            boxes=torch.tensor([[2.0, 2, 60, 50], [10, 8, 40, 40], [38, 10, 70, 42]]),
            labels=torch.tensor([2, 1, 1]),
        ),
        Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64)),
        Target(boxes=torch.tensor([[30.0, 20, 50, 44]]), labels=torch.tensor([1])),
    ]


def _output(seed: int, queries: int = 5) -> DETROutput:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, queries, 3, generator=generator)
    boxes = 0.1 + 0.6 * torch.rand(2, 3, queries, 4, generator=generator)
    return DETROutput(logits, boxes, None)


def _relative_boxes(target: Target) -> Tensor:
    return target["boxes"] / torch.tensor([SIZE[1], SIZE[0]] * 2)


def _cost(logits: Tensor, box: Tensor, label: int, corners: Tensor) -> float:
    """Return the matching cost of a query and an object."""
    distance = (box - box_convert(corners, "xyxy", "cxcywh")).abs().sum()
    overlap = generalized_box_iou(box_convert(box[None], "cxcywh", "xyxy"), corners[None])
    return float(-logits.softmax(-1)[label - 1] + 5 * distance - 2 * overlap)


def _best_matching(output: DETROutput, layer: int, b: int, target: Target) -> dict[int, int]:
    """Return the query of each object in the matching with the lowest cost, found by trying all matchings."""
    labels, corners = target["labels"].tolist(), _relative_boxes(target)
    count, queries = len(labels), output.logits.shape[2]
    cost = [
        [_cost(output.logits[layer, b, q], output.boxes[layer, b, q], labels[g], corners[g])
         for q in range(queries)] for g in range(count)
    ]  # fmt: skip
    matchings = itertools.permutations(range(queries), count)
    return dict(enumerate(min(matchings, key=lambda queries: sum(cost[g][q] for g, q in enumerate(queries)))))


@pytest.mark.parametrize("seed", range(4))
def test_the_matching_has_the_lowest_cost(seed: int) -> None:
    output = _output(seed)
    targets = _targets()
    labels = torch.cat([target["labels"] for target in targets]) - 1
    corners = torch.cat([_relative_boxes(target) for target in targets])
    image, query, matched = match(output.logits, output.boxes, labels, corners, [3, 0, 1])
    assert image.shape == query.shape == matched.shape == (2, 4)
    starts = [0, 3, 3]
    for layer in range(2):
        expected = {
            (b, q, starts[b] + g)
            for b, target in enumerate(targets)
            for g, q in _best_matching(output, layer, b, target).items()
        }
        found = zip(image[layer].tolist(), query[layer].tolist(), matched[layer].tolist(), strict=True)
        assert set(found) == expected


def test_with_more_objects_than_queries_all_queries_are_matched() -> None:
    output = _output(0, queries=2)
    corners = torch.cat([_relative_boxes(target) for target in _targets()])
    image, query, matched = match(output.logits, output.boxes, torch.tensor([1, 0, 0, 0]), corners, [3, 0, 1])
    for layer in range(2):
        assert sorted(query[layer, image[layer] == 0].tolist()) == [0, 1]
        assert matched[layer].unique().numel() == 3 and (image[layer] == 2).sum() == 1


def test_losses_follow_their_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """The losses have weights of 1, 5 and 2; "no object" has a weight of 0.1; box losses are averaged over objects."""
    model, output = _small(), _output(1)
    monkeypatch.setattr(model, "forward", lambda images, sizes: output)
    losses = model.losses(torch.zeros(3, 3, *SIZE), _targets())
    sums = [{"class": 0.0, "weight": 0.0, "box": 0.0, "giou": 0.0} for _ in range(2)]
    for layer, parts in enumerate(sums):
        for b, target in enumerate(_targets()):
            pairs = {q: g for g, q in _best_matching(output, layer, b, target).items()}
            for q in range(5):
                target_label = int(target["labels"][pairs[q]]) - 1 if q in pairs else 2
                weight = 1.0 if q in pairs else 0.1
                parts["class"] -= weight * float(output.logits[layer, b, q].log_softmax(-1)[target_label])
                parts["weight"] += weight
            for q, g in pairs.items():
                box, corners = output.boxes[layer, b, q], _relative_boxes(target)[g]
                parts["box"] += float((box - box_convert(corners, "xyxy", "cxcywh")).abs().sum())
                overlap = generalized_box_iou(box_convert(box[None], "cxcywh", "xyxy"), corners[None])
                parts["giou"] += 1 - float(overlap)
    each = [
        {"class": p["class"] / p["weight"], "box": 5 * p["box"] / 4, "giou": 2 * p["giou"] / 4} for p in sums
    ]
    assert set(losses) == {"class", "box", "giou", "auxiliary"}
    for name in ("class", "box", "giou"):
        assert float(losses[name]) == pytest.approx(each[1][name], rel=1e-5), name
    assert float(losses["auxiliary"]) == pytest.approx(sum(each[0].values()), rel=1e-5)
    model.auxiliary = False
    alone = model.losses(torch.zeros(3, 3, *SIZE), _targets())
    assert alone == {name: losses[name] for name in ("class", "box", "giou")}


def test_losses_of_a_single_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """The object is the left half of the image, the predicted box the whole image."""
    model = _small()
    output = DETROutput(torch.zeros(1, 1, 1, 3), torch.tensor([0.5, 0.5, 1.0, 1.0]).view(1, 1, 1, 4), None)
    monkeypatch.setattr(model, "forward", lambda images, sizes: output)
    target = Target(boxes=torch.tensor([[0.0, 0, 48, 64]]), labels=torch.tensor([1]))
    losses = model.losses(torch.zeros(1, 3, *SIZE), [target])
    assert float(losses["class"]) == pytest.approx(math.log(3), rel=1e-5)
    assert float(losses["box"]) == pytest.approx(5 * (0.25 + 0.5), rel=1e-5)
    assert float(losses["giou"]) == pytest.approx(2 * 0.5, rel=1e-5)


def _losses_of(images: slice) -> dict[str, float]:
    """Return the losses of some of the images in this process."""
    model, output = _small(), _output(1)
    part = DETROutput(output.logits[:, images], output.boxes[:, images], None)
    model.forward = lambda images, sizes: part  # type: ignore[method-assign,assignment]
    targets = _targets()[images]
    return {
        name: float(loss) for name, loss in model.losses(torch.zeros(len(targets), 3, *SIZE), targets).items()
    }


def _process(rank: int, folder: Path) -> dict[str, float]:
    """Return the losses of process ``rank`` of two: the first has three objects, the second has one."""
    with process_of_two(rank, folder, seconds=120):
        return _losses_of(slice(0, 1) if rank == 0 else slice(1, 3))


def _other_process(folder: Path) -> None:
    (folder / "other.json").write_text(json.dumps(_process(1, folder)))


def test_objects_have_equal_weight_for_any_number_of_processes(tmp_path: Path) -> None:
    """The mean box loss of two processes is the loss of all images in one process."""
    whole = _losses_of(slice(0, 3))
    with other_process(_other_process, tmp_path, 120):
        first = _process(0, tmp_path)
    second = json.loads((tmp_path / "other.json").read_text())
    for name in ("box", "giou"):
        assert (first[name] + second[name]) / 2 == pytest.approx(whole[name], rel=1e-5), name


def test_without_objects_only_the_class_has_a_loss() -> None:
    losses = _small().losses(torch.randn(2, 3, *SIZE), [_targets()[1]] * 2)
    assert losses["box"] == 0 and losses["giou"] == 0 and losses["class"] > 0
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]


def test_a_diverged_network_has_a_loss_of_nan() -> None:
    model = _small()
    nn.init.constant_(model.class_embed.bias, math.nan)
    assert _total(model.losses(torch.randn(3, 3, *SIZE), _targets())).isnan()


def test_positions_are_encoded_as_in_the_paper() -> None:
    """Appendix A.4: half of the channels for y, half for x, alternating sines and cosines."""
    encoded = sine_encoding(torch.tensor([[0.3, 0.8]]), 16)[0]
    for start, place in ((0, 0.8), (8, 0.3)):
        for channel in range(8):
            angle = 2 * math.pi * place / 10_000 ** (2 * (channel // 2) / 8)
            expected = math.cos(angle) if channel % 2 else math.sin(angle)
            assert float(encoded[start + channel]) == pytest.approx(expected, abs=1e-6)


def test_without_positions_the_layers_equal_torchs() -> None:
    torch.manual_seed(3)
    cells, outputs, zeros = torch.randn(2, 12, 32), torch.randn(2, 5, 32), torch.zeros(1, 1, 32)
    padding = torch.arange(12) >= torch.tensor([[12], [7]])
    ours, theirs = EncoderLayer(32, 4, 48, 0.0), nn.TransformerEncoderLayer(32, 4, 48, 0.0, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(
        ours(cells, zeros, padding)[~padding], theirs(cells, src_key_padding_mask=padding)[~padding]
    )
    decoder, other = (
        DecoderLayer(32, 4, 48, 0.0),
        nn.TransformerDecoderLayer(32, 4, 48, 0.0, batch_first=True),
    )
    other.load_state_dict(decoder.state_dict())
    torch.testing.assert_close(
        decoder(outputs, zeros[0], cells, zeros, padding)[0],
        other(outputs, cells, memory_key_padding_mask=padding),
    )


def test_positions_are_added_to_queries_and_keys_but_not_to_values() -> None:
    torch.manual_seed(3)
    layer, cells, positions = EncoderLayer(32, 4, 48, 0.0), torch.randn(2, 12, 32), torch.randn(1, 12, 32)
    project, bias = layer.self_attn.in_proj_weight.chunk(3), layer.self_attn.in_proj_bias.chunk(3)
    inputs = (cells + positions, cells + positions, cells)
    q, k, v = (
        F.linear(x, w, b).view(2, 12, 4, 8).transpose(1, 2)
        for x, w, b in zip(inputs, project, bias, strict=True)
    )
    attended = ((q @ k.mT / math.sqrt(8)).softmax(-1) @ v).transpose(1, 2).flatten(2)
    out = layer.norm1(cells + layer.self_attn.out_proj(attended))
    out = layer.norm2(out + layer.linear2(layer.linear1(out).relu()))
    torch.testing.assert_close(layer(cells, positions, None), out)


def _on_patches(spatial_prior: bool) -> DETR:
    """Return a model with a backbone whose features depend only on the pixels of their own cell."""
    model = _small(spatial_prior=spatial_prior).eval()
    model.backbone = Backbone(nn.Conv2d(3, 32, 8, 8), [32], [8])
    model.backbone.forward = lambda images: [model.backbone.body(images)]  # type: ignore[method-assign]
    return model


@pytest.mark.parametrize("spatial_prior", [False, True])
def test_padding_changes_nothing(spatial_prior: bool) -> None:
    model = _on_patches(spatial_prior)
    small, large = torch.randn(1, 3, 40, 56), torch.randn(1, 3, *SIZE)
    batch = torch.cat([F.pad(small, (0, 40, 0, 24)), large])
    with torch.inference_mode():
        padded = model(batch, [(40, 56), SIZE])
        without_sizes = model(batch)
        for place, image in enumerate((small, large)):
            alone = model(image)
            for mine, other in zip(alone[:2], padded[:2], strict=True):
                torch.testing.assert_close(mine[:, 0], other[:, place], rtol=0, atol=1e-4)
    assert (without_sizes.logits[:, 0] - padded.logits[:, 0]).abs().max() > 1e-2


def test_losses_of_a_padded_batch_are_those_of_its_images() -> None:
    """In the training step, boxes are relative to their own image without padding."""
    model = _on_patches(False)
    sizes = [(40, 56), SIZE]
    images = torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8)
    targets = [
        Target(boxes=torch.tensor([[4.0, 4, 30, 36]]), labels=torch.tensor([1])),
        Target(boxes=torch.tensor([[30.0, 20, 80, 44]]), labels=torch.tensor([2])),
    ]
    sources = [Source(Path("x.png"), i, size) for i, size in enumerate(sizes)]
    total = model.training_step(Batch(images, sizes, targets, sources), 0)
    alone = [
        model.losses(model.normalize(image[None, :, :h, :w]), [target])
        for image, target, (h, w) in zip(images, targets, sizes, strict=True)
    ]
    for name in ("box", "giou", "class"):
        mean = (alone[0][name] + alone[1][name]) / 2
        torch.testing.assert_close(model.step_losses[f"loss_{name}"], mean.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(total.detach(), sum(_total(each).detach() for each in alone) / 2)


def _published(classes: int = 92) -> dict[str, Tensor]:
    """Return weights with the names and shapes of the authors' file for ResNet-50."""
    shapes: dict[str, tuple[int, ...]] = {
        "query_embed.weight": (100, 256), "input_proj.weight": (256, 2048, 1, 1), "input_proj.bias": (256,),
        "class_embed.weight": (classes, 256), "class_embed.bias": (classes,),
        "transformer.decoder.norm.weight": (256,), "transformer.decoder.norm.bias": (256,),
    }  # fmt: skip
    for layer, out in enumerate((256, 256, 4)):
        shapes |= {f"bbox_embed.layers.{layer}.weight": (out, 256), f"bbox_embed.layers.{layer}.bias": (out,)}
    for part, attentions, norms in (
        ("encoder", ("self_attn",), 2),
        ("decoder", ("self_attn", "multihead_attn"), 3),
    ):
        for layer in range(6):
            at = f"transformer.{part}.layers.{layer}"
            for attention in attentions:
                shapes |= {
                    f"{at}.{attention}.in_proj_weight": (768, 256), f"{at}.{attention}.in_proj_bias": (768,),
                    f"{at}.{attention}.out_proj.weight": (256, 256), f"{at}.{attention}.out_proj.bias": (256,),
                }  # fmt: skip
            shapes |= {f"{at}.linear1.weight": (2048, 256), f"{at}.linear1.bias": (2048,)}
            shapes |= {f"{at}.linear2.weight": (256, 2048), f"{at}.linear2.bias": (256,)}
            for norm in range(1, norms + 1):
                shapes |= {f"{at}.norm{norm}.weight": (256,), f"{at}.norm{norm}.bias": (256,)}
    with torch.device("meta"):
        body = torchvision.models.resnet50().state_dict()
    shapes |= {
        f"backbone.0.body.{name}": tuple(value.shape)
        for name, value in body.items()
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
    }
    # Each weight repeats a number of its own. The file is therefore small, and exchanged weights are detected.
    return {name: torch.full((1,), float(i)).expand(shape) for i, (name, shape) in enumerate(shapes.items())}


def _file(path: Path, state: dict[str, Tensor]) -> str:
    torch.save({"model": state}, path)
    return str(path)


def test_every_published_weight_is_loaded(tmp_path: Path) -> None:
    published = _published()
    model = DETR(COCO_NAMES, weights=_file(tmp_path / "detr.pth", published))
    own = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert len(own) == len(published)
    for name, value in published.items():
        inner = name.removeprefix("backbone.0.body.")
        (mine,) = [
            each for each in own if each == name or (inner != name and re.fullmatch(_WRAPPED + inner, each))
        ]
        assert torch.equal(own[mine], value), name


@pytest.mark.parametrize("backbone", ["resnet50", "torchvision:resnet50"])
def test_published_names_match_the_backbones_of_both_libraries(backbone: str) -> None:
    with torch.device("meta"):
        own = DETR(COCO_NAMES, backbone).state_dict()
    assert {_published_name(k) for k in own if not k.endswith("num_batches_tracked")} == set(_published())


def test_number_of_parameters_equals_the_papers() -> None:
    """Table 1: 41 million parameters, without the frozen batch normalization of the backbone."""
    with torch.device("meta"):
        model = DETR(COCO_NAMES)
    normalization = {
        id(p) for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()
    }
    width, inner = 256, 2048
    attention, feedforward, norm = 4 * width * (width + 1), 2 * width * inner + inner + width, 2 * width
    encoder = attention + feedforward + 2 * norm
    decoder = 2 * attention + feedforward + 3 * norm
    heads = 92 * (width + 1) + 2 * width * (width + 1) + 4 * (width + 1)
    resnet = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["num_params"]
    convolutions = resnet - 1000 * 2049 - sum(p.numel() for p in model.parameters() if id(p) in normalization)
    rest = 6 * (encoder + decoder) + norm + heads + 100 * width + (inner + 1) * width
    counted = sum(p.numel() for p in model.parameters() if id(p) not in normalization)
    assert counted == convolutions + rest == 41_524_768


def _small_published() -> dict[str, Tensor]:
    """Return the weights of a small network with the published names and outputs for COCO."""
    state = {_published_name(name): value for name, value in _small().state_dict().items()}
    return state | {"class_embed.weight": torch.randn(92, 64), "class_embed.bias": torch.arange(92.0)}


def test_published_outputs_are_selected_by_class_name(tmp_path: Path) -> None:
    published = _small_published()
    options: dict[str, Any] = {
        "backbone": "small_vgg", "backbone_options": {"channels": [16, 24, 32], "convolutions": 1}, "stride": 8,
        "width": 64, "encoder_layers": 1, "decoder_layers": 2, "feedforward": 128, "queries": 20,
        "weights": _file(tmp_path / "detr.pth", published),
    }  # fmt: skip
    selected = DETR(["dog", "person"], **options)
    assert selected.class_embed.bias.tolist() == [18, 1, 91]
    assert torch.equal(selected.class_embed.weight, published["class_embed.weight"][[18, 1, 91]])
    new = DETR(["platelet"], **options)
    assert new.class_embed.weight.shape == (2, 64) and new.class_embed.bias.abs().max() < 1
    assert torch.equal(new.query_embed.weight, published["query_embed.weight"])


def test_mistakes_are_reported_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.width 66: cannot be divided by 4 heads"):
        _small(width=66)
    with pytest.raises(UserError, match=r"model\.queries 0: must be at least 1"):
        _small(queries=0)
    with pytest.raises(UserError, match=r"model\.decoder_layers 0: must be at least 1"):
        _small(decoder_layers=0)
    path = _file(tmp_path / "detr.pth", _small_published())
    with pytest.raises(UserError, match=r"detr\.pth: not the weights of this DETR.* no parameters for"):
        _small(encoder_layers=0, weights=path)
    with pytest.raises(UserError, match=r"detr\.pth: query_embed\.weight has another shape"):
        _small(queries=10, weights=path)
    with pytest.raises(UserError, match=r"none\.pth: no such file"):
        _small(weights=str(tmp_path / "none.pth"))


def test_detections_are_the_most_probable_class_of_each_query(monkeypatch: pytest.MonkeyPatch) -> None:
    """The class "no object" is never returned. Boxes are sorted by score and clipped to the image."""
    model = _small().eval()
    probabilities = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.4, 0.1]])
    boxes = torch.tensor([[0.5, 0.5, 0.25, 0.5], [0.125, 0.25, 0.5, 0.25]])
    output = DETROutput(probabilities.log()[None, None], boxes[None, None], None)
    monkeypatch.setattr(model, "forward", lambda images: output)
    (found,) = model.predict(torch.zeros(1, 3, *SIZE))
    torch.testing.assert_close(found["scores"], torch.tensor([0.5, 0.2]))
    assert found["labels"].tolist() == [1, 2]
    torch.testing.assert_close(found["boxes"], torch.tensor([[0.0, 8, 36, 24], [36, 16, 60, 48]]))
    model.score_threshold = 0.3
    assert model.predict(torch.zeros(1, 3, *SIZE))[0]["labels"].tolist() == [1]


@pytest.mark.parametrize("spatial_prior", [False, True])
def test_stages_show_the_attention_of_the_best_queries(spatial_prior: bool) -> None:
    model = _small(spatial_prior=spatial_prior).eval()
    entered: list[int] = []
    model.backbone.register_forward_hook(lambda *_: entered.append(1))
    image = torch.randn(1, 3, 60, 90)
    with torch.inference_mode():
        stages = list(model.stages(image))
        assert entered == [1]
        (found,) = model.predict(image)
    names = [stage.name.split(",")[0] for stage in stages]
    attention = [f"attention {place}" for place in (1, 2, 3)]
    assert names == [*(["points"] if spatial_prior else []), *attention, "queries", "queries", "detections"]
    for place, stage in enumerate(stages[-6:-3]):
        assert stage.map is not None and stage.map.shape == (8, 12)
        assert float(stage.map.sum()) == pytest.approx(1, abs=1e-5)
        assert stage.scores is not None
        torch.testing.assert_close(stage.scores[0], found["scores"][place])
    torch.testing.assert_close(stages[-1].boxes, found["boxes"])


def test_a_query_with_a_spatial_prior_starts_at_its_point() -> None:
    model = _small(spatial_prior=True).eval()
    assert model.prior is not None
    for parameter in (model.bbox_embed.layers[-1].weight, model.bbox_embed.layers[-1].bias):
        nn.init.zeros_(parameter)  # type: ignore[arg-type]
    for parameter in model.transformer.decoder.layers[-1].multihead_attn.parameters():  # type: ignore[union-attr]
        nn.init.zeros_(parameter)
    points = model.prior.centres.weight
    _, boxes, attention = model(torch.randn(2, 3, *SIZE), need_attention=True)
    torch.testing.assert_close(boxes[0, 0, :, :2], points.clamp(1e-3, 1 - 1e-3))
    assert in_pixels(torch.tensor([0.5, 0.5, 0.5, 1.0]), SIZE).tolist() == [24, 0, 72, 64]
    # With zero weights, the attention is a Gaussian around the point. Its deviation is 0.1 of the image's sides.
    y, x = (torch.arange(8) + 0.5) / 8, (torch.arange(12) + 0.5) / 12
    for query in (0, 7):
        px, py = points[query].tolist()
        gauss = torch.exp(-((x - px).square() + (y[:, None] - py).square()) / (2 * 0.1**2))
        torch.testing.assert_close(attention[0, query], gauss / gauss.sum(), rtol=1e-4, atol=1e-6)


def _total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


@pytest.mark.parametrize("spatial_prior", [False, True])
def test_a_step_in_bfloat16(spatial_prior: bool, few_images: Few) -> None:
    model = _small(spatial_prior=spatial_prior)
    images, targets = few_images(2)
    with torch.autocast("cpu", torch.bfloat16):
        total = _total(model.losses(model.normalize(images), targets))
    assert total.dtype == torch.float32
    torch.testing.assert_close(
        total, _total(model.losses(model.normalize(images), targets)), rtol=0.05, atol=0
    )
    total.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("spatial_prior", "steps", "lr"), [(False, 200, 3e-3), (True, 90, 2e-3)])
def test_overfits_a_few_images(spatial_prior: bool, steps: int, lr: float, overfit: Overfit) -> None:
    assert overfit(_small(spatial_prior=spatial_prior), steps, lr) >= 0.95


def test_does_not_overfit_with_random_matching(overfit: Overfit, monkeypatch: pytest.MonkeyPatch) -> None:
    def at_random(logits: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
        layers, batch, queries = logits.shape[:3]
        image = torch.arange(batch).repeat_interleave(2).expand(layers, -1)
        query = torch.rand(layers, batch, queries).argsort(-1)[..., :2].flatten(1)
        return image, query, torch.arange(2 * batch).expand(layers, -1)

    monkeypatch.setattr("segdet.detection.detr.match", at_random)
    assert overfit(_small(spatial_prior=True), 90, 2e-3) < 0.5
