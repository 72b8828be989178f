"""Count the images, objects, classes and sizes of a dataset, for tables, JSON and plots."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segdet.data.cleaning import usable
from segdet.data.formats.reader import Reader, for_each_sample
from segdet.data.images import image_size
from segdet.data.sample import IGNORE, Objects, TaskName
from segdet.util.background import has_background
from segdet.util.errors import BadSample
from segdet.util.plots import COLOURS, FAINT, GRID, INK, new_figure, save_figure, style_axes
from segdet.util.tables import plain_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SMALL, _MEDIUM = 32**2, 96**2
"""COCO's limits of small and medium areas, in pixels."""

_MOST_CLASSES = 30
"""Maximum number of classes in a bar chart."""

_FEWEST_ROWS = 8
"""Minimum number of rows in a bar chart. With fewer rows, the bars would be too thick."""


@dataclass
class SplitStats:
    """Numbers of one split.

    Attributes:
        names: Names of the object classes (label 1 first), or of the mask values.
        sizes: int ``[images, 2]``, (height, width) of the readable images.
        images_with: int ``[K]``, images per class.
        per_image: int ``[images]``, objects per image.
        boxes: float32 ``[objects, 4]``, valid boxes as fractions of the image's sides.
        shapes: float32 ``[objects, 2]``, (width, height) of these boxes in pixels.
        labels: int ``[objects]``, labels of the valid objects, 1..K.
        areas: float32 ``[objects]``, annotated areas of the valid objects in pixels.
        pixels: int ``[256]``, pixels per mask value.
        crowds: Number of crowds.
        difficult: Number of difficult objects.
        unusable: Number of invalid boxes.
        empty: Number of images without objects or, for segmentation, without pixels of any class except background.
        bad: One line per sample that cannot be read. Such samples are not counted elsewhere.
    """

    names: list[str]
    sizes: np.ndarray
    images_with: np.ndarray
    per_image: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    shapes: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    areas: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    crowds: int = 0
    difficult: int = 0
    unusable: int = 0
    empty: int = 0
    bad: list[str] = field(default_factory=list)

    @property
    def counts(self) -> np.ndarray:
        """Objects per class: int ``[K]``."""
        return np.bincount(self.labels - 1, minlength=len(self.names))[: len(self.names)]

    def record(self, task: TaskName) -> dict[str, Any]:
        """Return the numbers as plain values, for JSON."""
        record: dict[str, Any] = {
            "images": len(self.sizes),
            "bad": self.bad,
            "empty": self.empty,
            "height": _spread(self.sizes[:, 0]),
            "width": _spread(self.sizes[:, 1]),
            "images_with": dict(zip(self.names, self.images_with.tolist(), strict=True)),
        }
        if task == "segmentation":
            pixels = dict(zip(self.names, self.pixels.tolist(), strict=False))
            return record | {"pixels": pixels, "ignored_pixels": int(self.pixels[IGNORE])}
        return record | {
            "objects": len(self.labels),
            "per_class": dict(zip(self.names, self.counts.tolist(), strict=True)),
            "per_image": _spread(self.per_image),
            "small": int((self.areas < _SMALL).sum()),
            "medium": int(((self.areas >= _SMALL) & (self.areas < _MEDIUM)).sum()),
            "large": int((self.areas >= _MEDIUM).sum()),
            "aspect_ratio": _spread(self.shapes[:, 0] / self.shapes[:, 1]),
            "crowds": self.crowds,
            "difficult": self.difficult,
            "unusable": self.unusable,
        }


@dataclass
class _Counted:
    """Numbers of one sample."""

    size: tuple[int, int] = (0, 0)
    objects: Objects | None = None
    unusable: int = 0
    pixels: np.ndarray | None = None
    bad: str = ""


def measure(
    reader: Reader, task: TaskName, workers: int | None = None, split: str = "the split"
) -> SplitStats:
    """Count the pixels (segmentation) or objects of ``split``, with a progress bar; see `for_each_sample`."""
    found = for_each_sample(reader, lambda own, index: _count(own, task, index), f"counting {split}", workers)
    good = [item for item in found if not item.bad]
    names = list(reader.mask_names if task == "segmentation" else reader.class_names)
    sizes = np.array([item.size for item in good], np.int64).reshape(-1, 2)
    bad = [item.bad for item in found if item.bad]
    stats = SplitStats(names, sizes, np.zeros(len(names), np.int64), bad=bad)
    if not good:
        return stats
    if task == "segmentation":
        pixels = np.stack([item.pixels for item in good if item.pixels is not None])
        stats.pixels = pixels.sum(axis=0)
        stats.images_with = (pixels[:, : len(names)] > 0).sum(axis=0)
        stats.empty = int((pixels[:, int(has_background(names)) : IGNORE].sum(axis=1) == 0).sum())
        return stats
    pairs = [(item.size, item.objects) for item in good if item.objects is not None]
    scales = [np.tile((width, height), (len(objects), 2)) for (height, width), objects in pairs]
    boxes = np.concatenate([objects.boxes for _, objects in pairs])
    stats.boxes = (boxes / np.concatenate(scales)).astype(np.float32)
    stats.shapes = boxes[:, 2:] - boxes[:, :2]
    stats.per_image = np.array([len(objects) for _, objects in pairs], np.int64)
    stats.labels = np.concatenate([objects.labels for _, objects in pairs])
    stats.areas = np.concatenate([objects.area for _, objects in pairs])
    stats.crowds = sum(int(objects.iscrowd.sum()) for _, objects in pairs)
    stats.difficult = sum(int(objects.difficult.sum()) for _, objects in pairs)
    stats.unusable = sum(item.unusable for item in good)
    stats.empty = int((stats.per_image == 0).sum())
    present = [np.unique(objects.labels) - 1 for _, objects in pairs]
    stats.images_with = np.bincount(np.concatenate(present), minlength=len(names))[: len(names)]
    return stats


def _count(reader: Reader, task: TaskName, index: int) -> _Counted:
    try:
        if task == "segmentation":
            mask = reader.mask(index)
            pixels = np.bincount(mask.ravel(), minlength=256)
            return _Counted((mask.shape[0], mask.shape[1]), pixels=pixels)
        size = reader.declared_size(index) or image_size(reader.image_path(index))
        objects = reader.objects(index)
        good = usable(objects, size)
        return _Counted(size, objects.select(good), int((~good).sum()))
    except BadSample as error:
        return _Counted(bad=str(error))


def _spread(values: np.ndarray) -> dict[str, float]:
    """Return minimum, median, mean and maximum; an empty dict if there are no values."""
    if not len(values):
        return {}
    figures = {"min": values.min(), "median": np.median(values), "mean": values.mean(), "max": values.max()}
    return {key: round(float(value), 3) for key, value in figures.items()}


def describe(stats: Mapping[str, SplitStats], task: TaskName) -> str:
    """Return two tables as text: the numbers of each split, and the numbers of each class."""
    records = {split: item.record(task) for split, item in stats.items()}
    rows = [["", *records]]

    def row(name: str, value: Any) -> None:
        rows.append([name, *(value(record) for record in records.values())])

    def spread(key: str, name: str, form: str = ",.0f") -> None:
        def three(record: Mapping[str, Any]) -> str:
            values = [format(record[key][name], form) for name in ("min", "median", "max") if record[key]]
            return " / ".join(values) or "-"

        row(f"{name}  min / median / max", three)

    row("images", lambda r: f"{r['images']:,}")
    if any(record["bad"] for record in records.values()):
        row("  that cannot be read", lambda r: f"{len(r['bad']):,}")
    row("  without objects", lambda r: f"{r['empty']:,}")
    spread("width", "width")
    spread("height", "height")
    if task == "segmentation":
        row(
            "pixels ignored",
            lambda r: _share(r["ignored_pixels"], r["ignored_pixels"] + sum(r["pixels"].values())),
        )
        return plain_table(rows) + "\n\n" + _class_table(stats, records, "pixels")
    spread("per_image", "objects per image")
    row("objects", lambda r: f"{r['objects']:,}")
    row("  small   (area < 32²)", lambda r: _share(r["small"], r["objects"]))
    row("  medium  (area < 96²)", lambda r: _share(r["medium"], r["objects"]))
    row("  large", lambda r: _share(r["large"], r["objects"]))
    row("  crowds", lambda r: f"{r['crowds']:,}")
    row("  difficult", lambda r: f"{r['difficult']:,}")
    row("  unusable boxes, not counted", lambda r: f"{r['unusable']:,}")
    spread("aspect_ratio", "box aspect ratio", ".2f")
    return plain_table(rows) + "\n\n" + _class_table(stats, records, "per_class")


def _all_names(stats: Mapping[str, SplitStats]) -> list[str]:
    return list(dict.fromkeys(name for item in stats.values() for name in item.names))


def _class_table(stats: Mapping[str, SplitStats], records: Mapping[str, Mapping[str, Any]], key: str) -> str:
    """Return a table with one row per class: objects or pixels, share and images per split, and a bar."""
    names = _all_names(stats)
    what = "pixels" if key == "pixels" else "objects"
    heads = [head for split in stats for head in (f"{split}: {what}", "share", "images")]
    rows = [["class", *heads, ""]]
    totals = {split: sum(record[key].values()) for split, record in records.items()}
    everything = sum(totals.values())
    shares = {name: sum(r[key].get(name, 0) for r in records.values()) / max(1, everything) for name in names}
    longest = max(shares.values(), default=0) or 1
    for name in names:
        cells = [name]
        for split, record in records.items():
            count = record[key].get(name, 0)
            share = f"{100 * count / max(1, totals[split]):.1f}%"
            cells += [f"{count:,}", share, f"{record['images_with'].get(name, 0):,}"]
        rows.append([*cells, _bar(shares[name] / longest).ljust(20)])
    return plain_table(rows)


def _bar(fraction: float) -> str:
    """Return a bar of up to 20 characters, in steps of 1/8. If ``fraction`` is above 0, it has at least one step."""
    eighths = max(round(fraction * 160), int(fraction > 0))
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _share(count: int, total: int) -> str:
    return f"{count:,} ({100 * count / max(1, total):.0f}%)"


def plot(stats: Mapping[str, SplitStats], task: TaskName, path: Path, title: str = "") -> None:
    """Plot class counts, image and object sizes, aspect ratios and box centres to the file ``path``."""
    names = _all_names(stats)
    height = 3.2 + 0.2 * min(len(names), _MOST_CLASSES)
    figure = new_figure(13, max(7.5, height), title)
    grid = figure.add_gridspec(2, 3, width_ratios=(1.25, 1, 1))
    _plot_classes(figure.add_subplot(grid[:, 0]), stats, names, task)
    _plot_images(figure.add_subplot(grid[0, 1]), stats)
    if task == "segmentation":
        _plot_ignored(figure.add_subplot(grid[1, 1]), stats)
        _plot_presence(figure.add_subplot(grid[:, 2]), stats, names)
    else:
        _plot_sizes(figure.add_subplot(grid[0, 2]), stats)
        _plot_aspects(figure.add_subplot(grid[1, 1]), stats)
        _plot_centres(figure.add_subplot(grid[1, 2]), stats)
    save_figure(figure, path)


def _plot_classes(
    axes: "Axes", stats: Mapping[str, SplitStats], names: Sequence[str], task: TaskName
) -> None:
    segmentation = task == "segmentation"
    values = np.zeros((len(stats), len(names)))
    for row, item in zip(values, stats.values(), strict=True):
        counts = item.pixels[: len(item.names)] if segmentation else item.counts
        row[[names.index(name) for name in item.names]] = counts
    total = max(1.0, values.sum())
    order = np.argsort(-values.sum(axis=0), kind="stable")[:_MOST_CLASSES]
    left = np.zeros(len(order))
    for row, split, colour in zip(values, stats, COLOURS * len(stats), strict=False):
        width = 100 * row[order] / total if segmentation else row[order]
        axes.barh(range(len(order)), width, left=left, color=colour, height=0.72, label=split)
        left += width
    for place, index in enumerate(order):
        count = values[:, index].sum()
        text = f" {100 * count / total:.1f}%" if segmentation else f" {count:,.0f}"
        axes.text(left[place], place, text, va="center", fontsize=8, color=FAINT)
    axes.margins(x=0.14)
    more = f" (the {len(order)} most frequent of {len(names)} classes)" if len(order) < len(names) else ""
    title = "Pixels per class, %" if segmentation else "Objects per class"
    _style_rows(axes, title + more, [names[index] for index in order])
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="lower right")


def _plot_images(axes: "Axes", stats: Mapping[str, SplitStats]) -> None:
    for item, colour in zip(stats.values(), COLOURS * len(stats), strict=False):
        if len(item.sizes):
            sizes, counts = np.unique(item.sizes, axis=0, return_counts=True)
            areas = 20 + 220 * counts / len(item.sizes)
            axes.scatter(sizes[:, 1], sizes[:, 0], s=areas, color=colour, alpha=0.45, linewidth=0)
    axes.set(xlabel="width, pixels", ylabel="height, pixels")
    axes.set_xlim(0, axes.get_xlim()[1] * 1.1)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.1)
    axes.grid(color=GRID, linewidth=0.8)
    style_axes(axes, "Image sizes")


def _plot_presence(axes: "Axes", stats: Mapping[str, SplitStats], names: Sequence[str]) -> None:
    images = sum(len(item.sizes) for item in stats.values())
    counts = np.zeros(len(names))
    for item in stats.values():
        counts[[names.index(name) for name in item.names]] += item.images_with
    order = np.argsort(-counts, kind="stable")[:_MOST_CLASSES]
    axes.barh(range(len(order)), 100 * counts[order] / max(1, images), color="#7a6ff0", height=0.72)
    axes.set_xlim(0, 100)
    _style_rows(axes, "Images with the class, %", [names[index] for index in order])


def _style_rows(axes: "Axes", title: str, names: Sequence[str]) -> None:
    """Style a bar chart with one row per class."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(max(len(names), _FEWEST_ROWS) - 0.5, -0.5)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    style_axes(axes, title)
    axes.tick_params(axis="y", labelsize=9, length=0, labelcolor=INK)


def _plot_ignored(axes: "Axes", stats: Mapping[str, SplitStats]) -> None:
    shares = [100 * item.pixels[255] / max(1, item.pixels.sum()) for item in stats.values()]
    axes.bar(range(len(stats)), shares, color=list(COLOURS[: len(stats)]), width=0.5)
    axes.set_xticks(range(len(stats)), list(stats))
    axes.set_ylim(0, 1.05 * max(shares) or 1.0)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    style_axes(axes, "Pixels ignored, %")


def _histogram(
    axes: "Axes", stats: Mapping[str, SplitStats], values: Sequence[np.ndarray], bins: np.ndarray
) -> None:
    colours = (list(COLOURS) * len(stats))[: len(stats)]
    axes.hist(list(values), bins=list(bins), stacked=True, color=colours, rwidth=0.92)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_ylabel("objects")


def _plot_sizes(axes: "Axes", stats: Mapping[str, SplitStats]) -> None:
    sides = [np.sqrt(np.maximum(item.areas, 1)) for item in stats.values()]
    largest = max((side.max() for side in sides if len(side)), default=128.0)
    axes.set_xscale("log", base=2)
    _histogram(axes, stats, sides, np.geomspace(2, max(128.0, largest * 1.02), 30))
    for limit in (32, 96):
        axes.axvline(limit, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    top = axes.get_ylim()[1] * 1.12
    axes.set_ylim(0, top)
    for x, name, side in ((31, "small", "right"), (55.4, "medium", "center"), (99, "large", "left")):
        axes.text(x, top * 0.985, name, ha=side, va="top", fontsize=8, color=INK)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("square root of the area, pixels")
    style_axes(axes, "Object sizes")


def _plot_aspects(axes: "Axes", stats: Mapping[str, SplitStats]) -> None:
    ratios = [item.shapes[:, 0] / item.shapes[:, 1] for item in stats.values()]
    axes.set_xscale("log", base=2)
    _histogram(axes, stats, [np.clip(ratio, 1 / 8, 8) for ratio in ratios], np.geomspace(1 / 8, 8, 31))
    axes.set_xticks([1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8], ["1:8", "1:4", "1:2", "1:1", "2:1", "4:1", "8:1"])
    axes.minorticks_off()
    axes.set_xlabel("width : height")
    style_axes(axes, "Aspect ratios of boxes")


def _plot_centres(axes: "Axes", stats: Mapping[str, SplitStats]) -> None:
    boxes = np.concatenate([item.boxes for item in stats.values()])
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    heat, _, _ = np.histogram2d(y, x, bins=24, range=((0, 1), (0, 1)))
    shape = np.concatenate([item.sizes for item in stats.values()])
    aspect = float(np.median(shape[:, 0] / shape[:, 1])) if len(shape) else 1.0
    axes.imshow(heat, cmap="magma", extent=(0, 1, 1, 0), aspect=aspect, interpolation="bilinear")
    style_axes(axes, "Centres of boxes")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
