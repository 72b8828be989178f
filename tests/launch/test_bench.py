import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest

from segdet.launch import bench as module
from segdet.launch.bench import main, plan, read_experiment
from segdet.runs.record import Cost, Record
from segdet.util.cores import usable_cores
from segdet.util.errors import UserError

FILE = """
seeds: [0, 1]
prepare: [segdet data make data/shapes --images 8]
data: configs/data.yaml
budget: {trainer.max_time: 00:00:10:00}
runs:
  fcn: {configs: [configs/fcn.yaml], overrides: {model.optim.lr: 1e-3, model.weights: null}}
  ssd: {configs: configs/ssd.yaml, test: false}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with an experiment file and the configs that it names."""
    monkeypatch.chdir(tmp_path)
    for name in ("configs/data.yaml", "configs/fcn.yaml", "configs/ssd.yaml"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("seed_everything: 0\n")
    Path("experiments").mkdir()
    Path("experiments/demo.yaml").write_text(FILE)
    return tmp_path


class Command:
    """Stands for the processes: does to the run folder what fit and test do, or fails."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fail: dict[str, str] = {}

    def __call__(self, arguments: list[str], log: Path, mode: str, *beside: object) -> int:
        call = " ".join(arguments)
        self.calls.append(call)
        with log.open(mode) as file:
            file.write(f"$ {call}\n".encode())
        for pattern, how in self.fail.items():
            if pattern in call:
                if how == "ctrl-c":
                    raise KeyboardInterrupt
                if how == "die":
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
        """What was started since the last look: ``fit fcn``, ``resume fcn``, ``test fcn``, ``data``."""
        said = []
        for call in self.calls:
            words = call.split()
            if words[0] == "fit":
                said.append(("resume " if "--ckpt_path" in call else "fit ") + self.folder(words).name)
            else:
                said.append(f"test {self.folder(words).name}" if words[0] == "test" else words[0])
        self.calls.clear()
        return said


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    fake = Command()
    monkeypatch.setattr(module, "_launch", fake)
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


def test_all_runs_once_and_never_again(
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
    assert "### Segmentation" in out and "was finished before" in err
    # One seed more needs its own runs and no other.
    Path("experiments/demo.yaml").write_text(FILE.replace("[0, 1]", "[0, 1, 2]"))
    assert main(["experiments/demo.yaml", "--only", "ssd"]) == 0
    assert command.started() == ["data", "fit ssd-seed2"]


def test_a_failure_is_told_at_the_end_and_stops_no_other(
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
    Path("configs/fcn.yaml").write_text("mended: 1\n")
    assert main(["experiments/demo.yaml", "--only", "ssd"]) == 0
    # It had nothing to keep, so that its config may be mended without further ado.
    with pytest.raises(
        UserError, match=r"fcn-seed1 was trained with other settings \(configs/fcn.yaml changed\)"
    ):
        main(["experiments/demo.yaml"])
    Path("experiments/demo.yaml").write_text(FILE.replace("[0, 1]", "[0]"))
    command.started()
    assert main(["experiments/demo.yaml"]) == 0
    assert command.started() == ["data", "fit fcn", "test fcn"]


def test_a_run_that_was_cut_off_goes_on(folder: Path, command: Command) -> None:
    command.fail = {"fit --config configs/fcn.yaml": "die"}
    assert main(["experiments/demo.yaml", "--only", "fcn"]) == 1
    command.fail = {"test --config": "fail"}
    command.started()
    assert main(["experiments/demo.yaml", "--only", "fcn"]) == 1
    assert "--ckpt_path=runs/demo/fcn/checkpoints/last.ckpt" in command.calls[1]
    assert command.started() == ["data", "resume fcn", "test fcn", "resume fcn-seed1", "test fcn-seed1"]
    command.fail = {}
    assert main(["experiments/demo.yaml", "--only", "fcn"]) == 0
    assert command.started() == ["data", "test fcn", "test fcn-seed1"]
    # A record that says "interrupted" is not a finished one.
    path = Path("runs/demo/fcn/result.json")
    replace(Record.read(path), status="interrupted").write(path)
    assert main(["experiments/demo.yaml", "--only", "fcn"]) == 0
    assert command.started() == ["data", "resume fcn", "test fcn"]


def test_a_fit_that_does_not_finish_is_a_failure(
    folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(arguments: list[str], log: Path, mode: str) -> int:
        status = command(arguments, log, mode)
        if arguments[0] == "fit":
            path = command.folder(arguments) / "result.json"
            replace(Record.read(path), status="interrupted").write(path)
        return status

    monkeypatch.setattr(module, "_launch", interrupted)
    assert main(["experiments/demo.yaml", "--only", "ssd"]) == 1
    assert "fit left the status interrupted" in capsys.readouterr().err


def test_other_settings_are_said_and_need_rerun(folder: Path, command: Command) -> None:
    Path("experiments/demo.yaml").write_text(FILE.replace("[0, 1]", "[0]"))
    main(["experiments/demo.yaml"])
    command.started()
    Path("configs/ssd.yaml").write_text("# A comment is no setting.\n" + Path("configs/ssd.yaml").read_text())
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
    with pytest.raises(UserError, match=r"fcn.json, which says with which, is missing or torn"):
        main(["experiments/demo.yaml", "--only", "fcn"])


def test_ctrl_c_says_how_to_go_on(folder: Path, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    command.fail = {"test --config": "ctrl-c"}
    assert main(["experiments/demo.yaml"]) == 130
    assert command.started() == ["data", "fit fcn", "test fcn"]
    assert "to go on where it stopped: segdet bench experiments/demo.yaml" in capsys.readouterr().err
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


def test_two_at_once_are_kept_apart(folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def again(arguments: list[str], log: Path, mode: str) -> int:
        with pytest.raises(UserError, match="another segdet bench is at work"):
            main(["experiments/demo.yaml"])
        return command(arguments, log, mode)

    monkeypatch.setattr(module, "_launch", again)
    assert main(["experiments/demo.yaml", "--only", "ssd"]) == 0


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("budget:", "budgett:", "has the unknown key 'budgett'; did you mean budget?"),
        ("overrides:", "override:", "runs.fcn has the unknown key 'override'; did you mean overrides?"),
        ("test: false", "test: 0", "runs.ssd.test is 0; it has to be true or false"),
        ("[0, 1]", "[0, 0]", "seeds is [0, 0]; it has to be a list of different whole numbers"),
        ("[0, 1]", "3", "seeds is 3; it has to be a list"),
        ("budget:", "at_once: 0\nbudget:", "at_once is 0; it has to be a whole number from 1 on"),
        ("configs/ssd.yaml", "configs/sdd.yaml", "runs.ssd.configs names configs/sdd.yaml, which is not in"),
        ("configs/ssd.yaml", "configs/sdd.yaml", "did you mean configs/ssd.yaml?"),
        ("configs/ssd.yaml", "x.yaml", "paths are relative to the current directory"),
        ("  ssd:", "  fcn:", ", line 8: 'fcn' is there twice"),
        ("  ssd:", "  a b:", "runs.a b is 'a b'; use letters"),
        ("  ssd:", "  ssd-seed1:", "runs.ssd-seed1 is 'ssd-seed1'"),
        ("{configs: configs/ssd.yaml, test: false}", "{test: false}", "runs.ssd has no key 'configs'"),
        ("{configs: configs/ssd.yaml, test: false}", "", "runs.ssd is None; it has to be a mapping"),
        (
            "model.optim.lr",
            "trainer.max_time",
            "runs.fcn.overrides sets 'trainer.max_time', which is the budget",
        ),
        ("model.optim.lr", "run_dir", "runs.fcn.overrides sets 'run_dir'; leave it to segdet bench"),
        ("model.optim.lr", "--lr", "runs.fcn.overrides has the key '--lr'; write dotted keys"),
        ("segdet data make", "rm -rf", "prepare has 'rm -rf data/shapes --images 8'; write segdet commands"),
        ("runs:", "run: [", "line"),
        ("seeds:", "name: ../x\nseeds:", "name is '../x'"),
    ],
)
def test_a_wrong_file_is_one_line(folder: Path, before: str, after: str, message: str) -> None:
    assert FILE.count(before) >= 1
    Path("experiments/demo.yaml").write_text(FILE.replace(before, after, 1))
    with pytest.raises(UserError) as error:
        read_experiment("experiments/demo.yaml")
    assert str(error.value).startswith("experiments/demo.yaml") and message in str(error.value)
    assert "\n" not in str(error.value)


def _in_turn(fcn: str = "", ssd: str = "after: fcn") -> None:
    """Writes an experiment whose second run takes from the first, with two seeds."""
    Path("experiments/turn.yaml").write_text(
        "seeds: [0, 1]\nat_once: 2\nruns:\n"
        f"  fcn: {{configs: configs/fcn.yaml, {fcn}}}\n"
        '  ssd: {configs: configs/ssd.yaml, overrides: {model.weights: {a: "{after}"}}, test: false, '
        f"{ssd}}}\n"
    )


def test_a_run_takes_from_one_above_it(folder: Path, command: Command) -> None:
    _in_turn()
    assert main(["experiments/turn.yaml"]) == 0
    fits = {call.split("--run_dir=")[1].split()[0]: call for call in command.calls if call.startswith("fit")}
    assert fits["runs/turn/ssd"].endswith('--model.weights={"a": "runs/turn/fcn"}')
    assert fits["runs/turn/ssd-seed1"].endswith('--model.weights={"a": "runs/turn/fcn-seed1"}')
    for first, second in (("fcn", "ssd"), ("fcn-seed1", "ssd-seed1")):
        begun = [command.calls.index(fits[f"runs/turn/{name}"]) for name in (first, second)]
        assert begun == sorted(begun)


def test_a_run_waits_for_the_one_that_it_takes_from(
    folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []

    def slow(arguments: list[str], log: Path, mode: str, *beside: object) -> int:
        name = command.folder(arguments).name if arguments[0] == "fit" else ""
        if name == "fcn":
            time.sleep(0.5)
        if name == "ssd":
            assert "fcn" in ended
        status = command(arguments, log, mode, *beside)
        ended.append(name)
        return status

    monkeypatch.setattr(module, "_launch", slow)
    _in_turn()
    assert main(["experiments/turn.yaml"]) == 0


def test_without_what_it_takes_from_a_run_is_not_begun(
    folder: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    _in_turn()
    with pytest.raises(UserError, match="--only: ssd takes from fcn, which is not finished; name it as well"):
        main(["experiments/turn.yaml", "--only", "ssd"])
    command.fail = {"--run_dir=runs/turn/fcn ": "exit"}
    _in_turn("overrides: {model.width: 1}")
    assert main(["experiments/turn.yaml"]) == 1
    assert "fcn, which it takes from, is not finished" in capsys.readouterr().err
    assert not any("runs/turn/ssd " in call for call in command.calls)
    assert any("runs/turn/ssd-seed1" in call for call in command.calls)
    command.fail = {}
    assert main(["experiments/turn.yaml", "--only", "fcn"]) == 0
    assert main(["experiments/turn.yaml", "--only", "ssd"]) == 0


def test_what_took_from_a_run_that_has_changed_is_trained_anew(folder: Path, command: Command) -> None:
    _in_turn()
    assert main(["experiments/turn.yaml"]) == 0
    with pytest.raises(UserError, match=r"other settings|to be trained anew"):
        main(["experiments/turn.yaml", "--overrides", "model.width=1"])
    # Its own settings are the same; those of what it takes from are not.
    _in_turn("overrides: {model.width: 1}")
    for only in ([], ["--only", "ssd"]):
        with pytest.raises(UserError, match="other settings"):
            main(["experiments/turn.yaml", *only])
    command.calls.clear()
    assert main(["experiments/turn.yaml", "--rerun"]) == 0
    assert len([call for call in command.calls if call.startswith("fit")]) == 4
    # What it took from is gone.
    shutil.rmtree("runs/turn/fcn")
    with pytest.raises(
        UserError, match="ssd took from runs/turn/fcn, which is to be trained anew; pass --rerun"
    ):
        main(["experiments/turn.yaml"])
    command.calls.clear()
    assert main(["experiments/turn.yaml", "--rerun"]) == 0
    fits = [call.split("--run_dir=")[1].split()[0] for call in command.calls if call.startswith("fit")]
    assert fits == ["runs/turn/fcn", "runs/turn/ssd"]


def test_where_runs_lie_makes_no_difference(folder: Path, command: Command) -> None:
    _in_turn()
    assert main(["experiments/turn.yaml"]) == 0
    command.calls.clear()
    assert main(["experiments/turn.yaml", "--runs_dir", str(Path("runs").resolve())]) == 0
    assert command.calls == []
    Path('a "b').mkdir()
    assert main(["experiments/turn.yaml", "--runs_dir", 'a "b']) == 0
    given = [call.split("--model.weights=")[1] for call in command.calls if "--model.weights=" in call]
    assert sorted(json.loads(each)["a"] for each in given) == ['a "b/turn/fcn', 'a "b/turn/fcn-seed1']


def test_a_run_that_waits_takes_no_lane(
    folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two lanes: the one that is free does the last run, and not the one that has to wait for the first."""
    begun: list[str] = []

    def slow(arguments: list[str], log: Path, mode: str, *beside: object) -> int:
        if arguments[0] == "fit":
            begun.append(command.folder(arguments).name)
            time.sleep(0.3)
        return command(arguments, log, mode, *beside)

    monkeypatch.setattr(module, "_launch", slow)
    _in_turn()
    text = Path("experiments/turn.yaml").read_text().replace("seeds: [0, 1]", "seeds: [0]")
    Path("experiments/turn.yaml").write_text(text + "  last: {configs: configs/data.yaml, test: false}\n")
    assert main(["experiments/turn.yaml"]) == 0
    assert begun.index("ssd") == 2


@pytest.mark.parametrize(
    ("ssd", "message"),
    [
        ("after: ssd", "runs.ssd.after is 'ssd'; it has to be the name of a run above this one"),
        ("after: [fcn]", "runs.ssd.after is ['fcn']; it has to be"),
        ("after: false", "runs.ssd.after is False; it has to be"),
        ("test: true", "runs.ssd takes something from '{after}'; name the run with the key 'after'"),
    ],
)
def test_after_names_a_run_above(folder: Path, ssd: str, message: str) -> None:
    _in_turn(ssd=ssd)
    text = Path("experiments/turn.yaml").read_text()
    Path("experiments/turn.yaml").write_text(text.replace("test: false, ", ""))
    with pytest.raises(UserError) as error:
        read_experiment("experiments/turn.yaml")
    assert message in str(error.value)


def test_what_is_taken_is_said_where_it_is_taken(folder: Path) -> None:
    _in_turn()
    path = Path("experiments/turn.yaml")
    text = path.read_text()
    path.write_text(text.replace('"{after}"', "1"))
    with pytest.raises(UserError, match=r"of which nothing is taken; write \{after\} in an override"):
        read_experiment(path)
    path.write_text('budget: {model.a: "{after}"}\n' + text)
    with pytest.raises(UserError, match=r"budget has '\{after\}'"):
        read_experiment(path)


def test_wrong_arguments_are_one_line(folder: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean experiments/demo\.yaml"):
        read_experiment("experiments/dmo.yaml")
    experiment = read_experiment("experiments/demo.yaml")
    with pytest.raises(UserError, match=r"has no run 'fcm'; did you mean fcn\?"):
        plan(experiment, Path("runs"), only=["fcm"])
    with pytest.raises(UserError, match=r"'trainer\.max_epochs' is no KEY=VALUE"):
        plan(experiment, Path("runs"), overrides=["trainer.max_epochs"])


# What follows starts real processes, of a package `segdet` that the tests make up.


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose ``python -m segdet`` runs what its ``script.py`` says."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "segdet").mkdir()
    (tmp_path / "segdet/__main__.py").write_text("import runpy\nrunpy.run_path('script.py')\n")
    (tmp_path / "segdet/__init__.py").touch()
    return tmp_path


def test_output_is_shown_as_it_comes_and_kept_without_the_bars_states(
    scripted: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("script.py").write_text(
        "import sys\nprint('begin é')\n"
        "for i in range(3): sys.stderr.write(f'\\r{i}/3')\n"
        "print('\\nend')\nprint('no newline', end='')\nsys.exit(3)\n"
    )
    assert module._launch(["fit", "--a=b c"], Path("x.log"), "wb") == 3
    assert Path("x.log").read_text() == "$ segdet fit '--a=b c'\nbegin é\n2/3\nend\nno newline\n"
    assert "begin é\n\r0/3\r1/3\r2/3\nend\nno newline" in capfd.readouterr().err
    assert module._last_line(Path("x.log")) == "no newline"


def test_a_helper_that_outlives_the_run_keeps_nobody_waiting(scripted: Path) -> None:
    Path("script.py").write_text(
        "import subprocess, sys\n"
        "helper = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(30)'])\n"
        "open('helper', 'w').write(str(helper.pid))\n"
    )
    start = time.monotonic()
    assert module._launch(["fit"], Path("x.log"), "wb") == 0
    assert time.monotonic() - start < 20
    os.kill(int(Path("helper").read_text()), signal.SIGKILL)


@pytest.mark.parametrize(
    ("number", "obedient", "times"),
    [(signal.SIGTERM, True, 1), (signal.SIGTERM, False, 2), (signal.SIGINT, True, 1)],
)
def test_a_stopped_bench_ends_its_run(scripted: Path, number: int, obedient: bool, times: int) -> None:
    Path("script.py").write_text(
        textwrap.dedent(f"""
            import os, signal, time
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            def stop(*_):
                open("asked", "w").close()
                if {obedient}:
                    raise SystemExit(0)
            signal.signal(signal.SIGINT, stop)
            open("started.part", "w").write(str(os.getpid()))
            os.replace("started.part", "started")
            while True:
                time.sleep(0.05)
            """)
    )
    Path("a.yaml").write_text("runs: {a: {configs: a.yaml}}")
    code = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as for a shell's background job
sys.path = {sys.path!r}
from segdet.launch.bench import main
sys.exit(main(["a.yaml"]))
"""
    bench = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    wait_for(Path("started"))
    for _ in range(times):
        bench.send_signal(number)
        wait_for(Path("asked"))
    _, err = bench.communicate(timeout=30)
    assert bench.returncode == 130 and "to go on where it stopped: segdet bench a.yaml" in err
    with pytest.raises(ProcessLookupError):
        os.kill(int(Path("started").read_text()), 0)


TOGETHER = """
import os, sys, time
run = next(a.split("=", 1)[1] for a in sys.argv if a.startswith("--run_dir=")).rsplit("/", 1)[1]
open(f"share-{run}", "w").write(os.environ["OMP_NUM_THREADS"] + " " + os.environ["SEGDET_CORES"])
open(f".started-{run}", "w").write(str(os.getpid()))
os.replace(f".started-{run}", f"started-{run}")  # whole, once it is there
sys.stderr.write(f"\\repoch {run} 1/2")
"""


def test_runs_at_once_share_the_cores_and_are_shown_side_by_side(
    scripted: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each of two waits for the other, which would never come if they were done in turn."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    Path("script.py").write_text(
        TOGETHER
        + "end = time.monotonic() + 20\n"
        + "while not all(map(os.path.exists, ('started-a', 'started-b'))):\n"
        + "    assert time.monotonic() < end\n    time.sleep(0.02)\n"
        + "time.sleep(1)\nprint()\nsys.exit(3)\n"
    )
    Path("x.yaml").write_text("at_once: 2\nruns: {a: {configs: x.yaml}, b: {configs: x.yaml}}")
    assert main(["x.yaml"]) == 1
    share = max(1, usable_cores() // 2)
    assert Path("share-a").read_text() == Path("share-b").read_text() == f"{share} {share}"
    err = capfd.readouterr().err
    assert "epoch a 1/2" in err + Path("runs/x/a.log").read_text()
    assert err.index("  a  FAILED") < err.index("  b  FAILED") and "exit status 3 (epoch b 1/2)" in err


def test_runs_at_once_are_all_ended(scripted: Path) -> None:
    Path("script.py").write_text(TOGETHER + "while True:\n    time.sleep(0.05)\n")
    Path("x.yaml").write_text("runs: {a: {configs: x.yaml}, b: {configs: x.yaml}, c: {configs: x.yaml}}")
    code = f"""
import sys
sys.path = {sys.path!r}
from segdet.launch.bench import main
sys.exit(main(["x.yaml", "--at_once", "2"]))
"""
    bench = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    for name in "ab":
        wait_for(Path(f"started-{name}"))
    bench.send_signal(signal.SIGTERM)
    _, err = bench.communicate(timeout=30)
    assert bench.returncode == 130 and "to go on where it stopped: segdet bench x.yaml" in err
    assert not Path("started-c").exists()
    for name in "ab":
        with pytest.raises(ProcessLookupError):
            os.kill(int(Path(f"started-{name}").read_text()), 0)


def test_at_once_is_at_least_one(folder: Path, command: Command) -> None:
    with pytest.raises(UserError, match="--at_once 0: give at least 1"):
        main(["experiments/demo.yaml", "--at_once", "0"])
    assert main(["experiments/demo.yaml", "--at_once", "3"]) == 0
    assert sorted(command.started()) == sorted(
        ["data", "fit fcn", "test fcn", "fit fcn-seed1", "test fcn-seed1", "fit ssd", "fit ssd-seed1"]
    )


def wait_for(path: Path) -> None:
    end = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.02)


def test_the_settings_are_kept_beside_the_run(folder: Path, command: Command) -> None:
    main(["experiments/demo.yaml", "--only", "ssd"])
    settings = json.loads(Path("runs/demo/ssd.json").read_text())
    assert set(settings) == {"configs/ssd.yaml", "configs/data.yaml", "seed", "--trainer.max_time"}


# What follows is shipped, or the real command.

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("path", sorted(ROOT.glob("experiments/*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_experiment_is_sound_and_opens_with_its_command(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    experiment = read_experiment(path.relative_to(ROOT))
    lines = path.read_text().splitlines()[:3]
    assert all(line.startswith("# ") for line in lines)
    assert lines[1].startswith(f"# segdet bench experiments/{path.name}")
    assert len(plan(experiment, Path("absent"))) == len(experiment.runs) * len(experiment.seeds)


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
    assert "epoch 1/1" in err  # progress is shown
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
