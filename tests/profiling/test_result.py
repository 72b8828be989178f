"""The profile's file: what is written is read again, and faults are reported in one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from segdet.profiling.result import (
    Distribution,
    Estimate,
    Latency,
    Memory,
    Profile,
    Stages,
    Throughput,
    UncountedOperator,
    read_profile,
)
from segdet.util.errors import UserError


def profile() -> Profile:
    return Profile(
        name="ssd", source="runs/ssd", model="SSD", task="detection", data="VOCDataModule", weights="best.ckpt",
        device="cpu", precision="32-true", images=["a.jpg", "b.jpg"], sizes=[[128, 128], [128, 96]],
        parameters=10, trainable_parameters=8, flops=Distribution([100.0, 300.0]),
        uncounted=[UncountedOperator("torchvision::nms", 1.0, 20.0)], passes=Distribution([1.0, 1.0]),
        latency=Latency(
            Estimate(10.0, 9.9, 10.1), Estimate(12.0, 11.0, 13.0), Estimate(15.0, 13.0), 80, 2, 0.02, True, 9.0
        ),
        throughput=Throughput(8, Estimate(120.0, 110.0, 130.0), 20),
        stages=Stages({"read": 1.0, "network": 8.0, "other": 0.9}, 10.0, 40),
        memory=Memory(100.0, 20.0, 4, "tensors"), hardware={"cores": 2}, load_before=[1.0, 2.0, 3.0],
    )  # fmt: skip


def test_a_profile_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    profile().write(path)
    assert read_profile(path) == profile()


def test_values_follow_from_the_measurements() -> None:
    assert profile().stages.ratio == pytest.approx(0.99)
    assert profile().latency.p50.half_width == pytest.approx(0.01)
    assert profile().latency.p99.half_width is None
    flops = profile().flops
    assert (flops.minimum, flops.median, flops.maximum, flops.varies) == (100.0, 200.0, 300.0, True)
    assert flops.quantile(0.25) == 150.0


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "corrupt, or not JSON"),
        ("[]", "not a profile"),
        ('{"schema": 99}', "has schema 99"),
        ('{"schema": 1, "name": "ssd"}', "source"),
    ],
)
def test_a_corrupt_profile_is_reported_with_its_path(tmp_path: Path, content: str, fault: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(content)
    with pytest.raises(UserError, match=fault) as caught:
        read_profile(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_wrong_value_is_reported_with_its_key(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile().to_json() | {"parameters": "many"}))
    with pytest.raises(UserError, match="parameters"):
        read_profile(path)


def test_reading_does_not_import_torch() -> None:
    code = "import sys, segdet.profiling.result; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
