"""``segdet score`` against pycocotools and the metrics of segdet."""

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from voc_files import object_xml, write_list, write_xml

from segdet.cli.main import main
from segdet.data.formats.detect import find_dataset
from segdet.metrics import DetectionScores
from segdet.metrics.average_precision import COCO_NAMES
from segdet.report.comparisons import compare_runs
from segdet.report.run_data import group_runs, load_runs
from segdet.runs.evidence import EVIDENCE_NAME, DetectionEvidence, read_evidence, write_evidence
from segdet.runs.evidence_from_scores import ImageFile, detection_evidence
from segdet.runs.record import Record

CATEGORIES = [
    {"id": 3, "name": "cat"}, {"id": 17, "name": "dog"}, {"id": 90, "name": "<script>"}, {"id": 91, "name": "bird"},
]  # fmt: skip


def ellipse(box: list[float]) -> dict[str, Any]:
    """Return the run-length code of the ellipse in a box."""
    x, y, width, height = box
    columns, rows = np.meshgrid(np.arange(320) + 0.5, np.arange(240) + 0.5)
    inside = ((columns - x - width / 2) / (width / 2)) ** 2 + (
        (rows - y - height / 2) / (height / 2)
    ) ** 2 <= 1
    code = rle.encode(np.asfortranarray(inside.astype(np.uint8)))
    return {"size": code["size"], "counts": code["counts"].decode()}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Annotations with crowds, sizes at the limits of areas and a category without objects; and predictions."""
    random = np.random.default_rng(0)
    images = [{"id": 5 * n + 2, "file_name": f"{n}.jpg", "height": 240, "width": 320} for n in range(30)]
    annotations: list[dict[str, Any]] = []
    predictions: list[dict[str, Any]] = []
    for image in images[:-2]:
        for _ in range(random.integers(0, 6)):
            width, height = (
                (32.0, 32.0) if random.random() < 0.2 else random.uniform(8, 130, 2).round(2).tolist()
            )
            x, y = random.uniform(0, (320 - width, 240 - height)).round(2).tolist()
            box = [x, y, width, height]
            category = int(random.choice([3, 17, 90]))
            annotations.append({
                "id": len(annotations) + 1, "image_id": image["id"], "category_id": category, "bbox": box,
                "area": float(rle.area(rle.encode(np.asfortranarray(rle.decode(ellipse(box)))))),
                "iscrowd": int(random.random() < 0.1), "segmentation": ellipse(box),
            })  # fmt: skip
            for _ in range(random.integers(0, 4)):
                moved = (np.array(box) + random.normal(0, 5, 4)).clip(1).tolist()
                guessed = category if random.random() < 0.8 else int(random.choice([3, 17, 90, 91]))
                predictions.append({
                    "image_id": image["id"], "category_id": guessed, "bbox": moved,
                    "score": float(random.random().__round__(1)), "segmentation": ellipse(moved),
                })  # fmt: skip
    truth, found = tmp_path / "instances.json", tmp_path / "found.json"
    truth.write_text(json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES}))
    found.write_text(json.dumps(predictions))
    return found, truth


def reference(found: Path, truth: Path, kind: str) -> tuple[list[float], list[float]]:
    """Return pycocotools' twelve numbers and the AP of each category."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO(str(truth))
        evaluation = COCOeval(ground_truth, ground_truth.loadRes(str(found)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    per_class = [float(p[p > -1].mean()) if (p > -1).any() else -1.0 for p in np.moveaxis(precision, 2, 0)]
    return evaluation.stats.tolist(), per_class


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, float | None]:
    assert main(["score", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_numbers_are_those_of_pycocotools(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    scores = printed(capsys, *files)
    numbers, per_class = reference(*files, kind="bbox")
    assert [scores[name] for name in COCO_NAMES] == pytest.approx(numbers, abs=1e-9)
    assert [scores["ap/cat"], scores["ap/dog"], scores["ap/<script>"]] == pytest.approx(
        per_class[:3], abs=1e-9
    )
    assert scores["ap/bird"] is None and per_class[3] == -1  # no object
    assert 0.1 < numbers[0] < 0.9


def test_the_numbers_of_masks_are_those_of_pycocotools(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    found, _ = files
    entries = json.loads(found.read_text())
    for entry in entries:
        del entry["bbox"]  # pycocotools would take the sizes from it
    found.write_text(json.dumps(entries))
    scores = printed(capsys, *files)
    numbers, _ = reference(*files, kind="segm")
    assert [scores[f"mask_{name}"] for name in COCO_NAMES] == pytest.approx(numbers, abs=1e-9)


def test_voc_scores_are_those_of_the_metric(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    found, truth = (json.loads(path.read_text()) for path in files)
    metric = DetectionScores([each["name"] for each in CATEGORIES]).set_dtype(torch.float64)
    labels = {each["id"]: label for label, each in enumerate(CATEGORIES, 1)}
    for image in truth["images"]:
        sides = []
        for entries in (found, truth["annotations"]):
            mine = [each for each in entries if each["image_id"] == image["id"]]
            boxes = torch.tensor([each["bbox"] for each in mine], dtype=torch.float64).reshape(-1, 4)
            boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
            sides.append(
                {"boxes": boxes, "labels": torch.tensor([labels[each["category_id"]] for each in mine])}
            )
            sides[-1]["labels"] = sides[-1]["labels"].long()
            for name in ("score", "iscrowd", "area"):
                if mine and name in mine[0]:
                    sides[-1][{"score": "scores"}.get(name, name)] = torch.tensor(
                        [each[name] for each in mine]
                    )
        sides[0].setdefault("scores", torch.zeros(0))
        metric.update([sides[0]], [sides[1]], [image["id"]])  # type: ignore[list-item]
    expected = metric.compute()
    assert printed(capsys, *files, "--as", "voc07") == {
        "map_voc07": pytest.approx(float(expected["map_voc07"]), abs=1e-6)
    }
    assert printed(capsys, *files, "--as", "voc12")["map_voc12"] == pytest.approx(
        float(expected["map_voc12"]), abs=1e-6
    )


def test_entries_that_cannot_be_scored_are_counted(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    found, truth = files
    expected = printed(capsys, *files)
    entries = json.loads(found.read_text())
    good = entries[0]
    bad = [
        good | {"image_id": 1}, good | {"image_id": 1}, good | {"category_id": 4}, good | {"score": None},
        good | {"bbox": [1, 2, 3]}, good | {"score": 10**400}, *({**good, "image_id": 1000 + n} for n in range(10)),
        {name: good[name] for name in ("image_id", "category_id", "bbox")},
    ]  # fmt: skip
    found.write_text(json.dumps([*bad, *entries]))
    assert main(["score", str(found), str(truth), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == expected
    for line in (
        "unknown image_id: 12 left out (1, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007, 1008 ... (11))",
        "unknown category_id: 1 left out (4)",
        "invalid box or score: 3 left out",
        "no score: 1 left out",
    ):
        assert f"segdet: {found}: {line}\n" in err


def test_annotations_of_images_that_are_not_listed_are_counted(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = printed(capsys, *files)
    content = json.loads(files[1].read_text())
    content["annotations"].append(content["annotations"][0] | {"id": 9999, "image_id": 9999})
    files[1].write_text(json.dumps(content))
    assert main(["score", *map(str, files), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == expected
    assert f"segdet: {files[1]}: annotations of images that are not listed: 1 left out\n" in err


def test_ids_may_be_text(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    expected = printed(capsys, *files)
    found, truth = (json.loads(path.read_text()) for path in files)
    for entry in [*found, *truth["annotations"]]:
        entry["image_id"] = f"image-{entry['image_id']:04}"
    for image in truth["images"]:
        image["id"] = f"image-{image['id']:04}"
    for path, content in zip(files, (found, truth), strict=True):
        path.write_text(json.dumps(content))
    assert printed(capsys, *files) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("seed", range(4))
def test_boxes_exactly_at_the_limits_of_areas_and_iou(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Boxes of 32 x 32 and 96 x 96, and detections of half a box, at corners that floats do not represent exactly."""
    random = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    predictions: list[dict[str, Any]] = []
    images = [{"id": n, "file_name": f"{n}.jpg", "height": 400, "width": 400} for n in range(20)]
    for image in images:
        for _ in range(5):
            side = float(random.choice([32, 96, 31.9, 96.1]))
            x, y = random.uniform(0, 300, 2).round(1).tolist()
            annotations.append({
                "id": len(annotations) + 1, "image_id": image["id"], "category_id": 3, "bbox": [x, y, side, side],
                "area": float(random.choice([1024, 1024.0001, 9216, 9216.0003])), "iscrowd": 0,
            })  # fmt: skip
            for corner, height in ((x, side / 2), (round(x + random.uniform(0, 9), 1), side)):
                entry = {"image_id": image["id"], "category_id": 3, "bbox": [corner, y, side, height]}
                predictions.append(entry | {"score": round(float(random.random()), 1)})
    found, truth = tmp_path / "found.json", tmp_path / "truth.json"
    found.write_text(json.dumps(predictions))
    truth.write_text(json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES}))
    scores = printed(capsys, found, truth)
    numbers, _ = reference(found, truth, "bbox")
    assert [scores[name] for name in COCO_NAMES] == pytest.approx(numbers, abs=1e-9)


def test_categories_of_the_same_name_have_separate_scores(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = printed(capsys, *files)
    content = json.loads(files[1].read_text())
    content["categories"].append({"id": 200, "name": "cat"})
    files[1].write_text(json.dumps(content))
    scores = printed(capsys, *files)
    assert scores["ap/cat (3)"] == expected["ap/cat"] and scores["ap/cat (200)"] is None


@pytest.mark.parametrize(
    ("which", "content", "message"),
    [
        (0, "[1", "corrupt, or not JSON"),
        (0, '{"images": []}', "not a COCO results file"),
        (1, "[]", "not a COCO annotation file"),
        (
            1,
            '{"images": [{"id": 1}], "annotations": [{"id": 1, "image_id": 1}], "categories": []}',
            "an entry is not valid (no 'bbox')",
        ),
        (1, None, "cannot be read (No such file or directory)"),
    ],
)
def test_a_bad_file_is_reported_in_one_line(
    files: tuple[Path, Path],
    which: int,
    content: str | None,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content is None:
        files[which].unlink()
    else:
        files[which].write_text(content)
    assert main(["score", *map(str, files)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"segdet: error: {files[which]}: {message}") and error.count("\n") == 1


def test_no_predictions_have_a_map_of_zero(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    files[0].write_text("[]")
    assert printed(capsys, *files)["map"] == 0


def test_the_record_takes_part_in_reports(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "second"):
        assert main(["score", *map(str, files), "--output", str(tmp_path / "tools" / name)]) == 0
        files[0].write_text(json.dumps(json.loads(files[0].read_text())[::2]))
    record = Record.read(tmp_path / "tools/first/result.json")
    assert record.per_image is not None and record.metrics["test/map"] is not None
    evidence = read_evidence(tmp_path / "tools/first" / record.per_image)
    assert isinstance(evidence, DetectionEvidence) and evidence.file_names[3] == "3.jpg"
    assert main(["score", *map(str, files), "--output", str(tmp_path / "tools/first")]) == 2
    assert "is not empty; give a new folder" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "tools"), "--no_html"]) == 0
    out = capsys.readouterr().out
    assert "second minus first" in out and f"{record.metrics['test/map']:.3f} [" in out


def test_tiny_coco(real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Predictions are the annotated boxes, moved."""
    truth = next(iter(sorted(real_data.glob("tiny_coco/annotations/instances_*val*.json"))), None)
    if truth is None:
        pytest.skip("tiny COCO is not there")
    random = np.random.default_rng(0)
    found = tmp_path / "found.json"
    found.write_text(
        json.dumps(
            [
                {
                    "image_id": each["image_id"], "category_id": each["category_id"], "score": float(random.random()),
                    "bbox": (np.array(each["bbox"]) * random.uniform(0.9, 1.1, 4)).tolist(),
                }
                for each in json.loads(truth.read_text())["annotations"]
            ]
        )
    )  # fmt: skip
    scores = printed(capsys, found, truth)
    numbers, _ = reference(found, truth, "bbox")
    assert [scores[name] for name in COCO_NAMES] == pytest.approx(numbers, abs=1e-6)


def test_scores_are_compared_with_runs_that_were_tested_on_the_same_objects(
    real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The evidence has the image ids, file names and objects of a test that read the dataset."""
    root = real_data / "tiny_coco"
    truth, found = tmp_path / "annotations" / "instances_val2017.json", tmp_path / "found.json"
    truth.parent.mkdir()
    (tmp_path / "val2017").symlink_to(root / "val2017")
    content = json.loads((root / "annotations" / truth.name).read_text())
    truth.write_text(json.dumps(content))
    found.write_text(json.dumps([
        {"image_id": each["image_id"], "category_id": each["category_id"], "bbox": each["bbox"], "score": 0.5}
        for each in content["annotations"][::2]
    ]))  # fmt: skip
    reader = find_dataset(root, "coco", "detection", ["val2017"]).open("val2017")
    metric, images = DetectionScores(reader.class_names), {}
    for index in range(len(reader)):
        objects = reader.objects(index)
        target: Any = {
            name: torch.from_numpy(each) for name, each in vars(objects).items() if each is not None
        }
        prediction: Any = {name: target[name] for name in ("boxes", "labels")}
        metric.update([prediction | {"scores": torch.ones(len(objects))}], [target], [reader.image_id(index)])
        name = reader.image_path(index).relative_to(root).as_posix()
        images[reader.image_id(index)] = ImageFile(name, reader.declared_size(index) or (0, 0))
    image_ids, by_box, _ = metric.evaluations()
    tested = tmp_path / "runs" / "tested"
    write_evidence(tested / EVIDENCE_NAME, detection_evidence(image_ids, images, by_box))
    numbers = {f"test/{name}": float(value) for name, value in metric.compute().items()}
    Record(
        name="tested", task="detection", model="SSD", data="COCODataModule", seed=0, status="finished",
        metrics={name: value for name, value in numbers.items() if value == value}, fingerprint="aaaa",
        per_image=EVIDENCE_NAME,
    ).write(tested / "result.json")  # fmt: skip

    def reason() -> str:
        output = tmp_path / "runs" / "scored"
        shutil.rmtree(output, ignore_errors=True)
        assert main(["score", str(found), str(truth), "--output", str(output)]) == 0
        first, second = group_runs(load_runs([tmp_path / "runs"])[0])
        return compare_runs(first, second, "map").reason

    assert reason() == ""
    content["annotations"][0]["bbox"][0] += 1
    truth.write_text(json.dumps(content))
    assert reason() == "they read different data"


def test_a_voc_folder_is_scored_like_a_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Objects of a VOC folder, one of them in each image difficult, and the keys that `segdet predict` writes."""
    root, random, found = tmp_path / "voc", np.random.default_rng(0), tmp_path / "predictions.json"
    (root / "JPEGImages").mkdir(parents=True)
    for number in range(8):
        boxes = [(int(x), int(y), int(x) + 20, int(y) + 15) for x, y in random.integers(1, 30, (3, 2))]
        hard = object_xml("dog", boxes[2], "<difficult>1</difficult>")
        write_xml(root, f"{number}", object_xml("cat", boxes[0]), object_xml("dog", boxes[1]), hard)
    write_list(root, "train", "0\n")
    write_list(root, "val", "\n".join(map(str, range(8))))
    reader = find_dataset(root, "voc", "detection", ["val"], ["cat", "dog"]).open("val")
    metric, entries = DetectionScores(["cat", "dog"]), []
    for index in range(len(reader)):
        target: Any = {
            name: torch.from_numpy(each)
            for name, each in vars(reader.objects(index)).items()
            if each is not None
        }
        boxes = (target["boxes"].double() + torch.from_numpy(random.normal(0, 2, (3, 4)))).round(decimals=2)
        scores = torch.from_numpy(random.random(3))
        metric.update([{"boxes": boxes, "labels": target["labels"], "scores": scores}], [target], [index + 1])
        for (x, y, right, bottom), label, score in zip(
            boxes.tolist(), target["labels"].tolist(), scores.tolist(), strict=True
        ):
            entries.append({
                "image_id": index + 1, "file_name": f"JPEGImages/{index}.jpg", "category_id": label,
                "category": reader.class_names[label - 1], "bbox": [x, y, right - x, bottom - y], "score": score,
            })  # fmt: skip
    found.write_text(json.dumps(entries))
    expected = {name: float(value) for name, value in metric.compute().items()}
    options = ("--as", "all", "--class_names", "cat,dog")
    ours = printed(capsys, found, root, "--split", "val", *options)
    assert 0.1 < expected["map_voc07"] < 1 and 0.1 < expected["map_voc12"] < 1
    assert {name: np.nan if value is None else value for name, value in ours.items()} == pytest.approx(
        expected, abs=1e-6, nan_ok=True
    )
    assert main(["score", str(found), str(root), *options]) == 2
    assert "voc: has the splits train, val; choose one, such as --split val" in capsys.readouterr().err
    assert main(["score", str(found), str(found), "--split", "val"]) == 2
    assert "--split: for folders, but" in capsys.readouterr().err


def test_a_coco_folder_is_read_like_its_file(
    real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, found = real_data / "tiny_coco", tmp_path / "found.json"
    annotations = root / "annotations" / "instances_val2017.json"
    entries = json.loads(annotations.read_text())["annotations"]
    found.write_text(json.dumps([each | {"score": 0.5} for each in entries]))
    scores = printed(capsys, found, root, "--split", "val2017")
    assert scores == printed(capsys, found, annotations) and float(scores["map"] or 0) > 0.9
