import os
import stat
from pathlib import Path

import numpy as np
import pytest

from segdet.util import disk_cache as cache


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


class Computed:
    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> cache.Arrays:
        self.times += 1
        return {"a": np.arange(1000), "b": np.eye(2, dtype=np.float32)}


def test_an_entry_is_computed_once(folder: Path) -> None:
    compute = Computed()
    for _ in range(2):
        found = cache.cached("kind", "abc", compute)
        assert sorted(found) == ["a", "b"] and found["b"].dtype == np.float32
        assert np.array_equal(found["a"], np.arange(1000))
    assert compute.times == 1
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["abc.npz"]
    cache.cached("kind", "abd", compute)
    cache.cached("other", "abc", compute)
    assert compute.times == 3


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "another format"])
def test_a_corrupt_entry_is_computed_again(damage: str) -> None:
    compute = Computed()
    cache.cached("kind", "abc", compute)
    path = cache.path_of("kind", "abc")
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 3] ^= 255
    whole = {"truncated": content[: len(content) // 2], "empty": b"", "another format": b"x" * 100}
    path.write_bytes(whole.get(damage, content))
    assert cache.load("kind", "abc") is None
    assert np.array_equal(cache.cached("kind", "abc", compute)["a"], np.arange(1000))
    assert compute.times == 2
    assert cache.load("kind", "abc") is not None


def test_a_read_only_folder_gives_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "file"))
    compute = Computed()
    assert np.array_equal(cache.cached("kind", "abc", compute)["a"], np.arange(1000))
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "file") in line and cache.VARIABLE in line


def test_a_failed_write_leaves_nothing_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: object, **arrays: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert not cache.save("kind", "abc", {"a": np.zeros(1)})
    assert not [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_entries_have_the_permissions_of_the_umask(mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        assert cache.save("kind", "abc", {"a": np.zeros(1)})
    finally:
        os.umask(before)
    assert stat.S_IMODE(cache.path_of("kind", "abc").stat().st_mode) == mode


def test_the_key_of_files_depends_on_name_size_and_time(tmp_path: Path) -> None:
    path = tmp_path / "one" / "mask.png"
    path.parent.mkdir()
    path.write_bytes(b"abc")
    os.utime(path, ns=(5, 5))
    key = cache.files_key([path, path], "part")
    copy = tmp_path / "two" / "mask.png"
    copy.parent.mkdir()
    copy.write_bytes(b"abd")
    os.utime(copy, ns=(5, 5))
    assert cache.files_key([copy], "part") == key  # a copy with the same time has the same key
    assert cache.files_key([path], "other part") != key
    os.utime(path, ns=(6, 6))
    assert cache.files_key([path], "part") != key
    path.write_bytes(b"abcd")
    os.utime(path, ns=(5, 5))
    assert cache.files_key([path], "part") != key
    assert cache.files_key([tmp_path / "none"]) != cache.files_key([])


def test_parts_of_a_key_are_separated() -> None:
    assert cache.key_of("ab", "c") != cache.key_of("a", "bc")
    assert cache.key_of(1) != cache.key_of("1")


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.VARIABLE, "~/elsewhere")
    assert cache.cache_folder() == Path.home() / "elsewhere"
    monkeypatch.delenv(cache.VARIABLE)
    assert "segdet" in cache.cache_folder().parts
