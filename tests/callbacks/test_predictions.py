import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from segdet.callbacks.predictions import PredictionWriter, output_names
from segdet.data.datamodule import Classes


class TestIndexImage:
    MASK = np.array([[0, 1], [2, 1]])

    def test_values_of_the_dataset_s_own_masks(self) -> None:
        gray = Classes(["road", "sidewalk", "building"], [], [7, 8, 11], palette_masks=False)
        image = PredictionWriter(Path(), gray)._index_image(self.MASK)
        assert image.mode == "L"
        assert np.asarray(image).tolist() == [[7, 8], [11, 8]]

    def test_palette(self) -> None:
        image = PredictionWriter(Path(), Classes(["sky", "road", "tree"], [], [0, 2, 3]))._index_image(
            self.MASK
        )
        assert image.mode == "P"
        assert np.asarray(image).tolist() == [[0, 2], [3, 2]]
        assert image.getpalette()[6:9] == [0, 128, 0]  # type: ignore[index]

    def test_positions_where_nothing_is_said(self) -> None:
        assert np.asarray(PredictionWriter(Path())._index_image(self.MASK)).tolist() == self.MASK.tolist()


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


def test_what_is_predicted_before_a_fault_is_kept(tmp_path: Path) -> None:
    writer = PredictionWriter(tmp_path)
    one: Any = SimpleNamespace(world_size=1)
    writer.on_exception(one, one, KeyboardInterrupt())  # before there is anything
    assert not list(tmp_path.iterdir())
    writer._part(0).write_text('{"image_id": 1}\n{"image_id": 2}\n')
    writer.on_exception(one, one, KeyboardInterrupt())
    assert json.loads((tmp_path / "predictions.json").read_text()) == [{"image_id": 1}, {"image_id": 2}]
    assert [file.name for file in tmp_path.iterdir()] == ["predictions.json"]
