"""Test FCN and the base class of segmentation: overfitting, original sizes, independence of the batch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from segdet.data.sample import Batch, Source, Target
from segdet.segmentation.fcn import FCN
from segdet.training.optim import Optimization

CLASSES = ["background", "bright", "striped"]


def _fcn(**kwargs: Any) -> FCN:
    torch.manual_seed(0)
    options = {"channels": [16, 32, 48, 64]}
    return FCN(CLASSES, backbone="resnet18", backbone_options=options, width=24, dropout=0.0, **kwargs)


def test_overfits_four_images(overfit: Callable[..., float]) -> None:
    assert overfit(_fcn(), 60, 1e-2) >= 0.98


def test_without_fine_maps_it_does_not_overfit(
    overfit: Callable[..., float], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _fcn()
    monkeypatch.setattr(model, "_sums", lambda images: [model.laterals[-1](model.backbone(images)[-1])])
    assert overfit(model, 60, 1e-2) < 0.98


def test_one_stride_is_an_fcn_32() -> None:
    model = _fcn(strides=[32]).eval()
    assert [total.shape for total in model._sums(torch.zeros(1, 3, 64, 96))] == [(1, 24, 2, 3)]
    assert model.predict(torch.zeros(1, 3, 64, 96)).shape == (1, 3, 64, 96)


def test_training_and_prediction_use_the_same_logits() -> None:
    """The stride does not divide the image: 3x4 cells are 96x128 pixels, cropped to 65x97."""
    model = _fcn(strides=[32]).eval()
    last = model.classifier[-1]
    assert isinstance(last, torch.nn.Conv2d)
    last.weight.data *= 100  # makes the cells differ
    images = torch.randn(2, 3, 65, 97)
    masks = torch.randint(0, 3, (2, 65, 97))
    with torch.inference_mode():
        logits = model.predict(images)
        loss = model.losses(images, [Target(mask=mask) for mask in masks])["segmentation"]
    assert logits.shape == (2, 3, 65, 97)
    torch.testing.assert_close(loss, F.cross_entropy(logits, masks), rtol=1e-6, atol=0)
    stretched = F.interpolate(logits[..., 16::32, 16::32], (65, 97), mode="bilinear", align_corners=False)
    assert abs(float(F.cross_entropy(stretched, masks) - loss)) > 1e-3 * float(loss)


def test_predictions_have_the_original_size_and_do_not_depend_on_the_batch() -> None:
    model = _fcn().eval()
    generator = torch.Generator().manual_seed(3)
    sizes = [(48, 64), (33, 50), (48, 64)]
    images = torch.zeros(3, 3, 48, 64, dtype=torch.uint8)
    for image, (h, w) in zip(images, sizes, strict=True):
        image[:, :h, :w] = torch.randint(0, 255, (3, h, w), generator=generator, dtype=torch.uint8)
    sources = [Source(Path(f"{i}.png"), i, (2 * h, 2 * w - 1)) for i, (h, w) in enumerate(sizes)]
    with torch.inference_mode():
        together = model.predict_batch(Batch(images, sizes, [Target()] * 3, sources))
        for i, (h, w) in enumerate(sizes):
            alone = model.predict_batch(
                Batch(images[i : i + 1, :, :h, :w], [(h, w)], [Target()], [sources[i]])
            )[0]
            assert together[i]["mask"].shape == sources[i].original_size
            assert (together[i]["mask"] == alone["mask"]).float().mean() > 0.9999


def test_the_loss_ignores_255_and_is_zero_without_any_pixel() -> None:
    model = _fcn()
    logits = torch.randn(2, 3, 8, 8)
    masks = torch.randint(0, 3, (2, 8, 8))
    masks[0, :4] = 255
    torch.testing.assert_close(
        model.pixel_loss(logits, masks), F.cross_entropy(logits, masks, ignore_index=255)
    )
    assert model.pixel_loss(logits, torch.full((2, 8, 8), 255)) == 0


def test_class_weights_are_those_of_torch() -> None:
    model = _fcn(class_weights=[0.2, 1.0, 3.0])
    logits, masks = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    masks[0, 0] = 255
    expected = F.cross_entropy(logits, masks, torch.tensor([0.2, 1.0, 3.0]), ignore_index=255)
    torch.testing.assert_close(model.pixel_loss(logits, masks), expected)


def test_normalization_is_imagenets_and_padding_is_zero() -> None:
    model = _fcn(optim=Optimization())
    images = torch.full((2, 3, 4, 6), 128, dtype=torch.uint8)
    normal = model.normalize(images, [(4, 6), (2, 5)])
    expected = (128 / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(normal[0, :, 0, 0], expected)
    assert (normal[1, :, 2:] == 0).all() and (normal[1, :, :, 5:] == 0).all()
    assert (normal[1, :, :2, :5] != 0).all()


def test_stages_are_one_map_per_stride() -> None:
    model = _fcn().eval()
    with torch.inference_mode():
        names = [stage.name for stage in model.stages(torch.zeros(1, 3, 64, 64))]
    assert names == ["stride 32", "stride 16", "stride 8", "stride 4"]
