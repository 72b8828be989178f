"""The stratified split has the requested sizes for the whole set and for each class."""

from collections import Counter

import numpy as np
import pytest

from segdet.data.importing.split import stratified_split
from segdet.util.errors import UserError


def images(count: int) -> dict[str, list[str]]:
    """Return images with classes of different frequencies."""
    rng = np.random.default_rng(0)
    frequencies = {"common": 0.8, "usual": 0.3, "rare": 0.05}
    return {
        f"{number:04}.jpg": [name for name, frequency in frequencies.items() if rng.random() < frequency]
        for number in range(count)
    }


def test_each_class_is_split_by_the_fractions() -> None:
    classes_of = images(400)
    found = stratified_split(classes_of, (0.7, 0.1, 0.2), 0)
    assert found.keys() == classes_of.keys()
    assert Counter(found.values()) == {"train": 280, "val": 40, "test": 80}
    for name in ("common", "usual", "rare"):
        counts = Counter(found[image] for image, classes in classes_of.items() if name in classes)
        for split, fraction in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
            assert abs(counts[split] - fraction * counts.total()) <= 1.5


def test_the_order_of_the_images_does_not_matter_but_the_seed_does() -> None:
    classes_of = images(60)
    found = stratified_split(classes_of, (0.7, 0.1, 0.2), 0)
    assert stratified_split(dict(reversed(classes_of.items())), (0.7, 0.1, 0.2), 0) == found
    assert stratified_split(classes_of, (0.7, 0.1, 0.2), 1) != found


def test_no_split_is_empty() -> None:
    found = stratified_split({f"{number}": ["cat"] for number in range(3)}, (0.98, 0.01, 0.01), 0)
    assert sorted(found.values()) == ["test", "train", "val"]
    assert set(stratified_split({"a": [], "b": []}, (0.5, 0.5, 0), 0).values()) == {"train", "val"}


@pytest.mark.parametrize(
    "fractions", [(0.5, 0.1, 0.1), (0, 0.5, 0.5), (1.5, -0.5, 0), (float("nan"), 0.5, 0.5)]
)
def test_invalid_fractions_are_refused(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(UserError, match=r"--split .*with a sum of 1"):
        stratified_split({"a": [], "b": [], "c": []}, fractions, 0)
    with pytest.raises(UserError, match="2 images cannot be split into 3"):
        stratified_split({"a": [], "b": []}, (0.7, 0.1, 0.2), 0)
