"""What `segdet predict` writes: COCO results or index PNGs, and overlays, batch by batch."""

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

from segdet.data.datamodule import Classes
from segdet.data.images import read_image
from segdet.data.sample import Batch, Prediction, Source
from segdet.metrics.detection import run_lengths
from segdet.runs.panels import overlay
from segdet.util.drawing import voc_palette
from segdet.util.files import write_atomically


class PredictionWriter(BasePredictionWriter):
    """Writes predictions to ``folder`` as they come; nothing is kept in memory.

    - ``predictions.json`` for boxes: COCO's results format (``bbox`` is x, y, width, height), each entry
      with its ``file_name`` and ``category`` besides, and its ``segmentation`` where a family finds masks. (Whoever
      has pycocotools score the masks by their sizes leaves ``bbox`` out, for it would take the boxes' sizes.)
    - ``masks/<stem>.png`` for segmentation: index PNGs in the form of the dataset's own masks, so with VOC's
      palette, or for Cityscapes grayscale with its label ids, as its evaluation server takes them.
    - ``overlays/<stem>.png`` for both, boxes from ``min_score`` on.

    Where a folder has both ``a.jpg`` and ``a.png``, theirs are ``a.jpg.png`` and ``a.png.png``.

    Args:
        folder: The run's ``predictions``.
        classes: How the files that are written number the classes: 1, 2, ... (masks: 0, 1, ...) where it is
            not said.
        min_score: Boxes below it are written but not drawn.
    """

    def __init__(self, folder: Path, classes: Classes | None = None, min_score: float = 0.3) -> None:
        super().__init__("batch")
        self.folder = folder
        self.classes = classes or Classes([], [])
        self.min_score = min_score
        self._names: dict[Path, str] = {}

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Makes the folders; an earlier command's predictions here are replaced file by file."""
        (self.folder / "overlays").mkdir(parents=True, exist_ok=True)
        reader = trainer.datamodule.reader("test")  # type: ignore[attr-defined]
        root = Path(trainer.datamodule.root)  # type: ignore[attr-defined]
        self._names = output_names([Path(reader.image_path(index)) for index in range(len(reader))], root)
        if pl_module.task == "segmentation":
            (self.folder / "masks").mkdir(exist_ok=True)
        else:
            self._part(trainer.global_rank).write_text("", encoding="utf-8")

    def write_on_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, prediction: Any, batch_indices: Any,
        batch: Batch, batch_idx: int, dataloader_idx: int,
    ) -> None:  # fmt: skip
        """Writes a batch."""
        names = list(pl_module.class_names)  # type: ignore[arg-type]
        root = Path(trainer.datamodule.root)  # type: ignore[attr-defined]
        lines = []
        for source, answer in zip(batch.sources, prediction, strict=True):
            if source.duplicate:
                continue
            said: Any = {key: value.cpu() for key, value in answer.items()}
            name = self._names[source.path]
            if "mask" in said:
                _save(self._index_image(said["mask"].numpy()), self.folder / "masks" / f"{name}.png")
            else:
                # What is not finite is nowhere, and no JSON; the scores leave it out, too.
                finite = said["boxes"].isfinite().all(1) & said["scores"].isfinite()
                said = {key: value[finite] for key, value in said.items()}
                lines += [json.dumps(entry) + "\n" for entry in self._entries(said, source, root, names)]
                drawn = said["scores"] >= self.min_score
                if pl_module.task == "detection":  # of localization the one box is the answer
                    said = {key: value[drawn] for key, value in said.items()}
            picture = overlay(read_image(source.path, source.original_size, source.upright), said, names)
            file = self.folder / "overlays" / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(file), picture[:, :, ::-1])
        if lines:
            with self._part(trainer.global_rank).open("a", encoding="utf-8") as stream:
                stream.writelines(lines)

    def _index_image(self, mask: np.ndarray) -> Image.Image:
        """Class positions ``[H, W]`` as an image of the values that the dataset's own masks have."""
        values = np.asarray(self.classes.mask_values, np.uint8)
        image = Image.fromarray(values[mask] if len(values) else mask.astype(np.uint8))
        if self.classes.palette_masks:
            image.putpalette(voc_palette().tobytes())
        return image

    def _entries(
        self, said: Prediction, source: Source, root: Path, names: list[str]
    ) -> list[dict[str, Any]]:
        boxes = said["boxes"].double()
        rows = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
        labels = said["labels"].tolist()
        ids = self.classes.category_ids
        outlines: list[dict[str, Any]] = [{} for _ in labels]
        if "masks" in said and labels:
            outlines = [
                {"segmentation": {"size": each["size"], "counts": each["counts"].decode("ascii")}}
                for each in run_lengths(said["masks"])
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
            | outline
            for row, label, score, outline in zip(
                _written(rows), labels, _written(said["scores"]), outlines, strict=True
            )
        ]

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Joins what the processes wrote into ``predictions.json``."""
        if pl_module.task != "segmentation":
            trainer.strategy.barrier("predictions")
            if trainer.is_global_zero:
                self._join(trainer.world_size)
        if trainer.is_global_zero:
            sys.stderr.write(f"segdet: predictions are in {self.folder}\n")

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Makes ``predictions.json`` of what there is when the command is stopped; several processes leave parts."""
        if trainer.world_size > 1 or not self._part(0).exists():
            return
        self._join(1)
        sys.stderr.write(f"segdet: stopped; the predictions until then are in {self.folder}\n")

    def _join(self, world_size: int) -> None:
        with (
            write_atomically(self.folder / "predictions.json") as temporary,
            temporary.open("w", encoding="utf-8") as out,
        ):
            out.write("[")
            separator = "\n"
            for rank in range(world_size):
                part = self._part(rank)
                with part.open(encoding="utf-8") as stream:
                    for line in stream:
                        out.write(separator + line.rstrip("\n"))
                        separator = ",\n"
                part.unlink()
            out.write("\n]\n")

    def _part(self, rank: int) -> Path:
        return self.folder / f".predictions.{rank}.jsonl"


def _written(values: Tensor) -> list[Any]:
    """Numbers as they are to be written: as few digits as tell a float32 from all others.

    Fewer would make equal scores of different ones, and move boxes across the evaluators' thresholds.
    """
    near = values.float().numpy()
    digits: list[Any] = near.astype(str).astype(np.float64).tolist()
    return digits


def _relative(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else Path(path.name)


def output_names(paths: Sequence[Path], root: Path) -> dict[Path, str]:
    """A name of its own for what is written of each image, a path without ending.

    It is the image's path below ``root`` without its ending, or with it where two images differ in
    nothing else.
    """
    whole = {path: _relative(path, root).as_posix() for path in paths}
    names = {path: _relative(path, root).with_suffix("").as_posix() for path in paths}
    while True:
        counts = Counter(names.values())
        repeated = [path for path, name in names.items() if counts[name] > 1 and name != whole[path]]
        if not repeated:
            return names
        names |= {path: whole[path] for path in repeated}  # which may be the stem of a third


def _save(image: Image.Image, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)
