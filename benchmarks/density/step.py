"""Steps of maximum likelihood against those of Zuko, nflows, normflows and flowjax.

    pip install -e '.[bench]'
    python -m benchmarks.density.step [--quick] [--families affine_coupling ...] [--dims 6 64]
        [--batch 256] [--width 128] [--rounds 15] [--flowjax-python PATH] [--no-compiled-peers]

The ms of a training step (forward, backward, Adam's update, and reading the loss), in float32, all
contestants in turn, medians of rounds, with one thread each in processes pinned to one core, in
processor time. The architectures are those of ``benchmarks/_peers``: six couplings or three
autoregressive layers, with two hidden layers of 128 relu units (``--width``). A step of ours is
all that ``fit_mle`` does in one: the check that loss and gradient are finite, clipping and the
spare copy of the last good state included. Theirs is what their users write, with torch's fused
Adam; Zuko also under ``torch.compile``. flowjax takes the jitted step of its own training loop;
its base is the same normal. ``products`` are the products of a step of ours with the weights'
matrices, and nothing else: no library can be quicker than these.

The exit status is 1 where a target is missed: without compiling, 1.3 times as fast as the fastest
eager library; compiled, twice as fast, and as fast as whatever of theirs is compiled. flowjax may
be in another environment; a library that is missing is left out, and a line says so.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _peers import DESCRIPTIONS
from _step_worker import Worker

SCRIPTS = {
    "ours": "mle_step",
    "zuko": "mle_step",
    "nflows": "mle_step",
    "normflows": "mle_step",
    "flowjax": "flowjax_step",
}
WAYS = {
    "ours": ("eager", "traced", "compiled", "products"),
    "zuko": ("eager", "compiled"),
    "nflows": ("eager",),
    "normflows": ("eager",),
    "flowjax": ("jitted",),
}
FAMILIES = ("affine_coupling", "spline_coupling", "spline_autoregressive")
LEAST_EAGER, LEAST_COMPILED = 1.3, 2.0
SECONDS = 0.1  # for which each is timed at a time


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--dims", type=int, nargs="+", default=[6, 64])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--width", type=int, default=128, help="of the hidden layers")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--flowjax-python", default=sys.executable, help="runs flowjax")
    parser.add_argument("--no-compiled-peers", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a minute, to see that it runs")
    given = parser.parse_args()
    if given.quick:
        given.families, given.dims, given.rounds = ("affine_coupling",), [6], 3
    os.environ["BENCH_WIDTH"] = str(given.width)  # which the contestants read
    return given


def row(cells: list[object]) -> None:
    """Print one row of a Markdown table at once."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def workers(given: argparse.Namespace, cache: str) -> dict[str, Worker]:
    """Start the libraries that are installed, each with an empty cache for its compiler."""
    present = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    started = {}
    for library, script in SCRIPTS.items():
        python = given.flowjax_python if library == "flowjax" else sys.executable
        name = "pyro_flows" if library == "ours" else library
        look = f"import sys, importlib.util as u; sys.exit(u.find_spec({name!r}) is None)"
        if subprocess.run([python, "-c", look], check=False).returncode:
            print(f"{library}: not installed, left out")
            continue
        folder = tempfile.mkdtemp(dir=cache)
        started[library] = Worker(script, python, {present[-1]}, folder)
        versions = started[library].ask("versions")
        print(f"{library}: {', '.join(f'{key} {value}' for key, value in versions.items())}")
    return started


def measure(
    started: dict[str, Worker], family: str, dim: int, given: argparse.Namespace
) -> dict[str, float]:
    """Return the median seconds of a step of each way, by ``"library how"``."""
    ready: dict[str, Worker] = {}
    for library, worker in started.items():
        worker.ask("forget")
        for how in WAYS[library]:
            if how == "compiled" and library != "ours" and given.no_compiled_peers:
                continue
            way = f"{library} {dim} {how}"
            try:
                worker.ask("prepare", f"{library} {how}", SECONDS, family, given.batch, way)
                ready[f"{library} {how}"] = worker
            except RuntimeError as error:
                print(f"left out: {str(error).splitlines()[0]}")
    seconds: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(given.rounds):
        for name, worker in ready.items():
            seconds[name].append(worker.ask("time", name))
    return {name: statistics.median(values) for name, values in seconds.items()}


def targets(seconds: dict[str, float]) -> dict[str, tuple[float, float]]:
    """Return, by what is compared, the ratio and what is wanted of it."""
    sides: dict[str, list[float]] = {"eager": [], "compiled": []}
    for name, value in seconds.items():
        library, how = name.split()
        if library != "ours":
            sides["eager" if how == "eager" else "compiled"].append(value)
    best = {side: min(values, default=math.nan) for side, values in sides.items()}
    ours = {how: seconds.get(f"ours {how}", math.nan) for how in WAYS["ours"]}
    uncompiled = min(ours["eager"], ours["traced"])
    return {
        "fastest eager / ours, not compiled": (best["eager"] / uncompiled, LEAST_EAGER),
        "fastest eager / ours, compiled": (best["eager"] / ours["compiled"], LEAST_COMPILED),
        "fastest compiled / ours, compiled": (best["compiled"] / ours["compiled"], 1.0),
    }


def main() -> int:
    """Measure what is asked for."""
    given, missed = options(), []
    with tempfile.TemporaryDirectory() as cache:
        started = workers(given, cache)
        for family in given.families:
            print(f"{family}: {DESCRIPTIONS[family]}")
        names = [f"{library} {how}" for library in started for how in WAYS[library]]
        print(f"\nms of a step, batches of {given.batch}, width {given.width}, one thread\n")
        row(["family", "D", *names, *targets({})])
        row(["---"] * (len(names) + 5))
        for family in given.families:
            for dim in given.dims:
                seconds = measure(started, family, dim, given)
                reached = targets(seconds)
                times = [f"{1e3 * seconds[n]:.2f}" if n in seconds else "" for n in names]
                row([family, dim, *times, *(f"{ratio:.2f}" for ratio, _ in reached.values())])
                missed += [
                    f"{family}, D={dim}, {what}: {ratio:.2f}, at least {least:g} wanted"
                    for what, (ratio, least) in reached.items()
                    if ratio < least
                ]
        for worker in started.values():
            worker.close()
    for line in missed:
        print(f"missed: {line}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
