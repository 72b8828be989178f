"""Run the trials of a sweep in processes on this machine."""

import contextlib
import functools
import threading

from segdet.launch.job import Job
from segdet.launch.local import Slots, print_status, run_command, stoppable
from segdet.launch.sweep import SweepJobs
from segdet.util.errors import UserError

POLL = 1.0
"""The seconds between two checks of the metrics of the running trials, and between two searches for a trial."""


def run_workers(jobs: SweepJobs, workers: int) -> int:
    """Run trials, several at a time, until all trials of the sweep have ended.

    Returns:
        The exit status: 0, or 130 if the sweep was interrupted.
    """
    slots = Slots(workers)
    running: dict[str, Job] = {}
    stopping = threading.Event()
    watcher = threading.Thread(target=_watch, args=(jobs, slots, running, stopping), daemon=True)
    with stoppable(), jobs.renewed():
        watcher.start()
        try:
            slots.run([functools.partial(_work, jobs, slots, running, stopping)] * workers)
        except KeyboardInterrupt:
            return 130
        finally:
            stopping.set()
            watcher.join()
    return 0


def _work(jobs: SweepJobs, slots: Slots, running: dict[str, Job], stopping: threading.Event) -> None:
    while not stopping.is_set() and not slots.stopped:
        job = jobs.next()
        if job is None:
            if jobs.is_complete():
                return
            stopping.wait(POLL)
            continue
        running[job.name] = job
        print_status(f"{job.name}: starting")
        status = run_command(job.fit, job.log_path, "ab", slots, job.name)
        del running[job.name]
        print_status(f"{job.name}: {jobs.ended(job, status, stopped=slots.stopped)}")


def _watch(jobs: SweepJobs, slots: Slots, running: dict[str, Job], stopping: threading.Event) -> None:
    """Interrupt the runs that should be stopped, each once, because a second signal would end them without saving."""
    interrupted: set[int] = set()
    while not stopping.wait(POLL):
        for job in list(running.values()):
            with contextlib.suppress(
                UserError, KeyError
            ):  # the storage may respond again; the job has just ended
                if id(job) not in interrupted and jobs.should_stop(job):
                    interrupted.add(id(job))
                    slots.interrupt(job.name)
