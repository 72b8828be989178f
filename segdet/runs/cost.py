"""The cost of predicting one image: parameters, FLOPs, milliseconds, network passes and memory.

All costs are those of ``predict_tensors``, from the decoded and transformed image to the final prediction:
normalization, network, decoding of boxes, NMS or upsampling. Reading and decoding the file are left out, because they
cost the same for every model.
"""

import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from segdet.nn.train_eval_mode import evaluating
from segdet.runs.operations import count_operations
from segdet.runs.record import Cost
from segdet.util.stage_timing import time_stages

STAGE_REPEATS = 5
"""The maximum number of predictions for the median time of a stage."""


class Predictor(Protocol):
    """The interface of a ``torch.nn.Module`` whose cost can be measured."""

    @property
    def pass_module(self) -> nn.Module:
        """The module whose network passes are counted. Each sample in a call of this module is one pass."""

    def predict_tensors(self, images: Tensor) -> Any:
        """Return the predictions for uint8 images ``[B, 3, H, W]``."""


def measure_cost(
    model: Predictor,
    images: Tensor,
    repeats: int = 30,
    seconds: float = 3.0,
    inputs: Mapping[str, Any] | None = None,
) -> Cost:
    """Measure the cost of predicting one image with ``model``, on the model's device and in its precision.

    The modes of all modules (training or evaluation) and the random state do not change.

    - ``parameters``: all parameters, including frozen ones; shared parameters count once.
    - ``flops``: matrix products, convolutions and attention, as ``torch.utils.flop_counter`` counts them: a
      multiply-add is two operations. Elementwise operations, pooling, NMS and upsampling are not counted.
    - ``ms_per_image``: the median of up to ``repeats`` predictions after one warm-up. On a GPU each measurement ends
      with a synchronization. A prediction slower than ``seconds`` is timed once.
    - ``passes_per_image``: the number of samples that pass through ``model.pass_module`` for this image: the sum of the
      batch sizes of its calls.
    - ``peak_memory_mb``: the peak memory of the process so far, in MiB: on a GPU the memory allocated by torch since
      the last reset, else the resident memory. After training it is the peak of the training. None if unavailable.
    - ``stages_ms``: the median time in each stage that the model marks with `segdet.util.stage_timing.stage`, in the
      order of their first start. Stages are measured in separate predictions.

    Args:
        model: A module with ``predict_tensors`` and ``pass_module``.
        images: uint8 ``[1, 3, H, W]``, on the model's device. Use a real image: the number of boxes before NMS depends
            on its content.
        repeats: The maximum number of predictions to time.
        seconds: The maximum time to spend on timing.
        inputs: Additional keyword arguments of ``predict_tensors``.

    Raises:
        ValueError: If ``images`` is not one uint8 RGB image.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[:2]) != (1, 3):
        raise ValueError(f"expected uint8 [1, 3, H, W], got {images.dtype} {list(images.shape)}")
    assert isinstance(model, nn.Module)
    predict: Callable[[Tensor], Any] = functools.partial(model.predict_tensors, **(inputs or {}))
    with evaluating(model), _same_random_state():
        with torch.inference_mode():
            _synchronize(images)
            with time_stages(images.device) as stage_times:
                warm_up = _seconds(predict, images)
            times = [warm_up] if warm_up > seconds else []
            end = time.perf_counter() + seconds
            while not times or (len(times) < repeats and time.perf_counter() + times[-1] <= end):
                times.append(_seconds(predict, images))
            stage_seconds = stage_times.seconds
            repeat_stages = stage_seconds and warm_up <= seconds
            rounds = _stage_rounds(predict, images, seconds / 3) if repeat_stages else [stage_seconds]
        operations = count_operations(lambda: predict(images), model, model.pass_module)
    return Cost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        flops=operations.flops,
        ms_per_image=1000 * statistics.median(times),
        passes_per_image=float(operations.passes),
        peak_memory_mb=peak_memory_mb(images.device),
        stages_ms={
            name: round(1000 * statistics.median(each.get(name, 0.0) for each in rounds), 3)
            for name in stage_seconds
        },
    )


def peak_memory_mb(device: torch.device) -> float | None:
    """Return the peak memory in MiB: allocated by torch on the GPU ``device``, else resident in this process.

    None if the system does not report it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # macOS reports bytes, Linux KiB


def _synchronize(images: Tensor) -> None:
    if images.is_cuda:
        torch.cuda.synchronize(images.device)


def _seconds(predict: Callable[[Tensor], Any], images: Tensor) -> float:
    """Return the duration of one prediction, including the device's work."""
    _synchronize(images)
    start = time.perf_counter()
    predict(images)
    _synchronize(images)
    return time.perf_counter() - start


def _stage_rounds(predict: Callable[[Tensor], Any], images: Tensor, seconds: float) -> list[dict[str, float]]:
    """Return the seconds per stage of one or more predictions; no prediction starts after ``seconds``."""
    rounds: list[dict[str, float]] = []
    end = time.perf_counter() + seconds
    while not rounds or (len(rounds) < STAGE_REPEATS and time.perf_counter() < end):
        _synchronize(images)
        with time_stages(images.device) as stages:
            predict(images)
        rounds.append(stages.seconds)
    return rounds


@contextmanager
def _same_random_state() -> Iterator[None]:
    """Restore torch's random state at the end."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        yield
