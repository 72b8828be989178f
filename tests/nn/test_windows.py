"""Tests of window crops, and of the dense evaluation of window classifiers against the evaluation of crops."""

import random
from typing import Any

import pytest
import torch
from dense_classifier import DenseClassifier
from torch import Tensor, nn

from segdet.nn import dense_windows
from segdet.nn.windows import crop_windows, pair, window_batches, window_grid
from segdet.util.errors import UserError

METHODS = ("fragments", "dilation", "shift")


def random_classifier(seed: int) -> tuple[nn.Sequential, tuple[int, int]]:
    """Return a random convertible classifier in double precision, and the size of its windows."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    window = rng.randint(12, 20), rng.randint(12, 20)
    size = list(window)
    channels = 3
    layers: list[nn.Module] = []

    def fits(kernel: list[int], stride: list[int], dilation: list[int]) -> bool:
        after = [
            (n - (k - 1) * d - 1) // s + 1 for n, k, s, d in zip(size, kernel, stride, dilation, strict=True)
        ]
        if min(after) < 1:
            return False
        size[:] = after
        return True

    def one_or_two(low: int, high: int) -> list[int]:
        return [rng.randint(low, high)] * 2 if rng.random() < 0.6 else [rng.randint(low, high) for _ in "hw"]

    for _ in range(rng.randint(1, 5)):
        kernel, stride = one_or_two(1, 4), rng.choice([[1, 1]] * 4 + [[2, 2], [1, 2]])
        dilation = rng.choice([[1, 1]] * 3 + [[2, 2]])
        if fits(kernel, stride, dilation):
            groups = channels if rng.random() < 0.2 else 1
            width = channels * rng.randint(1, 2) if groups > 1 else rng.randint(2, 6)
            bias = rng.random() < 0.6
            layers.append(nn.Conv2d(channels, width, kernel, stride, 0, dilation, groups, bias))  # type: ignore[arg-type]
            channels = width
        extra = [nn.BatchNorm2d(channels), nn.ReLU(inplace=rng.random() < 0.5)]
        rng.shuffle(extra)
        layers += extra[: rng.randint(0, 2)]
        if rng.random() < 0.3:
            pointwise = [nn.LeakyReLU(0.1), nn.GELU(), nn.Tanh(), nn.Dropout2d(), nn.ELU(inplace=True)]
            layers.append(rng.choice([*pointwise, nn.PReLU(channels), nn.LocalResponseNorm(3)]))
        kernel = one_or_two(1, 3)
        stride = kernel if rng.random() < 0.6 else one_or_two(1, 3)
        if rng.random() < 0.7:
            dilation = rng.choice([[1, 1]] * 3 + [[2, 1]])
            if rng.random() < 0.7:
                if fits(kernel, stride, dilation):
                    layers.append(nn.MaxPool2d(kernel, stride, 0, dilation))  # type: ignore[arg-type]
            elif fits(kernel, stride, [1, 1]):
                layers.append(nn.AvgPool2d(kernel, stride))  # type: ignore[arg-type]
    if rng.random() < 0.3:
        cells = [rng.choice([c for c in range(1, n + 1) if n % c == 0]) for n in size]
        layers.append(rng.choice([nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d])(tuple(cells)))
        size[:] = cells
    layers += [nn.Flatten(), nn.ReLU(), nn.Dropout(), nn.Linear(channels * size[0] * size[1], 7)]
    layers += [nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 4), nn.LogSoftmax(1)]
    middle = rng.randint(0, len(layers))
    network = nn.Sequential(nn.Sequential(*layers[:middle]), nn.Sequential(*layers[middle:])).double().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return network, window


def by_crops(network: nn.Module, images: Tensor, window: tuple[int, int], stride: Any) -> Tensor:
    rows, columns = window_grid(images.shape[-2:], window, stride)
    outputs = torch.cat([network(part) for part in window_batches(images, window, stride, 61)])
    return outputs.view(len(images), rows, columns, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize("seed", range(30))
def test_equal_to_every_crop(seed: int) -> None:
    network, window = random_classifier(seed)
    own = DenseClassifier(network, window).own_stride
    images = torch.randn(1, 3, window[0] + 7, window[1] + 9, dtype=torch.float64)
    others = random.Random(seed).sample([2, 3, 4, 6, (3, 2), (2 * own[0], own[1])], 2)
    with torch.inference_mode():
        each = by_crops(network, images, window, 1)
        for stride in (1, own, *others):
            down, right = pair(stride)
            expected = each[:, :, ::down, ::right]
            for method in METHODS:
                found = DenseClassifier(network, window, stride, method)(images)  # type: ignore[arg-type]
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
        network.float()
        expected = by_crops(network, images.float(), window, 1)
        for method in METHODS:
            found = DenseClassifier(network, window, 1, method)(images.float())  # type: ignore[arg-type]
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_random_classifiers_are_various() -> None:
    """The test above is only meaningful if the random classifiers cover all layers."""
    chains = [DenseClassifier(*random_classifier(seed)) for seed in range(30)]
    kinds = {type(layer).__name__ for chain in chains for layer in chain.classifier.modules()}
    assert {"Conv2d", "MaxPool2d", "AvgPool2d", "AdaptiveAvgPool2d", "BatchNorm2d", "Linear"} <= kinds
    assert sum(chain.own_stride != (1, 1) for chain in chains) >= 20
    assert len({chain.own_stride for chain in chains}) >= 10
    convolutions = [m for chain in chains for m in chain.classifier.modules() if isinstance(m, nn.Conv2d)]
    assert any(m.groups > 1 for m in convolutions) and any(m.dilation != (1, 1) for m in convolutions)
    assert any(m.stride != (1, 1) for m in convolutions)


def _plain() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip
    return network.double().eval()  # 14 px: 12, 6, 4, 2


def _difference(method: str, stride: int = 1) -> float:
    network, images = _plain(), torch.randn(1, 3, 22, 25, dtype=torch.float64)
    with torch.inference_mode():
        found = DenseClassifier(network, 14, stride, method)(images)  # type: ignore[arg-type]
        return float((found - by_crops(network, images, (14, 14), stride)).abs().max())


def test_wrong_dilations_and_offsets_change_the_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _difference("dilation") < 1e-10 and _difference("fragments") < 1e-10
    with monkeypatch.context() as broken:
        broken.setattr(dense_windows._StepPlan, "dilation_of", lambda plan, step: step.dilation)
        assert _difference("dilation") > 1e-3
        assert _difference("fragments") < 1e-10  # no dilation in this method
    with monkeypatch.context() as broken:
        original = dense_windows._StepPlan.offsets
        broken.setattr(
            dense_windows._StepPlan,
            "offsets",
            lambda plan: ((first, (slice(0, None, 2),) * 2) for first, _ in original(plan)),
        )
        assert _difference("fragments") > 1e-3


def test_weights_are_shared_and_gradients_are_equal() -> None:
    network, images = _plain(), torch.randn(2, 3, 18, 18, dtype=torch.float64)
    dense = DenseClassifier(network, 14, 2)
    assert {id(p) for p in dense.parameters()} == {id(p) for p in network.parameters()}
    gradients: list[list[Tensor]] = []
    for outputs in (dense(images), by_crops(network, images, (14, 14), 2)):
        network.zero_grad()
        outputs.square().sum().backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(network.parameters()))
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        before = dense(images)
        network[-1].weight.mul_(2)  # type: ignore[operator,union-attr]
        assert not torch.equal(dense(images), before)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("before", [True, False])
def test_replaced_layers_of_the_classifier_are_used(seed: int, before: bool) -> None:
    """Synchronized batch normalization replaces layers before training on several devices."""
    network, window = random_classifier(seed)
    dense = None if before else DenseClassifier(network, window, 2)
    replaced = [m for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    dense = dense or DenseClassifier(network, window, 2)
    norms = [m for m in network.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert len(norms) == len(replaced) > 0
    network.float().eval()
    for norm in norms:
        nn.init.normal_(norm.running_mean)  # type: ignore[arg-type]
        nn.init.uniform_(norm.running_var, 0.5, 2)  # type: ignore[arg-type]
    images = torch.randn(1, 3, window[0] + 7, window[1] + 9)
    with torch.inference_mode():
        expected = by_crops(network, images, window, 2)
        torch.testing.assert_close(dense(images), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("first", [nn.ReLU(inplace=True), nn.MaxPool2d(1), nn.AdaptiveMaxPool2d(4)])
def test_images_are_not_modified(first: nn.Module) -> None:
    network = nn.Sequential(first, nn.ELU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 2))
    images = torch.randn(1, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    before = images.clone()
    with torch.inference_mode():
        expected = by_crops(network, images, (4, 4), 1)
        for method in METHODS:
            found = DenseClassifier(network, 4, 1, method)(images)  # type: ignore[arg-type]
            assert torch.equal(images, before)
            torch.testing.assert_close(found, expected)


def test_own_stride_is_the_product_of_the_strides() -> None:
    assert DenseClassifier(_plain(), 14).own_stride == (4, 4)
    assert DenseClassifier(_plain(), 14)(torch.randn(1, 3, 22, 26).double()).shape == (1, 3, 3, 4)
    # The last pooling has one output per window, so that its stride has no effect.
    assert DenseClassifier([*_plain()[:-2], nn.MaxPool2d(2), nn.Flatten()], 14).own_stride == (4, 4)


def test_the_method_follows_the_stride() -> None:
    layers = [
        nn.Conv2d(3, 4, 3),
        nn.MaxPool2d(2),
        nn.MaxPool2d(2),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    ]
    methods = {stride: DenseClassifier(layers, 18, stride).method for stride in (8, 4, 2, 1)}
    assert methods == {8: "dilation", 4: "dilation", 2: "dilation", 1: "fragments"}


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.Conv2d(3, 4, 3, padding=1)], r"layer 0 \(Conv2d\).*padding=\(1, 1\) adds zeros.*use padding=0"),
        ([nn.Conv2d(3, 4, 3, padding="same")], "padding='same' adds zeros"),
        ([nn.MaxPool2d(2, padding=1)], "padding=1 adds zeros"),
        ([nn.MaxPool2d(3, ceil_mode=True)], "ceil_mode pools beyond the edge of 8x8"),
        ([nn.AvgPool2d(3, ceil_mode=True)], "ceil_mode pools beyond"),
        ([nn.MaxPool2d(2, return_indices=True)], "leave return_indices out"),
        ([nn.AdaptiveAvgPool2d(3)], "3x3 cells over 8x8 places are not of one size"),
        ([nn.InstanceNorm2d(3)], r"\(InstanceNorm2d\).*cannot be converted"),
        ([nn.GroupNorm(1, 3)], r"\(GroupNorm\).*cannot be converted"),
        ([nn.BatchNorm2d(3, track_running_stats=False)], "keeps no running statistics"),
        ([nn.ConvTranspose2d(3, 3, 2)], "cannot be converted"),
        ([nn.Softmax(3)], "cannot be converted"),
        ([nn.Flatten(), nn.BatchNorm1d(192)], "cannot be converted"),
        ([nn.Flatten(), nn.Softmax(1)], "cannot be converted"),
        ([nn.Flatten(2)], "only flattening all but the first dimension"),
        ([nn.Linear(8, 2)], r"no nn\.Flatten before it"),
        ([nn.Flatten(), nn.Linear(192, 2), nn.Conv2d(2, 2, 1)], "follows a flatten"),
        ([nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(100, 2)], "takes 100 features.*gives 4x6x6"),
        ([nn.Conv2d(3, 4, 9)], "extent is 9x9, but its input for a window of 8x8 is only 8x8"),
        ([nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1))], r"layer 0\.1 \(Conv2d\)"),
        ([nn.Conv2d(3, 4, 3)], "ends with 6x6 places instead of one output"),
        ([nn.Flatten(), nn.ReLU()], "ends with 8x8 places"),
    ],
)  # fmt: skip
def test_unsupported_layers_are_refused(layers: list[nn.Module], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        DenseClassifier(layers, 8)
    assert "\n" not in str(refused.value)


def test_other_mistakes() -> None:
    with pytest.raises(UserError, match=r"give an nn\.Sequential"):
        DenseClassifier(nn.Conv2d(3, 2, 1), 1)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="must be one of auto, fragments, dilation, shift"):
        DenseClassifier(_plain(), 14, 1, "atrous")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="at least 1"):
        DenseClassifier(_plain(), 14, 0)
    with pytest.raises(UserError, match=r"image of 13x20 .* smaller than a window of 14x14"):
        DenseClassifier(_plain(), 14)(torch.zeros(1, 3, 13, 20).double())


def test_options_without_effect_are_accepted() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding="valid"), nn.MaxPool2d(2, ceil_mode=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )  # fmt: skip
    images = torch.randn(1, 3, 15, 14)
    with torch.inference_mode():
        for method in METHODS:
            found = DenseClassifier(network, 8, 1, method)(images)  # type: ignore[arg-type]
            torch.testing.assert_close(found, by_crops(network, images, (8, 8), 1), rtol=0, atol=1e-5)


def test_windows_of_one_pixel() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    images = torch.randn(2, 3, 7, 9)
    for method in METHODS:
        found = DenseClassifier(network, 1, (2, 3), method)(images)  # type: ignore[arg-type]
        torch.testing.assert_close(found, by_crops(network, images, (1, 1), (2, 3)))


# Crops.


def test_crops_are_copies_of_the_windows() -> None:
    images = torch.randn(2, 3, 9, 11)
    view = images.unfold(2, 4, 2).unfold(3, 5, 3).permute(0, 2, 3, 1, 4, 5)
    assert view.shape == (2, *window_grid((9, 11), (4, 5), (2, 3)), 3, 4, 5) == (2, 3, 3, 3, 4, 5)
    torch.testing.assert_close(view[1, 2, 1], images[1, :, 4:8, 3:8])
    parts = list(window_batches(images, (4, 5), (2, 3), 4))
    assert [len(part) for part in parts] == [4, 4, 4, 4, 2]
    torch.testing.assert_close(torch.cat(parts), view.flatten(0, 2))
    some = crop_windows(images, torch.tensor([1, 0]), torch.tensor([5, 0]), torch.tensor([6, 3]), (4, 5))
    torch.testing.assert_close(some, torch.stack([images[1, :, 5:9, 6:11], images[0, :, 0:4, 3:8]]))
    assert some.is_contiguous(memory_format=torch.channels_last)
    assert some.data_ptr() != images.data_ptr()


def test_an_image_that_is_too_small_has_no_windows() -> None:
    assert window_grid((3, 20), 4, 2) == (0, 9)
    assert list(window_batches(torch.zeros(1, 3, 3, 20), 4, 2, 8)) == []
