"""``segdet data stats``: what a dataset holds, in tables, as JSON and in one picture."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segdet.data.cleaning import usable
from segdet.util.errors import BadSample, UserError
from segdet.util.tables import plain_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from segdet.data.formats.reader import Reader
    from segdet.data.sample import Objects, Task

_SMALL, _MEDIUM = 32**2, 96**2
_INK, _GRID = "#22262e", "#e4e7ec"
_SHOWN, _SLOTS = 30, 8


@dataclass
class SplitStats:
    """What one split holds.

    Attributes:
        names: The classes: of objects (label 1 first), or of mask values.
        sizes: int ``[images, 2]``, (height, width) of the images that can be read.
        per_image: int ``[images]``, the number of objects of each.
        boxes: float32 ``[objects, 4]``, usable boxes, as fractions of their image's sides.
        shapes: float32 ``[objects, 2]``, (width, height) of those boxes in pixels.
        labels: int ``[objects]``, 1..K, of those boxes.
        areas: float32 ``[objects]``, their annotated areas.
        images_with: int ``[K]``, the images that hold each class.
        pixels: int ``[256]``, the pixels of each mask value.
        crowds: Objects that are crowds.
        difficult: Objects flagged as difficult.
        unusable: Objects whose box cannot be used.
        empty: Images without any object, or without a pixel of a class besides background.
        bad: The lines of the samples that cannot be read; they are not counted elsewhere.
    """

    names: list[str]
    sizes: np.ndarray
    per_image: np.ndarray
    boxes: np.ndarray
    shapes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    images_with: np.ndarray
    pixels: np.ndarray
    crowds: int = 0
    difficult: int = 0
    unusable: int = 0
    empty: int = 0
    bad: list[str] = field(default_factory=list)

    @property
    def counts(self) -> np.ndarray:
        """The number of objects of each class: int ``[K]``."""
        return np.bincount(self.labels - 1, minlength=len(self.names))[: len(self.names)]

    def record(self, task: "Task") -> dict[str, Any]:
        """The figures as plain numbers, for JSON."""
        record: dict[str, Any] = {
            "images": len(self.sizes),
            "bad": self.bad,
            "empty": self.empty,
            "height": _spread(self.sizes[:, 0]),
            "width": _spread(self.sizes[:, 1]),
            "images_with": dict(zip(self.names, self.images_with.tolist(), strict=True)),
        }
        if task == "segmentation":
            pixels = self.pixels[: len(self.names)].tolist()
            return record | {
                "pixels": dict(zip(self.names, pixels, strict=True)),
                "ignored_pixels": int(self.pixels[255]),
            }
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
    size: tuple[int, int] = (0, 0)
    objects: "Objects | None" = None
    unusable: int = 0
    pixels: np.ndarray | None = None
    bad: str = ""


def measure(
    reader: "Reader", task: "Task", workers: int | None = None, split: str = "the split"
) -> SplitStats:
    """Count what a split holds, with a progress bar.

    Args:
        reader: The split.
        task: segmentation counts pixels, the others count objects.
        workers: Threads; by default as many as there are cores, at most 16.
        split: What the progress bar calls it.
    """
    from segdet.data.formats.reader import for_each_sample

    found = for_each_sample(reader, lambda own, index: _count(own, task, index), f"counting {split}", workers)
    good = [item for item in found if not item.bad]
    names = list(reader.mask_names if task == "segmentation" else reader.class_names)
    stats = SplitStats(
        names=names,
        sizes=np.array([item.size for item in good], np.int64).reshape(-1, 2),
        per_image=np.array([len(item.objects) for item in good if item.objects is not None], np.int64),
        boxes=np.zeros((0, 4), np.float32),
        shapes=np.zeros((0, 2), np.float32),
        labels=np.zeros(0, np.int64),
        areas=np.zeros(0, np.float32),
        images_with=np.zeros(len(names), np.int64),
        pixels=np.zeros(256, np.int64),
        bad=[item.bad for item in found if item.bad],
    )
    if not good:
        return stats
    if task == "segmentation":
        from segdet.data.inspect.show import has_background

        pixels = np.stack([item.pixels for item in good if item.pixels is not None])
        stats.pixels = pixels.sum(axis=0)
        stats.images_with = (pixels[:, : len(names)] > 0).sum(axis=0)
        stats.empty = int((pixels[:, int(has_background(names)) : 255].sum(axis=1) == 0).sum())
        return stats
    pairs = [(item.size, item.objects) for item in good if item.objects is not None]
    scales = [np.tile((width, height), (len(objects), 2)) for (height, width), objects in pairs]
    boxes = np.concatenate([objects.boxes for _, objects in pairs])
    stats.boxes = (boxes / np.concatenate(scales)).astype(np.float32)
    stats.shapes = boxes[:, 2:] - boxes[:, :2]
    stats.labels = np.concatenate([objects.labels for _, objects in pairs])
    stats.areas = np.concatenate([objects.area for _, objects in pairs])
    stats.crowds = sum(int(objects.iscrowd.sum()) for _, objects in pairs)
    stats.difficult = sum(int(objects.difficult.sum()) for _, objects in pairs)
    stats.unusable = sum(item.unusable for item in good)
    stats.empty = int((stats.per_image == 0).sum())
    held = [np.unique(objects.labels) - 1 for _, objects in pairs]
    stats.images_with = np.bincount(np.concatenate(held), minlength=len(names))[: len(names)]
    return stats


def _count(reader: "Reader", task: "Task", index: int) -> _Counted:
    from segdet.data.images import image_size

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
    """Smallest, median, mean and largest; nothing of nothing."""
    if not len(values):
        return {}
    figures = {"min": values.min(), "median": np.median(values), "mean": values.mean(), "max": values.max()}
    return {key: round(float(value), 3) for key, value in figures.items()}


def describe(stats: Mapping[str, SplitStats], task: "Task") -> str:
    """The tables of ``segdet data stats``: the figures of each split, then its classes."""
    records = {split: item.record(task) for split, item in stats.items()}
    rows = [["", *records]]

    def row(name: str, value: Any) -> None:
        rows.append([name, *(value(record) for record in records.values())])

    def spread(key: str, name: str, form: str = ",.0f") -> None:
        row(f"{name}  min / median / max", lambda r: _three(r[key], form))

    row("images", lambda r: f"{r['images']:,}")
    if any(record["bad"] for record in records.values()):
        row("  that cannot be read", lambda r: f"{len(r['bad']):,}")
    row("  without objects", lambda r: f"{r['empty']:,}")
    spread("width", "width")
    spread("height", "height")
    if task == "segmentation":
        row("pixels ignored", lambda r: _share(r["ignored_pixels"], r["ignored_pixels"] + _sum(r["pixels"])))
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


def _class_table(stats: Mapping[str, SplitStats], records: Mapping[str, Mapping[str, Any]], key: str) -> str:
    """A line for each class: its share of objects or pixels in each split, the images with it, a bar."""
    names = list(dict.fromkeys(name for item in stats.values() for name in item.names))
    what = "pixels" if key == "pixels" else "objects"
    heads = [head for split in stats for head in (f"{split}: {what}", "share", "images")]
    rows = [["class", *heads, ""]]
    totals = {split: _sum(record[key]) for split, record in records.items()}
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


def _bar(fraction: float, width: int = 20) -> str:
    eighths = round(fraction * width * 8)
    if fraction > 0:
        eighths = max(1, eighths)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _sum(counts: Mapping[str, int]) -> int:
    return sum(counts.values())


def _three(spread: Mapping[str, float], form: str) -> str:
    if not spread:
        return "-"
    return " / ".join(format(spread[key], form) for key in ("min", "median", "max"))


def _share(count: int, total: int) -> str:
    return f"{count:,} ({100 * count / max(1, total):.0f}%)"


def plot(stats: Mapping[str, SplitStats], task: "Task", path: Path, title: str = "") -> None:
    """Draw class counts, sizes, aspect ratios and where objects lie, as one PNG at ``path``."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    names = list(dict.fromkeys(name for item in stats.values() for name in item.names))
    height = 3.2 + 0.2 * min(len(names), _SHOWN)
    layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15, wspace=0.03, hspace=0.03)
    figure = Figure(figsize=(13, max(7.5, height)), dpi=110, facecolor="white", layout=layout)
    figure.suptitle(title, color=_INK, fontsize=14, x=0.012, ha="left")
    grid = figure.add_gridspec(2, 3, width_ratios=(1.25, 1, 1))
    first = figure.add_subplot(grid[:, 0])
    _plot_classes(first, stats, names, task)
    _plot_images(figure.add_subplot(grid[0, 1]), stats)
    if task == "segmentation":
        _plot_ignored(figure.add_subplot(grid[1, 1]), stats)
        _plot_presence(figure.add_subplot(grid[:, 2]), stats, names)
    else:
        _plot_sizes(figure.add_subplot(grid[0, 2]), stats)
        _plot_aspects(figure.add_subplot(grid[1, 1]), stats)
        _plot_centres(figure.add_subplot(grid[1, 2]), stats)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


_SPLIT_COLOURS = ("#3b7dd8", "#f2a33a", "#4fb286", "#c65b8f", "#7a6ff0", "#8a94a6")


def _tidy(axes: "Axes", title: str) -> None:
    axes.set_title(title, loc="left", color=_INK, fontsize=10.5, pad=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b8bfca")
    axes.tick_params(colors="#5b6472", labelsize=8, length=3)
    axes.xaxis.label.set(color="#5b6472", fontsize=8.5)
    axes.yaxis.label.set(color="#5b6472", fontsize=8.5)
    axes.set_axisbelow(True)


def _plot_classes(axes: "Axes", stats: Mapping[str, SplitStats], names: Sequence[str], task: "Task") -> None:
    segmentation = task == "segmentation"
    values = np.zeros((len(stats), len(names)))
    for row, item in zip(values, stats.values(), strict=True):
        counts = item.pixels[: len(item.names)] if segmentation else item.counts
        row[[names.index(name) for name in item.names]] = counts
    total = max(1.0, values.sum())
    order = np.argsort(-values.sum(axis=0), kind="stable")[:_SHOWN]
    left = np.zeros(len(order))
    for row, split, colour in zip(values, stats, _SPLIT_COLOURS * len(stats), strict=False):
        width = 100 * row[order] / total if segmentation else row[order]
        axes.barh(range(len(order)), width, left=left, color=colour, height=0.72, label=split)
        left += width
    for place, index in enumerate(order):
        count = values[:, index].sum()
        text = f" {100 * count / total:.1f}%" if segmentation else f" {count:,.0f}"
        axes.text(left[place], place, text, va="center", fontsize=8, color="#5b6472")
    axes.set_yticks(range(len(order)), [names[index] for index in order])
    axes.margins(x=0.14)
    axes.set_ylim(max(len(order), _SLOTS) - 0.5, -0.5)
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    more = f" (the {_SHOWN} most frequent of {len(names)} classes)" if len(names) > _SHOWN else ""
    _tidy(axes, ("Pixels per class, %" if segmentation else "Objects per class") + more)
    axes.tick_params(axis="y", labelsize=9, length=0, labelcolor=_INK)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=_INK, loc="lower right")


def _plot_images(axes: "Axes", stats: Mapping[str, SplitStats]) -> None:
    for item, colour in zip(stats.values(), _SPLIT_COLOURS * len(stats), strict=False):
        if len(item.sizes):
            sizes, counts = np.unique(item.sizes, axis=0, return_counts=True)
            areas = 20 + 220 * counts / len(item.sizes)
            axes.scatter(sizes[:, 1], sizes[:, 0], s=areas, color=colour, alpha=0.45, linewidth=0)
    axes.set(xlabel="width, pixels", ylabel="height, pixels")
    axes.set_xlim(0, axes.get_xlim()[1] * 1.1)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.1)
    axes.grid(color=_GRID, linewidth=0.8)
    _tidy(axes, "Image sizes")


def _plot_presence(axes: "Axes", stats: Mapping[str, SplitStats], names: Sequence[str]) -> None:
    images = sum(len(item.sizes) for item in stats.values())
    held = np.zeros(len(names))
    for item in stats.values():
        held[[names.index(name) for name in item.names]] += item.images_with
    order = np.argsort(-held, kind="stable")[:_SHOWN]
    axes.barh(range(len(order)), 100 * held[order] / max(1, images), color="#7a6ff0", height=0.72)
    axes.set_yticks(range(len(order)), [names[index] for index in order])
    axes.set_xlim(0, 100)
    axes.set_ylim(max(len(order), _SLOTS) - 0.5, -0.5)
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    _tidy(axes, "Images that hold the class, %")
    axes.tick_params(axis="y", labelsize=9, length=0, labelcolor=_INK)


def _plot_ignored(axes: "Axes", stats: Mapping[str, SplitStats]) -> None:
    shares = [100 * item.pixels[255] / max(1, item.pixels.sum()) for item in stats.values()]
    axes.bar(range(len(stats)), shares, color=list(_SPLIT_COLOURS[: len(stats)]), width=0.5)
    axes.set_xticks(range(len(stats)), list(stats))
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    _tidy(axes, "Pixels ignored, %")


def _histogram(
    axes: "Axes", stats: Mapping[str, SplitStats], values: Sequence[np.ndarray], bins: np.ndarray
) -> None:
    colours = (list(_SPLIT_COLOURS) * len(stats))[: len(stats)]
    axes.hist(list(values), bins=list(bins), stacked=True, color=colours, rwidth=0.92)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_ylabel("objects")


def _plot_sizes(axes: "Axes", stats: Mapping[str, SplitStats]) -> None:
    sides = [np.sqrt(np.maximum(item.areas, 1)) for item in stats.values()]
    largest = max((side.max() for side in sides if len(side)), default=128.0)
    axes.set_xscale("log", base=2)
    _histogram(axes, stats, sides, np.geomspace(2, max(128.0, largest * 1.02), 30))
    for limit in (32, 96):
        axes.axvline(limit, color=_INK, linewidth=0.9, linestyle=(0, (4, 3)))
    top = axes.get_ylim()[1] * 1.12
    axes.set_ylim(0, top)
    for x, name, side in ((31, "small", "right"), (55.4, "medium", "center"), (99, "large", "left")):
        axes.text(x, top * 0.985, name, ha=side, va="top", fontsize=8, color=_INK)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("square root of the area, pixels")
    _tidy(axes, "Object sizes")


def _plot_aspects(axes: "Axes", stats: Mapping[str, SplitStats]) -> None:
    ratios = [item.shapes[:, 0] / item.shapes[:, 1] for item in stats.values()]
    axes.set_xscale("log", base=2)
    _histogram(axes, stats, [np.clip(ratio, 1 / 8, 8) for ratio in ratios], np.geomspace(1 / 8, 8, 31))
    axes.set_xticks([1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8], ["1:8", "1:4", "1:2", "1:1", "2:1", "4:1", "8:1"])
    axes.minorticks_off()
    axes.set_xlabel("width : height")
    _tidy(axes, "Aspect ratios of boxes")


def _plot_centres(axes: "Axes", stats: Mapping[str, SplitStats]) -> None:
    boxes = np.concatenate([item.boxes for item in stats.values()])
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    heat, _, _ = np.histogram2d(y, x, bins=24, range=((0, 1), (0, 1)))
    shape = np.concatenate([item.sizes for item in stats.values()])
    aspect = float(np.median(shape[:, 0] / shape[:, 1])) if len(shape) else 1.0
    axes.imshow(heat, cmap="magma", extent=(0, 1, 1, 0), aspect=aspect, interpolation="bilinear")
    _tidy(axes, "Where the centres of boxes lie")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def main(argv: Sequence[str] | None = None) -> int:
    """``segdet data stats ROOT``: returns the exit status."""
    from segdet.data.formats.detect import CommandParser, run

    parser = CommandParser("segdet data stats", "Count what a dataset holds.")
    parser.add_dataset_arguments()
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw them")
    parser.add_argument("--workers", type=int, metavar="N", help="threads; one per core when not given")
    return run(parser, argv, _main)


def _main(arguments: argparse.Namespace) -> int:
    from segdet.data.formats.detect import check_output, dataset_from

    if arguments.workers is not None and arguments.workers < 1:
        raise UserError(f"--workers {arguments.workers}: must be 1 or more")
    check_output("--json", arguments.json)
    check_output("--plot", arguments.plot, (".png", ".jpg", ".jpeg", ".pdf", ".svg"))
    dataset = dataset_from(arguments)
    task = dataset.task
    readers = {split: dataset.open(split) for split in dataset.splits}
    stats = {split: measure(reader, task, arguments.workers, split) for split, reader in readers.items()}
    title = f"{dataset.root} ({dataset.format}, {task})"
    sys.stdout.write(f"{title}\n\n{describe(stats, task)}\n")
    bad = [line for item in stats.values() for line in item.bad]
    if bad:
        sys.stdout.write(f"\n{len(bad):,} cannot be read, the first is {bad[0]}; see segdet data check\n")
    if arguments.json:
        record = {split: item.record(task) for split, item in stats.items()}
        text = {"root": str(dataset.root), "format": dataset.format, "task": task, "splits": record}
        arguments.json.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
    if arguments.plot:
        plot(stats, task, arguments.plot, title)
        sys.stdout.write(f"\n{arguments.plot}\n")
    return 0
