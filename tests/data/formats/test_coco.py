import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from segdet.data.formats.coco import COCOReader
from segdet.data.formats.detect import find_dataset
from segdet.data.formats.splits import coco_files
from segdet.util.errors import BadSample, UserError

H, W = 20, 30
SQUARE = [[2, 2, 12, 2, 12, 12, 2, 12]]


def annotation(number=1, image=7, category=5, **changes) -> dict:
    fields = {
        "id": number, "image_id": image, "category_id": category, "bbox": [2, 2, 10, 10], "area": 100,
        "iscrowd": 0, "segmentation": SQUARE,
    }  # fmt: skip
    return {key: value for key, value in (fields | changes).items() if value is not ...}


def image(number=7, name="a.jpg", **changes) -> dict:
    return {"id": number, "file_name": name, "height": H, "width": W} | changes


CATEGORIES = [{"id": 90, "name": "zebra"}, {"id": 5, "name": "ant"}, {"id": 44, "name": "cat"}]


def written(root: Path, annotations=(), images=None, categories=CATEGORIES, split="train") -> Path:
    images = [image()] if images is None else images
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    (root / split).mkdir(exist_ok=True)
    document = {"images": images, "annotations": list(annotations), "categories": categories}
    path.write_text(json.dumps(document))
    return path


def read(root: Path, *annotations: dict, task="detection", images=None, **options) -> COCOReader:
    written(root, annotations, images)
    return COCOReader(root, "train", task, **options)


def test_category_ids_become_labels(tmp_path):
    images = [image(30, "c.jpg"), image(7, "a.jpg"), image(9, "b.jpg")]
    reader = read(tmp_path, annotation(1, 7, 90), annotation(2, 9, 5), annotation(3, 7, 44), images=images)
    assert reader.class_names == ["ant", "cat", "zebra"] and reader.category_ids == [5, 44, 90]
    assert reader.mask_names == ["background", "ant", "cat", "zebra"]
    assert [reader.image_id(i) for i in range(len(reader))] == [30, 7, 9]
    assert [reader.objects(i).labels.tolist() for i in range(3)] == [[], [3, 2], [1]]
    assert reader.objects(0).boxes.shape == (0, 4)  # images without annotations are kept
    assert reader.image_path(1) == tmp_path / "train" / "a.jpg" and reader.declared_size(1) == (H, W)
    assert reader.annotation_paths(0, "detection") == [tmp_path / "annotations/instances_train.json"]


def test_boxes_areas_and_crowds(tmp_path):
    reader = read(
        tmp_path,
        annotation(1, bbox=[1.5, 2, 10, 4.25], area=7.5),
        annotation(2, bbox=[1, 2, 3, 4], area=..., iscrowd=1),
    )
    objects = reader.objects(0)
    assert objects.boxes.dtype == np.float32 and objects.boxes.tolist() == [
        [1.5, 2, 11.5, 6.25],
        [1, 2, 4, 6],
    ]
    assert objects.area.tolist() == [7.5, 12] and objects.iscrowd.tolist() == [False, True]
    assert not objects.difficult.any()
    objects.labels[:] = 0  # changing the copy has no effect
    assert reader.objects(0).labels.tolist() == [1, 1]


def test_a_subset_of_classes_in_a_given_order(tmp_path):
    entries = [annotation(1, category=90), annotation(2, category=44), annotation(3, category=5)]
    reader = read(tmp_path, *entries, class_names=["zebra", "ant"])
    assert reader.class_names == ["zebra", "ant"] and reader.category_ids == [90, 5]
    assert reader.objects(0).labels.tolist() == [1, 2]
    with pytest.raises(UserError, match="no category 'zebr'; did you mean zebra"):
        read(tmp_path, class_names=["zebr"])
    with pytest.raises(UserError, match="each once"):
        read(tmp_path, class_names=["ant", "ant"])


def test_a_subset_of_classes_from_a_file(tmp_path):
    (tmp_path / "mine.txt").write_text("zebra\n\nant\n")
    for file in ("mine.txt", tmp_path / "mine.txt"):
        assert read(tmp_path, class_names=file).class_names == ["zebra", "ant"]
    with pytest.raises(UserError, match="ant,zebra: no such file of class names; give a list such as"):
        read(tmp_path, class_names="ant,zebra")


def full(mask: np.ndarray, compressed: bool) -> dict:
    """Return a mask as RLE, compressed or not."""
    if compressed:
        encoded = rle.encode(np.asfortranarray(mask))
        return {"size": list(mask.shape), "counts": encoded["counts"].decode()}
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat[0] else runs}


@pytest.mark.parametrize("compressed", [False, True])
def test_run_length_masks(tmp_path, compressed):
    drawn = np.random.default_rng(0).integers(0, 2, (H, W), dtype=np.uint8)
    reader = read(tmp_path, annotation(segmentation=full(drawn, compressed)), task="segmentation")
    mask = reader.mask(0)
    assert mask.dtype == np.uint8 and mask.flags.c_contiguous and np.array_equal(mask, drawn)


def test_smaller_objects_are_on_top_and_crowds_at_the_bottom(tmp_path):
    whole = np.ones((H, W), np.uint8)
    left = whole.copy()
    left[:, 20:] = 0
    small, crowd = [[0, 0, 5, 0, 5, 5, 0, 5]], full(whole, False)
    reader = read(
        tmp_path,
        annotation(1, category=5, segmentation=small, area=25),
        annotation(2, category=44, segmentation=full(left, True), area=400),
        annotation(3, category=90, segmentation=crowd, area=1, iscrowd=1),
        task="segmentation",
    )
    mask = reader.mask(0)
    assert (mask[:5, :5] == 1).all() and (mask[5:, :20] == 2).all() and (mask[:, 20:] == 255).all()


def test_several_polygons_are_one_object(tmp_path):
    parts = [[0, 0, 5, 0, 5, 5, 0, 5], [1, 1, 2, 2], [10, 10, 15, 10, 15, 15, 10, 15]]
    reader = read(tmp_path, annotation(3, segmentation=parts), task="segmentation")
    mask = reader.mask(0)
    assert mask.sum() == 50 and mask[12, 12] == 1 and mask[3, 3] == 1
    (fault,) = reader.faults(0, "segmentation")
    assert fault.path == reader.annotation_file and not fault.fatal
    assert fault.fault == "annotation 3 of a.jpg: 1 polygons of fewer than 3 points are left out"


@pytest.mark.parametrize(
    ("outline", "fault"),
    [
        (..., "has no segmentation"),
        ([], "has no segmentation"),
        ([[1, 2, 3, 4]], "no polygon has 3 points"),
        ([[1, 2, 3, 4, 5, 6, 7]], "not a flat list"),
        ([1, 2, 3, 4, 5, 6], "not a flat list"),
        ([[1, 2, 3, "x", 5, 6]], "cannot be read"),
        ([[1, 2, 3, float("nan"), 5, 6]], "not finite"),
        ([[1, 2, 3, 1e9, 5, 6]], "far outside"),
        ({"size": [H, W], "counts": [1, 2]}, "do not add up to the image's 600 pixels"),
        ({"size": [H, W], "counts": [700, -100]}, "do not add up"),
        ({"size": [W, H], "counts": [600]}, r"size \[30, 20\] is not the image's \[20, 30\]"),
        ({"size": [H, W]}, "cannot be read"),
        ({"size": [H, W], "counts": "garbage\u00e9"}, "cannot be read"),
        ({"size": [H, W], "counts": ""}, "its counts are truncated"),
        ({"size": [H, W], "counts": "0P"}, "its counts are truncated"),
        ({"size": [H, W], "counts": "P" * 30 + "0"}, "its counts are not numbers"),
        ({"size": [H, W], "counts": "0000"}, "do not add up"),
    ],
)
def test_bad_outlines_raise_one_line(tmp_path, outline, fault):
    reader = read(tmp_path, annotation(3, segmentation=outline), task="segmentation")
    with pytest.raises(BadSample, match=f"instances_train.json: annotation 3 of a.jpg: .*{fault}") as caught:
        reader.mask(0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("box", [..., None, [1, 2, 3], [1, 2, "x", 4], [1, 2, float("nan"), 4], {"x": 1}])
def test_bad_boxes_raise_when_their_image_is_read(tmp_path, box):
    images = [image(), image(8, "b.jpg")]
    reader = read(tmp_path, annotation(1, 8), annotation(3, 7, bbox=box), images=images)
    assert len(reader.objects(1)) == 1
    with pytest.raises(BadSample, match=r"annotation 3 of a\.jpg: bbox is not four finite numbers"):
        reader.objects(0)


def test_an_unknown_category_raises_when_its_image_is_read(tmp_path):
    reader = read(tmp_path, annotation(3, category=6), task="segmentation")
    for use in (reader.objects, reader.mask):
        with pytest.raises(BadSample, match=r"annotation 3 of a\.jpg: category_id 6 is not among"):
            use(0)


def test_faults(tmp_path):
    images = [image(), image(8, "b.jpg"), image(8, "c.jpg")]
    entries = [annotation(1), annotation(1, 8, bbox=[3, 4, 0, 2.5]), annotation(2, 99), annotation(3, 99)]
    reader = read(tmp_path, *entries, images=images)
    assert [(fault.fault, fault.fatal) for fault in reader.faults(0, "detection")] == [
        ("image id 8 is given to b.jpg and to c.jpg", True),
        ("2 annotations refer to the image id 99, which is not among the images", False),
        ("2 annotations have the id 1", False),
    ]
    assert [fault.fault for fault in reader.faults(1, "detection")] == [
        "annotation 1 of b.jpg: degenerate box x=3 y=4 width=0 height=2.5 as written"
    ]
    box = reader.objects(1).boxes[0]
    assert box[2] <= box[0]
    assert list(reader.faults(2, "detection")) == []


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("images", [{"id": 1}], r"images\[0\] has no key 'file_name'"),
        ("images", [{"file_name": "a.jpg"}], r"images\[0\] has no key 'id'"),
        ("images", [{"id": "7", "file_name": "a.jpg"}], r"images\[0\] has id '7', not an integer"),
        ("images", [3], r"images\[0\] is not an object"),
        ("images", [], "lists no images"),
        ("images", {}, "'images' is not a list"),
        ("images", ..., "has no key 'images'"),
        ("annotations", ..., "has no key 'annotations'"),
        ("annotations", [{"image_id": 7}], r"annotations\[0\] has no key 'category_id'"),
        ("annotations", [{"category_id": 5}], r"annotations\[0\] has no key 'image_id'"),
        ("categories", [], "has no categories"),
        ("categories", [{"id": 1}], r"categories\[0\] has no key 'name'"),
        ("categories", [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "two categories have the id 1"),
        ("categories", [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}], "two categories are named 'a'"),
    ],
)
def test_files_that_are_not_coco(tmp_path, key, value, fault):
    path = written(tmp_path, [annotation()])
    document = json.loads(path.read_text())
    document[key] = value
    path.write_text(json.dumps({name: part for name, part in document.items() if part is not ...}))
    with pytest.raises(BadSample, match=f"instances_train.json: {fault}"):
        COCOReader(tmp_path, "train", "detection")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "the file is empty"),
        ('{"images": [\n  {"id": 1},\n', "not valid JSON at line 3, column 1"),
        ("[]", "contains a list, not an object"),
        ("\xff", "cannot be read as JSON"),
    ],
)
def test_files_that_are_not_json(tmp_path, text, fault):
    written(tmp_path).write_text(text, encoding="latin-1")
    with pytest.raises(BadSample, match=fault):
        COCOReader(tmp_path, "train", "detection")


def test_missing_folders_and_splits(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        COCOReader(tmp_path / "none", "train", "detection")
    with pytest.raises(UserError, match=r"no instances_\*\.json is in"):
        COCOReader(tmp_path, "train", "detection")
    written(tmp_path, split="train2017")
    with pytest.raises(
        UserError, match=r"instances_train\.json: no such annotation file; there are train2017"
    ):
        COCOReader(tmp_path, "train", "detection")
    with pytest.raises(UserError, match="no such annotation file"):
        COCOReader(tmp_path, "train", "detection", annotation_file="x.json")
    (tmp_path / "train2017").rmdir()
    with pytest.raises(
        UserError, match=r"no such folder of images, and a\.jpg is nowhere.*put .*/images/train2017"
    ):
        COCOReader(tmp_path, "train2017", "detection")
    with pytest.raises(UserError, match="photos: no such folder of images"):
        COCOReader(tmp_path, "train2017", "detection", image_folder="photos")


@pytest.mark.parametrize("place", ["annotations/train.json", "train/_annotations.coco.json"])
def test_other_names_of_annotation_files(tmp_path, place):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    written(tmp_path, [annotation()])
    (tmp_path / "annotations/captions_train.json").write_text("{}")
    assert list(coco_files(tmp_path)) == ["train"]
    (tmp_path / "annotations/instances_train.json").rename(tmp_path / place)
    (tmp_path / "train").mkdir(exist_ok=True)
    Image.new("RGB", (60, 40)).save(tmp_path / "train/a.jpg")
    dataset = find_dataset(tmp_path)
    assert (dataset.format, dataset.splits) == ("coco", ("train",))
    reader = COCOReader(tmp_path, "train", "detection")
    assert reader.image_path(0) == tmp_path / "train/a.jpg"
    assert len(reader.objects(0)) == 1
    with pytest.raises(UserError, match=r"no such annotation file; there are train$"):
        COCOReader(tmp_path, "val", "detection")


@pytest.mark.parametrize("folder", ["images/train", "images", "."])
def test_other_image_folders(tmp_path, folder):
    written(tmp_path)
    (tmp_path / "train").rmdir()
    place = tmp_path / folder
    place.mkdir(parents=True, exist_ok=True)
    (place / "a.jpg").touch()
    (tmp_path / "annotations/instances_train.json").rename(tmp_path / "mine.json")
    for options in ({}, {"image_folder": folder}):
        reader = COCOReader(tmp_path, "train", "detection", annotation_file="mine.json", **options)
        assert reader.image_path(0) == place / "a.jpg"


def test_without_declared_size_the_image_is_read_for_it(tmp_path):
    reader = read(tmp_path, annotation(), images=[{"id": 7, "file_name": "a.png"}], task="segmentation")
    assert reader.declared_size(0) is None
    Image.new("RGB", (W, H)).save(tmp_path / "train" / "a.png")
    assert reader.mask(0).shape == (H, W) and reader.mask(0).sum() == 100


def test_outlines_are_kept_for_segmentation_only(tmp_path):
    reader = read(tmp_path, annotation())
    with pytest.raises(UserError, match="open it for segmentation"):
        reader.mask(0)
    assert list(reader.faults(0, "segmentation")) == []


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools on NumPy 2
@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_real_masks_equal_pycocotools(real_data, split):
    reader = COCOReader(real_data / "tiny_coco", split, "segmentation")
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(reader.annotation_file)
    assert (
        len(reader) == 50 and reader.category_ids == sorted(reference.cats) and len(reader.class_names) == 80
    )
    crowds = 0
    for index in range(len(reader)):
        info = reference.imgs[reader.image_id(index)]
        entries = reference.imgToAnns[reader.image_id(index)]
        objects = reader.objects(index)
        assert [reader.category_ids[label - 1] for label in objects.labels] == [
            e["category_id"] for e in entries
        ]
        expected = np.array([e["bbox"] for e in entries]).reshape(-1, 4)
        expected[:, 2:] += expected[:, :2]
        assert np.allclose(objects.boxes, expected) and reader.image_path(index).name == info["file_name"]
        assert np.allclose(objects.area, [e["area"] for e in entries])
        crowds += objects.iscrowd.sum()
        painted = np.zeros((info["height"], info["width"]), np.uint8)
        for entry in sorted((e for e in entries if not e["iscrowd"]), key=lambda e: -e["area"]):
            painted[reference.annToMask(entry) > 0] = reader.category_ids.index(entry["category_id"]) + 1
        for entry in (e for e in entries if e["iscrowd"]):
            painted[(reference.annToMask(entry) > 0) & (painted == 0)] = 255
        assert np.array_equal(reader.mask(index), painted)
        assert list(reader.faults(index, "detection")) == []
    assert crowds == 5
