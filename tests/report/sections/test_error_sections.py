"""The sections with scores of classes, gains of fixed errors and recall of proposals."""

import json
import re

import pytest
from random_evidence import random_detections
from random_runs import write_run

from segdet.metrics.detection_errors import KINDS, SPECIAL
from segdet.report.class_scores import class_scores
from segdet.report.detection_counts import detection_errors
from segdet.report.page_data import PageData
from segdet.report.run_data import load_runs
from segdet.report.sections import errors, per_class, proposals
from segdet.report.statistics import bootstrap, interval


def page_of(folder):
    runs, faults = load_runs([folder])
    assert not faults
    return PageData("page", [folder], runs)


def test_scores_of_classes_are_means_over_seeds(tmp_path):
    for seed, value in ((0, 0.4), (1, 0.5)):
        scores = {"test/map": value, "test/ap/cat": value, "test/ap/<b>": 0.9, "test/ap/none": None}
        write_run(tmp_path / f"ssd-seed{seed}", seed=seed, metrics=scores, per_image=False)
    page = page_of(tmp_path)
    (group,) = page.groups
    found = {each.name: each for each in class_scores(group, "test")}
    assert (found["cat"].mean, found["cat"].low, found["cat"].high) == pytest.approx((0.45, 0.4, 0.5))
    assert {*found} == {"cat", "<b>"}
    html = str(per_class.section(page).html)
    table = html[html.index("<table") :]
    assert re.findall(r'row"><bdi>(.*?)</bdi>', table) == ["&lt;b&gt;", "cat"]
    assert '0.450 <span class="note">[0.400, 0.500]</span>' in table and "<b>" not in html


def test_classes_have_intervals_where_there_is_evidence(tmp_path):
    evidence = random_detections(images=60, quality=0.8)
    once = bootstrap(evidence)
    scores = {f"test/{name}": value for name, value in once.values.items()}
    write_run(tmp_path / "ssd", evidence=evidence, metrics=scores)
    page = page_of(tmp_path)
    (group,) = page.groups
    found = class_scores(group, "test")
    assert [each.name for each in found] == evidence.class_names
    for each in found:
        expected = interval(each.mean, once.resampled[f"ap/{each.name}"])
        assert each.is_interval and (each.low, each.high) == (expected.low, expected.high)
        assert each.low < each.mean < each.high
    assert f"[{found[0].low:.3f}, {found[0].high:.3f}]" in str(per_class.section(page).html)


def test_localization_has_an_accuracy_of_each_class(tmp_path):
    evidence = write_run(tmp_path / "box_head", "localization", metrics={"test/loc_acc": 0.5})
    (group,) = page_of(tmp_path).groups
    found = {each.name: each.mean for each in class_scores(group, "test")}
    located = (evidence.label == evidence.predicted[:, 0]) & (evidence.iou >= 0.5)
    assert found == {
        name: pytest.approx(located[evidence.label == label].mean())
        for label, name in enumerate(evidence.class_names, 1)
    }
    assert per_class.section(page_of(tmp_path)) is not None


def test_gains_come_from_the_record_or_else_from_the_evidence(tmp_path):
    evidence = write_run(tmp_path / "evidence")
    recorded = {f"test/dap_{kind}": index / 100 for index, kind in enumerate((*KINDS, *SPECIAL))}
    write_run(tmp_path / "record", metrics=recorded | {"test/map_50": 0.875})
    write_run(tmp_path / "fcn", "segmentation")
    html = str(errors.section(page_of(tmp_path)).html)
    rows = re.findall(r'<tr data-run="(\w+)">(.*?)</tr>', html, re.DOTALL)
    values = {name: re.findall(r'class="number[^>]*>(-?[\d.]+)', row) for name, row in rows}
    gains = detection_errors(evidence).gains()
    expected = [detection_errors(evidence).ap(), *gains.values()]
    assert values["evidence"] == [f"{each:.3f}" for each in expected]
    assert values["record"] == [f"{each:.3f}" for each in (0.875, *recorded.values())]
    largest = max(*(gains[kind] for kind in KINDS), 0.05)
    bars = [float(each) for each in re.findall(r"--v:([\d.]+)", html)]
    assert bars[: len(KINDS)] == pytest.approx([max(gains[kind], 0) / largest for kind in KINDS], abs=1e-4)
    assert len(bars) == 2 * len(KINDS)


def test_recall_of_proposals_is_shown_for_detectors_that_have_them(tmp_path):
    write_run(tmp_path / "ssd", metrics={"test/map_50": 0.5})
    assert proposals.section(page_of(tmp_path)) is None
    scores = {"proposals": 212.5, "proposal_recall_50": 0.91, "proposal_recall_70": 0.66, "map_50": 0.7}
    write_run(tmp_path / "rcnn", metrics={f"test/{name}": value for name, value in scores.items()})
    html = str(proposals.section(page_of(tmp_path)).html)
    assert re.findall(r'<td class="number"[^>]*>([\d.]+)', html) == ["212.5", "0.910", "0.660", "0.700"]


def proposal_run(folder, **changes):
    scores = {"proposals": 212.5, "proposal_recall_50": 0.91, "proposal_recall_70": 0.66, "map_50": 0.7}
    write_run(folder, metrics={f"test/{name}": value for name, value in scores.items()})
    content = {
        "per_image": 212.5,
        "counts": [1, 100, 1000, None],
        "ious": [0.5, 0.7, 0.9],
        "recall": [[0.1, 0.05, 0.0], [0.8, 0.5, 0.1], [0.91, 0.66, 0.2], [0.91, 0.66, 0.2]],
    }
    (folder / "errors.json").write_text(json.dumps({"proposals": content | changes}))


def test_recall_by_number_of_proposals_and_iou_is_drawn(tmp_path):
    proposal_run(tmp_path / "rcnn")
    page = page_of(tmp_path)
    html = str(proposals.section(page).html)
    assert html.count("<figure") == 2 and not page.all_faults
    by_count, by_iou = sorted(page.charts.columns().values(), key=lambda each: "proposals" not in each)
    # More proposals than there are on average are left out; the last point stands for all.
    assert by_count["proposals"] == [1, 100, 212.5] * 2
    assert by_count["recall"] == [0.1, 0.8, 0.91, 0.05, 0.5, 0.66]
    assert by_iou["IoU"] == [0.5, 0.7, 0.9] and by_iou["recall"] == [0.91, 0.66, 0.2]


def test_a_corrupt_analysis_is_listed(tmp_path):
    proposal_run(tmp_path / "rcnn", recall=[[0.5]])
    page = page_of(tmp_path)
    assert "<figure" not in str(proposals.section(page).html)
    (fault,) = page.all_faults
    assert fault.startswith(f"{tmp_path / 'rcnn/errors.json'}: cannot be used")


def test_sections_without_data_are_left_out(tmp_path):
    write_run(tmp_path / "fcn", "segmentation")
    page = page_of(tmp_path)
    assert errors.section(page) is proposals.section(page) is per_class.section(page) is None
    assert json.loads((tmp_path / "fcn/result.json").read_text())["task"] == "segmentation"
