"""Trials in SQLite and PostgreSQL: claims, leases, retries, the search, and workers that are killed at random."""

import multiprocessing
import os
import random
import re
import signal
import time
import warnings
from collections import Counter
from pathlib import Path

import pytest

from segdet.launch.sweep_file import read_sweep
from segdet.launch.sweep_trials import SweepTrials, Trial
from segdet.util.errors import UserError

FILE = """\
name: NAME
method: METHOD
metric: {name: val/miou, goal: maximize}
run_cap: 12
parameters:
  x: {min: 0, max: 11}
  y: {value: [1, null]}
command: [segdet, fit, "${args}"]
"""


def write(folder: Path, method: str = "random", name: str = "demo", extra: str = "") -> Path:
    path = folder / "demo.yaml"
    path.write_text(FILE.replace("METHOD", method).replace("NAME", name) + extra)
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A storage of each kind. The tests of one session share the database; each uses another name of the sweep."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/sweep/sweep.db"
    return str(request.getfixturevalue("postgresql"))


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return re.sub(r"\W+", "-", request.node.name).strip("-")


def finish_all(trials: SweepTrials, owner: str = "me") -> list[Trial]:
    while (trial := trials.claim(owner)) is not None:
        trials.end(owner, trial.number, "finished", float(trial.point["x"]))
    return trials.all()


@pytest.mark.parametrize("method", ["grid", "random", "bayes"])
def test_every_trial_is_claimed_once_and_a_second_worker_continues(
    tmp_path: Path, url: str, name: str, method: str
) -> None:
    sweep = read_sweep(write(tmp_path, method, name))
    trials = SweepTrials(sweep, url)
    first, second = trials.claim("a"), SweepTrials(sweep, url).claim("b")
    assert first is not None and second is not None
    assert (first.number, second.number) == (0, 1) and first.point["y"] == [1, None]
    assert not trials.end("b", 0, "finished", 1.0) and trials.end("a", 0, "finished", 0.5)
    ended = finish_all(trials, "a")
    assert [trial.number for trial in ended] == list(range(12))
    assert [trial.state for trial in ended].count("finished") == 11 and not trials.is_complete()
    assert trials.end("b", 1, "failed", reason="diverged") and trials.is_complete()
    assert trials.all()[1].reason == "diverged" and trials.claim("a") is None
    if method == "grid":
        assert sorted(trial.point["x"] for trial in ended) == list(range(12))


@pytest.mark.parametrize("method", ["grid", "random"])
def test_the_order_of_trials_follows_from_the_seed(tmp_path: Path, method: str) -> None:
    def points(run: int, seed: int) -> list[object]:
        sweep = read_sweep(write(tmp_path, method))
        return [each.point for each in finish_all(SweepTrials(sweep, f"sqlite:///{tmp_path}/{run}.db", seed))]

    assert points(1, 0) == points(2, 0) != points(3, 1)


def test_a_trial_is_continued_after_its_lease_and_its_late_owner_records_nothing(
    tmp_path: Path, url: str, name: str
) -> None:
    trials = SweepTrials(read_sweep(write(tmp_path, name=name)), url)
    assert trials.claim("slow") is not None
    other = trials.claim("fast")
    assert other is not None and other.number == 1
    assert trials.renew("slow", [0]) == []
    trials.lease = -1.0
    assert trials.renew("slow", [0]) == []  # the lease has expired
    trials.lease = 100.0
    assert trials.claim("fast", busy=lambda trial: True).number == 2  # type: ignore[union-attr]
    again = trials.claim("fast")
    assert again is not None and again.number == 0 and again.claim.attempts == 2
    assert trials.renew("slow", [0]) == [0]
    assert not trials.end("slow", 0, "finished", 1.0) and not trials.release("slow", 0, 1)
    assert trials.all()[0].state == "running" and trials.all()[0].claim.owner == "fast"


def test_a_released_trial_is_claimed_at_once_with_its_failures(tmp_path: Path, url: str, name: str) -> None:
    trials = SweepTrials(read_sweep(write(tmp_path, name=name)), url)
    assert trials.claim("a") is not None and trials.release("a", 0, failures=2)
    again = trials.claim("b")
    assert again is not None and (again.number, again.claim.failures, again.claim.attempts) == (0, 2, 2)


def test_a_larger_run_cap_continues_the_same_search(tmp_path: Path, url: str, name: str) -> None:
    path = write(tmp_path, name=name)
    short = finish_all(SweepTrials(read_sweep(path), url))
    path.write_text(path.read_text().replace("run_cap: 12", "run_cap: 14"))
    longer = finish_all(SweepTrials(read_sweep(path), url))
    assert len(longer) == 14 and longer[:12] == short


@pytest.mark.parametrize(
    ("old", "new", "seed", "difference"),
    [
        ("max: 11", "max: 12", None, 'parameters.x was {"min": 0, "max": 11} and is {"min": 0, "max": 12}'),
        ("parameters:\n", "parameters:\n  z: {values: [1, 2]}\n", None, "parameters.z is new"),
        ("  y: {value: [1, null]}\n", "", None, 'parameters.y was {"value": [1, null]} and is removed'),
        ("goal: maximize", "goal: minimize", None, '"goal": "maximize"'),
        ("run_cap", "run_cap", 5, "the seed was 0 and is 5"),
    ],
)
def test_another_search_is_refused_with_the_difference(
    tmp_path: Path, old: str, new: str, seed: int | None, difference: str
) -> None:
    path, url = write(tmp_path), f"sqlite:///{tmp_path}/sweep.db"
    SweepTrials(read_sweep(path), url).claim("a")
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match="has trials of another search") as caught:
        SweepTrials(read_sweep(path), url, seed)
    assert difference in str(caught.value) and "\n" not in str(caught.value)


def test_a_changed_config_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config, url = Path("fcn.yaml"), f"sqlite:///{tmp_path}/sweep.db"
    config.write_text("model: FCN\n")
    path = write(tmp_path)
    path.write_text(path.read_text().replace("[segdet, fit,", "[segdet, fit, --config, fcn.yaml,"))
    SweepTrials(read_sweep(path), url).claim("a")
    config.write_text("# A comment.\nmodel: FCN\n")
    SweepTrials(read_sweep(path), url)
    config.write_text("model: UNet\n")
    with pytest.raises(UserError, match=r"the content of fcn.yaml was \"\w+\" and is \"\w+\""):
        SweepTrials(read_sweep(path), url)


def test_a_file_can_be_corrected_before_the_first_trial(tmp_path: Path, url: str, name: str) -> None:
    path = write(tmp_path, name=name)
    SweepTrials(read_sweep(path), url, seed=3)
    path.write_text(path.read_text().replace("max: 11", "max: 5").replace("maximize", "minimize"))
    trials = SweepTrials(read_sweep(path), url)
    assert trials.seed == 0 and all(trial.point["x"] <= 5 for trial in finish_all(trials))
    assert trials.study.direction.name == "MINIMIZE"


def test_no_trial_starts_after_the_target(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_text(path.read_text().replace("goal: maximize", "goal: maximize, target: 5"))
    trials = SweepTrials(read_sweep(path), f"sqlite:///{tmp_path}/sweep.db")
    for score in (4.0, 5.0):
        trial = trials.claim("a")
        assert trial is not None and trials.end("a", trial.number, "finished", score)
    assert trials.claim("a") is None and trials.is_complete() and len(trials.all()) == 2


@pytest.mark.parametrize("goal", ["maximize", "minimize"])
def test_hyperband_stops_the_worse_half(tmp_path: Path, url: str, name: str, goal: str) -> None:
    path = write(tmp_path, name=name, extra="early_terminate: {type: hyperband, min_iter: 2, eta: 2}\n")
    path.write_text(path.read_text().replace("maximize", goal))
    trials = SweepTrials(read_sweep(path), url)
    for _ in range(4):
        assert trials.claim("a") is not None
    sign = 1 if goal == "maximize" else -1
    good, bad = [sign * 0.5, sign * 0.6], [sign * 0.9, sign * 0.1]
    assert not trials.report("a", 0, good[:1]) and not trials.report("a", 0, good)
    assert not trials.report("a", 1, [sign * 0.4, sign * 0.9])
    # The best value so far counts, so the second trial with a good first value goes on.
    assert not trials.report("a", 2, bad)
    assert trials.report("a", 3, [sign * 0.3, sign * 0.2])
    assert trials.report("a", 3, [sign * 0.3, sign * 0.2]) and trials.all()[3].is_bad
    assert trials.end("a", 3, "stopped", sign * 0.3)
    assert trials.all()[3].state == "stopped" and dict(trials.all()[0].values) == {1: good[0], 2: good[1]}


def test_bayes_improves_on_random_trials_and_keeps_parallel_trials_apart(tmp_path: Path) -> None:
    text = (
        FILE.replace("METHOD", "bayes")
        .replace("NAME", "b")
        .replace("{min: 0, max: 11}", "{min: 0.0, max: 1.0}")
    )
    path = tmp_path / "b.yaml"
    path.write_text(text.replace("run_cap: 12", "run_cap: 40"))
    trials = SweepTrials(read_sweep(path), f"sqlite:///{tmp_path}/sweep.db")
    for _ in range(20):
        both = [trials.claim("a"), trials.claim("a")]
        for trial in both:
            assert trial is not None
            trials.end("a", trial.number, "finished", -((trial.point["x"] - 0.3) ** 2))
    found = [trial.point["x"] for trial in trials.all()]
    assert len(set(found)) == 40
    late = [abs(x - 0.3) for x in found[20:]]
    assert sum(late) / 20 < 0.5 * sum(abs(x - 0.3) for x in found[:10]) / 10


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://a", "--storage mysql://a: must be sqlite:///FILE or postgresql://USER@HOST/DATABASE"),
        ("sqlite:////proc/none/a.db", "--storage sqlite:////proc/none/a.db: cannot be used"),
        (
            "postgresql://u:secret@127.0.0.1:1/a",
            "--storage postgresql+psycopg://u:***@127.0.0.1:1/a: cannot be used",
        ),
    ],
)
def test_a_storage_that_cannot_be_used_is_reported_in_one_line(
    tmp_path: Path, url: str, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        SweepTrials(read_sweep(write(tmp_path)), url)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def work(path: Path, url: str, seed: int) -> None:
    """Work on trials like a worker. Sleep at random, so that a kill may hit any point of a transaction."""
    source = random.Random(seed)
    trials = SweepTrials(read_sweep(path), url, lease=1.0)
    owner = f"{os.getpid()}"
    while not trials.is_complete():
        trial = trials.claim(owner)
        if trial is None:
            time.sleep(0.05)
            continue
        for count in range(1, 4):
            trials.report(owner, trial.number, [trial.point["x"] * each for each in range(1, count + 1)])
            time.sleep(0.3 * source.random())
            trials.renew(owner, [trial.number])
        trials.end(owner, trial.number, "finished", float(trial.point["x"]))


def test_no_trial_is_lost_or_repeated_when_workers_are_killed(tmp_path: Path, url: str, name: str) -> None:
    path = write(tmp_path, "grid", name)
    source = random.Random(0)
    context = multiprocessing.get_context("fork")

    def start(seed: int) -> "multiprocessing.context.ForkProcess":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # about fork in a process with threads
            process = context.Process(target=work, args=(path, url, seed))
            process.start()
        return process

    workers = [start(seed) for seed in range(3)]
    kills = 0
    while kills < 10:
        time.sleep(0.1 + 0.3 * source.random())
        victim = source.randrange(3)
        os.kill(workers[victim].pid or 0, signal.SIGKILL)
        workers[victim].join()
        kills += workers[victim].exitcode == -signal.SIGKILL
        workers[victim] = start(10 + kills)
        if SweepTrials(read_sweep(path), url).is_complete():
            break
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    ended = SweepTrials(read_sweep(path), url).all()
    assert kills >= 5
    assert Counter(trial.point["x"] for trial in ended) == Counter(range(12))
    assert all(trial.state == "finished" and trial.score == trial.point["x"] for trial in ended)
    assert all(dict(trial.values) == {n: n * trial.point["x"] for n in (1, 2, 3)} for trial in ended)
