import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from segdet.data.formats.cityscapes import THING_NAMES, CityscapesReader
from segdet.data.formats.coco import COCOReader
from segdet.data.formats.voc import VOCReader
from segdet.data.shapes.scenes import SHAPES_CLASSES, Scenes
from segdet.data.shapes.writers import (
    COCO_CATEGORY_IDS,
    write_cityscapes,
    write_coco,
    write_voc,
)
from segdet.data.writers.cityscapes import LABEL_OF, label_polygons
from segdet.data.writers.record import AnnotatedImage, AnnotatedObject
from segdet.util.errors import UserError

# pycocotools' compiled part is older than NumPy 2's copy keyword.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def with_crowds(count):
    """Return ``count`` scenes, some of which are crowded, empty or have a crowd region."""
    scenes = list(Scenes(11, range(120)))
    crowds = [scene for scene in scenes if scene.crowd.any()]
    empty = [scene for scene in scenes if not len(scene.labels)]
    first = crowds[:2] + empty[:1]
    chosen = [id(scene) for scene in first]
    return (first + [scene for scene in scenes if id(scene) not in chosen])[:count]


@pytest.fixture(scope="module")
def splits():
    scenes = with_crowds(30)
    return {"train": scenes[:20], "val": scenes[20:26], "test": scenes[26:]}


@pytest.fixture(scope="module")
def voc(splits, tmp_path_factory):
    return write_voc(tmp_path_factory.mktemp("voc") / "Shapes", splits, SHAPES_CLASSES)


@pytest.fixture(scope="module")
def coco(splits, tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("coco") / "Shapes", splits, SHAPES_CLASSES)


@pytest.fixture(scope="module")
def cityscapes(splits, tmp_path_factory):
    return write_cityscapes(tmp_path_factory.mktemp("city") / "Shapes", splits, SHAPES_CLASSES)


def numbered(splits):
    return enumerate((scene for scenes in splits.values() for scene in scenes), start=1)


def test_voc_lists(voc, splits):
    sets = {path.stem: path.read_text().split() for path in (voc / "ImageSets/Main").iterdir()}
    assert {name: len(stems) for name, stems in sets.items()} == {
        "train": 20,
        "val": 6,
        "trainval": 26,
        "test": 4,
    }
    assert sets["trainval"] == sets["train"] + sets["val"]
    assert sets == {
        path.stem: path.read_text().split() for path in (voc / "ImageSets/Segmentation").iterdir()
    }
    assert (voc / "labels.txt").read_text().splitlines() == ["background", *SHAPES_CLASSES]


def test_voc_annotations(voc, splits):
    for number, scene in numbered(splits):
        document = ET.parse(voc / "Annotations" / f"{number:06d}.xml").getroot()
        assert document.findtext("filename") == f"{number:06d}.jpg"
        assert [document.findtext(f"size/{side}") for side in ("width", "height", "depth")] == [
            "128",
            "128",
            "3",
        ]
        objects = document.findall("object")
        assert [item.findtext("name") for item in objects] == [SHAPES_CLASSES[k - 1] for k in scene.labels]
        boxes = [[int(side.text) for side in item.find("bndbox")] for item in objects]
        assert [[x0 - 1, y0 - 1, x1, y1] for x0, y0, x1, y1 in boxes] == scene.boxes.tolist()
        assert [item.findtext("difficult") == "1" for item in objects] == scene.crowd.tolist()
        assert [item.findtext("truncated") == "1" for item in objects] == scene.truncated.tolist()


def test_voc_images_and_masks(voc, splits):
    for number, scene in numbered(splits):
        picture = Image.open(voc / "JPEGImages" / f"{number:06d}.jpg")
        assert picture.format == "JPEG"
        assert np.abs(np.asarray(picture).astype(int) - scene.image).mean() < 4
        for kind, truth in (("SegmentationClass", scene.mask()), ("SegmentationObject", scene.instances)):
            mask = Image.open(voc / kind / f"{number:06d}.png")
            assert mask.mode == "P"
            palette = mask.getpalette()
            assert palette[3:6] == [128, 0, 0]
            assert palette[15 * 3 : 16 * 3] == [192, 128, 128]
            assert palette[255 * 3 :] == [224, 224, 192]
            values = np.asarray(mask)
            kept = values != 255
            assert (values[kept] == truth[kept]).all()
            differs = np.zeros(kept.shape, bool)
            for y, x in ((0, 1), (0, -1), (1, 0), (-1, 0)):
                moved = np.roll(scene.instances, (y, x), (0, 1)) != scene.instances
                inner = np.ones_like(moved)
                inner[0 if y == 1 else -1 if y == -1 else slice(0)] = False
                inner[:, 0 if x == 1 else -1 if x == -1 else slice(0)] = False
                differs |= moved & inner
            assert (~kept == differs).all()


def test_coco_files_equal_the_scenes(coco, splits, capsys):
    start, forms = 1, set()
    for split, scenes in splits.items():
        api = COCO(coco / "annotations" / f"instances_{split}2017.json")
        assert api.dataset.keys() == {"info", "licenses", "images", "annotations", "categories"}
        assert [entry["id"] for entry in api.dataset["categories"]] == COCO_CATEGORY_IDS[:6]
        assert sorted(api.imgs) == list(range(start, start + len(scenes)))
        for number, scene in enumerate(scenes, start):
            info = api.imgs[number]
            with Image.open(coco / f"{split}2017" / info["file_name"]) as picture:
                assert picture.size == (info["width"], info["height"])
            annotations = api.loadAnns(api.getAnnIds(number))
            assert len(annotations) == len(scene.labels)
            for index, annotation in enumerate(annotations):
                mask = scene.instances == index + 1
                x, y, width, height = annotation["bbox"]
                assert [x, y, x + width, y + height] == scene.boxes[index].tolist()
                assert annotation["area"] == mask.sum()
                assert annotation["category_id"] == COCO_CATEGORY_IDS[scene.labels[index] - 1]
                assert annotation["iscrowd"] == scene.crowd[index]
                assert (api.annToMask(annotation) == mask).all()
                segmentation = annotation["segmentation"]
                form = type(segmentation if isinstance(segmentation, list) else segmentation["counts"])
                forms.add((isinstance(segmentation, dict), form))
                assert (segmentation.__class__ is dict and form is list) == bool(scene.crowd[index])
        start += len(scenes)
    assert forms == {(False, list), (True, list), (True, str)}
    capsys.readouterr()


def test_cityscapes_files_equal_the_scenes(cityscapes, splits):
    identifiers = np.array([7, *(LABEL_OF[name].id for name in THING_NAMES)])
    for number, scene in numbered(splits):
        (path,) = cityscapes.glob(f"leftImg8bit/*/*/*_{number:06d}_leftImg8bit.png")
        assert (np.asarray(Image.open(path)) == scene.image).all()
        split, city = path.parts[-3:-1]
        assert path.name.startswith(f"{city}_")
        stem = path.name.removesuffix("_leftImg8bit.png")
        truth = cityscapes / "gtFine" / split / city
        labels = np.asarray(Image.open(truth / f"{stem}_gtFine_labelIds.png"))
        assert labels.dtype == np.uint8
        assert (labels == identifiers[scene.mask()]).all()
        with Image.open(truth / f"{stem}_gtFine_instanceIds.png") as picture:
            assert picture.mode.startswith("I")
            instances = np.asarray(picture).astype(int)
        for index, crowd in enumerate(scene.crowd):
            (value,) = np.unique(instances[scene.instances == index + 1])
            identifier = identifiers[scene.labels[index]]
            assert value == identifier if crowd else value // 1000 == identifier
        assert len(np.unique(instances)) == len(np.unique(scene.instances))
        with Image.open(truth / f"{stem}_gtFine_color.png") as picture:
            assert picture.mode == "RGBA"
            assert picture.getpixel((0, 0))[3] == 255

        document = json.loads((truth / f"{stem}_gtFine_polygons.json").read_text())
        assert (document["imgHeight"], document["imgWidth"]) == labels.shape
        names = {name: LABEL_OF[name].id for name in ("road", *THING_NAMES)}
        drawn = Image.new("L", labels.shape[::-1])
        for item in document["objects"]:
            corners = [tuple(point) for point in item["polygon"]]
            ImageDraw.Draw(drawn).polygon(corners, fill=names[item["label"].removesuffix("group")])
        groups = sum(item["label"].endswith("group") for item in document["objects"])
        assert (groups > 0) == scene.crowd.any()
        # Pillow also fills the right and bottom edges, so outlines may differ.
        inside = (np.asarray(drawn) == labels) | (scene.instances != np.roll(scene.instances, (1, 1), (0, 1)))
        assert inside.mean() > 0.97


def test_objects_in_holes_are_painted_after_the_holes():
    instances = np.zeros((64, 64), np.int32)
    instances[10:50, 10:50], instances[20:40, 20:40], instances[24:30, 24:30] = 1, 0, 2
    objects = [AnnotatedObject(name, (0, 0, 1, 1)) for name in ("car", "bus")]
    record = AnnotatedImage(np.zeros((64, 64, 3), np.uint8), (64, 64), "a", objects, instances=instances)
    polygons = label_polygons(record, "road")
    assert [item["label"] for item in polygons] == ["road", "car", "road", "bus"]
    assert sorted(polygons[2]["polygon"]) == [[20, 20], [20, 40], [40, 20], [40, 40]]
    # If an object fills a hole, both outlines are equal, and the hole must come first.
    instances[20:40, 20:40] = 2
    labels = [item["label"] for item in label_polygons(record, "road")]
    assert labels == ["road", "car", "road", "bus"]


@pytest.mark.parametrize("write", [write_voc, write_coco, write_cityscapes])
def test_existing_folders_are_refused(tmp_path, write, splits):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="exists already"):
        write(tmp_path / "full", splits, SHAPES_CLASSES)
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "file"]
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", {"val": splits["val"][:1]}, SHAPES_CLASSES, files={"note.txt": "hello"})
    assert (tmp_path / "empty" / "note.txt").read_text() == "hello"


def test_unwritable_folder_is_reported_in_one_line(tmp_path, splits):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write_voc(tmp_path / "file" / "below", splits, SHAPES_CLASSES)


def test_too_many_classes(tmp_path, splits):
    with pytest.raises(UserError, match="9 classes"):
        write_cityscapes(tmp_path / "a", splits, [f"c{k}" for k in range(9)])


def test_an_error_in_a_worker_ends_the_writing(tmp_path):
    class Broken(Scenes):
        def __getitem__(self, index):
            if index == 80:
                raise ValueError("scene 80")
            return super().__getitem__(index)

    with pytest.raises(ValueError, match="scene 80"):
        write_voc(tmp_path / "a", {"train": Broken(0, range(100), (64, 64))}, SHAPES_CLASSES, workers=2)
    assert not list(tmp_path.iterdir())


def assert_objects_are(reader, index, scene, crowd):
    """Check that the reader's objects equal the scene's, in any order."""
    objects = reader.objects(index)
    rows = zip(objects.labels.tolist(), objects.boxes.tolist(), getattr(objects, crowd).tolist(), strict=True)
    truth = zip(scene.labels.tolist(), scene.boxes.tolist(), scene.crowd.tolist(), strict=True)
    assert sorted(rows) == sorted(truth)


def test_voc_reader_reads_the_scenes(voc, splits):
    for split, scenes in splits.items():
        readers = {task: VOCReader(voc, [split], task) for task in ("detection", "segmentation")}
        # Without labels.txt, the classes may have another order.
        names = VOCReader(voc, [split], "detection", SHAPES_CLASSES)
        assert names.class_names == SHAPES_CLASSES
        assert readers["segmentation"].mask_names == ["background", *SHAPES_CLASSES]
        for index, scene in enumerate(scenes):
            assert_objects_are(names, index, scene, "difficult")
            mask = readers["segmentation"].mask(index)
            kept = mask != 255
            assert (mask[kept] == scene.mask()[kept]).all()
            assert not list(readers["detection"].faults(index, "detection"))


def test_coco_reader_reads_the_scenes(coco, splits):
    for split, scenes in splits.items():
        reader = COCOReader(coco, f"{split}2017", "segmentation")
        assert reader.class_names == SHAPES_CLASSES
        assert reader.category_ids == COCO_CATEGORY_IDS[:6]
        assert len(reader) == len(scenes)
        for index, scene in enumerate(scenes):
            assert_objects_are(reader, index, scene, "iscrowd")
            # A crowd region does not identify the pixels of objects.
            crowd = np.concatenate([[False], scene.crowd])[scene.instances]
            assert (reader.mask(index) == np.where(crowd, 255, scene.mask())).all()
            assert reader.objects(index).area.sum() == (scene.instances > 0).sum()


def test_cityscapes_reader_reads_the_scenes(cityscapes, splits):
    for split, scenes in splits.items():
        reader = CityscapesReader(cityscapes, split, "detection")
        assert reader.class_names == THING_NAMES
        values = np.array([reader.mask_names.index(name) for name in ("road", *THING_NAMES)])
        order = {reader.image_path(index).name.split("_")[2]: index for index in range(len(reader))}
        numbers = [number for number, scene in numbered(splits) if any(scene is one for one in scenes)]
        assert len(order) == len(scenes)
        for number, scene in zip(numbers, scenes, strict=False):
            index = order[f"{number:06d}"]
            assert_objects_are(reader, index, scene, "iscrowd")
            assert (reader.mask(index) == values[scene.mask()]).all()
