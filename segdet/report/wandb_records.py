"""The content of the report on Weights & Biases: a record of each run, and one with the tables of the page.

Online the records are uploaded. Offline they are files, which ``wandb sync`` uploads. The id of a record follows from
its run, so that a later report replaces the records of an earlier one.
"""

import hashlib
import io
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segdet.report.class_scores import class_scores
from segdet.report.confusion import confusion_of
from segdet.report.ladder.rows import COLUMNS, Ladder, ladders_of, settings_of_model
from segdet.report.ladder.rungs import rung_of
from segdet.report.page_data import PageData
from segdet.report.run_data import SCORES, RunData
from segdet.report.wandb_gallery import WandbGallery, wandb_galleries
from segdet.runs.record import to_json
from segdet.util.errors import UserError

STEP = "trainer/global_step"
"""The x-axis of curves, as in the records that Lightning's logger writes."""

IMAGES = "test/images"
"""The key of the gallery images in the record of a run."""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: The key in the record.
        columns: The headings.
        rows: The values.
    """

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


def write_records(
    page: PageData,
    html: str,
    folder: Path,
    project: str,
    mode: str,
    progress: Callable[[str], object] = lambda name: None,
) -> list[str]:
    """Record the runs and tables of a page, without waiting for input.

    Args:
        page: The page.
        html: The page as HTML, which is recorded too.
        folder: The folder that will contain ``wandb/``.
        project: The project on Weights & Biases.
        mode: ``online`` or ``offline``.
        progress: A function that is called with the name of each finished record.

    Returns:
        The names of the tables.

    Raises:
        UserError: If Weights & Biases refuses or does not respond.
    """
    galleries = wandb_galleries(page)
    pictures = {name: images for gallery in galleries for name, images in gallery.pictures.items()}
    for run in page.runs:
        _write_run(run, pictures.get(run.name, []), folder, project, mode)
        progress(run.name)
    tables = tables_of(page, galleries)
    _write_tables(page, tables, html, folder, project, mode)
    progress("tables")
    return [table.name for table in tables]


def _write_run(run: RunData, pictures: Sequence[Any], folder: Path, project: str, mode: str) -> None:
    record = run.record
    settings = settings_of_model(run)
    labels = rung_of(record.task, record.model, settings, record.description).labels
    config = (
        labels
        | {"seed": record.seed, "run": run.row}
        | {k: v for k, v in run.config.items() if k not in labels}
    )
    identifier = _identifier("run", run.name, record.started)
    with _record(folder, project, mode, identifier, run.name, "run", group=run.row, config=config,
                 tags=[record.task, record.model]) as out:  # fmt: skip
        out.define_metric("*", step_metric=STEP)
        for step, values in _history(run):
            out.log(values | {STEP: step})
        if pictures:
            out.log({IMAGES: list(pictures), STEP: max(record.steps - 1, 0)})
        costs = {
            f"cost/{name}": value
            for name, value in asdict(record.cost).items()
            if isinstance(value, int | float)
        }
        known = {name: value for name, value in record.metrics.items() if value is not None}
        out.summary.update(
            known | costs | {"status": run.state, "epochs": record.epochs, "steps": record.steps}
        )


def _history(run: RunData) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield each step with its logged values, in order."""
    rows: dict[int, dict[str, float]] = {}
    for name, curve in run.curves.items():
        for step, value in zip(curve.steps.tolist(), curve.values.tolist(), strict=True):
            rows.setdefault(step, {})[name] = value
    yield from sorted(rows.items())


def _write_tables(
    page: PageData, tables: Sequence[Table], html: str, folder: Path, project: str, mode: str
) -> None:
    import wandb

    identifier = _identifier("report", page.title)
    with _record(folder, project, mode, identifier, f"report {page.title}"[:128], "report", config={}) as out:
        out.log(
            {
                table.name: wandb.Table(list(table.columns), [list(row) for row in table.rows])
                for table in tables
            }
        )
        out.log({"report": wandb.Html(io.StringIO(html), inject=False), "pictures": _pictures(page)})


def _pictures(page: PageData) -> list[Any]:
    """Return the picture of each rung with its idea."""
    import wandb

    rungs = {
        row.rung.name: row.rung for ladder in ladders_of(page.groups, page.split_of) for row in ladder.rows
    }
    return [
        wandb.Image(picture_pixels(r.svg), caption=f"{r.name}: {r.idea}" if r.idea else r.name)
        for r in rungs.values()
    ]


@contextmanager
def _record(
    folder: Path, project: str, mode: str, identifier: str, name: str, kind: str, **values: Any
) -> Iterator[Any]:
    """Open a record, and remove the files of an earlier one with the same id.

    Raises:
        UserError: If Weights & Biases refuses or does not respond.
    """
    import wandb

    for earlier in (folder / "wandb").glob(f"offline-run-*-{identifier}"):
        shutil.rmtree(earlier)
    for variable, subfolder in (("WANDB_CACHE_DIR", "cache"), ("WANDB_DATA_DIR", "data")):
        os.environ.setdefault(variable, str((folder / "wandb" / subfolder).resolve()))
    settings = wandb.Settings(
        silent=True, console="off", disable_git=True, save_code=False, x_disable_stats=True, x_disable_meta=True,
        init_timeout=30,
    )  # fmt: skip
    values |= {"project": project, "dir": str(folder), "mode": mode, "id": identifier, "name": name}
    try:
        with wandb.init(job_type=kind, settings=settings, **values) as out:
            yield out
    except wandb.errors.Error as error:
        raise UserError(
            f"Weights & Biases does not accept the record of {name} ({' '.join(str(error).split())}); "
            "set WANDB_MODE=offline to record in files"
        ) from error


def _identifier(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:12]


def tables_of(page: PageData, galleries: Sequence[WandbGallery] = ()) -> list[Table]:
    """Return the tables of a page and of its galleries. Tables without rows are left out."""
    tables = [_ladder_table(ladder) for ladder in ladders_of(page.groups, page.split_of)]
    tables += [_runs_table(page, task) for task in page.tasks]
    tables += [_class_table(page), _confusion_table(page), _stage_table(page), _error_table(page)]
    tables += [_gallery_table(gallery) for gallery in galleries]
    names = [table.name for table in tables]
    numbered = []
    for position, table in enumerate(tables):
        earlier = names[:position].count(table.name)  # several datasets
        numbered.append(
            Table(f"{table.name} {earlier + 1}" if earlier else table.name, table.columns, table.rows)
        )
    return [table for table in numbered if table.rows]


def _ladder_table(ladder: Ladder) -> Table:
    import wandb

    costs = [f"{column.title} ({column.per})" if column.per else column.title for column in COLUMNS]
    columns = ["rung", "picture", "idea", "run", "settings", ladder.score, "low", "high", "difference",
               "difference low", "difference high", "P(better)", *costs, "speed", "published", "paper"]  # fmt: skip
    rows = []
    for row in ladder.rows:
        score, difference = row.values["score"], row.values["difference"]
        time = row.values["ms_per_image"].notes
        paper = f"{row.rung.paper} {row.rung.year}" if row.rung.paper else ""
        rows.append([
            row.rung.name, wandb.Image(picture_pixels(row.rung.svg)), row.rung.idea, row.group.name, row.settings,
            score.number, score.low, score.high, difference.number, difference.low, difference.high,
            difference.p_better,
            *(row.values[column.key].number for column in COLUMNS),
            time[0] if time else "", str(row.rung.published or ""), paper,
        ])  # fmt: skip
    return Table(f"ladder/{ladder.task}", columns, rows)


def picture_pixels(svg: str, scale: float = 2) -> np.ndarray:
    """Return a picture of the ladder on white: uint8 ``[H, W, 3]``."""
    import vl_convert
    from PIL import Image

    image = Image.open(io.BytesIO(vl_convert.svg_to_png(svg, scale=scale))).convert("RGBA")
    paper = Image.new("RGBA", image.size, "white")
    paper.alpha_composite(image)
    return np.asarray(paper.convert("RGB"))


def _runs_table(page: PageData, task: str) -> Table:
    split = page.split_of(task)
    costs = [name for name in asdict(page.runs[0].record.cost) if name != "stages_ms"]
    columns = ["run", "rung", "seed", "state", *SCORES[task], *costs, "epochs", "steps", "data", "command"]
    rows = []
    for run in page.runs_of(task):
        record = run.record
        rung = rung_of(task, record.model, settings_of_model(run), record.description)
        rows.append([
            run.name, rung.name, record.seed, run.state,
            *(record.metrics.get(f"{split}/{name}") for name in SCORES[task]),
            *(getattr(record.cost, name) for name in costs),
            record.epochs, record.steps, record.data, record.command,
        ])  # fmt: skip
    return Table(f"runs/{task}", columns, rows)


def _class_table(page: PageData) -> Table:
    rows = [
        [
            group.name,
            score.name,
            score.mean,
            *((score.low, score.high) if score.is_interval else (None, None)),
        ]
        for group in page.groups
        for score in class_scores(group, page.split_of(group.task))
    ]
    return Table("per_class", ["run", "class", "score", "low", "high"], rows)


def _confusion_table(page: PageData) -> Table:
    """Return the cells of all confusion matrices that are not zero."""
    rows: list[list[Any]] = []
    for run in page.runs:
        if run.evidence is None:
            continue
        confusion = confusion_of(run.evidence)
        matrix, names = confusion.matrix, confusion.names
        for truth, predicted in np.argwhere(matrix).tolist():
            count = int(matrix[truth, predicted])
            rows.append([run.name, names[truth], names[predicted], count, confusion.unit])
    return Table("confusion", ["run", "truth", "predicted", "count", "unit"], rows)


def _stage_table(page: PageData) -> Table:
    rows = [[run.name, stage, ms] for run in page.runs for stage, ms in run.record.cost.stages_ms.items()]
    return Table("stages", ["run", "stage", "ms per image"], rows)


def _error_table(page: PageData) -> Table:
    prefix = "test/dap_"
    rows = _matching(page.runs, prefix)
    return Table("errors", ["run", "error", "gain of map_50"], rows)


def _gallery_table(gallery: WandbGallery) -> Table:
    rows = [
        [name, disagreement, *(images[at] for images in gallery.pictures.values())]
        for at, (name, disagreement) in enumerate(zip(gallery.names, gallery.disagreement, strict=True))
    ]
    return Table(f"gallery/{gallery.task}", ["image", "disagreement", *gallery.pictures], rows)


def _matching(runs: Iterable[RunData], prefix: str) -> list[list[Any]]:
    return [
        [run.name, name.removeprefix(prefix), to_json(value)]
        for run in runs
        for name, value in run.record.metrics.items()
        if name.startswith(prefix)
    ]
