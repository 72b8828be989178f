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
from segdet.data.formats.reader import KnownClasses
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
    assert fault.fault == "annotation 3 of a.jpg: left out: 1 polygon of fewer than 3 points"


@pytest.mark.parametrize(
    ("outline", "fault"),
    [
        (..., "has no segmentation"),
        ([], "has no segmentation"),
        ([[1, 2, 3, 4]], "no polygon has 3 points"),
        ([[1, 2, 3, 4, 5, 6, 7]], "not a list x, y"),
        ([1, 2, 3, 4, 5, 6, 7], "not a list x, y"),
        ([[[1, 2], [3, 4], [5, 6]]], "not a list x, y"),
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


def test_faults_of_the_file(tmp_path):
    images = [image(), image(8, "b.jpg"), image(8, "c.jpg")]
    entries = [annotation(1), annotation(1, 8, bbox=[3, 4, 0, 2.5]), annotation(2, 99), annotation(3, 99)]
    reader = read(tmp_path, *entries, images=images, strict=False)
    assert [(fault.fault, fault.fatal) for fault in reader.file_faults()] == [
        ("image id 8 is given to b.jpg and to c.jpg", True),
        ("2 annotations refer to the image id 99, which is not among the images", False),
        ("2 annotations have the id 1", False),
    ]
    assert reader.describe_object(1, 0) == (
        "annotation 1 of b.jpg: box x=3 y=4 width=0 height=2.5 of class ant"
    )
    box = reader.objects(1).boxes[0]
    assert box[2] <= box[0]
    assert [list(reader.faults(index, "detection")) for index in range(3)] == [[], [], []]


def test_a_fatal_fault_of_the_file_is_an_error_that_counts_the_others(tmp_path):
    images = [image(), image(7, "b.jpg"), image(7, "c.jpg"), {"id": 9}, 3]
    with pytest.raises(BadSample) as caught:
        read(tmp_path, images=images)
    assert str(caught.value) == (
        f"{tmp_path / 'annotations/instances_train.json'}: image id 7 is given to a.jpg and to b.jpg; "
        "give each its own id (3 more: see `segdet data check`)"
    )
    reader = read(tmp_path, images=images, strict=False)
    assert [fault.fault for fault in reader.file_faults()] == [
        "image id 7 is given to a.jpg and to b.jpg",
        "image id 7 is given to a.jpg and to c.jpg",
        "images[3] has no key 'file_name'",
        "images[4] is not an object",
    ]


@pytest.mark.parametrize(
    ("written", "crowd"),
    [("0", False), ("1", True), ("false", False), ("True", True), (True, True), (1.0, True), (None, False)],
)
def test_iscrowd_as_text_or_as_a_truth_value(tmp_path, written, crowd):
    reader = read(tmp_path, annotation(iscrowd=written))
    assert reader.objects(0).iscrowd.tolist() == [crowd]
    assert list(reader.faults(0, "detection")) == []


@pytest.mark.parametrize("written", ["no", 2, -1, [], {"a": 1}])
@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_another_iscrowd_is_a_fault_of_its_annotation(tmp_path, written, task):
    reader = read(tmp_path, annotation(3, bbox=[0, 0, 9, 9]), annotation(4, iscrowd=written), task=task)
    (fault,) = reader.faults(0, task)
    assert fault.fatal and fault.fault == (
        f"annotation 4 of a.jpg: iscrowd is {written!r}, which is neither 0 nor 1"
    )
    with pytest.raises(BadSample, match=r"annotation 4 of a\.jpg: iscrowd is"):
        reader.mask(0) if task == "segmentation" else reader.objects(0)


def test_numbers_written_as_text_are_read(tmp_path):
    reader = read(tmp_path, annotation(bbox=["1.5", "2", "10", "4"], area="7.5"))
    objects = reader.objects(0)
    assert objects.boxes.tolist() == [[1.5, 2, 11.5, 6]] and objects.area.tolist() == [7.5]
    assert list(reader.faults(0, "detection")) == []


def test_every_fault_of_an_image_is_listed(tmp_path):
    entries = [
        annotation(1, bbox=[1, 2]),
        annotation(2, category=6),
        annotation(3, area="large"),
        annotation(4, bbox=None, iscrowd="x"),
        annotation(5),
    ]
    reader = read(tmp_path, *entries)
    assert [(fault.fault, fault.fatal) for fault in reader.faults(0, "detection")] == [
        ("annotation 1 of a.jpg: bbox is not four finite numbers but [1, 2]", True),
        ("annotation 2 of a.jpg: category_id 6 is not among the categories", True),
        ("annotation 3 of a.jpg: area is 'large', not a number; the area of the box is used", False),
        ("annotation 4 of a.jpg: iscrowd is 'x', which is neither 0 nor 1", True),
        ("annotation 4 of a.jpg: bbox is not four finite numbers but None", True),
        ("annotation 5 of a.jpg: has the class and box of annotation 3", False),
    ]


def test_every_bad_outline_of_an_image_is_listed(tmp_path):
    entries = [
        annotation(1, bbox=[0, 0, 1, 1], segmentation=[[1, 2]]),
        annotation(2, bbox=[0, 0, 2, 2], segmentation=...),
        annotation(3, bbox=[0, 0, 3, 3], segmentation=[[40, 40, 50, 40, 50, 50]]),
        annotation(4),
    ]
    reader = read(tmp_path, *entries, task="segmentation")
    assert [fault.fault.partition(" of a.jpg: ")[2] for fault in reader.faults(0, "segmentation")] == [
        "segmentation cannot be read (no polygon has 3 points)",
        "has no segmentation",
        "its outline covers no pixel",
    ]


def test_a_flat_list_of_numbers_is_one_polygon(tmp_path):
    flat = read(tmp_path, annotation(segmentation=SQUARE[0]), task="segmentation")
    mask = flat.mask(0)
    assert mask.sum() == 100 and list(flat.faults(0, "segmentation")) == []


@pytest.mark.parametrize("number", [2**64 + 1, -(2**70), "a-3f", 1.5, None, ...])
def test_ids_of_annotations_may_be_anything(tmp_path, number):
    reader = read(tmp_path, annotation(number, bbox=[1, 2, 0, 4]), annotation(2))
    named = "annotations[0]" if number in (None, ...) else f"annotation {number}"
    assert reader.describe_object(0, 0).startswith(f"{named} of a.jpg: box x=1 ")
    assert reader.file_faults() == []
    repeated = read(tmp_path, annotation(number), annotation(number, bbox=[0, 0, 1, 1]))
    expected = [] if number in (None, ...) else [f"2 annotations have the id {number}"]
    assert [fault.fault for fault in repeated.file_faults()] == expected


def test_ids_that_do_not_fit_are_reported_in_one_line_with_their_entry(tmp_path):
    huge = 2**64 + 1
    with pytest.raises(BadSample, match=rf"images\[0\] has id {huge}, which is not a 64-bit integer"):
        read(tmp_path, images=[image(huge)])
    with pytest.raises(BadSample, match=rf"annotations\[0\] has category_id {huge}, which is not a 64-bit"):
        read(tmp_path, annotation(category=huge))


def test_boxes_between_0_and_1_are_reported_as_fractions(tmp_path):
    reader = read(tmp_path, annotation(1, bbox=[0.1, 0.2, 0.5, 0.5]), annotation(2, bbox=[0, 0, 1, 1]))
    (fault,) = reader.file_faults()
    assert fault.fault == "all 2 boxes lie between 0 and 1, like fractions of the image" and not fault.fatal
    assert "multiply" in fault.remedy
    assert read(tmp_path, annotation(1, bbox=[0.1, 0.2, 0.5, 1.5])).file_faults() == []


def test_boxes_that_seem_to_be_corners_are_reported(tmp_path):
    corners = [annotation(1, bbox=[2, 3, 12, 13]), annotation(2, bbox=[20, 10, 28, 19])]
    (fault,) = read(tmp_path, *corners).file_faults()
    assert fault.fault == (
        "1 of 2 boxes reach beyond their image as x, y, width, height, but all lie inside it as x0, y0, x1, y1"
    )
    sizes = [annotation(1, bbox=[2, 3, 12, 13]), annotation(2, bbox=[20, 10, 8, 9])]
    assert read(tmp_path, *sizes).file_faults() == []


def test_file_names_with_backslashes_are_paths(tmp_path):
    reader = read(tmp_path, annotation(), images=[image(name="cam1\\a.jpg")])
    assert reader.image_path(0) == tmp_path / "train/cam1/a.jpg"


def test_an_image_that_is_listed_twice_is_reported(tmp_path):
    reader = read(tmp_path, annotation(), images=[image(), image(8)])
    (fault,) = reader.file_faults()
    assert fault.fault == "lists the image a.jpg 2 times; it is read 2 times" and not fault.fatal


def roboflow(*others: dict) -> list[dict]:
    """Return categories like Roboflow's, with a placeholder that is the supercategory of the classes."""
    return [{"id": 0, "name": "animals", "supercategory": "none"}, *others]


@pytest.mark.parametrize(
    "categories",
    [
        roboflow({"id": 5, "name": "cat", "supercategory": "animals"}),
        [{"id": 0, "name": "cat"}, {"id": 5, "name": "cat", "supercategory": "cat"}],
        [{"id": 0, "name": "cat"}, {"id": 5, "name": "cat"}],
    ],
)
def test_a_placeholder_category_is_left_out_and_reported(tmp_path, categories):
    written(tmp_path, [annotation()], categories=categories)
    reader = COCOReader(tmp_path, "train", "detection")
    assert reader.class_names == ["cat"] and reader.category_ids == [5]
    assert reader.objects(0).labels.tolist() == [1]
    (fault,) = reader.file_faults()
    assert fault.note and "(id 0) has no annotations, and " in fault.fault


def test_a_supercategory_with_annotations_or_by_request_is_kept(tmp_path):
    categories = roboflow({"id": 5, "name": "cat", "supercategory": "animals"})
    written(tmp_path, [annotation(), annotation(2, category=0)], categories=categories)
    reader = COCOReader(tmp_path, "train", "detection")
    assert reader.class_names == ["animals", "cat"] and reader.file_faults()[1:] == []
    written(tmp_path, [annotation()], categories=categories)
    assert COCOReader(tmp_path, "train", "detection", class_names=["animals"]).class_names == ["animals"]


def test_categories_are_matched_to_known_classes_by_name(tmp_path):
    known = KnownClasses({"cat": 1, "dog": 2, "ant": 5}, "train.json")
    entries = [annotation(1, category=44), annotation(2, category=90), annotation(3, category=5)]
    reader = read(tmp_path, *entries, known=known)
    assert reader.class_names == ["cat", "dog", "ant"] and reader.category_ids == [44, 2, 5]
    assert reader.objects(0).labels.tolist() == [1, 3]
    assert [(fault.fault, fault.severity) for fault in reader.file_faults()] == [
        ("1 object is left out: train.json lacks the category 'zebra'", "warning"),
        ("lacks the category 'dog' of train.json", "note"),
        ("numbers its categories differently from train.json", "note"),
    ]
    chosen = read(tmp_path, *entries, known=known, class_names=["cat", "dog", "ant"])
    assert [fault.severity for fault in chosen.file_faults()] == ["note", "note"]
    other = read(tmp_path, *entries, known=KnownClasses({"tree": 1}, "train.json"))
    assert other.class_names == ["ant", "cat", "zebra"]


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


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a%20photo.jpg", "a photo.jpg"),
        ("/home/ann/photos/a.jpg", "a.jpg"),
        ("C:\\photos\\a.jpg", "a.jpg"),
        ("https://example.org/upload/a%20photo.jpg?key=1", "a photo.jpg"),
        ("day 1%2Fa.jpg", "day 1/a.jpg"),
        ("100%.jpg", "100%.jpg"),
    ],
)
@pytest.mark.parametrize("folder", ["train", "images"])
def test_a_name_from_another_machine_or_url_names_the_file_that_is_there(tmp_path, name, file, folder):
    path = tmp_path / folder / file
    path.parent.mkdir(parents=True)
    Image.new("RGB", (W, H)).save(path)
    reader = read(tmp_path, annotation(), images=[image(name=name)])
    faults = list(reader.faults(0, "detection"))
    if name == file:
        assert faults == []
        return
    (fault,) = faults
    assert (fault.path, fault.fatal) == (reader.image_path(0), True)
    assert fault.remedy == f"{file} is in {tmp_path / folder}: use this name as file_name"
    path.unlink()
    if folder == "train":
        (fault,) = read(tmp_path, annotation(), images=[image(name=name)]).faults(0, "detection")
        assert fault.remedy == f"give file_name relative to {tmp_path / 'train'}, without URL encoding"
