"""Draw annotated samples of a dataset on one sheet."""

from collections.abc import Mapping, Sequence

import numpy as np
from tqdm import tqdm

from segdet.data.cleaning import clean_objects
from segdet.data.dataset import dominant_object
from segdet.data.formats.detect import Dataset
from segdet.data.formats.reader import Reader
from segdet.data.sample import TaskName
from segdet.util.colours import Colour, class_colour
from segdet.util.drawing import draw_boxes, draw_mask, draw_sheet, mask_legend
from segdet.util.errors import BadSample, UserError


def draw_samples(
    dataset: Dataset,
    count: int = 12,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    cell: int = 400,
    columns: int | None = None,
) -> tuple[np.ndarray, list[BadSample]]:
    """Draw samples with their annotations on one sheet, with a progress bar.

    Args:
        dataset: The dataset.
        count: Number of samples, drawn at random from all splits. Samples that cannot be read are replaced by others.
        seed: Seed of the random choice.
        indices: Indices of samples of the first split, to draw these instead of random samples.
        cell: Width of a picture in pixels.
        columns: Pictures in a row; see `draw_sheet`.

    Returns:
        The sheet, uint8 ``[H, W, 3]`` RGB, and the errors of the samples that were replaced.

    Raises:
        UserError: If an index does not exist, or no sample can be read.
    """
    readers = {split: dataset.open(split) for split in dataset.splits}
    candidates = _candidates(readers, indices, seed)
    number = min(len(candidates), count) if indices is None else len(candidates)
    drawn: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}
    faults: list[BadSample] = []
    with tqdm(total=number, desc="drawing", unit=" images", delay=2.0) as bar:
        for split, index in candidates:
            try:
                drawn[split, index] = draw_sample(readers[split], dataset.task, index, cell)
            except BadSample as error:
                if indices is not None:
                    raise
                faults.append(error)
                continue
            bar.update()
            if len(drawn) == number:
                break
    if not drawn:
        raise faults[0]
    chosen = list(drawn)
    if indices is None:
        chosen.sort(key=lambda sample: (list(readers).index(sample[0]), sample[1]))
    titles = [f"{split} {index}: {readers[split].image_path(index).name}" for split, index in chosen]
    present = np.unique(np.concatenate([labels for _, labels in drawn.values()]))
    legend = _legend(next(iter(readers.values())), dataset.task, present)
    total = sum(len(reader) for reader in readers.values())
    heading = f"{dataset.root.name}: {len(chosen)} of {total:,} images ({dataset.task})"
    pictures = [drawn[sample][0] for sample in chosen]
    return draw_sheet(pictures, titles, columns, cell, heading=heading, legend=legend), faults


def draw_sample(
    reader: Reader, task: TaskName, index: int, longest: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw image ``index`` of a reader with its annotation; return the picture and the mask values or labels in it.

    Raises:
        BadSample: If the image or its annotation cannot be read.
    """
    path = reader.image_path(index)
    image = reader.image(index)
    if task == "segmentation":
        mask = reader.mask(index)
        if mask.shape != image.shape[:2]:
            file = next(iter(reader.annotation_paths(index, task)), path)
            size, of_image = (f"{shape[1]}x{shape[0]}" for shape in (mask.shape, image.shape))
            raise BadSample(file, f"the mask is {size} but its image {path.name} is {of_image}")
        picture = draw_mask(image, mask, reader.mask_names, longest=longest, legend=False)
        return picture, np.unique(mask)
    objects, _ = clean_objects(reader.objects(index), (image.shape[0], image.shape[1]))
    if task == "localization":
        dominant = dominant_object(objects)
        objects = objects.select(np.array([] if dominant is None else [dominant], np.int64))
    boxes, labels, crowd = objects.boxes, objects.labels, objects.iscrowd
    return draw_boxes(image, boxes, labels, reader.class_names, crowd=crowd, longest=longest), labels


def _candidates(
    readers: Mapping[str, Reader], indices: Sequence[int] | None, seed: int
) -> list[tuple[str, int]]:
    """Return the requested samples of the first split or, without ``indices``, all samples in random order."""
    if indices is not None:
        split, reader = next(iter(readers.items()))
        for index in indices:
            if not 0 <= index < len(reader):
                raise UserError(f"--index {index}: the split {split} has the samples 0 to {len(reader) - 1}")
        return [(split, index) for index in indices]
    everything = [(split, index) for split, reader in readers.items() for index in range(len(reader))]
    if not everything:
        raise UserError(f"the split {', '.join(readers)} has no images; choose another --split")
    return [everything[place] for place in np.random.default_rng(seed).permutation(len(everything))]


def _legend(reader: Reader, task: TaskName, present: np.ndarray) -> list[tuple[str, Colour | None]]:
    """Return the names and colours of the classes on a sheet. Ignored pixels have the colour None."""
    if task != "segmentation":
        return [(reader.class_names[label - 1], class_colour(label)) for label in present.tolist()]
    names = [*reader.mask_names, "ignored"]
    legend = mask_legend(present, reader.mask_names)
    return sorted(legend, key=lambda entry: names.index(entry[0]) if entry[0] in names else -1)
