"""A SLURM cluster of two nodes in a temporary folder, from the programs that are installed on this machine.

The controller and both nodes run on this machine and listen on free ports. They authenticate with ``auth/none``, so
that no other daemon is needed. Every daemon is a child of the test, which ends exactly the processes that it started.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

NODES = ("n1", "n2")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")

LIMIT = 600.0
"""The maximum number of seconds that a test waits for a job."""

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=10
KillWait=20
InactiveLimit=0
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool_%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd_%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd_%n.log
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[0]} CPUs=2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
PartitionName=normal Nodes=n1,n2 Default=YES State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=urgent Nodes=n1,n2 State=UP PriorityTier=10 PreemptMode=OFF
"""


class SlurmCluster:
    """A running cluster.

    Attributes:
        folder: Its configuration, state and logs.
        environment: Environment variables with which SLURM's commands reach it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("state", "spool_n1", "spool_n2"):
            (folder / name).mkdir()
        port, *ports = _free_ports(3)
        text = CONFIGURATION.format(folder=folder, port=port, ports=ports, host=socket.gethostname())
        self._configuration = folder / "slurm.conf"
        self._configuration.write_text(text)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        self.environment = inherited | {"SLURM_CONF": str(self._configuration)}
        self._daemons: dict[str, subprocess.Popen] = {}

    def start(self) -> None:
        """Start the controller and the nodes that do not run, and wait until all nodes are idle."""
        self._start("slurmctld", "slurmctld", "-D")
        for node in NODES:
            self._start(node, "slurmd", "-D", "-N", node)
        self.wait_for(lambda: self.output("sinfo", "-h", "-o", "%T").split() == ["idle"], 60, "idle nodes")

    def stop(self) -> None:
        """Cancel all jobs, and end the daemons."""
        with contextlib.suppress(subprocess.SubprocessError):
            self.clear()
        for process in self._daemons.values():
            process.terminate()
        for process in self._daemons.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._daemons.clear()
        self._kill_leftovers()

    def process(self, job: str, command: str) -> int:
        """Return the first process of a job with ``command`` in its command line."""
        found = [pid for pid in self._processes(f"SLURM_JOB_ID={job}") if command in _read(pid, "cmdline")]
        (first,) = [
            pid for pid in found if int(_read(pid, "stat").rpartition(")")[2].split()[1]) not in found
        ]
        return first

    def _processes(self, variable: str) -> list[int]:
        """Return the processes of this cluster with an environment variable."""
        marks = {f"SLURM_CONF={self._configuration}", variable}
        pids = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
        return [pid for pid in pids if pid != os.getpid() and marks <= set(_read(pid, "environ").split(" "))]

    def _kill_leftovers(self) -> None:
        """Kill the processes of jobs whose node was killed; they have the cluster's configuration."""
        for pid in self._processes(f"SLURM_CONF={self._configuration}"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def clear(self) -> None:
        """Cancel all jobs and wait for their end."""
        names = self.output("squeue", "-h", "-o", "%A").split()
        if names:
            self.output("scancel", *set(names))
            self.wait_for(lambda: not self.output("squeue", "-h"), 60, "the end of all jobs")

    def kill_node(self, node: str) -> None:
        """Kill the daemon of a node with SIGKILL, as if the node had lost its network; its jobs keep running."""
        self._daemons[node].kill()
        self._daemons.pop(node).wait()

    def output(self, *command: str, folder: Path | None = None) -> str:
        """Return the output of one of SLURM's commands."""
        done = subprocess.run(
            command, env=self.environment, cwd=folder, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def submit(self, script: Path, *options: str, folder: Path | None = None) -> str:
        """Submit a job script with ``sbatch``; return the number of the job."""
        command = ("sbatch", "--parsable", *options, str(script))
        return self.output(*command, folder=folder).strip().split(";")[0]

    def state(self, job: str) -> str:
        """Return the state of a job, such as RUNNING. For an array, the states of its tasks, separated by spaces."""
        found = self.output("scontrol", "-o", "show", "job", job)
        words = [word for word in found.split() if word.startswith("JobState=")]
        return " ".join(sorted({word.partition("=")[2] for word in words}))

    def field(self, job: str, name: str) -> str:
        """Return a field of ``scontrol show job``, such as Restarts."""
        words = self.output("scontrol", "-o", "show", "job", job).split()
        return next(word.partition("=")[2] for word in words if word.startswith(f"{name}="))

    def wait(self, job: str, states: tuple[str, ...] = ("COMPLETED",), limit: float = LIMIT) -> None:
        """Wait until a job is in one of ``states``; a job that ends in another state is an error."""
        ends = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}

        def reached() -> bool:
            state = self.state(job)
            assert state in states or state not in ends, f"job {job}: {state}"
            return state in states

        self.wait_for(reached, limit, f"job {job} in {states}")

    def start_now(self, job: str) -> None:
        """Start a requeued job without the two minutes that SLURM waits."""
        self.wait_for(lambda: self.state(job) == "PENDING", LIMIT, f"the requeue of job {job}")
        self.output("scontrol", "update", f"JobId={job}", "StartTime=now")

    def wait_for(self, condition: Callable[[], bool], limit: float, subject: str) -> None:
        """Wait until ``condition`` holds."""
        end = time.monotonic() + limit
        while not condition():
            assert time.monotonic() < end, f"no {subject} after {limit:g} s\n{self.report()}"
            time.sleep(0.25)

    def report(self) -> str:
        """Return the queue and the last lines of the daemons' logs, for messages."""
        parts = [self.output("squeue"), self.output("sinfo")]
        parts += ["\n".join(log.read_text().splitlines()[-8:]) for log in sorted(self.folder.glob("*.log"))]
        return "\n".join(parts)

    def _start(self, name: str, *command: str) -> None:
        if name not in self._daemons:
            with (self.folder / f"{name}.out").open("ab") as output:
                self._daemons[name] = subprocess.Popen(
                    command, env=self.environment, stdout=output, stderr=output, start_new_session=True
                )


def is_alive(pid: int) -> bool:
    """Return whether a process exists and has not ended."""
    return _read(pid, "stat").rpartition(")")[2].split()[:1] not in ([], ["Z"])


def _read(pid: int, name: str) -> str:
    """Return a file of a process with spaces in place of null bytes, or the empty string."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def missing() -> str | None:
    """Return what this machine lacks for a cluster, or None."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if absent:
        return f"SLURM is not installed ({', '.join(absent)}); apt-get install slurm-wlm slurm-client"
    return "the daemons of SLURM need root" if os.geteuid() != 0 else None


def _path() -> str:
    return f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


@contextlib.contextmanager
def running_cluster() -> Iterator[SlurmCluster]:
    """Yield a running cluster, and stop it at the end."""
    with tempfile.TemporaryDirectory(prefix="segdet-slurm-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        cluster = SlurmCluster(Path(name))
        cluster.environment["PATH"] = _path()
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@pytest.fixture(scope="session")
def _cluster() -> Iterator[SlurmCluster]:
    if reason := missing():
        pytest.skip(reason)
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def slurm(_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """The cluster with idle nodes. SLURM's commands of this process reach it."""
    _cluster.start()
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_CONF", _cluster.environment["SLURM_CONF"])
    monkeypatch.setenv("PATH", _cluster.environment["PATH"])
    yield _cluster
    _cluster.clear()
