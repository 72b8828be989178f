"""The profile of a model: FLOPs, memory, latency, throughput and the time of each stage, as JSON.

The profile of a run is ``profile.json`` in the run's folder. Reading it does not import torch.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from segdet.runs.record import to_json
from segdet.util.files import write_text
from segdet.util.json_file import read_dataclass

SCHEMA = 1
"""The version of the format. Increase it when a key changes its meaning, not for a new optional key."""

PROFILE_NAME = "profile.json"
"""The profile's file name in a run folder."""

OTHER = "other"
"""The stage that holds the time outside of all marked stages."""


@dataclass
class Estimate:
    """A measured value with its confidence interval of 95%.

    Attributes:
        value: The value.
        low: The lower bound, or None if there are too few measurements for one.
        high: The upper bound, or None if there are too few measurements for one.
    """

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def half_width(self) -> float | None:
        """Half the width of the interval relative to the value; None if a bound is missing or the value is 0."""
        if self.low is None or self.high is None or not self.value:
            return None
        return (self.high - self.low) / 2 / self.value


@dataclass
class Distribution:
    """A quantity that may differ between images.

    Attributes:
        values: The value of each image, in the order of the profile's ``images``. If only the first images were
            measured, the list is shorter.
    """

    values: list[float] = field(default_factory=list)

    @property
    def minimum(self) -> float:
        """The smallest value."""
        return min(self.values)

    @property
    def median(self) -> float:
        """The median."""
        return statistics.median(self.values)

    @property
    def mean(self) -> float:
        """The mean."""
        return statistics.fmean(self.values)

    @property
    def maximum(self) -> float:
        """The largest value."""
        return max(self.values)

    @property
    def varies(self) -> bool:
        """Whether the value depends on the image."""
        return self.minimum != self.maximum

    def quantile(self, share: float) -> float:
        """Return the quantile at ``share`` (0..1), interpolated linearly between the values."""
        return quantile(self.values, share)


@dataclass
class UncountedOperator:
    """An operator that computes, but whose operations are not in the FLOPs.

    Attributes:
        name: The operator, such as ``torchvision::roi_align``.
        calls: The mean number of calls per image.
        elements: The mean number of elements of its results per image.
    """

    name: str
    calls: float
    elements: float


@dataclass
class Latency:
    """The time from reading an image file to the prediction in its pixels, at batch size 1.

    Attributes:
        p50: The median in milliseconds.
        p90: The 90th percentile in milliseconds.
        p99: The 99th percentile in milliseconds.
        count: The number of timed predictions, after the warm-up.
        warm_up: The number of predictions before them.
        target: The relative half width of the interval of ``p50`` at which the measurement stops.
        reached: Whether ``target`` was reached within the time limit.
        processor_ms: The median of the processor time of one prediction in milliseconds, over all threads. For a model
            on the CPU with one thread, ``p50`` minus this value is the time taken by other processes.
    """

    p50: Estimate
    p90: Estimate
    p99: Estimate
    count: int
    warm_up: int
    target: float
    reached: bool
    processor_ms: float


@dataclass
class Throughput:
    """The speed of predictions for batches that are already in memory.

    Attributes:
        batch_size: The number of images of a batch.
        images_per_second: The number of images per second: the batch size divided by the median time of a batch.
        count: The number of timed batches, after the warm-up.
    """

    batch_size: int
    images_per_second: Estimate
    count: int


@dataclass
class Stages:
    """The time of each stage of a prediction, from reading the file to the prediction in the image's pixels.

    All times are those of the fastest prediction of each image, averaged over the images. Other work on the machine can
    only slow down a prediction, so these times are less disturbed than the quantiles of the latency.

    Attributes:
        ms: Milliseconds per image of each stage in the order of a prediction. ``other`` is the time outside of all
            marked stages.
        whole_ms: The time of the same predictions without the measurement of stages, measured in turn with it.
        count: The number of timed predictions of each kind.
        processor_ms: Processor time of each stage in milliseconds, over all threads. Other processes do not affect it.
            Each image's prediction with the least processor time is used. Work on a GPU is not included.
        processor_whole_ms: The processor time without the measurement of stages.
    """

    ms: dict[str, float]
    whole_ms: float
    count: int
    processor_ms: dict[str, float] = field(default_factory=dict)
    processor_whole_ms: float = 0.0

    @property
    def ratio(self) -> float:
        """The sum of all stages divided by ``whole_ms``."""
        return sum(self.ms.values()) / self.whole_ms

    @property
    def processor_ratio(self) -> float | None:
        """The sum of the processor time of all stages divided by ``processor_whole_ms``; None if it is unknown."""
        return sum(self.processor_ms.values()) / self.processor_whole_ms if self.processor_whole_ms else None


@dataclass
class Memory:
    """Peak memory.

    Attributes:
        training_mb: MiB of one training step: weights, gradients, the optimizer's state and activations. None if it
            was not measured.
        inference_mb: MiB of the prediction of one image, including the weights.
        training_batch_size: The number of images of the training step.
        measured: What was measured: ``gpu`` for the memory that torch allocates on the GPU, ``tensors`` for the
            memory that torch allocates for tensors on the CPU.
        fault: The reason why the memory of training was not measured; empty if it was.
    """

    training_mb: float | None
    inference_mb: float
    training_batch_size: int
    measured: str
    fault: str = ""


@dataclass
class Profile:
    """The profile of one model on one machine.

    Attributes:
        name: The name of the run, or of the configuration without its suffix.
        source: The run's folder or the configuration file.
        model: The model's class.
        task: ``segmentation``, ``localization`` or ``detection``.
        data: The data module's class.
        weights: The checkpoint of the weights, or ``random``.
        device: ``cpu`` or ``cuda``.
        precision: The trainer's precision.
        images: The names of the measured images, relative to the dataset's folder, in order.
        sizes: The ``[height, width]`` of each image at the network's input.
        parameters: Number of parameters, frozen ones included.
        trainable_parameters: Number of parameters that are trained.
        flops: Floating-point operations of each image. A multiply-add counts as two.
        uncounted: The operators whose operations are not in ``flops``, those with most elements first.
        passes: Network passes of each image.
        latency: The latency at batch size 1.
        throughput: The throughput, or None if it was not measured.
        stages: The time of each stage.
        memory: The peak memory.
        hardware: The hardware (``cpu``, ``gpus``, ``cores``, ``threads`` ...).
        load_before: The load averages of the machine over 1, 5 and 15 minutes before the measurements.
        load_after: The same after the measurements.
        seconds: The time that the measurement of this model took.
        together_with: The names of the models that were measured in turn with this one.
        command: The command line.
        started: When the measurement started, in ISO 8601.
        notes: Remarks on the measurement, such as a time limit that was reached.
    """

    name: str
    source: str
    model: str
    task: str
    data: str
    weights: str
    device: str
    precision: str
    images: list[str]
    sizes: list[list[int]]
    parameters: int
    trainable_parameters: int
    flops: Distribution
    uncounted: list[UncountedOperator]
    passes: Distribution
    latency: Latency
    throughput: Throughput | None
    stages: Stages
    memory: Memory
    hardware: dict[str, Any] = field(default_factory=dict)
    load_before: list[float] = field(default_factory=list)
    load_after: list[float] = field(default_factory=list)
    seconds: float = 0.0
    together_with: list[str] = field(default_factory=list)
    command: str = ""
    started: str = ""
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the profile in JSON types, with the version of the format."""
        content: dict[str, Any] = to_json({"schema": SCHEMA, **asdict(self)})
        return content

    def write(self, path: Path | str) -> None:
        """Write the profile to the file ``path`` atomically.

        Raises:
            UserError: If the file cannot be written.
        """
        write_text(Path(path), json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")


def read_profile(path: Path | str) -> Profile:
    """Read the profile in the file ``path``. Unknown keys are ignored.

    Raises:
        UserError: If the file is missing or corrupt, has another schema, or holds a wrong value.
    """
    path = Path(path)
    return read_dataclass(
        path,
        Profile,
        SCHEMA,
        "profile",
        fix="run segdet profile again",
        if_missing=f"run segdet profile {path.parent}",
    )


def quantile(values: Sequence[float], share: float) -> float:
    """Return the quantile at ``share`` (0..1), interpolated linearly between the sorted values."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])
