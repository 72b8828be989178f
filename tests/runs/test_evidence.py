"""The file of evidence: every array is read as it was written, and a file that cannot be used is reported in a line."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segdet.runs import evidence as evidence_module
from segdet.runs.evidence import (
    DetectionEvidence,
    Evidence,
    LocalizationEvidence,
    SegmentationEvidence,
    read_evidence,
    write_evidence,
)
from segdet.util.errors import UserError

IMAGES: dict[str, Any] = {
    "class_names": ["cat", 'a "dog" \u2028</script>\0'],
    "image_ids": np.array([3, 2**60]),
    "file_names": ["images/a.jpg", "ünï/b c.jpg"],
    "sizes": np.array([[480, 640], [1, 2]]),
}


def detection(**changes: Any) -> DetectionEvidence:
    values: dict[str, Any] = {
        "image": [0, 0, 1],
        "label": [1, 2, 1],
        "score": np.array([0.1, 0.2, 0.3], np.float32),
        "box": np.arange(12.0).reshape(3, 4),
        "match": np.arange(30).reshape(3, 10) % 3,
        "voc_match": [0, 1, 2],
        "object_image": [1],
        "object_label": [2],
        "object_box": np.arange(4.0)[None],
        "object_crowd": [True],
        "object_difficult": [False],
        "object_area": [1 / 3],
    }
    return DetectionEvidence(
        **IMAGES, **{name: np.asarray(value) for name, value in (values | changes).items()}
    )


def segmentation() -> SegmentationEvidence:
    return SegmentationEvidence(
        **IMAGES,
        image=np.array([0, 1]),
        truth=np.array([1, 0]),
        predicted=np.array([0, 0]),
        pixels=np.array([2**40, 7]),
        boundary_f1=np.array([[0.5, np.nan], [1 / 3, 1.0]]),
        boundary_bands=np.arange(8).reshape(2, 2, 2),
    )


def localization() -> LocalizationEvidence:
    return LocalizationEvidence(
        **IMAGES,
        label=np.array([1, 2]),
        predicted=np.array([[1, 2, 0, 0, 0], [2, 1, 0, 0, 0]]),
        iou=np.array([1 / 3, 0.5]),
        located_top5=np.array([False, True]),
        box=np.zeros((2, 4)),
        object_box=np.ones((2, 4)),
        score=np.array([0.1, 0.9]),
    )


@pytest.mark.parametrize(
    "evidence",
    [
        detection(),
        detection(mask_match=np.ones((3, 10), int)),
        detection(score=np.array([0.1, 0.2, 1 / 3])),
        segmentation(),
        localization(),
    ],
)
def test_evidence_is_read_as_it_was_written(evidence: Evidence, tmp_path: Path) -> None:
    path = tmp_path / "per_image" / "evidence.npz"
    write_evidence(path, evidence)
    again = read_evidence(path)
    assert type(again) is type(evidence)
    for field in fields(evidence):
        before, after = getattr(evidence, field.name), getattr(again, field.name)
        assert type(before) is type(after)
        if isinstance(before, np.ndarray):
            assert before.dtype == after.dtype
        np.testing.assert_array_equal(before, after)


def test_equal_evidence_gives_equal_files(tmp_path: Path) -> None:
    for name in "ab":
        write_evidence(tmp_path / name, detection())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_scores_are_kept_exactly() -> None:
    assert detection(score=np.array([0.1, 0.2, 0.3])).score.dtype == np.float64
    assert detection(score=np.array([0.1, 0.2, 0.3], np.float32).astype(float)).score.dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"voc_match": [0, 1]}, "voc_match has the shape"),
        ({"match": np.zeros((3, 9), int)}, "match has the shape"),
        ({"box": np.zeros(3)}, "box has the shape"),
        ({"label": [1, 2, 40000]}, "label has values outside of int16"),
        ({"label": [1.0, 2.0, 3.0]}, "label has the type float64"),
        ({"score": [1, 2, 3]}, "score has the type int64"),
        ({"image": [0, 0, 2]}, "image has values outside of 0 to 1"),
        ({"object_image": [-1]}, "object_image has values outside of 0 to 1"),
        ({"label": [0, 2, 1]}, "label has values outside of 1 to 2"),
        ({"object_label": [3]}, "object_label has values outside of 1 to 2"),
    ],
)
def test_arrays_of_a_wrong_shape_type_or_value_are_errors(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        detection(**changes)


def test_a_file_that_cannot_be_used_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "evidence.npz"

    def fault() -> str:
        with pytest.raises(UserError) as error:
            read_evidence(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "no such file; run segdet test" in fault()
    path.write_bytes(b"")
    assert "corrupt" in fault()
    path.write_text("not a zip file")
    assert "corrupt" in fault()
    np.savez(path, other=np.zeros(3))
    assert "no evidence of a test" in fault()
    with path.open("wb") as stream:
        np.save(stream, np.zeros(3))
    assert "corrupt" in fault()
    write_evidence(path, detection())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "corrupt" in fault()
    middle = len(whole) // 3
    path.write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
    assert "corrupt" in fault()
    monkeypatch.setattr(evidence_module, "VERSION", 2)
    write_evidence(path, detection())
    monkeypatch.undo()
    assert "has version 2, but this version of segdet reads 1" in fault()


def test_reading_evidence_does_not_import_torch() -> None:
    code = "import segdet.runs.evidence, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
