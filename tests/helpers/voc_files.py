"""Write single files of VOC folders."""

from pathlib import Path

import numpy as np
from PIL import Image


def object_xml(name="cat", box=(10, 20, 30, 50), extra="") -> str:
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name>{extra}<bndbox>{corners}</bndbox></object>"


def write_xml(folder: Path, name: str, *objects: str, size="<width>60</width><height>40</height>") -> Path:
    path = folder / "Annotations" / f"{name}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotation><size>{size}</size>{''.join(objects)}</annotation>")
    return path


def write_list(folder: Path, split: str, text: str, kind="Main") -> Path:
    path = folder / "ImageSets" / kind / f"{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def write_mask(folder: Path, name: str, values, mode="P") -> Path:
    path = folder / "SegmentationClass" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.asarray(values, np.uint8)
    image = Image.frombytes(mode, values.shape[::-1], values.tobytes())
    if mode == "P":
        image.putpalette([(7 * i) % 256 for i in range(768)])
    image.save(path)
    return path
