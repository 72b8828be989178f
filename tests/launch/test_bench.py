import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from experiment_files import FILE, write_dependent_runs

from segdet.cli.bench import main
from segdet.launch import bench as module
from segdet.launch.bench import plan
from segdet.launch.experiment import read_experiment
from segdet.runs.record import Cost, Record
from segdet.util.errors import UserError


class Command:
    """A substitute for the processes. It writes the same files to the run folder as fit and test, or fails."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fail: dict[str, str] = {}

    def __call__(self, arguments: list[str], log: Path, mode: str, *slot: object) -> int:
        call = " ".join(arguments)
        self.calls.append(call)
        with log.open(mode) as file:
            file.write(f"$ {call}\n".encode())
        for pattern, how in self.fail.items():
            if pattern in call:
                if how == "ctrl-c":
                    raise KeyboardInterrupt
                if how == "crash":
                    checkpoint = self.folder(arguments) / "checkpoints/last.ckpt"
                    checkpoint.parent.mkdir(parents=True)
                    checkpoint.touch()
                log.write_text("Traceback\nsegdet: error: configs/fcn.yaml: no such key 'a'\n\n")
                return 2
        if arguments[0] == "fit":
            folder = self.folder(arguments)
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            (folder / "checkpoints/last.ckpt").touch()
            name, _, seed = folder.name.partition("-seed")
            task, score = ("segmentation", "miou") if name == "fcn" else ("detection", "map")
            metrics: dict[str, float | None] = {f"val/{score}": 0.5}
            Record(folder.name, task, name.upper(), "VOC", int(seed or 0), "finished", metrics, Cost()).write(
                folder / "result.json"
            )
        elif arguments[0] == "test":
            path = self.folder(arguments) / "result.json"
            Record.read(path).merge({"test/miou": 0.4}).write(path)
        return 0

    @staticmethod
    def folder(arguments: list[str]) -> Path:
        given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
        return Path(given["--run_dir"]) if arguments[0] == "fit" else Path(given["--ckpt_path"]).parents[1]

    def started(self) -> list[str]:
        """Return the commands started since the last call: ``fit fcn``, ``resume fcn``, ``test fcn``, ``data``."""
        started = []
        for call in self.calls:
            words = call.split()
            if words[0] == "fit":
                started.append(("resume " if "--ckpt_path" in call else "fit ") + self.folder(words).name)
            else:
                started.append(f"test {self.folder(words).name}" if words[0] == "test" else words[0])
        self.calls.clear()
        return started


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    fake = Command()
    monkeypatch.setattr(module, "run_command", fake)
    return fake


def test_the_file_becomes_commands(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["experiments/demo.yaml", "--only", "fcn", "--overrides", "trainer.max_epochs=1", "--dry_run"])
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "segdet data make data/shapes --images 8"
    for seed, name, (fit, test) in [(0, "fcn", lines[1:3]), (1, "fcn-seed1", lines[3:5])]:
        configs = f"--config configs/fcn.yaml --config configs/data.yaml --seed_everything={seed}"
        overrides = "--model.optim.lr=0.001 --model.weights=null --trainer.max_time=00:00:10:00"
        overrides += " --trainer.max_epochs=1"
        assert fit == f"segdet fit {configs} --run_dir=runs/demo/{name} {overrides}"
        checkpoint = f"runs/demo/{name}/checkpoints/best.ckpt"
        assert test == f"segdet test {configs} --ckpt_path={checkpoint} {overrides}"
    assert len(lines) == 5 and not Path("runs").exists()


def test_each_run_is_trained_and_tested_once(
    folder: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["experiments/demo.yaml"]) == 0
    assert command.started() == [
        "data",
        "fit fcn",
        "test fcn",
        "fit fcn-seed1",
        "test fcn-seed1",
        "fit ssd",
        "fit ssd-seed1",
    ]
    out, err = capsys.readouterr()
    assert "0.400 ± 0.000" in out and "### Detection" in out and "fcn-seed1  finished in" in err
    assert out in Path("runs/demo/table.md").read_text()
    assert main(["experiments/demo.yaml"]) == 0
    assert command.started() == []
    out, err = capsys.readouterr()
    assert "### Segmentation" in out and "was already finished" in err
    # One more seed needs only its own runs.
    Path("experiments/demo.yaml").write_text(FILE.replace("[0, 1]", "[0, 1, 2]"))
    assert main(["experiments/demo.yaml", "--only", "ssd"]) == 0
    assert command.started() == ["data", "fit ssd-seed2"]


def test_a_failed_run_is_listed_and_the_others_continue(
    folder: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    command.fail = {"run_dir=runs/demo/fcn ": "fail"}
    assert main(["experiments/demo.yaml"]) == 1
    assert command.started() == [
        "data",
        "fit fcn",
        "fit fcn-seed1",
        "test fcn-seed1",
        "fit ssd",
        "fit ssd-seed1",
    ]
    out, err = capsys.readouterr()
    fault = "fit ended with exit status 2 (segdet: error: configs/fcn.yaml: no such key 'a')"
    assert "FAILED" in err and fault in err
    assert "see runs/demo/fcn.log" in err
    line = next(line for line in out.splitlines() if line.startswith("| fcn"))
    assert [cell.strip() for cell in line.split("|")][1:-1] == ["fcn", "FCN", "0.400"]  # seed 1 alone
    command.fail = {}
    Path("configs/fcn.yaml").write_text("fixed: 1\n")
    assert main(["experiments/demo.yaml", "--only", "ssd"]) == 0
    # The failed run had no checkpoint, so its config may change. The other seed was trained with the old config.
    with pytest.raises(
        UserError, match=r"fcn-seed1 was trained with other settings \(configs/fcn.yaml changed\)"
    ):
        main(["experiments/demo.yaml"])
    Path("experiments/demo.yaml").write_text(FILE.replace("[0, 1]", "[0]"))
    command.started()
    assert main(["experiments/demo.yaml"]) == 0
    assert command.started() == ["data", "fit fcn", "test fcn"]


def test_an_interrupted_run_is_resumed(folder: Path, command: Command) -> None:
    command.fail = {"fit --config configs/fcn.yaml": "crash"}
    assert main(["experiments/demo.yaml", "--only", "fcn"]) == 1
    command.fail = {"test --config": "fail"}
    command.started()
    assert main(["experiments/demo.yaml", "--only", "fcn"]) == 1
    assert "--ckpt_path=runs/demo/fcn/checkpoints/last.ckpt" in command.calls[1]
    assert command.started() == ["data", "resume fcn", "test fcn", "resume fcn-seed1", "test fcn-seed1"]
    command.fail = {}
    assert main(["experiments/demo.yaml", "--only", "fcn"]) == 0
    assert command.started() == ["data", "test fcn", "test fcn-seed1"]
    # A run with the status "interrupted" is not finished.
    path = Path("runs/demo/fcn/result.json")
    replace(Record.read(path), status="interrupted").write(path)
    assert main(["experiments/demo.yaml", "--only", "fcn"]) == 0
    assert command.started() == ["data", "resume fcn", "test fcn"]


def test_a_fit_that_does_not_finish_is_a_failure(
    folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(arguments: list[str], log: Path, mode: str, *slot: object) -> int:
        status = command(arguments, log, mode)
        if arguments[0] == "fit":
            path = command.folder(arguments) / "result.json"
            replace(Record.read(path), status="interrupted").write(path)
        return status

    monkeypatch.setattr(module, "run_command", interrupted)
    assert main(["experiments/demo.yaml", "--only", "ssd"]) == 1
    assert "fit ended with the status interrupted" in capsys.readouterr().err


def test_changed_settings_are_listed_and_need_rerun(folder: Path, command: Command) -> None:
    Path("experiments/demo.yaml").write_text(FILE.replace("[0, 1]", "[0]"))
    main(["experiments/demo.yaml"])
    command.started()
    Path("configs/ssd.yaml").write_text(
        "# A comment is not a setting.\n" + Path("configs/ssd.yaml").read_text()
    )
    assert main(["experiments/demo.yaml"]) == 0 and command.started() == []
    Path("configs/ssd.yaml").write_text("other: 1\n")
    Path("runs/demo/ssd/mark").touch()
    with pytest.raises(UserError) as error:
        main(["experiments/demo.yaml"])
    assert str(error.value).startswith(
        "experiments/demo.yaml: runs/demo/ssd was trained with other settings "
        "(configs/ssd.yaml changed); pass --rerun"
    )
    assert command.started() == []
    assert main(["experiments/demo.yaml", "--rerun"]) == 0
    assert command.started() == ["data", "fit ssd"] and not Path("runs/demo/ssd/mark").exists()
    with pytest.raises(UserError, match=r"\(--trainer.max_time was 00:00:10:00\)"):
        main(["experiments/demo.yaml", "--overrides", "trainer.max_time=00:00:20:00"])
    with pytest.raises(UserError, match=r"\(--trainer.max_epochs is new\)"):
        main(["experiments/demo.yaml", "--overrides", "trainer.max_epochs=1"])
    Path("runs/demo/fcn.json").write_text("{")
    with pytest.raises(UserError, match=r"fcn.json, the file of its settings, is missing or corrupt"):
        main(["experiments/demo.yaml", "--only", "fcn"])


def test_a_file_that_a_config_names_is_part_of_the_settings(folder: Path, command: Command) -> None:
    Path("configs/ssd.yaml").write_text("data: shared.yaml\n")
    Path("configs/shared.yaml").write_text("class_path: VOC  # a comment\n")
    main(["experiments/demo.yaml"])
    Path("configs/shared.yaml").write_text("class_path: VOC\n")
    assert main(["experiments/demo.yaml"]) == 0
    Path("configs/shared.yaml").write_text("class_path: COCO\n")
    with pytest.raises(UserError, match=r"ssd was trained with other settings \(configs/ssd.yaml changed\)"):
        main(["experiments/demo.yaml"])


def test_ctrl_c_prints_how_to_resume(
    folder: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    command.fail = {"test --config": "ctrl-c"}
    assert main(["experiments/demo.yaml"]) == 130
    assert command.started() == ["data", "fit fcn", "test fcn"]
    assert "to resume: segdet bench experiments/demo.yaml" in capsys.readouterr().err
    command.fail = {}
    assert main(["experiments/demo.yaml"]) == 0
    assert command.started()[:3] == ["data", "test fcn", "fit fcn-seed1"]


def test_a_failed_preparation_stops_before_the_runs(folder: Path, command: Command) -> None:
    command.fail = {"data make": "fail"}
    with pytest.raises(
        UserError, match="prepare: 'segdet data make data/shapes --images 8' ended with exit status 2"
    ):
        main(["experiments/demo.yaml"])
    assert command.started() == ["data"]


def test_two_benches_of_one_folder_are_refused(
    folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def again(arguments: list[str], log: Path, mode: str, *slot: object) -> int:
        with pytest.raises(UserError, match="another segdet bench is using it"):
            main(["experiments/demo.yaml"])
        return command(arguments, log, mode)

    monkeypatch.setattr(module, "run_command", again)
    assert main(["experiments/demo.yaml", "--only", "ssd"]) == 0


def test_a_run_uses_an_earlier_run(folder: Path, command: Command) -> None:
    write_dependent_runs()
    assert main(["experiments/turn.yaml"]) == 0
    fits = {call.split("--run_dir=")[1].split()[0]: call for call in command.calls if call.startswith("fit")}
    assert fits["runs/turn/ssd"].endswith('--model.weights={"a": "runs/turn/fcn"}')
    assert fits["runs/turn/ssd-seed1"].endswith('--model.weights={"a": "runs/turn/fcn-seed1"}')
    for first, second in (("fcn", "ssd"), ("fcn-seed1", "ssd-seed1")):
        begun = [command.calls.index(fits[f"runs/turn/{name}"]) for name in (first, second)]
        assert begun == sorted(begun)


def test_a_run_waits_for_the_run_that_it_uses(
    folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []

    def slow(arguments: list[str], log: Path, mode: str, *slot: object) -> int:
        name = command.folder(arguments).name if arguments[0] == "fit" else ""
        if name == "fcn":
            time.sleep(0.5)
        if name == "ssd":
            assert "fcn" in ended
        status = command(arguments, log, mode, *slot)
        ended.append(name)
        return status

    monkeypatch.setattr(module, "run_command", slow)
    write_dependent_runs()
    assert main(["experiments/turn.yaml"]) == 0


def test_a_run_is_not_started_without_the_run_that_it_uses(
    folder: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dependent_runs()
    with pytest.raises(UserError, match="--only: ssd uses fcn, which is not finished; name it as well"):
        main(["experiments/turn.yaml", "--only", "ssd"])
    command.fail = {"--run_dir=runs/turn/fcn ": "exit"}
    write_dependent_runs("overrides: {model.width: 1}")
    assert main(["experiments/turn.yaml"]) == 1
    assert "fcn, which it uses, is not finished" in capsys.readouterr().err
    assert not any("runs/turn/ssd " in call for call in command.calls)
    assert any("runs/turn/ssd-seed1" in call for call in command.calls)
    command.fail = {}
    assert main(["experiments/turn.yaml", "--only", "fcn"]) == 0
    assert main(["experiments/turn.yaml", "--only", "ssd"]) == 0


def test_a_run_that_used_a_changed_run_is_trained_again(folder: Path, command: Command) -> None:
    write_dependent_runs()
    assert main(["experiments/turn.yaml"]) == 0
    with pytest.raises(UserError, match=r"other settings|must be trained again"):
        main(["experiments/turn.yaml", "--overrides", "model.width=1"])
    # The settings of the second run are unchanged, but those of the first are not.
    write_dependent_runs("overrides: {model.width: 1}")
    for only in ([], ["--only", "ssd"]):
        with pytest.raises(UserError, match="other settings"):
            main(["experiments/turn.yaml", *only])
    command.calls.clear()
    assert main(["experiments/turn.yaml", "--rerun"]) == 0
    assert len([call for call in command.calls if call.startswith("fit")]) == 4
    # The run that it used was deleted.
    shutil.rmtree("runs/turn/fcn")
    with pytest.raises(UserError, match="ssd used runs/turn/fcn, which must be trained again; pass --rerun"):
        main(["experiments/turn.yaml"])
    command.calls.clear()
    assert main(["experiments/turn.yaml", "--rerun"]) == 0
    fits = [call.split("--run_dir=")[1].split()[0] for call in command.calls if call.startswith("fit")]
    assert fits == ["runs/turn/fcn", "runs/turn/ssd"]


def test_the_folder_of_the_runs_is_not_a_setting(folder: Path, command: Command) -> None:
    write_dependent_runs()
    assert main(["experiments/turn.yaml"]) == 0
    command.calls.clear()
    assert main(["experiments/turn.yaml", "--runs_dir", str(Path("runs").resolve())]) == 0
    assert command.calls == []
    Path('a "b').mkdir()
    assert main(["experiments/turn.yaml", "--runs_dir", 'a "b']) == 0
    given = [call.split("--model.weights=")[1] for call in command.calls if "--model.weights=" in call]
    assert sorted(json.loads(each)["a"] for each in given) == ['a "b/turn/fcn', 'a "b/turn/fcn-seed1']


def test_a_waiting_run_blocks_no_slot(
    folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two slots trains the last run, not the run that waits for the first slot."""
    begun: list[str] = []

    def slow(arguments: list[str], log: Path, mode: str, *slot: object) -> int:
        if arguments[0] == "fit":
            begun.append(command.folder(arguments).name)
            time.sleep(0.3)
        return command(arguments, log, mode, *slot)

    monkeypatch.setattr(module, "run_command", slow)
    write_dependent_runs()
    text = Path("experiments/turn.yaml").read_text().replace("seeds: [0, 1]", "seeds: [0]")
    Path("experiments/turn.yaml").write_text(text + "  last: {configs: configs/data.yaml, test: false}\n")
    assert main(["experiments/turn.yaml"]) == 0
    assert begun.index("ssd") == 2


def test_wrong_arguments_are_reported_in_one_line(folder: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean experiments/demo\.yaml"):
        read_experiment("experiments/dmo.yaml")
    experiment = read_experiment("experiments/demo.yaml")
    with pytest.raises(UserError, match=r"has no run 'fcm'; did you mean fcn\?"):
        plan(experiment, Path("runs"), only=["fcm"])
    with pytest.raises(UserError, match=r"'trainer\.max_epochs' is not KEY=VALUE"):
        plan(experiment, Path("runs"), overrides=["trainer.max_epochs"])


def test_at_once_is_at_least_one(folder: Path, command: Command) -> None:
    with pytest.raises(UserError, match="--at_once 0: must be at least 1"):
        main(["experiments/demo.yaml", "--at_once", "0"])
    assert main(["experiments/demo.yaml", "--at_once", "3"]) == 0
    assert sorted(command.started()) == sorted(
        ["data", "fit fcn", "test fcn", "fit fcn-seed1", "test fcn-seed1", "fit ssd", "fit ssd-seed1"]
    )


def test_the_settings_are_kept_beside_the_run(folder: Path, command: Command) -> None:
    main(["experiments/demo.yaml", "--only", "ssd"])
    settings = json.loads(Path("runs/demo/ssd.json").read_text())
    assert set(settings) == {"configs/ssd.yaml", "configs/data.yaml", "seed", "--trainer.max_time"}


CONFIG = """
model: {class_path: %s, init_args: {optim: {lr: 0.01}}}
data:
  class_path: ShapesDataModule
  init_args:
    root: data
    num_train: 16
    num_val: 5
    num_test: 5
    image_size: [64, 64]
    num_workers: 0
    batch_size: 4
trainer: {accelerator: cpu}
"""


@pytest.mark.slow
def test_three_tasks_are_trained_tested_and_tabulated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "budget: {trainer.max_epochs: 1, wandb: false}\nruns:\n"
    for name in ("FCN", "BoxHead", "SSD"):
        Path(f"{name}.yaml").write_text(CONFIG % name)
        text += f"  {name.lower()}: {{configs: {name}.yaml}}\n"
    Path("all.yaml").write_text(text)
    assert main(["all.yaml"]) == 0
    out, err = capsys.readouterr()
    assert "epoch 1/1" in err  # shows progress
    for column in ("test/miou", "test/loc_acc", "test/map_50", "GFLOPs", "passes per image"):
        assert column in out
    for name in ("fcn", "boxhead", "ssd"):
        record = Record.read(f"runs/all/{name}/result.json")
        assert (record.status, record.epochs) == ("finished", 1) and record.steps >= 2
        cost = record.cost
        assert cost.parameters and cost.flops and cost.ms_per_image and cost.passes_per_image == 1
        assert cost.train_seconds and cost.peak_memory_mb
        assert record.fingerprint and record.command.startswith("segdet fit ") and record.hardware["cores"]
        assert any(key.startswith("val/") for key in record.metrics)
    assert {path.name for path in tmp_path.iterdir()} == {
        "data",
        "runs",
        "all.yaml",
        "FCN.yaml",
        "BoxHead.yaml",
        "SSD.yaml",
    }
    start = time.monotonic()
    assert main(["all.yaml"]) == 0
    assert time.monotonic() - start < 10 and capsys.readouterr().out == out
