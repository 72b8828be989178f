from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from segdet.data.formats.cityscapes import LABELS, CityscapesReader
from segdet.util.errors import BadSample, UserError

H, W = 16, 24
STEM = "aachen_000000_000019"


def write(root: Path, ids=None, instances=None, city="aachen", stem=STEM, suffix="png", split="val") -> None:
    images, annotations = root / "leftImg8bit" / split / city, root / "gtFine" / split / city
    images.mkdir(parents=True, exist_ok=True)
    annotations.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (W, H)).save(images / f"{stem}_leftImg8bit.{suffix}")
    if ids is not None:
        cv2.imwrite(str(annotations / f"{stem}_gtFine_labelIds.png"), np.asarray(ids, np.uint8))
    if instances is not None:
        cv2.imwrite(str(annotations / f"{stem}_gtFine_instanceIds.png"), np.asarray(instances, np.uint16))


def test_label_table():
    assert [label.id for label in LABELS] == [*range(34), -1]
    classes = [label for label in LABELS if not label.ignore_in_eval]
    assert [label.train_id for label in classes] == list(range(19))
    assert all(label.train_id in (255, -1) for label in LABELS if label.ignore_in_eval)
    assert [label.id for label in classes] == [7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]
    assert [label.id for label in LABELS if label.has_instances] == list(range(24, 34))


def test_label_ids_become_train_ids(tmp_path):
    ids = np.zeros((H, W), np.uint8)
    ids.flat[:34], ids.flat[34], ids.flat[35] = np.arange(34), 255, 40
    write(tmp_path, ids)
    reader = CityscapesReader(tmp_path, "val", "segmentation")
    assert (
        len(reader.mask_names) == 19 and reader.mask_names[0] == "road" and reader.mask_names[18] == "bicycle"
    )
    mask = reader.mask(0)
    expected = dict(zip([7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33], range(19), strict=True))
    assert mask.dtype == np.uint8 and mask.shape == (H, W)
    assert mask.flat[:34].tolist() == [expected.get(value, 255) for value in range(34)]
    assert mask.flat[34] == mask.flat[35] == 255
    path = tmp_path / "gtFine/val/aachen" / f"{STEM}_gtFine_labelIds.png"
    assert reader.annotation_paths(0, "segmentation") == [path]
    fault = "value 40, 255 is not a label of Cityscapes and is ignored"
    (found,) = reader.faults(0, "segmentation")
    assert (found.path, found.fault, found.fatal) == (path, fault, False)


def test_objects_and_groups(tmp_path):
    values = np.full((H, W), 7, np.uint16)
    values[2:5, 3:9] = 26001  # a car
    values[2, 3] = 33000  # a bicycle in front of its corner
    values[10:12, 0:2] = values[14:16, 22:24] = 24002  # a person in two parts
    values[6:8, 10:20] = 26  # a group of cars
    values[8, 0] = 32  # a group of one pixel
    values[12, 12] = 29001  # a caravan, which is ignored
    write(tmp_path, instances=values)
    reader = CityscapesReader(tmp_path, "val", "detection")
    assert reader.class_names == ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
    assert reader.category_ids == [24, 25, 26, 27, 28, 31, 32, 33]
    objects = reader.objects(0)
    named = [reader.class_names[label - 1] for label in objects.labels]
    found = list(
        zip(named, objects.iscrowd.tolist(), objects.boxes.tolist(), objects.area.tolist(), strict=True)
    )
    assert found == [
        ("car", True, [10, 6, 20, 8], 20),
        ("motorcycle", True, [0, 8, 1, 9], 1),
        ("person", False, [0, 10, 24, 16], 8),
        ("car", False, [3, 2, 9, 5], 17),
        ("bicycle", False, [3, 2, 4, 3], 1),
    ]
    assert objects.boxes.dtype == objects.area.dtype == np.float32 and objects.labels.dtype == np.int64
    assert objects.iscrowd.dtype == bool and not objects.difficult.any()
    assert list(reader.faults(0, "detection")) == []


def test_boxes_enclose_the_pixels_of_each_value(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.choice([0, 7, 24000, 24001, 26003, 27, 33017, 65000], size=(H, W)).astype(np.uint16)
    values[: H // 2] = 0
    write(tmp_path, instances=values)
    reader = CityscapesReader(tmp_path, "val", "localization")
    objects = reader.objects(0)
    for value, box, area in zip([27, 24000, 24001, 26003, 33017], objects.boxes, objects.area, strict=True):
        y, x = np.nonzero(values == value)
        assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1] and area == len(x)
    assert [fault.fault for fault in reader.faults(0, "detection")] == [
        "value 65000 is not a label of Cityscapes and is ignored"
    ]


def test_an_image_without_objects_has_empty_arrays(tmp_path):
    write(tmp_path, instances=np.full((H, W), 7))
    objects = CityscapesReader(tmp_path, "val", "detection").objects(0)
    assert objects.boxes.shape == (0, 4) and len(objects) == 0 and objects.iscrowd.shape == (0,)


def test_images_are_sorted_and_jpegs_are_used_where_there_is_no_png(tmp_path):
    ids = np.zeros((H, W))
    write(tmp_path, ids, city="ulm", stem="ulm_000001_000019", suffix="jpg")
    write(tmp_path, ids, city="bonn", stem="bonn_000002_000019", suffix="jpg")
    write(tmp_path, ids, city="bonn", stem="bonn_000002_000019", suffix="png")
    write(tmp_path, ids, city="bonn", stem="bonn_000001_000019")
    reader = CityscapesReader(tmp_path, "val", "segmentation")
    found = [
        reader.image_path(index).relative_to(tmp_path / "leftImg8bit/val") for index in range(len(reader))
    ]
    assert [path.as_posix() for path in found] == [
        "bonn/bonn_000001_000019_leftImg8bit.png",
        "bonn/bonn_000002_000019_leftImg8bit.png",
        "ulm/ulm_000001_000019_leftImg8bit.jpg",
    ]
    assert (reader.mask(2) == 255).all() and reader.declared_size(0) is None and reader.image_id(2) == 3


def test_missing_archives_are_named(tmp_path):
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError) as caught:
            CityscapesReader(missing, "val", "segmentation")
        message = str(caught.value)
        assert "leftImg8bit_trainvaltest.zip" in message and "gtFine_trainvaltest.zip" in message
        assert "cityscapes-dataset.com" in message and str(missing) in message and "\n" not in message
    write(tmp_path, np.zeros((H, W)))
    with pytest.raises(UserError, match="no such split; there are val"):
        CityscapesReader(tmp_path, "train", "segmentation")
    (tmp_path / "leftImg8bit/train").mkdir()
    with pytest.raises(UserError, match="gtFine/train: no such folder"):
        CityscapesReader(tmp_path, "train", "segmentation")
    (tmp_path / "gtFine/train").mkdir()
    with pytest.raises(UserError, match=r"no <city>/\*_leftImg8bit\.png"):
        CityscapesReader(tmp_path, "train", "segmentation")


def test_polygons_without_masks_are_refused(tmp_path):
    write(tmp_path)
    polygons = tmp_path / "gtFine/val/aachen" / f"{STEM}_gtFine_polygons.json"
    polygons.write_text("{}")
    for task, kind in (("segmentation", "labelIds"), ("detection", "instanceIds")):
        with pytest.raises(UserError, match=f"{kind}.png: missing, although .* with cityscapesScripts"):
            CityscapesReader(tmp_path, "val", task)


def test_missing_and_truncated_annotations_raise_when_read(tmp_path):
    write(tmp_path, np.zeros((H, W)), np.zeros((H, W)))
    write(tmp_path, stem="aachen_000001_000019")
    reader = CityscapesReader(tmp_path, "val", "detection")
    for use in (reader.objects, reader.mask):
        with pytest.raises(BadSample, match=r"aachen_000001_000019_gtFine_\w+\.png: no such annotation"):
            use(1)
    assert list(reader.faults(1, "detection")) == list(reader.faults(1, "segmentation")) == []
    (tmp_path / "gtFine/val/aachen/aachen_000001_000019_gtFine_polygons.json").touch()
    with pytest.raises(BadSample, match="no such file, only its polygons; create it with cityscapesScripts"):
        reader.objects(1)
    for kind, use in (("instanceIds", reader.objects), ("labelIds", reader.mask)):
        path = tmp_path / "gtFine/val/aachen" / f"{STEM}_gtFine_{kind}.png"
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(BadSample, match="truncated PNG"):
            use(0)


def test_masks_of_train_ids_are_read_where_there_are_no_label_ids(cityscapes_folder):
    stem = "gtFine/val/ulm/ulm_000000_000019_gtFine"
    (cityscapes_folder / f"{stem}_labelIds.png").unlink()
    (cityscapes_folder / f"{stem}_polygons.json").write_text("{}")
    path = cityscapes_folder / f"{stem}_labelTrainIds.png"
    Image.fromarray(np.array([[0, 18, 255, 19]], np.uint8)).save(path)
    reader = CityscapesReader(cityscapes_folder, "val", "segmentation")
    assert reader.mask(0).tolist() == [[0, 18, 255, 255]]
    assert reader.annotation_paths(0, "segmentation") == [path]
    (fault,) = reader.faults(0, "segmentation")
    assert fault.path == path and "value 19 is not a label" in fault.fault


@pytest.mark.parametrize("suffix", ["PNG", "JPG", "tif", "webp"])
def test_images_of_any_suffix_are_found(cityscapes_folder, suffix):
    (path,) = (cityscapes_folder / "leftImg8bit/val/ulm").iterdir()
    path.rename(path.with_suffix(f".{suffix}"))
    reader = CityscapesReader(cityscapes_folder, "val", "segmentation")
    assert reader.image_path(0) == path.with_suffix(f".{suffix}")
