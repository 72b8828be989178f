"""``segdet sweep``: the check of a file, and sweeps of tiny runs."""

from pathlib import Path

import pytest
import yaml
from tiny_runs import MODELS, TINY

from segdet.cli.main import main
from segdet.cli.train import main as train_main
from segdet.launch.sweep import SweepJobs
from segdet.runs.record import Record

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


@pytest.mark.parametrize(
    ("old", "new", "arguments", "message"),
    [
        (
            "run_cap: 3\n",
            "",
            [],
            "demo.yaml, line 1: method random never ends without run_cap; add run_cap: 20",
        ),
        ("run_cap: 3", "run_cap: 4", ["--workers", "0"], "--workers 0: must be at least 1"),
        ("run_cap: 3", "run_cap: 4", ["--lease", "0"], "--lease 0.0: must be at least 1"),
        (
            "run_cap: 3",
            "run_cap: 4",
            ["--storage", "mysql://a"],
            "--storage mysql://a: must be sqlite:///FILE or",
        ),
    ],
)
def test_a_sweep_that_cannot_run_is_refused(
    file: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, arguments: list[str], message: str
) -> None:
    file.write_text(FILE.replace(old, new))
    assert main(["sweep", "demo.yaml", *arguments]) == 2
    error = capsys.readouterr().err
    assert f"segdet: error: {message}" in error and error.count("\n") == 1
    assert not (file.parent / "runs").exists()


def test_ctrl_c_prints_how_to_resume(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(jobs: SweepJobs, *_: object) -> int:
        job = jobs.next()
        assert job is not None
        jobs.ended(job, 130, stopped=True)
        return 130

    monkeypatch.setattr("segdet.cli.sweep.run_workers", stop)
    assert main(["sweep", "demo.yaml"]) == 130
    out, err = capsys.readouterr()
    assert "| trial-000 | running |" in out
    assert err.endswith(
        "stopped; to resume the running trials: segdet sweep demo.yaml, with the same options\n"
    )


@pytest.mark.slow
def test_a_sweep_trains_tests_and_compares_its_trials(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    tiny = ["segdet", "fit", *MODELS["segmentation"][:2], *TINY, "${args}"]
    spaces = {
        "model.width": {"values": [8, 16]},
        "model.optim": {"parameters": {"lr": {"value": 0.01}}},
    }
    sweep = {"method": "grid", "metric": {"name": "val/miou", "goal": "maximize"}, "parameters": spaces}
    file.write_text(yaml.safe_dump(sweep | {"command": tiny}))
    assert main(["sweep", "demo.yaml", "--workers", "2", "--test"]) == 0
    out = capsys.readouterr().out
    assert "| trial-000 | finished" in out and "| trial-001 | finished" in out
    folder = file.parent / "runs/demo"
    widths = set()
    for number in range(2):
        record = Record.read(folder / f"trial-00{number}/result.json")
        assert record.status == "finished" and record.is_tested
        config = yaml.safe_load((folder / f"trial-00{number}/config.yaml").read_text())
        widths.add(config["model"]["init_args"]["width"])
        assert config["model"]["init_args"]["optim"]["lr"] == 0.01
        (log,) = folder.glob(f"trial-00{number}/wandb/offline-run-*/run-*.wandb")
        assert f"2\x04demoB\ttrial-00{number}".encode() in log.read_bytes()  # the fields of group and name
    assert widths == {8, 16}
    with pytest.raises(SystemExit) as leaving:
        train_main(["fit", "--config", str(folder / "best.yaml"), "--print_config"])
    assert leaving.value.code == 0

    before = (folder / "trial-000/result.json").stat().st_mtime
    assert main(["sweep", "demo.yaml"]) == 0  # complete, so nothing is started
    assert (folder / "trial-000/result.json").stat().st_mtime == before
    file.write_text(file.read_text().replace("16", "32"))
    assert main(["sweep", "demo.yaml"]) == 2
    error = capsys.readouterr().err
    assert 'parameters.model.width was {"values": [8, 16]} and is {"values": [8, 32]}' in error
