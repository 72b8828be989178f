"""Atomic writes: complete or not at all, no leftovers, one-line errors."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from segdet.util.errors import UserError
from segdet.util.files import (
    STALE_SECONDS,
    _remove_stale_once,
    create_folder_atomically,
    open_to_append,
    remove_stale,
    write_atomically,
    write_text,
)


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_appending_to_a_full_disk_is_one_line() -> None:
    with (
        pytest.raises(
            UserError, match=r"^/dev/full: cannot be written \(No space left on device\); free disk space"
        ),
        open_to_append(Path("/dev/full")) as stream,
    ):
        stream.write("row\n")


@pytest.mark.parametrize("linked", [False, True])
def test_a_pipe_or_device_is_written_and_not_replaced(linked: bool, tmp_path: Path) -> None:
    pipe, path = tmp_path / "pipe", tmp_path / ("link" if linked else "pipe")
    os.mkfifo(pipe)
    if linked:
        path.symlink_to(pipe)
    reader = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    try:
        write_text(path, "a table\n")
        assert os.read(reader, 100) == b"a table\n"
    finally:
        os.close(reader)
    assert pipe.is_fifo() and path.is_symlink() == linked


def test_the_link_to_an_open_file_is_not_replaced(tmp_path: Path) -> None:
    """/dev/stdout is such a link."""
    with (tmp_path / "output").open("w") as stream:
        link = tmp_path / "stdout"
        link.symlink_to(f"/proc/self/fd/{stream.fileno()}")
        write_text(link, "a table\n")
        assert link.is_symlink()
    assert (tmp_path / "output").read_text() == "a table\n"


def test_a_failed_write_leaves_the_earlier_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_text(path, "first\n")
    with pytest.raises(ZeroDivisionError), write_atomically(path) as temporary:
        temporary.write_text("half")
        assert temporary.parent == tmp_path  # a rename is atomic within one file system only
        assert path.read_text() == "first\n"
        1 / 0  # noqa: B018
    assert path.read_text() == "first\n"
    write_text(path, "second\n")
    assert path.read_text() == "second\n"
    assert _names(tmp_path) == ["result.json"]


def test_two_writers_of_one_file_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "entry.npz"
    with write_atomically(path, sync=False) as one, write_atomically(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"


def test_missing_parents_are_created_on_request(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    with pytest.raises(
        UserError, match=r"b.file: cannot be written \(No such file or directory\); free disk"
    ):
        write_text(path, "")
    with write_atomically(path, parents=True) as temporary:
        temporary.write_text("text")
    assert path.read_text() == "text"


def test_the_error_for_an_unwritable_path_ends_with_the_given_fix(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    expected = r"file.x: cannot be written \(Not a directory\); name another folder"
    with pytest.raises(UserError, match=expected):
        write_text(tmp_path / "file" / "x", "", "name another folder")
    with (
        pytest.raises(UserError, match=expected),
        create_folder_atomically(tmp_path / "file" / "x", "name another folder"),
    ):
        pass


def test_a_folder_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "data"
    with pytest.raises(ZeroDivisionError), create_folder_atomically(target) as folder:
        (folder / "a").write_text("")
        1 / 0  # noqa: B018
    assert not _names(tmp_path)
    with create_folder_atomically(target) as folder:
        (folder / "a").write_text("")
        assert not target.exists()
    assert _names(target) == ["a"]


KILLED = """
import os, sys, time
from pathlib import Path
from segdet.util.files import create_folder_atomically, write_atomically

with write_atomically(Path("a.json")) as file, create_folder_atomically(Path("data")) as folder:
    file.write_text("half")
    (folder / "1.png").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    """A process that writes a file and a folder in the current folder, to be killed."""
    monkeypatch.chdir(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def _clean() -> None:
    for pattern in (".*.tmp", ".*.partial"):
        remove_stale(Path(), pattern)


class TestStale:
    def test_leftovers_of_a_killed_writer_are_removed_and_those_of_a_running_one_kept(
        self, killed: subprocess.Popen[str]
    ) -> None:
        assert sorted(name.rsplit(".", 1)[1] for name in _names(Path())) == ["partial", "tmp"]
        _clean()
        assert len(_names(Path())) == 2
        killed.kill()
        killed.wait()
        _clean()
        assert not _names(Path())

    def test_the_next_write_removes_them(self, killed: subprocess.Popen[str]) -> None:
        killed.kill()
        killed.wait()
        _remove_stale_once.cache_clear()
        write_text(Path("b.json"), "{}")
        with create_folder_atomically(Path("other")):
            pass
        assert sorted(_names(Path())) == ["b.json", "other"]

    def test_files_of_another_machine_are_kept_for_a_day(self, tmp_path: Path) -> None:
        other, foreign = tmp_path / f".a.{'0' * 8}-{'1' * 12}.tmp", tmp_path / ".editor.tmp"
        folder = tmp_path / f".data.{'0' * 8}-{'1' * 12}.tmp"
        folder.mkdir()
        (folder / "1.png").write_text("")
        for path in (other, foreign):
            path.write_text("")
        past = time.time() - STALE_SECONDS - 60
        for path in (foreign, folder):
            os.utime(path, (past, past))
        remove_stale(tmp_path)
        assert len(_names(tmp_path)) == 3  # a file in the folder is new
        for path in (other, folder / "1.png"):
            os.utime(path, (past, past))
        remove_stale(tmp_path)
        assert _names(tmp_path) == [".editor.tmp"]
