"""Atomic writes: complete or not at all, no leftovers, one-line errors."""

from pathlib import Path

import pytest

from segdet.util.errors import UserError
from segdet.util.files import create_folder_atomically, write_atomically, write_text


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


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
