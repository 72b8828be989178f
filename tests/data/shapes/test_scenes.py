"""Scenes of the Shapes data, and the folders that `make_shapes` writes."""

import hashlib
import json

import numpy as np
import pytest

from segdet.data.shapes import make
from segdet.data.shapes.make import make_shapes
from segdet.data.shapes.scenes import MIN_VISIBLE, SHAPES_CLASSES, Scenes, draw_scene
from segdet.util.errors import UserError


@pytest.fixture(scope="module")
def scenes():
    return list(Scenes(7, range(150)))


def tree(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_same_bytes_on_every_platform():
    digest = hashlib.sha256()
    for index in range(6):
        scene = draw_scene(0, index)
        for array in (scene.image, scene.instances.astype("<i4"), scene.boxes.astype("<i4")):
            digest.update(array.tobytes())
    assert digest.hexdigest() == "7da9982b97f60bc74e970f878a176970a3970972be1c724d306da2636ef4a29c"


def test_scenes_differ_by_seed_and_index():
    first, again = draw_scene(3, 5), draw_scene(3, 5)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.instances, again.instances)
    assert not np.array_equal(first.image, draw_scene(3, 6).image)
    assert not np.array_equal(first.image, draw_scene(4, 5).image)


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (256, 200)])
def test_sizes(size):
    scene = draw_scene(0, 1, size)
    assert scene.image.shape == (*size, 3)
    assert scene.image.dtype == np.uint8
    assert scene.instances.shape == size


def test_boxes_are_tight_and_masks_are_visible(scenes):
    for scene in scenes:
        count = len(scene.labels)
        assert scene.boxes.shape == (count, 4)
        assert set(np.unique(scene.instances)) - {0} == set(range(1, count + 1))
        for index, box in enumerate(scene.boxes):
            y, x = np.nonzero(scene.instances == index + 1)
            assert len(y) >= MIN_VISIBLE
            assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
            assert (scene.mask()[y, x] == scene.labels[index]).all()
        assert (scene.mask()[scene.instances == 0] == 0).all()


def test_ring_has_a_hole_that_is_background():
    found = 0
    for scene in Scenes(1, range(60)):
        for index in np.flatnonzero((scene.labels == 6) & ~scene.truncated & ~scene.occluded & ~scene.crowd):
            x0, y0, x1, y1 = scene.boxes[index]
            assert scene.instances[(y0 + y1) // 2, (x0 + x1) // 2] != index + 1
            found += 1
    assert found >= 5


def test_statistics_of_objects(scenes):
    counts = np.array([len(scene.labels) for scene in scenes])
    assert 2.3 < counts.mean() < 3.7
    assert (counts == 0).any()
    assert counts.max() >= 8
    labels = np.bincount(np.concatenate([scene.labels for scene in scenes]), minlength=7)
    assert labels[0] == 0
    assert (labels[1:] > labels.sum() / 12).all()
    largest = np.array([max([0, *(scene.boxes[:, 2:] - scene.boxes[:, :2]).ravel()]) for scene in scenes])
    assert 0.5 < (largest >= 40).mean() < 0.85
    sides = np.concatenate([(scene.boxes[:, 2:] - scene.boxes[:, :2]).max(1) for scene in scenes])
    assert sides.min() < 16
    assert sides.max() > 60
    for flag in ("crowd", "truncated", "occluded"):
        share = np.concatenate([getattr(scene, flag) for scene in scenes]).mean()
        assert 0 < share < 0.5, flag


def test_objects_contrast_with_their_background(scenes):
    faint = []
    for scene in scenes:
        for index, (x0, y0, x1, y1) in enumerate(scene.boxes.tolist()):
            window = np.s_[max(0, y0 - 3) : y1 + 3, max(0, x0 - 3) : x1 + 3]
            own = scene.instances[window] == index + 1
            near = scene.image[window].astype(int)
            faint.append(np.abs(near[own].mean(0) - near[~own].mean(0)).sum() < 25)
    assert np.mean(faint) < 0.02


def test_colours_do_not_identify_classes(scenes):
    def table(scene):
        key = (scene.image.astype(int) >> 4) @ [256, 16, 1]
        return key.ravel() * 7 + scene.mask().ravel()

    counts = np.zeros(4096 * 7, int)
    for scene in scenes:
        counts += np.bincount(table(scene), minlength=len(counts))
    counts = counts.reshape(4096, 7)
    shares = counts / counts.sum(0)
    others = list(Scenes(7, range(1_000_000, 1_000_040)))
    for rule in (counts.argmax(1), shares.argmax(1)):
        confusion = np.zeros((7, 7))
        for scene in others:
            predicted = rule[table(scene) // 7]
            confusion += np.bincount(scene.mask().ravel() * 7 + predicted, minlength=49).reshape(7, 7)
        hits = np.diag(confusion)
        assert (hits / (confusion.sum(0) + confusion.sum(1) - hits)).mean() < 0.2


def test_scenes_are_a_sequence():
    scenes = Scenes(0, range(10, 14))
    assert len(scenes) == 4
    assert np.array_equal(scenes[-1].image, draw_scene(0, 13).image)
    assert np.array_equal(scenes[1:][0].image, draw_scene(0, 11).image)
    with pytest.raises(IndexError):
        scenes[4]


def test_a_folder_is_made_once_and_does_not_depend_on_workers(tmp_path):
    kwargs = {"train": 70, "val": 3, "test": 2, "seed": 5, "progress": False}
    one = make_shapes(tmp_path / "one" / "Shapes", workers=1, **kwargs)
    two = make_shapes(tmp_path / "two" / "Shapes", workers=2, **kwargs)
    assert tree(one) == tree(two)
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["Shapes"]
    stamps = {path: path.stat().st_mtime_ns for path in one.rglob("*")}
    assert make_shapes(one, workers=1, **kwargs) == one
    assert stamps == {path: path.stat().st_mtime_ns for path in one.rglob("*")}


def test_val_does_not_depend_on_the_size_of_train(tmp_path):
    few = make_shapes(tmp_path / "few", train=1, val=1, test=0, progress=False)
    more = make_shapes(tmp_path / "more", train=2, val=1, test=0, progress=False)
    last = "JPEGImages/00000{}.jpg"
    assert (few / last.format(2)).read_bytes() == (more / last.format(3)).read_bytes()
    assert (few / last.format(1)).read_bytes() != (few / last.format(2)).read_bytes()


def test_the_error_names_the_settings_that_differ(tmp_path):
    root = make_shapes(tmp_path / "shapes", train=1, val=0, test=0, progress=False)
    assert json.loads((root / "shapes.json").read_text())["train"] == 1
    with pytest.raises(UserError, match=r"train 1 instead of 2.*another folder"):
        make_shapes(root, train=2, val=0, test=0)
    with pytest.raises(UserError, match="format voc instead of coco"):
        make_shapes(root, "coco", train=1, val=0, test=0)


def test_a_folder_with_other_content_is_an_error(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match="not a Shapes folder"):
        make_shapes(tmp_path, train=1, val=0, test=0)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]
    with pytest.raises(UserError, match="not a Shapes folder"):
        make_shapes(tmp_path / "holiday.jpg", train=1, val=0, test=0)


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ({"train": -1}, "train"),
        ({"size": (32, 128)}, "size"),
        ({"seed": -1}, "seed"),
        ({"format": "yolo"}, "format"),
    ],
)
def test_settings_out_of_range_are_errors(tmp_path, setting, key):
    with pytest.raises(UserError, match=f"^{key} "):
        make_shapes(tmp_path / "shapes", **setting)


def test_an_interrupt_leaves_no_files(tmp_path, monkeypatch):
    def stop(self, index):
        raise KeyboardInterrupt

    monkeypatch.setattr(Scenes, "__getitem__", stop)
    with pytest.raises(KeyboardInterrupt):
        make_shapes(tmp_path / "shapes", train=2, val=0, test=0, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_another_process_finishes_first_is_used(tmp_path, monkeypatch):
    root = tmp_path / "shapes"
    kwargs = {"train": 1, "val": 0, "test": 0, "progress": False}

    def slow(*args, **options):
        monkeypatch.undo()
        make_shapes(root, **kwargs)
        return make._WRITERS["voc"](*args, **options)

    monkeypatch.setattr(make, "_WRITERS", {"voc": slow})
    assert make_shapes(root, **kwargs) == root


def test_class_names():
    assert SHAPES_CLASSES == ["circle", "square", "triangle", "star", "cross", "ring"]
