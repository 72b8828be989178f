"""Folders of tested runs without training: a record, random evidence and gallery images."""

import numpy as np
from PIL import Image
from random_evidence import random_detections, random_localization, random_segmentation

from segdet.runs.evidence import EVIDENCE_NAME, SegmentationEvidence, write_evidence
from segdet.runs.gallery import GALLERY_FOLDER, GalleryImage, Pictures, write_gallery
from segdet.runs.record import Record

MAKERS = {
    "detection": random_detections,
    "segmentation": random_segmentation,
    "localization": random_localization,
}


def write_run(
    folder,
    task="detection",
    seed=0,
    name=None,
    gallery=6,
    metrics=None,
    evidence=None,
    per_image=True,
    **options,
):
    """Write a run folder and return its evidence."""
    evidence = MAKERS[task](seed, **options) if evidence is None else evidence
    folder.mkdir(parents=True)
    write_evidence(folder / EVIDENCE_NAME, evidence)
    record = Record(
        name or folder.name,
        task=task,
        model="Model",
        data="VOCDataModule",
        seed=seed,
        status="finished",
        metrics=metrics or {},
        per_image=EVIDENCE_NAME if per_image else None,
    )
    record.write(folder / "result.json")
    if gallery:
        write_gallery(folder / GALLERY_FOLDER, random_pictures(evidence, gallery))
    return evidence


def random_pictures(evidence, images):
    rng = np.random.default_rng(0)
    pictures = []
    for index in range(images):
        entry = GalleryImage(index, int(evidence.image_ids[index]), evidence.file_names[index], 2.0)
        noise = Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8))
        picture = np.asarray(noise.resize((256, 192), Image.Resampling.BICUBIC))
        masks = []
        if isinstance(evidence, SegmentationEvidence):
            small = rng.integers(0, len(evidence.class_names), (2, 6, 8)).astype(np.uint8)
            masks = [each.repeat(32, 0).repeat(32, 1) for each in small]
        pictures.append((entry, Pictures(picture, *masks)))
    return pictures
