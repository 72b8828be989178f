"""`segdet data stats`: the numbers of small folders, counted by hand."""

import json

import numpy as np
import pytest
from PIL import Image
from readers import open_readers

from segdet.cli.data.stats import main
from segdet.data.inspect.stats import describe, measure

# pycocotools' compiled part is older than NumPy 2's copy keyword.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_objects_are_counted(voc_folder, voc_xml, picture):
    (voc_folder / "Annotations/b.xml").write_text(
        voc_xml("b", [("dog", 1, 1, 64, 24), ("cat", 9, 9, 9, 9), ("dog", 41, 1, 80, 40)], (480, 640))
    )
    Image.fromarray(picture(1, (480, 640))).save(voc_folder / "JPEGImages/b.jpg")
    stats = measure(open_readers(voc_folder)["train"], "detection")
    assert stats.names == ["cat", "dog"]
    assert stats.counts.tolist() == [1, 3]
    assert stats.images_with.tolist() == [1, 2]
    assert stats.per_image.tolist() == [2, 2]
    assert stats.unusable == 1
    assert stats.sizes.tolist() == [[48, 64], [480, 640]]
    record = stats.record("detection")
    # 20x20, 31x31, 64x24 and 40x40 pixels.
    assert (record["small"], record["medium"], record["large"]) == (2, 2, 0)
    assert record["width"] == {"min": 64, "median": 352, "mean": 352, "max": 640}
    assert record["aspect_ratio"]["max"] == pytest.approx(64 / 24, abs=1e-3)


def test_empty_images_and_crowds_are_counted(coco_folder, edit_json):
    edit_json(
        coco_folder / "annotations/instances_train.json", lambda d: d["annotations"][0].update(iscrowd=1)
    )
    stats = measure(open_readers(coco_folder)["train"], "detection")
    assert (stats.empty, stats.crowds, len(stats.labels)) == (1, 1, 1)
    assert stats.areas.tolist() == [200]
    assert stats.boxes[0] == pytest.approx([4 / 64, 4 / 48, 24 / 64, 14 / 48])


def test_pixels_are_counted(voc_folder):
    mask = np.zeros((48, 64), np.uint8)
    mask[:10] = 255
    mask[10:12] = 2
    Image.fromarray(mask).save(voc_folder / "SegmentationClass/c.png")
    stats = measure(open_readers(voc_folder, task="segmentation")["val"], "segmentation")
    record = stats.record("segmentation")
    assert record["pixels"] == {"background": 36 * 64, "cat": 0, "dog": 2 * 64}
    assert record["ignored_pixels"] == 10 * 64
    assert record["images_with"] == {"background": 1, "cat": 0, "dog": 1}
    assert record["empty"] == 0


def test_a_mask_with_only_background_has_no_objects(voc_folder):
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(voc_folder / "SegmentationClass/c.png")
    assert measure(open_readers(voc_folder, task="segmentation")["val"], "segmentation").empty == 1


def test_tables_include_a_split_without_readable_samples(voc_folder):
    (voc_folder / "Annotations/c.xml").write_text("<")
    readers = open_readers(voc_folder)
    stats = {split: measure(reader, "detection") for split, reader in readers.items()}
    assert stats["val"].bad[0].startswith(f"{voc_folder / 'Annotations/c.xml'}: not valid XML")
    lines = describe(stats, "detection").splitlines()
    assert next(line for line in lines if "cannot be read" in line).split()[-2:] == ["0", "1"]


@pytest.mark.parametrize("task", ["detection", "segmentation"])
@pytest.mark.parametrize("folder", ["voc_folder", "coco_folder", "cityscapes_folder"])
def test_the_command_writes_tables_json_and_a_plot(folder, task, request, tmp_path, capsys):
    root = request.getfixturevalue(folder)
    record, picture = tmp_path / "out/stats.json", tmp_path / "plots/stats.png"
    assert main([str(root), "--task", task, "--json", str(record), "--plot", str(picture)]) == 0
    text = capsys.readouterr().out
    assert "images" in text
    assert ("car" if folder == "cityscapes_folder" else "dog") in text
    splits = json.loads(record.read_text())["splits"]
    assert list(splits) == ["train", "val"]
    assert splits["train"]["images"] == (1 if folder == "cityscapes_folder" else 2)
    with Image.open(picture) as image:
        assert image.width > 1000
        assert len(np.unique(np.asarray(image.convert("L")))) > 20


def test_unreadable_samples_are_reported(voc_folder, capsys):
    (voc_folder / "Annotations/c.xml").write_text("<")
    assert main([str(voc_folder)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(
        f"samples that cannot be read: 1, the first: {voc_folder / 'Annotations/c.xml'}: not valid XML"
    )
    assert last.endswith("see segdet data check")


def test_mistakes_are_reported_in_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err == (
        f"segdet data stats: {tmp_path / 'nowhere'}: no such folder; give the dataset's folder\n"
    )


def test_real_data_is_counted(real_data, capsys):
    assert main([str(real_data / "bccd"), "--split", "train", "val", "test"]) == 0
    lines = capsys.readouterr().out.splitlines()
    objects = next(line for line in lines if line.startswith("objects  "))
    unusable = next(line for line in lines if "unusable" in line)
    count = sum(int(word.replace(",", "")) for word in objects.split()[1:] + unusable.split()[-3:])
    assert count == 4888
