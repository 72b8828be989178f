"""Estimate the throughput of families on several GPUs from their step time, gradient size and bandwidth.

::

    python experiments/scaling.py STEPS.json                  # step times of a GPU, from step_table.py --device cuda
    python experiments/scaling.py STEPS.json --speedup 480    # step times of a device that is 480 times as fast

With ``--batch_size``, the step times are scaled to another number of images, in proportion.

Model: all GPUs average their gradients by a ring all-reduce. For N GPUs and G bytes of gradients, each GPU sends and
receives 2 (N - 1) / N G bytes in 2 (N - 1) rounds. DDP overlaps the all-reduce with the backward pass, except that of
the last bucket. The backward pass takes the share `BACKWARD` of the step time of one GPU.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segdet.util.errors import UserError
from segdet.util.tables import markdown_table

BACKWARD = 2 / 3
"""The share of the backward pass in a step: it has twice the operations of the forward pass."""

BUCKET = 25e6
"""The bytes of one bucket of gradients, DDP's default."""

COUNTS = (1, 8, 64)
"""The numbers of GPUs of the table."""


@dataclass(frozen=True)
class Network:
    """The connections of a cluster.

    Attributes:
        per_node: The number of GPUs of a node.
        within: The bandwidth between two GPUs of a node, in bytes per second.
        between: The bandwidth between two nodes, in bytes per second.
        latency_within: The seconds of a round of the ring within a node.
        latency_between: The seconds of a round between nodes.
    """

    per_node: int = 8
    within: float = 100e9
    between: float = 12.5e9
    latency_within: float = 5e-6
    latency_between: float = 15e-6

    def all_reduce(self, count: int, size: float) -> float:
        """Return the seconds of a ring all-reduce of ``size`` bytes on ``count`` GPUs."""
        if count == 1:
            return 0.0
        several = count > self.per_node
        bandwidth, latency = (
            (self.between, self.latency_between) if several else (self.within, self.latency_within)
        )
        return 2 * (count - 1) * (size / count / bandwidth + latency * math.ceil(size / BUCKET))


@dataclass(frozen=True)
class Family:
    """The measurements of a family.

    Attributes:
        name: The family.
        seconds: The time of a step on one GPU.
        gradients: The bytes of the gradients.
        batch_size: The number of images of a step.
    """

    name: str
    seconds: float
    gradients: float
    batch_size: int

    def step(self, count: int, network: Network) -> float:
        """Return the seconds of a step on ``count`` GPUs."""
        communication = network.all_reduce(count, self.gradients)
        buckets = max(1, math.ceil(self.gradients / BUCKET))
        # The last bucket is complete only at the end of the backward pass.
        exposed = max(communication - BACKWARD * self.seconds, communication / buckets)
        return self.seconds + exposed

    def efficiency(self, count: int, network: Network) -> float:
        """Return the throughput of ``count`` GPUs divided by ``count`` times that of one."""
        return self.seconds / self.step(count, network)

    def most_gpus(self, network: Network, least: float = 0.9, limit: int = 4096) -> int:
        """Return the largest power of two of GPUs, up to ``limit``, with an efficiency of at least ``least``."""
        counts = [2**power for power in range(limit.bit_length())]
        # The efficiency may be too low on a part of a node and sufficient on more GPUs, so all counts are checked.
        return max(count for count in counts if self.efficiency(count, network) >= least)

    def with_batch(self, batch_size: int) -> Family:
        """Return the family with another batch size, if the time of a step is proportional to it."""
        return Family(self.name, self.seconds * batch_size / self.batch_size, self.gradients, batch_size)

    def least_batch(self, count: int, network: Network, least: float = 0.9) -> int:
        """Return the smallest batch per GPU with an efficiency of at least ``least``; see `with_batch`."""
        for batch_size in range(1, 4097):
            if self.with_batch(batch_size).efficiency(count, network) >= least:
                return batch_size
        return 4097


def read_families(path: Path, speedup: float = 1.0) -> list[Family]:
    """Read the measurements of ``step_table.py``.

    Args:
        path: The JSON file.
        speedup: The speed of the GPU divided by that of the measured device.

    Raises:
        UserError: If the file cannot be read, or lacks a measurement.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [
            Family(row["name"], row["ms"] / 1e3 / speedup, row["gradient_mb"] * 1e6, row["batch_size"])
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a file of experiments/step_table.py --json ({error!r})") from None


def table(families: Sequence[Family], network: Network, decoded: float) -> str:
    """Return the table of throughputs.

    Args:
        families: The families.
        network: The connections.
        decoded: The images that a core reads and augments per second.
    """
    heading = ["family", "step (ms)", "gradients (MB)"]
    heading += [f"images/s on {count}" + (" (efficiency)" if count > 1 else "") for count in COUNTS]
    heading += ["cores per GPU", "90% up to (GPUs)", f"batch for 90% on {COUNTS[-1]}"]
    rows = [heading]
    for family in families:
        cells = [family.name, f"{1000 * family.seconds:.1f}", f"{family.gradients / 1e6:.0f}"]
        for count in COUNTS:
            rate = count * family.batch_size / family.step(count, network)
            share = f" ({family.efficiency(count, network):.0%})" if count > 1 else ""
            cells.append(f"{rate:,.0f}{share}")
        cores = math.ceil(family.batch_size / family.seconds / decoded)
        most = family.most_gpus(network)
        cells += [str(cores), f"{most:,}" if most < 4096 else "4,096 or more"]
        cells.append(str(family.least_batch(COUNTS[-1], network)))
        rows.append(cells)
    return markdown_table(rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Network()
    parser.add_argument("steps", type=Path, help="measurements, from experiments/step_table.py --json")
    parser.add_argument(
        "--families", nargs="+", default=[], help="the start of names to include (default: all)"
    )
    parser.add_argument(
        "--speedup", type=float, default=1.0, help="speed of a GPU relative to the measured device (1)"
    )
    parser.add_argument("--batch_size", type=int, help="images per GPU (default: as measured)")
    parser.add_argument("--per_node", type=int, default=default.per_node, help="GPUs of a node (8)")
    parser.add_argument(
        "--within", type=float, default=default.within / 1e9, help="GB/s between GPUs of a node (100)"
    )
    parser.add_argument(
        "--between", type=float, default=default.between / 1e9, help="GB/s between nodes (12.5)"
    )
    parser.add_argument(
        "--decoded", type=float, default=300, help="images that a core prepares per second (300)"
    )
    given = parser.parse_args(argv)
    network = Network(given.per_node, given.within * 1e9, given.between * 1e9)
    try:
        families = read_families(given.steps, given.speedup)
    except UserError as error:
        parser.error(str(error))
    chosen = [each for each in families if not given.families or each.name.startswith(tuple(given.families))]
    if given.batch_size is not None:
        chosen = [each.with_batch(given.batch_size) for each in chosen]
    print(table(chosen, network, given.decoded))


if __name__ == "__main__":
    main()
