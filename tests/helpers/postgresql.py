"""A PostgreSQL server in a temporary folder, from the binaries that are installed on this machine."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

NEEDS = "PostgreSQL is not installed (apt-get install postgresql)"


def _binaries() -> Path | None:
    """Return the newest folder with initdb and pg_ctl, or None."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda each: int(each.parent.name))
    return next((each for each in reversed(folders) if (each / "pg_ctl").exists()), None)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of an empty database. The server listens on a socket in a temporary folder only."""
    binaries = _binaries()
    if binaries is None:
        pytest.skip(NEEDS)
    as_user: list[str] = []
    with tempfile.TemporaryDirectory(prefix="segdet-postgresql-") as name:
        folder = Path(name)
        if os.geteuid() == 0:  # the server refuses to run as root
            as_user = ["runuser", "-u", "postgres", "--"]
            shutil.chown(folder, "postgres")
        data = folder / "data"

        def run(*words: str) -> None:
            command = [*as_user, str(binaries / words[0]), *words[1:]]
            done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
            assert done.returncode == 0, done.stderr

        run("initdb", "--pgdata", str(data), "--auth=trust", "--username=segdet", "--no-sync")
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
        log = str(folder / "log")
        run("pg_ctl", "--pgdata", str(data), "--log", log, "--wait", "--options", options, "start")
        try:
            yield f"postgresql://segdet@/postgres?host={folder}"
        finally:
            run("pg_ctl", "--pgdata", str(data), "--mode", "immediate", "stop")
