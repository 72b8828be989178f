"""The storage of a sweep's trials: Optuna's tables in a SQLite file or a PostgreSQL database, and a lock for them.

Optuna's own changes of a trial's state are not atomic in SQLite. Therefore, a process holds the lock while it changes
trials. With SQLite the lock is a transaction in a second file, with PostgreSQL an advisory lock. Both end with the
process that holds them.
"""

import contextlib
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdet.util.errors import UserError

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

LOCK_SECONDS = 300
"""The time to wait for the lock, and for a database that does not respond."""


class SweepStorage:
    """The storage of one sweep.

    Args:
        url: ``sqlite:///FILE`` or ``postgresql://...``.
        name: The name of the sweep.

    Attributes:
        trials: Optuna's storage.

    Raises:
        UserError: If the storage cannot be used.
    """

    def __init__(self, url: str, name: str) -> None:
        import optuna
        import sqlalchemy

        if not url.startswith(("sqlite:///", "postgresql://", "postgresql+psycopg://")):
            raise UserError(f"--storage {url}: must be sqlite:///FILE or postgresql://USER@HOST/DATABASE")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._key = zlib.crc32(name.encode())
        self._in_this_process = threading.Lock()
        self._lock_file: Path | None = None
        # Connections are not kept: operations are rare, and a database may close idle connections.
        arguments: dict[str, Any] = {"poolclass": sqlalchemy.pool.NullPool}
        if url.startswith("sqlite:///"):
            arguments["connect_args"] = {"timeout": LOCK_SECONDS}
            file = Path(url.removeprefix("sqlite:///"))
            self._lock_file = file.with_name(f"{file.name}.lock")
        else:
            url = url.replace("postgresql://", "postgresql+psycopg://", 1)
        self._shown = sqlalchemy.engine.make_url(url).render_as_string(hide_password=True)
        try:
            if self._lock_file is not None:
                self._lock_file.parent.mkdir(parents=True, exist_ok=True)
            self._engine = sqlalchemy.create_engine(url, **arguments)
            self._engine.connect().close()  # fail here, before the retries of the lock
            with self.locked():  # two processes cannot create the tables at the same time
                self.trials: RDBStorage = optuna.storages.RDBStorage(url, engine_kwargs=arguments)
        except ImportError:
            raise UserError(
                f"--storage {self._shown}: needs the package psycopg; pip install 'segdet[postgresql]'"
            ) from None
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, OSError) as error:
            raise self._unusable(error) from None

    @contextlib.contextmanager
    def locked(self) -> Iterator[float]:
        """Hold the lock. Yield the seconds since 1970 by the clock of the storage, which all machines share.

        Raises:
            UserError: If other processes hold the lock, or the database does not respond, for `LOCK_SECONDS`.
        """
        with self._in_this_process, contextlib.ExitStack() as at_end:
            if self._lock_file is None:
                now = self._lock_database(at_end)
            else:
                self._lock_the_file(self._lock_file, at_end)
                now = time.time()
            with self.reported():
                yield now

    @contextlib.contextmanager
    def reported(self) -> Iterator[None]:
        """Convert errors of the database in the block to a `UserError`."""
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (SQLAlchemyError, StorageInternalError) as error:
            raise self._unusable(error) from None

    def _lock_the_file(self, path: Path, at_end: contextlib.ExitStack) -> None:
        try:
            connection = sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None)
            at_end.callback(connection.close)
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:
            raise self._unusable(error) from None

    def _lock_database(self, at_end: contextlib.ExitStack) -> float:
        from sqlalchemy import text
        from sqlalchemy.exc import OperationalError

        end = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                connection = at_end.enter_context(self._engine.begin())
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": self._key})
                return float(
                    connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one()
                )
            except OperationalError as error:
                at_end.pop_all()
                if time.monotonic() > end:
                    raise self._unusable(error) from None
                time.sleep(2)  # the database may restart

    def _unusable(self, error: Exception) -> UserError:
        reason = " ".join(str(getattr(error, "orig", None) or error.__cause__ or error).split())
        return UserError(
            f"--storage {self._shown}: cannot be used ({reason}); fix the address or the database"
        )
