import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from segdet.cli.report import main
from segdet.metrics import DetectionScores
from segdet.metrics.boundary import BoundaryScores
from segdet.report.table import ERROR_KINDS, SCORES, find_records, table
from segdet.runs.record import Cost, Record
from segdet.util.errors import UserError

FCN = Record(
    name="fcn",
    task="segmentation",
    model="FCN",
    backbone="resnet18",
    data="VOCDataModule",
    seed=0,
    status="finished",
    metrics={"val/miou": 0.7, "test/miou": 0.5, "test/pixel_acc": 0.9},
    cost=Cost(11_200_000, 1_234_000_000, 12.34, 1.0, 61.0, disk_mb=2.5),
    hardware={"cpu": "X", "cores": 2, "gpus": [], "host": "secret", "processes": 1},
    fingerprint="aaaa",
    command="segdet fit --config configs/fcn.yaml",
)
SSD = replace(
    FCN,
    name="ssd",
    task="detection",
    model="SSD",
    metrics={"test/map": 0.4, "test/map_50": 0.7},
    cost=replace(FCN.cost, passes_per_image=1234567.0),
    command="segdet fit --config configs/ssd.yaml",
)


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|-")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def put(root: Path, *records: Record) -> None:
    for record in records:
        (root / record.name).mkdir(parents=True)
        (root / record.name / "provenance.json").write_text("{}")
        record.write(root / record.name / "result.json")


def test_one_table_for_each_task_with_its_scores_and_costs() -> None:
    text = table([SSD, FCN])
    costs = ["parameters (M)", "GFLOPs", "ms per image", "passes per image", "training (min:s)", "disk (MB)"]
    assert rows(text) == [
        ["run", "model", "backbone", "test/miou", "test/pixel_acc", *costs],
        ["fcn", "FCN", "resnet18", "0.500", "0.900", "11.2", "1.23", "12.3", "1", "1:01", "2.50"],
        ["run", "model", "backbone", "test/map", "test/map_50", *costs],
        ["ssd", "SSD", "resnet18", "0.400", "0.700", "11.2", "1.23", "12.3", "1234567", "1:01", "2.50"],
    ]
    assert text.index("### Segmentation") < text.index("### Detection")
    assert "Hardware: X (2 cores).\n" in text and "secret" not in text
    assert "```\nsegdet fit --config configs/fcn.yaml" not in text.split("### Detection")[0]
    assert "segdet fit --config configs/fcn.yaml" in text and "segdet fit --config configs/ssd.yaml" in text


def test_boundaries_and_masks_have_columns_if_a_run_has_them() -> None:
    """Tests of segmentation have ``bf`` and ``boundary_iou``, and tests of Mask R-CNN have ``mask_map``."""
    unet = replace(FCN, name="unet", metrics={"test/miou": 0.6, "test/bf": 0.7, "test/boundary_iou": 0.4})
    mask = replace(SSD, name="mask", metrics=SSD.metrics | {"test/mask_map": 0.3, "test/mask_map_50": 0.6})
    fcn_head, fcn, with_contours, ssd_head, ssd, with_masks = rows(table([FCN, unet, SSD, mask]))
    assert fcn_head[3:7] == ["test/miou", "test/pixel_acc", "test/bf", "test/boundary_iou"]
    assert (fcn[5:7], with_contours[5:7]) == (["-", "-"], ["0.700", "0.400"])
    assert ssd_head[3:7] == ["test/map", "test/map_50", "test/mask_map", "test/mask_map_50"]
    assert (ssd[5:7], with_masks[5:7]) == (["-", "-"], ["0.300", "0.600"])
    by_contours = rows(
        table([FCN, unet, replace(unet, name="best", metrics={"test/miou": 0.1, "test/bf": 0.8})], "bf")
    )
    assert [row[0] for row in by_contours[1:]] == ["best", "unet", "fcn"]


def test_every_column_is_a_score_that_is_computed() -> None:
    assert set(SCORES["segmentation"]) <= set(BoundaryScores(["a"]).compute())
    assert set(SCORES["detection"]) <= set(DetectionScores(["a"], masks=True).compute())


def test_stages_have_a_separate_table() -> None:
    one = replace(SSD, cost=replace(SSD.cost, stages_ms={"network": 10.0, "warps": 2.0, "nms": 0.5}))
    seed = replace(
        one, name="ssd-seed1", seed=1, cost=replace(SSD.cost, stages_ms={"network": 20.0, "nms": 0.5})
    )
    other = replace(one, name="rcnn", cost=replace(SSD.cost, stages_ms={"heads": 1.0, "proposals": 250.0}))
    text = table([FCN, one, seed, other, replace(SSD, name="plain")])
    stages = text.split("Milliseconds per image in each stage:")
    assert len(stages) == 2 and "### Detection" in stages[0]
    assert rows(stages[1]) == [
        ["run", "proposals", "warps", "network", "nms", "heads"],
        ["ssd", "-", "2.00", "15.0", "0.500", "-"],
        ["rcnn", "250", "-", "-", "-", "1.00"],
    ]
    assert "stages" not in table([FCN, SSD])


def test_seeds_share_a_row_with_mean_and_deviation() -> None:
    other = replace(FCN, name="fcn-seed1", seed=1, metrics={"test/miou": 0.6}, cost=Cost(train_seconds=63.0))
    heading, line = rows(table([FCN, other]))
    cells = dict(zip(heading, line, strict=True))
    assert cells["run"] == "fcn" and cells["seeds"] == "0, 1"
    assert cells["test/miou"] == "0.550 ± 0.071"  # the sample's deviation, not the population's .050
    assert cells["test/pixel_acc"] == "0.900" and cells["training (min:s)"] == "1:02"
    several = rows(table([FCN, replace(other, model="UNet")]))  # a run with another model is not a seed of it
    assert [row[several[0].index("seeds")] for row in several[1:]] == ["0", "1"]
    assert len(rows(table([FCN, replace(other, seed=2)]))) == 3  # the name has another seed


def test_detectors_with_an_error_analysis_have_a_table_of_errors() -> None:
    assert "without one kind of error" not in table([SSD, FCN])
    gains = {f"test/dap_{kind}": at / 100 for at, kind in enumerate(ERROR_KINDS)}
    analysed = replace(SSD, name="yolo", metrics=SSD.metrics | gains)
    again = replace(analysed, name="yolo-seed1", seed=1, metrics=analysed.metrics | {"test/dap_missed": 0.07})
    text = table([SSD, analysed, again, FCN])
    section = text.split("### Detection: gain of test/map_50 without one kind of error")[1]
    assert "The gains do not add up." in section
    heading, line = rows(section)  # the run without an analysis has no row
    cells = dict(zip(heading, line, strict=True))
    assert (cells["run"], cells["test/map_50"]) == ("yolo", "0.700 ± 0.000")
    assert (cells["classification"], cells["missed"]) == ("0.000 ± 0.000", "0.060 ± 0.014")
    assert cells["false negative"] == "0.070 ± 0.000"


def test_an_untested_run_adds_a_column_of_validation_scores() -> None:
    untested = replace(FCN, name="unet", metrics={"val/miou": 0.6, "val/pixel_acc": 0.8})
    text = table([FCN, untested])
    assert [row[3:6] for row in rows(text)] == [
        ["val/miou", "test/miou", "test/pixel_acc"],
        ["0.700", "0.500", "0.900"],
        ["0.600", "-", "-"],
    ]
    assert "Not tested yet: unet." in text
    text = table([untested])
    assert [row[3:5] for row in rows(text)] == [["val/miou", "val/pixel_acc"], ["0.600", "0.800"]]
    assert "ot tested yet" not in text


def test_missing_values_are_dashes_and_unfinished_runs_are_listed() -> None:
    text = table(
        [
            replace(FCN, metrics={"test/miou": None}, cost=Cost(), backbone=None),
            replace(SSD, status="interrupted"),
        ]
    )
    assert rows(text) == [["run", "model", "test/miou"], ["fcn", "FCN", "-"]]
    assert "Not finished: ssd (interrupted)." in text


def test_different_data_and_machines_are_listed() -> None:
    text = table(
        [
            FCN,
            replace(
                FCN,
                name="unet",
                fingerprint="bbbb",
                hardware={"cpu": "Y", "gpus": ["G", "G"], "processes": 2},
            ),
        ]
    )
    assert "different data: aaaa: fcn; bbbb: unet." in text
    assert "- X (2 cores): fcn" in text and "- 2 x G, Y, 2 processes: unet" in text
    assert "different data" not in table([FCN, SSD])


def test_rows_are_sorted_by_descending_score_or_ascending_cost() -> None:
    records = [
        replace(FCN, name="none", metrics={"test/miou": None}, cost=Cost()),
        replace(FCN, name="low", metrics={"test/miou": 0.1}, cost=Cost(ms_per_image=5.0)),
        replace(FCN, name="high", metrics={"test/miou": 0.9}, cost=Cost(ms_per_image=9.0)),
    ]

    def order(sort: str | None) -> list[str]:
        return [row[0] for row in rows(table(records, sort))[1:]]

    assert order(None) == ["none", "low", "high"]
    assert order("miou") == ["high", "low", "none"]
    assert order("ms_per_image") == ["low", "high", "none"]
    assert order("name") == ["high", "low", "none"]
    with pytest.raises(UserError, match="no column 'speed'; choose from name, miou"):
        order("speed")


def test_report_finds_records_and_lists_corrupt_and_missing_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "demo", FCN, SSD, replace(FCN, name="corrupt"), replace(FCN, name="missing"))
    (tmp_path / "demo/corrupt/result.json").write_text('{"schema": 1,')
    (tmp_path / "demo/missing/result.json").unlink()
    (tmp_path / "demo/fcn/predictions").mkdir()
    assert main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert [row[0] for row in rows(out)] == ["run", "demo/fcn", "run", "demo/ssd"]
    assert "demo/corrupt/result.json: corrupt" in out and "demo/missing/result.json: missing" in out
    assert main([str(tmp_path / "demo/fcn"), str(tmp_path / "demo/ssd"), "--sort", "name"]) == 0
    assert [row[0] for row in rows(capsys.readouterr().out)] == ["run", "fcn", "run", "ssd"]
    assert main([str(tmp_path / "demo/fcn"), "--output", str(tmp_path / "table.md")]) == 0
    assert rows((tmp_path / "table.md").read_text())[1][0] == "fcn" and capsys.readouterr().out == ""


def test_paths_are_relative_to_the_folder_as_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "runs/demo", FCN, replace(FCN, name="corrupt"), replace(FCN, name="missing"))
    (tmp_path / "runs/demo/corrupt/result.json").write_text("{")
    (tmp_path / "runs/demo/missing/result.json").unlink()
    monkeypatch.chdir(tmp_path / "runs")
    for folder in ("demo", "../runs/demo", "."):
        records, faults = find_records([Path(folder)])
        expected = [Path(folder, *place) for place in (("corrupt",), ("missing",))]
        if folder == ".":
            expected = [Path("demo/corrupt"), Path("demo/missing")]
        assert [fault.split(":")[0] for fault in faults] == [f"{path}/result.json" for path in expected]
        assert [record.name for record in records] == ["demo/fcn" if folder == "." else "fcn"]


def test_nothing_to_report_is_reported_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no result\.json in it"):
        main([str(tmp_path)])
    with pytest.raises(UserError, match="no such folder"):
        main([str(tmp_path / "absent")])


def test_the_report_is_quick_and_imports_no_torch(tmp_path: Path) -> None:
    put(tmp_path, FCN)
    code = (
        "import sys; from segdet.cli.report import main; "
        f"main([{str(tmp_path)!r}]); sys.exit('torch' in sys.modules)"
    )
    start = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
    assert time.monotonic() - start < 10
