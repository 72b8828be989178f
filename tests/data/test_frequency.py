from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdet.data import VOCDataModule
from segdet.data.frequency import class_frequency
from segdet.util import disk_cache as cache
from segdet.util.errors import BadSample


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))


def data(root: Path, **options: object) -> VOCDataModule:
    return VOCDataModule(root, task="segmentation", **options)  # type: ignore[arg-type]


def write_masks(root: Path) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.zeros((48, 64), np.uint8), np.zeros((48, 64), np.uint8)
    a[:10, :10], a[40:] = 1, 255
    b[20:24], b[0] = 2, 255
    for name, mask in (("a", a), ("b", b)):
        Image.fromarray(mask).save(root / f"SegmentationClass/{name}.png")
    return a, b


def test_pixels_are_counted_once_per_set_of_files(voc_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_masks(voc_folder)
    found = class_frequency(data(voc_folder).dataset("train"))
    assert found.pixels.tolist() == [48 * 64 * 2 - 100 - 8 * 64 - 4 * 64 - 64, 100, 4 * 64]
    assert found.pixels_where.tolist() == [2 * 48 * 64, 48 * 64, 48 * 64]

    def counted_again(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("segdet.data.frequency.for_each_sample", counted_again)
    again = class_frequency(data(voc_folder).dataset("train"))
    assert again.pixels.tolist() == found.pixels.tolist()
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(voc_folder / "SegmentationClass/a.png")
    for other in (data(voc_folder), data(voc_folder, ignore_index=2), data(voc_folder, limit_train=1)):
        with pytest.raises(AssertionError):
            class_frequency(other.dataset("train"))


def test_only_training_images_are_counted(voc_folder: Path) -> None:
    write_masks(voc_folder)
    found = class_frequency(data(voc_folder, limit_train=1).dataset("train"))
    assert found.pixels[1:].tolist() == [100, 0] and found.pixels_where.tolist() == [48 * 64, 48 * 64, 0]


def test_a_truncated_mask_raises_or_is_left_out(voc_folder: Path) -> None:
    write_masks(voc_folder)
    path = voc_folder / "SegmentationClass/b.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(BadSample, match=r"b\.png"):
        class_frequency(data(voc_folder).dataset("train"))
    found = class_frequency(data(voc_folder, on_bad_sample="skip").dataset("train"))
    assert found.pixels[1:].tolist() == [100, 0]
