"""The provenance of a run: code, packages, hardware and command, for ``provenance.json``."""

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from segdet.util.cores import usable_cores

PACKAGES = (
    "segdet",
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "timm",
    "segmentation-models-pytorch",
    "albumentations",
    "albucore",
    "numpy",
    "scipy",
    "numba",
    "opencv-python-headless",
    "pillow",
    "simplejpeg",
    "pycocotools",
    "faster-coco-eval",
    "wandb",
)


def now() -> str:
    """Return the current time in ISO 8601 with the UTC offset, to the second."""
    return datetime.now(UTC).astimezone().isoformat(timespec="seconds")


def provenance(command: str) -> dict[str, Any]:
    """Return the provenance of a run, collected before it starts.

    Args:
        command: The command line.

    Returns:
        ``command``, ``folder`` (the working directory), ``started``, ``git``, ``python``, ``packages`` and
        ``hardware``, in plain types.
    """
    return {
        "command": command,
        "folder": str(Path.cwd()),
        "started": now(),
        "git": git_state(Path.cwd()),
        "python": platform.python_version(),
        "packages": package_versions(),
        "hardware": hardware(),
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return the commit and branch of ``folder``, and whether tracked files are modified; None outside a repository."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
        branch = _git(folder, "rev-parse", "--abbrev-ref", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "branch": branch, "dirty": bool(changes)}


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()


def package_versions() -> dict[str, str]:
    """Return the installed versions of the packages that can change a result."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def hardware() -> dict[str, Any]:
    """Return the hardware of this process: ``cpu``, usable ``cores``, ``threads``, ``gpus`` and others."""
    import torch

    return {
        "cpu": _cpu_model(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "ram_gb": _ram_gb(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "host": platform.node(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _ram_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
