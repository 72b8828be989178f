"""The sections of the HTML page that compare runs, and the placement of labels in charts."""

import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from report_runs import write_run

from segdet.launch.sweep_history import read_history
from segdet.report.charts import HUES, columns_of, style_of
from segdet.report.label_placement import CHARACTER, LINE, place_labels
from segdet.report.page import page_of
from segdet.report.page_data import PageData
from segdet.report.run_data import Curve, load_runs, read_curves
from segdet.report.sections import budget, settings, stages, sweep, tradeoffs
from segdet.report.sections.curves import downsample, means_of
from segdet.report.sections.settings import differing_settings
from segdet.report.sections.sweep import positions
from segdet.report.sections.tradeoffs import Point, pareto_front
from segdet.report.watch import watch_page
from segdet.runs.record import Cost, Record
from segdet.util.errors import UserError


def point(cost: float, score: float) -> Point:
    return Point(SimpleNamespace(name=f"{cost}"), cost, score)  # type: ignore[arg-type]


def test_the_front_has_the_runs_that_no_run_beats_in_both() -> None:
    cheap, good, worse, equal = point(1, 0.2), point(5, 0.8), point(6, 0.7), point(5, 0.6)
    assert pareto_front([worse, good, equal, cheap]) == [cheap, good]
    assert pareto_front([point(1, 0.5), point(2, 0.5)])[-1].cost == 1  # an equal score at a higher cost


def test_labels_overlap_neither_each_other_nor_points() -> None:
    random = np.random.default_rng(0)
    points = [tuple(xy) for xy in random.uniform((0, 0), (280, 260), (14, 2)).tolist()]
    texts = [f"detector_{number}" for number in range(14)]
    labels = place_labels(points, texts, 280, 260)
    boxes = []
    for (x, y), text, label in zip(points, texts, labels, strict=True):
        if label is not None:
            size = CHARACTER * len(text)
            left = x + label.dx - {"left": 0, "right": size, "center": size / 2}[label.align]
            boxes.append((left, y + label.dy - LINE / 2, left + size, y + label.dy + LINE / 2))
    assert len(boxes) >= 12
    for index, one in enumerate(boxes):
        for other in [*boxes[:index], *((x - 1, y - 1, x + 1, y + 1) for x, y in points)]:
            assert not (one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3])


def test_styles_repeat_a_colour_with_another_shape() -> None:
    styles = [style_of(position) for position in range(3 * HUES)]
    assert len({style.colour for style in styles}) == HUES
    assert len({(style.colour, style.shape) for style in styles}) == len(styles)


def test_downsampling_keeps_the_ends_and_the_extremes() -> None:
    values = np.random.default_rng(0).normal(size=5000)
    values[[1234, 4321]] = 50.123456789, -50.123456789
    curve = Curve(np.arange(5000), np.arange(5000) * 0.5, values)
    small = downsample(curve, 200)
    assert len(small) <= 200 and {0, 1234, 4321, 4999} <= set(small.steps.tolist())
    assert (small.values.min(), small.values.max()) == (values.min(), values.max())
    assert np.array_equal(small.values, values[small.steps])
    assert downsample(curve, 5000) is curve
    means = means_of(curve, 50)
    assert len(means) == 50 and means.values[0] == pytest.approx(values[:100].mean())


def test_lines_with_damaged_numbers_are_left_out_of_a_curve(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,train/loss\n0,1,0.5\n0,1e300,0.4\n0,inf,0.3\n0,2,x\n0,3,0.2\n")
    assert read_curves(path, {})["train/loss"].steps.tolist() == [1, 3]


def test_the_time_of_a_curve_excludes_pauses(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    rows = ["0,1,1010,5.0", "0,2,1020,4.0", "1,3,2005,3.0", "1,4,2015,2.0", "1,4,20"]
    path.write_text("\n".join(["epoch,step,time,train/loss", *rows]))
    parts = {"started": "1970-01-01T00:16:40+00:00", "resumed": [{"started": "1970-01-01T00:33:20+00:00"}]}
    curve = read_curves(path, parts)["train/loss"]
    assert curve.steps.tolist() == [1, 2, 3, 4] and curve.values.tolist() == [5.0, 4.0, 3.0, 2.0]
    assert curve.seconds.tolist() == [10.0, 20.0, 25.0, 35.0]
    path.write_text("epoch,step,train/loss\n0,1,5.0\n")  # a run of an earlier version
    assert np.isnan(read_curves(path, parts)["train/loss"].seconds).all()


def test_settings_are_compared_among_the_runs_that_have_them() -> None:
    configs = [{"lr": 1, "width": 2, "scales": [1]}, {"lr": 3, "width": 2}, {"lr": 1, "anchors": 9}]
    assert differing_settings(configs) == (["lr"], 3)


def test_the_seed_and_the_folder_are_no_settings(tmp_path: Path) -> None:
    write_run(tmp_path / "a", config={"run_dir": "a"})
    write_run(tmp_path / "b", seed=3, config={"run_dir": "b", "trainer": {"max_epochs": 9}})
    section = settings.section(page_of([tmp_path]))
    assert section is not None and "max_epochs" in section.html
    assert "run_dir" not in section.html and "seed_everything" not in section.html


def test_budgets_are_runs_that_differ_only_in_their_length(tmp_path: Path) -> None:
    for epochs, score in ((1, 0.4), (5, 0.6), (9, 0.7)):
        write_run(tmp_path / f"ssd{epochs}", score=score, epochs=epochs, points=epochs * 20)
    wide: dict[str, Any] = {"model": {"class_path": "segdet.detection.SSD", "init_args": {"width": 9}}}
    write_run(tmp_path / "wide", config=wide)
    page = page_of([tmp_path])
    families = budget.families_of(page.groups)
    assert [[group.name for group in family.groups] for family in families] == [
        ["ssd1", "ssd5", "ssd9"], ["wide"]
    ]  # fmt: skip
    section = budget.section(page)
    assert section is not None and "by training budget" in section.html


def test_one_budget_is_not_shown_alone(tmp_path: Path) -> None:
    write_run(tmp_path / "ssd")
    write_run(tmp_path / "yolox", model="YOLOX")
    section = budget.section(page_of([tmp_path]))
    assert section is not None and "No model for detection was trained with several budgets" in section.html


def test_sections_without_data_are_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / "ssd", cost=Cost())
    page = page_of([tmp_path])
    assert stages.section(page) is None and tradeoffs.section(page) is None and settings.section(page) is None


def test_texts_of_charts_are_stored_once() -> None:
    rows = [{"run": "a", "x": 1.0}, {"run": "b", "x": None}, {"run": "a", "x": 3.0}]
    assert columns_of(rows) == {"run": {"texts": ["a", "b"], "at": [0, 1, 0]}, "x": [1.0, None, 3.0]}


def test_positions_on_an_axis() -> None:
    assert positions([0.001, 0.1, 10.0]) == pytest.approx([0, 0.5, 1])  # by the logarithm
    assert positions([1, 2, 5]) == pytest.approx([0, 0.25, 1])
    assert positions(["b", "a", "b"]) == [1, 0, 1] and positions([2, 2]) == [0.5, 0.5]


def test_a_run_without_a_record_has_the_values_so_far(tmp_path: Path) -> None:
    write_run(tmp_path / "ssd", score=0.7, finished=False)
    ((run,), faults) = load_runs([tmp_path])
    assert (run.task, run.record.model, run.state, faults) == ("detection", "SSD", "new", [])
    assert run.record.metrics["val/map"] == pytest.approx(0.7) and run.record.steps == 500


def test_the_pause_between_pages_grows_with_the_time_to_write_one(tmp_path: Path) -> None:
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        raise KeyboardInterrupt

    for times in ((0.0, 0.1), (0.0, 20.0)):
        with pytest.raises(KeyboardInterrupt):
            watch_page([tmp_path], tmp_path / "report.html", 5.0, pause, iter(times).__next__)
    assert pauses == [5.0, 80.0]


def test_ctrl_c_while_a_page_is_written_leaves_one_that_does_not_load_itself_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages: list[float | None] = []

    def interrupted(page: PageData, path: Path) -> None:
        pages.append(page.refresh)
        if len(pages) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("segdet.report.watch.write_page", interrupted)
    write_run(tmp_path / "ssd", finished=False)
    with pytest.raises(KeyboardInterrupt):
        watch_page(
            [tmp_path], tmp_path / "page.html", 5.0, lambda _: write_run(tmp_path / "b", finished=False)
        )
    assert pages == [5.0, 5.0, None]


def test_the_page_is_watched_until_all_runs_have_ended(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "ssd", finished=False)
    path, pages = tmp_path / "page.html", []

    def end_of_the_run(_: float) -> None:
        pages.append(path.read_text(encoding="utf-8"))
        record: Record = write_run(tmp_path / "other" / "ssd", score=0.7)
        record.write(tmp_path / "runs" / "ssd" / "result.json")

    watch_page([tmp_path / "runs"], path, sleep=end_of_the_run)
    (first,) = pages
    assert 'http-equiv="refresh"' in first and "data-refresh" in first
    last = path.read_text(encoding="utf-8")
    assert 'http-equiv="refresh"' not in last and "data-refresh=" not in last.split("<script")[0]


def test_a_file_that_is_no_sweep_is_reported(tmp_path: Path) -> None:
    write_run(tmp_path / "ssd")
    assert read_history(tmp_path) is None
    sqlite3.connect(tmp_path / "trials.db").close()
    with pytest.raises(UserError, match="not the trials of a sweep"):
        read_history(tmp_path)
    page = page_of([tmp_path])
    assert sweep.section(page) is None and "trials.db" in page.faults[0]


def test_a_sweep_has_its_history_importances_and_parameters(tmp_path: Path) -> None:
    study = optuna.create_study(
        storage=f"sqlite:///{tmp_path / 'trials.db'}", study_name=tmp_path.name, direction="maximize"
    )
    study.set_user_attr("settings", {"metric": {"name": "val/map", "goal": "maximize"}})
    distributions = {"model.optim.lr": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True)}
    for number, rate in enumerate((1e-4, 1e-3, 1e-2, 3e-2, 1e-1)):
        point = {"model.optim.lr": rate}
        attributes = {"parameters": point, "claim": {"owner": "", "until": 0.0, "attempts": 1}}
        score = 0.5 + number / 10
        study.add_trial(
            optuna.trial.create_trial(
                params=point, distributions=distributions, value=score, user_attrs=attributes
            )
        )
        write_run(tmp_path / f"trial-{number:03d}", score=score)
    history = read_history(tmp_path)
    assert history is not None
    assert (history.metric, history.goal, history.parameters) == ("val/map", "maximize", ["model.optim.lr"])
    assert [trial.score for trial in history.trials] == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9])
    section = sweep.section(page_of([tmp_path]))
    assert section is not None and section.html.count("<figure") == 3
    table = section.html.split("<table")[1]
    assert table.index("trial-004") < table.index("trial-000")  # the best trial is first
