"""Copy the output of a command to its log, without the intermediate states of progress bars.

`local.LocalExecutor` runs this file as a process of its own, so that a command goes on if its bench is killed. A pipe
to the bench would break, and the command would fail in the middle of a step.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import IO, Any


def copy_output(source: IO[bytes], log: IO[bytes], show: Callable[[bytes], Any] | None = None) -> None:
    """Copy ``source`` to ``log`` until its end, and pass everything to ``show`` as it arrives."""
    line = b""
    while chunk := os.read(source.fileno(), 65536):
        if show is not None:
            show(chunk)
        *lines, line = (line + chunk).split(b"\n")
        _write(log, b"".join(whole.rstrip(b"\r").rpartition(b"\r")[2] + b"\n" for whole in lines))
        line = line[line.rfind(b"\r", 0, -1) + 1 :]
    _write(log, line + b"\n" if line else b"")


def _write(log: IO[bytes], text: bytes) -> None:
    with contextlib.suppress(OSError):  # a full disk must not stop the command
        log.write(text)
        log.flush()


def main(path: str) -> None:
    """Copy stdin to the end of the file ``path``."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):  # the command still writes after such a signal
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    with open(path, "ab", buffering=0) as log:  # noqa: PTH123  pathlib would double the start-up time
        copy_output(sys.stdin.buffer, log)


if __name__ == "__main__":
    main(sys.argv[1])
