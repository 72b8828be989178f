"""Test FCN-32s, 16s and 8s: the paper's parameters, sizes and offsets; VGG16's logits; training in stages."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.vgg import VGG, make_layers

from segdet.segmentation.fcn_vgg16 import VGG16FCN, crop_offsets
from segdet.util.errors import UserError

VOC = [str(number) for number in range(21)]
CLASSES = ["background", "bright", "striped"]


def _small(**kwargs: Any) -> VGG16FCN:
    torch.manual_seed(0)
    options: dict[str, Any] = {"width": 0.125, "fc_channels": 32, "dropout": 0.0, "pad": 1}
    return VGG16FCN(CLASSES, **(options | kwargs))


@pytest.mark.parametrize(("stride", "count"), [(32, 134_346_581), (16, 134_357_354), (8, 134_362_751)])
def test_parameters_without_the_upsampling(stride: Any, count: int) -> None:
    with torch.device("meta"):
        model = VGG16FCN(VOC, stride=stride)
    assert sum(p.numel() for name, p in model.named_parameters() if not name.startswith("upscore")) == count
    assert not any(p.requires_grad for name, p in model.named_parameters() if name.startswith("upscore"))


def test_500_pixels_become_16_scores_then_544_then_500_pixels() -> None:
    with torch.device("meta"):
        model = VGG16FCN(VOC, stride=32)
        scores = model._scores(torch.zeros(1, 3, 500, 500))
        assert scores[-1].shape == (1, 21, 16, 16)
        assert model.upscore(scores[-1]).shape == (1, 21, 544, 544)
        assert model(torch.zeros(1, 3, 500, 500)).shape == (1, 21, 500, 500)


def test_the_released_offsets() -> None:
    assert [crop_offsets(stride) for stride in (32, 16, 8)] == [[19], [5, 27], [5, 9, 31]]


@pytest.mark.parametrize("pad", [100, 1])
@pytest.mark.parametrize("stride", [32, 16, 8])
def test_any_size_is_restored(stride: Any, pad: Any) -> None:
    with torch.device("meta"):
        model = _small(stride=stride, pad=pad)
        for size in [(1, 40), (63, 64), (65, 33), (97, 128), (500, 375)]:
            assert model(torch.zeros(1, 3, *size)).shape == (1, 3, *size)


class _Place(nn.Module):
    """A replacement for class scores that returns the column of each cell in the image."""

    def __init__(self, stride: int, first: float) -> None:
        super().__init__()
        self.stride, self.first = stride, first

    def forward(self, features: Tensor) -> Tensor:
        h, w = features.shape[-2:]
        return (self.first + self.stride * torch.arange(w)).expand(1, len(CLASSES), h, w)


@pytest.mark.parametrize("pad", [100, 1])
@pytest.mark.parametrize("stride", [32, 16, 8])
def test_scores_are_aligned_with_the_image(stride: Any, pad: Any) -> None:
    """If the score of each cell is its position, the score of a pixel is its position times the number of maps."""
    model = _small(stride=stride, pad=pad).eval()
    corner = pad - 1  # the distance of the first cell of the first convolution from the image
    model.score_fr = _Place(32, 15.5 + (3 * 32 if pad == 100 else 0) - corner)  # type: ignore[assignment]
    if stride <= 16:
        model.score_pool4 = _Place(16, 7.5 - corner)  # type: ignore[assignment]
    if stride == 8:
        model.score_pool3 = _Place(8, 3.5 - corner)  # type: ignore[assignment]
    model.skip_scales = (1.0, 1.0)
    maps = {32: 1, 16: 2, 8: 3}[stride]
    with torch.inference_mode():
        found = model(torch.zeros(1, 3, 256, 320))[0, 0]
    # Beyond the outermost cells, transposed convolutions decrease to zero.
    torch.testing.assert_close(
        found[64:-64, 64:-64] / maps, torch.arange(320.0)[64:-64].expand(128, -1), atol=1e-3, rtol=0
    )


def _narrow_vgg16() -> VGG:
    """Return torchvision's VGG16 with an eighth of the channels, 32 in fc6 and fc7, and three classes."""
    torch.manual_seed(0)
    with torch.device("meta"):  # skips drawing the 120 million weights of the classifier
        network = VGG(nn.Identity(), num_classes=3, init_weights=False)
    network.features = make_layers(
        [8, 8, "M", 16, 16, "M", 32, 32, 32, "M", 64, 64, 64, "M", 64, 64, 64, "M"], False
    )
    network.classifier = nn.Sequential(
        nn.Linear(64 * 49, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 3)
    )  # fmt: skip
    return network.double().eval()


def test_fully_connected_layers_as_convolutions_give_the_classifiers_logits(tmp_path: Path) -> None:
    theirs = _narrow_vgg16()
    torch.save(theirs.state_dict(), tmp_path / "vgg16.pth")
    model = _small(stride=32, pad=100, weights=str(tmp_path / "vgg16.pth")).double().eval()
    # Use torchvision's padding and classes.
    model.encoder.stages[0][0].padding = (1, 1)
    last = theirs.classifier[6]
    with torch.inference_mode():
        model.score_fr.weight.copy_(last.weight[:, :, None, None])
        model.score_fr.bias.copy_(last.bias)
        # The file holds float32 weights.
        theirs.load_state_dict({k: v.float().double() for k, v in theirs.state_dict().items()})
        crop = torch.randn(1, 3, 224, 224, dtype=torch.float64)
        scores = model._scores(crop)[0]
        assert scores.shape == (1, 3, 1, 1)
        torch.testing.assert_close(scores.flatten(1), theirs(crop), rtol=0, atol=1e-12)
        # One convolution classifies all windows of pool5 at once.
        image = torch.randn(1, 3, 256, 288, dtype=torch.float64)
        scores, pool5 = model._scores(image)[0], theirs.features(image)
        assert scores.shape == (1, 3, 2, 3)
        windows = F.unfold(pool5, 7).transpose(1, 2)
        torch.testing.assert_close(
            scores.flatten(2).transpose(1, 2), theirs.classifier(windows), rtol=0, atol=1e-12
        )


def test_every_stage_starts_at_the_result_of_the_previous_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    previous = _small(stride=32).eval()
    nn.init.normal_(previous.score_fr.weight)
    images = torch.randn(1, 3, 256, 256)
    inner = (..., slice(32, -32), slice(32, -32))
    new = {16: "upscore2, score_pool4, upscore", 8: "upscore_pool4, score_pool3, upscore"}
    for stride, expected in new.items():
        torch.save({"state_dict": previous.state_dict()}, tmp_path / "previous.ckpt")
        model = _small(stride=stride, weights=str(tmp_path / "previous.ckpt"), skip_scales=(1.0, 1.0)).eval()
        assert capsys.readouterr().err.endswith(f"previous.ckpt; random weights: 3 ({expected})\n")
        with torch.inference_mode():
            before, after = previous(images)[inner], model(images)[inner]
        # The new scores are zero. Interpolating by 2 and then by 16 is nearly the same as by 32.
        assert before.std() > 0
        assert (before - after).abs().mean() < 0.05 * before.std()
        previous = model


def test_trained_upsampling_layers() -> None:
    def learned(upsampling: Any) -> list[str]:
        model = _small(upsampling=upsampling)
        return [n for n, p in model.named_parameters() if p.requires_grad and n.startswith("upscore")]

    assert learned("none") == []
    assert learned("intermediate") == ["upscore2.weight", "upscore_pool4.weight"]
    assert learned("all") == ["upscore2.weight", "upscore_pool4.weight", "upscore.weight"]


def test_initial_scores_are_zero() -> None:
    model = _small().eval()
    with torch.inference_mode():
        assert (model(torch.randn(1, 3, 64, 64)) == 0).all()


def test_overfits_four_images(overfit: Callable[..., float]) -> None:
    model = _small(batch_norm=True, skip_scales=(1.0, 1.0), upsampling="all")
    assert overfit(model, 160, 1e-2) >= 0.98


def test_without_skip_connections_it_does_not_overfit(overfit: Callable[..., float]) -> None:
    """Cells of 32 pixels cannot represent rectangles of 15."""
    model = _small(batch_norm=True, skip_scales=(0.0, 0.0), upsampling="all")
    assert overfit(model, 160, 1e-2) < 0.98


def test_stages_are_one_map_per_stride_and_the_classes() -> None:
    model = _small().eval()
    with torch.inference_mode():
        stages = list(model.stages(torch.zeros(1, 3, 64, 48)))
    assert [stage.name for stage in stages][:3] == ["stride 32", "stride 16", "stride 8"]
    assert stages[-1].name == "confidence" and stages[-1].map is not None
    assert stages[-1].map.shape == (64, 48)


def test_mistakes() -> None:
    with pytest.raises(UserError, match=r"--model\.stride 4: must be one of 32, 16, 8"):
        _small(stride=4)
    with pytest.raises(UserError, match=r"--model\.pad 50: must be one of 100, 1"):
        _small(pad=50)
