"""Images and videos that a user gives: files, folders, patterns and lists."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdet.data.formats.image_files import Skipped, find_image_files
from segdet.data.video import VideoWriter
from segdet.util.errors import UserError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which is empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def image(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(name, format="PNG")


def video(name: str) -> None:
    writer = VideoWriter(Path(name), 10)
    for value in range(3):
        writer.write(np.full((32, 48, 3), value, np.uint8))
    writer.close()


def found(*paths: str) -> list[str]:
    return [path.as_posix() for path in find_image_files(paths).images]


def skipped(*paths: str) -> dict[str, str]:
    return {each.path.as_posix(): each.reason for each in find_image_files(paths).skipped}


class TestFolder:
    def test_natural_order_with_subfolders(self) -> None:
        image("photos/10.jpg", "photos/2.png", "photos/b/1.jpg", "photos/a10/1.jpg", "photos/a9/1.JPG")
        expected = ["2.png", "10.jpg", "a9/1.JPG", "a10/1.jpg", "b/1.jpg"]
        assert found("photos") == [f"photos/{name}" for name in expected]

    def test_everything_else_is_listed_with_a_reason(self) -> None:
        image(
            "photos/a.jpg",
            "photos/._a.jpg",
            "photos/.thumbnails/a.jpg",
            "photos/more/notes.txt",
            "photos/raw",
        )
        Path("photos/clip.mp4").write_text("no video")
        reasons = skipped("photos")
        assert {name: reason.split(":")[0] for name, reason in reasons.items()} == {
            "photos/._a.jpg": "a hidden file",
            "photos/.thumbnails": "a hidden folder",
            "photos/more/notes.txt": "files of the type .txt are not read as images or videos",
            "photos/raw": "a file without a suffix is not read as images or videos",
            "photos/clip.mp4": "cannot be opened as a video",
        }

    def test_a_folder_inside_a_hidden_folder_is_read_when_given(self) -> None:
        image(".cache/photos/a.png")
        assert found(".cache/photos") == [".cache/photos/a.png"]

    def test_nothing_but_files_that_are_skipped_is_an_error(self) -> None:
        image("photos/._a.jpg")
        with pytest.raises(
            UserError, match=r"photos: no image or video \(1 skipped; .*a hidden file\); give"
        ):
            find_image_files(["photos"])


class TestFiles:
    def test_order_is_that_of_the_arguments(self) -> None:
        image("b.jpg", "a.jpg")
        assert found("b.jpg", "a.jpg") == ["b.jpg", "a.jpg"]

    def test_a_file_that_is_given_is_recognized_by_its_content(self) -> None:
        image("image.dat", "a.jpg")
        video("v.mp4")
        Path("v.mp4").rename("video.dat")
        Path("text.dat").write_text("text")
        files = find_image_files(["image.dat", "video.dat", "text.dat"])
        assert files.images == [Path("image.dat")]
        assert [each.path for each in files.videos] == [Path("video.dat")]
        assert files.skipped == [Skipped(Path("text.dat"), "neither an image nor a video")]

    def test_a_missing_file_is_an_error(self) -> None:
        image("a.jpg")
        with pytest.raises(UserError, match=r"b\.jpg: no such file or folder; fix the path"):
            find_image_files(["a.jpg", "b.jpg"])

    def test_one_file_given_in_several_ways_is_used_once(self) -> None:
        image("photos/a.jpg", "b.jpg")
        Path("photos/c.jpg").symlink_to("../b.jpg")
        paths = ["photos", "photos/a.jpg", f"{Path.cwd()}/photos/../photos/*.jpg"]
        assert found(*paths) == ["photos/a.jpg", "photos/c.jpg"]
        files = find_image_files(["photos/a.jpg", "photos/a.jpg", "b.jpg", "photos/c.jpg"])
        assert files.skipped == [
            Skipped(Path("photos/a.jpg"), "given more than once"),
            Skipped(Path("photos/c.jpg"), "the same file as b.jpg"),
        ]


class TestPattern:
    def test_patterns_are_expanded(self) -> None:
        image("photos/10.jpg", "photos/2.jpg", "photos/more/1.jpg", "photos/a.png", "photos/x.txt")
        assert found("photos/*.jpg") == ["photos/2.jpg", "photos/10.jpg"]
        assert found("photos/**/*.jpg") == ["photos/2.jpg", "photos/10.jpg", "photos/more/1.jpg"]
        assert list(skipped("photos/*")) == ["photos/x.txt"]

    def test_a_file_whose_name_looks_like_a_pattern(self) -> None:
        image("photo[1].jpg", "photo1.jpg")
        assert found("photo[1].jpg") == ["photo[1].jpg"]

    def test_no_match_is_an_error(self) -> None:
        image("photos/a.jpg")
        with pytest.raises(UserError, match=r"photos/\*\.png: the pattern matches no file; fix the pattern"):
            find_image_files(["photos/*.png"])
        with pytest.raises(UserError, match=r"ph\*: .* no file; it matches 1 folders, add /\*"):
            find_image_files(["ph*"])


class TestList:
    def test_lines_are_relative_to_the_list_or_the_current_folder(self) -> None:
        image("lists/b.jpg", "a.jpg", "photos/2.jpg", "photos/10.jpg")
        Path("lists/val.txt").write_text(
            "\ufeffb.jpg\r\n\r\na.jpg\r\nphotos\nphotos/1*.jpg\n", encoding="utf-8"
        )
        assert found("lists/val.txt") == ["lists/b.jpg", "a.jpg", "photos/2.jpg", "photos/10.jpg"]

    def test_missing_lines_and_lists_in_a_list_are_skipped(self) -> None:
        image("a.jpg")
        Path("list.txt").write_text("a.jpg\nmissing.jpg\nlist.txt\n")
        assert skipped("list.txt") == {
            "missing.jpg": "no such file (line 2 of list.txt)",
            "list.txt": "a list within the list list.txt, line 3",
        }

    def test_a_file_that_is_no_text_is_an_error(self) -> None:
        image("list.txt")
        with pytest.raises(UserError, match=r"list\.txt: cannot be read as a list of paths"):
            find_image_files(["list.txt"])


class TestRoot:
    """The folder to which the names of outputs are relative."""

    @pytest.mark.parametrize(
        ("paths", "root"),
        [
            (["photos"], "photos"),
            (["photos/sub"], "photos/sub"),
            (["photos/sub/*.jpg"], "photos/sub"),
            (["photos/**/*.jpg"], "photos"),
            (["photos/sub/1.jpg"], "photos/sub"),
            (["photos/sub/1.jpg", "photos/other/1.jpg"], "photos"),
            (["photos/sub", "other"], "."),
        ],
    )
    def test_folder_or_common_parent(self, paths: list[str], root: str) -> None:
        image("photos/sub/1.jpg", "photos/other/1.jpg", "other/1.jpg")
        assert find_image_files(paths).root == Path(root)
