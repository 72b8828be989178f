"""Tests of the script that writes OpenCV's boxes to a file for ``segdet proposals``. A stub replaces OpenCV."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from segdet.proposals.file import load_proposals

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "opencv_proposals.py"

STUB = """
import numpy as np

class _Search:
    def setBaseImage(self, image):
        self.image = image
    def switchToSelectiveSearchFast(self):
        self.strategy = "fast"
    def process(self):
        assert self.strategy == "fast"
        return np.array([[1, 2, 3, 4]] * self.image, np.int32)

class ximgproc:
    class segmentation:
        createSelectiveSearchSegmentation = _Search

def setNumThreads(number):
    assert number == 1

def imread(path):
    return {"a.jpg": 2, "b.jpg": 0}.get(path.rsplit("/", 1)[-1])
"""


def _run(tmp_path: Path, stub: str, *words: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "cv2.py").write_text(stub)
    command = [sys.executable, str(SCRIPT), "fast", str(tmp_path), str(tmp_path / "out.npz"), *words]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "stub")}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


def test_boxes_are_stored_as_corners_for_each_file_name(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a\nb.jpg 1\n\n")
    done = _run(tmp_path, STUB, "--images", str(tmp_path / "list.txt"))
    assert done.returncode == 0, done.stderr
    held = load_proposals(tmp_path / "out.npz")
    assert np.array_equal(held["a.jpg"], np.array([[1, 2, 4, 6]] * 2, np.float32))
    assert held["b.jpg"].shape == (0, 4)


@pytest.mark.parametrize(
    "stub, message",
    [("", "opencv-contrib-python-headless"), (STUB, "c.jpg: OpenCV cannot read it as an image")],
)
def test_errors_are_reported_in_one_line(tmp_path: Path, stub: str, message: str) -> None:
    (tmp_path / "list.txt").write_text("c\n")
    done = _run(tmp_path, stub, "--images", str(tmp_path / "list.txt"))
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
