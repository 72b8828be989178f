"""The files that `segdet predict` writes, batch by batch: COCO results or index PNGs, and overlays."""

import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import lightning.pytorch as pl
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from segdet.data.base import Classes
from segdet.data.datamodules import Images
from segdet.data.images import read_image
from segdet.data.sample import Batch, Prediction, Source
from segdet.data.video import VideoFrames, VideoWriter
from segdet.metrics.detection import run_lengths
from segdet.runs.folder_layout import shown_path
from segdet.runs.panels import draw_target
from segdet.util.colours import voc_palette
from segdet.util.drawing import draw_legend, mask_legend
from segdet.util.files import open_to_append, write_atomically
from segdet.util.write_guard import check_writable

OUTPUTS = ("overlays", "masks", "predictions.json", "left_out.txt")
"""The files and folders that `segdet predict` writes to the folder ``predictions`` of a run."""

LEAST_SIDE = 480
"""The least length in pixels of the longer side of an overlay."""


class PredictionWriter(pl.Callback):
    """Write the predictions of each batch to ``folder``; keep none in memory.

    - ``predictions.json`` for boxes: COCO's results format (``bbox`` is x, y, width, height). Each entry also has
      ``file_name`` and ``category``, and ``segmentation`` if the family predicts masks. Entries of a video have the
      position ``frame``, from 0, and the time ``seconds``. pycocotools takes object sizes from ``bbox``; remove
      ``bbox`` to score masks by the sizes of the masks.
    - ``masks/<stem>.png`` for segmentation: index PNGs with the values of the dataset's masks. They have VOC's palette,
      or are in grayscale with the label ids that the evaluation server of Cityscapes accepts. For a video,
      ``masks/<name>/<frame>.png``, and ``masks/<name>/frames.csv`` with the time of each frame.
    - ``overlays/<stem>.png`` for all tasks, with boxes of at least ``min_score``; for a video ``overlays/<stem>.mp4``.
      Small images are enlarged.

    If one folder contains ``a.jpg`` and ``a.png``, their output files are ``a.jpg.png`` and ``a.png.png``. The outputs
    of an earlier command are removed.

    Args:
        folder: The folder ``predictions`` of the run.
        classes: The class numbers in the files. None for 1, 2, ... in boxes and 0, 1, ... in masks.
        min_score: The minimum score of drawn boxes; ``predictions.json`` holds all boxes.
    """

    def __init__(self, folder: Path, classes: Classes | None = None, min_score: float = 0.3) -> None:
        self.folder = folder
        self.classes = classes or Classes([], [])
        self.min_score = min_score
        self._names: dict[Path, str] = {}
        self._video: _VideoOverlay | None = None
        self._images = self._frames = 0
        self._replaces = False

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove the outputs of an earlier command and create the folders."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        reader = data.reader("test")
        paths = [Path(reader.image_path(index)) for index in range(len(reader))]
        if isinstance(data, Images):
            paths += [video.path for video in data.files.videos]
        self._names = output_names(paths, Path(data.root))
        if trainer.is_global_zero:
            self._remove_outputs()
            (self.folder / "overlays").mkdir(parents=True, exist_ok=True)
        trainer.strategy.barrier("prediction folders")
        if pl_module.task == "segmentation":
            (self.folder / "masks").mkdir(exist_ok=True)
        else:
            self._rank_file(trainer.global_rank).write_text("", encoding="utf-8")

    def _remove_outputs(self) -> None:
        earlier = [self.folder / name for name in OUTPUTS]
        earlier += self.folder.glob(self._rank_file(0).name.replace("0", "*"))
        earlier = [path for path in earlier if path.exists()]
        for path in earlier:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        self._replaces = bool(earlier)

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Write the predictions of a batch."""
        check_writable(self.folder)
        names = list(pl_module.class_names)  # type: ignore[arg-type]
        root = Path(trainer.datamodule.root)  # type: ignore[attr-defined]
        lines = []
        for source, raw in zip(batch.sources, outputs, strict=True):
            if source.duplicate:
                continue
            predicted: Any = {key: value.cpu() for key, value in raw.items()}
            if "mask" in predicted:
                self._write_mask(predicted["mask"].numpy(), source, root)
            else:
                # JSON has no infinity or NaN. The metrics drop such boxes too.
                finite = predicted["boxes"].isfinite().all(1) & predicted["scores"].isfinite()
                predicted = {key: value[finite] for key, value in predicted.items()}
                lines += [json.dumps(entry) + "\n" for entry in self._entries(predicted, source, root, names)]
                drawn = torch.arange(len(predicted["scores"])) == 0  # localization: the box of the best class
                if pl_module.task == "detection":
                    drawn = predicted["scores"] >= self.min_score
                predicted = {key: value[drawn] for key, value in predicted.items()}
            self._write_overlay(predicted, source, names, trainer)
        if lines:
            with open_to_append(self._rank_file(trainer.global_rank)) as stream:
                stream.writelines(lines)

    def _write_mask(self, mask: np.ndarray, source: Source, root: Path) -> None:
        file = self.folder / "masks" / f"{self._names[source.path]}.png"
        if source.frame is not None:
            # Frames are often stored in a folder with the name of the video but without its suffix.
            folder = self.folder / "masks" / relative_path(source.path, root)
            file = folder / f"{source.frame.index:06d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        self._index_image(mask).save(file)
        if source.frame is not None:
            table = file.with_name("frames.csv")
            heading = "" if table.exists() else "frame,seconds\n"
            with open_to_append(table) as stream:
                stream.write(f"{heading}{source.frame.index},{source.frame.seconds:.3f}\n")

    def _write_overlay(
        self, predicted: Prediction, source: Source, names: list[str], trainer: pl.Trainer
    ) -> None:
        file = self.folder / "overlays" / self._names[source.path]
        file.parent.mkdir(parents=True, exist_ok=True)
        if source.frame is None:
            self._images += 1
            image = read_image(source.path, source.original_size, source.upright, max_pixels=None)
            picture = draw_target(image, predicted, names, least=LEAST_SIDE)
            cv2.imwrite(f"{file}.png", picture[:, :, ::-1])
            return
        self._frames += 1
        if self._video is None or self._video.source != source.path:
            self._close_video()
            frames: VideoFrames = trainer.datamodule.frames  # type: ignore[attr-defined]
            self._video = _VideoOverlay(source.path, Path(f"{file}.mp4"), frames.rate(source.path), names)
        self._video.write(source.frame.pixels, predicted)

    def _close_video(self) -> None:
        if self._video is not None:
            self._video.writer.close()
        self._video = None

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
        frame = source.frame
        place = {} if frame is None else {"frame": frame.index, "seconds": round(frame.seconds, 3)}
        mask_entries: list[dict[str, Any]] = [{} for _ in labels]
        if "masks" in predicted and labels:
            mask_entries = [
                {"segmentation": {"size": each["size"], "counts": each["counts"].decode("ascii")}}
                for each in run_lengths(predicted["masks"])
            ]
        return [
            {
                "image_id": source.image_id,
                "file_name": relative_path(source.path, root).as_posix(),
                "category_id": ids[label - 1] if ids else label,
                "category": names[label - 1],
                "bbox": row,
                "score": score,
            }
            | place
            | mask_entry
            for row, label, score, mask_entry in zip(
                _rounded(rows), labels, _rounded(predicted["scores"]), mask_entries, strict=True
            )
        ]

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Merge the files of all processes into ``predictions.json``, and complete the video."""
        self._close_video()
        if pl_module.task != "segmentation":
            trainer.strategy.barrier("predictions")
            if trainer.is_global_zero:
                self._merge(trainer.world_size)
        counts = torch.tensor([self._images, self._frames], device=pl_module.device)
        images, frames = trainer.strategy.reduce(counts, reduce_op="sum").tolist()
        if trainer.is_global_zero:
            counted = [(images, "image")] * (images > 0 or not frames) + [(frames, "frame")] * (frames > 0)
            text = " and ".join(f"{count} {name}{'s' * (count != 1)}" for count, name in counted)
            replaced = ", replacing earlier predictions" if self._replaces else ""
            sys.stderr.write(f"segdet: predicted {text}{replaced}; see {shown_path(self.folder)}\n")

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Write the predictions so far; the files of several processes stay separate."""
        self._close_video()
        if trainer.world_size > 1 or not self._rank_file(0).exists():
            return
        self._merge(1)
        sys.stderr.write(f"segdet: stopped; the predictions made so far are in {shown_path(self.folder)}\n")

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


class _VideoOverlay:
    """A video of the frames of ``source`` with their predictions.

    Args:
        source: The original video.
        file: The file to write.
        rate: Frames per second.
        names: The class names.
    """

    def __init__(self, source: Path, file: Path, rate: float, names: list[str]) -> None:
        self.source = source
        self.writer = VideoWriter(file, rate)
        self.names = names

    def write(self, pixels: np.ndarray, predicted: Prediction) -> None:
        """Append a frame."""
        picture = draw_target(pixels, predicted, self.names, least=LEAST_SIDE, legend=False)
        if "mask" in predicted:
            # All frames of a video need the same size, so the legend always shows all classes.
            legend = draw_legend(mask_legend(np.arange(len(self.names)), self.names), picture.shape[1])
            picture = np.concatenate([picture, legend])
        self.writer.write(picture)


def _rounded(values: Tensor) -> list[Any]:
    """Round to the fewest digits that identify a float32.

    With fewer digits, different scores would become equal, and boxes would cross the IoU thresholds of evaluators.
    """
    rounded: list[Any] = values.float().numpy().astype(str).astype(np.float64).tolist()
    return rounded


def relative_path(path: Path, root: Path) -> Path:
    """Return the path of an image relative to the root of its dataset, or its name if it is outside of the root."""
    # Symbolic links are kept, because the user gave their names.
    path, root = (Path(os.path.abspath(each)) for each in (path, root))  # noqa: PTH100
    return path.relative_to(root) if path.is_relative_to(root) else Path(path.name)


def output_names(paths: Sequence[Path], root: Path) -> dict[Path, str]:
    """Return a unique output path for each image: its path relative to ``root``, without the extension.

    The extension is kept if two images differ only in their extensions.
    """
    whole = {path: relative_path(path, root).as_posix() for path in paths}
    names = {path: relative_path(path, root).with_suffix("").as_posix() for path in paths}
    while True:
        counts = Counter(names.values())
        repeated = [path for path, name in names.items() if counts[name] > 1 and name != whole[path]]
        if not repeated:
            return names
        names |= {path: whole[path] for path in repeated}  # the longer name may be the stem of a third image
