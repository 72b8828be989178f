"""The processes of torchrun and SLURM are compared with the trainer's devices."""

import os
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import MODELS, TINY

from segdet.cli.main import main
from segdet.runs.launched_processes import launched_devices, set_tasks_per_node, starts_own_processes
from segdet.util.errors import UserError

NAMES = ("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_NNODES", "SLURM_JOB_NAME", "TORCHELASTIC_RUN_ID")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that the variables that a test sets are removed again
        monkeypatch.delenv(name)


def torchrun(tasks: int, local: int) -> dict[str, str]:
    return {
        "TORCHELASTIC_RUN_ID": "none", "RANK": "0", "LOCAL_RANK": "0",
        "WORLD_SIZE": str(tasks), "LOCAL_WORLD_SIZE": str(local),
    }  # fmt: skip


def srun(tasks: int, nodes: int, step: int = 0, per_node: str | None = None) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": str(tasks), "SLURM_PROCID": "0",
        "SLURM_STEP_ID": str(step), "SLURM_STEP_NUM_TASKS": str(tasks), "SLURM_STEP_NUM_NODES": str(nodes),
        "SLURM_STEP_TASKS_PER_NODE": per_node or f"{tasks // nodes}(x{nodes})", "SLURM_NODELIST": "node[7-8]",
    }  # fmt: skip


def set_variables(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


BATCH = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2", "SLURM_NNODES": "1", "SLURM_JOB_NAME": "train"}


@pytest.mark.parametrize(
    ("variables", "options", "expected"),
    [
        ({}, {"devices": "auto"}, {}),
        (torchrun(2, 2), {"devices": "auto", "num_nodes": 1}, {"devices": 2, "num_nodes": 1}),
        (torchrun(2, 1), {"devices": -1, "num_nodes": 1}, {"devices": 1, "num_nodes": 2}),
        (torchrun(4, 2), {"devices": 2, "num_nodes": 2}, {"num_nodes": 2}),
        (torchrun(1, 1), {"devices": 1, "num_nodes": 1}, {}),
        (srun(2, 1), {"devices": "auto"}, {"devices": 2, "num_nodes": 1}),
        (srun(4, 2), {"devices": [0, 1]}, {"num_nodes": 2}),
        (srun(1, 1), {"devices": "auto"}, {"devices": 1}),
        (srun(1, 1), {"devices": 2}, {}),
        (BATCH | {"SLURM_JOB_NAME": "bash"}, {"devices": 2}, {}),
    ],
)
def test_devices_follow_from_the_launcher(
    variables: dict[str, str],
    options: dict[str, Any],
    expected: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_variables(monkeypatch, variables)
    assert launched_devices(options) == expected


@pytest.mark.parametrize(
    ("variables", "options", "message"),
    [
        (torchrun(2, 2), {"devices": 1}, "--trainer.devices 1: torchrun has started 2 processes; give torchrun "
         "--nproc-per-node 1, or --trainer.devices 2"),
        (torchrun(1, 1), {"devices": 2}, "--trainer.devices 2: torchrun has started 1 process; give torchrun "
         "--nproc-per-node 2, or --trainer.devices 1"),
        (srun(2, 1), {"devices": "0,"}, "--trainer.devices 1: SLURM has started 2 processes; give SLURM "
         "--ntasks-per-node 1, or --trainer.devices 2"),
        (srun(2, 2), {"devices": 2}, "--trainer.devices 2: SLURM has started 1 process on each of 2 nodes; give SLURM "
         "--ntasks-per-node 2, or --trainer.devices 1"),
        (srun(2, 1), {"devices": 2, "num_nodes": 2}, "--trainer.num_nodes 2: SLURM has started processes on 1 node; "
         "give SLURM --nodes 2, or --trainer.num_nodes 1"),
        (srun(1, 1), {"devices": 1, "num_nodes": 2}, "--trainer.num_nodes 2: SLURM has started processes on 1 node; "
         "give SLURM --nodes 2, or --trainer.num_nodes 1"),
        (srun(3, 2, per_node="2,1"), {"devices": "auto"}, "srun: the nodes have different numbers of processes; start "
         "the same number on each"),
        (BATCH, {"devices": "auto"}, "SLURM: the job has 2 tasks, but the command was started once; start it with "
         "srun"),
    ],
)  # fmt: skip
def test_another_number_of_processes_is_refused(
    variables: dict[str, str], options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_variables(monkeypatch, variables)
    with pytest.raises(UserError) as caught:
        launched_devices(options)
    assert str(caught.value) == message


def test_the_refusal_comes_before_anything_is_written(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_variables(monkeypatch, torchrun(2, 2))
    monkeypatch.setenv("SEGDET_RUN_DIR", "")
    monkeypatch.delenv("SEGDET_RUN_DIR")
    run = tmp_path / "run"
    words = [f"--data.root={shapes}", f"--run_dir={run}", "--trainer.devices=1"]
    assert main(["fit", *MODELS["segmentation"], *TINY, *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("segdet: error: --trainer.devices 1: torchrun has started 2 processes; ")
    assert not run.exists()


def test_lightning_starts_the_processes_of_a_single_task(monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(monkeypatch, srun(1, 1))
    assert starts_own_processes(2)
    assert not starts_own_processes(1)
    set_variables(monkeypatch, srun(2, 1))
    assert not starts_own_processes(2)


def test_lightning_gets_the_number_of_tasks_per_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """After ``srun --ntasks 4 --nodes 2``, SLURM sets no such variable."""
    set_variables(monkeypatch, srun(4, 2))
    set_tasks_per_node()
    assert os.environ["SLURM_NTASKS_PER_NODE"] == "2"
