"""Intervals and paired differences in the tables of a report."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from simulated_evidence import Scenes, detection, draw_pixels, segmentation

from segdet.cli.report import main
from segdet.report.comparisons import Comparisons
from segdet.report.run_data import group_runs, load_runs
from segdet.report.statistics import bootstrap
from segdet.runs.evidence import EVIDENCE_NAME, write_evidence
from segdet.runs.record import Record
from segdet.util.errors import UserError

RECORD = Record(
    name="",
    task="detection",
    model="SSD",
    data="VOCDataModule",
    seed=0,
    status="finished",
    fingerprint="aaaa",
)
SCORES = ("map", "map_50", "map_75", "map_voc07", "map_voc12")


def put(
    root: Path,
    name: str,
    seed: int = 0,
    found: float = 0.7,
    scenes: int = 0,
    model: str = "SSD",
    images: int = 80,
) -> Path:
    """Write a tested run with evidence. Runs with the same ``scenes`` were tested on the same images."""
    folder = root / (f"{name}-seed{seed}" if seed else name)
    drawn = Scenes.draw(np.random.default_rng(scenes), images)
    evidence = detection(np.random.default_rng([seed, *name.encode()]), drawn, found)
    values = bootstrap(evidence, 1).values
    write_evidence(folder / EVIDENCE_NAME, evidence)
    metrics: dict[str, float | None] = {f"test/{score}": float(np.float32(values[score])) for score in SCORES}
    record = replace(RECORD, model=model, seed=seed, metrics=metrics, per_image=EVIDENCE_NAME)
    record.write(folder / "result.json")
    return folder


def change(folder: Path, **changes: object) -> None:
    replace(Record.read(folder / "result.json"), **changes).write(folder / "result.json")


def report(root: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main([str(root), "--no_html", *options]) == 0
    return capsys.readouterr().out


def rows(text: str, heading: str) -> list[list[str]]:
    """Return the rows of the table whose first column is ``heading``."""
    lines = text[text.index(f"| {heading} ") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in (lines[0], *lines[2:])]


def test_cells_have_an_interval_and_neighbours_a_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(4):
        put(tmp_path, "a", seed=seed, found=0.6)
        put(tmp_path, "b", seed=seed, found=0.9)
    put(tmp_path, "c", found=0.6)
    text = report(tmp_path, capsys)
    heading, *lines = rows(text, "run")
    cells = [line[heading.index("test/map_50")] for line in lines]
    number = r"0\.\d{3}"
    assert re.fullmatch(rf"{number} ± {number} \[{number}, {number}\]", cells[0])
    assert re.fullmatch(rf"{number} \[{number}, {number}\]", cells[2])
    heading, *lines = rows(text, "difference")
    assert heading == [
        "difference", "map", "95% interval", "P(better)", "P (Holm)", "sd of images", "sd of seeds",
    ]  # fmt: skip
    assert [line[0] for line in lines] == ["b minus a", "c minus b"]
    assert [line[3] for line in lines] == ["> 0.99", "< 0.01"]
    assert re.fullmatch(r"\+0\.\d{3}", lines[0][1])
    assert re.fullmatch(r"\[\+0\.\d{3}, \+0\.\d{3}\]", lines[0][2])
    assert lines[0][6] != "-" and lines[1][6] == "-"  # c has one seed
    assert "each run minus the one above it" in text and "docs/statistics.md" in text


def test_the_score_and_the_pairs_can_be_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "abc":
        put(tmp_path, name)
    everything = rows(report(tmp_path, capsys, "--pairs", "all", "--score", "ap/a"), "difference")
    assert [row[0] for row in everything] == ["difference", "b minus a", "c minus a", "c minus b"]
    assert everything[0][1] == "ap/a"
    nothing = report(tmp_path, capsys, "--pairs", "none")
    assert "minus" not in nothing and "[" in rows(nothing, "run")[1][2]
    with pytest.raises(UserError, match=r"--score: no run has 'map_5'; did you mean map"):
        main([str(tmp_path), "--no_html", "--score", "map_5"])


def test_a_single_pair_needs_no_correction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, "a")
    put(tmp_path, "b")
    assert "P (Holm)" not in rows(report(tmp_path, capsys), "difference")[0]


def test_rows_are_compared_in_the_order_of_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, "a", found=0.5)
    put(tmp_path, "b", found=0.9)
    assert rows(report(tmp_path, capsys, "--sort", "map"), "difference")[1][0] == "a minus b"


def test_runs_that_cannot_be_compared_are_listed_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, "a")
    change(put(tmp_path, "b"), fingerprint="bbbb")
    change(put(tmp_path, "c", images=70), fingerprint="bbbb")
    change(put(tmp_path, "no_evidence"), per_image=None)
    (put(tmp_path, "corrupt") / EVIDENCE_NAME).write_bytes(b"corrupt")
    change(put(tmp_path, "other_scores"), metrics={"test/map": 0.1})
    put(tmp_path, "two_sets")
    put(tmp_path, "two_sets", seed=1, images=70)
    text = report(tmp_path, capsys)
    assert "b minus a (they read different data)" in text
    assert (
        "c minus b (tests of different images (70 and 80) cannot be compared; test on the same images)"
        in text
    )
    assert "No interval (no evidence of the test; run segdet test to write it): corrupt, no_evidence." in text
    assert (
        "No interval (evidence and scores are from different tests; run segdet test again): other_scores."
        in text
    )
    assert "No interval (the seeds were tested on different images): two_sets." in text
    assert "corrupt, or not evidence" in text  # the fault of the file


def test_the_evidence_of_another_task_is_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, "a")
    random = np.random.default_rng(0)
    write_evidence(put(tmp_path, "b") / EVIDENCE_NAME, segmentation(random, draw_pixels(random, 5)))
    text = report(tmp_path, capsys)
    assert "No interval (no evidence of the test; run segdet test to write it): b." in text
    assert f"{EVIDENCE_NAME}: is of a segmentation run, not detection; run segdet test again" in text


def test_runs_without_any_evidence_have_a_table_without_intervals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        change(put(tmp_path, name), per_image=None)
    text = report(tmp_path, capsys)
    assert "[" not in text and "minus" not in text and "Brackets" not in text
    assert "No interval (no evidence of the test; run segdet test to write it): a, b." in text
    with pytest.raises(UserError, match="no run has evidence of a test to compare; run segdet test"):
        main([str(tmp_path), "--no_html", "--score", "map"])


def test_estimates_are_those_of_the_table(tmp_path: Path) -> None:
    put(tmp_path, "a")
    runs, _ = load_runs([tmp_path])
    (group,) = group_runs(runs)
    estimate = Comparisons([group]).estimate(group, "map")
    assert estimate is not None and estimate.mean == pytest.approx(group.values("test/map")[0], abs=1e-6)
    assert Comparisons([group]).estimate(group, "miou") is None
