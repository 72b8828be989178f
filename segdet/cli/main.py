"""The command ``segdet``: run a subcommand, and report a user's mistake in one line.

Importing this module does not import torch, so that help and errors about a misspelled subcommand appear at once.
Each subcommand has a module of the same name, which is imported when the subcommand is called.
"""

import contextlib
import importlib
import keyword
import os
import sys
from collections.abc import Iterator, Sequence

from segdet import __version__
from segdet.cli.error_messages import (
    claims_report,
    find_user_error,
    lost_peer_advice,
    status_of,
    status_of_peer,
    write_line,
)
from segdet.util.distributed import RUN_DIR_VARIABLE, rank
from segdet.util.errors import INTERRUPTED, UserError
from segdet.util.suggest import did_you_mean

TRAINING = {
    "fit": "train a model in a new run folder",
    "validate": "score a checkpoint on the validation split",
    "test": "score a checkpoint on the test split and measure its cost",
    "predict": "run a checkpoint on images and videos",
}

OTHERS = {
    "bench": "run an experiment file: several models, one budget",
    "sweep": "search parameters with a sweep file of Weights & Biases, without an account",
    "status": "show the state of the runs of a bench or a sweep",
    "proposals": "compute region proposals of a dataset and score them",
    "profile": "measure FLOPs, memory, latency and the time of each stage of models",
    "score": "score a file of predictions from any tool",
    "reproduce": "train a run again and compare it with the original",
    "report": "turn run folders into Markdown tables and a page",
}

DATA = {
    "check": "read a whole dataset and list all faults",
    "stats": "count a dataset's images, classes and sizes",
    "show": "draw annotated samples on one sheet",
    "import": "turn the files of an annotation tool into a VOC or COCO folder with splits",
    "convert": "convert a dataset between VOC, COCO and Cityscapes",
    "make": "generate the Shapes dataset as a VOC, COCO or Cityscapes folder",
    "download": "download VOC or COCO from their official servers",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments after the command's name, by default those of the process.

    Returns:
        The exit status: 0, 1 if a check failed or the run was lost, 2 after a user's mistake, 130 when interrupted.
    """
    with _restored_environment():
        try:
            return _dispatch(list(sys.argv[1:] if argv is None else argv))
        except SystemExit as leaving:  # from argparse, also after --help
            return _status(leaving)
        except KeyboardInterrupt:
            write_line("segdet: interrupted")
            return INTERRUPTED
        except BrokenPipeError:  # `segdet ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except Exception as error:
            status = _report(error)
            if status is None:
                raise
            return status


def _report(error: Exception) -> int | None:
    """Report a user's mistake or a lost process, unless another process reports it.

    Returns:
        The exit status, or None for other errors.
    """
    mistake, status = find_user_error(error), status_of(error)
    if mistake is None:
        if (reported := status_of_peer(error)) is not None:
            return reported
        mistake = lost_peer_advice(error)
        if mistake is None:
            return None
    if claims_report(mistake, status):
        # The progress bar of rank 0 may be on the current line.
        write_line(("\n" if rank() > 0 else "") + f"segdet: error: {mistake}")
    return status


@contextlib.contextmanager
def _restored_environment() -> Iterator[None]:
    """Restore the environment variables that a run sets, so that they do not affect another run in this process."""
    names = (
        *(RUN_DIR_VARIABLE, "PL_GLOBAL_SEED", "PL_SEED_WORKERS"),
        *("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_RUN_GROUP", "WANDB_PROJECT", "WANDB_ENTITY"),
    )
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        sys.stdout.write(_help())
        return 0
    command, rest = argv[0], argv[1:]
    if command in ("-V", "--version"):
        sys.stdout.write(f"segdet {__version__}\n")
        return 0
    if command in TRAINING:
        return _call("segdet.cli.train", argv)
    if command in OTHERS:
        return _call(f"segdet.cli.{command}", rest)
    if command == "data":
        return _dispatch_data(rest)
    raise UserError(_unknown(command, [*TRAINING, *OTHERS, "data"]))


def _dispatch_data(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write("\n".join(["usage: segdet data COMMAND ...", "", *_table(DATA), ""]))
        return 0
    if argv[0] not in DATA:
        raise UserError(_unknown(f"data {argv[0]}", [f"data {name}" for name in DATA]))
    module = f"{argv[0]}_" if keyword.iskeyword(argv[0]) else argv[0]
    return _call(f"segdet.cli.data.{module}", argv[1:])


def _call(module: str, argv: list[str]) -> int:
    """Import the module of a subcommand and run it."""
    return importlib.import_module(module).main(argv) or 0


def _help() -> str:
    lines = [
        "usage: segdet COMMAND ...",
        "",
        "From the sliding window to the single shot: models trained, measured and compared.",
        "",
        *_table(TRAINING | OTHERS | {"data": f"{', '.join(DATA)}: datasets on disk"}),
        "",
        "segdet COMMAND --help lists the options of a command; segdet --version prints the version.",
        "  segdet fit --model FCN --data VOCDataModule --data.root data/camvid --run_dir runs/camvid",
        "  segdet test --ckpt_path runs/camvid/checkpoints/best.ckpt",
        "  segdet predict --ckpt_path runs/camvid --images photos/",
        "",
    ]
    return "\n".join(lines)


def _table(commands: dict[str, str]) -> list[str]:
    return [f"  {name:<10} {text}" for name, text in commands.items()]


def _unknown(name: str, known: list[str]) -> str:
    return f"no command '{name}'; {did_you_mean(name, known, cutoff=0.5)}"


def _status(leaving: SystemExit) -> int:
    if leaving.code is None:
        return 0
    if isinstance(leaving.code, int):
        return leaving.code
    write_line(str(leaving.code))
    return 1
