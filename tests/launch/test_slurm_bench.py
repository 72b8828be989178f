"""Runs and workers that are submitted to SLURM, with stand-ins for its commands."""

import subprocess
import sys
from pathlib import Path

import pytest
from experiment_files import write_dependent_runs

from segdet.cli.main import main

SWEEP = """
method: grid
metric: {name: val/miou, goal: maximize}
parameters:
  model.optim.lr: {values: [0.01, 0.001]}
command: [segdet, fit, --model=FCN, --data=ShapesDataModule, "${args}"]
"""

RESOURCES = "partition: gpu\ngpus: 1\n"


class FakeSlurm:
    """``sbatch``, which numbers the jobs from 17 on, and ``squeue``, which prints a queue that a test writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "calls").write_text("")
        self.queue: list[str] = []
        self._write("sbatch", f'echo "$@" >> {folder}/calls; echo $((16 + $(wc -l < {folder}/calls)))')
        self.enqueue()

    def enqueue(self, *tasks: str, state: str = "PENDING") -> None:
        """Let tasks, such as ``17_2``, be in the queue."""
        names = {str(17 + index): Path(call[-1]).stem for index, call in enumerate(self.calls())}
        lines = [f"{task}|{names[task.partition('_')[0]]}|{state}|Priority" for task in tasks]
        self._write("squeue", "\n".join(f"echo '{line}'" for line in lines))

    def calls(self) -> list[list[str]]:
        """Return the arguments of each call of ``sbatch``."""
        return [line.split() for line in (self.folder / "calls").read_text().splitlines()]

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)


@pytest.fixture
def slurm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    (folder / "bin").mkdir()
    (folder / "cluster.yaml").write_text(RESOURCES)
    monkeypatch.setenv("PATH", f"{folder}/bin:/usr/bin:/bin")
    return FakeSlurm(folder / "bin")


def bench(*words: str) -> int:
    return main(["bench", *words, "--launcher=slurm", "--slurm=cluster.yaml"])


def test_runs_in_the_queue_are_not_submitted_again(
    slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("experiments/demo.yaml") == 0
    prepare, runs = slurm.calls()
    assert "--dependency=afterok:17_0" in runs and "--dependency" not in " ".join(prepare)
    script = Path(runs[-1]).read_text()
    assert [name in script for name in ("fcn", "fcn-seed1", "ssd", "ssd-seed1")] == [True] * 4
    slurm.enqueue("17_0", "18_0", "18_1", "18_2")
    assert bench("experiments/demo.yaml") == 0
    assert len(slurm.calls()) == 3
    last = slurm.calls()[-1]
    assert "ssd-seed1" in Path(last[-1]).read_text() and "--dependency=afterok:17_0" in last
    slurm.enqueue("18_0", "18_1", "18_2", "19_0", state="RUNNING")
    capsys.readouterr()
    assert bench("experiments/demo.yaml") == 0
    assert len(slurm.calls()) == 3
    assert "ssd-seed1: running (Priority), job 19_0" in capsys.readouterr().err
    assert main(["status", "runs/demo"]) == 0
    assert "running (Priority), job 18_1" in capsys.readouterr().out


def test_two_processes_do_not_submit_the_same_runs(
    slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (
        "import pathlib, time\nfrom segdet.launch.slurm_bench import sole_submission\n"
        "with sole_submission(pathlib.Path('runs/demo')):\n    print(flush=True)\n    time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None and other.stdout.readline()
        assert bench("experiments/demo.yaml") == 2
        assert "another process is submitting these runs" in capsys.readouterr().err
        assert bench("experiments/demo.yaml", "--dry_run") == 0
    finally:
        other.kill()
        other.communicate()
    assert slurm.calls() == []
    assert bench("experiments/demo.yaml") == 0
    assert main(["status", "runs/demo"]) == 0
    assert "_submit" not in capsys.readouterr().out


def test_a_run_that_left_the_queue_without_a_checkpoint_has_failed(
    slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("experiments/demo.yaml") == 0
    slurm.enqueue("18_1", "18_2", "18_3")
    Path("runs/demo/fcn.log").write_text(
        "segdet: error: --data.x: no such option\nsrun: error: n1: task 0: Exited\n"
    )
    capsys.readouterr()
    assert main(["status", "runs/demo"]) == 0
    out = capsys.readouterr().out
    assert "fcn: segdet: error: --data.x: no such option\n" in out and "1 failed" in out


def test_a_run_waits_for_the_run_that_it_uses(slurm: FakeSlurm) -> None:
    write_dependent_runs()
    assert bench("experiments/turn.yaml") == 0
    _, *others = slurm.calls()
    assert [call[:-1] for call in others] == [
        ["--parsable", f"--dependency=afterok:17_{seed}", "--kill-on-invalid-dep=yes"] for seed in (0, 1)
    ]
    slurm.enqueue("17_0", "17_1", "19_0")
    assert bench("experiments/turn.yaml") == 0
    assert slurm.calls()[3:] and slurm.calls()[3][1] == "--dependency=afterok:17_0"


def test_a_dry_run_prints_the_scripts(slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("experiments/demo.yaml", "--dry_run", "--at_once=2") == 0
    out = capsys.readouterr().out
    assert out.count("#!/bin/bash") == 2 and "#SBATCH --partition=gpu\n" in out
    assert "#SBATCH --array=0-3%2\n" in out
    assert slurm.calls() == [] and not Path("runs").exists()


def test_changed_settings_of_a_queued_run_are_refused(
    slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("experiments/demo.yaml") == 0
    slurm.enqueue("18_0")
    assert bench("experiments/demo.yaml", "--overrides", "model.width=8") == 2
    err = capsys.readouterr().err
    assert (
        "fcn is in SLURM's queue with other settings (--model.width is new)" in err and "scancel 18_0" in err
    )


@pytest.mark.parametrize(
    ("command", "text", "message"),
    [
        (
            "sbatch",
            "echo 'sbatch: error: invalid partition specified: gpu' >&2; exit 1",
            "specified: gpu; correct",
        ),
        (
            "squeue",
            "echo 'squeue: error: Unable to contact slurm controller' >&2; exit 1",
            "controller; try again",
        ),
    ],
)
def test_errors_of_slurm_are_one_line(
    slurm: FakeSlurm, capsys: pytest.CaptureFixture[str], command: str, text: str, message: str
) -> None:
    assert bench("experiments/demo.yaml") == 0
    slurm._write(command, text)
    capsys.readouterr()
    assert bench("experiments/demo.yaml") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("segdet: error: ") and message in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--slurm=cluster.yaml"], "--slurm: has no effect without --launcher slurm"),
        (
            ["--launcher=slurm", "--devices_per_run=2"],
            "--devices_per_run: has no effect with --launcher slurm",
        ),
        (
            ["--launcher=slurm", "--slurm=clusters.yaml"],
            "clusters.yaml: no such file; did you mean cluster.yaml?",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(
    slurm: FakeSlurm, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["bench", "experiments/demo.yaml", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_workers_of_a_sweep_that_are_missing_are_submitted(
    slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("demo.yaml").write_text(SWEEP)
    sweep = ["sweep", "demo.yaml", "--launcher=slurm", "--slurm=cluster.yaml"]
    assert main([*sweep, "--workers=3", "--seed=2", "--devices_per_run=1"]) == 0
    (call,) = slurm.calls()
    script = Path(call[-1]).read_text()
    assert "#SBATCH --array=0-2\n" in script and "srun" not in script
    assert "segdet sweep demo.yaml --runs_dir=runs --lease=" in script and "--seed=2" in script
    assert "--devices_per_run=1" in script
    slurm.enqueue("17_0", "17_2", state="RUNNING")
    assert main([*sweep, "--workers=3", "--seed=2"]) == 0
    assert len(slurm.calls()) == 2 and "\n# worker-2\n" in Path(slurm.calls()[1][-1]).read_text()
    Path("cluster.yaml").write_text("nodes: 2")
    capsys.readouterr()
    assert main([*sweep, "--seed=2"]) == 2
    assert "--slurm: nodes is 2, but a worker of a sweep runs on one node" in capsys.readouterr().err
