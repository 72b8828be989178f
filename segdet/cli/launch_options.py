"""The options of `segdet bench` and `segdet sweep` that choose where the runs are executed."""

import argparse
from pathlib import Path

from segdet.launch.slurm import SLURM_FILE, Slurm, read_slurm
from segdet.util.errors import UserError, check_range


def add_launch_options(parser: argparse.ArgumentParser, unit: str) -> None:
    """Add ``--launcher`` and ``--slurm``. ``unit`` is what the launcher starts, such as ``run``."""
    place_help = f"place of the {unit}s (default: local)"
    parser.add_argument("--launcher", choices=("local", "slurm"), default="local", help=place_help)
    slurm_help = f"resources of each {unit} on SLURM (default: {SLURM_FILE})"
    parser.add_argument("--slurm", type=Path, metavar="FILE", help=slurm_help)


def check_launch_options(arguments: argparse.Namespace) -> None:
    """Check ``--devices_per_run`` and the options of `add_launch_options`.

    Raises:
        UserError: If a value is out of range or has no effect.
    """
    if arguments.devices_per_run is not None:
        check_range("--devices_per_run", arguments.devices_per_run, least=1)
    if arguments.slurm is not None and arguments.launcher != "slurm":
        raise UserError("--slurm: has no effect without --launcher slurm; give both")


def slurm_settings(arguments: argparse.Namespace) -> Slurm:
    """Return the settings in the file of ``--slurm``."""
    return read_slurm(arguments.slurm or SLURM_FILE)
