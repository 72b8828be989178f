"""Options and fixtures of runs that take a second."""

from collections.abc import Callable

Line = Callable[[list[str]], str]
"""A fixture's type: a function that runs an invalid command and returns its error message."""

TINY = [
    "--data=ShapesDataModule", "--data.num_train=8", "--data.num_val=4", "--data.num_test=4",
    "--data.image_size=[64, 64]", "--data.batch_size=4", "--data.num_workers=0", "--panels.images=2",
    "--trainer.accelerator=cpu", "--trainer.max_epochs=1",
]  # fmt: skip
MODELS = {
    "segmentation": ["--model=FCN", "--model.backbone=test_resnet", "--model.width=8"],
    "localization": ["--model=BoxHead", "--model.backbone=test_resnet"],
    "detection": ["--model=SSD", "--model.backbone=test_resnet", "--model.width=16"],
}
