"""Steps of the ELBO against those of Pyro and NumPyro, and whole fits, at the same architectures.

    pip install -e '.[bench]'
    python benchmarks/elbo_step.py [--quick] [--parts steps fits scaling]
        [--models eight_schools logistic hierarchical] [--particles 1 16 64 256 1024]
        [--numpyro-python PATH] [--rounds 15] [--seeds 0] [--cores 1]

Three models of 10, 31 and 200 unconstrained coordinates, each written once for both languages.

``steps``: the ms of a step, all contestants in turn, medians of rounds, with one thread each in
processes pinned to one core, in processor time. The peers' guides are inverse autoregressive flows
of three transforms with two hidden layers as wide as the model, in Pyro also as many couplings;
ours is the same flow inside an affine map. The gradient is the total one, as the peers', in which
we are compared; our own default, the path gradient, stands beside. A step of ours is the gradient,
the finiteness check and the optimiser's update; ``fit`` is all that a fit does in a step. NumPyro
takes 200 steps in a call of native code, and besides, for information, one.

``fits``: the seconds on the wall from the call, compiling and tracing included, to an ELBO
within 0.1 nat of the final one, in a fresh process each, with empty compilers' caches. Ours is
``fit`` with the defaults, whose final ELBO is the higher of its own and a longer run's; the peers
take constant steps of Adam at two rates, whose final ELBO is that of the better rate, and the time
that of the rate which came there first. ELBOs are of 10,000 fresh draws, outside the clock.

``scaling``: the processor time of our step by particles and dimensions, with the default guide.

The exit status is 1 where a target is missed: 10 times as fast as Pyro at 256 particles; 1.25
times as fast as NumPyro at 64, 256 and 1024, at most 5 times as slow at one; sooner at the final
ELBO than both; and no more time per particle with more particles. NumPyro may be in another
environment; where a peer is missing, it is left out, and a line says so.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import NamedTuple

from _step_models import MODELS
from _step_worker import Curve, Worker

SCRIPTS = {"ours": "ours_step", "pyro": "pyro_step", "numpyro": "numpyro_step"}
# By contestant, the ways that it takes steps, by their names in the tables.
WAYS = {
    "pyro": {
        "Pyro IAF, SVI": "iaf svi",
        "Pyro IAF, torch": "iaf torch",
        "Pyro couplings, SVI": "coupling svi",
        "Pyro couplings, torch": "coupling torch",
    },
    "numpyro": {"NumPyro": "loop", "NumPyro by call": "call"},
    "ours": {
        "eager": "iaf total eager step",
        "traced": "iaf total traced step",
        "compiled": "iaf total compiled step",
        "compiled, fit": "iaf total compiled loop",
        "compiled, path": "iaf path compiled step",
    },
}
# What our compiled step is compared with; of a peer's ways the fastest counts.
SIDES = {
    "Pyro IAF": ("Pyro IAF, SVI", "Pyro IAF, torch"),
    "Pyro couplings": ("Pyro couplings, SVI", "Pyro couplings, torch"),
    "NumPyro": ("NumPyro",),
    "path": ("compiled, path",),
}
RATES = (1e-2, 1e-3)
NEAR = 0.1  # nats
LEAST_PYRO, LEAST_NUMPYRO, MOST_NUMPYRO = 10.0, 1.25, 5.0
STEADY = 1.1  # what a cost that stays may rise by, from one measurement to the next
SECONDS = 0.1  # for which each is timed at a time
FIT_PARTICLES = 256
MOST_SCALED_ROUNDS = 5  # as a step of the largest takes many seconds


class Target(NamedTuple):
    """A ratio that is wanted at least."""

    what: str
    ratio: float
    least: float

    def __str__(self) -> str:
        return self.what if math.isnan(self.ratio) else f"{self.what}: {self.shown}"

    @property
    def shown(self) -> str:
        """The ratio against what is wanted."""
        return f"{self.ratio:.2f}, at least {self.least:g} wanted"


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ["steps", "fits", "scaling"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--particles", type=int, nargs="+", default=[1, 16, 64, 256, 1024])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the fits")
    parser.add_argument("--peer-steps", type=int, default=5000, help="of the peers' fits")
    parser.add_argument("--longer-steps", type=int, default=6000, help="of our longer fit")
    parser.add_argument("--scaled-particles", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument("--scaled-dims", type=int, nargs="+", default=[10, 32, 100, 316, 1000])
    parser.add_argument("--scaled-rung", choices=["traced", "compiled"], default="compiled")
    parser.add_argument("--numpyro-python", default=sys.executable, help="runs NumPyro")
    parser.add_argument("--cores", type=int, default=1, help="that each process may use")
    parser.add_argument("--quick", action="store_true", help="a minute, to see that it runs")
    given = parser.parse_args()
    if given.quick:
        given.models, given.particles, given.rounds = given.models[:1], [256], 3
        given.seeds, given.peer_steps = given.seeds[:1], 500
        given.longer_steps = 1000
        given.scaled_dims, given.scaled_particles = [10, 100], [64, 256]
        given.scaled_rung = "traced"
    return given


def row(cells: Sequence[object]) -> None:
    """Print one row of a Markdown table at once."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def header(cells: Sequence[object]) -> None:
    """Print the head of a Markdown table."""
    print()
    row(cells)
    row(["---"] * len(cells))


class Contest:
    """Who takes part, and where."""

    def __init__(self, given: argparse.Namespace, cache: str) -> None:
        self._pythons = dict.fromkeys(SCRIPTS, sys.executable)
        self._pythons["numpyro"] = given.numpyro_python
        self._cores, self._cache = _cores(given.cores), cache
        self.names = [name for name in SCRIPTS if name == "ours" or self._is_there(name)]

    def _is_there(self, library: str) -> bool:
        look = f"import sys, importlib.util as u; sys.exit(u.find_spec({library!r}) is None)"
        there = subprocess.run([self._pythons[library], "-c", look], check=False).returncode == 0
        if not there:
            print(f"{library}: not installed, left out")
        return there

    def worker(self, name: str) -> Worker:
        """Start a contestant, with an empty cache for its compiler."""
        cache = tempfile.mkdtemp(dir=self._cache)
        return Worker(SCRIPTS[name], self._pythons[name], self._cores, cache)


def _cores(count: int) -> set[int]:
    """Return the last of the cores that this process may use, which are mostly the quietest."""
    present = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(count)
    return set(sorted(present)[-count:])


def medians(ways: dict[str, Worker], rounds: int) -> dict[str, float]:
    """Return the median seconds of a step of each way that is ready, out of rounds in turn."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, worker in ways.items():
            seconds[way].append(worker.ask("time", way))
    return {way: statistics.median(values) for way, values in seconds.items()}


def measure_steps(contest: Contest, given: argparse.Namespace) -> list[Target]:
    """Print the table of the steps, and return the targets."""
    workers = {name: contest.worker(name) for name in contest.names}
    for name, worker in workers.items():
        versions = worker.ask("versions")
        print(f"{name}: {', '.join(f'{key} {value}' for key, value in versions.items())}")
    names = [way for name in WAYS if name in workers for way in WAYS[name]]
    sides = [side for side, ways in SIDES.items() if ways[0] in names]
    header(["ms a step", "particles", *names, *(f"{side} / compiled" for side in sides)])
    targets, first_steps = [], []
    for model in given.models:
        for particles in given.particles:
            ready, first, failures = get_ready(workers, model, particles)
            seconds = medians(ready, given.rounds)
            ratios = ratios_of(seconds)
            times = [f"{1e3 * seconds[way]:.4f}" if way in ready else "" for way in names]
            row([model, particles, *times, *(f"{ratios[side]:.2f}" for side in sides)])
            targets += step_targets(model, particles, ratios)
            targets += [Target(failure, math.nan, 1.0) for failure in failures]
            firsts = [f"{first[way]:.1f}" if way in ready else "" for way in names]
            first_steps.append([model, particles, *firsts])
    header(["s to the first step", "particles", *names])
    for cells in first_steps:
        row(cells)
    for worker in workers.values():
        worker.close()
    return targets


def get_ready(
    workers: dict[str, Worker], model: str, particles: int
) -> tuple[dict[str, Worker], dict[str, float], list[str]]:
    """Return who is ready for each way, the seconds to its first step, and what went wrong."""
    ready, first, failures = {}, {}, []
    for name, worker in workers.items():
        worker.ask("forget")
        for way, how in WAYS[name].items():
            try:
                first[way] = worker.ask("prepare", way, SECONDS, model, particles, how)
                ready[way] = worker
            except RuntimeError as error:
                failures.append(str(error))
    return ready, first, failures


def ratios_of(seconds: dict[str, float]) -> dict[str, float]:
    """Return how many times our compiled step's time each peer takes at its best."""
    ours = seconds.get("compiled", math.inf)
    times = {
        side: [seconds[way] for way in ways if way in seconds] for side, ways in SIDES.items()
    }
    return {side: min(values, default=math.nan) / ours for side, values in times.items()}


def step_targets(model: str, particles: int, ratios: dict[str, float]) -> list[Target]:
    """Return what is wanted of a row."""
    least: dict[str, float] = {}
    if particles == 256:
        least |= {"Pyro IAF": LEAST_PYRO, "Pyro couplings": LEAST_PYRO}
    if particles in (64, 256, 1024):
        least["NumPyro"] = LEAST_NUMPYRO
    elif particles == 1:
        least["NumPyro"] = 1 / MOST_NUMPYRO
    return [
        Target(f"step, {model}, {particles} particles, {side} / ours", ratios[side], wanted)
        for side, wanted in least.items()
        if not math.isnan(ratios[side])
    ]


def fitted(contest: Contest, name: str, model: str, **how: object) -> Curve:
    """Return the ELBO by time of a fit in a fresh process; nothing where it failed."""
    worker = contest.worker(name)
    try:
        return [tuple(point) for point in worker.ask("fit", model, FIT_PARTICLES, how)]
    except RuntimeError as error:
        print(error)
        return []
    finally:
        worker.close()


def reach(curves: Sequence[Curve], level: float) -> float:
    """Return the seconds until the first of some fits had an ELBO of at least a level."""
    return min(
        (seconds for curve in curves for seconds, elbo in curve if elbo >= level),
        default=math.inf,
    )


LOST = (math.inf, -math.inf)  # where a fit comes to nothing


class Fitted(NamedTuple):
    """What a contestant's fits came to: an ELBO, and the seconds until it was near."""

    elbo: float
    seconds: float
    curves: list[Curve]


def fit_of(
    contest: Contest, name: str, model: str, seed: int, given: argparse.Namespace
) -> Fitted:
    """Return the final ELBO of a contestant, and when it was first nearly there."""
    if name == "ours":
        curve = fitted(contest, name, model, seed=seed)
        longer = fitted(
            contest, name, model, seed=seed, steps=given.longer_steps, stop_early=False
        )
        curves, final = [curve], max(elbo for _, elbo in [LOST, *curve[-1:], *longer[-1:]])
    else:
        curves = [
            fitted(contest, name, model, seed=seed, steps=given.peer_steps, lr=rate)
            for rate in RATES
        ]
        final = max(_settled(curve) for curve in curves)
    return Fitted(final, reach(curves, final - NEAR), curves)


def _settled(curve: Curve) -> float:
    """Return the median of the last ELBOs, as constant steps keep them moving."""
    values = [elbo for _, elbo in curve[-5:] if not math.isnan(elbo)]
    return statistics.median(values) if values else -math.inf


def measure_fits(contest: Contest, given: argparse.Namespace) -> list[Target]:
    """Print the table of the fits, and return the targets."""
    targets = []
    peers = [name for name in contest.names if name != "ours"]
    names = ["ours", *peers]
    header(
        [
            f"s to within {NEAR} nat",
            "seed",
            *names,
            *(f"{name}, final ELBO" for name in names),
            *(f"ours to {name}'s" for name in peers),
        ]
    )
    for model in given.models:
        for seed in given.seeds:
            fits = {name: fit_of(contest, name, model, seed, given) for name in names}
            ours = fits["ours"]
            row(
                [
                    model,
                    seed,
                    *(f"{fits[name].seconds:.2f}" for name in names),
                    *(f"{fits[name].elbo:.3f}" for name in names),
                    *(f"{reach(ours.curves, fits[name].elbo - NEAR):.2f}" for name in peers),
                ]
            )
            targets += [
                Target(
                    f"fit, {model}, seed {seed}, {name} / ours",
                    fits[name].seconds / ours.seconds,
                    1.0,
                )
                for name in peers
            ]
    return targets


def measure_scaling(contest: Contest, given: argparse.Namespace) -> list[Target]:
    """Print the costs per particle, and return the targets."""
    worker = contest.worker("ours")
    way = f"default path {given.scaled_rung} step"
    header(["μs a particle, D", *(f"{count} particles" for count in given.scaled_particles)])
    targets = []
    for dim in given.scaled_dims:
        costs = []
        for particles in given.scaled_particles:
            worker.ask("forget")
            try:
                worker.ask("prepare", way, SECONDS, str(dim), particles, way)
            except RuntimeError as error:
                targets.append(Target(str(error), math.nan, 1.0))
                costs.append(math.nan)
                continue
            rounds = min(given.rounds, MOST_SCALED_ROUNDS)
            costs.append(medians({way: worker}, rounds)[way] / particles)
        row([dim, *(f"{1e6 * cost:.2f}" for cost in costs)])
        pairs = zip(given.scaled_particles[1:], costs, costs[1:], strict=False)
        targets += [
            Target(f"scaling, D={dim}, to {particles} particles", before / after, 1 / STEADY)
            for particles, before, after in pairs
            if not math.isnan(before + after)
        ]
    worker.close()
    return targets


MEASURES: dict[str, Callable[[Contest, argparse.Namespace], list[Target]]] = {
    "steps": measure_steps,
    "fits": measure_fits,
    "scaling": measure_scaling,
}


def main() -> int:
    """Measure what is asked for."""
    given = options()
    with tempfile.TemporaryDirectory() as cache:
        contest = Contest(given, cache)
        targets = [target for part in given.parts for target in MEASURES[part](contest, given)]
    header(["target", "ratio", "at least"])
    for target in targets:
        row([target.what, f"{target.ratio:.2f}", f"{target.least:g}"])
    missed = [target for target in targets if not target.ratio >= target.least]
    print()
    for target in missed:
        print(f"missed: {target}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
