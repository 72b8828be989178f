"""Job scripts on a real SLURM: several nodes, requeues, preemption, and a node that is lost."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster, is_alive
from stopped_runs import differences

from segdet.cli.main import main

from .conftest import OPTIONS, Script, wait_for_rows

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

TWO = ["--trainer.strategy=ddp"]


@pytest.fixture(scope="module")
def undisturbed(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run with one process."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert main(["fit", *OPTIONS, f"--data.root={data_root}", f"--run_dir={folder}", "--test=true"]) == 0
    return folder


def test_a_run_on_two_nodes_is_saved_on_a_signal_and_requeued(
    slurm: SlurmCluster, script: Script, data_root: Path, tmp_path: Path
) -> None:
    run, expected = tmp_path / "run", tmp_path / "expected"
    words = [*OPTIONS, *TWO, f"--data.root={data_root}"]
    path = script("several_nodes.sbatch", "--nodes=2 --ntasks-per-node=1", [*words, f"--run_dir={run}"])
    job = slurm.submit(path, f"--output={tmp_path}/job.log", folder=tmp_path)
    wait_for_rows(slurm, job, run)
    slurm.output("scancel", "--signal=USR1", job)  # as at the time limit
    slurm.start_now(job)
    slurm.wait(job)
    command = ["fit", *words, "--trainer.devices=2", f"--run_dir={expected}", "--test=true"]
    subprocess.run(["segdet", *command], check=True, env=slurm.environment, cwd=tmp_path)
    assert differences(run, expected) == []
    assert slurm.field(job, "Restarts") == "1"
    assert not list(run.rglob("hpc_ckpt*"))
    messages = (tmp_path / "job.log").read_text()
    assert "Traceback" not in messages and messages.count(f"job {job} is requeued") == 1
    assert messages.count("interrupted; resume with") == 1


def test_a_preempted_run_is_requeued(
    slurm: SlurmCluster, script: Script, data_root: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = [*OPTIONS, f"--data.root={data_root}", f"--run_dir={run}"]
    job = slurm.submit(
        script("one_node.sbatch", "--ntasks-per-node=1", words),
        f"--output={tmp_path}/job.log",
        folder=tmp_path,
    )
    wait_for_rows(slurm, job, run)
    urgent = ("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")
    slurm.output("sbatch", *urgent)
    slurm.start_now(job)
    slurm.wait(job)
    assert differences(run, undisturbed) == []
    assert slurm.field(job, "Restarts") == "1"
    assert "Traceback" not in (tmp_path / "job.log").read_text()


def test_a_process_on_a_lost_node_cannot_write_after_its_job_was_requeued(
    slurm: SlurmCluster, script: Script, data_root: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = [*OPTIONS, f"--data.root={data_root}", f"--run_dir={run}"]
    path = script("one_node.sbatch", "--ntasks-per-node=1", words)
    # With %t in its name, the file is written by the node and not by srun, which ends when the node is lost.
    output = f"--output={tmp_path}/part-${{SLURM_RESTART_COUNT:-0}}-%t.log"
    path.write_text(path.read_text().replace("segdet fit", f"{output} segdet fit"))
    job = slurm.submit(path, f"--output={tmp_path}/job.log", folder=tmp_path)
    wait_for_rows(slurm, job, run)
    node = slurm.field(job, "NodeList")
    process = slurm.process(job, "bin/segdet fit")
    # Pause the old process, so that it is in the middle of its training when the requeued job has ended.
    os.kill(process, signal.SIGSTOP)
    slurm.kill_node(node)
    slurm.wait_for(lambda: slurm.state(job) == "PENDING", 120, "requeue")
    slurm.start_now(job)
    slurm.wait(job)
    assert differences(run, undisturbed) == []
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert is_alive(process)
    os.kill(process, signal.SIGCONT)
    slurm.wait_for(lambda: not is_alive(process), 60, "end of the old process")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    messages = (tmp_path / "part-0-0.log").read_text()
    assert "has taken over this run" in messages and "Traceback" not in messages
