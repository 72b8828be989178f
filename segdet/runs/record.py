"""The result record of a run: its configuration, scores and costs, as ``result.json`` in the run folder.

Reports and comparisons read this file only. It is small JSON, and reading it does not import torch.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from segdet.util.encodable import encodable
from segdet.util.files import write_text
from segdet.util.json_file import read_dataclass

SCHEMA = 1
"""The version of the format. Increase it when a key changes its meaning, not for a new optional key."""

RECORD_NAME = "result.json"
"""The record's file name in a run folder."""

STAGES = ("read", "resize", "transfer", "proposals", "warps", "network", "head", "nms", "upsampling")
"""The stages of all families, in the order of a prediction.

- ``read``: reading and decoding of the file.
- ``resize``: the transforms of evaluation.
- ``transfer``: the copy to the GPU.
- ``proposals``: Selective Search, or the anchors and suppression of a proposal network.
- ``warps``: crops of windows, warped regions, or pooled regions of interest.
- ``network``: the backbone.
- ``head``: the layers after it, which classify and regress.
- ``nms``: decoding of boxes and suppression.
- ``upsampling``: the resizing of logits to the original image, and their argmax.
"""

Status = Literal["finished", "interrupted", "failed", "diverged"]


@dataclass
class Cost:
    """The costs of a run and its network. None means "not measured".

    Attributes:
        parameters: Number of parameters of the network, frozen ones included.
        flops: Floating-point operations to predict one image. A multiply-add counts as two.
        ms_per_image: Milliseconds to predict one image at batch size 1, without decoding the file.
        passes_per_image: Number of network passes for one image: 1 for a single-shot detector, thousands for a
            sliding window.
        train_seconds: Seconds of training, validation included, over all resumed parts of the run.
        peak_memory_mb: Peak memory in MiB: of the GPU if there is one, otherwise of the process.
        disk_mb: Megabytes (10**6 bytes) that the training left on disk: the run folder without the files of Weights &
            Biases, and the region proposals of its images.
        stages_ms: Milliseconds of each stage of predicting one image, in order. Empty if the model marks no stages.
    """

    parameters: int | None = None
    flops: int | None = None
    ms_per_image: float | None = None
    passes_per_image: float | None = None
    train_seconds: float | None = None
    peak_memory_mb: float | None = None
    disk_mb: float | None = None
    stages_ms: dict[str, float] = field(default_factory=dict)


@dataclass
class Record:
    """The result of one run (one configuration, one seed).

    Attributes:
        name: The name of the run and of its folder.
        task: ``segmentation``, ``localization`` or ``detection``.
        model: The model's class.
        data: The data module's class.
        seed: The run's seed.
        status: How training ended.
        metrics: Final scores by their logged names (``val/miou``, ``test/map_50``). None means undefined: the
            measured value was NaN.
        cost: The costs.
        epochs: Number of finished training epochs.
        steps: Number of optimizer steps.
        hardware: The hardware (``cpu``, ``gpus``, ``cores`` ...).
        fingerprint: The fingerprint of the dataset. Runs with equal fingerprints read the same files.
        command: The command line of the training. A resumed run has all its commands, joined by ``&&``.
        started: When training started, in ISO 8601.
        finished: When training ended, in ISO 8601.
        backbone: The name of the backbone, if the model has one.
        per_image: The evidence of the test, from which the scores of any of its images can be computed; see
            `segdet.runs.evidence`. The path is relative to the record.
        launcher: The program that started the processes (``torchrun``, ``slurm`` ...), or None.
        description: The first sentence of the docstring of the model's class, or None.
    """

    name: str
    task: str
    model: str
    data: str
    seed: int
    status: Status
    metrics: dict[str, float | None] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    epochs: int = 0
    steps: int = 0
    hardware: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    command: str = ""
    started: str = ""
    finished: str = ""
    backbone: str | None = None
    per_image: str | None = None
    launcher: str | None = None
    description: str | None = None

    @property
    def is_tested(self) -> bool:
        """Whether the record has scores of the test split."""
        return any(name.startswith("test/") for name in self.metrics)

    def merge(
        self, metrics: Mapping[str, float | None], cost: Cost | None = None, per_image: str | None = None
    ) -> "Record":
        """Return a copy with later measurements added, such as the scores of a test.

        Args:
            metrics: Scores to add. They replace scores of the same name.
            cost: Costs to add. Fields that are None change nothing. The larger peak memory is kept.
            per_image: The new evidence, or None to keep the current one.
        """
        merged = self.cost
        if cost is not None:
            measured = {f.name: getattr(cost, f.name) for f in fields(cost)}
            measured = {name: value for name, value in measured.items() if value is not None and value != {}}
            if "peak_memory_mb" in measured:
                measured["peak_memory_mb"] = max(measured["peak_memory_mb"], merged.peak_memory_mb or 0)
            merged = replace(merged, **measured)
        return replace(
            self,
            metrics={**self.metrics, **metrics},
            cost=merged,
            per_image=self.per_image if per_image is None else per_image,
        )

    def write(self, path: Path | str) -> None:
        """Write the record to the file ``path`` atomically.

        Raises:
            UserError: If the file cannot be written.
        """
        path = Path(path)
        text = json.dumps(to_json({"schema": SCHEMA, **asdict(self)}), indent=1, allow_nan=False)
        write_text(path, text + "\n")

    @classmethod
    def read(cls, path: Path | str) -> "Record":
        """Read the record in the file ``path``. Unknown keys are ignored.

        Raises:
            UserError: If the file is missing or corrupt, has another schema, or holds a wrong value.
        """
        return read_dataclass(
            Path(path),
            cls,
            SCHEMA,
            "result record",
            fix="repeat the run",
            if_missing="run segdet fit first",
            if_foreign="remove the file or repeat the run",
            if_other_schema="use the version that wrote it, or repeat the run",
        )


def in_stage_order(names: Iterable[str]) -> list[str]:
    """Return names of stages, each once: those of `STAGES` in their order, then the others in the given order."""
    present = dict.fromkeys(names)
    return [name for name in STAGES if name in present] + [name for name in present if name not in STAGES]


def first_sentence(docstring: str | None) -> str | None:
    """Return the first sentence of a docstring on one line, without backticks; None if there is no text."""
    paragraph = " ".join((docstring or "").strip().split("\n\n")[0].split()).replace("`", "")
    end = r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!et al\.)\s+(?=[A-Z])"
    return re.split(end, paragraph, maxsplit=1)[0] or None


def to_json(value: Any) -> Any:
    """Convert ``value`` to JSON types. NaN and infinity become null, because JSON does not have them.

    Texts are made `encodable`: strict readers of JSON refuse lone surrogates.
    """
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, Mapping):
        return {encodable(str(key)): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, Path):
        return encodable(str(value))
    if hasattr(value, "item"):  # a scalar of numpy or torch
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
