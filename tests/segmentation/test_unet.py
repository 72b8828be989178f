"""Test U-Net: the paper's numbers, output sizes, seamless tiles, skip connections and border weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segdet.data.sample import Target
from segdet.segmentation.base import Segmenter
from segdet.segmentation.unet import OriginalUNet, UNet, border_proximity
from segdet.util.errors import UserError

CLASSES = ["background", "bright", "striped"]
Overfit = Callable[[Segmenter, int, float], float]


def _unet(**kwargs: Any) -> UNet:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "backbone": "small_vgg",
        "backbone_options": {"channels": [8, 16, 24, 32]},
        "widths": [8, 8, 16, 24],
    }
    return UNet(CLASSES, **(options | kwargs))


def _original(**kwargs: Any) -> OriginalUNet:
    torch.manual_seed(0)
    options: dict[str, Any] = {"width": 8, "depth": 2, "dropout": 0.0}
    return OriginalUNet(CLASSES, **(options | kwargs))


class TestUNet:
    def test_overfits_four_images(self, overfit: Overfit) -> None:
        assert overfit(_unet(), 50, 1e-2) >= 0.98

    def test_without_skips_it_does_not_overfit(
        self, overfit: Overfit, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = _unet()
        contract = model._contract
        monkeypatch.setattr(
            model, "_contract", lambda images: [*(0 * m for m in contract(images)[:-1]), contract(images)[-1]]
        )
        assert overfit(model, 50, 1e-2) < 0.98

    @pytest.mark.parametrize(
        ("backbone", "strides"),
        [
            ("resnet10t", [1, 2, 4, 8, 16]),  # rounds odd sides up
            ("torchvision:vgg11", [2, 4, 8, 16]),  # rounds them down
            ("convnext_atto", [1, 4, 8, 16, 32]),  # goes to stride 4 at once
        ],
    )
    def test_any_backbone_and_any_size(self, backbone: str, strides: list[int]) -> None:
        model = _unet(
            backbone=backbone, backbone_options=None, strides=strides, widths=[8] * (len(strides) - 1)
        )
        model.eval()
        with torch.inference_mode():
            assert model.predict(torch.zeros(1, 3, 51, 77)).shape == (1, 3, 51, 77)

    def test_every_parameter_has_a_gradient(self) -> None:
        model = _unet()
        images, masks = torch.randn(2, 3, 32, 32), torch.randint(0, 3, (2, 32, 32))
        model.losses(images, [Target(mask=mask) for mask in masks])["segmentation"].backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())

    def test_stages_are_both_paths_and_the_classes(self) -> None:
        model = _unet().eval()
        with torch.inference_mode():
            stages = list(model.stages(torch.randn(1, 3, 32, 48)))
        names = [stage.name for stage in stages]
        assert names[:5] == [f"contracting, stride {s}" for s in (1, 2, 4, 8, 16)]
        assert names[5:9] == [f"expanding, stride {s}" for s in (8, 4, 2, 1)]
        assert names[-1] == "confidence" and names[9].startswith("heat map")
        assert [stage.map.shape for stage in stages[:2] + stages[5:6]] == [(32, 48), (16, 24), (4, 6)]  # type: ignore[union-attr]

    def test_mistakes_are_reported_in_one_line(self) -> None:
        with pytest.raises(UserError, match=r"model\.widths: 2 numbers for 5 strides; give 4"):
            _unet(widths=[8, 8])
        with pytest.raises(UserError, match=r"model\.strides: \[4\]; give two or more"):
            _unet(strides=[4], widths=[])


class TestOriginalUNet:
    def test_matches_the_network_of_the_paper(self) -> None:
        with torch.device("meta"):
            model = OriginalUNet(["outside", "cell"], channels=1)
            assert model(torch.zeros(1, 1, 572, 572)).shape == (1, 2, 388, 388)
        assert sum(parameter.numel() for parameter in model.parameters()) == 31_030_658
        convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
        assert len(convolutions) == 23
        assert model.margin == (572 - 388) // 2
        assert model.output_side(388) == 388 and model.output_side(389) == 404

    @pytest.mark.parametrize("depth", [1, 2, 3, 4])
    @pytest.mark.parametrize("side", [1, 4, 5, 37, 100])
    def test_output_side_predicts_the_output_size(self, depth: int, side: int) -> None:
        with torch.device("meta"):
            model = OriginalUNet(CLASSES, width=2, depth=depth)
            output = model.output_side(side)
            assert side <= output < max(side, 4) + 2**depth
            side_in = output + 2 * model.margin
            assert model(torch.zeros(1, 3, side_in, side_in)).shape[-2:] == (output, output)

    def test_overfits_four_images(self, overfit: Overfit) -> None:
        assert overfit(_original(), 80, 5e-3) >= 0.98

    def test_without_skips_it_does_not_overfit(
        self, overfit: Overfit, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = _original()
        contract = model._contract
        monkeypatch.setattr(
            model, "_contract", lambda images: [*(0 * m for m in contract(images)[:-1]), contract(images)[-1]]
        )
        assert overfit(model, 80, 5e-3) < 0.98

    def test_the_centre_does_not_depend_on_the_mirrored_border(self) -> None:
        """The logits of pixels at least one margin from the border depend on the image only."""
        model = _original().eval().double()
        image = torch.randn(1, 3, 60, 60, dtype=torch.float64)
        with torch.inference_mode():
            inside = model(image)
            everywhere = model.predict(image)
        m = model.margin
        assert inside.shape[-2:] == (20, 20)
        torch.testing.assert_close(everywhere[:, :, m:-m, m:-m], inside)

    def test_beyond_the_border_is_the_mirror_image(self) -> None:
        model = _original(depth=1)
        image = torch.rand(1, 3, 9, 20)
        extended = model._extend(image)
        height, width = model.output_side(9), model.output_side(20)
        assert extended.shape[-2:] == (height + 2 * model.margin, width + 2 * model.margin)
        right, bottom = width - 20 + model.margin, height - 9 + model.margin
        expected = F.pad(image, (model.margin, right, 0, 0), mode="reflect")
        expected = F.pad(expected, (0, 0, model.margin, bottom - 4), mode="reflect")
        torch.testing.assert_close(extended[:, :, : expected.shape[2]], expected)

    @pytest.mark.parametrize("size", [(1, 1), (2, 7), (40, 90)])
    def test_images_smaller_than_the_margin(self, size: tuple[int, int]) -> None:
        model = _original(depth=4, width=2).eval()
        with torch.inference_mode():
            assert model.predict(torch.randn(2, 3, *size)).shape == (2, 3, *size)

    def test_tiles_have_no_seams(self) -> None:
        whole = _original(depth=3).eval().double()
        tiled = _original(depth=3, output_tile=28).eval().double()
        image = torch.randn(1, 3, 71, 50, dtype=torch.float64)
        passes = []
        tiled.pass_module.register_forward_pre_hook(lambda _, args: passes.append(args[0].shape[-2:]))
        with torch.inference_mode():
            torch.testing.assert_close(tiled.predict(image), whole.predict(image))
        assert set(passes) == {(28 + 2 * whole.margin,) * 2} and len(passes) == 3 * 2

    def test_border_weights_require_cross_entropy(self) -> None:
        with pytest.raises(UserError, match=r"border_weight 10\.0: .* not with dice"):
            OriginalUNet(CLASSES, width=2, border_weight=10.0, loss="dice")

    @pytest.mark.parametrize("tile", [4, 29, 101])
    def test_a_tile_size_that_the_network_cannot_output(self, tile: int) -> None:
        with pytest.raises(UserError, match=rf"model\.output_tile {tile}: .*; give (\d+)") as error:
            OriginalUNet(CLASSES, width=2, output_tile=tile)
        possible = int(str(error.value).rsplit(" ", 1)[1])
        assert (
            possible > tile and OriginalUNet(CLASSES, width=2, output_tile=possible).output_tile == possible
        )

    @pytest.mark.parametrize(
        ("name", "value", "fault"),
        [
            ("width", 0, "must be at least 1"),
            ("depth", 0, "must be at least 1"),
            ("border_weight", -1.0, "must be at least 0"),
            ("border_sigma", 0.0, "must be above 0"),
            ("border_sigma", float("nan"), "must be above 0"),
        ],
    )
    def test_numbers_out_of_range_are_reported_in_one_line(self, name: str, value: float, fault: str) -> None:
        with pytest.raises(UserError, match=rf"^--model\.{name} {value}: {fault}$"):
            _original(**{name: value})

    def test_weights_are_initialized_as_by_he(self) -> None:
        """The variance is 2 / N with N inputs per output: 9 pixels in a 3x3 convolution, 1 in an up-convolution."""
        torch.manual_seed(0)
        for module in OriginalUNet(CLASSES, width=64, depth=2).modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                taps = module.weight[0, 0].numel() if isinstance(module, nn.Conv2d) else 1
                std = (2 / (module.in_channels * taps)) ** 0.5
                assert float(module.weight.detach().std()) == pytest.approx(std, rel=0.2)
                assert module.bias is not None and not module.bias.any()

    def test_grey_is_the_mean_of_the_colours(self) -> None:
        model = _original(channels=1).eval()
        image = torch.randn(1, 3, 20, 20)
        grey = image.mean(1, keepdim=True).expand(-1, 3, -1, -1)
        with torch.inference_mode():
            torch.testing.assert_close(model.predict(image), model.predict(grey))

    def test_stages_are_aligned_with_the_image(self) -> None:
        """The feature strength is largest at a bright spot of the image."""
        model = _original(depth=2).eval()
        image = torch.zeros(1, 3, 64, 48)
        image[:, :, 38:42, 10:14] = 9
        with torch.inference_mode():
            stages = {stage.name: stage.map for stage in model.stages(image)}
        assert list(stages)[:5] == [
            "contracting, stride 1", "contracting, stride 2", "contracting, stride 4", "expanding, stride 2",
            "expanding, stride 1",
        ]  # fmt: skip
        for name, stride in [
            ("contracting, stride 1", 1),
            ("contracting, stride 2", 2),
            ("expanding, stride 1", 1),
        ]:
            heat = stages[name]
            assert heat is not None and heat.shape == (64 // stride, 48 // stride)
            row, column = divmod(int(heat.argmax()), heat.shape[1])
            assert abs(row * stride - 40) <= 4 and abs(column * stride - 12) <= 4, name


class TestBorderWeights:
    def test_equal_a_loop_over_all_pixels(self) -> None:
        generator = torch.Generator().manual_seed(0)
        masks = (torch.rand(2, 1, 5, 5, generator=generator) * 3).long().float()
        masks = F.interpolate(masks, (30, 26), mode="nearest")[:, 0].long()
        masks[0, 10:14, 5:20] = 255
        sigma = 3.0
        found = border_proximity(masks, sigma)
        for mask, near in zip(masks.tolist(), found, strict=True):
            height, width = len(mask), len(mask[0])
            border = [
                (y, x)
                for y in range(height)
                for x in range(width)
                for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))
                if 0 <= y + dy < height and 0 <= x + dx < width
                and mask[y][x] != mask[y + dy][x + dx] and 255 not in (mask[y][x], mask[y + dy][x + dx])
            ]  # fmt: skip
            cells = torch.cartesian_prod(torch.arange(height), torch.arange(width)).float()
            distance = torch.cdist(cells, torch.tensor(border).float()).amin(1).view(height, width)
            expected = torch.exp(-(distance**2) / (2 * sigma**2))
            torch.testing.assert_close(near, torch.where(distance <= 12, expected, near))
        assert float(found.amin()) < 0.3 < float(found.amax()) == 1

    def test_class_weights_that_are_not_counted_yet_are_an_error(self) -> None:
        model = _original(border_weight=10.0, class_weights="median_frequency")
        with pytest.raises(UserError, match="class_weights median_frequency: not counted yet"):
            model.losses(torch.randn(1, 3, 8, 8), [Target(mask=torch.zeros(8, 8, dtype=torch.int64))])

    def test_one_class_has_no_border(self) -> None:
        masks = torch.full((1, 8, 8), 2)
        masks[:, 4:] = 255
        assert not border_proximity(masks, 5.0).any()

    def test_the_loss_matches_the_paper(self) -> None:
        """Equations 1 and 2 by hand: class weights and border weights are added, ignored pixels are left out."""
        class_weights = [0.5, 1.0, 2.0]
        model = _original(border_weight=10.0, border_sigma=2.0, class_weights=class_weights).eval()
        images = torch.randn(1, 3, 16, 16)
        mask = torch.zeros(16, 16, dtype=torch.int64)
        mask[4:9, 4:9] = 1
        mask[12:, :3] = 255
        loss = model.losses(images, [Target(mask=mask)])["segmentation"]
        logs = -model.predict(images).log_softmax(1)[0]
        valid = mask != 255
        own = torch.where(valid, mask, 0)
        weights = torch.tensor(class_weights)[own] + 10 * border_proximity(mask[None], 2.0)[0]
        each = weights * logs.gather(0, own[None])[0]
        torch.testing.assert_close(loss, each[valid].sum() / weights[valid].sum())
        plain = _original(class_weights=class_weights).eval()
        expected = F.cross_entropy(
            plain.predict(images), mask[None], torch.tensor(class_weights), ignore_index=255
        )
        torch.testing.assert_close(plain.losses(images, [Target(mask=mask)])["segmentation"], expected)
