import json
from pathlib import Path

import pytest

from experiments import scaling, step_table
from experiments.scaling import BACKWARD, Family, Network

NETWORK = Network(per_node=8, within=100e9, between=10e9, latency_within=0, latency_between=0)


def test_a_ring_sends_nearly_twice_the_gradients() -> None:
    assert NETWORK.all_reduce(1, 1e9) == 0
    assert NETWORK.all_reduce(8, 1e9) == pytest.approx(2 * 7 / 8 * 1e9 / 100e9)
    assert NETWORK.all_reduce(64, 1e9) == pytest.approx(2 * 63 / 64 * 1e9 / 10e9)  # the slowest connection


def test_latency_counts_once_per_round_and_bucket() -> None:
    network = Network(latency_within=1e-3)
    assert network.all_reduce(2, 1) == pytest.approx(2e-3, rel=1e-3)
    assert network.all_reduce(2, 26e6) == pytest.approx(4e-3 + 26e6 / 100e9, rel=1e-3)


def test_communication_is_hidden_by_the_backward_pass_except_for_the_last_bucket() -> None:
    family = Family("a", 0.1, 100e6, 8)  # four buckets
    reduced = NETWORK.all_reduce(8, 100e6)
    assert reduced < BACKWARD * 0.1
    assert family.step(8, NETWORK) == pytest.approx(0.1 + reduced / 4)
    assert family.step(1, NETWORK) == 0.1


def test_a_slow_network_limits_the_step() -> None:
    family = Family("a", 0.01, 1e9, 8)
    assert family.step(64, NETWORK) == pytest.approx(0.01 + NETWORK.all_reduce(64, 1e9) - BACKWARD * 0.01)
    assert family.most_gpus(NETWORK) < 64
    batch = family.least_batch(64, NETWORK)
    assert Family("a", 0.01 * batch / 8, 1e9, batch).efficiency(64, NETWORK) >= 0.9
    assert Family("a", 0.01 * (batch - 1) / 8, 1e9, batch - 1).efficiency(64, NETWORK) < 0.9


def test_the_command_prints_a_row_for_each_family(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"ms": 100.0, "gradient_mb": 50.0, "gflops": 400.0, "batch_size": 8}
    path = tmp_path / "steps.json"
    path.write_text(json.dumps([{"name": "SSD300", **row}, {"name": "FCN", **row}]))
    scaling.main([str(path), "--families", "SSD"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[2].startswith("| SSD300 |")
    assert "80" in lines[2].split("|")[4]  # 8 images in 0.1 s
    for options, shown in (([], "2.5"), (["--batch_size", "16"], "5.0")):  # 100 and 200 / 40 ms
        scaling.main([str(path), "--speedup", "40", *options])
        assert shown in capsys.readouterr().out.splitlines()[2].split("|")[2]


def test_a_wrong_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "steps.json"
    path.write_text('[{"name": "SSD"}]')
    with pytest.raises(SystemExit):
        scaling.main([str(path)])
    assert f"{path}: not a file of experiments/step_table.py" in capsys.readouterr().err


def test_the_step_table_and_the_estimate_fit_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "steps.json"
    step_table.main(["LRASPP", "--size", "64", "--batch_size", "2", "--steps", "1", "--json", str(path)])
    assert "LRASPP (MobileNetV3)" in capsys.readouterr().out
    (row,) = json.loads(path.read_text())
    assert row["ms"] > 0 and row["gflops"] > 0 and 10 < row["gradient_mb"] < 15
    scaling.main([str(path)])
    assert "LRASPP" in capsys.readouterr().out
