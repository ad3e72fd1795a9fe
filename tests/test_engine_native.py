"""What compiles beside a fit: it is stopped with it, and what fails there does not reach it."""

import logging
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from models import normal_data, normal_model

import pyro_flows as pf
from pyro_flows.errors import DomainError
from pyro_flows.infer import threads
from pyro_flows.infer.engine import ladder, native, runner

Y = normal_data()
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and scripts of a shell")


@pytest.fixture
def compiles_at_once(monkeypatch):
    """Let a fit compile after its first steps, and look for the outcome after each."""
    monkeypatch.setattr(ladder, "_LEAST_STEPS", 1)
    monkeypatch.setattr(runner.Runner, "_pays", lambda self, seconds: True)
    monkeypatch.setattr(runner, "_TIMED_STEPS", 1)
    monkeypatch.setattr(runner, "_POLL_EVERY", 1)


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """Put a script of the shell in the place of what compiles; it can tell its process id."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))

    def put(script):
        path = tmp_path / "compiler"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return put


SLEEPS = "echo $$ > pid.tmp; mv pid.tmp pid; exec sleep 600"
# As a compiler of C++ is the child of what calls it, and holds on to its pipes.
CHILD = "(sleep 15; touch ended) & echo $! > pid.tmp; mv pid.tmp pid; wait"


def run(engine="auto", steps=12, **options):
    guide = pf.AutoFlow(
        normal_model, lambda d: pf.flows.planar(d, num_transforms=1), start="prior"
    )
    options = {"particles": 4, "seed": 0, "stop_early": False, "progress": False, **options}
    return pf.fit(normal_model, guide, Y, steps=steps, engine=engine, **options)


def awaited_pid(where):
    for _ in range(2000):
        if (where / "pid").exists():
            return int((where / "pid").read_text())
        time.sleep(0.01)
    raise AssertionError("the compiler was not started")


def runs(pid):
    """Whether a process runs; one that has ended and waits to be collected does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def ends(pid):
    """Whether a process ends soon: one that is killed closes its pipes a moment before."""
    for _ in range(500):
        if not runs(pid):
            return True
        time.sleep(0.01)
    return False


def is_child(pid):
    """Whether a process is still known as a child of this one, if only as a zombie."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def interrupt():
    raise KeyboardInterrupt


def fail():
    raise RuntimeError("by a callback")


@pytest.mark.usefixtures("compiles_at_once")
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks at processes in /proc")
@pytest.mark.parametrize(
    ("script", "end"),
    [(SLEEPS, None), (SLEEPS, lambda: True), (SLEEPS, interrupt), (SLEEPS, fail), (CHILD, None)],
    ids=["end", "stop", "interrupt", "error", "child"],
)
def test_compiler_is_stopped_when_the_fit_ends(compiler, script, end):
    """FAULTS 63."""
    where, pids = compiler(script), []

    def callback(info):
        if info.step == 6:
            pids.append(awaited_pid(where))
            return end() if end else None
        return None

    try:
        if end is fail:
            with pytest.raises(RuntimeError, match="by a callback"):
                run(callbacks=[callback])
        else:
            result = run(callbacks=[callback])
            assert result.status == ("max_steps" if end is None else "interrupted")
            assert result.engine == "traced"
        assert ends(pids[0])
        assert not is_child(pids[0])
    finally:
        if runs(pids[0]):
            os.kill(pids[0], signal.SIGKILL)
    assert sorted(path.name for path in where.iterdir()) == ["cache", "compiler", "pid"]


@pytest.mark.usefixtures("compiles_at_once")
@pytest.mark.parametrize("script", [SLEEPS, "exit 1"], ids=["goes on", "fails"])
def test_compiler_has_a_core_to_itself_for_as_long_as_it_runs(compiler, monkeypatch, script):
    compiler(script)
    monkeypatch.setattr(threads, "_LEAST_ELEMENTS", 0)
    before, counts = torch.get_num_threads(), []
    torch.set_num_threads(3)

    def note(info):
        time.sleep(0.02)
        counts.append(torch.get_num_threads())

    try:
        run(steps=50, callbacks=[note])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert counts[0] == 3
    assert 2 in counts
    assert counts[-1] == (2 if script == SLEEPS else 3)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks at processes in /proc")
def test_compiler_is_stopped_when_the_user_does_not_wait(compiler):
    """FAULTS 63."""
    where = compiler(SLEEPS)

    def ring(signum, frame):
        if (where / "pid").exists():
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.5, 0.5)
    try:
        result = run(engine="compiled")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    pid = awaited_pid(where)
    ended = ends(pid)
    if not ended:
        os.kill(pid, signal.SIGKILL)
    assert result.status == "interrupted"
    assert ended


@pytest.mark.usefixtures("compiles_at_once")
@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("cat > /dev/null; echo no such luck >&2; exit 1", "no such luck"),
        ("echo no such luck >&2; exit 1", "no such luck"),
        ("cat > /dev/null; kill -9 $$", "the compiler was stopped"),
        ("exit 0", "the compiler was stopped"),
    ],
)
def test_failing_compiler_leaves_traced_steps_and_one_line(compiler, caplog, script, words):
    compiler(script)

    def wait(info):
        time.sleep(0.02)

    with caplog.at_level(logging.WARNING, logger="pyro_flows"):
        result = run(steps=100, callbacks=[wait])
    assert result.engine == "traced"
    (record,) = caplog.records
    assert "runs traced steps, not compiled ones" in record.getMessage()
    assert words in record.getMessage()
    np.testing.assert_array_equal(result.losses, run(engine="traced", steps=100).losses)
    with pytest.raises(DomainError, match=f"can be compiled.*{words}"):
        run(engine="compiled")


@pytest.mark.usefixtures("compiles_at_once")
def test_interpreter_that_is_not_there_leaves_traced_steps(monkeypatch, tmp_path, caplog):
    """As in a program that has Python built in."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nowhere"))
    with caplog.at_level(logging.WARNING, logger="pyro_flows"):
        assert run().engine == "traced"
    assert len(caplog.records) == 1


@pytest.mark.usefixtures("compiles_at_once")
def test_cache_that_cannot_be_written_leaves_traced_steps(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING, logger="pyro_flows"):
        assert run().engine == "traced"
    assert len(caplog.records) == 1


def test_no_c_compiler_is_said_and_needs_none_on_the_lower_rungs(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(tmp_path / "nowhere"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(engine="traced", steps=2).engine == "traced"
    with pytest.raises(DomainError, match=r"got \w*CxxCompiler|got .*[Cc]ompiler"):
        run(engine="compiled", steps=2)


DAMAGED = """
import logging, sys
sys.path[:0] = {paths!r}
logging.basicConfig()
import test_engine_native as t
from pathlib import Path
from pyro_flows.infer.engine import ladder, native, runner
path = Path({path!r})
path.write_bytes({content!r})
native.library_path = lambda main, inputs: path
ladder._LEAST_STEPS, runner._TIMED_STEPS, runner._POLL_EVERY = 1, 1, 1
runner.Runner._pays = lambda self, seconds: True
print(t.run().engine)
"""


@pytest.mark.parametrize("content", [b"", b"no library", b"\x7fELF" + bytes(2000)])
def test_damaged_library_in_the_cache_leaves_traced_steps(tmp_path, content):
    """In a process of its own, since loading might end it."""
    path = tmp_path / "damaged.so"
    paths = [os.path.dirname(__file__), os.path.dirname(os.path.dirname(pf.__file__))]
    code = DAMAGED.format(paths=paths, path=str(path), content=content)
    ended = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=tmp_path
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout.split() == ["traced"]
    assert ended.stderr.count("runs traced steps, not compiled ones") == 1


@pytest.mark.usefixtures("compiles_at_once")
def test_switch_to_native_code_leaves_the_run_as_it_is(monkeypatch):
    """The steps before and after draw the random numbers of a run on one rung."""

    class Ready:
        """Stands for a compilation that has ended, and whose code is the graph itself."""

        running = False

        def __init__(self, main, inputs):
            self._main = main

        def begin(self):
            pass

        def load(self):
            return torch.no_grad()(lambda inputs: list(self._main(*inputs)))

        def stop(self):
            pass

    monkeypatch.setattr(runner, "Compilation", Ready)
    monkeypatch.setattr(native, "Compilation", Ready)
    rungs = []
    switched = run(callbacks=[lambda info: rungs.append(info.engine)])
    assert set(rungs) == {"traced", "compiled"}
    traced = run(engine="traced")
    np.testing.assert_allclose(switched.losses, traced.losses, rtol=1e-5)
