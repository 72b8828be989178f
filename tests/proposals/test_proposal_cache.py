"""Tests of the cache of proposals: its keys, corrupt files, bad images, and killed processes."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from readers import open_readers

from segdet.data.formats.reader import Reader
from segdet.data.images import read_image
from segdet.proposals import UniformWindows
from segdet.proposals.base import Proposer
from segdet.proposals.cache import CachedProposals, cache_folder
from segdet.util.errors import BadSample, UserError

SCRIPT = """
import itertools, os, sys, time
from dataclasses import dataclass
from pathlib import Path
import numpy as np
from segdet.data.formats.detect import find_dataset
from segdet.proposals.base import Proposer

@dataclass(frozen=True)
class Corner(Proposer):
    def __call__(self, image):
        # Each call writes a file with the process id, named by the number of the call.
        for number in itertools.count():
            try:
                with (Path(os.environ["CALLS"]) / str(number)).open("x") as file:
                    file.write(str(os.getpid()))
                break
            except FileExistsError:
                continue
        if number >= int(os.environ["HANG_FROM"]):
            time.sleep(600)
        return np.array([[0, 0, *image[3, 5, :2]]], np.float32) + 1, np.ones(1, np.float32)

if __name__ == "__main__":
    reader = find_dataset(sys.argv[1]).open("train")
    proposals = Corner().open(reader, range(len(reader)), workers=2)
    print([proposals.boxes(index)[0, 2:].tolist() for index in range(len(reader))])
"""


@dataclass(frozen=True)
class Counting(Proposer):
    """Record the calls in a list shared by all instances."""

    calls = []

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.calls.append(image.shape)
        return np.array([[0, 0, 5, image[0, 0, 0]]], np.float32), np.array([0.5], np.float32)


@pytest.fixture
def calls() -> list:
    Counting.calls.clear()
    return Counting.calls


@pytest.fixture
def reader(shapes: Path) -> Reader:
    return open_readers(shapes)["train"]


def test_an_image_is_computed_once(reader: Reader, calls: list, cache: Path) -> None:
    first = CachedProposals(Counting(), reader)
    first.compute([0, 2], workers=1)
    assert (len(calls), first.computed) == (2, 2)
    again = CachedProposals(Counting(), reader)
    again.compute(range(4), workers=1)
    assert (len(calls), again.computed) == (4, 2)
    boxes, scores = again.scored(2)
    assert len(calls) == 4
    assert boxes.dtype == np.float32 and boxes.shape == (1, 4) and scores.tolist() == [0.5]
    assert cache_folder() == cache and first.folder.is_relative_to(cache)
    files = list(cache.rglob("*.npy"))
    assert len(files) == 4 and not list(cache.rglob("*.tmp"))
    assert again.files() == set(files)


def test_missing_proposals_are_computed_on_access(reader: Reader, calls: list) -> None:
    proposals = CachedProposals(Counting(), reader)
    assert proposals.boxes(1).shape == (1, 4)
    assert proposals.boxes(1).shape == (1, 4)
    assert len(calls) == 1


def test_other_settings_and_other_pixels_have_other_files(shapes: Path, reader: Reader, calls: list) -> None:
    one, other = (CachedProposals(UniformWindows(seed=seed), reader) for seed in (0, 1))
    assert one.folder != other.folder
    proposals = CachedProposals(Counting(), reader)
    proposals.boxes(0)
    path = reader.image_path(0)
    content, status = path.read_bytes(), path.stat()
    try:
        path.write_bytes(reader.image_path(1).read_bytes())
        proposals.boxes(0)
        assert len(calls) == 2
    finally:
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    proposals.boxes(0)
    assert len(calls) == 2


class _OneImage:
    """The methods of a reader that the cache uses."""

    max_pixels = 10**6

    def __init__(self, path: Path) -> None:
        self.path = path

    def image_path(self, index: int) -> Path:
        return self.path

    def declared_size(self, index: int) -> None:
        return None

    def upright(self, index: int) -> bool:
        return False


def test_images_are_identified_by_content(tmp_path: Path, calls: list) -> None:
    """Images of different splits or cameras may have equal names, sizes and times."""
    boxes = []
    for grey, place in ((50, "train/1.bmp"), (90, "val/1.bmp"), (50, "moved/2.bmp")):
        path = tmp_path / place
        path.parent.mkdir()
        cv2.imwrite(str(path), np.full((40, 50, 3), grey, np.uint8))
        changed = 10**18 if place != "moved/2.bmp" else 2 * 10**18
        os.utime(path, ns=(changed, changed))
        proposals = CachedProposals(Counting(), _OneImage(path))  # type: ignore[arg-type]
        proposals.compute([0], workers=1)
        boxes.append(proposals.boxes(0)[0, 3])
    assert boxes == [50, 90, 50]
    assert len(calls) == 2


def test_known_images_are_not_read_again(
    reader: Reader, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later command does not read the images again, and neither do other processes of the same command."""
    CachedProposals(Counting(), reader).compute(range(4), workers=1)
    monkeypatch.setattr("segdet.proposals.cache._digest", None)
    again = CachedProposals(Counting(), reader)
    again.compute(range(4), workers=1)
    assert again.computed == 0 and len(again.boxes(3))


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_corrupt_file_is_computed_again(reader: Reader, calls: list, cache: Path, keep: int) -> None:
    proposals = CachedProposals(Counting(), reader)
    expected = proposals.boxes(0)
    (file,) = cache.rglob("*.npy")
    whole = file.read_bytes()
    for ask in (proposals.boxes, lambda index: proposals.compute([index], workers=1)):
        file.write_bytes(whole[:keep])
        before = len(calls)
        ask(0)
        assert len(calls) == before + 1
        assert file.read_bytes() == whole
    assert (proposals.boxes(0) == expected).all()


def test_bad_images_are_listed_and_the_others_computed(reader: Reader, calls: list) -> None:
    path = reader.image_path(1)
    content, status = path.read_bytes(), path.stat()
    try:
        path.write_bytes(b"")
        proposals = Counting().open(reader, range(4), workers=1)
        assert len(calls) == 3
        assert [error.path for error in proposals.bad] == [path]
        with pytest.raises(BadSample, match="empty"):
            proposals.boxes(1)
    finally:
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_folder_that_cannot_be_written_is_reported_in_one_line(
    reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SEGDET_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot be written .* SEGDET_CACHE"):
        Counting().open(reader, range(4), workers=1)


def test_a_killed_run_is_resumed(shapes: Path, reader: Reader, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "corner.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "corner.py"), str(shapes)]

    def environment(calls: str, hang_from: int, folder: Path = cache) -> dict[str, str]:
        (tmp_path / calls).mkdir()
        path = os.pathsep.join(folder for folder in sys.path if folder)
        added = {"CALLS": str(tmp_path / calls), "HANG_FROM": str(hang_from), "PYTHONPATH": path}
        added["SEGDET_CACHE"] = str(folder)
        return {**os.environ, **added}

    # Two images are computed; then both processes of the pool hang.
    killed = subprocess.Popen(command, env=environment("first", 2), stderr=subprocess.DEVNULL)
    assert _wait_for(
        lambda: len([*cache.rglob("*.npy")]) == 2 and len([*(tmp_path / "first").iterdir()]) == 4
    )
    killed.kill()
    killed.wait()
    pids = {int(file.read_text()) for file in (tmp_path / "first").iterdir()} - {killed.pid}
    assert len(pids) == 2
    assert _wait_for(lambda: not any(_runs(pid) for pid in pids)), "the pool outlives its parent"

    done = subprocess.run(command, env=environment("second", 99), capture_output=True, text=True)
    corners = [(read_image(reader.image_path(i))[3, 5, :2].astype(float) + 1).tolist() for i in range(4)]
    assert done.stdout == f"{corners}\n", done.stderr
    assert len([*(tmp_path / "second").iterdir()]) == 2
    # The files equal those of a run without interruption.
    subprocess.run(command, env=environment("third", 99, tmp_path / "other"), capture_output=True, check=True)
    assert len([*(tmp_path / "third").iterdir()]) == 4
    resumed, whole = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.npy")}
        for folder in (cache, tmp_path / "other")
    )
    assert len(whole) == 4 and resumed == whole


def _wait_for(condition: Callable[[], bool], seconds: float = 200) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie still has its process id.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
