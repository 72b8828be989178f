"""The command ``segdet``: finds the subcommand, runs it, and turns a user's mistake into one line.

Nothing here imports torch: ``segdet --help`` and a mistyped subcommand answer at once, and each
subcommand imports what it needs when it is called.
"""

import contextlib
import importlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from segdet import __version__
from segdet.util.distributed import is_launched, rank
from segdet.util.errors import UserError
from segdet.util.suggest import did_you_mean

Handler = Callable[[Sequence[str]], int | None]

TRAINING = {
    "fit": "train a model, in a run folder of its own",
    "validate": "score a checkpoint on the validation split",
    "test": "score a checkpoint on the test split and measure what it costs",
    "predict": "run a checkpoint on a folder of images",
}

OTHERS = {
    "bench": ("segdet.cli.bench:main", "run an experiment file: several models, one budget"),
    "proposals": ("segdet.cli.proposals:main", "compute region proposals of a dataset and score them"),
    "report": ("segdet.cli.report:main", "turn run folders into one Markdown table"),
}

DATA = {
    "check": ("segdet.cli.data.check:main", "read a whole dataset and list every fault"),
    "stats": ("segdet.cli.data.stats:main", "count a dataset's images, classes and sizes"),
    "show": ("segdet.cli.data.show:main", "draw annotated samples on one sheet"),
    "make": ("segdet.cli.data.make:main", "generate the Shapes dataset as a VOC, COCO or Cityscapes folder"),
    "download": ("segdet.cli.data.download:main", "fetch VOC or COCO from their owners"),
}

RUN_DIR_VARIABLE = "SEGDET_RUN_DIR"
"""How rank 0 tells the processes that it starts which folder the run has."""

INTERRUPTED = 130
"""The exit status of a command that was interrupted from the keyboard, as shells have it."""

USER_ERROR = 2
"""The exit status of a user's mistake, as argparse has it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments after the command's name; by default those of the process.

    Returns:
        The exit status: 0, 1 where a check failed, 2 for a user's mistake, 130 when interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    with _restored_environment():
        return _answer(argv)


@contextlib.contextmanager
def _restored_environment() -> Iterator[None]:
    """Undoes what a run sets in the environment, so that a second one in this process starts clean."""
    names = (RUN_DIR_VARIABLE, "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "PL_GLOBAL_SEED", "PL_SEED_WORKERS")
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _answer(argv: list[str]) -> int:
    """Runs the command and gives its exit status, whatever happens but a bug."""
    try:
        return _dispatch(argv)
    except SystemExit as leaving:  # argparse leaves this way, also after --help
        return _status(leaving)
    except KeyboardInterrupt:
        _say("segdet: interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # `segdet ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        mistake = find_user_error(error)
        if mistake is None:
            if _told_by_another(error):
                return USER_ERROR
            raise
        if _first_to_say(mistake):
            # The first process, not this one, may have left its progress bar on the present line.
            _say(("\n" if rank() > 0 else "") + f"segdet: error: {mistake}")
        return USER_ERROR


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        sys.stdout.write(_help())
        return 0
    if argv[0] in ("-V", "--version"):
        sys.stdout.write(f"segdet {__version__}\n")
        return 0
    command, rest = argv[0], argv[1:]
    if command in TRAINING:
        return _load("segdet.cli.train:main")(argv) or 0
    if command in OTHERS:
        return _load(OTHERS[command][0])(rest) or 0
    if command == "data":
        return _dispatch_data(rest)
    raise UserError(_unknown(command, [*TRAINING, *OTHERS, "data"]))


def _dispatch_data(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"  {name:<10} {text}" for name, (_, text) in DATA.items()]
        sys.stdout.write("usage: segdet data COMMAND ...\n\n" + "\n".join(lines) + "\n")
        return 0
    if argv[0] not in DATA:
        raise UserError(_unknown(f"data {argv[0]}", [f"data {name}" for name in DATA]))
    return _load(DATA[argv[0]][0])(argv[1:]) or 0


def _load(path: str) -> Handler:
    module, name = path.split(":")
    handler: Handler = getattr(importlib.import_module(module), name)
    return handler


def _help() -> str:
    lines = [
        "usage: segdet COMMAND ...",
        "",
        "From the sliding window to the single shot: models trained, measured and compared.",
        "",
        *(f"  {name:<10} {text}" for name, text in TRAINING.items()),
        *(f"  {name:<10} {text}" for name, (_, text) in OTHERS.items()),
        f"  {'data':<10} {', '.join(DATA)}: datasets on disk",
        "",
        "segdet COMMAND --help tells a command's options; segdet --version the version.",
        "  segdet fit --model FCN --data VOCDataModule --data.root data/camvid --run_dir runs/camvid",
        "  segdet test --ckpt_path runs/camvid/checkpoints/best.ckpt",
    ]
    return "\n".join(lines) + "\n"


def _unknown(name: str, known: list[str]) -> str:
    return f"no command '{name}'; {did_you_mean(name, known, cutoff=0.5)}"


def find_user_error(error: BaseException) -> str | None:
    """The one line of the `UserError` behind ``error``, or None if there is none.

    It may be ``error`` itself, the cause of it, or what a DataLoader's worker died of: torch then
    raises in the parent an exception whose message is the worker's formatted traceback.
    """
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        told = _line_in_traceback(str(current))
        if told is not None:
            return told
        if isinstance(current, UserError):
            return " ".join(str(current).split("\n"))
        pending += [current.__cause__, current.__context__]
    return None


def _line_in_traceback(text: str) -> str | None:
    """The message of the last `UserError` that a formatted traceback ends with."""
    if "Traceback (most recent call last)" not in text:
        return None
    names = {cls.__name__ for cls in _family(UserError)}
    for line in reversed(text.splitlines()):
        match = re.match(r"(?:[\w.]+\.)?(\w+): (.+)", line)
        if match and match[1] in names:
            return match[2]
    return None


def _family(cls: type) -> list[type]:
    children: list[type] = type.__subclasses__(cls)
    return [cls, *(member for child in children for member in _family(child))]


def _first_to_say(message: str) -> bool:
    """Whether this process is to print ``message``: of the processes of one run the first one does.

    Rank 0 is not always the one that meets the fault, so they agree through a file in the run folder.
    """
    folder = os.environ.get(RUN_DIR_VARIABLE)
    if not is_launched() or folder is None or not Path(folder).is_dir():
        return True
    try:
        with (Path(folder) / "error.txt").open("x", encoding="utf-8") as stream:
            stream.write(message + "\n")
    except FileExistsError:
        return False
    except OSError:  # a full or read-only disk must not hide the message
        return True
    return True


LOST_PEER = re.compile(
    r"(connection (closed|reset|aborted|refused)|socket (closed|timeout)|broken pipe|remote process exited"
    r"|peer (closed|has exited))",
    re.IGNORECASE,
)
"""How Gloo, NCCL and torch's store word it that another process of the run is gone."""

PATIENCE = 5.0
"""Seconds that a process whose peer is gone waits for the peer's own word."""


def _told_by_another(error: BaseException) -> bool:
    """Whether ``error`` is but the echo of a mistake that another process of the run has told the user."""
    folder = os.environ.get(RUN_DIR_VARIABLE)
    if folder is None or not is_launched():
        return False
    told = Path(folder) / "error.txt"
    lost = _lost_peer(error)
    end = time.monotonic() + PATIENCE
    while lost and not told.exists() and time.monotonic() < end:
        time.sleep(0.1)
    return told.exists() and (lost or rank() > 0)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and one after the other what it was raised from or beside."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _lost_peer(error: BaseException) -> bool:
    return any(LOST_PEER.search(str(one)) for one in causes(error))


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _status(leaving: SystemExit) -> int:
    if leaving.code is None:
        return 0
    if isinstance(leaving.code, int):
        return leaving.code
    _say(str(leaving.code))
    return 1
