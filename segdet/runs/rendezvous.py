"""The address and the port at which the processes of a run on several machines meet, and the network that they use.

torch and Lightning take them from environment variables. `choose_rendezvous` sets the variables that are needed and
not set. Lightning's default for SLURM, the name of the first node of the job, does not suffice: the name may not
resolve, and two steps of a job would use the same port.
"""

import contextlib
import ipaddress
import os
import re
import socket
import struct
import subprocess
import zlib

from lightning.fabric.plugins.environments import SLURMEnvironment

FIRST_PORT = 15000
PORTS = 15000
"""The number of ports from `FIRST_PORT` on. Linux assigns ports above them to outgoing connections."""


def choose_rendezvous() -> None:
    """Set ``MASTER_ADDR``, ``MASTER_PORT`` and ``GLOO_SOCKET_IFNAME`` where they are needed and not set."""
    if "TORCHELASTIC_RUN_ID" not in os.environ and int(os.environ.get("SLURM_NTASKS") or 1) > 1:
        os.environ.setdefault("MASTER_ADDR", _slurm_address())
        os.environ.setdefault("MASTER_PORT", str(_slurm_port()))
    address = os.environ.get("MASTER_ADDR")
    if address is not None and "GLOO_SOCKET_IFNAME" not in os.environ:
        interface = _interface_to(address)
        if interface is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = interface


def _slurm_address() -> str:
    """Return the address of the first node of the job step."""
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST") or ""
    if int(os.environ.get("SLURM_STEP_NUM_NODES") or os.environ.get("SLURM_NNODES") or 1) == 1:
        return "127.0.0.1"
    first = SLURMEnvironment.resolve_root_node_address(nodes)
    if _resolve(first) is not None:
        return first
    with contextlib.suppress(OSError):
        command = ["scontrol", "--oneliner", "show", "node", first]
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        if address := re.search(r"\bNodeAddr=(\S+)", found):
            return address[1]
    return first


def _slurm_port() -> int:
    """Return a port that other steps, other jobs, and an earlier part of the same job are unlikely to use."""
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    return FIRST_PORT + zlib.crc32("-".join(os.environ.get(name, "0") for name in names).encode()) % PORTS


def _interface_to(address: str) -> str | None:
    """Return the network interface towards ``address``, or None if gloo finds it itself.

    gloo uses the address to which the host's own name resolves, which is often 127.0.0.1.
    """
    own, other = _resolve(socket.gethostname()), _resolve(address)
    if other is None or ipaddress.ip_address(other).is_loopback:
        return None
    if own is not None and not ipaddress.ip_address(own).is_loopback:
        return None
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((other, 9))  # sends nothing
        local = probe.getsockname()[0]
        return next((name for _, name in socket.if_nameindex() if _address_of(name, probe) == local), None)
    return None


def _address_of(interface: str, probe: socket.socket) -> str | None:
    try:
        import fcntl

        get_address = 0x8915  # SIOCGIFADDR on Linux
        return socket.inet_ntoa(
            fcntl.ioctl(probe, get_address, struct.pack("256s", interface.encode()))[20:24]
        )
    except (ImportError, OSError):  # not Linux, or an interface without an IPv4 address
        return None


def _resolve(name: str) -> str | None:
    try:
        return socket.gethostbyname(name)
    except OSError:
        return None
