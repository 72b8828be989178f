"""The engine with a source that chooses jobs one by one, such as a sweep."""

import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from segdet.launch.engine import Engine
from segdet.launch.job import Job


class Machine:
    """An executor without processes. A job ends when it is signalled, or at the third call of `ended`."""

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once
        self.looks: dict[str, int] = {}
        self.jobs: list[Job] = []
        self.status: dict[str, int] = {}

    def free(self) -> int:
        return self.at_once - len(self.jobs)

    def start(self, job: Job) -> None:
        self.jobs.append(job)
        self.looks[job.name] = 0

    def running(self) -> Sequence[Job]:
        return list(self.jobs)

    def ended(self) -> list[tuple[Job, int]]:
        for job in self.jobs:
            self.looks[job.name] += 1
            if self.looks[job.name] == 3:
                self.status.setdefault(job.name, 0)
        ended = [job for job in self.jobs if job.name in self.status]
        self.jobs = [job for job in self.jobs if job not in ended]
        return [(job, self.status[job.name]) for job in ended]

    def signal(self, job: Job, number: int) -> None:
        self.status[job.name] = 128 + number


class Trials:
    """A source of five jobs. It stops the second one early, and has no new job while two have not ended."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.created = 0
        self.results: dict[str, tuple[int, bool]] = {}
        self.fail_at = fail_at

    def next(self) -> Job | None:
        if self.created == self.fail_at:
            raise OSError("the storage does not respond")
        if self.created == 5 or self.created - len(self.results) >= 2:
            return None
        self.created += 1
        return Job(Path(f"t{self.created}"), ("--model=FCN",))

    def is_complete(self) -> bool:
        return len(self.results) == 5

    def should_stop(self, job: Job) -> bool:
        return job.name == "t2"

    def ended(self, job: Job, status: int, stopped: bool) -> str:
        self.results[job.name] = (status, stopped)
        return f"ended with {status}"


class Display:
    def __init__(self) -> None:
        self.messages: list[str] = []
        self.most = 0

    def update(self, running: Sequence[Job]) -> None:
        self.most = max(self.most, len(running))

    def message(self, text: str) -> None:
        self.messages.append(text)


def test_a_source_chooses_and_stops_jobs_while_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segdet.launch.engine.WATCH", 0.0)
    source, display = Trials(), Display()
    assert Engine(source, Machine(3), display, poll=0.0).run() == 0
    assert source.results == {f"t{i}": ((143 if i == 2 else 0), False) for i in range(1, 6)}
    assert display.most == 2 and "t2: ended with 143" in display.messages


def test_a_signal_stops_jobs_and_starts_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segdet.launch.engine.WATCH", 0.0)

    class Interrupted(Trials):
        def should_stop(self, job: Job) -> bool:
            if job.name == "t1":
                signal.raise_signal(signal.SIGINT)
            return False

    source = Interrupted()
    assert Engine(source, Machine(3), Display(), poll=0.0).run() == 130
    assert source.results == {"t1": (130, True), "t2": (130, True)}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_of_the_source_stops_the_jobs() -> None:
    machine = Machine(3)
    with pytest.raises(OSError, match="the storage does not respond"):
        Engine(Trials(fail_at=1), machine, Display(), poll=0.0).run()
    assert machine.status == {"t1": 143} and not machine.jobs


def test_a_job_is_one_command() -> None:
    job = Job(Path("runs/x/a"), ("--config", "a.yaml"))
    assert job.command == ("fit", "--config", "a.yaml", "--run_dir=runs/x/a", "--resume=auto", "--test=true")
    assert Job(Path("a"), (), test=False).command == ("fit", "--run_dir=a", "--resume=auto")
