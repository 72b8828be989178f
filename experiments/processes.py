"""Compare the scores of every family with 1, 2 and 3 processes.

::

    python experiments/processes.py                    # all families, about 15 minutes on two cores
    python experiments/processes.py FCN SSD            # some families

Each family trains with two processes on a dataset of odd size. Its best checkpoint is tested with 1, 2 and 3 processes,
and validated with 1. The table contains the main score and the largest difference of all scores. torchrun starts each
group of processes once, and the group runs all families in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from experiments.families import FAMILIES, LOG, Family
from segdet.util.tables import markdown_table

MAIN = {"segmentation": "miou", "localization": "box_iou", "detection": "mar_100"}
"""The score in the table. For networks that are hardly trained, recall is larger than AP."""

TRAIN, VAL, TEST = 8, 5, 7
"""The numbers of images. 2 and 3 processes cannot share 5 and 7 images evenly."""

TRAINING = ["--trainer.max_epochs=6", "--trainer.check_val_every_n_epoch=6", "--model.optim.lr=0.003"]
BRIEF = ["--trainer.max_epochs=1", "--model.optim.lr=0.003"]
"""The options of families with large networks."""

SHARED = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


@dataclass
class Scores:
    """The scores of one family.

    Attributes:
        name: The family.
        tested: The scores of the test by the number of processes.
        trained: The validation scores of the training with two processes.
        validated: The validation scores of one process.
        wandb_runs: The number of W&B runs of the training.
        proposed: The number of images whose proposals were computed, and the number of images.
    """

    name: str
    tested: dict[int, dict[str, float | None]]
    trained: dict[str, float | None]
    validated: dict[str, float | None]
    wandb_runs: int
    proposed: tuple[int, int] | None

    @property
    def difference(self) -> float:
        """The largest difference of a score from that of one process; infinite if one of the two is missing."""
        pairs = [(self.tested[1], each) for each in self.tested.values()] + [(self.validated, self.trained)]
        return max(_largest(one, other) for one, other in pairs)

    def row(self) -> list[str]:
        """Return the cells of the table."""
        task = "segmentation" if "test/miou" in self.tested[1] else "localization"
        task = "detection" if "test/map" in self.tested[1] else task
        values = [f"{scores[f'test/{MAIN[task]}'] or 0:.8f}" for scores in self.tested.values()]
        return [self.name, f"test/{MAIN[task]}", *values, str(len(self.tested[1])), f"{self.difference:.1e}"]


def _largest(one: dict[str, float | None], other: dict[str, float | None]) -> float:
    if one.keys() != other.keys() or not one:
        return float("inf")
    pairs = [(one[name], other[name]) for name in one]
    if any((a is None) != (b is None) for a, b in pairs):
        return float("inf")
    return max((abs(a - b) for a, b in pairs if a is not None and b is not None), default=0.0)


def run(names: Sequence[str], folder: Path, counts: Sequence[int] = (1, 2, 3)) -> list[Scores]:
    """Train and test families in ``folder`` and return their scores.

    Raises:
        RuntimeError: If a command fails.
    """
    commands: dict[int, list[str]] = {2: ["fit"]}
    for count in counts:
        commands.setdefault(count, []).append("test")
    commands.setdefault(1, []).append("validate")
    for count, each in commands.items():
        _launch(each, names, count, folder)
    return [_collect(name, folder, counts) for name in names]


def _launch(commands: Sequence[str], names: Sequence[str], count: int, folder: Path) -> None:
    if count == 1:
        with mock.patch.dict(os.environ), contextlib.redirect_stdout(io.StringIO()):
            status = work(folder, commands, names, 1)
        if status:
            raise RuntimeError(f"{', '.join(commands)} failed")
        return
    root = Path(__file__).resolve().parents[1]
    # gloo listens on the loopback interface, so that no network is needed.
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "WANDB_MODE": "offline",
    }
    launcher = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}",
    ]  # fmt: skip
    done = subprocess.run(
        [*launcher, str(Path(__file__).resolve()), "--worker", str(folder), "--commands", *commands, "--", *names],
        env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{', '.join(commands)} with {count} processes failed:\n{done.stderr[-3000:]}")


def work(folder: Path, commands: Sequence[str], names: Sequence[str], count: int) -> int:
    """Run each command for all families, as one of ``count`` processes; return the exit status of the last one."""
    from segdet.cli.main import main as segdet

    devices = [f"--trainer.devices={count}", *(["--trainer.strategy=ddp"] if count > 1 else [])]
    for command, name in itertools.product(commands, names):
        os.environ["SEGDET_CACHE"] = str(folder / name / "cache")
        os.environ[LOG] = str(folder / name / "proposed.txt") if command == "fit" else ""
        run_dir = folder / name / "run"
        if command == "fit":
            family = FAMILIES[name]
            training = BRIEF if family.slow else TRAINING
            arguments = [
                *family.arguments(name), *data_arguments(family, folder), *training, "--panels.images=0",
                f"--run_dir={run_dir}",
            ]  # fmt: skip
        else:
            best = run_dir / "checkpoints" / "best.ckpt"
            arguments = [f"--ckpt_path={best}", f"--run_dir={folder / name / f'{command}{count}'}"]
            if command == "test":
                arguments.append("--error_analysis.enabled=false")
        if status := segdet([command, *arguments, *SHARED, *devices]):
            print(f"{name}: {command} ended with status {status}", file=sys.stderr)
            return status
    return 0


def data_arguments(family: Family, folder: Path) -> list[str]:
    """Return the options of the dataset of a family."""
    data_format = family.data.get("format", "voc")
    return [
        f"--data.root={folder / f'shapes-{data_format}'}", f"--data.num_train={TRAIN}", f"--data.num_val={VAL}",
        f"--data.num_test={TEST}", "--data.image_size=[64, 64]", "--data.batch_size=2", "--data.num_workers=0",
    ]  # fmt: skip


def _collect(name: str, folder: Path, counts: Sequence[int]) -> Scores:
    def metrics(run: str, prefix: str) -> dict[str, float | None]:
        record = json.loads((folder / name / run / "result.json").read_text(encoding="utf-8"))
        return {key: value for key, value in record["metrics"].items() if key.startswith(prefix)}

    proposed = folder / name / "proposed.txt"
    lines = len(proposed.read_text(encoding="utf-8").splitlines()) if proposed.exists() else None
    return Scores(
        name,
        {count: metrics(f"test{count}", "test/") for count in counts},
        metrics("run", "val/"),
        metrics("validate1", "val/"),
        len(list((folder / name / "run" / "wandb").glob("offline-run-*"))),
        None if lines is None else (lines, TRAIN + VAL),
    )


def table(scores: Sequence[Scores]) -> str:
    """Return the table of the scores side by side."""
    heading = ["family", "score", "1 process", "2 processes", "3 processes", "scores", "largest difference"]
    return markdown_table([heading, *(each.row() for each in scores)], text_columns=2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if a score depends on the number of processes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="FAMILY", help="families (default: all)")
    parser.add_argument("--folder", type=Path, help="keep the runs in this folder")
    parser.add_argument("--worker", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--commands", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.worker is not None:
        return work(given.worker, given.commands, given.names, int(os.environ["WORLD_SIZE"]))
    with contextlib.ExitStack() as stack:
        folder = given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        scores = run(given.names or list(FAMILIES), folder)
    print(table(scores))
    for each in scores:
        if each.proposed is not None:
            print(
                f"\n{each.name}: proposals were computed {each.proposed[0]} times for {each.proposed[1]} images"
            )
    print(f"\nW&B runs of each training: {sorted({each.wandb_runs for each in scores})}")
    return int(any(each.difference > 1e-6 for each in scores))


if __name__ == "__main__":
    sys.exit(main())
