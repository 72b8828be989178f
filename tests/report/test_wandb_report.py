"""The report on Weights & Biases: records, tables and the description of the workspace."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_runs import write_run

from segdet.cli.report import main
from segdet.report.ladder.rungs import RUNGS
from segdet.report.page import page_of
from segdet.report.wandb_records import picture_pixels, tables_of
from segdet.report.wandb_views import can_create_views, check_view, view_of
from segdet.runs.record import Cost
from segdet.util.errors import UserError


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_DISABLED", "WANDB_BASE_URL", "NETRC", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, folder in (("HOME", "home"), ("WANDB_CACHE_DIR", "cache"), ("WANDB_DATA_DIR", "data")):
        monkeypatch.setenv(name, str(tmp_path / folder))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    cost = Cost(ms_per_image=4.0, stages_ms={"network": 3.0, "nms": 1.0})
    scores = {"test/map": 0.5, "test/ap/star": 0.4, "test/dap_missed": 0.03}
    write_run(tmp_path / "runs/ssd", metrics=scores, cost=cost, points=20)
    write_run(tmp_path / "runs/ssd-seed1", score=0.52, seed=1, points=20)
    write_run(tmp_path / "runs/rcnn", model="RCNN", score=0.6)
    write_run(tmp_path / "runs/fcn", "segmentation", "FCN", 0.8)
    return tmp_path / "runs"


def inspect(file: Path, *options: str) -> str:
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", *options, "--json", str(file)]
    return subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=True
    ).stdout


@pytest.mark.slow
def test_runs_and_tables_are_recorded_offline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tmp_path / "runs"
    write_run(runs / "ssd-seed1", score=0.52, seed=1, points=20)
    write_run(runs / "rcnn", model="RCNN", score=0.6, points=20)
    arguments = ["--wandb", "--wandb_project", "ladders", "--output", str(runs / "table.md")]
    assert main([str(runs), *arguments]) == 0
    said = capsys.readouterr().err
    assert "recorded 2 runs and 3 tables offline; upload them with: wandb sync" in said
    files = sorted((runs / "wandb").glob("offline-run-*/*.wandb"))
    records: dict[str, dict[str, Any]] = {}
    for file in files:
        about = json.loads(inspect(file, "--summary"))
        records[about["name"]] = about | {"file": file}
    assert set(records) == {"ssd-seed1", "rcnn", "report runs"}
    seed1 = records["ssd-seed1"]
    labels = {name: seed1["config"][name] for name in ("rung", "task", "seed", "family", "run")}
    assert labels == {"rung": "SSD", "task": "detection", "seed": 1, "family": "SSD", "run": "ssd"}
    assert (seed1["project"], seed1["tags"]) == ("ladders", ["detection", "SSD"])
    assert seed1["summary"]["test/map"] == 0.52 and seed1["summary"]["trainer/global_step"] == 199
    assert "train/loss" in inspect(seed1["file"])
    tables = records["report runs"]["summary"]
    kinds = {name: value["_type"] for name, value in tables.items() if isinstance(value, dict)}
    assert {name for name, kind in kinds.items() if kind == "table-file"} == {
        "ladder/detection", "runs/detection", "stages"
    }  # fmt: skip
    folder = records["report runs"]["file"].parent / "files"
    ladder = json.loads((folder / tables["ladder/detection"]["path"]).read_text())
    assert [row[0] for row in ladder["data"]] == ["R-CNN", "SSD"]
    pictures = tables["pictures"]
    assert pictures["captions"] == [
        f"{rung.name}: {rung.idea}" for rung in RUNGS if rung.name in ("R-CNN", "SSD")
    ]
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in pictures["filenames"])
    assert "The ladder" in (folder / tables["report"]["path"]).read_text()
    # A second report replaces the records.
    assert main([str(runs), *arguments]) == 0
    assert len(list((runs / "wandb").glob("offline-run-*"))) == 3


def test_tables_have_the_values_of_the_page(runs: Path) -> None:
    tables = {table.name: table for table in tables_of(page_of([runs]))}
    ladder = tables["ladder/detection"]
    rows = [dict(zip(ladder.columns, row, strict=True)) for row in ladder.rows]
    assert [(row["run"], row["map"]) for row in rows] == [("rcnn", 0.6), ("ssd", 0.51)]
    assert rows[1]["difference"] == pytest.approx(-0.09)
    assert [row for row in tables["stages"].rows if row[0] == "ssd"] == [
        ["ssd", "network", 3.0], ["ssd", "nms", 1.0]
    ]  # fmt: skip
    assert tables["errors"].rows == [["ssd", "missed", 0.03]]
    assert tables["per_class"].rows == [["ssd", "star", 0.4, None, None]]
    runs_table = tables["runs/detection"]
    assert [row[:4] for row in runs_table.rows] == [
        ["rcnn", "R-CNN", 0, "finished"], ["ssd", "SSD", 0, "finished"], ["ssd-seed1", "SSD", 1, "finished"]
    ]  # fmt: skip


def test_pictures_are_drawn_on_white() -> None:
    pixels = picture_pixels(RUNGS[0].svg)
    assert pixels.shape == (200, 320, 3) and pixels.dtype == np.uint8
    assert (pixels[0, 0] == 255).all() and pixels.min() < 60


@pytest.mark.skipif(not can_create_views(), reason="wandb-workspaces is not installed")
def test_the_workspace_shows_every_table_and_task(runs: Path, tmp_path: Path) -> None:
    page = page_of([runs])
    tables = [table.name for table in tables_of(page)]
    view = view_of(page, "ladders", tables)
    check_view(view)
    view.write(tmp_path / "view.json")
    described = json.loads((tmp_path / "view.json").read_text())
    panels = [panel for section in described["sections"] for panel in section["panels"]]
    assert sorted(p["metric"] for p in panels if p["kind"] == "table") == sorted(tables)
    assert [section["title"] for section in described["sections"]] == ["Segmentation", "Detection", "Details"]
    assert {p["x"] for p in panels if p["kind"] == "scatter"} == {
        "cost/ms_per_image", "cost/flops", "cost/train_seconds"
    }  # fmt: skip
    assert "**R-CNN**" in described["sections"][1]["text"] and "YOLO" not in described["sections"][1]["text"]


def test_a_disabled_wandb_is_reported(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with pytest.raises(
        UserError, match="--wandb: WANDB_MODE or WANDB_DISABLED turns Weights & Biases off; unset it"
    ):
        main([str(runs), "--wandb", "--no_html", "--output", str(runs / "table.md")])
    assert not (runs / "wandb").exists()
