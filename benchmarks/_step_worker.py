"""Contestants in processes of their own, which do one thing at a time when asked over a pipe.

Thread pools, caches and clocks of one library are thus no matter of another's; and a contestant
may live in another environment. Needs nothing but Python.
"""

import gc
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

# Takes that many steps, and returns when they are taken.
Steps = Callable[[int], object]
# Seconds since a fit was called for, and the ELBO then.
Curve = list[tuple[float, float]]

FOLDER = Path(__file__).resolve().parent
ONE_THREAD = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
}
_CALIBRATION = 3


class Worker:
    """The end of the pipe at the benchmark.

    Args:
        script: The contestant's script, in ``_peers``.
        python: Runs it.
        cores: The processor cores it may use.
        cache: A folder for what compilers keep.
    """

    def __init__(self, script: str, python: str, cores: set[int], cache: str) -> None:
        given = {**os.environ, **ONE_THREAD, "TORCHINDUCTOR_CACHE_DIR": cache}
        given.pop("JAX_COMPILATION_CACHE_DIR", None)
        # The package itself is found where the benchmark stands beside it uninstalled.
        path = [str(FOLDER), str(FOLDER.parent), given.get("PYTHONPATH", "")]
        self._name = script
        self._process = subprocess.Popen(
            [python, str(FOLDER / "_peers" / f"{script}.py"), ",".join(map(str, cores))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**given, "PYTHONPATH": os.pathsep.join(filter(None, path))},
            text=True,
        )

    def ask(self, what: str, *args: Any) -> Any:
        """Have one thing done, and return what comes of it.

        Raises:
            RuntimeError: It went wrong there.
        """
        print(json.dumps([what, *args]), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name}: ended with {self._process.wait()}")
        fine, result = json.loads(line)
        if not fine:
            raise RuntimeError(f"{self._name}: {what}{tuple(args)}: {result}")
        return result

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()


def serve(
    versions: dict[str, str],
    prepare: Callable[[str, int, str], Steps],
    fit: Callable[..., Curve],
) -> None:
    """Be the other end until the pipe is closed.

    Args:
        versions: Of the libraries.
        prepare: Makes ready, from a model's name, a number of particles and the name of a way to
            take steps.
        fit: Fits, from a model's name, a number of particles and options by name.
    """
    replies = _replies()
    ready: dict[str, tuple[Steps, int]] = {}

    def make_ready(key: str, *args: Any, least: float) -> float:
        """Return the seconds until the first step was taken."""
        began = time.perf_counter()
        steps = prepare(*args)
        steps(1)
        seconds = time.perf_counter() - began
        each = _seconds(steps, 1)  # where one takes long, a warm-up besides
        if each < least:
            each = _seconds(steps, _CALIBRATION)
        ready[key] = steps, max(1, math.ceil(least / each))
        return seconds

    answers = {
        "versions": lambda: versions,
        "prepare": lambda key, least, *args: make_ready(key, *args, least=least),
        "time": lambda key: _seconds(*ready[key]),
        "forget": ready.clear,
        "fit": lambda model, particles, options: fit(model, particles, **options),
    }
    for line in sys.stdin:
        what, *args = json.loads(line)
        try:
            reply = True, answers[what](*args)
        except Exception as error:
            reply = False, f"{type(error).__name__}: {error}"
        print(json.dumps(reply), file=replies, flush=True)


def restrict_to_cores() -> None:
    """Let this process use only the cores that it was told, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in sys.argv[1].split(",")})


def _replies() -> TextIO:
    """Return what leads to the benchmark, and let all else that is printed go to the screen."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return replies


def _seconds(steps: Steps, count: int) -> float:
    """Return the seconds of one step out of many, of work alone.

    Not those on the wall, to which other programs add; all threads of the process are counted.
    """
    gc.collect()
    gc.disable()
    try:
        began = time.process_time()
        steps(count)
        return (time.process_time() - began) / count
    finally:
        gc.enable()


class Stopwatch:
    """Times a fit on the wall, compilers in other processes included, and keeps its states.

    Keeping is all it does meanwhile: the ELBO is a matter of afterwards.
    """

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._kept: list[tuple[float, Any]] = []

    def keep(self, state: Any) -> None:
        """Note the time and a state that does not change any more."""
        self._kept.append((time.perf_counter() - self._began, state))

    def curve(self, elbo: Callable[[Any], float]) -> Curve:
        """Return the ELBO at the times of all states."""
        return [(seconds, elbo(state)) for seconds, state in self._kept]


def kept_after(steps: int) -> Sequence[int]:
    """Return after how many steps of a fit to keep the state: each tenth at first, then rarer."""
    taken, after = 0, []
    while taken < steps:
        taken = min(steps, taken + max(10, 10 * (taken // 100)))
        after.append(taken)
    return after
