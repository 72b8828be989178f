"""The common base class of all tasks."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segdet.data.sample import Batch, Sample, Source, Target, collate
from segdet.detection.ssd import SSD
from segdet.detection.yolo_v1 import YOLOv1
from segdet.localization.box_head import BoxHead
from segdet.runs.cost import measure_cost
from segdet.segmentation.fcn import FCN
from segdet.task import Task

FAMILIES: list[tuple[type[Task], dict[str, Any]]] = [
    (FCN, {"width": 8}),
    (BoxHead, {"width": 8}),
    (SSD, {"width": 8, "score_threshold": 0.0}),
    (YOLOv1, {"width": 8, "hidden": 8, "score_threshold": 0.0}),
]


def small(family: type[Task], options: dict[str, Any], **aids: Any) -> Task:
    """Return a network of two classes with the same weights in every call."""
    torch.manual_seed(0)
    return family(["a", "b"], backbone="test_resnet", **options, **aids)


def batch(count: int = 3) -> Batch:
    """Return images with one object each; the first image is smaller."""
    generator = torch.Generator().manual_seed(1)
    samples = []
    for index in range(count):
        size = (64, 96) if index else (64, 80)
        image = torch.randint(0, 256, (*size, 3), generator=generator, dtype=torch.uint8).permute(2, 0, 1)
        mask = torch.randint(0, 2, size, generator=generator)
        target = Target(boxes=torch.tensor([[8.0, 8, 40, 50]]), labels=torch.tensor([2]), mask=mask)
        samples.append(Sample(image, target, Source(Path("x"), index + 1, size)))
    return collate(samples)


def test_the_earlier_score_of_a_class_that_is_absent_now_is_removed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = small(FCN, {"width": 8})
    trainer = SimpleNamespace(callbacks=[], callback_metrics={"val/iou/a": 0.5, "val/iou/b": 0.0})
    logged: dict[str, Tensor] = {}
    monkeypatch.setattr(FCN, "trainer", trainer)
    monkeypatch.setattr(FCN, "log_dict", lambda self, scores, **_: logged.update(scores))
    nothing = torch.zeros(4, 4, dtype=torch.int64)
    model.scores["val_"].update(nothing, nothing)  # type: ignore[operator]
    model._log_scores("val")
    assert logged["val/iou/a"] == 1 and "val/iou/b" not in logged
    assert list(trainer.callback_metrics) == ["val/iou/a"]


@pytest.mark.parametrize(("family", "options"), FAMILIES)
def test_the_memory_format_is_channels_last_unless_turned_off(
    family: type[Task], options: dict[str, Any]
) -> None:
    results = []
    for last in (True, False):
        model = small(family, options, channels_last=last)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        model.configure_model()
        model.load_state_dict(state)  # as from a checkpoint
        seen: list[Tensor] = []
        handles = [
            layer.register_forward_hook(lambda _, args, out, seen=seen: seen.extend([args[0], out]))
            for layer in model.modules()
            if isinstance(layer, nn.Conv2d)
        ]
        loss = model.training_step(batch(), 0)
        loss.backward()
        wide = [each for each in seen if each.shape[1] > 1 and each.shape[2] > 1]
        assert len(wide) > 10
        for each in wide:
            assert each.is_contiguous(memory_format=torch.channels_last) is last
        for handle in handles:
            handle.remove()
        cost = measure_cost(model, batch().images[1:2], repeats=1)
        with torch.inference_mode():
            results.append(
                (loss.detach(), model.eval().predict_batch(batch()), cost.flops, cost.passes_per_image)
            )
    (loss, found, *cost), (other_loss, other_found, *other_cost) = results
    torch.testing.assert_close(loss, other_loss, rtol=1e-4, atol=1e-5)
    assert cost == other_cost
    for one, other in zip(found, other_found, strict=True):
        for key in one:
            if key == "mask":
                assert (one[key] == other[key]).float().mean() > 0.999
            else:
                torch.testing.assert_close(one[key], other[key], rtol=1e-3, atol=1e-3)
