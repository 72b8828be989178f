"""What one image costs a model: parameters, FLOPs, milliseconds, network passes and memory.

All of it is measured on ``predict_tensors``, the way from the decoded image to the finished prediction
(normalization, network, decoding of boxes, NMS or upsampling), because that is what a user waits for;
reading and decoding the file is the same for every model and left out.
"""

import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

from segdet.runs.record import Cost

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


STAGE = "segdet::"
"""What the names begin with that models mark the stages of their predictions by."""

STAGE_REPEATS = 5
"""How many predictions the times of their stages are the median of, at most."""


class Predictor(Protocol):
    """What `measure_cost` needs of a model, beside its being a ``torch.nn.Module``."""

    @property
    def pass_module(self) -> "nn.Module":
        """The module of which one forward of one sample is one network pass."""

    def predict_tensors(self, images: "Tensor") -> Any:
        """The predictions of uint8 images ``[B, 3, H, W]``."""


def measure_cost(
    model: Predictor,
    images: "Tensor",
    repeats: int = 30,
    seconds: float = 3.0,
    inputs: Mapping[str, Any] | None = None,
) -> Cost:
    """Measures what predicting one image costs ``model``, on the device and in the precision it is in.

    The model is left in the mode (training or evaluation) that it was in, and its random state untouched.

    - ``parameters``: all of the model's, frozen ones included, shared ones once.
    - ``flops``: of matrix products, convolutions and attention, as ``torch.utils.flop_counter`` counts
      them: a multiply-add is two. Elementwise work, pooling, NMS and upsampling count nothing.
    - ``ms_per_image``: the median of up to ``repeats`` predictions after one that warms up, each awaited
      to its end on a GPU. A prediction slower than ``seconds`` is timed once.
    - ``passes_per_image``: how many samples entered ``model.pass_module`` for this one image: the sum of the
      batch sizes of its forwards.
    - ``peak_memory_mb``: in MiB, the most that the process has held so far: on a GPU what torch has
      allocated there since the last reset, else the process's resident memory. Called after training,
      it is training's peak. None on systems that do not tell.
    - ``stages_ms``: the median time within each range that the model marks by
      ``torch.profiler.record_function("segdet::<stage>")``, in the order in which they begin. It is taken in
      predictions of its own, for on a GPU each range is awaited to its end, which costs the whole some of its time.

    Args:
        model: A module with ``predict_tensors`` and ``counted``.
        images: uint8 ``[1, 3, H, W]``, on the model's device; a real image, since the number of boxes
            that reach NMS depends on it.
        repeats: Most predictions to time.
        seconds: Most time to spend on timing.
        inputs: Additional keyword arguments of ``predict_tensors``.

    Raises:
        ValueError: If ``images`` is not one uint8 RGB image.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[:2]) != (1, 3):
        raise ValueError(f"expected uint8 [1, 3, H, W], got {images.dtype} {list(images.shape)}")
    assert isinstance(model, torch.nn.Module)
    predict: Callable[[Tensor], Any] = functools.partial(model.predict_tensors, **(inputs or {}))
    with _evaluating(model):
        with torch.inference_mode():
            with _timing_stages(images) as marked:
                warm_up = _seconds(predict, images)
            times = [warm_up] if warm_up > seconds else []
            end = time.perf_counter() + seconds
            while not times or (len(times) < repeats and time.perf_counter() + times[-1] <= end):
                times.append(_seconds(predict, images))
            fast = marked and warm_up <= seconds
            rounds = _stage_rounds(predict, images, seconds / 3) if fast else [marked]
        counter = FlopCounterMode(display=False)
        # What torch.compile has made of the model hides its operations and its modules.
        compiled = any(module._compiled_call_impl is not None for module in model.modules())
        eager = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
        with eager, torch.no_grad(), _counting(model.pass_module) as entered, counter:
            predict(images)
    return Cost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        flops=int(counter.get_total_flops()),
        ms_per_image=1000 * statistics.median(times),
        passes_per_image=float(sum(entered)),
        peak_memory_mb=peak_memory_mb(images.device),
        stages_ms={
            name: round(1000 * statistics.median(each.get(name, 0.0) for each in rounds), 3)
            for name in marked
        },
    )


def peak_memory_mb(device: "torch.device") -> float | None:
    """Peak MiB: of the GPU ``device`` as torch allocated it, else of this process (None: unknown)."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB elsewhere


def _seconds(predict: Callable[["Tensor"], Any], images: "Tensor") -> float:
    """The duration of one prediction, awaited to its end."""
    import torch

    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    start = time.perf_counter()
    predict(images)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - start


def _stage_rounds(
    predict: Callable[["Tensor"], Any], images: "Tensor", seconds: float
) -> list[dict[str, float]]:
    """The seconds of each stage of a few predictions, at least one, and no more begun once ``seconds`` are over."""
    rounds: list[dict[str, float]] = []
    end = time.perf_counter() + seconds
    while not rounds or (len(rounds) < STAGE_REPEATS and time.perf_counter() < end):
        with _timing_stages(images) as stages:
            predict(images)
        rounds.append(stages)
    return rounds


@contextmanager
def _timing_stages(images: "Tensor") -> Iterator[dict[str, float]]:
    """The seconds within each stage that is marked meanwhile, added up, in the order in which they first begin.

    It is the marks themselves that are timed. Torch's profiler would tell the same, but writes to stderr whenever it
    starts, a line that begins with ERROR where there is no GPU among them, and of a GPU's work it only knows when that
    was asked for.

    Args:
        images: On the device whose work a stage is awaited to the end of.
    """
    import torch
    from torch.profiler import record_function

    seconds: dict[str, float] = {}
    enter, leave = record_function.__enter__, record_function.__exit__
    began: list[float] = []

    def clock() -> float:
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        return time.perf_counter()

    def timed_enter(mark: record_function) -> record_function:
        if mark.name.startswith(STAGE):
            seconds.setdefault(mark.name.removeprefix(STAGE), 0.0)
            began.append(clock())
        return enter(mark)

    def timed_leave(mark: record_function, *error: Any) -> None:
        leave(mark, *error)
        if mark.name.startswith(STAGE):
            seconds[mark.name.removeprefix(STAGE)] += clock() - began.pop()

    record_function.__enter__, record_function.__exit__ = timed_enter, timed_leave  # type: ignore[method-assign]
    try:
        yield seconds
    finally:
        record_function.__enter__, record_function.__exit__ = enter, leave  # type: ignore[method-assign]


@contextmanager
def _evaluating(model: "nn.Module") -> Iterator[None]:
    """Evaluation mode for a while, then every module's own mode again, and the same random numbers after."""
    import torch

    modes = [(module, module.training) for module in model.modules()]
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    model.eval()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _counting(module: "nn.Module") -> Iterator[list[int]]:
    """The batch sizes that enter ``module`` meanwhile."""
    sizes: list[int] = []

    def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sizes.append(len(next(iter((*args, *kwargs.values())))))

    handle = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield sizes
    finally:
        handle.remove()
