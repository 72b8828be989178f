"""Which precision a CPU can afford.

A CPU without instructions for bfloat16 computes in it all the same, by converting to float32 and back around
every operation: several times slower than float32 itself, and no more exact.
"""

from pathlib import Path

BFLOAT16 = ("bf16-mixed", "bf16")
"""Lightning's names of the precision that computes in bfloat16 what loses little by it."""

REFUSED = ("bf16-true", "16-true", "64-true", "64", 64, "transformer-engine", "transformer-engine-float16")
"""Those that change every number: a box of 3,001 pixels would be one of 3,008 in bfloat16, in the annotations, too."""

_CPUINFO = Path("/proc/cpuinfo")
_NATIVE = {"avx512_bf16", "amx_bf16", "bf16"}  # Intel's and AMD's vectors, Intel's matrices, ARM's extension


def has_bfloat16(cpuinfo: Path = _CPUINFO) -> bool | None:
    """Whether this machine's CPU has instructions for bfloat16; None where the system does not tell.

    Args:
        cpuinfo: Linux' description of the CPU.
    """
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() in ("flags", "features"):  # x86's word and ARM's; all cores say the same
            return bool(_NATIVE & set(value.split()))
    return None


def affordable(precision: str | int | None, cpuinfo: Path = _CPUINFO) -> str | int | None:
    """The precision to compute in on the CPU when ``precision`` is asked for.

    Args:
        precision: One of Lightning's names, None for its default.
        cpuinfo: See `has_bfloat16`.

    Returns:
        ``32-true`` in place of bfloat16 where the CPU has it not, else ``precision`` itself.
    """
    if precision in BFLOAT16 and has_bfloat16(cpuinfo) is False:
        return "32-true"
    return precision
