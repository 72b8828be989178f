"""The rows of the ladder: their order, what they are compared with, and numbers that were not measured."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from random_evidence import random_detections
from report_runs import write_run

from segdet.profiling.result import PROFILE_NAME, Distribution, Estimate, Latency, Memory, Profile, Stages
from segdet.report.ladder.rows import DASH, Ladder, ladders_of, probability, ratio, signed
from segdet.report.page import page_of, render_page
from segdet.report.statistics import bootstrap, estimate, holm, paired_difference
from segdet.runs.evidence import EVIDENCE_NAME, write_evidence
from segdet.runs.record import Cost, Record


def ladders(folder: Path) -> list[Ladder]:
    page = page_of([folder])
    return ladders_of(page.groups, page.split_of)


def settings(**arguments: object) -> dict[str, object]:
    return {"model": {"init_args": arguments}}


def test_rows_follow_the_ladder_and_are_compared_with_the_rung_above(tmp_path: Path) -> None:
    write_run(tmp_path / "a", model="SSD", score=0.6, cost=Cost(ms_per_image=5.0))
    write_run(tmp_path / "b", model="RCNN", score=0.7, cost=Cost(ms_per_image=60.0))
    write_run(tmp_path / "c", model="FastRCNN", score=0.75, cost=Cost(ms_per_image=20.0))
    (ladder,) = ladders(tmp_path)
    assert [row.rung.name for row in ladder.rows] == ["R-CNN", "Fast R-CNN", "SSD"]
    assert [row.values["difference"].text for row in ladder.rows] == ["", "+0.050", "-0.150"]
    assert ladder.rows[2].values["difference"].hint == "a minus c"
    assert [row.values["ms_per_image"].notes for row in ladder.rows] == [
        (),
        ("3.0x faster",),
        ("4.0x faster",),
    ]
    assert (ladder.score, ladder.split, ladder.title) == ("map", "test", "")


def test_runs_of_one_rung_show_their_settings_and_are_compared_with_the_first(tmp_path: Path) -> None:
    write_run(tmp_path / "a", model="FastRCNN", score=0.5, config=settings(pooling="pool", stride=8))
    write_run(tmp_path / "b", model="FastRCNN", score=0.6, config=settings(pooling="align", stride=8))
    write_run(
        tmp_path / "c", model="FastRCNN", score=0.7, config=settings(pooling="align", stride=8, svd=True)
    )
    write_run(tmp_path / "d", model="FasterRCNN", score=0.8, config=settings(stride=8))
    rows = ladders(tmp_path)[0].rows
    assert [row.is_first for row in rows] == [True, False, False, True]
    assert [row.settings for row in rows] == [
        "pooling pool, svd null", "pooling align, svd null", "pooling align, svd true", ""
    ]  # fmt: skip
    assert [row.values["difference"].text for row in rows] == ["", "+0.100", "+0.200", "+0.300"]


def test_the_mode_of_a_sliding_window_selects_its_rung(tmp_path: Path) -> None:
    for name, mode in (("a", "dense"), ("b", "crops")):
        write_run(tmp_path / name, "segmentation", "SlidingWindow", config=settings(mode=mode))
    rows = ladders(tmp_path)[0].rows
    assert [(row.group.name, row.rung.name) for row in rows] == [
        ("b", "Sliding window"), ("a", "Sliding window, dense")
    ]  # fmt: skip
    assert all(row.is_first for row in rows)


def test_numbers_that_were_not_measured_name_the_command(tmp_path: Path) -> None:
    write_run(tmp_path / "tested")
    write_run(tmp_path / "it's", model="YOLOX", metrics={"val/map": 0.4}, cost=Cost(parameters=7))
    rows = ladders(tmp_path)[0].rows
    for key in ("score", "ms_per_image", "flops", "passes_per_image"):
        value = rows[1].values[key]
        assert (value.number, value.text) == (None, DASH)
        assert value.hint.endswith(f"""segdet test --ckpt_path '{tmp_path}/it'"'"'s'""")
    assert rows[1].values["difference"].text == DASH
    html = render_page(page_of([tmp_path]))
    assert html.count(f'tabindex="0">{DASH}</abbr>') >= 5


def write_tested(folder: Path, model: str, quality: float, seed: int = 0, **options: Any) -> None:
    """Write a detection run with random evidence and the scores that follow from it."""
    evidence = random_detections(seed=seed, quality=quality, **options)
    scores = {f"test/{name}": value for name, value in bootstrap(evidence, 1).values.items()}
    write_run(folder, model=model, seed=seed, metrics=scores, per_image=EVIDENCE_NAME)
    write_evidence(folder / EVIDENCE_NAME, evidence)


def test_intervals_and_differences_are_those_of_the_statistics(tmp_path: Path) -> None:
    for name, model, quality in (("a", "RCNN", 0.3), ("b", "FastRCNN", 0.9), ("c", "SSD", 0.9)):
        write_tested(tmp_path / name, model, quality, images=60)
    page = page_of([tmp_path])
    a, b, c = ([bootstrap(run.evidence)] for run in page.runs if run.evidence)
    first, second, third = ladders(tmp_path)[0].rows
    interval = estimate(a, "map").images
    score = first.values["score"]
    assert (score.low, score.high) == (interval.low, interval.high)
    assert score.notes == (f"[{interval.low:.3f}, {interval.high:.3f}]",)
    clear, same = second.values["difference"], third.values["difference"]
    expected = paired_difference(b, a, "map")
    assert (clear.low, clear.high, clear.p_better) == (
        expected.images.low, expected.images.high, expected.p_better
    )  # fmt: skip
    assert clear.notes == (f"[{clear.low:+.3f}, {clear.high:+.3f}]", "P(better) > 0.99")
    assert (clear.is_clear, same.is_clear) == (True, False)
    p_values = holm([expected.p_value, paired_difference(c, b, "map").p_value])
    assert f"P-value {p_values[0]:.2g} after Holm's correction for 2 comparisons" in clear.hint
    html = render_page(page)
    assert html.count('class="unclear"') == 1 and html.count('class="interval"') >= 3


def test_runs_without_evidence_or_on_other_images_have_no_interval(tmp_path: Path) -> None:
    write_tested(tmp_path / "a", "RCNN", 0.5, images=60)
    write_tested(tmp_path / "b", "FastRCNN", 0.5, images=50)
    write_run(tmp_path / "c", score=0.5)
    first, second, third = ladders(tmp_path)[0].rows
    assert first.values["score"].low is not None
    other = second.values["difference"]
    assert (other.notes, other.low, other.is_clear) == ((), None, None)
    assert "tests of different images" in other.hint
    assert (third.values["score"].text, third.values["score"].notes) == ("0.500", ())
    assert third.values["score"].hint == f"No interval: segdet test --ckpt_path {tmp_path}/c"
    assert third.values["difference"].notes == ()


def test_runs_of_other_data_and_scores_of_another_test_have_no_interval(tmp_path: Path) -> None:
    write_tested(tmp_path / "a", "RCNN", 0.5, images=60)
    write_tested(tmp_path / "b", "FastRCNN", 0.6, images=60)
    write_tested(tmp_path / "c", "SSD", 0.7, images=60)
    record = Record.read(tmp_path / "b" / "result.json")
    replace(record, fingerprint="other data").write(tmp_path / "b" / "result.json")
    record = Record.read(tmp_path / "c" / "result.json")
    replace(record, metrics=record.metrics | {"test/map": 0.987}).write(tmp_path / "c" / "result.json")
    _, second, third = ladders(tmp_path)[0].rows
    other_data = second.values["difference"]
    assert (other_data.low, other_data.p_better, other_data.is_clear) == (None, None, None)
    assert other_data.hint.endswith("no interval: they read different data")
    assert third.values["score"].low is None and "are from different tests" in third.values["score"].hint
    assert third.values["difference"].low is None


def write_profile(folder: Path, ms: float) -> None:
    estimate = Estimate(ms, ms - 0.5, ms + 0.5)
    Profile(
        name="ssd", source="", model="SSD", task="detection", data="", weights="", device="cpu", precision="",
        images=[], sizes=[], parameters=3_000_000, trainable_parameters=0, flops=Distribution([1e9, 3e9]), uncounted=[],
        passes=Distribution([1.0, 2.0]), latency=Latency(estimate, estimate, estimate, 80, 2, 0.02, True, ms),
        throughput=None, stages=Stages({}, ms, 1), memory=Memory(120.0, 20.0, 4, "tensors"),
    ).write(folder / PROFILE_NAME)  # fmt: skip


def test_times_of_profiles_and_of_tests_are_not_compared_with_each_other(tmp_path: Path) -> None:
    write_run(tmp_path / "a", model="RCNN", cost=Cost(ms_per_image=60.0))
    write_run(tmp_path / "b", model="SSD", cost=Cost(ms_per_image=6.0))
    write_profile(tmp_path / "a", ms=70.0)
    first, second = ladders(tmp_path)[0].rows
    assert [row.values["ms_per_image"].text for row in (first, second)] == ["60.0", "6.00"]
    assert first.values["flops"].text == "2.00"  # the test has not measured it
    write_profile(tmp_path / "b", ms=7.0)
    first, second = ladders(tmp_path)[0].rows
    assert [row.values["ms_per_image"].text for row in (first, second)] == ["70.0", "7.00"]
    assert second.values["ms_per_image"].notes == ("10x faster",)
    assert "95%: 6.5 to 7.5" in second.values["ms_per_image"].hint
    found = [second.values[key].text for key in ("passes_per_image", "flops", "parameters", "peak_memory_mb")]
    assert found == ["1.5", "2.00", "3.00", "120"]
    assert second.values["flops"].hint == "segdet profile: 1 to 3 by image"


def test_seeds_share_a_row(tmp_path: Path) -> None:
    for seed, score in ((0, 0.5), (1, 0.6)):
        write_run(tmp_path / f"ssd-seed{seed}", score=score, seed=seed)
    (row,) = ladders(tmp_path)[0].rows
    assert (row.values["score"].text, row.values["score"].notes) == ("0.550", ("± 0.071",))


def test_other_data_and_tasks_have_their_own_ladders(tmp_path: Path) -> None:
    for name, root in (("a", "data/bccd"), ("b", "data/shapes")):
        write_run(tmp_path / name, config={"data": {"init_args": {"root": root}}})
    write_run(tmp_path / "c", "segmentation", "FCN")
    found = [(ladder.title, [row.group.name for row in ladder.rows]) for ladder in ladders(tmp_path)]
    assert found == [
        ("Segmentation", ["c"]), ("Detection on data/bccd", ["a"]), ("Detection on data/shapes", ["b"])
    ]  # fmt: skip


def test_a_family_of_the_user_is_last_with_its_description(tmp_path: Path) -> None:
    write_run(tmp_path / "a", model="Mine", description="Finds <b>everything</b>.")
    write_run(tmp_path / "b", model="DETR")
    html = render_page(page_of([tmp_path]))
    assert "Finds &lt;b&gt;everything&lt;/b&gt;." in html
    assert html.index('class="rung"') < html.index(">DETR<") < html.index(">Mine<")


@pytest.mark.parametrize(
    ("value", "before", "text"),
    [(1, 62, "62x faster"), (1, 9.94, "9.9x faster"), (15, 10, "1.5x slower"), (1, 1.04, "as fast")],
)
def test_ratios_of_times_are_in_words(value: float, before: float, text: str) -> None:
    assert ratio(value, before) == text


def test_numbers_that_round_to_their_limits() -> None:
    assert [signed(value) for value in (-0.0004, 0.0004, 0.0006, -0.0006)] == [
        "0.000",
        "0.000",
        "+0.001",
        "-0.001",
    ]
    assert [probability(value) for value in (0.0, 0.0049, 0.006, 0.5, 0.994, 0.9951, 1.0)] == [
        "< 0.01", "< 0.01", "0.01", "0.50", "0.99", "> 0.99", "> 0.99"
    ]  # fmt: skip
