"""The options of ``lightning.Trainer``: the values that a run accepts, and the profiler and precision that it uses.

Lightning checks some options when the trainer is built, some in the middle of training, and some not at all.
`check_trainer_options` checks all values that do not depend on the data, before the run's folder is created.
"""

import inspect
import re
import sys
from collections.abc import Mapping
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch import accelerators
from lightning.pytorch.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from segdet.runs.launched_processes import launched_devices
from segdet.training.precision import FLOAT16, REFUSED, cpu_precision
from segdet.util.distributed import rank
from segdet.util.errors import UserError, check_choice, check_range

_LEAST = {
    "num_nodes": 1,
    "fast_dev_run": 0,
    "max_epochs": -1,
    "min_epochs": 0,
    "max_steps": -1,
    "min_steps": 0,
    "num_sanity_val_steps": -1,
    "log_every_n_steps": 0,
    "accumulate_grad_batches": 1,
    "gradient_clip_val": 0,
    "check_val_every_n_epoch": 1,
    "reload_dataloaders_every_n_epochs": 0,
}
"""The smallest valid value of numeric options."""

_MOST = 2**31 - 1
"""The largest valid value of numeric options, so that torch can represent them."""

_AMOUNTS = {
    "limit_train_batches": 0,
    "limit_val_batches": 0,
    "limit_test_batches": 0,
    "limit_predict_batches": 0,
    "overfit_batches": 0,
    "val_check_interval": 1,
}
"""Options that are a number of batches (int) or a fraction of all batches (float), with the smallest valid number."""

_WITHOUT_EFFECT = {
    "default_root_dir": "a run writes into its own folder; give --run_dir",
    "model_registry": "checkpoints are read from local files; give --ckpt_path",
    "barebones": "a run logs, validates and saves checkpoints; leave it out, or give --trainer.fast_dev_run true",
}
"""Options that cannot have an effect in a run, and what to do."""

_PROFILERS: dict[str, type[Profiler]] = {
    "simple": SimpleProfiler,
    "advanced": AdvancedProfiler,
    "pytorch": PyTorchProfiler,
}


def check_trainer_options(options: Mapping[str, Any]) -> None:
    """Check the values of options that do not depend on the data.

    Args:
        options: The arguments of ``lightning.Trainer`` by name. Callbacks, loggers and plugins are not read.

    Raises:
        UserError: If a value is not valid, would have no effect, or does not fit the processes of the launcher.
    """
    for name, fix in _WITHOUT_EFFECT.items():
        if options.get(name):
            raise UserError(f"--trainer.{name} {_shown(options[name])}: has no effect, because {fix}")
    for name, least in _LEAST.items():
        value = options.get(name)
        if value is not None and not isinstance(value, bool):
            check_range(f"--trainer.{name}", value, least=least, most=_MOST)
    launched_devices(options)
    devices = str(options.get("devices"))
    if devices.lstrip("-").isdigit():
        check_range("--trainer.devices", int(devices), least=-1, most=_MOST)
    for name, least in _AMOUNTS.items():
        _check_amount(name, options.get(name), least)
    for name in ("max_time", "val_check_interval"):
        _check_duration(name, options.get(name))
    for unit in ("epochs", "steps"):
        first, last = options.get(f"min_{unit}"), options.get(f"max_{unit}")
        if first is not None and last not in (None, -1) and first > last:
            raise UserError(
                f"--trainer.min_{unit} {first}: is above --trainer.max_{unit} {last}, where training ends; give a "
                f"larger --trainer.max_{unit}"
            )
    algorithm = options.get("gradient_clip_algorithm")
    if algorithm is not None:
        check_choice("--trainer.gradient_clip_algorithm", algorithm, ("norm", "value"))
        if options.get("gradient_clip_val") is None:
            raise UserError(
                f"--trainer.gradient_clip_algorithm {algorithm}: has no effect without --trainer.gradient_clip_val; "
                "give both"
            )
    precision = options.get("precision")
    if precision in REFUSED:
        raise UserError(
            f"--trainer.precision {precision}: boxes, losses and scores are computed in float32; give 32-true, or "
            "bf16-mixed or 16-mixed, which use fewer bits only where little is lost"
        )
    profiler = options.get("profiler")
    if isinstance(profiler, str):
        check_choice("--trainer.profiler", profiler, tuple(_PROFILERS))


def _check_amount(name: str, value: Any, least: int) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number:
        return
    valid = value >= least if isinstance(value, int) else 0 <= value <= 1 and (value > 0 or least == 0)
    if not valid:
        above = "at least 0" if least == 0 else f"at least {least}"
        fraction = "from 0 to 1" if least == 0 else "above 0 and at most 1"
        raise UserError(
            f"--trainer.{name} {value}: must be a whole number of batches, {above}, or a fraction of all batches, "
            f"{fraction}, such as 0.5"
        )


def _check_duration(name: str, value: Any) -> None:
    """Check a duration: a string, or a mapping such as ``{hours: 1}``. Other values are not durations."""
    if not isinstance(value, str | Mapping):
        return
    try:
        pl.callbacks.Timer(duration=value if isinstance(value, str) else dict(value))
        seconds = _seconds(value)
    except (MisconfigurationException, TypeError, ValueError, OverflowError):
        seconds = -1.0
    if seconds <= 0:
        raise UserError(
            f"--trainer.{name} {_shown(value)}: must be a duration above 0; give days, hours, minutes and seconds as "
            "00:01:30:00, or {hours: 1, minutes: 30}"
        )


def _seconds(value: Any) -> float:
    if isinstance(value, str):
        days, hours, minutes, seconds = map(int, value.split(":"))
        value = {"days": days, "hours": hours, "minutes": minutes, "seconds": seconds}
    return timedelta(**value).total_seconds()


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@cache
def _names() -> frozenset[str]:
    return frozenset(inspect.signature(pl.Trainer.__init__).parameters)


def trainer_fault(error: BaseException, trainer: pl.Trainer | None = None) -> str:
    """Return the message of an error that Lightning raised because of an option, with the option in front.

    The option is the first argument of ``lightning.Trainer`` that the message quotes.

    Args:
        error: The exception.
        trainer: The trainer, if it has been built.
    """
    text = " ".join(str(error).split())[:240] or type(error).__name__
    quoted = [name for pair in re.findall(r"`(\w+)`|\b(\w+)=", text) for name in pair if name in _names()]
    name = quoted[0] if quoted else ""
    if name.startswith("limit_") and trainer is not None and trainer.overfit_batches:  # type: ignore[attr-defined]
        name = "overfit_batches"  # Lightning replaces the limits by this option
    return f"--trainer.{name}: {text}" if name else f"--trainer: {text}"


def placed_profiler(given: Profiler | str | None, folder: Path) -> Profiler | None:
    """Return the profiler of the option ``profiler``, which writes its report into ``folder``.

    A profiler object that has a folder of its own keeps it.
    """
    if given is None:
        return None
    profiler = _PROFILERS[given]() if isinstance(given, str) else given
    # Without a folder and a file name, Lightning logs the report at a level that the command suppresses.
    profiler.dirpath = profiler.dirpath or folder
    profiler.filename = profiler.filename or "profile"
    return profiler


def choose_precision(precision: Any, accelerator: Any) -> Any:
    """Return the precision to compute in. On a CPU it may differ from ``precision``; the difference is reported.

    A CPU computes in bfloat16 instead of float16, and in float32 if it has no instructions for bfloat16. Both
    arguments are options of the trainer. The run's configuration keeps the given precision, so that the configuration
    has the same meaning on another machine.
    """
    if not runs_on_cpu(accelerator):
        return precision
    float16 = precision in FLOAT16
    chosen = cpu_precision("bf16-mixed" if float16 else precision)
    if chosen != precision and rank() == 0:
        reasons = ["torch does not compute float16 on a CPU"] if float16 else []
        reasons += (
            ["this CPU converts bfloat16 to float32 and back, which is slow"] if chosen == "32-true" else []
        )
        sys.stderr.write(f"segdet: {', and '.join(reasons)}; precision {precision} becomes {chosen}\n")
    return chosen


def runs_on_cpu(accelerator: Any) -> bool:
    """Return whether the trainer's option ``accelerator`` selects the CPU on this machine."""
    if accelerator in ("auto", None):
        return not (
            accelerators.CUDAAccelerator.is_available()
            or accelerators.MPSAccelerator.is_available()
            or accelerators.XLAAccelerator.is_available()
        )
    return accelerator == "cpu" or isinstance(accelerator, accelerators.CPUAccelerator)
