"""A PyTorch dataset that yields the images of a reader as samples of a task."""

import copy
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from segdet.data.cleaning import clean_objects, clip_boxes, dominant_object, usable
from segdet.data.formats.reader import Reader
from segdet.data.mask_faults import mask_size_fault
from segdet.data.proposal_source import ImageProposals, ProposalSource
from segdet.data.sample import Objects, Sample, Source, Target, TaskName
from segdet.data.sampler import Draw
from segdet.data.transforms import Recipe
from segdet.util.errors import BadSample, UserError

OnBadSample = Literal["raise", "skip"]
BoxSets = dict[str, np.ndarray]
TransformedSets = dict[str, tuple[np.ndarray, np.ndarray]]


class TaskDataset(Dataset[Sample]):
    """The images of a `Reader` as samples of one task.

    Crowds, difficult objects and invalid boxes are not used in training. In evaluation, each sample has its annotation
    in original pixels, including crowds and difficult objects.

    Localization reduces an image to its dominant object (see `segdet.data.cleaning.dominant_object`). Images without
    one are left out.

    Args:
        reader: Source of images and annotations.
        task: The task.
        recipe: The transforms.
        training: Whether the samples are for training or for evaluation.
        on_bad_sample, dominance, max_proposals: See `segdet.data.DataModule`.
        seed: Seed of the augmentation. A sample's seed is computed from this seed, the epoch and the sample's index.
        annotated: Whether to read annotations. Without them samples have no target, and annotation files may be
            missing.
        limit: Use only the first ``limit`` images.
        proposals: Source of region proposals, which are computed here if they are not cached. Proposals go through the
            same transforms as the objects and are added to each target.

    Attributes:
        indices: int64 ``[N]``, the reader's index of each sample.
        size: Image size of the recipe.
        without_dominant: For localization, the number of images that are left out.
        proposals: The proposals of the images, or None.

    Raises:
        UserError: If no image is left.
        BadSample: If proposals of an image cannot be computed and ``on_bad_sample`` is ``raise``.
    """

    def __init__(
        self,
        reader: Reader,
        task: TaskName,
        recipe: Recipe,
        training: bool,
        on_bad_sample: OnBadSample = "raise",
        seed: int = 0,
        dominance: float = 1.0,
        annotated: bool = True,
        limit: int | None = None,
        proposals: ProposalSource | None = None,
        max_proposals: int = 2000,
    ) -> None:
        self.reader = reader
        self.task = task
        self.size = recipe.size
        self.min_visibility = recipe.min_visibility
        self.evaluation_pipeline = recipe.evaluation()
        self.pipeline = recipe.train() if training else self.evaluation_pipeline
        self.training = training
        self.on_bad_sample = on_bad_sample
        self.seed = seed
        self.dominance = dominance
        self.annotated = annotated and reader.annotated
        self.max_proposals = max_proposals
        self.indices = np.arange(len(reader))
        if task == "localization" and self.annotated:
            self.indices = self._with_dominant_object()
        self.without_dominant = len(reader) - len(self.indices)
        if not len(self.indices):
            raise UserError(
                f"{reader.image_path(0).parent if len(reader) else 'the dataset'}: no image is left for {task}; "
                "check the split with `segdet data stats`"
            )
        self.indices = self.indices[:limit]
        self.proposals: ImageProposals | None = None
        if proposals is not None:
            self.proposals = proposals.open(reader, self.indices)
            if self.proposals.bad and on_bad_sample == "raise":
                raise self.proposals.bad[0].or_skip()

    def without_augmentation(self) -> "TaskDataset":
        """Return a dataset of the same images, transformed and annotated as in evaluation."""
        same = copy.copy(self)
        same.training = False
        same.pipeline = self.evaluation_pipeline
        return same

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, draw: int | Draw) -> Sample:
        draw = Draw(draw) if isinstance(draw, int) else draw
        if self.on_bad_sample == "raise":
            try:
                return self._read(draw)
            except BadSample as error:
                raise error.or_skip() from error
        notes: list[str] = []
        for step in range(len(self)):
            substitute = Draw((draw.index + step) % len(self), draw.epoch, draw.duplicate)
            try:
                sample = self._read(substitute)
            except BadSample as error:
                notes.append(str(error))
                continue
            if notes:
                # In evaluation the substitute is also scored at its own index, so this copy must not count.
                duplicate = draw.duplicate or not self.training
                source = replace(sample.source, duplicate=duplicate, notes=(*notes, *sample.source.notes))
                sample = replace(sample, source=source)
            return sample
        raise UserError(f"none of the {len(self)} samples can be read; the first error is: {notes[0]}")

    def _read(self, draw: Draw) -> Sample:
        """Read and transform one sample; raise `BadSample` if it cannot be read."""
        index = int(self.indices[draw.index])
        path = self.reader.image_path(index)
        image = self.reader.image(index)
        size = (image.shape[0], image.shape[1])
        seed: int | None = None
        if self.training:
            seed = int(np.random.SeedSequence((self.seed, draw.epoch, index)).generate_state(1)[0])
        target, original = Target(), None
        notes: list[str] = []
        sets: TransformedSets = {}
        boxes = self._proposals(index, size)
        if not self.annotated:
            image, sets, _ = self.pipeline(image, boxes)
        elif self.task == "segmentation":
            mask = self.reader.mask(index)
            if (fault := mask_size_fault(self.reader, index, mask, size)) is not None:
                raise fault.error()
            image, _, transformed = self.pipeline(image, mask=mask, seed=seed)
            assert transformed is not None
            target = Target(mask=torch.from_numpy(transformed.astype(np.int64)))
            original = None if self.training else Target(mask=torch.from_numpy(mask.astype(np.int64)))
        else:
            annotated = self.reader.objects(index)
            objects, dropped = clean_objects(
                annotated, size, lambda row: self.reader.describe_object(index, row)
            )
            annotation = next(iter(self.reader.annotation_paths(index, self.task)), path)
            notes = [f"{annotation.name}: {box.description}" for box in dropped]
            unclipped = annotated.select(usable(annotated, size))
            if self.task == "localization":
                dominant = dominant_object(objects, self.dominance)
                if dominant is None:
                    raise BadSample(path, "has no dominant object", "remove it from the split")
                objects, unclipped = (each.select(np.array([dominant])) for each in (objects, unclipped))
            elif self.training:
                objects = objects.select(~(objects.iscrowd | objects.difficult))
            image, objects, sets = self._transform(image, objects, boxes, seed)
            target = _box_target(objects)
            original = None if self.training else _box_target(unclipped)
        if "proposals" in sets:
            target["proposals"] = torch.from_numpy(sets["proposals"][0])
        source = Source(
            path, self.reader.image_id(index), size, draw.duplicate, tuple(notes), self.reader.upright(index)
        )
        tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
        return Sample(tensor, target, source, original)

    def _proposals(self, index: int, size: tuple[int, int]) -> BoxSets:
        """Return the best proposals of an image, clipped and without empty boxes; an empty dict without a source."""
        if self.proposals is None:
            return {}
        boxes = clip_boxes(self.proposals.boxes(index)[: self.max_proposals], size)
        return {"proposals": boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]}

    def _transform(
        self, image: np.ndarray, objects: Objects, boxes: BoxSets, seed: int | None
    ) -> tuple[np.ndarray, Objects, TransformedSets]:
        # Object masks are transformed as the channels of one mask. Padding is 255, so only the value 1 marks objects.
        stacked = objects.masks.transpose(1, 2, 0) if objects.masks is not None and len(objects) else None
        out, sets, masks = self.pipeline(image, {"objects": objects.boxes, **boxes}, stacked, seed)
        if self.task == "localization" and not len(sets["objects"][1]):
            # The crop does not contain the object: use the whole image.
            out, sets, masks = self.evaluation_pipeline(image, {"objects": objects.boxes, **boxes}, stacked)
        moved, kept = sets["objects"]
        transformed = objects.select(kept)
        transformed.boxes = moved
        if objects.masks is not None:
            height, width = out.shape[:2]
            transformed.masks = np.zeros((0, height, width), np.uint8)
            if masks is not None:
                binary = (masks.reshape(height, width, -1) == 1).transpose(2, 0, 1)
                transformed.masks = binary[kept].astype(np.uint8)
        return out, transformed, sets

    def _with_dominant_object(self) -> np.ndarray:
        def has_one(index: int) -> bool:
            try:
                objects = self.reader.objects(index)
            except BadSample:
                return True  # reported when the sample is read
            size = self.reader.declared_size(index) or (1 << 30, 1 << 30)
            return dominant_object(objects.select(usable(objects, size)), self.dominance) is not None

        progress = tqdm(range(len(self.reader)), "finding dominant objects", unit="image", delay=2.0)
        return np.array([index for index in progress if has_one(index)], np.int64)


def _box_target(objects: Objects) -> Target:
    target = Target(
        boxes=torch.from_numpy(objects.boxes.astype(np.float32).reshape(-1, 4)),
        labels=torch.from_numpy(objects.labels.astype(np.int64)),
        iscrowd=torch.from_numpy(objects.iscrowd.astype(bool)),
        difficult=torch.from_numpy(objects.difficult.astype(bool)),
        area=torch.from_numpy(objects.area.astype(np.float32)),
    )
    if objects.masks is not None:
        target["masks"] = torch.from_numpy(np.ascontiguousarray(objects.masks))
    return target
