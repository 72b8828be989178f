"""Tiny scenes with proposals, to overfit detectors that classify regions."""

from collections.abc import Callable

import torch
from torch import Tensor

from segdet.data.sample import Target
from segdet.detection.region_detector import RegionDetector


def scenes(jitter: float = 0.12, images: int = 8) -> tuple[Tensor, list[Target]]:
    """Return uint8 images of 64x96 with a red and a green rectangle each, and 26 proposals per image.

    Args:
        jitter: The maximum error of the sides of the six proposals around each object, relative to its sides.
        images: The number of images.
    """
    random = torch.Generator().manual_seed(4)
    pictures = torch.randint(0, 90, (images, 3, 64, 96), generator=random, dtype=torch.uint8)
    targets = []
    for picture in pictures:
        boxes = []
        for channel, x in ((0, 4), (1, 52)):
            w, h = (int(v) for v in torch.randint(14, 38, (2,), generator=random))
            y = int(torch.randint(0, 64 - h, (1,), generator=random))
            picture[channel, y : y + h, x : x + w] = 240
            boxes.append([x, y, x + w, y + h])
        objects = torch.tensor(boxes).float()
        sides = (objects[:, 2:] - objects[:, :2]).repeat(1, 2).repeat(6, 1)
        near = objects.repeat(6, 1) + sides * jitter * torch.empty(12, 4).uniform_(-1, 1, generator=random)
        corner = torch.rand(14, 2, generator=random) * torch.tensor([76.0, 44])
        far = torch.cat([corner, corner + 10 + torch.rand(14, 2, generator=random) * 30], 1)
        limits = torch.tensor([96.0, 64] * 2)
        targets.append(
            Target(
                boxes=objects,
                labels=torch.tensor([1, 2]),
                proposals=torch.minimum(torch.cat([near, far]).clamp(min=0), limits),
                iscrowd=torch.zeros(2, dtype=torch.bool),
                difficult=torch.zeros(2, dtype=torch.bool),
                area=torch.full((2,), 400.0),
            )
        )
    return pictures, targets


def train(model: RegionDetector, pictures: Tensor, targets: list[Target], steps: int, rate: float) -> None:
    """Train all parameters on all images as one batch."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    model.train()
    images = model.normalize(pictures)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(model.losses(images, targets).values()).backward()  # type: ignore[union-attr]
        optimizer.step()
    model.eval()


def map_50(
    model: RegionDetector,
    pictures: Tensor,
    targets: list[Target],
    propose: Callable[[Target], Tensor] = lambda target: target["proposals"],
) -> float:
    """Return the AP at IoU 0.5 on these images."""
    scores = model.build_scores()
    with torch.inference_mode():
        proposals = [propose(target) for target in targets]
        found = model.predict_tensors(pictures, targets=[Target(proposals=each) for each in proposals])
    scores.update(found, targets, list(range(len(targets))), proposals)
    return float(scores.compute()["map_50"])
