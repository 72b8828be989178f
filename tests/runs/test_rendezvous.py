"""The address, the port and the network of the processes of a run."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from segdet.runs.rendezvous import choose_rendezvous

Choose = Callable[..., list[str | None]]

JOB = {
    "SLURM_JOB_ID": "120001", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_NNODES": "2",
    "SLURM_NODELIST": "gpu[07-08]", "SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_STEP_NUM_NODES": "2",
}  # fmt: skip


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> Choose:
    """A function that returns the variables that are chosen in a given environment."""
    names = ("MASTER_ADDR", "MASTER_PORT", "GLOO_SOCKET_IFNAME")

    def choose(**environment: str) -> list[str | None]:
        for name in [*names, *JOB, "SLURM_RESTART_COUNT", "TORCHELASTIC_RUN_ID"]:
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        choose_rendezvous()
        return [os.environ.get(name) for name in names]

    return choose


def resolve(monkeypatch: pytest.MonkeyPatch, **addresses: str) -> None:
    """Let only these names and numeric addresses resolve."""

    def gethostbyname(name: str) -> str:
        if name[0].isdigit():
            return name
        if name not in addresses:
            raise socket.gaierror
        return addresses[name]

    monkeypatch.setattr(socket, "gethostname", lambda: "me")
    monkeypatch.setattr(socket, "gethostbyname", gethostbyname)


def test_a_single_process_needs_no_rendezvous(chosen: Choose) -> None:
    assert chosen() == chosen(**JOB | {"SLURM_NTASKS": "1"}) == [None, None, None]


def test_processes_on_one_node_meet_at_the_loopback_address(chosen: Choose) -> None:
    address, port, interface = chosen(**JOB | {"SLURM_STEP_NUM_NODES": "1"})
    assert (address, interface) == ("127.0.0.1", None) and 15000 <= int(port) < 30000


def test_the_name_of_the_first_node_is_replaced_only_if_it_does_not_resolve(
    chosen: Choose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        "#!/bin/sh\n[ $4 = gpu07 ] && echo NodeName=gpu07 NodeAddr=10.1.2.3 NodeHostName=gpu07\n"
    )
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    resolve(monkeypatch, gpu07="10.9.9.9", me="10.9.9.8")
    assert chosen(**JOB)[0] == "gpu07"
    resolve(monkeypatch, me="10.9.9.8")
    assert chosen(**JOB)[0] == "10.1.2.3"
    assert chosen(**JOB, MASTER_ADDR="head", MASTER_PORT="7")[:2] == ["head", "7"]


def test_steps_and_restarts_of_a_job_use_different_ports(chosen: Choose) -> None:
    job = JOB | {"SLURM_STEP_NUM_NODES": "1"}
    ports = [
        chosen(**job)[1],
        chosen(**job | {"SLURM_STEP_ID": "1"})[1],
        chosen(**job, SLURM_RESTART_COUNT="1")[1],
    ]
    assert len(set(ports)) == 3 and chosen(**job)[1] == ports[0]


def test_gloo_uses_the_network_of_the_address_if_the_host_name_is_local(
    chosen: Choose,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = _own_address()
    resolve(monkeypatch, me="127.0.1.1")
    interface = chosen(MASTER_ADDR=own)[2]
    assert interface in [name for _, name in socket.if_nameindex()] and interface != "lo"
    assert chosen(MASTER_ADDR=own, GLOO_SOCKET_IFNAME="ib0")[2] == "ib0"
    assert chosen(MASTER_ADDR="127.0.0.1")[2] is None
    resolve(monkeypatch, me=own)
    assert chosen(MASTER_ADDR=own)[2] is None


def _own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address for documentation; nothing is sent
        except OSError:
            pytest.skip("this machine has no network interface with a route")
        return str(probe.getsockname()[0])
