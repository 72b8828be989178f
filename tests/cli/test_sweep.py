"""``segdet sweep``: the check of a file, and sweeps of tiny runs."""

from pathlib import Path

import pytest

from segdet.cli.main import main

FILE = """\
method: random
metric: {name: val/miou, goal: maximize}
run_cap: 3
parameters:
  trainer.max_epochs: {value: 1}
  model.width: {values: [8, 16]}
  model.optim:
    parameters:
      lr: {distribution: log_uniform_values, min: 1.0e-4, max: 1.0e-1}
command: ["${env}", segdet, fit, --model=FCN, --model.backbone=test_resnet, --data=ShapesDataModule, "${args}"]
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = Path("demo.yaml")
    path.write_text(FILE)
    return path


def test_a_valid_file_is_summarized(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "demo.yaml", "--check"]) == 0
    out = capsys.readouterr().out
    assert "demo.yaml: valid; random, 3 trials, such as\n/usr/bin/env segdet fit" in out
    assert not (file.parent / "runs").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "model.width",
            "model.widht",
            "line 6: segdet fit does not accept model.widht=8: --model.widht: FCN has no",
        ),
        ("[8, 16]", "[8, wide]", "line 6: segdet fit does not accept model.width=wide:"),
        ("lr:", "lrr:", "line 9: segdet fit does not accept model.optim.lrr="),
        ("--model=FCN", "--model=FCM", "line 10: segdet fit does not accept the command:"),
        ("${args}", "${arg}", "line 10: command has the unknown macro ${arg}; did you mean args?"),
    ],
)
def test_an_option_that_does_not_exist_is_reported_with_its_line(
    file: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    file.write_text(FILE.replace(old, new))
    assert main(["sweep", "demo.yaml", "--check"]) == 2
    error = capsys.readouterr().err
    assert f"segdet: error: demo.yaml, {message}" in error and error.count("\n") == 1
