import warnings

import pytest
import torch

from segdet.metrics import LocalizationScores


def one(box, label):
    return {"boxes": torch.tensor([box], dtype=torch.float32), "labels": torch.tensor([label])}


def found(*answers):
    boxes, labels = zip(*answers, strict=True)
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32),
        "labels": torch.tensor(labels),
        "scores": torch.linspace(0.9, 0.1, len(answers)),
    }


CASES = [
    # right class, IoU 1
    (found(([0, 0, 10, 10], 1)), one([0, 0, 10, 10], 1)),
    # right class, IoU exactly .5, which suffices; the second answer is never looked at
    (found(([0, 0, 10, 5], 2), ([0, 0, 10, 10], 2)), one([0, 0, 10, 10], 2)),
    # right class, IoU 1/3
    (found(([5, 0, 15, 10], 1)), one([0, 0, 10, 10], 1)),
    # wrong class, IoU 1
    (found(([0, 0, 10, 10], 2)), one([0, 0, 10, 10], 1)),
    # wrong class, apart
    (found(([20, 20, 30, 30], 2)), one([0, 0, 10, 10], 1)),
]


def scored(cases, batch):
    scores = LocalizationScores(["cat", "dog"])
    for start in range(0, len(cases), batch):
        part = cases[start : start + batch]
        scores.update([p for p, _ in part], [t for _, t in part])
    return {name: value.item() for name, value in scores.compute().items()}


def test_scores_by_hand():
    assert scored(CASES, 5) == pytest.approx(
        {"top1": 3 / 5, "loc_acc": 2 / 5, "box_iou": (1 + 0.5 + 1 / 3 + 1 + 0) / 5}, abs=1e-9
    )


def test_neither_batches_nor_order_matter():
    generator = torch.Generator().manual_seed(0)
    cases = []
    for _ in range(101):
        box = (torch.rand(4, generator=generator) * 20 + torch.tensor([0, 0, 20, 20])).tolist()
        other = (torch.rand(4, generator=generator) * 20 + torch.tensor([0, 0, 20, 20])).tolist()
        cases.append((found((box, 1)), one(other, 1)))
    assert scored(cases, 101) == scored(cases[::-1], 7) == scored(cases, 1)


def test_boxes_that_are_nowhere_overlap_nothing():
    nan = float("nan")
    cases = [
        (found(([nan, 0, 1, 1], 1)), one([0, 0, 10, 10], 1)),
        (found(([5, 5, 5, 5], 1)), one([5, 5, 5, 5], 1)),
        (found(([9, 9, 1, 1], 1)), one([0, 0, 10, 10], 1)),
    ]
    for case in cases:
        assert scored([case], 1) == {"top1": 1, "loc_acc": 0, "box_iou": 0}


def test_nothing_seen_is_nan_without_a_warning():
    scores = LocalizationScores(["cat"])
    scores.update([], [])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(value.isnan() for value in scores.compute().values())
        assert all(value.isnan() for value in LocalizationScores(["cat"]).compute().values())


@pytest.mark.parametrize(
    ("prediction", "target", "says"),
    [
        (
            {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "scores": torch.zeros(0)},
            CASES[0][1],
            "without a box",
        ),
        (CASES[0][0], {"boxes": torch.zeros(2, 4), "labels": torch.ones(2).long()}, "2 objects"),
    ],
)
def test_one_answer_and_one_object_an_image(prediction, target, says):
    with pytest.raises(ValueError, match=says):
        LocalizationScores(["cat"]).update([prediction], [target])
    with pytest.raises(ValueError, match="1 predictions, but 0 targets"):
        LocalizationScores(["cat"]).update([CASES[0][0]], [])
