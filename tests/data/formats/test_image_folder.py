from pathlib import Path

import pytest
from PIL import Image

from segdet.data.formats.image_folder import FolderReader
from segdet.util.errors import UserError


def test_images_are_sorted_and_hidden_ones_skipped(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "more/c.jpg", "._a.jpg", ".thumbnails/a.jpg", "more/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 3)).save(tmp_path / name, format="PNG")
    reader = FolderReader(tmp_path, ["cat"])
    names = [path.relative_to(tmp_path).as_posix() for path in reader.paths]
    assert names == ["a.JPG", "b.png", "more/c.jpg"]


def test_a_folder_with_only_hidden_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "._a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="no image in this folder"):
        FolderReader(tmp_path, ["cat"])


def test_a_folder_inside_a_hidden_folder_is_read(tmp_path: Path) -> None:
    folder = tmp_path / ".cache" / "photos"
    folder.mkdir(parents=True)
    Image.new("RGB", (4, 3)).save(folder / "a.png")
    assert len(FolderReader(folder, ["cat"])) == 1
