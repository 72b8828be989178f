"""Compare the time of the training steps of ``segdet fit`` with a plain PyTorch loop or another checkout.

::

    python experiments/step_time.py configs/camvid/fcn.yaml --root path/to/camvid
    python experiments/step_time.py configs/camvid/fcn.yaml --root path/to/camvid --against ../other/checkout

Both sides take turns, so that changes of the machine's speed affect both. With the plain loop, they alternate after
each step. With another checkout, they alternate after each process. Each side reads its own batches in the main
process. The script prints both processor time (user and system) and wall-clock time. Other processes affect the
processor time less.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

SKIPPED = 5
"""The number of steps to ignore at the beginning, because they allocate memory and fill caches."""


class StepTimes(pl.Callback):
    """Write the times of all training steps to a file when training ends.

    Args:
        path: The JSON file. It contains the seconds of processor time and of wall-clock time of each step.
        plain: Whether to run one step of a plain PyTorch loop, on a copy of the model, after each step of Lightning.
            The times of these steps are written as well.
    """

    def __init__(self, path: str, plain: bool = False) -> None:
        self.path = Path(path)
        self.plain = plain
        self.steps: list[tuple[float, float]] = []
        self.plain_steps: list[tuple[float, float]] = []
        self.loop: Iterator[None] = iter(())
        self.since = (0.0, 0.0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copy the model for the plain loop."""
        if self.plain:
            self.loop = plain_loop(copy.deepcopy(pl_module), trainer)
        self.since = now()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Record the time of Lightning's step, then run and time a step of the plain loop."""
        self.steps.append(passed(self.since))
        if self.plain:
            before = now()
            next(self.loop)
            self.plain_steps.append(passed(before))
        self.since = now()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the times."""
        self.path.write_text(json.dumps({"fit": self.steps, "plain": self.plain_steps}), encoding="utf-8")


def plain_loop(model: Any, trainer: pl.Trainer) -> Iterator[None]:
    """Train ``model`` as a script without Lightning would; each ``next`` is one step."""
    model.trainer = trainer  # some families read the step number from it
    configured = model.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    loader = data.train_dataloader()
    model.train()
    while True:
        for batch in loader:
            batch = batch.to(model.device)
            losses = model.losses(model.normalize(batch.images, batch.sizes), batch.targets)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            schedule.step()
            yield


def now() -> tuple[float, float]:
    """Return the processor time of this process and the wall-clock time, in seconds."""
    return time.process_time(), time.perf_counter()


def passed(since: tuple[float, float]) -> tuple[float, float]:
    """Return the seconds since ``since`` on both clocks."""
    return tuple(a - b for a, b in zip(now(), since, strict=True))  # type: ignore[return-value]


def fit(checkout: Path, config: Path, root: Path, steps: int, plain: bool) -> dict[str, list[list[float]]]:
    """Run ``segdet fit`` of a checkout for some steps and return the times of `StepTimes`."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "times.json"
        timer = {"class_path": "step_time.StepTimes", "init_args": {"path": str(out), "plain": plain}}
        command = [
            sys.executable, "-m", "segdet", "fit", "--config", str(config.resolve()),
            "--data.root", str(root.resolve()),
            "--data.num_workers", "0", "--run_dir", f"{folder}/run", "--wandb", "false",
            "--trainer.callbacks", json.dumps([timer]), "--trainer.max_steps", str(steps),
            "--trainer.max_epochs", "-1", "--trainer.limit_val_batches", "0",
        ]  # fmt: skip
        paths = os.pathsep.join([str(checkout.resolve()), str(Path(__file__).resolve().parent)])
        done = subprocess.run(
            command, cwd=folder, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True
        )
        if not out.exists():
            raise SystemExit(f"{checkout}: segdet fit failed:\n{done.stderr[-2000:]}")
        return json.loads(out.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def median_ms(times: Sequence[Sequence[float]], clock: int) -> float:
    """Return the median time of a step on one clock in milliseconds, without the `SKIPPED` first steps."""
    return 1000 * statistics.median(step[clock] for step in times[SKIPPED:])


def compare(
    title: str, ours: Sequence[Sequence[Sequence[float]]], peer: Sequence[Sequence[Sequence[float]]]
) -> None:
    """Print the medians of both sides and the median ratio of neighbouring runs."""
    for clock, name in enumerate(("processor", "clock")):
        pairs = [(median_ms(a, clock), median_ms(b, clock)) for a, b in zip(ours, peer, strict=True)]
        ratio = statistics.median(a / b for a, b in pairs)
        left, right = (statistics.median(side) for side in zip(*pairs, strict=True))
        print(f"{title}, {name}: {left:.1f} ms, {right:.1f} ms per step: ratio {ratio:.4f}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, help="a config of segdet fit")
    parser.add_argument("--root", type=Path, required=True, help="the dataset's folder")
    parser.add_argument("--against", type=Path, help="another checkout (default: a plain PyTorch loop)")
    parser.add_argument("--steps", type=int, default=40, help="number of steps of each process (40)")
    parser.add_argument("--rounds", type=int, default=3, help="number of processes of each side (3)")
    given = parser.parse_args(argv)
    here = Path(__file__).resolve().parents[1]
    ours, peer = [], []
    for _ in range(given.rounds):
        times = fit(here, given.config, given.root, given.steps, plain=given.against is None)
        ours.append(times["fit"])
        if given.against is None:
            peer.append(times["plain"])
        else:
            peer.append(fit(given.against, given.config, given.root, given.steps, plain=False)["fit"])
    other = "plain loop" if given.against is None else str(given.against)
    compare(f"{given.config}: segdet fit, {other}", ours, peer)


if __name__ == "__main__":
    main()
