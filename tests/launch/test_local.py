"""Commands as processes. A stub package ``segdet`` replaces the real one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import segdet
from segdet.cli.bench import main
from segdet.launch.local import LocalExecutor, last_line, run_command
from segdet.util.cores import usable_cores
from segdet.util.devices import visible_gpus
from segdet.util.errors import UserError


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which ``python -m segdet`` runs ``script.py``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "segdet").mkdir()
    (tmp_path / "segdet/__main__.py").write_text("import runpy\nrunpy.run_path('script.py')\n")
    (tmp_path / "segdet/__init__.py").touch()
    return tmp_path


def test_output_is_shown_immediately_and_logged_without_progress_bars(
    scripted: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("script.py").write_text(
        "import sys\nprint('begin é')\n"
        "for i in range(3): sys.stderr.write(f'\\r{i}/3')\n"
        "print('\\nend')\nprint('no newline', end='')\nsys.exit(3)\n"
    )
    assert run_command(["fit", "--a=b c"], Path("x.log"), "wb") == 3
    assert Path("x.log").read_text() == "$ segdet fit '--a=b c'\nbegin é\n2/3\nend\nno newline\n"
    assert "begin é\n\r0/3\r1/3\r2/3\nend\nno newline" in capfd.readouterr().err
    assert last_line(Path("x.log")) == "no newline"


def test_a_worker_that_outlives_the_command_delays_nothing(scripted: Path) -> None:
    Path("script.py").write_text(
        "import subprocess, sys\n"
        "helper = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(30)'])\n"
        "open('helper', 'w').write(str(helper.pid))\n"
    )
    start = time.monotonic()
    assert run_command(["fit"], Path("x.log"), "wb") == 0
    assert time.monotonic() - start < 20
    os.kill(int(Path("helper").read_text()), signal.SIGKILL)


STUBBORN = """
import os, signal, sys, time
run = next(a.split("=", 1)[1] for a in sys.argv if a.startswith("--run_dir=")).rsplit("/", 1)[1]
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
def stop(number, frame):
    open(f"received-{number}", "w").close()
    if EXITS:
        raise SystemExit(128 + number)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, stop)
open(f".started-{run}", "w").write(str(os.getpid()))
os.replace(f".started-{run}", f"started-{run}")  # rename the complete file
while True:
    time.sleep(0.05)
"""


@pytest.mark.parametrize(
    ("number", "exits", "status"),
    [(signal.SIGINT, True, 130), (signal.SIGTERM, True, 143), (signal.SIGTERM, False, 143)],
)
def test_a_signal_stops_all_runs_and_a_second_one_kills_them(
    scripted: Path, number: int, exits: bool, status: int
) -> None:
    Path("script.py").write_text(STUBBORN.replace("EXITS", str(exits)))
    Path("x.yaml").write_text("runs: {a: {configs: x.yaml}, b: {configs: x.yaml}, c: {configs: x.yaml}}")
    code = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as shells do for background jobs
sys.path = {sys.path!r}
from segdet.cli.bench import main
sys.exit(main(["x.yaml", "--at_once", "2"]))
"""
    bench = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    for name in "ab":
        wait_for(Path(f"started-{name}"))
    bench.send_signal(number)
    wait_for(Path(f"received-{int(number)}"))
    if not exits:
        bench.send_signal(number)
    _, err = bench.communicate(timeout=30)
    assert bench.returncode == status and "to resume: segdet bench x.yaml" in err
    assert "FAILED" not in err and not Path("started-c").exists()
    for name in "ab":
        with pytest.raises(ProcessLookupError):
            os.kill(int(Path(f"started-{name}").read_text()), 0)


DEVICES = """
import os, sys, time
run = next(a.split("=", 1)[1] for a in sys.argv if a.startswith("--run_dir=")).rsplit("/", 1)[1]
names = ("OMP_NUM_THREADS", "SEGDET_CORES", "CUDA_VISIBLE_DEVICES")
open(f"share-{run}", "w").write(" ".join(os.environ.get(name, "-") for name in names))
end = time.monotonic() + 20
while not all(os.path.exists(f"share-{name}") for name in RUNS):
    assert time.monotonic() < end
    time.sleep(0.02)
sys.stderr.write(f"epoch {run}")
sys.exit(3)
"""


@pytest.mark.parametrize(
    ("visible", "options", "expected"),
    [
        (None, [], ["-", "-"]),
        ("4,6", [], ["4", "6"]),
        ("GPU-1,GPU-2,GPU-3,GPU-4", ["--devices_per_run", "2"], ["GPU-1,GPU-2", "GPU-3,GPU-4"]),
        ("7", [], ["7", "7"]),
    ],
)
def test_simultaneous_runs_share_the_cores_and_the_gpus(
    visible: str | None,
    options: list[str],
    expected: list[str],
    scripted: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Each of the two runs waits until the other has started."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", "")  # no nvidia-smi
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    Path("script.py").write_text(DEVICES.replace("RUNS", "'ab'"))
    Path("x.yaml").write_text("at_once: 2\nruns: {a: {configs: x.yaml}, b: {configs: x.yaml}}")
    assert main(["x.yaml", *options]) == 1
    share = max(1, usable_cores() // 2)
    shares = [Path(f"share-{name}").read_text() for name in "ab"]
    assert shares == [f"{share} {share} {devices}" for devices in expected]
    err = capfd.readouterr().err
    assert err.index("  a  FAILED") < err.index("  b  FAILED") and "exit status 3 (epoch b)" in err


def test_a_single_run_uses_all_gpus_and_too_few_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert LocalExecutor(1, ["0", "1"]).devices_per_run == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,-1,2")
    assert visible_gpus() == ["0", "1"]
    with pytest.raises(
        UserError, match=r"^--devices_per_run 2: 3 runs at once need 6 GPUs, but 2 are visible"
    ):
        LocalExecutor(3, visible_gpus(), 2)


def test_two_benches_share_the_runs(scripted: Path) -> None:
    """Every run is started once, although both benches start at the same time."""
    runs = [f"r{number}" for number in range(6)]
    Path("script.py").write_text(
        "import os, sys, time\n"
        "run = next(a.split('=', 1)[1] for a in sys.argv if a.startswith('--run_dir='))\n"
        "open(run + '.count', 'a').write('x')\ntime.sleep(0.3)\nsys.exit(3)\n"
    )
    Path("x.yaml").write_text(f"runs: {{{', '.join(f'{name}: {{configs: x.yaml}}' for name in runs)}}}")
    code = (
        f"import sys; sys.path = {sys.path!r}; from segdet.cli.bench import main; sys.exit(main(['x.yaml']))"
    )
    benches = [
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    errors = [bench.communicate(timeout=60)[1] for bench in benches]
    assert [Path(f"runs/x/{name}.count").read_text() for name in runs] == ["x"] * 6, errors
    assert all("FAILED" in err and "Traceback" not in err for err in errors)


def test_a_run_goes_on_when_its_bench_is_killed(scripted: Path) -> None:
    """The output goes to the log, and another bench leaves the run alone until it has ended."""
    Path("script.py").write_text(
        "import os, sys, time\nfrom segdet_claim import claim\nowner = claim(sys.argv)\n"
        "open('started', 'w').write(str(os.getppid()))\n"
        "while not os.path.exists('go'): time.sleep(0.05)\n"
        "sys.stderr.write('\\r1/2\\r2/2 \\n')\nprint('end')\nopen('done', 'w').close()\n"
    )
    # The script replaces segdet, so it takes the claim from the real package by its path.
    package = Path(segdet.__file__).parents[1]
    Path("segdet_claim.py").write_text(
        f"import sys\nfor name in [n for n in sys.modules if n.startswith('segdet') and n != __name__]:\n"
        f"    del sys.modules[name]\nsys.path.insert(0, {str(package)!r})\n"
        "from pathlib import Path\nfrom segdet.runs.ownership import Ownership\n"
        "def claim(argv):\n"
        "    folder = Path(next(a.split('=', 1)[1] for a in argv if a.startswith('--run_dir=')))\n"
        "    folder.mkdir(parents=True)\n    return Ownership(folder)\n"
    )
    Path("x.yaml").write_text("runs: {a: {configs: x.yaml}}")
    code = (
        f"import sys; sys.path = {sys.path!r}; from segdet.cli.bench import main; sys.exit(main(['x.yaml']))"
    )
    bench = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    wait_for(Path("started"))
    bench.kill()
    bench.wait()
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert other.returncode == 0 and "a  is run by another bench" in other.stderr
    Path("go").touch()
    wait_for(Path("done"))
    end = time.monotonic() + 10
    while not Path("runs/x/a.log").read_text().endswith("2/2 \nend\n"):
        assert time.monotonic() < end, Path("runs/x/a.log").read_text()
        time.sleep(0.05)


def wait_for(path: Path) -> None:
    end = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.02)
