import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import ClassVar

import pytest
from experiment_files import FILE, write_dependent_runs

from segdet.cli.bench import main
from segdet.launch.bench import plan
from segdet.launch.experiment import read_experiment
from segdet.launch.job import Job
from segdet.launch.state import PREPARATION, claim_folder, read_state
from segdet.runs.ownership import OWNER, Claim
from segdet.runs.record import Cost, Record, Status
from segdet.util.errors import UserError


class Machine:
    """A substitute for the processes. A command writes the same files as fit and test at once, or fails."""

    def __init__(self, at_once: int = 1, *devices: object) -> None:
        self.at_once = at_once
        self.jobs: list[tuple[Job, int]] = []
        self.held: list[Job] = []
        self.pending: list[Job] = []

    calls: ClassVar[list[str]] = []
    fail: ClassVar[dict[str, str]] = {}
    hold: ClassVar[set[str]] = set()
    """Names of runs that end only when no other run can start."""
    before: ClassVar[Callable[[Job], None] | None] = None

    def free(self) -> int:
        return self.at_once - len(self.running())

    def running(self) -> list[Job]:
        return [job for job, _ in self.jobs] + self.held

    def start(self, job: Job) -> None:
        if Machine.before is not None:
            Machine.before(job)
        if job.name in self.hold:
            self.held.append(job)
        else:
            self.jobs.append((job, self.run(job.command, job.log_path, "ab")))

    def ended(self) -> list[tuple[Job, int]]:
        ended, self.jobs = self.jobs, []
        if not ended:
            ended = [(job, self.run(job.command, job.log_path, "ab")) for job in self.held[:1]]
            del self.held[:1]
        return ended

    def signal(self, job: Job, number: int) -> None:
        """Do nothing, because every job ends at once."""

    @classmethod
    def run(cls, arguments: Sequence[str], log: Path, mode: str) -> int:
        call = " ".join(arguments)
        cls.calls.append(call)
        with log.open(mode) as file:
            file.write(f"$ {call}\n".encode())
        how = next((how for pattern, how in cls.fail.items() if pattern in call), None)
        if how == "ctrl-c":
            os.kill(os.getpid(), signal.SIGINT)
            return 130
        if how == "crash":
            checkpoint = cls.folder(arguments) / "checkpoints/last.ckpt"
            checkpoint.parent.mkdir(parents=True)
            checkpoint.touch()
        if how in ("crash", "fail"):
            log.write_text("Traceback\nsegdet: error: configs/fcn.yaml: no such key 'a'\n\n")
            return 2
        if arguments[0] != "fit":
            return 0
        folder = cls.folder(arguments)
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "checkpoints/last.ckpt").touch()
        (folder / "config.yaml").touch()
        name, _, seed = folder.name.partition("-seed")
        task, score = ("segmentation", "miou") if name == "fcn" else ("detection", "map")
        metrics: dict[str, float | None] = {f"val/{score}": 0.5}
        if "--test=true" in arguments and how != "no test":
            metrics["test/miou"] = 0.4
        status: Status = "interrupted" if how == "interrupted" else "finished"
        Record(folder.name, task, name.upper(), "VOC", int(seed or 0), status, metrics, Cost()).write(
            folder / "result.json"
        )
        return 2 if how == "no test" else 0

    @staticmethod
    def folder(arguments: Sequence[str]) -> Path:
        given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
        return Path(given["--run_dir"])

    @classmethod
    def started(cls) -> list[str]:
        """Return the names of the runs, and the other commands, that were started since the last call."""
        started = [
            cls.folder(call.split()).name if call.startswith("fit ") else call.split()[0]
            for call in cls.calls
        ]
        cls.calls.clear()
        return started


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Machine]]:
    monkeypatch.setattr("segdet.cli.bench.LocalExecutor", Machine)
    monkeypatch.setattr("segdet.launch.bench.run_command", Machine.run)
    monkeypatch.setattr("segdet.launch.engine.POLL", 0.0)
    yield Machine
    Machine.calls, Machine.fail, Machine.hold, Machine.before = [], {}, set(), None


def test_the_file_becomes_commands(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["experiments/demo.yaml", "--only", "fcn", "--overrides", "trainer.max_epochs=1", "--dry_run"])
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "segdet data make data/shapes --images 8"
    for seed, name, line in [(0, "fcn", lines[1]), (1, "fcn-seed1", lines[2])]:
        configs = f"--config configs/fcn.yaml --config configs/data.yaml --seed_everything={seed}"
        overrides = "--model.optim.lr=0.001 --model.weights=null --trainer.max_time=00:00:10:00"
        overrides += " --trainer.max_epochs=1"
        own = f"--run_dir=runs/demo/{name} --resume=auto --test=true"
        assert line == f"segdet fit {configs} {overrides} {own}"
    assert len(lines) == 3 and not Path("runs").exists()


def test_each_run_is_trained_and_tested_once(
    folder: Path, command: type[Machine], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["experiments/demo.yaml"]) == 0
    assert command.started() == ["data", "fcn", "fcn-seed1", "ssd", "ssd-seed1"]
    out, err = capsys.readouterr()
    assert "0.400 ± 0.000" in out and "### Detection" in out and "fcn-seed1  finished in" in err
    assert out in Path("runs/demo/table.md").read_text()
    page = Path("runs/demo/report.html").read_text()
    assert "<title>demo" in page and "runs/demo" not in page.partition("</head>")[0]
    assert main(["experiments/demo.yaml"]) == 0
    assert command.started() == []
    out, err = capsys.readouterr()
    assert "### Segmentation" in out and "was already finished" in err
    # One more seed needs only its own runs.
    Path("experiments/demo.yaml").write_text(FILE.replace("[0, 1]", "[0, 1, 2]"))
    assert main(["experiments/demo.yaml", "--only", "ssd"]) == 0
    assert command.started() == ["data", "ssd-seed2"]


def test_a_failed_run_is_listed_and_the_others_continue(
    folder: Path, command: type[Machine], capsys: pytest.CaptureFixture[str]
) -> None:
    command.fail = {"run_dir=runs/demo/fcn ": "fail"}
    assert main(["experiments/demo.yaml"]) == 1
    assert command.started() == ["data", "fcn", "fcn-seed1", "ssd", "ssd-seed1"]
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
    assert command.started() == ["data", "fcn"]


def test_an_interrupted_run_is_resumed(folder: Path, command: type[Machine]) -> None:
    command.fail = {"run_dir=runs/demo/fcn ": "crash", "run_dir=runs/demo/fcn-seed1": "no test"}
    assert main(["experiments/demo.yaml", "--only", "fcn"]) == 1
    Path("runs/demo/fcn/mark").touch()
    command.fail = {}
    command.started()
    assert main(["experiments/demo.yaml", "--only", "fcn"]) == 0
    # The untested run is tested by the same command.
    assert command.started() == ["data", "fcn", "fcn-seed1"] and Path("runs/demo/fcn/mark").exists()
    # A run with the status "interrupted" is not finished.
    path = Path("runs/demo/fcn/result.json")
    replace(Record.read(path), status="interrupted").write(path)
    assert main(["experiments/demo.yaml", "--only", "fcn"]) == 0
    assert command.started() == ["data", "fcn"] and Path("runs/demo/fcn/mark").exists()
    # A run without a checkpoint is started again.
    Path("runs/demo/fcn/checkpoints/last.ckpt").unlink()
    replace(Record.read(path), status="interrupted").write(path)
    assert main(["experiments/demo.yaml", "--only", "fcn"]) == 0
    assert command.started() == ["data", "fcn"] and not Path("runs/demo/fcn/mark").exists()


@pytest.mark.parametrize(
    ("how", "run", "fault"),
    [
        ("interrupted", "ssd", "fit ended with the status interrupted"),
        ("no test", "fcn", "test ended with exit status 2"),
    ],
)
def test_a_command_that_does_not_finish_is_a_failure(
    how: str, run: str, fault: str, folder: Path, command: type[Machine], capsys: pytest.CaptureFixture[str]
) -> None:
    command.fail = {"run_dir": how}
    assert main(["experiments/demo.yaml", "--only", run]) == 1
    assert fault in capsys.readouterr().err
    assert read_state(Path("runs/demo") / run).fault.startswith(fault)


def test_changed_settings_are_listed_and_need_rerun(folder: Path, command: type[Machine]) -> None:
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
    assert command.started() == ["data", "ssd"] and not Path("runs/demo/ssd/mark").exists()
    with pytest.raises(UserError, match=r"\(--trainer.max_time was 00:00:10:00\)"):
        main(["experiments/demo.yaml", "--overrides", "trainer.max_time=00:00:20:00"])
    with pytest.raises(UserError, match=r"\(--trainer.max_epochs is new\)"):
        main(["experiments/demo.yaml", "--overrides", "trainer.max_epochs=1"])
    Path("runs/demo/fcn.json").write_text("{")
    with pytest.raises(UserError, match=r"fcn.json, the file of its settings, is missing or corrupt"):
        main(["experiments/demo.yaml", "--only", "fcn"])


def test_a_file_that_a_config_names_is_part_of_the_settings(folder: Path, command: type[Machine]) -> None:
    Path("configs/ssd.yaml").write_text("data: shared.yaml\n")
    Path("configs/shared.yaml").write_text("class_path: VOC  # a comment\n")
    main(["experiments/demo.yaml"])
    Path("configs/shared.yaml").write_text("class_path: VOC\n")
    assert main(["experiments/demo.yaml"]) == 0
    Path("configs/shared.yaml").write_text("class_path: COCO\n")
    with pytest.raises(UserError, match=r"ssd was trained with other settings \(configs/ssd.yaml changed\)"):
        main(["experiments/demo.yaml"])


def test_ctrl_c_prints_how_to_resume(
    folder: Path, command: type[Machine], capsys: pytest.CaptureFixture[str]
) -> None:
    command.fail = {"run_dir=runs/demo/fcn-seed1": "ctrl-c"}
    assert main(["experiments/demo.yaml"]) == 130
    assert command.started() == ["data", "fcn", "fcn-seed1"]
    err = capsys.readouterr().err
    assert "to resume: segdet bench experiments/demo.yaml" in err and "FAILED" not in err
    command.fail = {}
    assert main(["experiments/demo.yaml"]) == 0
    assert command.started() == ["data", "fcn-seed1", "ssd", "ssd-seed1"]


def test_a_failed_preparation_stops_before_the_runs(folder: Path, command: type[Machine]) -> None:
    command.fail = {"data make": "fail"}
    with pytest.raises(
        UserError, match="prepare: 'segdet data make data/shapes --images 8' ended with exit status 2"
    ):
        main(["experiments/demo.yaml"])
    assert command.started() == ["data"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_the_preparation_sets_the_exit_status(
    number: signal.Signals, status: int, folder: Path, command: type[Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    def receive(*_: object) -> int:
        os.kill(os.getpid(), number)
        return 0

    monkeypatch.setattr("segdet.launch.bench.run_command", receive)
    assert main(["experiments/demo.yaml"]) == status
    assert command.started() == []


CLAIM = (
    "import os, sys, time, pathlib\nfrom segdet.launch.state import claim\nassert claim(pathlib.Path(%r))\n"
)
"""The code of another bench that has claimed a run."""


def test_a_run_of_another_bench_is_left_to_it(
    folder: Path, command: type[Machine], capsys: pytest.CaptureFixture[str]
) -> None:
    code = CLAIM % "runs/demo/fcn" + "print(flush=True)\ntime.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None and other.stdout.readline()
        assert main(["experiments/demo.yaml"]) == 0
    finally:
        other.kill()
        other.communicate()
    assert command.started() == ["data", "fcn-seed1", "ssd", "ssd-seed1"]
    assert re.search(rf"fcn +is run by another bench, process {other.pid} on ", capsys.readouterr().err)
    # A killed bench holds no run.
    assert main(["experiments/demo.yaml"]) == 0
    assert command.started() == ["data", "fcn"]


def test_a_failed_run_that_another_bench_took_over_does_not_end_the_bench(
    folder: Path, command: type[Machine], capsys: pytest.CaptureFixture[str]
) -> None:
    """The bench was paused for longer than the lease of its claim."""

    def take_over(job: Job) -> None:
        if job.name == "fcn":
            (path,) = (claim_folder(job.folder) / OWNER).glob("*.json")
            path.with_name(f"{int(path.stem) + 1:08d}.json").touch()

    command.before = take_over
    command.fail = {"run_dir=runs/demo/fcn ": "fail"}
    assert main(["experiments/demo.yaml"]) == 0
    assert command.started() == ["data", "fcn", "fcn-seed1", "ssd", "ssd-seed1"]
    assert re.search(r"fcn +was taken over by another bench", capsys.readouterr().err)


@pytest.mark.parametrize(("restarts", "started"), [("1", ["data", "ssd"]), ("0", ["data"])])
def test_a_requeued_bench_resumes_the_run_of_its_lost_node_at_once(
    restarts: str, started: list[str], folder: Path, command: type[Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease of the run has not expired. A bench that left the run to its lost owner would end without it."""
    main(["experiments/demo.yaml", "--only", "ssd"])
    command.started()
    run = Path("runs/demo/ssd")
    (run / "result.json").unlink()
    claim = replace(Claim.of_this_process(), host="elsewhere", machine="m", job="7")
    (run / OWNER).mkdir()
    (run / OWNER / "00000001.json").write_text(json.dumps(asdict(claim)))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    assert main(["experiments/demo.yaml", "--only", "ssd"]) == 0
    assert command.started() == started


def test_a_bench_needs_no_file_locks(
    folder: Path, command: type[Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", fail)
    monkeypatch.setattr("fcntl.lockf", fail)
    assert main(["experiments/demo.yaml", "--only", "ssd"]) == 0
    assert command.started() == ["data", "ssd", "ssd-seed1"]


def test_runs_that_another_bench_has_trained_again_are_kept(folder: Path, command: type[Machine]) -> None:
    """Two benches with --rerun do not repeat each other's runs."""
    main(["experiments/demo.yaml", "--only", "ssd"])
    Path("configs/ssd.yaml").write_text("other: 1\n")
    command.calls.clear()

    def train_the_other(job: Job) -> None:
        command.before = None
        path = Path("experiments/demo.yaml")
        other = plan(read_experiment(path), Path("runs"), only=["ssd"], rerun=True)[1]
        assert other.start(path) == "train"
        command.run(other.command, other.log_path, "ab")

    command.before = train_the_other
    assert main(["experiments/demo.yaml", "--only", "ssd", "--rerun"]) == 0
    assert command.started() == ["data", "ssd-seed1", "ssd"]


@pytest.mark.parametrize("state", ["new", "interrupted", "untested"])
def test_runs_that_another_bench_has_finished_in_the_meantime_are_kept(
    state: str, folder: Path, command: type[Machine]
) -> None:
    """The other bench had started the run already when this one was planned."""
    path = Path("experiments/demo.yaml")
    if state != "new":
        command.fail = {"run_dir=runs/demo/fcn": "interrupted" if state == "interrupted" else "no test"}
        main([str(path), "--only", "fcn"])
        command.fail = {}
    else:
        plan(read_experiment(path), Path("runs"), only=["fcn"])[1].start(path)
    command.calls.clear()

    def finish_the_other(job: Job) -> None:
        command.before = None
        other = plan(read_experiment(path), Path("runs"), only=["fcn"])[1]
        command.run(other.command, other.log_path, "ab")

    command.before = finish_the_other
    assert main([str(path), "--only", "fcn"]) == 0
    assert command.started() == ["data", "fcn-seed1", "fcn"]


def test_a_bench_that_waits_for_the_preparation_of_another_one_prints_it_once(
    folder: Path, command: type[Machine], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = CLAIM % f"runs/demo/{PREPARATION}" + "print(flush=True)\ntime.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    waits = iter([None, None, None, other.kill])

    def sleep(seconds: float) -> None:
        if (act := next(waits, None)) is not None:
            act()
            other.wait()

    monkeypatch.setattr("segdet.launch.bench.time.sleep", sleep)
    try:
        assert other.stdout is not None and other.stdout.readline()
        assert main(["experiments/demo.yaml", "--only", "ssd"]) == 0
    finally:
        other.kill()
        other.communicate()
    err = capsys.readouterr().err
    assert err.count("which prepares the data") == 1 and f"waiting for process {other.pid} on " in err


def test_a_run_uses_an_earlier_run(folder: Path, command: type[Machine]) -> None:
    write_dependent_runs()
    assert main(["experiments/turn.yaml"]) == 0
    fits = {call.split("--run_dir=")[1].split()[0]: call for call in command.calls if call.startswith("fit")}
    assert '--model.weights={"a": "runs/turn/fcn"} ' in fits["runs/turn/ssd"]
    assert '--model.weights={"a": "runs/turn/fcn-seed1"} ' in fits["runs/turn/ssd-seed1"]
    for first, second in (("fcn", "ssd"), ("fcn-seed1", "ssd-seed1")):
        begun = [command.calls.index(fits[f"runs/turn/{name}"]) for name in (first, second)]
        assert begun == sorted(begun)


def test_a_run_waits_for_the_run_that_it_uses(folder: Path, command: type[Machine]) -> None:
    """A waiting run leaves its slot to others."""
    command.hold = {"fcn"}
    write_dependent_runs()
    assert main(["experiments/turn.yaml"]) == 0
    assert command.started() == ["fcn-seed1", "ssd-seed1", "fcn", "ssd"]


def test_a_run_is_not_started_without_the_run_that_it_uses(
    folder: Path, command: type[Machine], capsys: pytest.CaptureFixture[str]
) -> None:
    write_dependent_runs()
    with pytest.raises(UserError, match="--only: ssd uses fcn, which is not finished; name it as well"):
        main(["experiments/turn.yaml", "--only", "ssd"])
    command.fail = {"--run_dir=runs/turn/fcn ": "fail"}
    write_dependent_runs("overrides: {model.width: 1}")
    assert main(["experiments/turn.yaml"]) == 1
    assert "fcn, which it uses, is not finished" in capsys.readouterr().err
    assert not any("runs/turn/ssd " in call for call in command.calls)
    assert any("runs/turn/ssd-seed1" in call for call in command.calls)
    command.fail = {}
    assert main(["experiments/turn.yaml", "--only", "fcn"]) == 0
    assert main(["experiments/turn.yaml", "--only", "ssd"]) == 0


def test_a_run_that_used_a_changed_run_is_trained_again(folder: Path, command: type[Machine]) -> None:
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


def test_the_folder_of_the_runs_is_not_a_setting(folder: Path, command: type[Machine]) -> None:
    write_dependent_runs()
    assert main(["experiments/turn.yaml"]) == 0
    command.calls.clear()
    assert main(["experiments/turn.yaml", "--runs_dir", str(Path("runs").resolve())]) == 0
    assert command.calls == []
    Path('a "b').mkdir()
    assert main(["experiments/turn.yaml", "--runs_dir", 'a "b']) == 0
    given = [
        call.split("--model.weights=")[1].split(" --run_dir")[0]
        for call in command.calls
        if "--model.weights=" in call
    ]
    assert sorted(json.loads(each)["a"] for each in given) == ['a "b/turn/fcn', 'a "b/turn/fcn-seed1']


def test_wrong_arguments_are_reported_in_one_line(folder: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean experiments/demo\.yaml"):
        read_experiment("experiments/dmo.yaml")
    experiment = read_experiment("experiments/demo.yaml")
    with pytest.raises(UserError, match=r"has no run 'fcm'; did you mean fcn\?"):
        plan(experiment, Path("runs"), only=["fcm"])
    with pytest.raises(UserError, match=r"'trainer\.max_epochs' is not KEY=VALUE"):
        plan(experiment, Path("runs"), overrides=["trainer.max_epochs"])


def test_at_once_is_at_least_one(folder: Path, command: type[Machine]) -> None:
    with pytest.raises(UserError, match="--at_once 0: must be at least 1"):
        main(["experiments/demo.yaml", "--at_once", "0"])
    assert main(["experiments/demo.yaml", "--at_once", "3"]) == 0
    assert command.started() == ["data", "fcn", "fcn-seed1", "ssd", "ssd-seed1"]


def test_the_settings_are_kept_beside_the_run(folder: Path, command: type[Machine]) -> None:
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
    assert "training" in err and "epoch 1/1" in err  # shows progress
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
