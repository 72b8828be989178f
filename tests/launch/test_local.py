"""Commands as processes. A stub package ``segdet`` replaces the real one."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from segdet.cli.bench import main
from segdet.launch.local import last_line, run_command
from segdet.util.cores import usable_cores


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


@pytest.mark.parametrize(
    ("number", "exits", "times"),
    [(signal.SIGTERM, True, 1), (signal.SIGTERM, False, 2), (signal.SIGINT, True, 1)],
)
def test_a_stopped_bench_ends_its_run(scripted: Path, number: int, exits: bool, times: int) -> None:
    Path("script.py").write_text(
        textwrap.dedent(f"""
            import os, signal, time
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            def stop(*_):
                open("interrupted", "w").close()
                if {exits}:
                    raise SystemExit(0)
            signal.signal(signal.SIGINT, stop)
            open("started.part", "w").write(str(os.getpid()))
            os.replace("started.part", "started")
            while True:
                time.sleep(0.05)
            """)
    )
    Path("a.yaml").write_text("runs: {a: {configs: a.yaml}}")
    code = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as shells do for background jobs
sys.path = {sys.path!r}
from segdet.cli.bench import main
sys.exit(main(["a.yaml"]))
"""
    bench = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    wait_for(Path("started"))
    for _ in range(times):
        bench.send_signal(number)
        wait_for(Path("interrupted"))
    _, err = bench.communicate(timeout=30)
    assert bench.returncode == 130 and "to resume: segdet bench a.yaml" in err
    with pytest.raises(ProcessLookupError):
        os.kill(int(Path("started").read_text()), 0)


TOGETHER = """
import os, sys, time
run = next(a.split("=", 1)[1] for a in sys.argv if a.startswith("--run_dir=")).rsplit("/", 1)[1]
open(f"share-{run}", "w").write(os.environ["OMP_NUM_THREADS"] + " " + os.environ["SEGDET_CORES"])
open(f".started-{run}", "w").write(str(os.getpid()))
os.replace(f".started-{run}", f"started-{run}")  # rename the complete file
sys.stderr.write(f"\\repoch {run} 1/2")
"""


def test_simultaneous_runs_share_the_cores_and_show_their_progress(
    scripted: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each of the two runs waits until the other has started."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    Path("script.py").write_text(
        TOGETHER
        + "end = time.monotonic() + 20\n"
        + "while not all(map(os.path.exists, ('started-a', 'started-b'))):\n"
        + "    assert time.monotonic() < end\n    time.sleep(0.02)\n"
        + "time.sleep(1)\nprint()\nsys.exit(3)\n"
    )
    Path("x.yaml").write_text("at_once: 2\nruns: {a: {configs: x.yaml}, b: {configs: x.yaml}}")
    assert main(["x.yaml"]) == 1
    share = max(1, usable_cores() // 2)
    assert Path("share-a").read_text() == Path("share-b").read_text() == f"{share} {share}"
    err = capfd.readouterr().err
    assert "epoch a 1/2" in err + Path("runs/x/a.log").read_text()
    assert err.index("  a  FAILED") < err.index("  b  FAILED") and "exit status 3 (epoch b 1/2)" in err


def test_all_simultaneous_runs_are_stopped(scripted: Path) -> None:
    Path("script.py").write_text(TOGETHER + "while True:\n    time.sleep(0.05)\n")
    Path("x.yaml").write_text("runs: {a: {configs: x.yaml}, b: {configs: x.yaml}, c: {configs: x.yaml}}")
    code = f"""
import sys
sys.path = {sys.path!r}
from segdet.cli.bench import main
sys.exit(main(["x.yaml", "--at_once", "2"]))
"""
    bench = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    for name in "ab":
        wait_for(Path(f"started-{name}"))
    bench.send_signal(signal.SIGTERM)
    _, err = bench.communicate(timeout=30)
    assert bench.returncode == 130 and "to resume: segdet bench x.yaml" in err
    assert not Path("started-c").exists()
    for name in "ab":
        with pytest.raises(ProcessLookupError):
            os.kill(int(Path(f"started-{name}").read_text()), 0)


def wait_for(path: Path) -> None:
    end = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.02)
