"""Tests of files of proposals: round trips, and messages for files that cannot be used."""

import json
from pathlib import Path

import numpy as np
import pytest
from readers import open_readers

from segdet.proposals import ProposalFile, save_proposals
from segdet.proposals.file import load_proposals
from segdet.util.errors import UserError

BOXES = np.array([[0, 0, 10, 5], [2, 3, 4.5, 8]], np.float32)
NONE = np.zeros((0, 4), np.float32)


@pytest.mark.parametrize("ending", [".json", ".npz"])
def test_written_boxes_are_read_best_first(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"sub/boxes{ending}"
    scores = np.array([0.2, 0.9], np.float32)
    save_proposals(path, {"a.jpg": (BOXES, scores), "b.jpg": (NONE, np.zeros(0, np.float32))})
    loaded = load_proposals(path)
    assert loaded["a.jpg"].dtype == np.float32
    assert loaded["a.jpg"].tolist() == BOXES[::-1].tolist()
    assert loaded["b.jpg"].shape == (0, 4)
    save_proposals(path, {"a.jpg": (BOXES, None), "b.jpg": (BOXES[:1], scores[:1])})
    assert load_proposals(path)["a.jpg"].tolist() == BOXES.tolist()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_images_are_identified_by_file_name(tmp_path: Path, shapes: Path) -> None:
    reader = open_readers(shapes)["train"]
    path = tmp_path / "boxes.json"
    names = [reader.image_path(index).name for index in range(4)]
    save_proposals(path, {name: (BOXES + place, None) for place, name in enumerate(names[:3])})
    proposals = ProposalFile(path).open(reader, [0, 2])
    assert proposals.boxes(2).tolist() == (BOXES + 2).tolist()
    with pytest.raises(UserError, match=f"no proposals for {names[3]}; compute them"):
        ProposalFile(path).open(reader, range(4))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "not a file of proposals"),
        ('{"a.jpg": {"boxes": [[0, 0, 1]]}}', "not a file of proposals"),
        ('{"a.jpg": {"boxes": [[5, 0, 5, 1]]}}', "a.jpg has a box that is not"),
        ('{"a.jpg": {"boxes": [[0, 0, NaN, 1]]}}', "a.jpg has a box that is not"),
        ('{"a.jpg": {"boxes": [[0, 0, 1, 1]], "scores": [1, 2]}}', "not as many finite scores"),
        ('{"a.jpg": {}}', "not a file of proposals"),
        ("[]", "not a file of proposals"),
    ],
)
def test_faults_are_reported_in_one_line(tmp_path: Path, content: str, fault: str) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(content)
    with pytest.raises(UserError, match=fault) as caught:
        load_proposals(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_corrupt_missing_and_unknown_files(tmp_path: Path) -> None:
    path = tmp_path / "boxes.npz"
    save_proposals(path, {"a.jpg": (BOXES, None)})
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match="not a file of proposals"):
        load_proposals(path)
    np.savez(path, names=["a.jpg"], counts=[3], boxes=BOXES)
    with pytest.raises(UserError, match="counts of sum 3"):
        load_proposals(path)
    with pytest.raises(UserError, match="no such file"):
        load_proposals(tmp_path / "nowhere.npz")
    with pytest.raises(UserError, match=r"\.json or \.npz"):
        load_proposals(tmp_path / "boxes.txt")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        save_proposals(tmp_path / "file/boxes.json", {})


def test_the_documented_example_reads(tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({"000012.jpg": {"boxes": [[156, 97, 351, 270]], "scores": [0.9]}}))
    assert load_proposals(path)["000012.jpg"].tolist() == [[156, 97, 351, 270]]
