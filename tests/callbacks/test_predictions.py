from pathlib import Path

from segdet.callbacks.predictions import output_names


class TestOutputNames:
    def test_stems_below_the_root(self) -> None:
        root = Path("photos")
        paths = [root / "a.jpg", root / "more" / "a.jpg", root / "b.c.png"]
        assert list(output_names(paths, root).values()) == ["a", "more/a", "b.c"]

    def test_repeated_stems_keep_their_endings(self) -> None:
        root = Path("photos")
        paths = [root / name for name in ("a.jpg", "a.png", "a.jpg.bmp", "b.jpg")]
        names = list(output_names(paths, root).values())
        assert names == ["a.jpg", "a.png", "a.jpg.bmp", "b"]

    def test_one_image_twice(self) -> None:
        path = Path("elsewhere/a.jpg")
        assert output_names([path, path], Path("photos")) == {path: "a"}
