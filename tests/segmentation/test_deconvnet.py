"""Test DeconvNet: the paper's parameters and layers, sizes, and overfitting."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segdet.nn.upsampling import MaxUnpooling
from segdet.segmentation.deconvnet import DeconvNet
from segdet.util.errors import UserError

CLASSES = ["background", "bright", "striped"]
WIDER = {"width": 0.25, "fc_channels": 128}
"""With half of these channels, the result after 200 steps depends on the initial weights and the processor."""


def _small(**kwargs: Any) -> DeconvNet:
    torch.manual_seed(0)
    return DeconvNet(CLASSES, **({"width": 0.125, "fc_channels": 64, "fc_kernel": 1} | kwargs))


def test_parameters_and_layers() -> None:
    with torch.device("meta"):
        model = DeconvNet([str(number) for number in range(21)])
    norms = sum(
        p.numel()
        for m in model.modules()
        if isinstance(m, nn.BatchNorm2d)
        for p in m.parameters(recurse=False)
    )
    assert sum(p.numel() for p in model.parameters()) - norms == 251_772_245
    assert norms == 33_408
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(nn.Conv2d) == 13 + 2 + 1 and kinds.count(nn.ConvTranspose2d) == 1 + 13
    assert kinds.count(nn.BatchNorm2d) == 13 + 2 + 1 + 13


def test_224_pixels_become_one_vector_and_are_restored() -> None:
    with torch.device("meta"):
        model = DeconvNet(CLASSES, width=0.125, fc_channels=32)
        pooled = model.encoder(torch.zeros(2, 3, 224, 224))
        assert model.fc6(pooled[-1].features).shape == (2, 32, 1, 1)
        assert model._decode(pooled)[0].shape == (2, 64, 7, 7)
        assert model(torch.zeros(2, 3, 224, 224)).shape == (2, 3, 224, 224)
        assert model(torch.zeros(1, 3, 360, 481)).shape == (1, 3, 360, 481)


def test_an_image_smaller_than_fc6_is_an_error() -> None:
    with torch.device("meta"):
        model = DeconvNet(CLASSES, width=0.125, fc_channels=32)
        with pytest.raises(
            UserError, match="images of 128x192 pixels are smaller than the receptive field of fc6, 224x224"
        ):
            model(torch.zeros(1, 3, 128, 192))


def test_initial_weights_follow_the_paper_or_he_initialization() -> None:
    papers, hes = _small(init_std=0.01), _small()
    for name in ("fc7.weight", "fc6_deconv.weight"):
        assert float(papers.state_dict()[name].std()) == pytest.approx(0.01, rel=0.05)
        assert float(hes.state_dict()[name].std()) == pytest.approx((2 / 64) ** 0.5, rel=0.05)


def test_overfits_four_images(overfit: Callable[..., float]) -> None:
    assert overfit(_small(**WIDER), 200, 3e-3) >= 0.98


def test_shuffled_switches_do_not_overfit(
    overfit: Callable[..., float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Switches of another image and channel put values at wrong positions."""
    unpool = MaxUnpooling.forward

    def shuffled(self: MaxUnpooling, features: Tensor, size: tuple[int, int], indices: Tensor) -> Tensor:
        images, channels = torch.randperm(len(indices)), torch.randperm(indices.shape[1])
        return unpool(self, features, size, indices[images][:, channels])

    model = _small(**WIDER)
    monkeypatch.setattr(MaxUnpooling, "forward", shuffled)
    assert overfit(model, 200, 3e-3) < 0.98


def test_stages() -> None:
    with torch.inference_mode():
        names = [stage.name for stage in _small().eval().stages(torch.randn(1, 3, 64, 64))]
    assert names[:2] == ["encoder 1", "switches 1"]
    assert names[10:16] == ["fc6 deconvolution", *(f"deconvolution {n}" for n in (5, 4, 3, 2, 1))]
    assert names[-1] == "confidence"
