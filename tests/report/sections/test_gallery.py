"""The gallery section: its numbers equal the evaluator's, images are embedded once, and names are text."""

import base64
import inspect
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from random_evidence import random_detections, random_segmentation
from random_runs import write_run

from segdet.metrics.detection_errors import DetectionErrors
from segdet.report import gallery_data
from segdet.report.detection_counts import detection_errors
from segdet.report.disagreement import disagreement, image_scores
from segdet.report.gallery_data import MAX_RUNS, group_by_images
from segdet.report.page_data import PageData
from segdet.report.run_data import load_runs
from segdet.report.sections.gallery import SHOWN, section, shown_first
from segdet.runs.evidence import DetectionEvidence
from segdet.runs.gallery import GALLERY_FOLDER, GalleryImage, Pictures, write_gallery
from segdet.runs.record import Record


def page_of(folder):
    runs, faults = load_runs([folder])
    assert not faults
    return PageData("page", [folder], runs)


class Elements(HTMLParser):
    """Collects the start tags of a page as (name, attributes)."""

    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(str(html))

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def named(self, tag, **attributes):
        attributes = {name.replace("_", "-"): value for name, value in attributes.items()}
        return [found for name, found in self.found if name == tag and attributes.items() <= found.items()]


def scripts(html):
    found = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', str(html), re.DOTALL)
    return [json.loads(each) for each in found]


@pytest.fixture(scope="module")
def detectors(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detectors")
    for seed, name in enumerate(("rcnn", "ssd", 'x"><script>alert(1)')):
        write_run(folder / name, seed=seed, quality=0.4 + 0.2 * seed)
    page = page_of(folder)
    return page, section(page)


def test_the_numbers_at_each_position_of_the_slider_equal_the_evaluators(detectors):
    page, found = detectors
    (data,) = scripts(found.html)
    for run, values in zip(page.runs, data["runs"], strict=True):
        errors: DetectionErrors = detection_errors(run.evidence)
        correct, wrong = np.cumsum(values["correct"]), np.cumsum(values["wrong"])
        for position in [*range(0, len(data["thresholds"]), 100), values["best"]]:
            shown = errors.detections.scores >= data["thresholds"][position]
            assert correct[position] == (shown & errors.correct).sum()
            assert wrong[position] == (shown & ~errors.correct).sum()
        assert values["objects"] == (~errors.objects.ignored).sum()
        assert data["thresholds"][values["best"]] == errors.best_score()


def test_the_boxes_of_an_image_are_those_of_the_evidence(detectors):
    page, found = detectors
    (data,) = scripts(found.html)
    items = re.split(r"<li id=", str(found.html))[1:]
    for item in items:
        index = int(re.search(r'data-index="(\d+)"', item)[1])
        panels = re.split(r'<figure class="panel"', item)[1:]
        for run, panel, values in zip(page.runs, panels, data["runs"], strict=True):
            evidence = run.evidence
            mine = (evidence.image == index) & (evidence.match[:, 0] != 2)
            positions = [int(each) for each in re.findall(r'data-p="(\d+)"', panel)]
            assert len(positions) == mine.sum()
            score = detection_errors(evidence).best_score()
            shown = evidence.score[mine].astype(float) >= score
            assert sum(position >= values["best"] for position in positions) == shown.sum()
            correct = (evidence.match[mine, 0] == 1)[shown].sum()
            assert f"{correct} correct, {shown.sum() - correct} wrong" in panel or "no objects" in panel


def test_images_are_ordered_by_disagreement_and_those_without_objects_are_last(tmp_path):
    for seed in range(3):
        write_run(tmp_path / str(seed), seed=seed, images=10, gallery=10)
    page = page_of(tmp_path)
    evidence = page.runs[0].evidence
    counted = ~(evidence.object_crowd | evidence.object_difficult)
    has_objects = np.isin(np.arange(10), evidence.object_image[counted])
    scores = disagreement([image_scores(run.evidence) for run in page.runs])
    html = section(page).html
    order = [int(each["data-index"]) for each in Elements(html).named("li") if "data-number" in each]
    expected = [(not has_objects[index], -scores[index]) for index in order]
    assert expected == sorted(expected) and sorted(order) == list(range(10))
    assert not has_objects[order[-1]] and scores[order[0]] > 0


def test_names_are_text(detectors):
    page, found = detectors
    elements = Elements(found.html)
    kinds = [each.get("type") for each in elements.named("script")]
    assert kinds.count(None) == 1  # the page's own code
    assert {run.name for run in page.runs} <= {each.get("data-run") for each in elements.named("tr")}
    assert "<script>alert" not in found.html


def test_each_image_is_embedded_once(detectors):
    page, found = detectors
    assert found.html.count("data:image/jpeg") == 6
    panels = [each for each in Elements(found.html).named("figure") if "data-run" in each]
    assert len(panels) == 6 * len(page.runs)


def test_the_runs_that_are_shown_first_are_spread_over_the_scores(tmp_path):
    for seed in range(7):
        write_run(tmp_path / f"run-{'cafdgbe'[seed]}", seed=1, images=8)
    write_run(tmp_path / "run-a-seed1", seed=1, images=8)
    runs = page_of(tmp_path).runs
    assert [run.name[4:] for run in runs] == ["a", "a-seed1", *"bcdefg"]
    scores = [0.5, 0.99, 0.1, 0.9, 0.3, 0.7, 0.6, 0.2]
    shown = shown_first(runs, scores)
    assert [scores[index] for index in shown] == [0.1, 0.9, 0.3, 0.6]
    assert shown_first(runs[2:4], scores) == [0, 1]
    assert shown_first(runs[:3], scores) == [0, 1, 2]  # other seeds fill up


def test_masks_are_shown_for_segmentation_and_boxes_for_localization(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"fcn-{seed}", "segmentation", seed)
        write_run(tmp_path / f"box-{seed}", "localization", seed)
    html = section(page_of(tmp_path)).html
    elements = Elements(html)
    assert [each["data-task"] for each in elements.named("div", **{"class": "gallery"})] == [
        "segmentation",
        "localization",
    ]
    assert len(elements.named("image", **{"class": "mask classes"})) == 6 * (1 + 2)
    assert len(elements.named("image", **{"class": "mask wrong-pixels"})) == 6 * 2
    assert not scripts(html)
    assert "box IoU" in html and "mean IoU" in html


def test_wrong_pixels_are_those_that_differ_from_the_annotation(tmp_path):
    write_run(tmp_path / "fcn", "segmentation")
    html = str(section(page_of(tmp_path)).html)
    item = html[html.index('data-name="images/002.jpg"') :]
    uri = re.search(r'class="mask wrong-pixels"[^>]*href="data:image/png;base64,([^"]*)"', item)[1]
    with Image.open(io.BytesIO(base64.b64decode(uri))) as picture:
        wrong = np.asarray(picture.convert("RGBA"))[..., 3] > 0
    folder = tmp_path / "fcn" / GALLERY_FOLDER
    truth, predicted = (np.asarray(Image.open(folder / f"2.{kind}.png")) for kind in ("truth", "predicted"))
    assert 0 < wrong.mean() < 1
    np.testing.assert_array_equal(wrong, truth != predicted)


def test_runs_of_other_images_have_their_own_gallery_and_runs_without_images_none(tmp_path):
    write_run(tmp_path / "a", seed=0)
    write_run(tmp_path / "b", seed=1, images=30, gallery=5)
    write_run(tmp_path / "c", seed=1, gallery=0)
    identifiers = [
        each["id"] for each in Elements(section(page_of(tmp_path)).html).named("div", data_task="detection")
    ]
    assert identifiers == ["gallery-detection", "gallery-detection-2"]
    assert section(page_of(tmp_path / "c")) is None


def test_images_of_the_same_names_in_other_data_have_their_own_gallery(tmp_path):
    for name in "ab":
        write_run(tmp_path / name, "segmentation")
    record = Record.read(tmp_path / "b" / "result.json")
    replace(record, fingerprint="other data").write(tmp_path / "b" / "result.json")
    for path in (tmp_path / "b" / GALLERY_FOLDER).glob("*.*g"):
        with Image.open(path) as opened:
            smaller = opened.reduce(2) if opened.mode == "RGB" else opened.resize((128, 96), 0)
        smaller.save(path)
    groups = group_by_images(load_runs([tmp_path])[0])
    assert [[run.name for run in group.runs] for group in groups] == [["a"], ["b"]]
    assert section(page_of(tmp_path)) is not None


def test_a_gallery_that_cannot_be_used_is_listed(tmp_path):
    for seed, name in enumerate("abcd"):
        write_run(tmp_path / name, "segmentation", seed)
    (tmp_path / "a" / GALLERY_FOLDER / "3.predicted.png").unlink()
    (tmp_path / "b" / GALLERY_FOLDER / "0.jpg").write_bytes(b"not an image")
    index = tmp_path / "c" / GALLERY_FOLDER / "gallery.json"
    index.write_text(index.read_text().replace('"image_id": 7', '"image_id": 8'))
    page = page_of(tmp_path)
    html = section(page).html
    assert [*{each["data-name"] for each in Elements(html).named("tr") if "data-name" in each}] == ["d"]
    assert [Path(fault.split(":")[0]).relative_to(tmp_path).as_posix() for fault in page.all_faults] == [
        "a/per_image/gallery/3.predicted.png",
        "b/per_image/gallery/0.jpg",
        "c/per_image/gallery",
    ]
    assert all(fault.endswith("; run segdet test again") for fault in page.all_faults)


def test_twenty_runs_with_24_large_images_stay_small_and_other_runs_are_named(tmp_path):
    for seed in range(MAX_RUNS + 1):
        evidence = random_detections(seed, images=24)
        repeats = np.repeat(np.arange(len(evidence.image)), 12)
        values = {
            name: getattr(evidence, name)[repeats]
            for name in ("image", "label", "score", "box", "match", "voc_match")
        }
        write_run(
            tmp_path / f"run-{seed:02d}", evidence=DetectionEvidence(**(vars(evidence) | values)), gallery=24
        )
    html = section(page_of(tmp_path)).html
    assert len(html.encode()) < 6_000_000
    assert f"Left out: run-{MAX_RUNS:02d}." in html
    panels = [each for each in Elements(html).named("figure") if "data-run" in each]
    assert len(panels) == 24 * MAX_RUNS
    assert sum("hidden" not in each for each in panels) == 24 * SHOWN
    assert "run-19" in html


def test_writing_a_page_does_not_import_torch(tmp_path):
    for task in ("detection", "segmentation", "localization"):
        write_run(tmp_path / task, task, metrics={"test/map": 0.5, "test/map_50": 0.5})
    code = """
        import sys
        from pathlib import Path
        from segdet.report.page import page_of, write_page
        folder = Path(sys.argv[1])
        write_page(page_of([folder]), folder / "report.html")
        print([name for name in ("torch", "lightning") if name in sys.modules])
    """
    result = subprocess.run(
        [sys.executable, "-c", inspect.cleandoc(code), str(tmp_path)], capture_output=True, text=True
    )
    assert (result.returncode, result.stdout.strip()) == (0, "[]"), result.stderr
    assert 'class="gallery"' in (tmp_path / "report.html").read_text()


def test_large_pictures_are_made_smaller(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery_data, "_BYTES", {"image": 70_000, "mask": 70_000})
    rng = np.random.default_rng(0)
    evidence = random_segmentation(images=3, classes=20)
    write_run(tmp_path / "run", evidence=evidence, task="segmentation", gallery=0)
    pictures = []
    for index, name in enumerate(evidence.file_names):
        entry = GalleryImage(index, int(evidence.image_ids[index]), name, 1.0)
        masks = rng.integers(0, 20, (2, 240, 320)).astype(np.uint8).repeat(2, 1).repeat(2, 2)
        pictures.append((entry, Pictures(rng.integers(0, 255, (480, 640, 3), np.uint8), *masks)))
    write_gallery(tmp_path / "run" / GALLERY_FOLDER, pictures)
    html = str(section(page_of(tmp_path)).html)
    for kind, count, limit in (("jpeg", 3, 95_000), ("png", 9, 150_000)):
        sizes = [len(each) for each in re.findall(rf"data:image/{kind};base64,([^\"]*)", html)]
        assert len(sizes) == count and sum(sizes) < limit
    assert re.search(r'viewBox="0 0 (\d+) (\d+)"', html).groups() == (
        "640",
        "480",
    )  # boxes keep their coordinates
