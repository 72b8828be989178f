"""Keep the page of running experiments up to date."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from segdet.launch.state import find_runs, read_state
from segdet.profiling.result import PROFILE_NAME
from segdet.report.page import page_of, write_page
from segdet.report.run_data import find_run_folders
from segdet.runs.record import RECORD_NAME

FILES = ("provenance.json", "config.yaml", "metrics.csv", RECORD_NAME, PROFILE_NAME)
"""The files of a run whose change makes the page outdated."""

INTERVAL = 5.0
"""The seconds between two looks at the files, and between two loads of the page by the browser."""

ACTIVE = ("running", "new", "waiting")
"""The states of runs that have not ended."""

_PAUSE = 4
"""The shortest pause after a page in units of the time that writing it took: pages take a fifth of the time."""

State = dict[Path, tuple[str, tuple[int, ...]]]
"""The state in one word of each run folder, and the times of its files."""


def watch_page(
    folders: Sequence[Path],
    path: Path,
    interval: float = INTERVAL,
    sleep: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Write the page whenever a file of a run changes, until all runs have ended.

    The browser reloads the page until all runs have ended. Writing the page of large tests takes many seconds. The
    pause after it grows with this time, which leaves most of the processor to the runs.

    Args:
        folders: Folders of runs. Their runs may not have started yet.
        path: The page.
        interval: The least number of seconds between two looks at the files.
        sleep: The function that waits.
        clock: The function that returns the time in seconds.

    Raises:
        UserError: If a folder does not exist or the page cannot be written.
    """
    before: State | None = None
    while True:
        now = state_of(folders)
        is_active = not now or any(state in ACTIVE for state, _ in now.values())
        started = clock()
        try:
            if now != before or not is_active:
                write_page(page_of(folders, refresh=interval if is_active else None), path)
                before = now
            if not is_active:
                return
            sleep(max(interval, _PAUSE * (clock() - started)))
        except KeyboardInterrupt:
            write_page(page_of(folders), path)  # a page that is not reloaded
            raise


def state_of(folders: Sequence[Path]) -> State:
    """Return the state of all runs under ``folders``, including those of a bench that have not started."""
    found: dict[Path, Path | None] = {run.folder: None for run in find_run_folders(folders)}
    found |= {run.absolute(): after for folder in folders for run, after in find_runs(folder).items()}
    return {
        folder: (read_state(folder, after).status, tuple(_time(folder / name) for name in FILES))
        for folder, after in found.items()
    }


def _time(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
