"""Pictures of a fixed set of validation images with their predictions, drawn during training."""

from pathlib import Path
from typing import Any

import cv2
import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import WandbLogger

from segdet.data.images import read_image
from segdet.data.sample import Batch, Prediction, Sample, Target, collate
from segdet.nn.train_eval_mode import evaluating
from segdet.util.drawing import draw_boxes, draw_mask, draw_sheet
from segdet.util.write_guard import check_writable

_CELL = 320
"""The width of a picture on the sheet, in pixels."""


class ImagePanels(pl.Callback):
    """Draw a fixed set of validation images: a sheet in ``predictions/``, and panels on Weights & Biases.

    The images are spread evenly over the validation set. All runs on this set draw the same images, so that runs can be
    compared image by image.

    Args:
        images: The number of images; 0 for none.
        every_n_epochs: The number of epochs between drawings. The last epoch is always drawn.
        min_score: The minimum score of boxes that are drawn.
        most_boxes: The maximum number of boxes that are drawn per image, highest scores first.
    """

    def __init__(
        self, images: int = 8, every_n_epochs: int = 5, min_score: float = 0.3, most_boxes: int = 50
    ) -> None:
        self.images = images
        self.every_n_epochs = every_n_epochs
        self.min_score = min_score
        self.most_boxes = most_boxes
        self._samples: list[Sample] = []
        self._pictures: list[np.ndarray] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the images if this epoch is due. Only rank 0 draws, without communication."""
        if trainer.sanity_checking or not trainer.is_global_zero or not self._is_due(trainer):
            return
        if not self._samples:
            self._read_samples(trainer)
        predictions = self._predict(trainer, pl_module)
        names = list(pl_module.class_names)  # type: ignore[arg-type]
        epoch = trainer.current_epoch + 1
        folder = Path(trainer.default_root_dir) / "predictions"
        folder.mkdir(parents=True, exist_ok=True)
        pictures, titles = [], []
        for sample, picture, prediction in zip(self._samples, self._pictures, predictions, strict=True):
            targets = (_truth(sample), prediction)
            pictures += [draw_target(picture, target, names, least=_CELL) for target in targets]
            titles += [f"{sample.source.path.name}, annotated", "predicted"]
        page = draw_sheet(pictures, titles, 4 if len(pictures) > 2 else 2, _CELL)
        check_writable(folder)
        cv2.imwrite(str(folder / f"val_{epoch:04d}.png"), page[:, :, ::-1])
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                self._log(logger, predictions, names, trainer.global_step - 1)

    def _is_due(self, trainer: pl.Trainer) -> bool:
        if not self.images or trainer.state.fn != "fit" or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return False
        epoch = trainer.current_epoch + 1
        # With max_steps or max_time, the last validation may be within an epoch.
        return epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs or trainer.should_stop

    def _read_samples(self, trainer: pl.Trainer) -> None:
        dataset = trainer.datamodule.dataset("val")  # type: ignore[attr-defined]
        count = min(self.images, len(dataset))
        chosen = np.unique(np.linspace(0, len(dataset) - 1, count).round().astype(int))
        self._samples = [dataset[int(index)] for index in chosen]
        self._pictures = [
            read_image(
                sample.source.path, sample.source.original_size, sample.source.upright, max_pixels=None
            )
            for sample in self._samples
        ]

    @torch.no_grad()
    def _predict(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[Prediction]:
        kept = []
        with evaluating(pl_module), trainer.precision_plugin.forward_context():
            for sample in self._samples:
                batch: Batch = collate([sample]).to(pl_module.device)
                prediction: Prediction = pl_module.predict_batch(batch)[0]  # type: ignore[operator]
                prediction = {key: value.cpu() for key, value in prediction.items()}  # type: ignore[assignment,attr-defined]
                kept.append(self._visible(prediction, str(pl_module.task)))
        return kept

    def _visible(self, prediction: Prediction, task: str) -> Prediction:
        if task == "segmentation":
            return prediction
        keep = torch.arange(1)  # localization: the box of the best class
        if task == "detection":
            keep = (prediction["scores"] >= self.min_score).nonzero()[: self.most_boxes, 0]
        return {key: value[keep] for key, value in prediction.items()}  # type: ignore[return-value,index]

    def _log(self, logger: WandbLogger, predictions: list[Prediction], names: list[str], step: int) -> None:
        import wandb

        panels = []
        for sample, picture, prediction in zip(self._samples, self._pictures, predictions, strict=True):
            masks: dict[str, Any] = {}
            boxes: dict[str, Any] = {}
            for key, target in (("ground_truth", _truth(sample)), ("prediction", prediction)):
                if "mask" in target:
                    labels = dict(enumerate(names)) | {255: "ignored"}
                    mask = target["mask"].cpu().numpy().astype(np.uint8)
                    masks[key] = {"mask_data": mask, "class_labels": labels}
                else:
                    labels = dict(enumerate(names, start=1))
                    boxes[key] = {"box_data": _wandb_boxes(target, names), "class_labels": labels}
            caption = sample.source.path.name
            panels.append(wandb.Image(picture, caption=caption, boxes=boxes or None, masks=masks or None))
        logger.log_metrics({"val/images": panels}, step)  # type: ignore[dict-item]


def _truth(sample: Sample) -> Target:
    return sample.target if sample.original is None else sample.original


def draw_target(
    picture: np.ndarray,
    target: Target | Prediction,
    names: list[str],
    *,
    least: int = 0,
    legend: bool = True,
) -> np.ndarray:
    """Return ``picture`` with the boxes or the mask of an annotation or a prediction.

    Args:
        picture: The original image, uint8 ``[H, W, 3]`` RGB.
        target: The annotation or the prediction, in pixels of ``picture``.
        names: The names of the mask's values, or of the object classes, label 1 first.
        least: The least length in pixels of the longer side. Smaller images are enlarged before drawing, because text
            on them is not legible.
        legend: Whether a legend of the classes in a mask is appended.
    """
    longest = least if max(picture.shape[:2]) < least else None
    if "mask" in target:
        return draw_mask(picture, target["mask"].cpu().numpy(), names, longest=longest, legend=legend)
    scores: Any = target.get("scores")
    boxes, labels = target["boxes"].cpu().float().numpy(), target["labels"].cpu().numpy()
    scores = None if scores is None else scores.cpu().float().numpy()
    return draw_boxes(picture, boxes, labels, names, scores, longest=longest)


def _wandb_boxes(target: Any, names: list[str]) -> list[dict[str, Any]]:
    boxes, labels = target["boxes"].cpu().tolist(), target["labels"].cpu().tolist()
    scores = target["scores"].cpu().tolist() if "scores" in target else [None] * len(boxes)
    data = []
    for (x0, y0, x1, y1), label, score in zip(boxes, labels, scores, strict=True):
        entry: dict[str, Any] = {
            "position": {"minX": x0, "minY": y0, "maxX": x1, "maxY": y1},
            "domain": "pixel",
            "class_id": label,
            "box_caption": names[label - 1] if score is None else f"{names[label - 1]} {score:.2f}",
        }
        if score is not None:
            entry["scores"] = {"score": score}
        data.append(entry)
    return data
