"""Two hosts as network namespaces of this machine, connected by a virtual cable."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Host:
    """A network namespace.

    Attributes:
        namespace: Its name.
        interface: Its end of the cable.
        address: Its address.
    """

    namespace: str
    interface: str
    address: str

    def start(
        self, words: list[str], log: Path, environment: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a command on the host, in a process group of its own."""
        with log.open("a") as stream:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *words],
                env=os.environ | (environment or {}), stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
                start_new_session=True,
            )  # fmt: skip


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(done.stderr.strip())


@pytest.fixture
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts; skips the test where they cannot be created."""
    if shutil.which("ip") is None:
        pytest.skip("ip is missing (Debian's package iproute2)")
    number = os.getpid() % 200
    hosts = tuple(
        Host(f"segdet{number}-{index}", f"cable{number}-{index}", f"10.77.{number}.{index}")
        for index in (1, 2)
    )
    first, second = hosts
    try:
        try:
            for host in hosts:
                _ip("netns", "add", host.namespace)
            _ip("link", "add", first.interface, "netns", first.namespace, "type", "veth",
                "peer", "name", second.interface, "netns", second.namespace)  # fmt: skip
            for host in hosts:
                _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", host.interface)
                for device in ("lo", host.interface):
                    _ip("-n", host.namespace, "link", "set", device, "up")
        except OSError as error:
            pytest.skip(f"network namespaces cannot be created ({error}); run the tests as root")
        yield first, second
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "delete", host.namespace], capture_output=True, check=False)
