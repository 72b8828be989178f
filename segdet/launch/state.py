"""The state of a run, read from the files in and beside its folder, and claims, which let several benches share runs.

Nothing here imports torch, so that a table of hundreds of runs appears at once.
"""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from segdet.runs.folder_layout import read_record
from segdet.runs.ownership import OwnedError, Owner, Ownership, is_claimable, owner_of
from segdet.runs.record import RECORD_NAME, Record
from segdet.util.files import write_text

LAUNCH = ".launch"
"""The folder of claims and of the list of runs, beside the run folders."""

PREPARATION = "_prepare"
"""The name of the preparation in claims and in SLURM's queue. No run has this name."""

Status = Literal["new", "waiting", "running", "stopped", "failed", "diverged", "finished", "tested"]
"""``waiting``: the run that it uses is not finished. ``stopped``: interrupted or killed, and can be resumed."""


@dataclass(frozen=True)
class RunState:
    """The state of a run.

    Attributes:
        status: The state in one word.
        owner: The live process that executes the run, or None.
        record: The record of the training, or None if there is none.
        has_checkpoint: Whether there is a checkpoint to resume from.
        fault: Why the last command failed; empty if it did not.
    """

    status: Status
    owner: Owner | None = None
    record: Record | None = None
    has_checkpoint: bool = False
    fault: str = ""

    @property
    def is_finished(self) -> bool:
        """Whether the run was trained to the end."""
        return self.record is not None and self.record.status == "finished"

    @property
    def is_tested(self) -> bool:
        """Whether a finished run has the scores of a test."""
        return self.is_finished and self.record is not None and self.record.is_tested


def read_state(folder: Path, after: Path | None = None) -> RunState:
    """Return the state of the run in ``folder``.

    Args:
        folder: The run folder. It need not exist.
        after: The folder of the run that must be finished first, or None.
    """
    record = read_record(folder)
    has_checkpoint = any((folder / "checkpoints").glob("*.ckpt"))
    owner = owner_of(folder)
    claim = owner_of(claim_folder(folder))
    live = next((each for each in (owner, claim) if each is not None and each.alive), None)
    fault = _read_fault(folder)
    status: Status = "new"
    if live is not None:
        status = "running"
    elif record is not None and record.status == "finished":
        status = "tested" if record.is_tested else "failed" if fault else "finished"
    elif record is not None and record.status == "diverged":
        status = "diverged"
    elif fault or (record is not None and record.status == "failed"):
        status = "failed"
    elif has_checkpoint:
        status = "stopped"
    elif after is not None and not is_finished(after):
        status = "waiting"
    return RunState(status, live, record, has_checkpoint, fault)


def is_finished(folder: Path) -> bool:
    """Return whether the run in ``folder`` was trained to the end."""
    record = read_record(folder)
    return record is not None and record.status == "finished"


def claim_folder(folder: Path) -> Path:
    """Return the folder with the claim of a run. It is not in the run folder, which a claimant may have to remove."""
    return folder.parent / LAUNCH / "claims" / folder.name


def claim(folder: Path) -> Ownership | None:
    """Claim a run, so that no other bench starts it. Return None if a live process has claimed or owns the run.

    The claim ends with `Ownership.release` or with this process.
    """
    if not is_claimable(folder):  # the bench of the run was killed, but the run was not
        return None
    place = claim_folder(folder)
    place.mkdir(parents=True, exist_ok=True)
    try:
        return Ownership(place)
    except OwnedError:
        return None


def write_fault(folder: Path, fault: str) -> None:
    """Record why the command of a run failed. An empty text removes the record."""
    path = _fault_path(folder)
    if fault:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"fault": fault}) + "\n")
    else:
        path.unlink(missing_ok=True)


def fault_time(folder: Path) -> int:
    """Return when the fault of a run was recorded, in nanoseconds; 0 without a fault."""
    with contextlib.suppress(OSError):
        return _fault_path(folder).stat().st_mtime_ns
    return 0


def _read_fault(folder: Path) -> str:
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        return str(json.loads(_fault_path(folder).read_text(encoding="utf-8"))["fault"])
    return ""


def _fault_path(folder: Path) -> Path:
    return claim_folder(folder) / "fault.json"


def write_runs(folder: Path, runs: Mapping[str, str | None]) -> None:
    """Record the names of the runs in the folder of a bench, so that `find_runs` also finds runs that have not started.

    Args:
        folder: The folder of the bench.
        runs: The name of the run that each run uses, or None. The runs of other benches in this folder are kept.
    """
    merged = {**_read_runs(folder), **runs}
    path = folder / LAUNCH / "runs.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(merged, indent=1) + "\n")


def find_runs(folder: Path) -> dict[Path, Path | None]:
    """Return the run folders of a bench or a sweep, each with the folder of the run that it uses, or None."""
    listed = {folder / name: folder / after if after else None for name, after in _read_runs(folder).items()}
    found = {path.parent for name in ("config.yaml", RECORD_NAME) for path in folder.glob(f"*/{name}")}
    # The claims of other work, such as the preparation, start with an underscore, which no run does.
    found |= {folder / path.name for path in (folder / LAUNCH / "claims").glob("[!_]*")}
    return listed | dict.fromkeys(sorted(found - listed.keys()))


def _read_runs(folder: Path) -> dict[str, str | None]:
    with contextlib.suppress(OSError, ValueError):
        runs: dict[str, str | None] = json.loads((folder / LAUNCH / "runs.json").read_text(encoding="utf-8"))
        return runs
    return {}
