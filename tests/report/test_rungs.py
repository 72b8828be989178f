"""The ladder: every family has a rung with a sentence, a picture and its place."""

import inspect
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from segdet import detection, localization, segmentation
from segdet.report.ladder.rungs import RUNGS, rung_of
from segdet.report.ladder.symbols import HEIGHT, WIDTH
from segdet.runs.record import first_sentence
from segdet.task import Task

PACKAGES = {"segmentation": segmentation, "localization": localization, "detection": detection}
BASES = {"Segmenter", "Localizer", "Detector"}


def exported_families() -> list[tuple[str, str]]:
    found = []
    for task, package in PACKAGES.items():
        classes = ((name, getattr(package, name)) for name in package.__all__)
        found += [(task, name) for name, c in classes if issubclass(c, Task) and name not in BASES]
    return found


def test_the_rungs_are_those_of_the_exported_families() -> None:
    assert {(rung.task, rung.family) for rung in RUNGS} == set(exported_families())


def test_every_rung_has_its_own_place_and_name() -> None:
    assert [rung.order for rung in RUNGS] == list(range(len(RUNGS)))
    assert len({(rung.task, rung.name) for rung in RUNGS}) == len(RUNGS)
    tasks = [rung.task for rung in RUNGS]
    assert tasks == sorted(tasks, key=list(PACKAGES).index)


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
def test_the_idea_is_one_short_sentence(rung) -> None:
    assert 30 <= len(rung.idea) <= 100
    assert rung.idea == first_sentence(rung.idea) and rung.idea.endswith(".")
    assert (rung.year is None) == (rung.paper == "")


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
def test_pictures_are_small_svg_within_their_borders(rung) -> None:
    root = ElementTree.fromstring(rung.svg)
    assert len(rung.svg) < 12_000
    assert root.attrib["viewBox"] == f"0 0 {WIDTH} {HEIGHT}" and root[0].text.startswith(rung.name)
    for element in root.iter():
        for name in ("x", "x1", "cx"):
            assert 0 <= float(element.get(name, 0)) <= WIDTH
        for name in ("y", "y1", "cy"):
            assert 0 <= float(element.get(name, 0)) <= HEIGHT
        for side, start, limit in (("width", "x", WIDTH), ("height", "y", HEIGHT)):
            if element.tag.endswith("rect"):
                assert float(element.attrib[start]) + float(element.attrib[side]) <= limit
        for colour in (element.get("fill"), element.get("stroke")):
            assert colour in {None, "none", "currentColor", "#2f81d4", "#e07b16", "#1f9e78"}


def test_settings_select_among_the_rungs_of_a_family() -> None:
    assert rung_of("segmentation", "SlidingWindow", {"mode": "crops"}).name == "Sliding window"
    assert (
        rung_of("segmentation", "SlidingWindow", {"mode": "dense", "stride": 4}).name
        == "Sliding window, dense"
    )
    assert rung_of("detection", "SlidingWindowDetector").name == "Sliding window"


def test_a_family_of_the_user_follows_its_task_with_its_docstring() -> None:
    rung = rung_of("segmentation", "Mine", description="Segments with magic.")
    assert (rung.name, rung.idea, rung.published) == ("Mine", "Segments with magic.", None)
    assert "<ellipse" in rung.svg
    places = [r.order for r in RUNGS if r.task == "segmentation"]
    assert rung.order > max(places) and rung_of("detection", "Mine").order > rung.order
    assert rung_of("detection", "Mine").idea == ""


def test_names_of_classes_cannot_break_out_of_the_picture() -> None:
    rung = rung_of("detection", "<script>alert(1)</script>")
    assert "<script>" not in rung.svg


def test_the_rungs_are_read_without_torch() -> None:
    code = "import sys, segdet.report.ladder.rungs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_picture_is_drawn_for_a_rung() -> None:
    from segdet.report.ladder import pictures

    drawn = {rung.picture for rung in RUNGS}
    functions = [
        f for n, f in vars(pictures).items() if inspect.isfunction(f) and f.__module__ == pictures.__name__
        and not n.startswith(("_", "generic"))
    ]  # fmt: skip
    assert [f.__name__ for f in functions if f not in drawn] == []
