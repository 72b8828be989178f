"""The profile of one or several models, measured together."""

import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from segdet.data.base import DataModule
from segdet.data.sample import collate
from segdet.profiling.measurement import LatencyMeasurement, ThroughputMeasurement, measure_in_turn
from segdet.profiling.memory import peak_memory_mb
from segdet.profiling.prediction import FilePredictor, Images, choose_images
from segdet.profiling.result import Distribution, Memory, Profile, UncountedOperator
from segdet.runs.operations import Operations, count_operations
from segdet.runs.provenance import hardware, now
from segdet.task import Task
from segdet.util.errors import UserError

ADD_UP = 0.03
"""The largest relative difference between the sum of the stages and the whole that causes no remark."""


@dataclass
class Subject:
    """A model to profile.

    Attributes:
        name: The name of the run or of the configuration.
        source: The run's folder or the configuration file.
        model: The model, on its device.
        data: The data module, with its transforms chosen.
        weights: The checkpoint of the weights, or ``random``.
        precision: The name of the trainer's precision.
        context: A function that returns the context of the forward pass in this precision.
        notes: Remarks on the measurement.
    """

    name: str
    source: str
    model: Task
    data: DataModule
    weights: str
    precision: str
    context: Callable[[], AbstractContextManager[Any]]
    notes: list[str] = field(default_factory=list)


@dataclass
class ProfileOptions:
    """The options of the measurement.

    Attributes:
        images: The number of test images.
        batch_size: The number of images of a batch for the throughput.
        time_limit: The maximum time in seconds for the latency and the stages of one model. Throughput and FLOPs have
            a quarter of it each.
    """

    images: int = 16
    batch_size: int = 8
    time_limit: float = 60.0


def profile_models(subjects: Sequence[Subject], options: ProfileOptions, command: str = "") -> list[Profile]:
    """Profile models. Their times are measured in turn.

    Args:
        subjects: The models. Their weights and modes change, because a training step is part of the measurement.
        options: The options of the measurement.
        command: The command line, for the record.

    Raises:
        UserError: If an image cannot be read, or a model cannot predict.
    """
    started, load_before = now(), _load()
    work = [_Work(subject, options) for subject in subjects]
    with tqdm(work, "FLOPs", unit="model", delay=2, leave=False) as bar:
        for each in bar:
            each.count()
    measure_in_turn([each.latency for each in work], "latency")
    for each in work:
        each.prepare_batch()
    measure_in_turn([each.throughput for each in work if each.throughput is not None], "throughput")
    with tqdm(work, "memory", unit="model", delay=2, leave=False) as bar:
        for each in bar:
            each.measure_memory()
    load_after = _load()
    names = [subject.name for subject in subjects]
    return [
        each.profile(
            command=command,
            started=started,
            load_before=load_before,
            load_after=load_after,
            together_with=[name for position, name in enumerate(names) if work[position] is not each],
        )
        for each in work
    ]


class _Work:
    """The measurements of one model."""

    def __init__(self, subject: Subject, options: ProfileOptions) -> None:
        self.subject, self.options = subject, options
        subject.model.eval()
        self.predictor = FilePredictor(subject.model, subject.data, subject.context)
        self.images: Images = choose_images(subject.data, options.images)
        self.latency = LatencyMeasurement(
            self.predictor.predict, self.images.indices, subject.model.device, options.time_limit
        )
        self.throughput: ThroughputMeasurement | None = None
        self.operations: list[Operations] = []
        self.sizes: list[list[int]] = []
        self.memory: Memory | None = None
        self.seconds = 0.0
        self.notes = list(subject.notes)
        if self.predictor.reads_proposals:
            self.notes.append("proposals are read from a file; their computation is not measured")

    def count(self) -> None:
        """Count the operations of as many images as the time permits."""
        start = time.perf_counter()
        model = self.subject.model
        for index in self.images.indices:
            shape = self.predictor.sample(index).image.shape
            self.sizes.append([shape[1], shape[2]])
        begin = time.perf_counter()
        for index in self.images.indices:
            predict = lambda index=index: self.predictor.predict(index)  # noqa: E731
            self.operations.append(count_operations(predict, model, model.pass_module))
            if time.perf_counter() - begin > self.options.time_limit / 4:
                break
        if len(self.operations) < len(self.images.indices):
            total = len(self.images.indices)
            self.notes.append(
                f"the operations of {len(self.operations)} of {total} images were counted within the time limit"
            )
        self.seconds += time.perf_counter() - start

    def prepare_batch(self) -> None:
        """Read the images of a batch of one size."""
        by_size: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, size in zip(self.images.indices, self.sizes, strict=True):
            by_size[tuple(size)].append(index)
        largest = max(by_size.values(), key=len)
        chosen = [largest[position % len(largest)] for position in range(self.options.batch_size)]
        batch = self.predictor.batch(chosen)
        self.throughput = ThroughputMeasurement(
            lambda: self.predictor.predict_batch(batch), self.options.batch_size, self.options.time_limit / 4
        )

    def measure_memory(self) -> None:
        """Measure the memory of the prediction of the largest image, and of a training step."""
        start = time.perf_counter()
        largest = max(range(len(self.sizes)), key=lambda i: self.sizes[i][0] * self.sizes[i][1])
        index = self.images.indices[largest]

        def predict() -> None:
            with torch.no_grad():
                self.predictor.predict(index)

        model, data = self.subject.model, self.subject.data
        inference = peak_memory_mb(predict, model)
        training, fault = None, ""
        try:
            training = training_memory_mb(model, data, self.subject.context)
        except (UserError, torch.OutOfMemoryError) as error:
            fault = " ".join(str(error).split())
            self.notes.append(f"the memory of training was not measured: {fault}")
        measured = "gpu" if model.device.type == "cuda" else "tensors"
        self.memory = Memory(training, inference, data.batch_size, measured, fault)
        self.seconds += time.perf_counter() - start

    def profile(self, **common: Any) -> Profile:
        """Return the results."""
        assert self.memory is not None and self.throughput is not None
        subject, model = self.subject, self.subject.model
        stages, latency = self.latency.stage_times(), self.latency.latency()
        if not latency.reached:
            width = latency.p50.half_width
            shown = "unknown" if width is None else f"{100 * width:.1f}%"
            self.notes.append(
                f"the half width of the interval of p50 is {shown} after {latency.count} predictions; it did not fall "
                f"below {100 * latency.target:.0f}% within {self.options.time_limit:g} s"
            )
        if abs(stages.ratio - 1) > ADD_UP:
            used = stages.processor_ratio
            by_use = "" if used is None else f" ({100 * used:.1f}% by processor time)"
            check = by_use if model.device.type == "cpu" else ""
            self.notes.append(
                f"the stages add up to {100 * stages.ratio:.1f}% of the whole{check}; other work disturbs the "
                "times, so measure on an idle machine or for longer"
            )
        parameters = list(model.parameters())
        return Profile(
            name=subject.name,
            source=subject.source,
            model=type(model).__name__,
            task=model.task,
            data=type(subject.data).__name__,
            weights=subject.weights,
            device=model.device.type,
            precision=subject.precision,
            images=self.images.names,
            sizes=self.sizes,
            parameters=sum(parameter.numel() for parameter in parameters),
            trainable_parameters=sum(each.numel() for each in parameters if each.requires_grad),
            flops=Distribution([float(each.flops) for each in self.operations]),
            uncounted=_mean_uncounted(self.operations),
            passes=Distribution([float(each.passes) for each in self.operations]),
            latency=latency,
            throughput=self.throughput.throughput(),
            stages=stages,
            memory=self.memory,
            hardware=hardware(),
            seconds=round(self.seconds + self.latency.spent + self.throughput.spent, 2),
            notes=self.notes,
            **common,
        )


def training_memory_mb(
    model: Task, data: DataModule, context: Callable[[], AbstractContextManager[Any]]
) -> float:
    """Return the peak memory in MiB of training steps with the batch size of the data. The weights change.

    Two steps are taken, because most optimizers create their state in the first one.

    Raises:
        UserError: If the training images cannot be read.
    """
    data.limit_train = data.batch_size  # region proposals are computed for these images only
    dataset = data.dataset("train")
    samples = [dataset[position % len(dataset)] for position in range(data.batch_size)]
    optimizer, _ = model.optim.build(model, total_steps=1000, steps_per_epoch=1000)
    model.train()

    def train() -> None:
        batch = collate(samples).to(model.device)
        with torch.enable_grad():
            for step in range(2):
                with context():
                    loss = model.training_step(batch, step)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    try:
        return peak_memory_mb(train, model)
    finally:
        model.eval()


def _mean_uncounted(operations: Sequence[Operations]) -> list[UncountedOperator]:
    """Return the mean calls and elements per image of the uncounted operators, most elements first."""
    names = dict.fromkeys(name for each in operations for name in each.uncounted)
    count = len(operations)
    found = [
        UncountedOperator(
            name,
            sum(each.uncounted[name].calls for each in operations if name in each.uncounted) / count,
            sum(each.uncounted[name].elements for each in operations if name in each.uncounted) / count,
        )
        for name in names
    ]
    return sorted(found, key=lambda operator: -operator.elements)


def _load() -> list[float]:
    """Return the load averages, or an empty list if the system has none."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else []
