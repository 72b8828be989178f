"""Test localization scores against counts by hand."""

import warnings

import pytest
import torch
from torchvision.ops import box_iou

from segdet.metrics import LocalizationScores


def target_of(box, label):
    return {"boxes": torch.tensor([box], dtype=torch.float32), "labels": torch.tensor([label])}


def prediction_of(*guesses):
    boxes, labels = zip(*guesses, strict=True)
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32),
        "labels": torch.tensor(labels),
        "scores": torch.linspace(0.9, 0.1, len(guesses)),
    }


CASES = [
    # correct class, IoU 1
    (prediction_of(([0, 0, 10, 10], 1)), target_of([0, 0, 10, 10], 1)),
    # correct class, IoU exactly .5; the second prediction is not scored
    (prediction_of(([0, 0, 10, 5], 2), ([0, 0, 10, 10], 2)), target_of([0, 0, 10, 10], 2)),
    # correct class, IoU 1/3
    (prediction_of(([5, 0, 15, 10], 1)), target_of([0, 0, 10, 10], 1)),
    # wrong class, IoU 1
    (prediction_of(([0, 0, 10, 10], 2)), target_of([0, 0, 10, 10], 1)),
    # wrong class, IoU 0
    (prediction_of(([20, 20, 30, 30], 2)), target_of([0, 0, 10, 10], 1)),
]


def scored(cases, batch):
    scores = LocalizationScores(["cat", "dog"])
    for start in range(0, len(cases), batch):
        part = cases[start : start + batch]
        scores.update([p for p, _ in part], [t for _, t in part])
    return {name: value.item() for name, value in scores.compute().items()}


def test_scores_by_hand():
    assert scored(CASES, 5) == pytest.approx(
        {"top1": 3 / 5, "loc_acc": 2 / 5, "loc_error_top5": 3 / 5, "box_iou": (1 + 0.5 + 1 / 3 + 1 + 0) / 5},
        abs=1e-9,
    )


def test_one_of_five_predictions_must_have_the_class_and_the_box():
    whole, away = [0, 0, 10, 10], [30, 30, 40, 40]
    wrong = [(whole, label) for label in (2, 3, 4, 5)]
    target = target_of(whole, 1)
    for guesses, correct in (
        ([*wrong, (whole, 1)], True),
        ([*wrong, (whole, 6), (whole, 1)], False),  # only five are scored
        ([(away, 1), (whole, 1)], True),  # the same class twice
        ([(away, 1), *wrong], False),  # correct class and box, but not in one prediction
        ([(whole, 1)], True),
    ):
        scores = scored([(prediction_of(*guesses), target)], 1)
        assert scores["loc_error_top5"] == (0 if correct else 1)


def test_errors_equal_a_count_one_by_one():
    generator = torch.Generator().manual_seed(3)
    cases, located, guessed, same = [], 0, 0, 0
    for _ in range(200):
        box = torch.tensor([10.0, 10, 30, 40])
        count = int(torch.randint(1, 8, (1,), generator=generator))
        boxes = box + torch.randn(count, 4, generator=generator) * 6
        labels = torch.randint(1, 7, (count,), generator=generator)
        label = int(torch.randint(1, 7, (1,), generator=generator))
        cases.append(
            (
                prediction_of(*zip(boxes.tolist(), labels.tolist(), strict=True)),
                target_of(box.tolist(), label),
            )
        )
        hits = [
            int(labels[i]) == label and float(box_iou(boxes[i : i + 1], box[None])) >= 0.5
            for i in range(count)
        ]
        located += hits[0]
        guessed += any(hits[:5])
        same += int(labels[0]) == label
    assert 0 < located < guessed < 200
    for batch in (200, 7):
        scores = scored(cases, batch)
        assert scores["loc_acc"] == pytest.approx(located / 200)
        assert scores["loc_error_top5"] == pytest.approx(1 - guessed / 200)
        assert scores["top1"] == pytest.approx(same / 200)


def test_scores_do_not_depend_on_batches_and_order():
    generator = torch.Generator().manual_seed(0)
    cases = []
    for _ in range(101):
        box = (torch.rand(4, generator=generator) * 20 + torch.tensor([0, 0, 20, 20])).tolist()
        other = (torch.rand(4, generator=generator) * 20 + torch.tensor([0, 0, 20, 20])).tolist()
        cases.append((prediction_of((box, 1)), target_of(other, 1)))
    assert scored(cases, 101) == scored(cases[::-1], 7) == scored(cases, 1)


def test_invalid_and_empty_boxes_have_an_iou_of_0():
    nan = float("nan")
    cases = [
        (prediction_of(([nan, 0, 1, 1], 1)), target_of([0, 0, 10, 10], 1)),
        (prediction_of(([5, 5, 5, 5], 1)), target_of([5, 5, 5, 5], 1)),
        (prediction_of(([9, 9, 1, 1], 1)), target_of([0, 0, 10, 10], 1)),
    ]
    for case in cases:
        assert scored([case], 1) == {"top1": 1, "loc_acc": 0, "loc_error_top5": 1, "box_iou": 0}


def test_scores_without_images_are_nan_without_a_warning():
    scores = LocalizationScores(["cat"])
    scores.update([], [])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(value.isnan() for value in scores.compute().values())
        assert all(value.isnan() for value in LocalizationScores(["cat"]).compute().values())


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (
            {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "scores": torch.zeros(0)},
            CASES[0][1],
            "without a box",
        ),
        (CASES[0][0], {"boxes": torch.zeros(2, 4), "labels": torch.ones(2).long()}, "2 objects"),
    ],
)
def test_one_prediction_and_one_object_per_image(prediction, target, message):
    with pytest.raises(ValueError, match=message):
        LocalizationScores(["cat"]).update([prediction], [target])
    with pytest.raises(ValueError, match="1 predictions, but 0 targets"):
        LocalizationScores(["cat"]).update([CASES[0][0]], [])
