"""The jobs of a sweep's workers: their commands, and what is recorded when they end."""

import json
import os
import shutil
from pathlib import Path

import pytest

from segdet.launch.job import Job
from segdet.launch.sweep import FAILURES, KILLS, SweepJobs
from segdet.launch.sweep_file import read_sweep
from segdet.launch.sweep_trials import SweepTrials
from segdet.runs.ownership import Ownership
from segdet.runs.record import Cost, Record, Status
from segdet.util.errors import UserError

FILE = """\
method: grid
metric: {name: val/miou, goal: maximize}
parameters:
  model.width: {values: [8, 16]}
command: ["${env}", segdet, fit, --config, fcn.yaml, "${args}"]
"""


@pytest.fixture
def trials(tmp_path: Path) -> SweepTrials:
    (tmp_path / "demo.yaml").write_text(FILE)
    return SweepTrials(read_sweep(tmp_path / "demo.yaml"), f"sqlite:///{tmp_path}/demo/trials.db")


@pytest.fixture
def jobs(trials: SweepTrials, tmp_path: Path) -> SweepJobs:
    return SweepJobs(trials, tmp_path / "demo")


def claim(jobs: SweepJobs) -> Job:
    job = jobs.next()
    assert job is not None
    return job


def write_run(folder: Path, values: list[float], status: Status | None = None, checkpoint: float = 0) -> None:
    """Write the files of a run that the sweep reads."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    rows = [f"{epoch},{epoch},{value}" for epoch, value in enumerate(values)]
    (folder / "metrics.csv").write_text("\n".join(["epoch,step,val/miou", *rows]) + "\n")
    if status is not None:
        Record(folder.name, "segmentation", "FCN", "S", 0, status, {}, Cost()).write(folder / "result.json")
    if checkpoint:
        (folder / "checkpoints/last.ckpt").touch()
        os.utime(folder / "checkpoints/last.ckpt", (checkpoint, checkpoint))


def test_a_trial_is_one_command_in_its_own_folder(jobs: SweepJobs, tmp_path: Path) -> None:
    job = claim(jobs)
    width = jobs.trials.all()[0].point["model.width"]
    assert job.folder == tmp_path / "demo/trial-000"
    assert list(job.command) == [
        "fit", "--config", "fcn.yaml", f"--model.width={width}", f"--run_dir={job.folder}", "--resume=auto",
    ]  # fmt: skip
    assert SweepJobs(jobs.trials, tmp_path / "demo", test=True).next().command[-1] == "--test=true"  # type: ignore[union-attr]
    assert jobs.next() is None and not jobs.is_complete()


def test_parameters_are_written_for_the_macro_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "demo.yaml"
    path.write_text(FILE.replace('"${args}"', '--config, "${args_json_file}"'))
    jobs = SweepJobs(SweepTrials(read_sweep(path), f"sqlite:///{tmp_path}/demo/trials.db"), tmp_path / "demo")
    job = claim(jobs)
    file = tmp_path / "demo/trial-000.arguments.json"
    assert str(file) in job.command and json.loads(file.read_text()) == jobs.trials.all()[0].point


def test_a_finished_trial_has_its_best_value_as_score(jobs: SweepJobs) -> None:
    job = claim(jobs)
    write_run(job.folder, [0.1, 0.4, 0.3], "finished")
    assert not jobs.should_stop(job)
    assert jobs.ended(job, 0) == "finished with val/miou 0.4000"
    trial = jobs.trials.all()[0]
    assert (trial.state, trial.score, list(trial.values.values())) == ("finished", 0.4, [0.1, 0.4, 0.3])


def test_a_metric_that_is_not_logged_fails_the_trial(jobs: SweepJobs) -> None:
    job = claim(jobs)
    write_run(job.folder, [], "finished")
    assert jobs.ended(job, 0).startswith("failed: it logged no value of val/miou")


def test_a_diverged_trial_fails_at_once(jobs: SweepJobs) -> None:
    job = claim(jobs)
    write_run(job.folder, [0.1], "diverged")
    assert jobs.ended(job, 1) == "failed: diverged" and jobs.trials.all()[0].state == "failed"


@pytest.mark.parametrize(("status", "attempts"), [(1, FAILURES), (-9, KILLS), (143, KILLS)])
def test_a_trial_fails_after_several_attempts_without_progress(
    jobs: SweepJobs, status: int, attempts: int
) -> None:
    for attempt in range(1, attempts + 1):
        job = claim(jobs)
        assert job.name == "trial-000"
        job.log_path.write_text("starting\nout of memory\n")
        described = jobs.ended(job, status)
        assert described.startswith(
            f"attempt {attempt} ended" if attempt < attempts else "failed: exit status"
        )
    assert jobs.trials.all()[0].reason == f"exit status {status} (out of memory)"


def test_progress_resets_the_number_of_failures(jobs: SweepJobs) -> None:
    for attempt in range(1, 2 * FAILURES + 1):
        job = claim(jobs)
        write_run(job.folder, [0.1], checkpoint=attempt)
        assert jobs.ended(job, 1).startswith(f"attempt {attempt} ended with")


def test_an_interrupted_worker_gives_its_trial_up_without_a_failure(jobs: SweepJobs) -> None:
    for _ in range(FAILURES + KILLS):
        job = claim(jobs)
        assert jobs.ended(job, 130, stopped=True).startswith("interrupted")
    assert jobs.trials.all()[0].claim.failures == 0


def test_a_trial_with_a_lost_lease_is_stopped_and_not_recorded(jobs: SweepJobs, tmp_path: Path) -> None:
    jobs.trials.lease = -1.0
    job = claim(jobs)
    other = SweepJobs(jobs.trials, tmp_path / "demo")
    assert claim(other).name == job.name
    jobs.renew()
    assert jobs.should_stop(job)
    write_run(job.folder, [0.9], "finished")
    assert jobs.ended(job, 1).startswith("continued by another worker")
    assert other.ended(claim(other), 0) == "finished with val/miou 0.9000"


def test_a_trial_that_hyperband_chose_is_stopped_even_if_its_worker_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "demo.yaml"
    path.write_text(FILE + "early_terminate: {type: hyperband, min_iter: 1, eta: 2}\n")
    trials = SweepTrials(read_sweep(path), f"sqlite:///{tmp_path}/demo/trials.db", lease=-1.0)
    good, bad = SweepJobs(trials, tmp_path / "demo"), SweepJobs(trials, tmp_path / "demo")
    first = claim(good)
    write_run(first.folder, [0.5])
    assert not good.should_stop(first)
    write_run(first.folder, [0.5], "finished")
    good.ended(first, 0)
    second = claim(bad)
    write_run(second.folder, [0.2])
    assert bad.should_stop(second)
    # A killed worker records nothing more. The next one records the end and has nothing left to run.
    assert good.next() is None and good.is_complete()
    assert (trials.all()[1].state, trials.all()[1].score) == ("stopped", 0.2)


def test_a_trial_whose_folder_is_removed_starts_again(jobs: SweepJobs) -> None:
    job = claim(jobs)
    write_run(job.folder, [0.1], checkpoint=5)
    jobs.ended(job, -9)
    shutil.rmtree(job.folder)
    assert claim(jobs).command == job.command


def test_a_trial_is_not_claimed_while_its_run_is_alive(jobs: SweepJobs, tmp_path: Path) -> None:
    jobs.trials.lease = -1.0  # as if the worker had been killed, but not the run that it started
    job = claim(jobs)
    job.folder.mkdir()
    run = Ownership(job.folder)
    other = SweepJobs(jobs.trials, tmp_path / "demo")
    assert claim(other).name == "trial-001"
    run.release()
    assert claim(SweepJobs(jobs.trials, tmp_path / "demo")).name == "trial-000"


def test_a_run_of_an_earlier_sweep_is_not_taken_for_a_trial(jobs: SweepJobs, tmp_path: Path) -> None:
    job = claim(jobs)
    write_run(job.folder, [0.9], "finished")
    (tmp_path / "demo/trials.db").unlink()
    (tmp_path / "demo.yaml").write_text(FILE.replace("8, 16", "9, 17"))
    sweep = read_sweep(tmp_path / "demo.yaml")
    again = SweepJobs(SweepTrials(sweep, f"sqlite:///{tmp_path}/demo/trials.db"), tmp_path / "demo")
    for _ in range(2):  # the trial is given up, so that it can be claimed again
        with pytest.raises(
            UserError, match=r"trial-000: is not a run of .*--model.width was (8|16)\); remove"
        ):
            again.next()
    shutil.rmtree(job.folder)
    assert claim(again).name == "trial-000"
