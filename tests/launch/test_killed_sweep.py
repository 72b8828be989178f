"""Workers of a sweep as processes that are killed at random: no trial is lost, repeated or different."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import sweep_worker
from forked_process import ForkedProcess

from segdet.launch.sweep_file import read_sweep
from segdet.launch.sweep_results import best_trial
from segdet.launch.sweep_trials import SweepTrials

FILE = """\
name: NAME
method: METHOD
metric: {name: val/miou, goal: maximize}
run_cap: 12
parameters:
  x: {min: 0, max: 11}
command: [segdet, fit, "${args}"]
"""


def start(folder: Path, url: str) -> ForkedProcess:
    """Start a worker in a fork, which has imported everything already."""

    def work() -> None:
        os.chdir(folder)
        os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
        sys.exit(sweep_worker.main("demo.yaml", url, "runs"))

    return ForkedProcess(work, folder / "workers.log")


@pytest.mark.slow
@pytest.mark.timeout(900)  # on a busy machine; otherwise half a minute
@pytest.mark.parametrize(("kind", "method"), [("sqlite", "grid"), ("postgresql", "random")])
def test_twelve_trials_are_completed_by_three_workers_with_ten_kills(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str, method: str
) -> None:
    name = f"killed-{method}"
    url = f"sqlite:///{tmp_path}/trials.db" if kind == "sqlite" else request.getfixturevalue("postgresql")
    (tmp_path / "demo.yaml").write_text(FILE.replace("METHOD", method).replace("NAME", name))
    (tmp_path / "segdet").mkdir()
    (tmp_path / "segdet/__init__.py").touch()
    (tmp_path / "segdet/__main__.py").write_text(sweep_worker.FAKE_RUN)
    sweep = read_sweep(tmp_path / "demo.yaml")
    trials = SweepTrials(sweep, url)
    source, kills = random.Random(method + kind), 0
    workers = [start(tmp_path, url) for _ in range(3)]
    while kills < 10:
        time.sleep(source.uniform(0.4, 1.2))
        assert not trials.is_complete(), f"complete after {kills} kills"
        victim = source.randrange(3)
        assert workers[victim].poll() is None, (tmp_path / "workers.log").read_text()
        workers[victim].send_signal(signal.SIGKILL)
        workers[victim].wait()
        kills += 1
        workers[victim] = start(tmp_path, url)
    for worker in workers:
        assert worker.wait(400) == 0, (tmp_path / "workers.log").read_text()

    ended = trials.all()
    # The points that an undisturbed sweep has, in the same order, and every trial finished once.
    expected = [getattr(sweep.space, method)(0, number).point for number in range(12)]
    assert [trial.point for trial in ended] == expected
    assert [trial.state for trial in ended] == ["finished"] * 12
    assert {trial.score for trial in ended} == {1 - (trial.point["x"] - 7) ** 2 / 100 for trial in ended}
    best = best_trial(sweep, ended)
    assert best is not None and best.point == min(expected, key=lambda point: abs(point["x"] - 7))
    folders = [tmp_path / "runs" / trial.name for trial in ended]
    assert all((folder / "result.json").exists() for folder in folders)
    assert not any((folder / "repeated.txt").exists() for folder in folders)
    # Some trials were continued, and each value is reported once.
    assert sum(trial.claim.attempts for trial in ended) > 12
    assert all(list(trial.values) == list(range(1, 9)) for trial in ended)
