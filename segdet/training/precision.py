"""Precisions that are slow on some CPUs or unsuitable for boxes.

A CPU without bfloat16 instructions converts to float32 and back around every operation. This is several times slower
than float32, and no more accurate.
"""

from pathlib import Path

BFLOAT16 = ("bf16-mixed", "bf16")
"""Lightning's names of mixed bfloat16 precision."""

FLOAT16 = ("16-mixed", "16", 16)
"""Lightning's names of mixed float16 precision."""

REFUSED = ("bf16-true", "16-true", "64-true", "64", 64, "transformer-engine", "transformer-engine-float16")
"""Precisions that also convert boxes: in bfloat16 a coordinate of 3,001 pixels is rounded to 3,008."""

_CPUINFO = Path("/proc/cpuinfo")
_NATIVE = {"avx512_bf16", "amx_bf16", "bf16"}  # x86 vectors, Intel's matrices, ARM


def has_bfloat16(cpuinfo: Path = _CPUINFO) -> bool | None:
    """Return whether this machine's CPU has bfloat16 instructions; None if that is unknown.

    Args:
        cpuinfo: Linux's file that describes the CPU.
    """
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() in ("flags", "features"):  # x86 and ARM; the same for all cores
            return bool(_NATIVE & set(value.split()))
    return None


def cpu_precision(precision: str | int | None, cpuinfo: Path = _CPUINFO) -> str | int | None:
    """Return ``32-true`` in place of bfloat16 if the CPU has no instructions for it, else ``precision``.

    Args:
        precision: One of Lightning's names; None for its default.
        cpuinfo: See `has_bfloat16`.
    """
    if precision in BFLOAT16 and has_bfloat16(cpuinfo) is False:
        return "32-true"
    return precision
