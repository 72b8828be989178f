"""Ownership of a run's folder: one process, or one group of processes, writes to it at a time.

A claim is a file in the folder ``.owner``, named by a number that is higher than that of all earlier claims. The
process that creates the file owns the run. The file remains after the release, so that numbers are never used again.
Creating a file exclusively is atomic on local and network file systems, and needs no locks.

The owner sets the file's modification time every `RENEWAL` seconds, to the time of the file server. Another process
may claim the folder if the owner has given it up, if the owner has visibly ended (on the same machine), if the other
process belongs to a restart of the owner's job, or if the file has not changed for `LEASE` seconds.

The previous owner may still run: it was paused, or its machine was only unreachable. Its number is then outdated, and
it must not write any more. Each owner writes temporary files in a staging folder of its own and renames them into the
run. The next owner removes this folder, and from then on a rename from it fails. Files that are appended to are
replaced by copies. The previous owner still appends to the old file, and these rows are lost.
"""

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import socket
import threading
import time
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path

from segdet.util.errors import UserError
from segdet.util.files import machine, remove_used_folder, write_atomically, write_text
from segdet.util.write_guard import guard_folder, remove_guard

OWNER = ".owner"
"""The folder of the claims in a run's folder."""

LEASE = 120.0
"""The seconds for which the folder stays reserved after the last renewal, if the end of its owner is not visible."""

RENEWAL = 15.0
"""The time in seconds between two renewals."""

APPENDED = ("metrics.csv",)
"""The files in a run's folder that the owner appends to."""

_CLAIM = re.compile(r"(\d+)\.json")


class OwnedError(UserError):
    """Another process writes to the folder.

    Args:
        folder: The folder.
        owner: A description of the process.
        elsewhere: Whether the process may be on another machine, where its end is not visible from here.
    """

    def __init__(self, folder: Path, owner: str, elsewhere: bool = False) -> None:
        killed = f" (if it was killed, wait {LEASE:g} s)" if elsewhere else ""
        super().__init__(
            f"{folder}: {owner} is writing to this run; wait for its end, or stop it first{killed}"
        )
        self.owner = owner


class OutdatedError(UserError):
    """This process owned the folder, and another process has claimed it since.

    Args:
        folder: The folder.
        owner: A description of the other process, or None if it is unknown.
    """

    status = 1

    def __init__(self, folder: Path, owner: str | None) -> None:
        other = owner or "another process"
        super().__init__(
            f"{folder}: {other} has taken over this run while this process was paused or unreachable, or because its "
            "job was restarted; this process ends without writing"
        )


@dataclass(frozen=True)
class Claim:
    """The content of a claim's file.

    Attributes:
        host: The host's name.
        pid: The process.
        machine: The running kernel and the namespace of its process ids.
        started: The start time of the process, which distinguishes it from later processes with the same id.
        job: The SLURM job, or None.
        restarts: How often SLURM has restarted the job.
        torchrun: The id of the torchrun job, or None if it has none of its own.
        torchrun_restarts: How often torchrun has restarted its processes.
        since: The time of the claim, in ISO format.
        key: A random text, which distinguishes the claim from all others.
        released: Whether the owner has given the folder up.
    """

    host: str
    pid: int
    machine: str
    started: str | None
    job: str | None
    restarts: int
    torchrun: str | None
    torchrun_restarts: int
    since: str
    key: str
    released: bool = False

    @classmethod
    def of_this_process(cls) -> "Claim":
        """Return a new claim."""
        torchrun = os.environ.get("TORCHELASTIC_RUN_ID")
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            machine=_process_space(),
            started=_start_of(os.getpid()),
            job=os.environ.get("SLURM_JOB_ID"),
            restarts=_number("SLURM_RESTART_COUNT"),
            torchrun=None if torchrun in (None, "", "none") else torchrun,  # none: the default of all jobs
            torchrun_restarts=_number("TORCHELASTIC_RESTART_COUNT"),
            since=datetime.now().astimezone().isoformat(timespec="seconds"),
            key=secrets.token_hex(8),
        )

    @classmethod
    def read(cls, path: Path) -> "Claim | None":
        """Read a file; return None if it is missing, or has not been written completely."""
        try:
            content = json.loads(path.read_bytes())
            return cls(**{each.name: content[each.name] for each in fields(cls)})
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def __str__(self) -> str:
        job = f" (SLURM job {self.job})" if self.job else ""
        return f"process {self.pid} on {self.host}{job}"

    def is_of(self, other: "Claim") -> bool:
        """Return whether both claims are of the same process."""
        return (self.machine, self.pid, self.started) == (other.machine, other.pid, other.started)

    def precedes(self, other: "Claim") -> bool:
        """Return whether ``other`` is of a later start of the same job, which the launcher restarted."""
        if self.job is not None and self.job == other.job and self.restarts != other.restarts:
            return self.restarts < other.restarts
        same = self.torchrun is not None and (self.torchrun, self.job) == (other.torchrun, other.job)
        return same and self.torchrun_restarts < other.torchrun_restarts


@dataclass(frozen=True)
class Owner:
    """The last owner of a run, unless it gave the run up.

    Attributes:
        number: The fencing number.
        host: The host's name.
        pid: The process.
        job: The SLURM job, or None.
        since: The time of the claim, in ISO format.
        alive: Whether the process may still be writing. If not, it was killed, or its lease has expired.
    """

    number: int
    host: str
    pid: int
    job: str | None
    since: str
    alive: bool


def owner_of(folder: Path) -> Owner | None:
    """Return the owner of a run's folder, or None if the folder was never claimed or was given up."""
    place = folder / OWNER
    number = _latest(place)
    if not number:
        return None
    claim = Claim.read(_file(place, number))
    if claim is None:  # it is being written
        return Owner(number, "", 0, None, "", alive=_is_fresh(_file(place, number)))
    if claim.released:
        return None
    alive = _is_alive(claim, _file(place, number))
    return Owner(number, claim.host, claim.pid, claim.job, claim.since, alive)


def is_claimable(folder: Path) -> bool:
    """Return whether this process may claim a run's folder now.

    In contrast to `owner_of`, an owner of an earlier start of the same job does not count.
    """
    latest = _latest(folder / OWNER)
    if not latest:
        return True
    try:
        _check_free(folder, latest, Claim.of_this_process())
    except OwnedError:
        return False
    return True


class Fence:
    """The permission to write into a run's folder under one fencing number; see `segdet.util.write_guard.Guard`.

    The processes of a run share the fence of the process that owns the folder.

    Args:
        folder: The run's folder.
        number: The fencing number.
        key: The key of the claim.
    """

    def __init__(self, folder: Path, number: int, key: str) -> None:
        self.folder = Path(os.path.abspath(folder))  # noqa: PTH100  the current folder may change
        self.number = number
        self.key = key
        self.staging = _staging(self.folder / OWNER, number, key)

    def holds(self) -> bool:
        """Return whether no other process has claimed the folder since."""
        place = self.folder / OWNER
        # In this order: a claim is removed only after a later one was created and all earlier ones were removed.
        if _file(place, self.number + 1).exists():
            return False
        try:
            return self.key.encode() in _file(place, self.number).read_bytes()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                return False
            raise

    def check(self) -> None:
        """Check the number.

        Raises:
            OutdatedError: If another process has claimed the folder.
        """
        if not self.holds():
            place = self.folder / OWNER
            latest = Claim.read(_file(place, _latest(place)))
            raise OutdatedError(self.folder, None if latest is None else str(latest))


class Ownership:
    """The ownership of a run's folder, from construction until `release` or the end of the process.

    While it lasts, every write of this process into the folder is checked. A forked process is not the owner, but its
    writes are checked as well.

    Args:
        folder: The folder, which exists.

    Raises:
        OwnedError: If another process owns the folder.
        OutdatedError: If another process claimed the folder during a pause of this one.
        OSError: If the folder is not writable.

    Attributes:
        fence: The permission to write.
    """

    def __init__(self, folder: Path) -> None:
        self._claim = Claim.of_this_process()
        number, taken_over = _create_claim(folder, self._claim)
        self.fence = Fence(folder, number, self._claim.key)
        self._path = _file(self.fence.folder / OWNER, number)
        self.fence.staging.mkdir()
        self.fence.check()  # a later owner may have removed earlier folders before this one was created
        _remove_earlier(self._path.parent, number)
        guard_folder(folder, self.fence)
        if taken_over:
            for path in (folder / name for name in APPENDED):
                if path.is_file():
                    with write_atomically(path) as copy:
                        shutil.copyfile(path, copy)
        self._ended = threading.Event()
        self._renewal = threading.Thread(target=self._renew, name="run-ownership", daemon=True)
        self._renewal.start()

    def release(self) -> None:
        """Give the folder up. Remove the claim if the folder contains nothing else."""
        if self._ended.is_set() or os.getpid() != self._claim.pid:
            return
        self._ended.set()
        self._renewal.join(RENEWAL)
        # The folder may have been removed or claimed by another process, or the file system is full.
        with contextlib.suppress(OSError, UserError):
            used = [path.name for path in self.fence.folder.iterdir()] != [OWNER]
            if used:
                write_text(self._path, json.dumps(asdict(self._claim) | {"released": True}) + "\n")
            else:
                self.fence.check()
            shutil.rmtree(self.fence.staging, ignore_errors=True)
            if not used:
                self._path.unlink()
                self._path.parent.rmdir()
        remove_guard(self.fence)

    def _renew(self) -> None:
        while not self._ended.wait(RENEWAL):
            try:
                if not self.fence.holds():
                    return
                os.utime(self._path)
            except OSError:  # the file system may be back before the next time
                continue


def _create_claim(folder: Path, claim: Claim) -> tuple[int, bool]:
    """Create the file of a claim. Return its number, and whether the previous owner did not give the folder up."""
    place = folder / OWNER
    while True:
        place.mkdir(exist_ok=True)
        latest = _latest(place)
        taken_over = _check_free(folder, latest, claim) if latest else False
        path = _file(place, latest + 1)
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except (FileExistsError, FileNotFoundError):  # another process claims or releases the folder
            continue
        with os.fdopen(file, "w", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(claim)) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        # After a pause since the listing, the number may have been used, and its file removed by a later owner.
        if _latest(place) == latest + 1:
            return latest + 1, taken_over
        path.unlink(missing_ok=True)


def _check_free(folder: Path, number: int, claim: Claim) -> bool:
    """Raise `OwnedError` if the folder must not be claimed; return whether the latest owner did not give it up."""
    path = _file(folder / OWNER, number)
    latest = Claim.read(path)
    if latest is None:
        if _is_fresh(path):
            raise OwnedError(folder, "another process")
        return True
    ended = latest.released or not _is_alive(latest, path)
    # A torchrun job, unlike a SLURM job, may be launched again under its id, and then counts its restarts from 0 again.
    relaunched = ended and (claim.job, claim.restarts) == (latest.job, latest.restarts)
    if claim.precedes(latest) and not relaunched:
        raise OwnedError(folder, f"{latest}, of a later start of the same job,", elsewhere=True)
    if latest.released:
        return False
    if not (ended or latest.is_of(claim) or latest.precedes(claim)):
        raise OwnedError(folder, str(latest), elsewhere=latest.machine != claim.machine)
    return True


def _is_alive(claim: Claim, path: Path) -> bool:
    """Return whether the owner may still be writing."""
    if claim.machine == _process_space() and not _exists(claim.pid, claim.started):
        return False
    return _is_fresh(path)


def _is_fresh(path: Path) -> bool:
    """Return whether the file was renewed within the lease, by the clock of the file server."""
    probe = path.with_name(f".{secrets.token_hex(8)}.probe")
    try:
        try:
            probe.touch(exist_ok=False)
            now = probe.stat().st_mtime
        except OSError:  # a folder that is not writable can be inspected with the clock of this machine
            now = time.time()
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)
        with path.open("rb") as file:  # network file systems refresh the times of a file when it is opened
            return now - os.fstat(file.fileno()).st_mtime < LEASE
    except FileNotFoundError:
        return False


def _remove_earlier(place: Path, number: int) -> None:
    """Remove the staging folders of earlier owners, so that they cannot rename a file any more, and their claims."""
    for path in place.iterdir():
        match = re.match(r"\.?(\d+)-", path.name)  # a leading full stop: an earlier removal failed
        if match and int(match[1]) < number:
            remove_used_folder(path)
    for path in sorted(place.iterdir(), key=lambda path: path.name):
        match = _CLAIM.fullmatch(path.name)
        if match and int(match[1]) < number:
            path.unlink(missing_ok=True)


def _file(place: Path, number: int) -> Path:
    return place / f"{number:08d}.json"


def _staging(place: Path, number: int, key: str) -> Path:
    return place / f"{number:08d}-{key}"


def _latest(place: Path) -> int:
    """Return the highest number of all claims, or 0."""
    try:
        names = os.listdir(place)  # noqa: PTH208  only the names are needed
    except (FileNotFoundError, NotADirectoryError):
        return 0
    return max((int(match[1]) for name in names if (match := _CLAIM.fullmatch(name))), default=0)


def _number(variable: str) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else 0


def _process_space() -> str:
    """Return an identifier of the running kernel and the namespace in which process ids are unique."""
    try:
        return f"{machine()}-{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:  # not Linux
        return machine()


def _status_of(pid: int) -> list[str]:
    """Return the fields of ``/proc/<pid>/stat`` after the name of the process."""
    # The name, in parentheses, may contain spaces.
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()


def _start_of(pid: int) -> str | None:
    """Return the start time of a process in ticks after the start of the system, or None if it is unknown."""
    try:
        return _status_of(pid)[19]
    except (OSError, IndexError):
        return None


def _exists(pid: int, started: str | None) -> bool:
    """Return whether the process that started at this time still runs."""
    if started is None:  # not Linux
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            return True
        return True
    try:
        status = _status_of(pid)
    except OSError:
        return False
    return status[0] not in "ZX" and status[19] == started
