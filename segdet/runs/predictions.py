"""The files that `segdet predict` writes, batch by batch: COCO results or index PNGs, and overlays."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image
from torch import Tensor

from segdet.data.base import Classes
from segdet.data.images import read_image
from segdet.data.sample import Batch, Prediction, Source
from segdet.metrics.detection import run_lengths
from segdet.runs.panels import draw_target
from segdet.util.drawing import voc_palette
from segdet.util.files import write_atomically


class PredictionWriter(BasePredictionWriter):
    """Write the predictions of each batch to ``folder``; keep none in memory.

    - ``predictions.json`` for boxes: COCO's results format (``bbox`` is x, y, width, height). Each entry also has
      ``file_name`` and ``category``, and ``segmentation`` if the family predicts masks. pycocotools takes object sizes
      from ``bbox``; remove ``bbox`` to score masks by the sizes of the masks.
    - ``masks/<stem>.png`` for segmentation: index PNGs with the values of the dataset's masks. They have VOC's palette,
      or are in grayscale with the label ids that the evaluation server of Cityscapes accepts.
    - ``overlays/<stem>.png`` for all tasks, with boxes of at least ``min_score``.

    If one folder contains ``a.jpg`` and ``a.png``, their output files are ``a.jpg.png`` and ``a.png.png``.

    Args:
        folder: The folder ``predictions`` of the run.
        classes: The class numbers in the files. None for 1, 2, ... in boxes and 0, 1, ... in masks.
        min_score: The minimum score of drawn boxes; ``predictions.json`` holds all boxes.
    """

    def __init__(self, folder: Path, classes: Classes | None = None, min_score: float = 0.3) -> None:
        super().__init__("batch")
        self.folder = folder
        self.classes = classes or Classes([], [])
        self.min_score = min_score
        self._names: dict[Path, str] = {}

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Create the folders. Files of an earlier command remain until new ones replace them."""
        (self.folder / "overlays").mkdir(parents=True, exist_ok=True)
        reader = trainer.datamodule.reader("test")  # type: ignore[attr-defined]
        root = Path(trainer.datamodule.root)  # type: ignore[attr-defined]
        self._names = output_names([Path(reader.image_path(index)) for index in range(len(reader))], root)
        if pl_module.task == "segmentation":
            (self.folder / "masks").mkdir(exist_ok=True)
        else:
            self._rank_file(trainer.global_rank).write_text("", encoding="utf-8")

    def write_on_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, prediction: Any, batch_indices: Any,
        batch: Batch, batch_idx: int, dataloader_idx: int,
    ) -> None:  # fmt: skip
        """Write the predictions of a batch."""
        names = list(pl_module.class_names)  # type: ignore[arg-type]
        root = Path(trainer.datamodule.root)  # type: ignore[attr-defined]
        lines = []
        for source, raw in zip(batch.sources, prediction, strict=True):
            if source.duplicate:
                continue
            predicted: Any = {key: value.cpu() for key, value in raw.items()}
            name = self._names[source.path]
            if "mask" in predicted:
                file = self.folder / "masks" / f"{name}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                self._index_image(predicted["mask"].numpy()).save(file)
            else:
                # JSON has no infinity or NaN. The metrics drop such boxes too.
                finite = predicted["boxes"].isfinite().all(1) & predicted["scores"].isfinite()
                predicted = {key: value[finite] for key, value in predicted.items()}
                lines += [json.dumps(entry) + "\n" for entry in self._entries(predicted, source, root, names)]
                drawn = torch.arange(len(predicted["scores"])) == 0  # localization: the box of the best class
                if pl_module.task == "detection":
                    drawn = predicted["scores"] >= self.min_score
                predicted = {key: value[drawn] for key, value in predicted.items()}
            picture = draw_target(
                read_image(source.path, source.original_size, source.upright, max_pixels=None),
                predicted,
                names,
            )
            file = self.folder / "overlays" / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(file), picture[:, :, ::-1])
        if lines:
            with self._rank_file(trainer.global_rank).open("a", encoding="utf-8") as stream:
                stream.writelines(lines)

    def _index_image(self, mask: np.ndarray) -> Image.Image:
        """Convert class indices ``[H, W]`` to an image with the values of the dataset's own masks."""
        values = np.asarray(self.classes.mask_values, np.uint8)
        image = Image.fromarray(values[mask] if len(values) else mask.astype(np.uint8))
        if self.classes.palette_masks:
            image.putpalette(voc_palette().tobytes())
        return image

    def _entries(
        self, predicted: Prediction, source: Source, root: Path, names: list[str]
    ) -> list[dict[str, Any]]:
        boxes = predicted["boxes"].double()
        rows = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
        labels = predicted["labels"].tolist()
        ids = self.classes.category_ids
        mask_entries: list[dict[str, Any]] = [{} for _ in labels]
        if "masks" in predicted and labels:
            mask_entries = [
                {"segmentation": {"size": each["size"], "counts": each["counts"].decode("ascii")}}
                for each in run_lengths(predicted["masks"])
            ]
        return [
            {
                "image_id": source.image_id,
                "file_name": _relative(source.path, root).as_posix(),
                "category_id": ids[label - 1] if ids else label,
                "category": names[label - 1],
                "bbox": row,
                "score": score,
            }
            | mask_entry
            for row, label, score, mask_entry in zip(
                _rounded(rows), labels, _rounded(predicted["scores"]), mask_entries, strict=True
            )
        ]

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Merge the files of all processes into ``predictions.json``."""
        if pl_module.task != "segmentation":
            trainer.strategy.barrier("predictions")
            if trainer.is_global_zero:
                self._merge(trainer.world_size)
        if trainer.is_global_zero:
            sys.stderr.write(f"segdet: predictions are in {self.folder}\n")

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Write the predictions so far; the files of several processes stay separate."""
        if trainer.world_size > 1 or not self._rank_file(0).exists():
            return
        self._merge(1)
        sys.stderr.write(f"segdet: stopped; the predictions made so far are in {self.folder}\n")

    def _merge(self, world_size: int) -> None:
        with (
            write_atomically(self.folder / "predictions.json") as temporary,
            temporary.open("w", encoding="utf-8") as out,
        ):
            out.write("[")
            separator = "\n"
            for rank in range(world_size):
                file = self._rank_file(rank)
                with file.open(encoding="utf-8") as stream:
                    for line in stream:
                        out.write(separator + line.rstrip("\n"))
                        separator = ",\n"
                file.unlink()
            out.write("\n]\n")

    def _rank_file(self, rank: int) -> Path:
        return self.folder / f".predictions.{rank}.jsonl"


def _rounded(values: Tensor) -> list[Any]:
    """Round to the fewest digits that identify a float32.

    With fewer digits, different scores would become equal, and boxes would cross the IoU thresholds of evaluators.
    """
    rounded: list[Any] = values.float().numpy().astype(str).astype(np.float64).tolist()
    return rounded


def _relative(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else Path(path.name)


def output_names(paths: Sequence[Path], root: Path) -> dict[Path, str]:
    """Return a unique output path for each image: its path relative to ``root``, without the extension.

    The extension is kept if two images differ only in their extensions.
    """
    whole = {path: _relative(path, root).as_posix() for path in paths}
    names = {path: _relative(path, root).with_suffix("").as_posix() for path in paths}
    while True:
        counts = Counter(names.values())
        repeated = [path for path, name in names.items() if counts[name] > 1 and name != whole[path]]
        if not repeated:
            return names
        names |= {path: whole[path] for path in repeated}  # the longer name may be the stem of a third image
