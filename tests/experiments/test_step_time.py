import re
from pathlib import Path

import pytest

from experiments import step_time

CONFIG = """
model: {class_path: FCN, init_args: {backbone: small_vgg}}
data:
  class_path: ShapesDataModule
  init_args: {num_train: 16, num_val: 2, num_test: 2, image_size: [64, 64], batch_size: 2}
trainer: {accelerator: cpu}
"""


@pytest.mark.slow
def test_steps_are_timed_against_a_plain_loop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fcn.yaml").write_text(CONFIG)
    step_time.main(
        [str(tmp_path / "fcn.yaml"), "--root", str(tmp_path / "data"), "--steps", "8", "--rounds", "1"]
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(
        re.search(r"segdet fit, plain loop, \w+: .* ms per step: ratio \d\.\d+$", line) for line in lines
    )


def test_the_first_steps_are_ignored() -> None:
    times = [(9.0, 9.0)] * step_time.SKIPPED + [(0.001, 0.002), (0.003, 0.002), (0.002, 0.004)]
    assert [step_time.median_ms(times, clock) for clock in (0, 1)] == [2.0, 2.0]
