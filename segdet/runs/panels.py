"""The same few validation images after every so many epochs, with what the model says of them."""

from pathlib import Path
from typing import Any

import cv2
import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import WandbLogger

from segdet.data.images import read_image
from segdet.data.sample import Batch, Prediction, Sample, Target, collate
from segdet.util.drawing import draw_boxes, draw_mask, draw_sheet


class ImagePanels(pl.Callback):
    """Draws a fixed set of validation images: a sheet in ``predictions/``, panels on Weights & Biases.

    The images are spread evenly over the validation set and are the same for every run on it, so that
    two runs can be compared picture by picture.

    Args:
        images: How many; 0 for none.
        every_n_epochs: How often; the last epoch is always drawn.
        min_score: Boxes below it are not drawn.
        most_boxes: The best so many boxes of an image are drawn.
    """

    def __init__(
        self, images: int = 8, every_n_epochs: int = 5, min_score: float = 0.3, most_boxes: int = 50
    ) -> None:
        self.images = images
        self.every_n_epochs = every_n_epochs
        self.min_score = min_score
        self.most_boxes = most_boxes
        self._samples: list[Sample] | None = None
        self._pictures: list[np.ndarray] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws, if this epoch is one to draw. Rank 0 does it alone, without a word to the others."""
        if trainer.sanity_checking or not trainer.is_global_zero or not self._is_due(trainer):
            return
        samples = self._fixed(trainer)
        predictions = self._predict(trainer, pl_module, samples)
        names = list(pl_module.class_names)  # type: ignore[arg-type]
        epoch = trainer.current_epoch + 1
        folder = Path(trainer.default_root_dir) / "predictions"
        folder.mkdir(parents=True, exist_ok=True)
        pictures, titles = [], []
        for sample, picture, prediction in zip(samples, self._pictures, predictions, strict=True):
            truth: Target = sample.original if sample.original is not None else sample.target
            pictures += [overlay(picture, truth, names), overlay(picture, prediction, names)]
            titles += [f"{sample.source.path.name}, annotated", "predicted"]
        page = draw_sheet(pictures, titles, 4 if len(pictures) > 2 else 2)
        cv2.imwrite(str(folder / f"val_{epoch:04d}.png"), page[:, :, ::-1])
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                self._log(logger, samples, predictions, names, trainer.global_step - 1)

    def _is_due(self, trainer: pl.Trainer) -> bool:
        if (
            not self.images
            or trainer.state.fn is None
            or trainer.state.fn.value != "fit"
            or trainer.fast_dev_run  # type: ignore[attr-defined]
        ):
            return False
        epoch = trainer.current_epoch + 1
        # The last validation of all may come within an epoch, by max_steps or max_time.
        return epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs or trainer.should_stop

    def _fixed(self, trainer: pl.Trainer) -> list[Sample]:
        """The samples, read once."""
        if self._samples is None:
            dataset = trainer.datamodule.dataset("val")  # type: ignore[attr-defined]
            count = min(self.images, len(dataset))
            chosen = np.unique(np.linspace(0, len(dataset) - 1, count).round().astype(int))
            self._samples = [dataset[int(index)] for index in chosen]
            self._pictures = [
                read_image(sample.source.path, sample.source.original_size, sample.source.upright)
                for sample in self._samples
            ]
        return self._samples

    @torch.no_grad()
    def _predict(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, samples: list[Sample]
    ) -> list[Prediction]:
        training = pl_module.training
        pl_module.eval()
        kept = []
        with trainer.precision_plugin.forward_context():
            for sample in samples:
                batch: Batch = collate([sample]).to(pl_module.device)
                prediction: Prediction = pl_module.predict_batch(batch)[0]  # type: ignore[operator]
                prediction = {key: value.cpu() for key, value in prediction.items()}  # type: ignore[assignment,attr-defined]
                kept.append(self._visible(prediction) if pl_module.task == "detection" else prediction)
        pl_module.train(training)
        return kept

    def _visible(self, prediction: Prediction) -> Prediction:
        keep = (prediction["scores"] >= self.min_score).nonzero()[: self.most_boxes, 0]
        return {key: value[keep] for key, value in prediction.items()}  # type: ignore[return-value,index]

    def _log(
        self,
        logger: WandbLogger,
        samples: list[Sample],
        predictions: list[Prediction],
        names: list[str],
        step: int,
    ) -> None:
        import wandb

        panels = []
        for sample, picture, prediction in zip(samples, self._pictures, predictions, strict=True):
            truth: Target = sample.original if sample.original is not None else sample.target
            both = {"ground_truth": truth, "prediction": prediction}
            if "mask" in prediction:
                labels = dict(enumerate(names)) | {255: "ignored"}
                masks = {
                    key: {"mask_data": said["mask"].cpu().numpy().astype(np.uint8), "class_labels": labels}
                    for key, said in both.items()
                }
                panels.append(wandb.Image(picture, masks=masks, caption=sample.source.path.name))
            else:
                labels = dict(enumerate(names, start=1))
                boxes = {
                    key: {"box_data": _wandb_boxes(said, names), "class_labels": labels}
                    for key, said in both.items()
                }
                panels.append(wandb.Image(picture, boxes=boxes, caption=sample.source.path.name))
        # Never with a step of our own: W&B drops what comes out of order.
        logger.experiment.log({"val/images": panels, "trainer/global_step": step})


def overlay(picture: np.ndarray, said: Target | Prediction, names: list[str]) -> np.ndarray:
    """``picture`` with the boxes or the mask that an annotation or a prediction holds.

    Args:
        picture: uint8 ``[H, W, 3]`` RGB, the original image.
        said: In its pixels.
        names: Of the mask's values, or of the object classes, label 1 first.
    """
    if "mask" in said:
        return draw_mask(picture, said["mask"].cpu().numpy(), names)
    scores: Any = said.get("scores")
    boxes, labels = said["boxes"].cpu().float().numpy(), said["labels"].cpu().numpy()
    return draw_boxes(picture, boxes, labels, names, None if scores is None else scores.cpu().float().numpy())


def _wandb_boxes(said: Any, names: list[str]) -> list[dict[str, Any]]:
    boxes, labels = said["boxes"].cpu().tolist(), said["labels"].cpu().tolist()
    scores = said["scores"].cpu().tolist() if "scores" in said else [None] * len(boxes)
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
