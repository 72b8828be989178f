"""The GPUs that this process may use, found without importing torch."""

import os
import subprocess

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""The environment variable that limits a process to some GPUs."""


def visible_gpus() -> list[str]:
    """Return the GPUs that `VISIBLE` names, or all GPUs of this machine, as numbers or identifiers for `VISIBLE`."""
    named = os.environ.get(VISIBLE)
    if named is not None:
        devices = [each.strip() for each in named.split(",")]
        # CUDA ignores everything after the first invalid entry; -1 hides all GPUs.
        return devices[: next((i for i, each in enumerate(devices) if each in ("", "-1")), len(devices))]
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):  # no driver
        return []
    return done.stdout.split() if done.returncode == 0 else []
