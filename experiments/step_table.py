"""Compare the time of a training step of ten families with torchvision's own models.

::

    python experiments/step_table.py --device cuda                              # under ten minutes on one GPU
    python experiments/step_table.py --size 128 --batch_size 2 --steps 3        # on a CPU
    python experiments/step_table.py --device cuda --json steps.json            # input of experiments/scaling.py

Both sides train networks of the same architecture on the same random images and boxes, with SGD. They alternate after
each step. A step includes the normalization of uint8 images, but not the loading of data. On a GPU both sides use
bfloat16 autocast and channels-last memory. On a CPU the time is the processor time of all threads.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from segdet import detection, segmentation
from segdet.data.sample import Target
from segdet.util.tables import markdown_table

CLASSES = [f"class {number}" for number in range(20)]
OBJECTS = 5
"""The number of objects in each image."""

SKIPPED = 1
"""The number of steps to ignore at the beginning, because they allocate memory and choose algorithms."""

Step = Callable[[], Tensor]


@dataclass(frozen=True)
class Pair:
    """A family and torchvision's model of the same architecture.

    Attributes:
        ours: The family.
        options: The arguments of the family.
        theirs: The name of torchvision's model.
        size: The height and width of the images that the network needs; None for any size.
    """

    ours: type
    options: dict[str, Any]
    theirs: str
    size: int | None = None


PAIRS = {
    "TorchvisionFCN (ResNet-50)": Pair(segmentation.TorchvisionFCN, {"backbone": "resnet50"}, "fcn_resnet50"),
    "DeepLabV3 (ResNet-50)": Pair(segmentation.DeepLabV3, {"backbone": "resnet50"}, "deeplabv3_resnet50"),
    "DeepLabV3 (MobileNetV3)": Pair(
        segmentation.DeepLabV3, {"backbone": "mobilenet_v3_large"}, "deeplabv3_mobilenet_v3_large"
    ),
    "LRASPP (MobileNetV3)": Pair(segmentation.LRASPP, {}, "lraspp_mobilenet_v3_large"),
    "SSD300 (VGG-16)": Pair(detection.SSD300, {}, "ssd300_vgg16", 300),
    "SSDLite (MobileNetV3)": Pair(detection.SSDLite, {}, "ssdlite320_mobilenet_v3_large", 320),
    "TorchvisionRetinaNet (ResNet-50)": Pair(detection.TorchvisionRetinaNet, {}, "retinanet_resnet50_fpn"),
    "TorchvisionFCOS (ResNet-50)": Pair(detection.TorchvisionFCOS, {}, "fcos_resnet50_fpn"),
    "TorchvisionFasterRCNN (ResNet-50)": Pair(detection.TorchvisionFasterRCNN, {}, "fasterrcnn_resnet50_fpn"),
    "TorchvisionMaskRCNN (ResNet-50)": Pair(detection.TorchvisionMaskRCNN, {}, "maskrcnn_resnet50_fpn"),
}


@dataclass
class Measured:
    """The measurements of a family.

    Attributes:
        name: The family.
        ms: The median time of a step of segdet, in milliseconds.
        torchvision_ms: The median time of a step of torchvision's model.
        gradient_mb: The size of the gradients in float32, in megabytes (10**6 bytes).
        gflops: The floating-point operations of a step in 10**9: three times those of the forward pass.
        batch_size: The number of images of a step.
        device: The device.
    """

    name: str
    ms: float
    torchvision_ms: float
    gradient_mb: float
    gflops: float
    batch_size: int
    device: str


def measure(name: str, device: torch.device, size: int, batch_size: int, steps: int) -> Measured:
    """Measure the steps of a pair of `PAIRS`."""
    pair = PAIRS[name]
    side = pair.size or size
    images = torch.randint(0, 256, (batch_size, 3, side, side), dtype=torch.uint8, device=device)
    targets = _targets(batch_size, side, device)
    torch.manual_seed(0)
    model = pair.ours(CLASSES, **pair.options)
    model.configure_model()
    model = model.to(device).train()
    peer = _peer(pair, side).to(device).train()
    if device.type == "cuda":
        images = images.contiguous(memory_format=torch.channels_last)
        peer = peer.to(memory_format=torch.channels_last)

    def ours() -> Tensor:
        losses = model.losses(model.normalize(images), targets)
        return torch.stack(list(losses.values())).sum()

    def theirs() -> Tensor:
        return _peer_loss(peer, images, targets)

    runs = [_runner(step, network, device) for step, network in ((ours, model), (theirs, peer))]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        ours()
    times: list[list[float]] = [[], []]
    for _ in range(steps + SKIPPED):
        for run, own in zip(runs, times, strict=True):
            own.append(run())
    ms = [1000 * statistics.median(own[SKIPPED:]) for own in times]
    gradients = sum(4 * each.numel() for each in model.parameters() if each.requires_grad)
    shown = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})"
    flops = 3 * counter.get_total_flops() / 1e9
    return Measured(name, ms[0], ms[1], gradients / 1e6, flops, batch_size, shown)


def _runner(step: Step, network: nn.Module, device: torch.device) -> Callable[[], float]:
    """Return a function that trains one step and returns its seconds."""
    # Other processes on the machine affect the processor time of a CPU less than the wall-clock time.
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    optimizer = torch.optim.SGD([each for each in network.parameters() if each.requires_grad], lr=1e-4)

    def run() -> float:
        _wait(device)
        start = clock()
        low = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()
        with low:
            loss = step()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        _wait(device)
        return clock() - start

    return run


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _targets(batch_size: int, side: int, device: torch.device) -> list[Target]:
    generator = torch.Generator().manual_seed(0)
    targets = []
    for _ in range(batch_size):
        corners = torch.rand(OBJECTS, 2, generator=generator) * side / 2
        sides = side / 8 + torch.rand(OBJECTS, 2, generator=generator) * side / 3
        boxes = torch.cat([corners, corners + sides], 1)
        masks = torch.zeros(OBJECTS, side, side, dtype=torch.uint8)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.round().int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = 1
        labels = torch.randint(1, len(CLASSES), (OBJECTS,), generator=generator)
        mask = torch.randint(0, len(CLASSES), (side, side), generator=generator)
        target = {"boxes": boxes, "labels": labels, "masks": masks, "mask": mask}
        targets.append(Target(**{key: value.to(device) for key, value in target.items()}))  # type: ignore[typeddict-item]
    return targets


def _peer(pair: Pair, side: int) -> nn.Module:
    options: dict[str, Any] = {"weights": None, "weights_backbone": None}
    if issubclass(pair.ours, segmentation.Segmenter):
        options["num_classes"] = len(CLASSES)
        if not pair.theirs.startswith("lraspp"):
            options["aux_loss"] = True
        return torchvision.models.get_model(pair.theirs, **options)
    options["num_classes"] = len(CLASSES) + 1
    if pair.size is None:
        options |= {"min_size": side, "max_size": side}
    return torchvision.models.get_model(pair.theirs, **options)


def _peer_loss(peer: nn.Module, images: Tensor, targets: list[Target]) -> Tensor:
    """Return the loss as torchvision's training scripts compute it."""
    scaled = images.float() / 255
    if "out" not in (output := {} if hasattr(peer, "transform") else peer(_normalized(scaled))):
        described = [{key: each[key] for key in ("boxes", "labels", "masks")} for each in targets]  # type: ignore[literal-required]
        losses: dict[str, Tensor] = peer(list(scaled), described)
        return torch.stack(list(losses.values())).sum()
    masks = torch.stack([target["mask"] for target in targets])
    loss = F.cross_entropy(output["out"], masks, ignore_index=255)
    return loss + 0.5 * F.cross_entropy(output["aux"], masks, ignore_index=255) if "aux" in output else loss


def _normalized(images: Tensor) -> Tensor:
    mean = images.new_tensor([0.485, 0.456, 0.406])[:, None, None]
    return (images - mean) / images.new_tensor([0.229, 0.224, 0.225])[:, None, None]


def table(rows: Sequence[Measured]) -> str:
    """Return the table of step times."""
    heading = ["family", "segdet ms", "torchvision ms", "ratio", "GFLOP per step", "gradients (MB)"]
    cells = [
        [
            each.name, f"{each.ms:.1f}", f"{each.torchvision_ms:.1f}", f"{each.ms / each.torchvision_ms:.2f}",
            f"{each.gflops:.1f}", f"{each.gradient_mb:.0f}",
        ]
        for each in rows
    ]  # fmt: skip
    return markdown_table([heading, *cells])


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="FAMILY", help="the start of names of the table (default: all)"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--size", type=int, default=512, help="height and width of the images (512)")
    parser.add_argument("--batch_size", type=int, default=8, help="images of a step (8)")
    parser.add_argument("--steps", type=int, default=20, help="number of timed steps (20)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the measurements to this file")
    given = parser.parse_args(argv)
    names = [name for name in PAIRS if not given.names or name.startswith(tuple(given.names))]
    rows = []
    for name in names:
        rows.append(measure(name, torch.device(given.device), given.size, given.batch_size, given.steps))
        print(f"{name}: {rows[-1].ms:.1f} ms, torchvision {rows[-1].torchvision_ms:.1f} ms", flush=True)
    print()
    print(table(rows))
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
