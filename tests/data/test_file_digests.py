import os
import time
from pathlib import Path

import pytest

from segdet.data import file_digests as module
from segdet.data.file_digests import file_digests


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in ("a.jpg", "b\nc.jpg", "ü.png")]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 1000)
    return paths


def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Count the files that are read."""
    read: list[Path] = []
    original = module._digest

    def digest(path: Path) -> str | None:
        read.append(path)
        return original(path)

    monkeypatch.setattr(module, "_digest", digest)
    return read


def test_digests_depend_on_the_content(files: list[Path]) -> None:
    digests = file_digests(files)
    assert list(digests) == files
    assert len(set(digests.values())) == 3
    files[0].write_bytes(files[2].read_bytes())
    assert file_digests(files)[files[0]] == digests[files[2]]


def test_a_missing_file_has_no_digest(files: list[Path], tmp_path: Path) -> None:
    assert file_digests([tmp_path / "none.jpg", *files])[tmp_path / "none.jpg"] is None
    assert file_digests([]) == {}


def test_unchanged_files_are_read_once(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTLED_NS", 0)
    time.sleep(0.02)
    first = file_digests(files)
    read = reads(monkeypatch)
    assert file_digests(files) == first
    assert read == []


def test_a_change_with_the_same_size_and_time_is_found(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETTLED_NS", 0)
    time.sleep(0.02)
    first = file_digests(files)
    before = files[1].stat()
    files[1].write_bytes(b"\1" * 999 + b"\2")
    os.utime(files[1], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert files[1].stat().st_mtime_ns == before.st_mtime_ns
    read = reads(monkeypatch)
    second = file_digests(files)
    assert read == [files[1]]
    assert [path for path in files if first[path] != second[path]] == [files[1]]


def test_a_file_that_has_just_changed_is_not_cached(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file_digests(files)
    read = reads(monkeypatch)
    file_digests(files)
    assert read == files
