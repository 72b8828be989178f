"""A reader's images as samples of a task: read, cleaned, transformed, made tensors."""

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from segdet.data.cleaning import clean_objects, clip_boxes, usable
from segdet.data.formats.reader import Reader
from segdet.data.images import read_image
from segdet.data.mosaic import mosaic
from segdet.data.proposer import ImageProposals
from segdet.data.sample import Objects, Sample, Source, Target, Task
from segdet.data.sampler import Draw
from segdet.data.transforms import Recipe
from segdet.util.errors import BadSample, UserError

OnBadSample = Literal["raise", "skip"]
BoxSets = dict[str, np.ndarray]
TransformedSets = dict[str, tuple[np.ndarray, np.ndarray]]

_MOSAIC = 4
"""What parts the random numbers of a mosaic from those of its first image."""


class TaskDataset(Dataset[Sample]):
    """The images of a `Reader`, as samples of one task.

    Crowds, difficult objects and boxes that cannot be used are not trained on; in evaluation every
    sample carries its annotation in original pixels, crowds and difficult objects included.

    Localization reduces an image to its dominant object: of the objects that are neither crowds nor
    difficult, the one with the largest annotated area (the first of equals). An image without such an
    object, or whose dominant one is not at least ``dominance`` times as large as the next, is left out.

    Args:
        reader: Where images and annotations come from.
        task: What is to be learned of them.
        recipe: The transforms.
        training: Whether the samples are for training or for evaluation.
        on_bad_sample: Whether a sample that cannot be read stops everything, or another stands in its place.
        seed: Of the augmentation; a sample's own seed follows from this, the epoch and its index.
        dominance: See above.
        annotated: Whether annotations are read; a sample has no target otherwise, and its annotation may be missing.

    Attributes:
        proposals: Region proposals, which go through the same transforms as the objects and end up in each
            target beside them; None for none. Set by whoever knows which images will be asked for.
        max_proposals: So many of the best are taken.
        mosaic: How often a training sample of detection becomes a `segdet.data.mosaic.mosaic`, 0 to 1.
        mosaic_epochs: In how many of the first epochs; all when None.
    """

    proposals: ImageProposals | None = None
    max_proposals: int = 2000
    mosaic: float = 0.0
    mosaic_epochs: int | None = None

    def __init__(
        self,
        reader: Reader,
        task: Task,
        recipe: Recipe,
        training: bool,
        on_bad_sample: OnBadSample = "raise",
        seed: int = 0,
        dominance: float = 1.0,
        annotated: bool = True,
    ) -> None:
        self.reader = reader
        self.task = task
        self.min_visibility = recipe.min_visibility
        self.plain = recipe.evaluation()
        self.pipeline = recipe.train() if training else self.plain
        self.training = training
        self.on_bad_sample = on_bad_sample
        self.seed = seed
        self.dominance = dominance
        self.annotated = annotated and reader.annotated
        self.indices = np.arange(len(reader))
        if task == "localization" and self.annotated:
            self.indices = self._with_dominant_object()
        if not len(self.indices):
            raise UserError(
                f"{reader.image_path(0).parent if len(reader) else 'the dataset'}: no image is left for {task}; "
                "check the split with `segdet data stats`"
            )

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, draw: int | Draw) -> Sample:
        draw = Draw(draw) if isinstance(draw, int) else draw
        if self.on_bad_sample == "raise":
            try:
                return self._drawn(draw)
            except BadSample as error:
                raise error.or_skip() from error
        notes: list[str] = []
        for step in range(len(self)):
            substitute = Draw((draw.index + step) % len(self), draw.epoch, draw.duplicate)
            try:
                sample = self._drawn(substitute)
            except BadSample as error:
                notes.append(str(error))
                continue
            if notes:
                # What stands in for a bad sample is scored where it has its own place, not here as well.
                duplicate = draw.duplicate or not self.training
                source = replace(sample.source, duplicate=duplicate, notes=(*notes, *sample.source.notes))
                sample = replace(sample, source=source)
            return sample
        raise UserError(f"not one of the {len(self)} samples can be read, the first because of: {notes[0]}")

    def _drawn(self, draw: Draw) -> Sample:
        """The sample, or it and three others as one."""
        late = self.mosaic_epochs is not None and draw.epoch >= self.mosaic_epochs
        if not self.mosaic or not self.training or late:
            return self._sample(draw)
        rng = np.random.default_rng([self.seed, draw.epoch, int(self.indices[draw.index]), _MOSAIC])
        if rng.random() >= self.mosaic:
            return self._sample(draw)
        others = [Draw(int(index), draw.epoch) for index in rng.integers(len(self), size=3)]
        return mosaic([self._sample(each) for each in (draw, *others)], rng, self.min_visibility)

    def _sample(self, draw: Draw) -> Sample:
        index = int(self.indices[draw.index])
        path = self.reader.image_path(index)
        upright = self.reader.upright(index)
        image = read_image(path, self.reader.declared_size(index), upright)
        size = (image.shape[0], image.shape[1])
        seed = _seed_of(self.seed, draw.epoch, index) if self.training else None
        original: Target | None = None
        notes: list[str] = []
        target = Target()
        boxes = self._proposals(index, size)
        if not self.annotated:
            image, sets, _ = self.pipeline(image, boxes)
            target.update(_proposal_target(sets))
        elif self.task == "segmentation":
            mask = self.reader.mask(index)
            if mask.shape != size:
                raise BadSample(
                    self.reader.annotation_paths(index, self.task)[0],
                    f"the mask is {mask.shape[1]}x{mask.shape[0]} but its image {path.name} {size[1]}x{size[0]}",
                )
            image, _, transformed = self.pipeline(image, mask=mask, seed=seed)
            assert transformed is not None
            target = Target(mask=torch.from_numpy(transformed.astype(np.int64)))
            if not self.training:
                original = Target(mask=torch.from_numpy(mask.astype(np.int64)))
        else:
            annotated = self.reader.objects(index)
            objects, faults = clean_objects(annotated, size, self.reader.class_names)
            notes = [f"{path.name}: {fault}" for fault in faults]
            whole = annotated.select(usable(annotated, size))
            if self.task == "localization":
                dominant = dominant_object(objects, self.dominance)
                if dominant is None:
                    raise BadSample(path, "none of its objects can be located", "leave it out of the split")
                objects, whole = objects.select(np.array([dominant])), whole.select(np.array([dominant]))
            elif self.training:
                objects = objects.select(~(objects.iscrowd | objects.difficult))
            image, objects, sets = self._transform(image, objects, boxes, seed)
            target = _box_target(objects)
            target.update(_proposal_target(sets))
            if not self.training:
                original = _box_target(whole)
        source = Source(path, self.reader.image_id(index), size, draw.duplicate, tuple(notes), upright)
        return Sample(_image_tensor(image), target, source, original)

    def _proposals(self, index: int, size: tuple[int, int]) -> BoxSets:
        """The image's proposals as a set of boxes, within the image and none of them empty; no set without any."""
        if self.proposals is None:
            return {}
        boxes = clip_boxes(self.proposals.boxes(index)[: self.max_proposals], size)
        return {"proposals": boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]}

    def _transform(
        self, image: np.ndarray, objects: Objects, boxes: BoxSets, seed: int | None
    ) -> tuple[np.ndarray, Objects, TransformedSets]:
        # As the channels of one mask they go through the same transforms; padding, which is to be ignored, is none.
        stacked = objects.masks.transpose(1, 2, 0) if objects.masks is not None and len(objects) else None
        out, sets, masks = self.pipeline(image, {"objects": objects.boxes, **boxes}, stacked, seed)
        if self.task == "localization" and not len(sets["objects"][1]):
            # A crop without its object teaches nothing: this once the whole image.
            out, sets, masks = self.plain(image, {"objects": objects.boxes, **boxes}, stacked)
        moved, kept = sets["objects"]
        transformed = objects.select(kept)
        transformed.boxes = moved
        if objects.masks is not None:
            height, width = out.shape[:2]
            transformed.masks = np.zeros((0, height, width), np.uint8)
            if masks is not None:
                whole = (masks.reshape(height, width, -1) == 1).transpose(2, 0, 1)
                transformed.masks = whole[kept].astype(np.uint8)
        return out, transformed, sets

    def _with_dominant_object(self) -> np.ndarray:
        def has_one(index: int) -> bool:
            try:
                objects = self.reader.objects(index)
            except BadSample:
                return True  # It speaks up, or is skipped, when its turn comes.
            size = self.reader.declared_size(index) or (1 << 30, 1 << 30)
            return dominant_object(objects.select(usable(objects, size)), self.dominance) is not None

        progress = tqdm(range(len(self.reader)), "finding dominant objects", unit="image", delay=2.0)
        return np.array([index for index in progress if has_one(index)], np.int64)


def dominant_object(objects: Objects, dominance: float = 1.0) -> int | None:
    """The index of the object that an image is about, by the rule of `TaskDataset`; None where there is none."""
    candidates = np.flatnonzero(~(objects.iscrowd | objects.difficult))
    if not len(candidates):
        return None
    areas = objects.area[candidates]
    largest = int(areas.argmax())
    others = np.delete(areas, largest)
    if len(others) and areas[largest] < dominance * others.max():
        return None
    return int(candidates[largest])


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


def _proposal_target(sets: TransformedSets) -> Target:
    if "proposals" not in sets:
        return Target()
    return Target(proposals=torch.from_numpy(sets["proposals"][0]))


def _image_tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def _seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
