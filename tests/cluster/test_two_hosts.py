"""torchrun on two hosts: killed processes are started again, and the run has the result of an undisturbed one."""

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from stopped_runs import Training, differences, rows_of
from tiny_runs import MODELS
from two_hosts import Host, two_hosts  # noqa: F401  fixture

from segdet.runs.ownership import owner_of

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "cluster" / "torchrun.sh"

OPTIONS = [
    *MODELS["segmentation"],
    "--data=ShapesDataModule", "--data.num_train=32", "--data.num_val=5", "--data.num_test=5",
    "--data.image_size=[64,64]", "--data.batch_size=2", "--data.num_workers=0", "--panels.images=0",
    "--trainer.accelerator=cpu", "--trainer.max_epochs=4", "--trainer.enable_progress_bar=false",
    "--checkpoint_every_n_steps=1",
]  # fmt: skip

LIMIT = 240.0
"""The maximum number of seconds of a step of the test."""


def edited(host: Host, first: Host, run: list[str], folder: Path) -> Path:
    """Write the shipped script with other values in its three lines."""
    text = SCRIPT.read_text(encoding="utf-8")
    lines = {
        "machines": f"machines=2 first={first.address}:29500",
        "gpus": f"gpus=1 network={host.interface}",
        "run": f"run=({' '.join(run)})",
    }
    for name, line in lines.items():
        text, count = re.subn(rf"(?m)^{name}=.*$", line, text)
        assert count == 1
    path = folder / f"{host.namespace}.sh"
    path.write_text(text, encoding="utf-8")
    return path


def process_of(rank: int, run: Path) -> int | None:
    """Return the process of a rank of the run, or None while it does not run."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            variables = (process / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        of_run = b"-m\0segdet\0fit\0" in command and f"--run_dir={run}\0".encode() in command
        if of_run and f"RANK={rank}".encode() in variables:
            return int(process.name)
    return None


def test_killed_processes_on_two_hosts(
    two_hosts: tuple[Host, Host],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = f"--data.root={tmp_path / 'shapes'}"
    undisturbed = Training(
        ["fit", *OPTIONS, data, f"--run_dir={tmp_path / 'undisturbed'}", "--trainer.devices=2", "--test=true",
         "--trainer.strategy=ddp"],
        tmp_path / "undisturbed.log",
    )  # fmt: skip
    assert undisturbed.end()[0] == 0, undisturbed.messages

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(SCRIPT.parents[2]))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    run, log = tmp_path / "run", tmp_path / "run.log"
    words = [f"'{word}'" for word in [*OPTIONS, data, f"--run_dir={run}"]]
    agents = [
        host.start(["bash", str(edited(host, two_hosts[0], words, tmp_path))], log) for host in two_hosts
    ]

    def wait_for(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + LIMIT
        while not condition():
            assert time.monotonic() < end, log.read_text()
            assert all(agent.poll() is None for agent in agents), log.read_text()
            time.sleep(0.05)

    try:
        for rank, rows in ((1, 1), (0, 4)):
            wait_for(lambda: len(rows_of(run)) >= rows)  # noqa: B023
            killed = process_of(rank, run)
            assert killed is not None
            os.kill(killed, signal.SIGKILL)
        assert [agent.wait(LIMIT) for agent in agents] == [0, 0], log.read_text()
    finally:
        for agent in agents:
            if agent.poll() is None:
                os.killpg(agent.pid, signal.SIGKILL)
                agent.wait()
        for rank in (0, 1):
            left = process_of(rank, run)
            if left is not None:
                os.kill(left, signal.SIGKILL)
    messages = log.read_text()
    assert "Traceback" not in messages
    assert not differences(run, tmp_path / "undisturbed"), messages
    assert owner_of(run) is None
