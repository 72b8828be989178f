"""Run folders with invented results, for tests of the report."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from segdet.runs.record import Cost, Record

HARDWARE = {"cpu": "AMD EPYC", "cores": 2, "gpus": [], "processes": 1}
SCORES = {
    "segmentation": ("miou", "pixel_acc"),
    "localization": ("loc_acc", "top1"),
    "detection": ("map", "map_50"),
}
START = 1_750_000_000.0


def write_run(
    folder: Path,
    task: str = "detection",
    model: str = "SSD",
    score: float = 0.5,
    seed: int = 0,
    points: int = 50,
    epochs: int = 5,
    config: dict[str, Any] | None = None,
    finished: bool = True,
    **changes: Any,
) -> Record:
    """Write the files of a run and return its record.

    Args:
        folder: The run folder. Its name is the run's name.
        task: The task.
        model: The model's class.
        score: The main score.
        seed: The seed.
        points: The number of logged losses.
        epochs: The number of epochs, each with a validation.
        config: Settings to add to ``config.yaml``.
        finished: Whether to write the record.
        changes: Other fields of the record.
    """
    folder.mkdir(parents=True)
    main, second = SCORES[task]
    random = np.random.default_rng([seed, len(folder.name), round(1000 * score)])
    scores = {f"{main}": score, second: min(1.0, score + 0.2)}
    cost = Cost(
        parameters=int(random.integers(1e5, 1e7)),
        flops=int(random.integers(1e8, 1e11)),
        ms_per_image=float(random.uniform(2, 200)),
        passes_per_image=1.0,
        train_seconds=float(points * random.uniform(0.5, 4)),
        peak_memory_mb=float(random.integers(300, 3000)),
        disk_mb=float(random.uniform(2, 40)),
        stages_ms={"network": float(random.uniform(2, 50)), "nms": float(random.uniform(0.1, 4))},
    )
    record = Record(
        name=folder.name,
        task=task,
        model=model,
        data="ShapesDataModule",
        seed=seed,
        status="finished",
        metrics={f"{split}/{name}": value for split in ("val", "test") for name, value in scores.items()},
        cost=cost,
        epochs=epochs,
        steps=points * 10,
        hardware=HARDWARE,
        fingerprint="e820016ec8d67588",
        command=f"segdet fit --config configs/shapes/{model.lower()}.yaml --seed_everything {seed}",
        started="2025-06-15T15:06:40+00:00",
        finished="2025-06-15T16:06:40+00:00",
        backbone="small_vgg",
    )
    record = replace(record, **changes)
    settings = {
        "seed_everything": seed,
        "model": {"class_path": f"segdet.{task}.{model}", "init_args": {"optim": {"lr": 0.01}}},
        "data": {"class_path": "segdet.data.ShapesDataModule", "init_args": {"batch_size": 4}},
        "trainer": {"max_epochs": epochs, "max_steps": -1},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings | (config or {})))
    (folder / "provenance.json").write_text(
        json.dumps(
            {
                "started": "2025-06-15T15:06:40+00:00",
                "command": record.command,
                "seed": seed,
                "python": "3.11.7",
                "packages": {"segdet": "0.1.0", "torch": "2.6.0"},
                "git": None,
            }
        )
    )
    losses = 10 * np.exp(-np.arange(points) / (points / 4)) + random.uniform(0.2, 0.6, points)
    lines = [f"epoch,step,time,train/loss,val/{main}"]
    every = max(1, points // epochs)
    for at, loss in enumerate(losses.tolist()):
        step, time = 10 * at + 9, START + 400 + 2.0 * at
        lines.append(f"{at // every},{step},{time:.1f},{loss},")
        if (at + 1) % every == 0:
            value = score * (1 - np.exp(-3 * (at + 1) / points)) / (1 - np.exp(-3))
            lines.append(f"{at // every},{step},{time:.1f},,{value}")
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    if finished:
        record.write(folder / "result.json")
    return record
