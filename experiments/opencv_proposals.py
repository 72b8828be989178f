"""Run OpenCV's Selective Search on a folder of images, and write the boxes to a file for ``segdet proposals``.

::

    python3 -m venv opencv && opencv/bin/pip install opencv-contrib-python-headless tqdm
    opencv/bin/python experiments/opencv_proposals.py fast DIR/JPEGImages opencv_fast.npz --images DIR/list.txt
    segdet proposals DIR --split test --proposer fast opencv_fast.npz --workers 1

OpenCV with contributed modules uses the same package name, ``cv2``, as the OpenCV that albumentations installs.
Therefore, use a separate environment. This script does not import segdet, which is not installed there. The search
uses one thread. The script prints the time of the search, which excludes decoding the images.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

STRATEGIES = {
    "single": "switchToSingleStrategy",
    "fast": "switchToSelectiveSearchFast",
    "quality": "switchToSelectiveSearchQuality",
}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("strategy", choices=STRATEGIES)
    parser.add_argument("folder", type=Path, help="the folder of images")
    parser.add_argument("out", type=Path, help="the .npz file to write")
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FILE",
        help="text file with one image name per line, with or without .jpg",
    )
    arguments = parser.parse_args()
    import cv2

    if not hasattr(cv2, "ximgproc"):
        sys.exit(f"{cv2.__file__}: no module ximgproc; install only opencv-contrib-python-headless")
    cv2.setNumThreads(1)
    if arguments.images:
        words = [line.split() for line in arguments.images.read_text(encoding="utf-8").splitlines()]
        names = [line[0] if Path(line[0]).suffix else f"{line[0]}.jpg" for line in words if line]
    else:
        names = sorted(path.name for path in arguments.folder.iterdir() if path.is_file())
    boxes, seconds = [], 0.0
    for name in tqdm(names, desc=f"OpenCV, {arguments.strategy}", unit="image"):
        image = cv2.imread(str(arguments.folder / name))
        if image is None:
            sys.exit(f"{arguments.folder / name}: OpenCV cannot read it as an image; remove it from --images")
        start = time.perf_counter()
        search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
        search.setBaseImage(image)
        getattr(search, STRATEGIES[arguments.strategy])()
        found = np.asarray(search.process(), np.float32).reshape(-1, 4)
        seconds += time.perf_counter() - start
        found[:, 2:] += found[:, :2]  # x, y, width, height to x0, y0, x1, y1
        boxes.append(found)
    np.savez(
        arguments.out,
        names=np.array(names, np.str_),
        counts=np.array([len(found) for found in boxes], np.int64),
        boxes=np.concatenate([np.zeros((0, 4), np.float32), *boxes]),
    )
    sys.stdout.write(f"{arguments.strategy}: {len(names)} images in {seconds:.1f} s, see {arguments.out}\n")


if __name__ == "__main__":
    main()
