"""Test that two processes compute the same scores as one, for any distribution of the images."""

import json
import warnings
import zlib

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from two_processes import process_of_two

from segdet.metrics import BoundaryScores, DetectionScores, LocalizationScores
from segdet.runs.evidence_from_scores import ImageFile, evidence_from_scores

COUNT = 7
SHARES = {
    "alternating": [[0, 2, 4, 6], [1, 3, 5]],
    "the second has none": [[0, 1, 2, 3, 4, 5, 6], []],
    "the first has none": [[], [6, 5, 4, 3, 2, 1, 0]],
    "one is padded": [[0, 2, 4, 6], [1, 3, 5, 0]],
    "neither has any": [[], []],
}


def box_sample(i):
    generator = torch.Generator().manual_seed(i)
    # Image 3 has neither objects nor detections, image 5 no detection.
    objects = 0 if i == 3 else 2 + i % 3
    start = torch.rand(objects, 2, generator=generator) * 50
    boxes = torch.cat([start, start + 10 + 40 * torch.rand(objects, 2, generator=generator)], 1)
    labels = torch.randint(1, 4, (objects,), generator=generator)
    target = {"boxes": boxes, "labels": labels}
    keep = 0 if i == 5 else objects
    moved = boxes + torch.randn(objects, 4, generator=generator) * 3
    prediction = {
        "boxes": moved[:keep],
        "scores": (torch.rand(keep, generator=generator) * 4).round() / 4,
        "labels": labels[:keep],
    }
    return prediction, target


def scores_of(images):
    """Return all three metrics after one update per image."""
    names = ["a", "b", "c"]
    detection, localization, segmentation = (
        DetectionScores(names),
        LocalizationScores(names),
        BoundaryScores(names),
    )
    for metric in (detection, localization, segmentation):
        metric.keep_images()
    for i in images:
        prediction, target = box_sample(i)
        detection.update([prediction], [target], [100 + i])
        generator = torch.Generator().manual_seed(i)
        box = torch.tensor([[0.0, 0, 20, 20]])
        found = box + torch.randn(1, 4, generator=generator) * 4
        label = torch.tensor([1 + i % 3])
        localization.update(
            [{"boxes": found, "scores": torch.ones(1), "labels": torch.tensor([1 + i % 2])}],
            [{"boxes": box, "labels": label}],
            [100 + i],
        )
        mask = torch.randint(0, 3, (5 + i, 6), generator=generator)
        segmentation.update(torch.randint(0, 3, (5 + i, 6), generator=generator), mask, 100 + i)
    return {"detection": detection, "localization": localization, "segmentation": segmentation}


def digest(metric):
    """Return a number that differs if any value of the evidence differs."""
    images = {100 + i: ImageFile(f"{i}.jpg", (5 + i, 6)) for i in range(COUNT)}
    evidence = evidence_from_scores(metric, images)
    parts = [np.asarray(value).tobytes() for value in vars(evidence).values() if value is not None]
    return zlib.crc32(b"".join(parts))


def numbers(metrics):
    gains = {f"detection/dap_{name}": gain for name, gain in metrics["detection"].errors().gains().items()}
    digests = {f"evidence/{task}": digest(metric) for task, metric in metrics.items()}
    return (
        gains
        | digests
        | {
            f"{task}/{name}": value.item()
            for task, metric in metrics.items()
            for name, value in metric.compute().items()
        }
    )


def worker(rank, folder):
    """Return the scores of process ``rank`` of two for each distribution, computed twice."""
    results = {}
    with process_of_two(rank, folder, seconds=60), warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, shares in SHARES.items():
            metrics = scores_of(shares[rank])
            first = numbers(metrics)
            # Gathering must preserve the state of each process.
            for metric in metrics.values():
                metric._computed = None
            results[name] = [first, numbers(metrics)]
    return results


def other_process(_, folder):
    (folder / "1.json").write_text(json.dumps(worker(1, folder)))


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    # This process is the first of the two, so that only one has to be started.
    folder = tmp_path_factory.mktemp("processes")
    other = mp.spawn(other_process, (folder,), nprocs=1, join=False)
    try:
        first = worker(0, folder)
        other.join()
    finally:
        for process in other.processes:
            process.kill()
    return first, json.loads((folder / "1.json").read_text())


@pytest.mark.parametrize("name", list(SHARES))
def test_two_processes_equal_one(two_processes, name):
    whole = range(COUNT) if any(SHARES[name]) else ()
    expected = numbers(scores_of(whole))
    if whole:
        assert 0.05 < expected["detection/map"] < 1 and 0 < expected["localization/loc_acc"] < 1
    for rank in range(2):
        for result in two_processes[rank][name]:
            if name == "one is padded":
                # Only detection and the evidence identify images by id; the other metrics never receive padding.
                identified = ("detection/", "evidence/")
                result = {key: value for key, value in result.items() if key.startswith(identified)}
            assert result == pytest.approx({key: expected[key] for key in result}, abs=0, rel=0, nan_ok=True)
