"""Each foreign format, in the layouts in which its tools write it, gives the expected boxes and masks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotation_tools import (
    SIZE,
    base64_png,
    boxes_of,
    coco,
    labelme,
    labelme_shape,
    masks_of,
    save_picture,
    voc_xml,
    write,
)
from PIL import Image

from segdet.data.formats.detect import find_dataset
from segdet.data.importing.run import ImportReport, import_dataset
from segdet.util.errors import UserError

CAT = ("cat", [4.0, 5.0, 24.0, 15.0])
DOG = ("dog", [10.0, 8.0, 50.0, 38.0])
EXPECTED = {"a": [CAT], "b": [CAT, DOG], "c": []}
STEMS = tuple(EXPECTED)


def run(source: Path, **options: Any) -> ImportReport:
    """Import ``source`` into the folder ``out`` of its parent folder."""
    return import_dataset(source, source.parent / "out", **options)


def pictures(root: Path, folder: str = "", suffix: str = ".jpg") -> None:
    for seed, stem in enumerate(STEMS):
        save_picture(root / folder / f"{stem}{suffix}", seed)


def write_voc(root: Path, images: str = "", annotations: str = "") -> None:
    pictures(root, images)
    for stem, objects in EXPECTED.items():
        written = [(name, [int(x0) + 1, int(y0) + 1, int(x1), int(y1)]) for name, (x0, y0, x1, y1) in objects]
        write(root / annotations / f"{stem}.xml", voc_xml(f"{stem}.jpg", written))


def write_two_folders(root: Path) -> None:
    write_voc(root, "images", "annotations")


def yolo_lines(objects: list[tuple[str, list[float]]]) -> str:
    height, width = SIZE
    return "".join(
        f"{('cat', 'dog').index(name)} {(x0 + x1) / 2 / width:.6f} {(y0 + y1) / 2 / height:.6f} "
        f"{(x1 - x0) / width:.6f} {(y1 - y0) / height:.6f}\n"
        for name, (x0, y0, x1, y1) in objects
    )


def write_yolo(root: Path) -> None:
    """Ultralytics' folders, with an image without a text file."""
    pictures(root, "images/all")
    for stem, objects in EXPECTED.items():
        if objects:
            write(root / f"labels/all/{stem}.txt", yolo_lines(objects))
    write(
        root / "data.yaml",
        "path: ../datasets/x\ntrain: images/all\nval: images/all\nnames:\n  0: cat\n  1: dog\n",
    )


def write_darknet(root: Path) -> None:
    """Text files beside the images, with classes.txt as LabelImg writes it."""
    pictures(root)
    for stem, objects in EXPECTED.items():
        write(root / f"{stem}.txt", yolo_lines(objects))
    write(root / "classes.txt", "cat\ndog\n")


def write_cvat_yolo(root: Path) -> None:
    """CVAT's YOLO 1.1 with images."""
    pictures(root, "obj_train_data")
    for stem, objects in EXPECTED.items():
        write(root / f"obj_train_data/{stem}.txt", yolo_lines(objects))
    write(root / "obj.names", "cat\ndog\n")
    write(root / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\n")
    write(root / "train.txt", "".join(f"data/obj_train_data/{stem}.jpg\n" for stem in STEMS))


def write_labelme(root: Path) -> None:
    pictures(root, "photos")
    for stem, objects in EXPECTED.items():
        # The corners of a rectangle may be in any order.
        shapes = [
            labelme_shape(name, "rectangle", [[x1, y0], [x0, y1]]) for name, (x0, y0, x1, y1) in objects
        ]
        write(root / f"json/{stem}.json", labelme(f"..\\photos\\{stem}.jpg", shapes))


def coco_annotations() -> list[dict[str, Any]]:
    return [
        {"image_id": number, "category_id": {"cat": 3, "dog": 6}[name], "bbox": [x0, y0, x1 - x0, y1 - y0],
         "area": (x1 - x0) * (y1 - y0), "segmentation": []}
        for number, objects in enumerate(EXPECTED.values(), start=1)
        for name, (x0, y0, x1, y1) in objects
    ]  # fmt: skip


def write_coco(root: Path) -> None:
    """One file whose images are elsewhere, under the names of another machine."""
    pictures(root, "somewhere/pictures")
    names = [f"/home/me/data/{stem}.jpg" for stem in STEMS]
    write(root / "result.json", coco(names, coco_annotations(), ["cat", "dog"]))


def write_cvat_coco(root: Path) -> None:
    pictures(root, "images/default")
    names = [f"{stem}.jpg" for stem in STEMS]
    write(root / "annotations/instances_default.json", coco(names, coco_annotations(), ["cat", "dog"]))


CVAT_HEAD = (
    '<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version><meta><task><id>1</id><name>t</name>'
    "<labels><label><name>cat</name><color>#ff0000</color><type>any</type></label>"
    "<label><name>dog</name><type>any</type></label></labels></task></meta>"
)


def cvat_image(number: int, name: str, shapes: str, size: tuple[int, int] = SIZE, more: str = "") -> str:
    return f'<image id="{number}" name="{name}" {more} width="{size[1]}" height="{size[0]}">{shapes}</image>'


def write_cvat(root: Path) -> None:
    pictures(root, "images")
    text = CVAT_HEAD
    for number, (stem, objects) in enumerate(EXPECTED.items()):
        shapes = "".join(
            f'<box label="{name}" source="manual" occluded="0" xtl="{x0}" ytl="{y0}" xbr="{x1}" ybr="{y1}" '
            'z_order="0"></box>'
            for name, (x0, y0, x1, y1) in objects
        )
        text += cvat_image(number, f"{stem}.jpg", shapes)
    write(root / "annotations.xml", f"{text}</annotations>")


def via_entries() -> dict[str, Any]:
    return {
        f"{stem}.jpg1234": {
            "filename": f"{stem}.jpg",
            "size": 1234,
            "regions": [
                {
                    "shape_attributes": {
                        "name": "rect",
                        "x": x0,
                        "y": y0,
                        "width": x1 - x0,
                        "height": y1 - y0,
                    },
                    "region_attributes": {"colour": "red", "class": name},
                }
                for name, (x0, y0, x1, y1) in objects
            ],
            "file_attributes": {},
        }
        for stem, objects in EXPECTED.items()
    }


def write_via_project(root: Path) -> None:
    pictures(root)
    settings = {"_via_settings": {"core": {}}, "_via_img_metadata": via_entries(), "_via_attributes": {}}
    write(root / "via_project_1Jan2024.json", settings)


def write_via_export(root: Path) -> None:
    """An export of VIA 1, whose regions are numbered by the keys of a mapping."""
    pictures(root)
    entries = via_entries()
    for entry in entries.values():
        entry["regions"] = {str(place): region for place, region in enumerate(entry["regions"])}
    write(root / "via_region_data.json", entries)


def write_via_csv(root: Path) -> None:
    import csv
    import json

    pictures(root)
    columns = (
        "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"
    )
    with (root / "via_export_csv.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(columns.split(","))
        for entry in via_entries().values():
            regions = entry["regions"]
            rows = [
                (json.dumps(region["shape_attributes"]), json.dumps(region["region_attributes"]))
                for region in regions
            ]
            for place, row in enumerate(rows or [("{}", "{}")]):
                table.writerow([entry["filename"], 1234, "{}", len(regions), place, *row])


@pytest.mark.parametrize("target", ["voc", "coco"])
@pytest.mark.parametrize(
    ("write_source", "title"),
    [
        (write_voc, "Pascal VOC XML"),
        (write_two_folders, "Pascal VOC XML"),
        (write_yolo, "YOLO text files"),
        (write_darknet, "YOLO text files"),
        (write_cvat_yolo, "YOLO text files"),
        (write_labelme, "LabelMe JSON"),
        (write_coco, "COCO JSON"),
        (write_cvat_coco, "COCO JSON"),
        (write_cvat, "CVAT for images 1.1"),
        (write_via_project, "VGG Image Annotator"),
        (write_via_export, "VGG Image Annotator"),
        (write_via_csv, "VGG Image Annotator"),
    ],
)
def test_boxes_of_each_format(
    tmp_path: Path, write_source: Callable[[Path], None], title: str, target: Any
) -> None:
    source = tmp_path / "source"
    write_source(source)
    before = sorted((path, path.stat().st_mtime_ns) for path in source.rglob("*"))
    report = run(source, target=target)
    assert report.title == title
    assert not report.plan.left_out
    assert boxes_of(tmp_path / "out") == EXPECTED
    assert find_dataset(tmp_path / "out").format == target
    # COCO's ids of the categories are kept.
    ids = find_dataset(tmp_path / "out").open("train").category_ids
    assert ids == ([3, 6] if target == "coco" and title == "COCO JSON" else [1, 2])
    assert sorted((path, path.stat().st_mtime_ns) for path in source.rglob("*")) == before


@pytest.mark.parametrize("kind", ["voc", "yolo", "coco"])
def test_the_split_of_a_roboflow_export_is_kept(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source"
    for split, stem in zip(("train", "valid", "test"), STEMS, strict=True):
        name = f"{stem}_jpg.rf.0a1b2c.jpg"
        folder = source / split
        save_picture((folder / "images" if kind == "yolo" else folder) / name)
        if kind == "voc":
            write(folder / name.replace(".jpg", ".xml"), voc_xml(name, [("cat", [5, 6, 24, 15])]))
        elif kind == "yolo":
            write(folder / "labels" / name.replace(".jpg", ".txt"), yolo_lines([CAT]))
        else:
            write(folder / "_annotations.coco.json", coco([name], coco_annotations()[:1], ["cat", "dog"]))
    write(source / "README.roboflow.txt", "Provided by a Roboflow user\n")
    if kind == "yolo":
        write(
            source / "data.yaml",
            "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['cat', 'dog']\n",
        )
    report = run(source)
    assert {split: [name for name, _ in images] for split, images in report.plan.images.items()} == {
        split: [f"{stem}_jpg.rf.0a1b2c"] for split, stem in zip(("train", "val", "test"), STEMS, strict=True)
    }
    assert set(map(str, boxes_of(tmp_path / "out").values())) == {str([CAT])}


@pytest.mark.parametrize("kind", ["labelme", "cvat", "via", "yolo", "coco"])
def test_polygons_become_masks(tmp_path: Path, kind: str) -> None:
    """A cat's polygon, partly covered by a smaller dog that comes later."""
    source = tmp_path / "source"
    pictures(source)
    height, width = SIZE
    shapes = [
        ("cat", [(4, 5), (34, 5), (34, 25), (4, 25)]),
        ("dog", [(10, 10), (20, 10), (20, 20), (10, 20)]),
    ]
    flat = [
        ("cat", [v for point in shapes[0][1] for v in point]),
        ("dog", [v for p in shapes[1][1] for v in p]),
    ]
    for number, stem in enumerate(STEMS):
        if kind == "labelme":
            made = [labelme_shape(name, "polygon", [list(p) for p in points]) for name, points in shapes]
            write(source / f"{stem}.json", labelme(f"{stem}.jpg", made))
        elif kind == "yolo":
            lines = [
                f"{number} " + " ".join(f"{x / width:.6f} {y / height:.6f}" for x, y in points)
                for number, (_, points) in enumerate(shapes)
            ]
            write(source / f"{stem}.txt", "\n".join(lines))
        elif kind == "cvat" and number == 0:
            made = [
                f'<polygon label="{name}" occluded="0" points="{";".join(f"{x}.0,{y}.0" for x, y in points)}" '
                f'z_order="{place}"></polygon>'
                for place, (name, points) in enumerate(shapes)
            ]
            images = [cvat_image(n, f"{each}.jpg", "".join(reversed(made))) for n, each in enumerate(STEMS)]
            write(source / "annotations.xml", CVAT_HEAD + "".join(images) + "</annotations>")
    write(source / "classes.txt", "cat\ndog\n") if kind == "yolo" else None
    if kind == "via":
        regions = [
            {"shape_attributes": {"name": "polygon", "all_points_x": [x for x, _ in points],
                                  "all_points_y": [y for _, y in points]}, "region_attributes": {"kind": name}}
            for name, points in shapes
        ]  # fmt: skip
        entries = {
            f"{stem}.jpg1": {"filename": f"{stem}.jpg", "size": 1, "regions": regions} for stem in STEMS
        }
        write(source / "via.json", {"_via_img_metadata": entries})
    elif kind == "coco":
        annotations = [
            {"image_id": image, "category_id": 3 if name == "cat" else 6, "segmentation": [points],
             "bbox": [0, 0, 10, 10], "area": 600 if name == "cat" else 100}
            for image in (1, 2, 3)
            for name, points in flat
        ]  # fmt: skip
        write(source / "a.json", coco([f"{stem}.jpg" for stem in STEMS], annotations, ["cat", "dog"]))
    report = run(source, task="segmentation", target="voc") if kind == "coco" else run(source)
    assert report.plan.task == "segmentation"
    expected = np.zeros(SIZE, np.uint8)
    expected[5:25, 4:34] = 1
    expected[10:20, 10:20] = 2
    names, masks = masks_of(tmp_path / "out")
    assert names == ["background", "cat", "dog"]
    assert masks.keys() == set(STEMS)
    for mask in masks.values():
        assert (mask == expected).all()


def test_labelme_circles_masks_groups_and_special_labels(tmp_path: Path) -> None:
    source = tmp_path / "source"
    part = np.zeros((6, 8), np.uint8)
    part[1:4, 2:5] = 1
    shapes = [
        labelme_shape("cat", "circle", [[20, 20], [30, 20]]),
        labelme_shape("_background_", "rectangle", [[18, 18], [22, 22]]),
        labelme_shape("dog", "mask", [[40, 2], [47, 7]], mask=base64_png(part * 255)),
        labelme_shape("__ignore__", "rectangle", [[0, 30], [5, 40]]),
        labelme_shape("dog", "polygon", [[50, 20], [54, 20], [54, 24]], group_id=1),
        labelme_shape("dog", "polygon", [[50, 30], [54, 30], [54, 34]], group_id=1),
        labelme_shape("cat", "line", [[0, 0], [9, 9]]),
        labelme_shape("cat", "point", [[3, 3]]),
    ]
    for seed, stem in enumerate(STEMS):
        save_picture(source / f"{stem}.jpg", seed)
        write(source / f"{stem}.json", labelme(f"{stem}.jpg", shapes))
    report = run(source)
    assert {each.reason for each in report.plan.left_out} == {"shape that cannot be used"}
    assert len(report.plan.left_out) == 2 * 3
    assert report.plan.counts()["train"] == {"cat": 1, "dog": 2}  # the two polygons of a group are one object
    names, masks = masks_of(tmp_path / "out")
    mask = masks["a"]
    assert names == ["background", "cat", "dog"]
    assert abs((mask == 1).sum() + 16 - np.pi * 100) < 10
    assert (mask[18:22, 18:22] == 0).all() and mask[17, 20] == 1
    assert ((mask == 2)[2:8, 40:48] == part.astype(bool)).all()
    assert (mask[30:40, 0:5] == 255).all()
    report = import_dataset(source, tmp_path / "boxes", task="detection")
    reasons = sorted({each.reason for each in report.plan.left_out})
    assert reasons == ["region of the background", "region to ignore", "shape that cannot be used"]
    assert ("cat", [10, 10, 30, 30]) in [
        (name, np.round(box).tolist()) for name, box in boxes_of(tmp_path / "boxes")["a"]
    ]


def test_labelme_files_without_images_use_the_embedded_ones(tmp_path: Path) -> None:
    source = tmp_path / "source"
    pixels = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    for stem in STEMS:
        shapes = [labelme_shape("cat", "rectangle", [[4, 5], [24, 15]])]
        write(source / f"{stem}.json", labelme(f"{stem}.jpg", shapes, imageData=base64_png(pixels)))
    run(source)
    assert boxes_of(tmp_path / "out") == {stem: [CAT] for stem in STEMS}
    with Image.open(tmp_path / "out/JPEGImages/a.png") as image:
        assert (np.asarray(image) == pixels).all()


def test_cvat_masks_ellipses_rotated_boxes_and_subsets(tmp_path: Path) -> None:
    source = tmp_path / "source"
    pictures(source, "images/Train")
    shapes = (
        '<mask label="cat" occluded="0" rle="9, 3, 5, 3, 28" left="40" top="2" width="8" height="6" z_order="0"/>'
        '<ellipse label="dog" occluded="0" cx="20.00" cy="20.00" rx="10.00" ry="5.00" rotation="90" z_order="0"/>'
        '<box label="dog" occluded="1" xtl="30" ytl="28" xbr="50" ybr="32" rotation="90" z_order="0"/>'
        '<polyline label="cat" occluded="0" points="1,1;2,2" z_order="0"/>'
    )
    subsets = dict(zip(STEMS, ("Train", "Train", "Validation"), strict=True))
    images = [
        cvat_image(n, f"{stem}.jpg", shapes, more=f'subset="{subsets[stem]}"') for n, stem in enumerate(STEMS)
    ]
    write(source / "annotations.xml", CVAT_HEAD + "".join(images) + "</annotations>")
    report = run(source)
    assert {split: len(images) for split, images in report.plan.images.items()} == {"train": 2, "val": 1}
    assert [each.reason for each in report.plan.left_out] == ["shape that cannot be used"] * 3
    mask = masks_of(tmp_path / "out")[1]["a"]
    assert (mask[3:5, 41:44] == 1).all() and (mask == 1).sum() == 6
    rows, columns = np.nonzero(mask[:, :28] == 2)
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (20, 10)
    rows, columns = np.nonzero(mask[:, 30:] == 2)
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (20, 4)


def mask_of(objects: list[tuple[str, list[float]]]) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    for name, (x0, y0, x1, y1) in objects:
        mask[int(y0) : int(y1), int(x0) : int(x1)] = {"cat": 1, "dog": 2}[name]
    return mask


BINARY = np.array([0, 255, 255], np.uint8)
COLOURS = np.array([(0, 0, 0), (48, 112, 32), (176, 112, 32)], np.uint8)


def save_mask(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


@pytest.mark.parametrize(
    ("images", "place", "suffix"),
    [
        ("images", "masks/{}.png", ".jpg"),
        ("", "{}_mask.png", ".jpg"),
        ("train/images", "train/masks/{}.png", ".png"),
        ("JPEGImages", "SegmentationClass/{}.png", ".jpg"),
        ("train", "trainannot/{}.png", ".png"),
        ("imgs", "imgs_masks/{}_mask.PNG", ".JPG"),
    ],
)
def test_binary_masks(tmp_path: Path, images: str, place: str, suffix: str) -> None:
    source = tmp_path / "source"
    pictures(source, images, suffix)
    for stem, objects in EXPECTED.items():
        save_mask(source / place.format(stem), BINARY[mask_of(objects)])
    report = run(source)
    assert not report.plan.left_out
    assert any("255 is the class 'foreground'" in note for note in report.plan.notes)
    names, masks = masks_of(tmp_path / "out")
    assert names == ["background", "foreground"]
    for stem, objects in EXPECTED.items():
        assert (masks[stem] == (mask_of(objects) > 0)).all()


def test_masks_with_named_colours_and_an_unnamed_one(tmp_path: Path) -> None:
    source = tmp_path / "source"
    pictures(source, "JPEGImages")
    for stem, objects in EXPECTED.items():
        colours = COLOURS[mask_of(objects)]
        colours[0, 0] = (1, 2, 3)
        save_mask(source / "SegmentationClass" / f"{stem}.png", colours)
        save_mask(source / "SegmentationObject" / f"{stem}.png", colours)
    lines = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:48,112,32::\ndog:176,112,32::\n"
    write(source / "labelmap.txt", lines)
    write(source / "ImageSets/Segmentation/default.txt", "a\nb\nc\n")
    report = run(source)
    assert any("1 colours without a name are ignored (#010203)" in note for note in report.plan.notes)
    names, masks = masks_of(tmp_path / "out")
    assert names == ["background", "cat", "dog"]
    for stem, objects in EXPECTED.items():
        expected = mask_of(objects)
        expected[0, 0] = 255
        assert (masks[stem] == expected).all()


@pytest.mark.parametrize("names", ["class_dict.csv", "label_colors.txt", None])
def test_other_colour_maps(tmp_path: Path, names: str | None) -> None:
    source = tmp_path / "source"
    pictures(source, "images")
    for stem, objects in EXPECTED.items():
        save_mask(source / "masks" / f"{stem}.png", COLOURS[mask_of(objects)])
    if names == "class_dict.csv":
        write(source / names, "name, r, g, b\nbackground, 0, 0, 0\ncat, 48, 112, 32\ndog, 176, 112, 32\n")
    elif names:
        write(source / names, "0 0 0\tbackground\n48 112 32\tcat\n176 112 32\tdog\n")
    report = run(source, target="coco")
    found, masks = masks_of(tmp_path / "out")
    unnamed = ["background", "colour_307020", "colour_b07020"]
    assert found == (["background", "cat", "dog"] if names else unnamed)
    assert (masks["b"] == mask_of(EXPECTED["b"])).all()
    assert any("no file names the colours" in note for note in report.plan.notes) is (names is None)


@pytest.mark.parametrize(
    ("palette", "given", "expected"),
    [
        (COLOURS, ["_background_", "cat", "__ignore__"], [0, 1, 255]),
        (BINARY, ["_background_", "cat"], [0, 1, 1]),
        (BINARY, ["background", "__ignore__"], [0, 255, 255]),
    ],
)
def test_given_names_of_background_and_ignored_regions(
    palette: np.ndarray, given: list[str], expected: list[int], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    pictures(source, "images")
    for stem, objects in EXPECTED.items():
        save_mask(source / "masks" / f"{stem}.png", palette[mask_of(objects)])
    run(source, class_names=given)
    names, masks = masks_of(tmp_path / "out")
    assert names == (["background", "cat"] if "cat" in given else ["background"])
    for stem, objects in EXPECTED.items():
        assert (masks[stem] == np.array(expected)[mask_of(objects)]).all()


def test_index_masks_take_names_and_keep_ignored_pixels(tmp_path: Path) -> None:
    source = tmp_path / "source"
    pictures(source, "images")
    for stem, objects in EXPECTED.items():
        values = mask_of(objects)
        values[0, 0] = 255
        save_mask(source / "labels" / f"{stem}.png", values)
    run(source, class_names=["background", "cat", "dog"])
    names, masks = masks_of(tmp_path / "out")
    assert names == ["background", "cat", "dog"]
    assert masks["b"][0, 0] == 255 and (masks["b"][1:] == mask_of(EXPECTED["b"])[1:]).all()
    with pytest.raises(UserError, match=r"2 class names .* but the masks contain 0, 1, 2"):
        import_dataset(source, tmp_path / "other", class_names=["background", "cat"])
    assert not (tmp_path / "other").exists()


def test_compressed_masks_are_binary_or_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    pictures(source, "images")
    for stem, objects in EXPECTED.items():
        save_mask(source / "masks" / f"{stem}.jpg", BINARY[mask_of(objects)])
    run(source)
    assert (masks_of(tmp_path / "out")[1]["b"] == (mask_of(EXPECTED["b"]) > 0)).all()
    save_mask(source / "masks" / "c.jpg", (mask_of(EXPECTED["b"]) * 60).astype(np.uint8) + 60)
    report = import_dataset(source, tmp_path / "other", fractions=(0.5, 0.5, 0))
    assert [(each.path.name, each.detail) for each in report.plan.left_out] == [
        ("c.jpg", "JPEG has changed the values of the mask")
    ]


def test_gray_levels_are_classes_and_roboflow_names_values(tmp_path: Path) -> None:
    """Values that are not counted from 0 are gray levels, and 255 is one of them."""
    for kind, values in (("gray", [0, 128, 255]), ("roboflow", [0, 1, 2])):
        for stem, objects in EXPECTED.items():
            save_picture(tmp_path / kind / f"{stem}.jpg")
            save_mask(tmp_path / kind / f"{stem}_mask.png", np.array(values, np.uint8)[mask_of(objects)])
    write(tmp_path / "roboflow/_classes.csv", "Pixel Value, Class\n0, background\n1, cat\n2, dog\n")
    for kind, expected in (("gray", ["value_128", "value_255"]), ("roboflow", ["cat", "dog"])):
        report = import_dataset(tmp_path / kind, tmp_path / f"out_{kind}")
        assert any("255 is a class" in note for note in report.plan.notes) is (kind == "gray")
        names, masks = masks_of(tmp_path / f"out_{kind}")
        assert names == ["background", *expected]
        assert all((masks[stem] == mask_of(objects)).all() for stem, objects in EXPECTED.items())
    import_dataset(tmp_path / "gray", tmp_path / "ignored", class_names=["background", "cat", "__ignore__"])
    names, masks = masks_of(tmp_path / "ignored")
    assert names == ["background", "cat"] and set(np.unique(masks["b"])) == {0, 1, 255}


def test_yolo_boxes_and_polygons_together_are_boxes(tmp_path: Path) -> None:
    """The pixels of a YOLO box are unknown. As background, they would be wrong."""
    source = tmp_path / "source"
    pictures(source)
    for stem in STEMS:
        write(source / f"{stem}.txt", yolo_lines([CAT]) + "1 0.5 0.5 0.75 0.5 0.75 0.75\n")
    write(source / "classes.txt", "cat\ndog\n")
    report = run(source)
    assert report.plan.task == "detection" and not report.plan.left_out
    assert boxes_of(tmp_path / "out")["a"] == [CAT, ("dog", [30.0, 20.0, 45.0, 30.0])]
    report = import_dataset(source, tmp_path / "masks", task="segmentation")
    assert [each.reason for each in report.plan.left_out] == ["box without an outline"] * 3


def test_the_xml_file_chooses_between_images_of_the_same_name(tmp_path: Path) -> None:
    source = tmp_path / "source"
    pictures(source)
    pictures(source, suffix=".png")
    for stem in STEMS:
        write(source / f"{stem}.xml", voc_xml(f"{stem}.png", [("cat", [5, 6, 24, 15])]))
    report = run(source)
    assert {each.path.suffix for each in report.plan.left_out} == {".jpg"}
    assert {path.suffix for path in (tmp_path / "out/JPEGImages").iterdir()} == {".png"}
