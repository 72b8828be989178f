import json
from pathlib import Path

import pytest
import torch

from segdet.runs.comparison import compare_runs, seed_noise
from segdet.runs.record import Record

SCORES = ["val/miou"]


def write_run(
    folder: Path, seed: int = 0, miou: float = 0.5, weight: float = 1.0, config: str = "a: 1"
) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(f"seed_everything: {seed}\n{config}\n")
    (folder / "metrics.csv").write_text(f"epoch,step,train/loss,val/miou\n0,1,0.25,\n0,1,,{miou}\n")
    record = Record(folder.name, "segmentation", "FCN", "Shapes", seed, "finished", {"val/miou": miou})
    record.write(folder / "result.json")
    for name in ("best", "last"):
        state = {"layer.weight": torch.tensor([1.0, weight]), "layer.bias": torch.tensor([float("nan")])}
        torch.save({"state_dict": state}, folder / "checkpoints" / f"{name}.ckpt")
    return folder


def test_equal_runs_are_identical(tmp_path: Path) -> None:
    found = compare_runs(write_run(tmp_path / "a"), write_run(tmp_path / "b"), SCORES)
    assert (found.outcome, found.metrics, found.weights) == ("identical", 5, 4)
    assert found.checkpoints == ["best.ckpt", "last.ckpt"]
    assert not found.metric_deviations and not found.weight_deviations


def test_the_smallest_change_of_a_weight_is_a_difference(tmp_path: Path) -> None:
    weight = float(torch.nextafter(torch.tensor(1.0), torch.tensor(2.0)))
    found = compare_runs(write_run(tmp_path / "a"), write_run(tmp_path / "b", weight=weight), SCORES)
    assert found.outcome == "different"
    assert [each.name for each in found.weight_deviations] == [
        "best.ckpt: layer.weight",
        "last.ckpt: layer.weight",
    ]
    assert found.weight_deviations[0].difference == pytest.approx(weight - 1)
    assert not found.metric_deviations


def test_a_missing_value_is_the_largest_difference(tmp_path: Path) -> None:
    one, other = write_run(tmp_path / "a"), write_run(tmp_path / "b", miou=0.6)
    (other / "metrics.csv").write_text("epoch,step,val/miou\n0,1,0.6\n")
    found = compare_runs(one, other, SCORES)
    assert [each.name for each in found.metric_deviations] == [
        "train/loss at step 1", "val/miou at step 1", "val/miou",
    ]  # fmt: skip
    assert found.metric_deviations[0].now is None


def test_a_row_that_a_resumed_run_logged_twice_counts_once(tmp_path: Path) -> None:
    one, other = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    (one / "metrics.csv").write_text("epoch,step,train/loss,val/miou\n0,1,0.9,\n0,1,0.25,\n0,1,,0.5\n")
    assert compare_runs(one, other, SCORES).outcome == "identical"


def test_values_after_the_end_of_a_stopped_run_are_not_compared(tmp_path: Path) -> None:
    one, other = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    with (one / "metrics.csv").open("a") as stream:
        stream.write("1,2,0.1,\n")
    assert compare_runs(one, other, SCORES, complete=False).outcome == "identical"
    assert compare_runs(one, other, SCORES).outcome == "different"


def test_runs_without_a_common_value_are_not_identical(tmp_path: Path) -> None:
    one, other = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    for run in (one, other):
        (run / "checkpoints" / "last.ckpt").unlink()
    (other / "metrics.csv").write_text("epoch,step,train/loss\n0,2,0.25\n")
    found = compare_runs(one, other, SCORES, complete=False)
    assert (found.outcome, found.metrics, found.weights) == ("different", 0, 0)


def test_seed_noise_comes_from_runs_with_other_seeds(tmp_path: Path) -> None:
    original = write_run(tmp_path / "runs" / "seed0", 0, 0.50)
    write_run(tmp_path / "runs" / "seed1", 1, 0.52)
    other = write_run(tmp_path / "other", 0, 0.53)
    assert seed_noise(original, SCORES).limits == {}  # two runs are too few
    assert compare_runs(original, other, SCORES).outcome == "different"
    write_run(tmp_path / "runs" / "seed2", 2, 0.48)
    write_run(tmp_path / "runs" / "longer", 3, 0.9, config="a: 2")  # another configuration
    (tmp_path / "runs" / "notes.txt").touch()
    noise = seed_noise(original, SCORES)
    assert noise.seeds == [0, 1, 2]
    # Student's t for 95% with 2 degrees of freedom is 4.303; the standard deviation is 0.02.
    assert noise.limits["val/miou"] == pytest.approx(4.3027 * 2**0.5 * 0.02, rel=1e-4)
    assert compare_runs(original, other, SCORES).outcome == "within seed noise"
    worse = write_run(tmp_path / "worse", 0, 0.3)
    assert compare_runs(original, worse, SCORES).outcome == "different"


def test_an_undefined_score_is_not_within_the_noise(tmp_path: Path) -> None:
    original = write_run(tmp_path / "runs" / "seed0", 0, 0.50)
    for seed, miou in ((1, 0.52), (2, 0.48)):
        write_run(tmp_path / "runs" / f"seed{seed}", seed, miou)
    other = write_run(tmp_path / "other", 0, 0.5, weight=2.0)
    record = json.loads((other / "result.json").read_text())
    record["metrics"]["val/miou"] = None
    (other / "result.json").write_text(json.dumps(record))
    assert compare_runs(original, other, SCORES).outcome == "different"


def test_scores_of_a_test_are_compared_only_if_both_runs_are_tested(tmp_path: Path) -> None:
    one, other = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    record = Record.read(one / "result.json").merge({"test/miou": 0.4})
    record.write(one / "result.json")
    found = compare_runs(one, other, [*SCORES, "test/miou"])
    assert (found.outcome, found.untested) == ("identical", other)
    record.merge({"test/miou": 0.3}).write(other / "result.json")
    assert compare_runs(one, other, SCORES).outcome == "different"
