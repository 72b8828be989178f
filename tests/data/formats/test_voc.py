from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from voc_files import object_xml, write_list, write_mask, write_xml

from segdet.data.annotation_faults import object_faults
from segdet.data.faults import FaultKind
from segdet.data.formats.coco import COCOReader
from segdet.data.formats.detect import guess_format
from segdet.data.formats.splits import list_splits
from segdet.data.formats.voc import VOC_CLASSES, VOCReader
from segdet.util.errors import BadSample, UserError


def read_one(folder: Path, *objects: str, **options) -> VOCReader:
    """Return a reader of one annotated image."""
    write_xml(folder, "a", *objects)
    write_list(folder, "train", "a\n")
    return VOCReader(folder, ["train"], "detection", **options)


def test_boxes_become_0_based_and_half_open(tmp_path):
    reader = read_one(tmp_path, object_xml("cat", (1, 1, 60, 40)), object_xml("dog", (10.5, 20.25, 30.5, 50)))
    objects = reader.objects(0)
    assert objects.boxes.dtype == np.float32 and objects.labels.dtype == np.int64
    assert objects.boxes.tolist() == [[0, 0, 60, 40], [9.5, 19.25, 30.5, 50]]
    assert objects.area.tolist() == [2400, 21 * 30.75]
    assert not objects.iscrowd.any() and reader.declared_size(0) == (40, 60) and reader.image_id(0) == 1
    assert reader.annotation_paths(0, "detection") == [tmp_path / "Annotations" / "a.xml"]


def test_degenerate_boxes_stay_degenerate(tmp_path):
    boxes = [(5, 5, 5, 9), (5, 9, 9, 9), (9, 5, 5, 9), (5.5, 5, 5, 9), (5, 5, 6, 9)]
    reader = read_one(tmp_path, *(object_xml(box=box) for box in boxes))
    objects = reader.objects(0)
    width, height = (objects.boxes[:, 2:] - objects.boxes[:, :2]).T
    assert ((width <= 0) | (height <= 0)).tolist() == [True, True, True, True, False]
    assert objects.area.tolist() == [0, 0, 0, 0, 2 * 5]
    faults, tally = object_faults(reader, 0, objects, (40, 60))
    assert len(faults) == 4 and all(fault.path == tmp_path / "Annotations/a.xml" for fault in faults)
    assert faults[3].fault == "box xmin=5.5 ymin=5 xmax=5 ymax=9 of class cat is degenerate"
    assert faults[3].kind is FaultKind.DEGENERATE and not faults[3].fatal
    assert (tally.objects, tally.counted, tally.dropped) == (5, 1, {FaultKind.DEGENERATE: 4})
    assert list(reader.faults(0, "segmentation")) == []


def test_difficult_and_parts(tmp_path):
    part = object_xml("head", (1, 1, 3, 3)).replace("object>", "part>")
    reader = read_one(
        tmp_path,
        object_xml(extra="<difficult>1</difficult>"),
        object_xml(extra="<difficult>0</difficult>"),
        object_xml(extra=part),
        "<owner><name>nobody</name></owner>",
    )
    assert reader.class_names == ["cat"]
    assert reader.objects(0).difficult.tolist() == [True, False, False]
    assert reader.objects(0).boxes[2].tolist() == [9, 19, 30, 50]


def test_an_image_without_objects_has_empty_arrays(tmp_path):
    write_xml(tmp_path, "b", object_xml())
    objects = read_one(tmp_path).objects(0)
    assert objects.boxes.shape == (0, 4) and objects.labels.shape == (0,) and len(objects) == 0


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (
            object_xml("dragon"),
            "unknown class 'dragon'; fix the name or add it to class_names (now cat, dog)",
        ),
        (object_xml("cta"), "unknown class 'cta' (did you mean cat?)"),
        ("<object><name>cat</name></object>", "an object of class 'cat' has no <bndbox>"),
        (object_xml(box=("x", 1, 2, 3)), "<xmin> of an object of class 'cat' is 'x', not a number"),
        (object_xml(box=(1, "nan", 2, 3)), "<ymin> of an object of class 'cat' is 'nan', not a number"),
        (object_xml(box=(1, 1, 2, "inf")), "<ymax> of an object of class 'cat' is 'inf', not a number"),
        ("<object><name>cat</name><bndbox><xmin>1</xmin></bndbox></object>", "has no <ymin>"),
        ("<object></object>", "object 1 has no <name>"),
        ("<object>", "not valid XML"),
    ],
)
def test_bad_annotations_raise_one_line(tmp_path, content, fault):
    reader = read_one(tmp_path, content, class_names=["cat", "dog"])
    with pytest.raises(BadSample) as caught:
        reader.objects(0)
    message = str(caught.value)
    assert (
        message.startswith(f"{tmp_path / 'Annotations/a.xml'}: ") and fault in message and "\n" not in message
    )


def test_missing_and_empty_annotations(tmp_path):
    write_list(tmp_path, "train", "a\nb\n")
    reader = VOCReader(tmp_path, ["train"], "detection", class_names=["cat"])
    with pytest.raises(BadSample, match=r"a\.xml: no such annotation"):
        reader.objects(0)
    assert reader.declared_size(0) is None
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations/b.xml").touch()
    with pytest.raises(BadSample, match=r"b\.xml: not valid XML"):
        reader.objects(1)


@pytest.mark.parametrize(
    "size", ["", "<width>0</width><height>0</height>", "<width>x</width><height>1</height>"]
)
def test_an_invalid_declared_size_is_none(tmp_path, size):
    reader = read_one(tmp_path, object_xml())
    write_xml(tmp_path, "a", object_xml(), size=size)
    assert reader.declared_size(0) is None


def test_images_are_found_by_their_stem(tmp_path):
    (tmp_path / "JPEGImages").mkdir()
    names = ["a.PNG", "b.jpeg", "c.png", "c.jpg", "d.v2.JPG", "e.txt"]
    for name in names:
        (tmp_path / "JPEGImages" / name).touch()
    write_list(tmp_path, "train", "a  1\n\nb.jpg\nc\nd.v2\ne\n")
    reader = VOCReader(tmp_path, ["train"], "detection", class_names=["cat"])
    found = [reader.image_path(i).name for i in range(len(reader))]
    assert found == ["a.PNG", "b.jpeg", "c.jpg", "d.v2.JPG", "e.jpg"]  # the last does not exist


def test_names_with_spaces_and_lines_with_a_flag_or_a_mask_are_read(tmp_path):
    (tmp_path / "JPEGImages").mkdir()
    for name in ("red cell 1.jpg", "b.jpg", "c 0.jpg"):
        Image.new("RGB", (60, 40)).save(tmp_path / "JPEGImages" / name)
    write_xml(tmp_path, "red cell 1", object_xml("cat"))
    for name in ("b", "c", "c 0"):
        write_xml(tmp_path, name, object_xml("dog"))
    write_list(tmp_path, "train", "red cell 1.jpg\nb  1\nc\nc 0\nb.jpg masks/b.png\n")
    reader = VOCReader(tmp_path, ["train"], "detection")
    assert [reader.image_path(i).name for i in range(5)] == [
        "red cell 1.jpg",
        "b.jpg",
        "c.jpg",
        "c 0.jpg",
        "b.jpg",
    ]
    assert reader.class_names[int(reader.objects(0).labels[0]) - 1] == "cat"


def test_lists_with_flags_are_not_splits(tmp_path):
    (tmp_path / "JPEGImages").mkdir()
    write_list(tmp_path, "train", "red cell 1\n")
    write_list(tmp_path, "val", "red cell 2.jpg\n")
    for split, flag in (("cat_train", "-1"), ("cat_val", " 1"), ("cat_test", "0")):
        write_list(tmp_path, split, f"red {flag}\n")
    assert list_splits(tmp_path, "voc", "detection") == ["train", "val"]


def test_years_and_several_sets(tmp_path):
    write_list(tmp_path / "VOC2007", "trainval", "a\n")
    write_list(tmp_path / "VOCdevkit/VOC2012", "trainval", "a\nb\n")
    for folder in ("VOC2007", "VOCdevkit/VOC2012"):
        for name in "ab":
            write_xml(tmp_path / folder, name, object_xml("dog" if folder == "VOC2007" else "cat"))
    reader = VOCReader(tmp_path, ["2007/trainval", "2012/trainval"], "detection")
    paths = [reader.image_path(i).relative_to(tmp_path).as_posix() for i in range(len(reader))]
    assert paths == [
        "VOC2007/JPEGImages/a.jpg",
        "VOCdevkit/VOC2012/JPEGImages/a.jpg",
        "VOCdevkit/VOC2012/JPEGImages/b.jpg",
    ]
    # The folder of a year has all of VOC's classes, unless it uses others. Other folders have the classes they use.
    assert reader.class_names == VOC_CLASSES and reader.category_ids == list(range(1, 21))
    assert reader.mask_names[:2] == ["background", "aeroplane"]
    assert reader.objects(0).labels.tolist() == [12] and reader.objects(1).labels.tolist() == [8]
    own = VOCReader(tmp_path / "VOC2007", ["trainval"], "detection")
    assert own.class_names == ["dog"]
    assert sorted(VOC_CLASSES) == VOC_CLASSES and len(VOC_CLASSES) == 20


def test_discovered_classes_are_those_of_all_splits(tmp_path):
    write_xml(tmp_path, "b", object_xml("zebra"))
    write_xml(tmp_path, "c", object_xml("ant"))
    (tmp_path / "Annotations/broken.xml").write_text("<annotation>")
    assert read_one(tmp_path, object_xml("cat")).class_names == ["ant", "cat", "zebra"]


def test_class_names_from_files(tmp_path):
    write_xml(tmp_path, "a", object_xml("cat"))
    (tmp_path / "labels.txt").write_text("background\ndog\n\n cat \n")
    reader = read_one(tmp_path, object_xml("cat"))
    assert reader.class_names == ["dog", "cat"] and reader.objects(0).labels.tolist() == [2]
    elsewhere = tmp_path / "names.txt"
    elsewhere.write_text("cat\n")
    assert read_one(tmp_path, class_names=str(elsewhere)).class_names == ["cat"]
    assert read_one(tmp_path, class_names="names.txt").class_names == ["cat"]
    assert read_one(tmp_path, class_names=["cow"]).class_names == ["cow"]
    with pytest.raises(UserError, match="no such file of class names"):
        read_one(tmp_path, class_names="none.txt")
    elsewhere.write_text("cat\ncat\n")
    with pytest.raises(UserError, match="'cat' is named twice"):
        read_one(tmp_path, class_names=elsewhere)
    elsewhere.write_text("\n")
    with pytest.raises(UserError, match="no class names"):
        read_one(tmp_path, class_names=elsewhere)


def test_errors_about_roots_and_splits_list_the_existing_ones(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        VOCReader(tmp_path / "none", ["train"], "detection")
    with pytest.raises(UserError, match="no ImageSets/ folder"):
        VOCReader(tmp_path, ["train"], "detection")
    write_list(tmp_path / "VOC2007", "trainval", "a\n")
    write_list(tmp_path / "VOC2007", "val", "a\n", kind="Segmentation")
    with pytest.raises(UserError, match="give the year as well, for example 2007/train "):
        VOCReader(tmp_path, ["train"], "detection")
    with pytest.raises(UserError, match=r"neither VOC2012/ nor .* there are 2007"):
        VOCReader(tmp_path, ["2012/train"], "detection")
    with pytest.raises(UserError, match="there are Main: trainval; Segmentation: val"):
        VOCReader(tmp_path, ["2007/trainval"], "segmentation")
    with pytest.raises(UserError, match="there are Main: trainval"):
        VOCReader(tmp_path, ["2007/val"], "localization")
    write_list(tmp_path / "VOC2007", "empty", "\n \n")
    with pytest.raises(UserError, match="the split list is empty"):
        VOCReader(tmp_path, ["2007/empty"], "detection")
    with pytest.raises(UserError, match="no split is given"):
        VOCReader(tmp_path, [], "detection")
    with pytest.raises(UserError, match=r"no object of any class .* give class_names"):
        VOCReader(tmp_path, ["2007/trainval"], "detection")


def test_an_image_listed_twice_is_a_fault(tmp_path):
    reader = read_one(tmp_path, object_xml())
    write_list(tmp_path, "train", "a\na\n")
    reader = VOCReader(tmp_path, ["train"], "detection")
    assert list(reader.faults(0, "detection")) == []
    assert [fault.fault for fault in reader.faults(1, "detection")] == ["is listed twice in the split"]


def masked(folder: Path, values, mode="P", **options) -> VOCReader:
    write_mask(folder, "a", values, mode)
    write_list(folder, "train", "a\n", kind="Segmentation")
    return VOCReader(folder, ["train"], "segmentation", **options)


@pytest.mark.parametrize("mode", ["P", "L"])
def test_masks_without_names_have_vocs_classes(tmp_path, mode):
    values = [[0, 20, 255], [15, 1, 0]]
    reader = masked(tmp_path, values, mode)
    assert reader.mask_names == ["background", *VOC_CLASSES] and reader.class_names == VOC_CLASSES
    mask = reader.mask(0)
    assert mask.dtype == np.uint8 and mask.tolist() == values
    assert reader.annotation_paths(0, "segmentation") == [tmp_path / "SegmentationClass/a.png"]
    assert reader.declared_size(0) is None


def test_masks_with_more_values_need_names(tmp_path):
    with pytest.raises(UserError, match="value 21 is not one of VOC's 21 classes; give class_names"):
        masked(tmp_path, [[0, 21, 255]])


@pytest.mark.parametrize("ignore_index", [2, 1, 0])
def test_the_name_at_ignore_index_is_left_out(tmp_path, ignore_index):
    (tmp_path / "labels.txt").write_text("sky\nroad\nvoid\n")
    reader = masked(tmp_path, [[0, 1, 2, 255]], "L", ignore_index=ignore_index)
    kept = [name for value, name in enumerate(["sky", "road", "void"]) if value != ignore_index]
    assert reader.mask_names == kept == reader.class_names
    expected = {2: [0, 1, 255, 255], 1: [0, 255, 1, 255], 0: [255, 0, 1, 255]}
    assert reader.mask(0).tolist() == [expected[ignore_index]]


@pytest.mark.parametrize("ignore_index", [2, 1, 0])
def test_a_folder_without_names_is_read_with_the_names_of_the_model(tmp_path, ignore_index):
    names = [name for value, name in enumerate(["sky", "road", "void"]) if value != ignore_index]
    reader = masked(tmp_path, [[0, 1, 2, 255]], "L", ignore_index=ignore_index, known=names)
    assert reader.mask_names == names
    expected = {2: [0, 1, 255, 255], 1: [0, 255, 1, 255], 0: [255, 0, 1, 255]}
    assert reader.mask(0).tolist() == [expected[ignore_index]]
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")  # names in the folder take precedence
    assert set(masked(tmp_path, [[0]], ignore_index=ignore_index, known=names).mask_names) < set("abc")
    boxes = read_one(tmp_path, object_xml("cat"), known=["dog", "cat"])
    assert boxes.class_names == ["a", "b", "c"]
    (tmp_path / "labels.txt").unlink()
    boxes = read_one(tmp_path, object_xml("cat"), known=["dog", "cat"])
    assert boxes.class_names == ["dog", "cat"] and boxes.objects(0).labels.tolist() == [2]


def test_ignore_index_beyond_the_names(tmp_path):
    reader = masked(tmp_path, [[0, 1, 77, 255]], class_names=["background", "pear"], ignore_index=77)
    assert reader.mask_names == ["background", "pear"] and reader.class_names == ["pear"]
    assert reader.mask(0).tolist() == [[0, 1, 255, 255]]


def test_unknown_mask_values_are_refused(tmp_path):
    reader = masked(tmp_path, [[0, 1, 2, 9, 255]], class_names=["background", "pear"])
    with pytest.raises(BadSample, match=r"a\.png: value 2, 9 is not one of the 2 classes; .*ignore_index"):
        reader.mask(0)
    (tmp_path / "SegmentationClass/a.png").unlink()
    with pytest.raises(BadSample, match=r"a\.png: no such mask"):
        reader.mask(0)
    with pytest.raises(UserError, match="300 names"):
        masked(tmp_path, [[0]], class_names=[str(i) for i in range(300)])


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("labels.txt", "__ignore__\n_background_\ncat\ndog\n"),
        ("class_names.txt", "_background_\ncat\ndog\n"),
        ("labelmap.txt", "# label:color_rgb:parts:actions\n_background_:0,0,0::\ncat:8,9,7::\ndog:1,2,3::\n"),
    ],
)
def test_class_files_of_annotation_tools_apply_to_masks_and_boxes(tmp_path, file, content):
    (tmp_path / file).write_text(content)
    reader = masked(tmp_path, [[0, 1, 2, 255]])
    assert reader.mask_names == ["_background_", "cat", "dog"] and reader.class_names == ["cat", "dog"]
    assert reader.mask(0).tolist() == [[0, 1, 2, 255]] and not list(reader.file_faults())
    assert read_one(tmp_path, object_xml("cat")).class_names == ["cat", "dog"]


def test_colour_coded_masks_are_read_with_cvats_label_map(tmp_path):
    (tmp_path / "labelmap.txt").write_text("background:0,0,0::\ncat:48,112,32::\ndog:176,112,32::\n")
    reader = masked(tmp_path, [[0]])
    table = np.array([[0, 0, 0], [48, 112, 32], [176, 112, 32]], np.uint8)
    Image.fromarray(table[[[0, 2, 1]]]).save(tmp_path / "SegmentationClass/a.png")
    assert reader.mask(0).tolist() == [[0, 2, 1]]
    renumbered = masked(tmp_path, [[0]], class_names=["dog", "cat", "background"])
    Image.fromarray(table[[[0, 2, 1]]]).save(tmp_path / "SegmentationClass/a.png")
    assert renumbered.mask(0).tolist() == [[2, 0, 1]]
    (tmp_path / "labelmap.txt").unlink()
    reader = VOCReader(tmp_path, ["train"], "segmentation", class_names=["background", "cat", "dog"])
    with pytest.raises(
        BadSample, match=r"the colours .*176,112,32; save .* list its colours in labelmap\.txt"
    ):
        reader.mask(0)


def test_labelmes_ignore_class_may_have_any_mask_value(tmp_path):
    reader = masked(tmp_path, [[0, 1, 2]], class_names=["background", "__ignore__", "dog"])
    assert reader.mask_names == ["background", "dog"] and reader.mask(0).tolist() == [[0, 255, 1]]


def test_mask_values_make_255_a_class(tmp_path):
    reader = masked(tmp_path, [[0, 255]], class_names=["background", "cat"], mask_values=[0, 255])
    assert reader.mask_names == ["background", "cat"] and reader.mask_values == [0, 255]
    assert reader.mask(0).tolist() == [[0, 1]]
    other = masked(tmp_path, [[0, 255, 64]], mask_values=[64, 0], class_names=["background", "cat"])
    assert other.mask(0).tolist() == [[1, 255, 0]]
    assert reader.mask_encoding != other.mask_encoding
    # Each name of a model belongs to one of the mask values; the ignored value 1 has no name.
    known = masked(tmp_path, [[0, 1, 255]], known=["sky", "cat"], mask_values=[0, 255], ignore_index=1)
    assert known.mask_names == ["sky", "cat"] and known.mask(0).tolist() == [[0, 255, 1]]


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"mask_values": [0, 255]}, "mask_values: the classes have no names; give class_names"),
        ({"mask_values": [0], "class_names": ["a", "b"]}, "mask_values: 1 values, but 2 class names"),
        ({"mask_values": [0, 0], "class_names": ["a", "b"]}, "contains a value twice"),
        ({"mask_values": [0, 256], "class_names": ["a", "b"]}, "mask_values .* at most 255"),
        (
            {"mask_values": [0, 7], "class_names": ["a", "b"], "ignore_index": 7},
            "ignore_index 7: is also one of the mask_values",
        ),
    ],
)
def test_wrong_mask_values_are_reported_in_one_line(tmp_path, options, fault):
    with pytest.raises(UserError, match=fault):
        masked(tmp_path, [[0, 1]], **options)


def faults_of_split(reader: VOCReader) -> list[str]:
    return [fault.fault for fault in reader.file_faults()]


def test_assumed_names_are_a_fault_except_in_folders_of_voc(tmp_path):
    (assumed,) = faults_of_split(masked(tmp_path, [[0, 1, 255]]))
    assert assumed.startswith("does not name its classes; those of VOC are assumed")
    assert not faults_of_split(masked(tmp_path, [[0, 1]], class_names=["background", "cat"]))
    assert not faults_of_split(masked(tmp_path, [[0, 1]], known=["background", "cat"]))
    write_mask(tmp_path / "VOC2012", "a", [[0, 1]])
    write_list(tmp_path / "VOC2012", "train", "a\n", kind="Segmentation")
    assert not faults_of_split(VOCReader(tmp_path, ["2012/train"], "segmentation"))
    assert not faults_of_split(VOCReader(tmp_path / "VOC2012", ["train"], "segmentation"))


def test_contradictory_names_are_faults(tmp_path):
    write_xml(tmp_path, "a", object_xml("Cat"), object_xml("dog"))
    write_xml(tmp_path, "b", object_xml("cat "))
    write_list(tmp_path, "train", "a\n")
    assert faults_of_split(VOCReader(tmp_path, ["train"], "detection")) == ["'Cat' and 'cat' are two classes"]
    (tmp_path / "class_names.txt").write_text("cat\ndog\n")
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    assert not faults_of_split(VOCReader(tmp_path, ["train"], "detection"))
    (tmp_path / "labels.txt").write_text("cat\ncow\n")
    (fault,) = VOCReader(tmp_path, ["train"], "detection").file_faults()
    assert (
        fault.path == tmp_path / "class_names.txt"
        and f"differ from those in {tmp_path / 'labels.txt'}" in fault.fault
    )


@pytest.mark.parametrize("suffix", ["bmp", "webp", "tif", "TIFF", "PNG", "JPEG", "ppm"])
def test_images_of_any_suffix_are_read(tmp_path, suffix):
    (tmp_path / "JPEGImages").mkdir()
    Image.new("RGB", (60, 40)).save(tmp_path / f"JPEGImages/a.{suffix}")
    reader = read_one(tmp_path, object_xml())
    assert reader.image_path(0).name == f"a.{suffix}" and not list(reader.faults(0, "detection"))


@pytest.mark.parametrize("suffix", ["bmp", "tif", "PNG", "Tiff"])
def test_masks_of_any_lossless_suffix_are_read(tmp_path, suffix):
    reader = masked(tmp_path, [[0, 1, 2]], "L")
    (tmp_path / "SegmentationClass/a.png").unlink()
    Image.fromarray(np.array([[0, 1, 2]], np.uint8)).save(tmp_path / f"SegmentationClass/a.{suffix}")
    reader = VOCReader(tmp_path, ["train"], "segmentation")
    assert reader.mask(0).tolist() == [[0, 1, 2]]
    assert reader.annotation_paths(0, "segmentation") == [tmp_path / f"SegmentationClass/a.{suffix}"]


def test_xml_files_in_upper_case_are_read(tmp_path):
    path = write_xml(tmp_path, "a", object_xml())
    path.rename(path.with_suffix(".XML"))
    write_list(tmp_path, "train", "a\n")
    assert len(VOCReader(tmp_path, ["train"], "detection").objects(0)) == 1


def test_masks_beside_arrays_of_labelmes_converter_are_read(tmp_path):
    masked(tmp_path, [[0, 1]])
    (tmp_path / "SegmentationClass").rename(tmp_path / "SegmentationClassPNG")
    (tmp_path / "SegmentationClass").mkdir()
    (tmp_path / "SegmentationClass/a.npy").touch()
    reader = VOCReader(tmp_path, ["train"], "segmentation", class_names=["background", "cat"])
    assert reader.mask(0).tolist() == [[0, 1]]


def test_files_of_the_same_name_are_a_fault(tmp_path):
    (tmp_path / "JPEGImages").mkdir()
    for name in ("a.jpg", "a.PNG", "b.jpg", "c.bmp"):
        (tmp_path / "JPEGImages" / name).touch()
    for name in "abc":
        write_mask(tmp_path, name, [[0, 1]])
    (tmp_path / "SegmentationClass/b.bmp").touch()
    write_list(tmp_path, "train", "a\na.PNG\nb\nc.jpg\n", kind="Segmentation")
    reader = VOCReader(tmp_path, ["train"], "segmentation", class_names=["background", "cat"])
    assert [reader.image_path(index).name for index in range(4)] == ["a.jpg", "a.PNG", "b.jpg", "c.bmp"]
    found = [[(f.path.name, f.fault) for f in reader.faults(index, "segmentation")] for index in range(4)]
    assert found == [
        [("a.jpg", "is used, but a.PNG has the same name")],
        [],
        [("b.png", "is used, but b.bmp has the same name")],
        [("c.bmp", "is used for c.jpg, which is in the split list but does not exist")],
    ]


@pytest.mark.parametrize(
    "line",
    [
        "a", "a.jpg", "JPEGImages/a.jpg", "./JPEGImages/a", "JPEGImages\\a.jpg", "C:\\x\\JPEGImages\\a.jpg",
        "/elsewhere/JPEGImages/a.jpg", "a 1", "a  -1", "\ufeffa", "a\r", "a SegmentationClass/a.png",
        "JPEGImages/a.jpg SegmentationClass/a.png", "/x/JPEGImages/a.jpg /x/SegmentationClass/a.png",
    ],
)  # fmt: skip
def test_lines_of_split_lists_name_the_image(tmp_path, line):
    (tmp_path / "JPEGImages").mkdir()
    Image.new("RGB", (2, 1)).save(tmp_path / "JPEGImages/a.jpg")
    write_mask(tmp_path, "a", [[0, 1]])
    write_list(tmp_path, "train", f"{line}\n", kind="Segmentation")
    reader = VOCReader(tmp_path, ["train"], "segmentation", class_names=["background", "cat"])
    assert reader.image_path(0) == tmp_path / "JPEGImages/a.jpg"
    assert reader.mask(0).tolist() == [[0, 1]]


def test_a_mask_in_the_split_list_is_used(tmp_path):
    (tmp_path / "JPEGImages").mkdir()
    Image.new("RGB", (2, 1)).save(tmp_path / "JPEGImages/a.jpg")
    write_mask(tmp_path, "a", [[0, 1]])
    write_mask(tmp_path / "second", "b", [[1, 1]])
    write_list(tmp_path, "train", "a.jpg second/SegmentationClass/b.png\na none/b.png\n", kind="Segmentation")
    reader = VOCReader(tmp_path, ["train"], "segmentation", class_names=["background", "cat"])
    assert reader.mask(0).tolist() == [[1, 1]]
    with pytest.raises(BadSample, match=r"none.b\.png: no such mask"):
        reader.mask(1)


def test_images_in_subfolders_and_elsewhere_are_found(tmp_path):
    for folder in ("JPEGImages/day", "pictures"):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (60, 40)).save(tmp_path / folder / "a.bmp")
    write_xml(tmp_path, "a", object_xml("cat"))
    write_list(tmp_path, "train", "day/a\npictures/a.bmp\n")
    reader = VOCReader(tmp_path, ["train"], "detection")
    assert reader.image_path(0) == tmp_path / "JPEGImages/day/a.bmp" and len(reader.objects(0)) == 1
    assert reader.image_path(1) == tmp_path / "pictures/a.bmp" and len(reader.objects(1)) == 1


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_lists_directly_in_imagesets_are_read(tmp_path, task):
    (tmp_path / "JPEGImages").mkdir()
    write_xml(tmp_path, "a", object_xml())
    write_mask(tmp_path, "a", [[0, 1]])
    write_list(tmp_path, "train", "a\n", kind=".")
    write_list(tmp_path, "val", "a\na\n", kind=".")
    assert list_splits(tmp_path, "voc", task) == ["train", "val"]
    assert len(VOCReader(tmp_path, ["val"], task)) == 2
    write_list(tmp_path, "val", "a\n", kind="Segmentation" if task == "segmentation" else "Main")
    assert len(VOCReader(tmp_path, ["val"], task)) == 1
    with pytest.raises(UserError, match=r"there are .*directly in ImageSets: train, val$"):
        VOCReader(tmp_path, ["test"], task)


@pytest.mark.parametrize("files", [["a.jpg", "a.xml"], ["images/a.PNG", "labels/a.txt"], ["a.jpg", "a.json"]])
def test_the_error_for_a_folder_of_an_annotation_tool_contains_the_import_command(tmp_path, files):
    root = tmp_path / "my photos"
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    command = f"; to import an annotated folder: segdet data import '{root}' NEW_FOLDER$"
    with pytest.raises(UserError, match=command):
        guess_format(root)
    with pytest.raises(UserError, match=command):
        VOCReader(root, ["train"], "detection")
    with pytest.raises(UserError, match=command):
        COCOReader(root, "train", "detection")


def test_the_error_for_a_folder_without_images_contains_no_command(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"; give the dataset's folder$"):
        guess_format(tmp_path)
    with pytest.raises(UserError, match="; give the folder that contains JPEGImages/"):
        VOCReader(tmp_path, ["train"], "detection")


def test_the_error_for_a_folder_without_lists_contains_the_command_that_makes_them(tmp_path):
    root = tmp_path / "my data"
    (root / "JPEGImages").mkdir(parents=True)
    write_xml(root, "a", object_xml())
    command = f"segdet data import '{root}' NEW_FOLDER --split 0.7 0.1 0.2 --seed 0"
    with pytest.raises(UserError, match=command):
        list_splits(root, "voc", "detection")
    with pytest.raises(UserError, match=command):
        VOCReader(root, ["train"], "detection")


@pytest.mark.parametrize(
    ("written", "there", "advice"),
    [
        ("JPEGImages/a.jpg", "a.heic", "a.heic is there: convert it to .jpg"),
        ("JPEGImages/a.jpg", "A.JPG", "A.JPG is there: give both the same name"),
        ("Annotations/a.xml", "A.xml", "A.xml is there: give both the same name"),
        ("SegmentationClass/a.png", "a.gif", "a.gif is there: convert it to .png"),
    ],
)
def test_the_error_for_a_missing_file_mentions_a_similar_one(tmp_path, written, there, advice):
    for folder in ("JPEGImages", "Annotations", "SegmentationClass"):
        (tmp_path / folder).mkdir()
    for kind in ("Main", "Segmentation"):
        write_list(tmp_path, "train", "a\n", kind=kind)
    (tmp_path / written).with_name(there).touch()
    task = "segmentation" if "Class" in written else "detection"
    reader = VOCReader(tmp_path, ["train"], task, class_names=["background", "cat"])
    read = reader.image if "Images" in written else reader.mask if task == "segmentation" else reader.objects
    with pytest.raises(BadSample) as caught:
        read(0)
    assert caught.value.path == tmp_path / written and caught.value.remedy == advice


def test_a_list_of_one_class_is_a_fault(tmp_path):
    write_xml(tmp_path, "a", object_xml())
    write_list(tmp_path, "cat_train", "a -1\na  1\n")
    (fault,) = faults_of_split(VOCReader(tmp_path, ["cat_train"], "detection"))
    assert fault.startswith("the split list cat_train has a flag after each name")


def test_bccd(real_data):
    reader = VOCReader(real_data / "bccd", ["trainval", "test"], "detection")
    assert len(reader) == 364 and reader.class_names == ["Platelets", "RBC", "WBC"]
    assert sum(len(reader.objects(index)) for index in range(len(reader))) == 4888
    faults = []
    for index in range(len(reader)):
        assert list(reader.faults(index, "detection")) == []
        faults += object_faults(reader, index, reader.objects(index), (480, 640))[0]
    assert sorted(fault.path.stem for fault in faults) == ["BloodImage_00338", "BloodImage_00343"]
    assert all(fault.fault.endswith("of class RBC is degenerate") for fault in faults)
    assert reader.image_path(0).is_file() and reader.declared_size(0) == (480, 640)
    localization = VOCReader(real_data / "bccd", ["train"], "localization")
    assert len(localization) == 205 and localization.class_names == reader.class_names


def test_camvid(real_data):
    reader = VOCReader(real_data / "camvid", ["train"], "segmentation", ignore_index=11)
    assert len(reader) == 367 and len(reader.mask_names) == 11 and reader.mask_names[0] == "Sky"
    counts = sum(np.bincount(reader.mask(index).ravel(), minlength=256) for index in range(len(reader)))
    assert counts[11:255].sum() == 0 and (counts[:11] > 0).all()
    assert round(100 * counts[255] / counts.sum(), 2) == 3.95
