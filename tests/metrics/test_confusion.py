"""Test scores from the confusion matrix against counts by hand and torchmetrics."""

import warnings

import pytest
import torch
from torchmetrics import JaccardIndex

from segdet.metrics import SegmentationScores, classes_of

NAMES = ["sky", "road", "car", "tree"]


def counted_by_hand(prediction, target, classes):
    """Return every score by its definition, one pixel at a time."""
    pixels = [
        (p, t)
        for p, t in zip(prediction.flatten().tolist(), target.flatten().tolist(), strict=True)
        if t != 255
    ]
    ious, recalls = {}, []
    for c in range(classes):
        both = sum(p == c and t == c for p, t in pixels)
        either = sum(p == c or t == c for p, t in pixels)
        there = sum(t == c for _, t in pixels)
        ious[c] = both / either if either else None
        if there:
            recalls.append(both / there)
    present = [iou for iou in ious.values() if iou is not None]
    return {
        "miou": sum(present) / len(present),
        "pixel_acc": sum(p == t for p, t in pixels) / len(pixels),
        "class_acc": sum(recalls) / len(recalls),
    }, ious


def random_masks(seed, classes=4, shape=(3, 9, 7)):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, classes, shape, generator=generator)
    prediction = torch.where(
        torch.rand(shape, generator=generator) < 0.6,
        target,
        torch.randint(0, classes, shape, generator=generator),
    )
    target[torch.rand(shape, generator=generator) < 0.1] = 255
    return prediction, target


@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_counts_by_hand(seed):
    prediction, target = random_masks(seed)
    # Class 3 occurs at ignored pixels only; class 2 is predicted but not in the target.
    target[target == 3] = 255
    target[target == 2] = 1
    prediction[prediction == 3] = 0
    prediction[target == 255] = 3
    scores = SegmentationScores(NAMES)
    scores.update(prediction, target)
    result = scores.compute()
    expected, ious = counted_by_hand(prediction, target, 4)
    for name, value in expected.items():
        assert result[name].item() == pytest.approx(value, abs=1e-12), name
    assert ious[2] == 0 and ious[3] is None
    for c in range(3):
        assert result[f"iou/{NAMES[c]}"].item() == pytest.approx(ious[c], abs=1e-12)
    assert result["iou/tree"].isnan()
    assert set(result) == {"miou", "pixel_acc", "class_acc", *(f"iou/{name}" for name in NAMES)}


def test_rows_of_the_matrix_are_the_target():
    scores = SegmentationScores(["a", "b"])
    scores.update(torch.tensor([[1, 1, 0]]), torch.tensor([[0, 0, 1]]))
    assert scores.confusion.tolist() == [[0, 2], [1, 0]]


def test_equals_torchmetrics():
    prediction, target = random_masks(5)
    scores = SegmentationScores(NAMES)
    scores.update(prediction, target)
    peer = JaccardIndex(task="multiclass", num_classes=4, ignore_index=255)
    assert scores.compute()["miou"].item() == pytest.approx(peer(prediction, target).item(), abs=1e-6)


def test_scores_do_not_depend_on_batches_and_order():
    prediction, target = random_masks(1, shape=(5, 8, 8))
    whole, parts = SegmentationScores(NAMES), SegmentationScores(NAMES)
    whole.update(prediction, target)
    for i in (4, 0, 3, 1, 2):
        parts.update(prediction[i], target[i])
    assert torch.equal(whole.confusion, parts.confusion)
    assert whole.confusion.sum() == (target != 255).sum()


@pytest.mark.parametrize("classes", [1, 2, 5, 256, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_best_class_of_logits(classes, dtype):
    logits = torch.randn(2, classes, 6, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = logits.argmax(1)
    before = logits.clone()
    for variant in (logits, logits.to(memory_format=torch.channels_last), logits.clone().requires_grad_()):
        predicted = classes_of(variant)
        assert predicted.dtype == torch.int64 and torch.equal(predicted, expected)
    assert torch.equal(classes_of(logits[0]), expected[0])
    assert torch.equal(logits, before)


def test_the_first_class_of_equal_logits_is_best():
    logits = torch.tensor([1.0, 3.0, 3.0, -1.0, 3.0]).view(1, 5, 1, 1).expand(2, 5, 4, 4)
    assert (classes_of(logits) == 1).all()
    assert (classes_of(logits.contiguous()) == 1).all()
    assert (classes_of(torch.full((1, 3, 2, 2), -torch.inf)) == 0).all()


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        ([0, 1], [0, 4], "the target holds 4, but the classes are 0..3 and 255 to ignore"),
        ([0, 1], [0, 254], "the target holds 254"),
        ([3, 0], [256, 0], "the target holds 256"),
        ([3, 3], [0, -1], "the target holds -1"),
        ([0, 0], [300, -1], "the target holds -1"),
        ([0, 4], [0, 1], "the prediction holds 4"),
        ([0, -1], [0, 1], "the prediction holds -1"),
        ([0, 7], [0, 255], "the prediction holds 7"),
    ],
)
def test_a_value_out_of_range_is_an_error(prediction, target, message):
    scores = SegmentationScores(NAMES)
    with pytest.raises(ValueError, match=message):
        scores.update(torch.tensor([prediction]), torch.tensor([target]))
    assert scores.confusion.sum() == 0


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(1, 2, 2\).*\(1, 4, 4\).*original image"):
        SegmentationScores(NAMES).update(torch.zeros(1, 2, 2).long(), torch.zeros(1, 4, 4).long())


@pytest.mark.parametrize(("names", "ignore"), [([], 255), (["a"] * 257, 255), (["a"], -1), (["a"], 256)])
def test_arguments_out_of_range(names, ignore):
    with pytest.raises(ValueError):
        SegmentationScores(names, ignore)


def test_the_ignored_value_may_be_a_class():
    scores = SegmentationScores(NAMES, ignore_index=3)
    scores.update(torch.tensor([[0, 1, 3, 0]]), torch.tensor([[0, 1, 0, 3]]))
    assert scores.confusion.sum() == 3
    assert scores.compute()["pixel_acc"].item() == pytest.approx(2 / 3)


def test_with_256_classes_the_last_one_is_ignored():
    scores = SegmentationScores([str(i) for i in range(256)])
    scores.update(torch.tensor([[7, 254]]), torch.tensor([[7, 255]]))
    assert scores.compute()["pixel_acc"].item() == 1


@pytest.mark.parametrize("empty", ["never updated", "all ignored", "no pixel"])
def test_scores_without_pixels_are_nan_without_a_warning(empty):
    scores = SegmentationScores(NAMES)
    if empty == "all ignored":
        scores.update(torch.zeros(1, 2, 2).long(), torch.full((1, 2, 2), 255))
    elif empty == "no pixel":
        scores.update(torch.zeros(0, 2, 2).long(), torch.zeros(0, 2, 2).long())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(value.isnan() for value in scores.compute().values())


def test_reset():
    scores = SegmentationScores(NAMES)
    scores.update(*random_masks(0))
    scores.compute()
    scores.reset()
    assert scores.compute()["miou"].isnan()
