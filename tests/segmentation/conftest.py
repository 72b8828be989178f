"""A fixture that trains networks on four images."""

from collections.abc import Callable

import pytest
import torch

from segdet.data.sample import Target
from segdet.segmentation.base import Segmenter

SIDE = 48
Overfit = Callable[..., float]


def _scenes() -> tuple[torch.Tensor, list[Target]]:
    """Return images of noise with a bright and a striped rectangle in varying corners, and their masks.

    Half of the stripes are as bright as the bright rectangle and half are noise, so the class of a pixel does not
    follow from its value.
    """
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 120, (4, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    masks = torch.zeros(4, SIDE, SIDE, dtype=torch.int64)
    for i in range(4):
        y, x = 25 * (i // 2) + 2, 25 * (i % 2) + 2
        images[i, :, y : y + 19, x : x + 15] = 230
        masks[i, y : y + 19, x : x + 15] = 1
        y, x = 30 - y, 30 - x
        images[i, :, y : y + 15 : 2, x : x + 17] = 230
        masks[i, y : y + 15, x : x + 17] = 2
    return images, [Target(mask=mask) for mask in masks]


@pytest.fixture
def overfit() -> Overfit:
    """Return a function that trains a network of three classes on four images and returns its pixel accuracy on them.

    Its arguments are the network, the number of steps, and the initial learning rate of AdamW, which decays to zero.
    The fourth argument is a factor that enlarges the images, for networks that have only coarse maps.
    """

    def train(model: Segmenter, steps: int, rate: float, larger: int = 1) -> float:
        images, targets = _scenes()
        images = images.repeat_interleave(larger, 2).repeat_interleave(larger, 3)
        targets = [
            Target(mask=target["mask"].repeat_interleave(larger, 0).repeat_interleave(larger, 1))
            for target in targets
        ]
        model.train()
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            optimizer.zero_grad()
            sum(model.losses(model.normalize(images), targets).values()).backward()  # type: ignore[union-attr]
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.inference_mode():
            predicted = torch.stack([prediction["mask"] for prediction in model.predict_tensors(images)])
        return float((predicted == torch.stack([target["mask"] for target in targets])).float().mean())

    return train
