"""Ownership of a run's folder: one process writes to it at a time.

The owner locks the file ``owner.json`` in the folder. The operating system releases the lock when the process ends,
even if it is killed. The file contains a description of the owner for messages. Some file systems do not share locks
between machines. There the modification time of the file protects the folder: the owner updates it every `RENEWAL`
seconds, and other machines do not use the folder for `LEASE` seconds after an update.
"""

import json
import os
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

from segdet.util.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

OWNER = "owner.json"

LEASE = 120.0
"""The seconds for which the folder stays reserved after the last update by an owner on another machine."""

RENEWAL = 15.0
"""The time in seconds between two updates of the file."""


class OwnedError(UserError):
    """Another process writes to the folder.

    Args:
        folder: The folder.
        owner: A description of the process.
        elsewhere: Whether the process runs on another machine, where its end is not visible at once.
    """

    def __init__(self, folder: Path, owner: str, elsewhere: bool = False) -> None:
        killed = f" (if it was killed, wait {LEASE:g} s)" if elsewhere else ""
        super().__init__(
            f"{folder}: {owner} is writing to this run; wait for its end, or stop it first{killed}"
        )
        self.owner = owner


class Ownership:
    """The ownership of a run's folder, from construction until `release` or the end of the process.

    Args:
        folder: The folder, which exists.

    Raises:
        OwnedError: If another process owns the folder.
        OSError: If the folder is not writable.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / OWNER
        self._file, locked = _open_locked(self.path)
        try:
            owner = _read(self._file)
            if _is_alive(owner, self.path, locked):
                raise _owned(self.path, owner)
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, (json.dumps(_this_process()) + "\n").encode(), 0)
        except BaseException:
            os.close(self._file)
            raise
        self._ended = threading.Event()
        threading.Thread(target=self._renew, name="run-ownership", daemon=True).start()

    def release(self) -> None:
        """Give the folder up."""
        if self._ended.is_set():
            return
        self._ended.set()
        self.path.unlink(missing_ok=True)
        os.close(self._file)

    def _renew(self) -> None:
        while not self._ended.wait(RENEWAL):
            try:
                os.utime(self.path)
            except OSError:  # the file system may be back before the next time
                continue


def _open_locked(path: Path) -> tuple[int, bool]:
    """Open and lock the file. Return its descriptor, and whether the file system supports locks.

    A lock of this kind (POSIX) belongs to the process, so that forked data-loader workers do not keep it.
    """
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            locked = _lock(file, path)
            # The previous owner may have removed the file after it was opened here.
            if os.path.samestat(os.fstat(file), path.stat()):
                return file, locked
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _lock(file: int, path: Path) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX permits both
        raise _owned(path, _read(file)) from None
    except OSError:
        return False
    return True


def _read(file: int) -> dict[str, Any]:
    try:
        owner = json.loads(os.pread(file, 4096, 0))
    except ValueError:  # empty, or written at this moment
        return {}
    return owner if isinstance(owner, dict) else {}


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _start_of(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID"),
        "restarts": int(os.environ.get("SLURM_RESTART_COUNT") or 0),
    }


def _start_of(pid: int) -> str | None:
    """Return the start time of a process in ticks after the start of the system, or None if it is unknown."""
    try:
        # The name of the process, in parentheses, may contain spaces.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _is_alive(owner: dict[str, Any], path: Path, locked: bool) -> bool:
    """Return whether the process named in the file may still be writing, although it does not hold the lock."""
    here = _this_process()
    if not owner or owner == here:
        return False
    if owner.get("host") == here["host"]:
        return not locked and _start_of(int(owner["pid"])) == owner.get("started")
    restarted = here["job"] is not None and owner.get("job") == here["job"]
    if restarted and here["restarts"] > int(owner.get("restarts") or 0):
        return False  # SLURM has ended the earlier part of this job
    with tempfile.NamedTemporaryFile(dir=path.parent) as probe:  # its time is that of the file server
        return Path(probe.name).stat().st_mtime - path.stat().st_mtime < LEASE


def _owned(path: Path, owner: dict[str, Any]) -> OwnedError:
    if not {"pid", "host"} <= owner.keys():
        return OwnedError(path.parent, "another process")
    elsewhere = owner["host"] != socket.gethostname()
    return OwnedError(path.parent, f"process {owner['pid']} on {owner['host']}", elsewhere)
