"""Images with a red and a green rectangle each, and training on them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from segdet.data.sample import Target
from segdet.detection.base import Detector

Few = Callable[[int], tuple[Tensor, list[Target]]]
Score = Callable[[Detector, Tensor, list[Target]], float]


@pytest.fixture
def few_images() -> Few:
    """Return a function that makes N uint8 images ``[N, 3, 64, 96]`` and their targets."""

    def make(count: int) -> tuple[Tensor, list[Target]]:
        generator = torch.Generator().manual_seed(4)
        images = torch.randint(0, 90, (count, 3, 64, 96), generator=generator, dtype=torch.uint8)
        targets = []
        for image in images:
            boxes, masks = [], torch.zeros(2, 64, 96, dtype=torch.uint8)
            for channel, x in ((0, 4), (1, 52)):
                w, h = (int(v) for v in torch.randint(14, 38, (2,), generator=generator))
                y = int(torch.randint(0, 64 - h, (1,), generator=generator))
                image[channel, y : y + h, x : x + w] = 240
                masks[channel, y : y + h, x : x + w] = 1
                boxes.append([x, y, x + w, y + h])
            targets.append(
                Target(boxes=torch.tensor(boxes).float(), labels=torch.tensor([1, 2]), masks=masks)
            )
        return images, targets

    return make


@pytest.fixture
def map_50() -> Score:
    """Return a function that computes a detector's AP at IoU 0.5 on uint8 images ``[N, 3, H, W]``."""

    def score(model: Detector, images: Tensor, targets: list[Target]) -> float:
        model.eval()
        with torch.inference_mode():
            found = model.predict_tensors(images)
        scores = model.build_scores()
        scores.update(found, targets, list(range(len(images))))  # type: ignore[operator]
        return float(scores.compute()["map_50"])

    return score


@pytest.fixture
def overfit(few_images: Few, map_50: Score) -> Callable[..., float]:
    """Return a function that trains a detector of two classes on eight images and returns its map_50 on them."""

    def train(model: Detector, steps: int = 100, lr: float = 3e-3) -> float:
        images, targets = few_images(8)
        optimizer = torch.optim.AdamW(model.parameters(), lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps)
        model.train()
        for _ in range(steps):
            optimizer.zero_grad()
            sum(model.losses(model.normalize(images), targets).values()).backward()  # type: ignore[union-attr]
            optimizer.step()
            schedule.step()
        return map_50(model, images, targets)

    return train
