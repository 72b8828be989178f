"""A worker of a sweep for tests, as a process: ``python sweep_worker.py FILE STORAGE FOLDER``.

Its trials are the runs of `FAKE_RUN`, which ``python -m segdet`` starts in a folder that contains it as
``segdet/__main__.py``.
"""

import sys
from pathlib import Path

FAKE_RUN = '''
"""A run of three seconds: a value and a checkpoint every 0.4 s, and a record. The score follows from --x."""

import json, os, sys, time

del sys.path[0]  # this folder; import the real package
from pathlib import Path

sys.modules.pop("segdet", None)
from segdet.runs.ownership import Ownership
from segdet.runs.record import Cost, Record
from segdet.util.files import write_text

options = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[2:])
folder, x = Path(options["run_dir"]), int(options["x"])
(folder / "checkpoints").mkdir(parents=True, exist_ok=True)
ownership = Ownership(folder)
last = folder / "checkpoints" / "last.ckpt"
done = json.loads(last.read_text()) if last.exists() else 0
if not (folder / "result.json").exists():
    if not done:
        (folder / "metrics.csv").write_text("epoch,step,val/miou\\n")
    for epoch in range(done, 8):
        time.sleep(0.4)
        with (folder / "metrics.csv").open("a") as file:
            file.write(f"{epoch},{epoch},{(epoch + 1) / 8 - (x - 7) ** 2 / 100}\\n")
        write_text(last, str(epoch + 1))
    if (folder / "result.json").exists():  # another process has trained this run at the same time
        (folder / "repeated.txt").touch()
    Record(folder.name, "segmentation", "FCN", "S", 0, "finished", {}, Cost()).write(folder / "result.json")
ownership.release()
'''


def main(file: str, storage: str, folder: str) -> int:
    """Work on the sweep until it is complete."""
    from segdet.launch.sweep import SweepJobs, run_workers
    from segdet.launch.sweep_file import read_sweep
    from segdet.launch.sweep_trials import SweepTrials

    trials = SweepTrials(read_sweep(file), storage, lease=4.0)
    return run_workers(SweepJobs(trials, Path(folder)), 1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
