"""Densities of three tables, against Zuko, nflows, normflows, flowjax, a Gaussian and kernels.

    pip install -e '.[bench]'
    python -m benchmarks.density.uci [--quick] [--tables power-plant protein wine-red]
        [--data ../shared/uci] [--seeds 0] [--budget 60] [--rates 1e-3 3e-3]
        [--flowjax-python PATH]

Rows are shuffled once by the seed and cut into 80/10/10 % in that order; every column of the file
is modelled, standardised by the training rows for everybody. Printed is the mean log-likelihood of
the test rows in nats, in standardised units. Each library trains an autoregressive flow of
rational-quadratic splines, three transforms with two layers (or residual blocks) of 128 units, for
the same seconds of one thread's own time, on which other programs have no bearing, with the best
state on the validation rows kept; flowjax' compiling is left out of its time. The peers have Adam
with half a cosine, in batches of 256, with splines of 8 and of 16 bins at several largest step
sizes, each with a full budget; the validation rows choose one. Ours has two settings, of 16 bins,
in uncompiled steps of narrower networks, with linear layers between, a base of heavy tails, and
weights that decay the more the fewer rows there are; its budget includes the recording of the
step.

Kernels are Gaussian, their width chosen by the validation rows. Tables hold copies and coarsely
rounded columns, which a density may follow with ever higher peaks; that is open to all.

The exit status is 1 where a target is missed: the highest likelihood on each table, in the mean
over seeds.
"""

import argparse
import gzip
import itertools
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from _peers.densities import (
    BATCH,
    OURS,
    PEERS,
    Outcome,
    Rows,
    fit_ours,
    fit_peer,
    gaussian,
    kernels,
)
from _step_worker import Worker

TABLES = {
    "power-plant": "power-plant",
    "protein": "protein-tertiary-structure",
    "wine-red": "wine-quality-red",
}
ROOT = Path(__file__).resolve().parents[2]


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", nargs="+", choices=list(TABLES), default=list(TABLES))
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "uci")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--budget", type=float, default=60.0, help="seconds")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3])
    parser.add_argument("--bins", type=int, nargs="+", default=[8, 16], help="of the peers")
    parser.add_argument("--flowjax-python", default=sys.executable, help="runs flowjax")
    parser.add_argument("--quick", action="store_true", help="two seconds, to see that it runs")
    given = parser.parse_args()
    if given.quick:
        given.tables, given.seeds, given.budget = given.tables[-1:], given.seeds[:1], 2.0
    return given


def read(table: str, folder: Path, seed: int) -> Rows:
    """Return the standardised rows of a table, in three parts."""
    with gzip.open(folder / f"{TABLES[table]}.txt.gz") as file:
        values = np.loadtxt(file)
    values = values[np.random.default_rng(seed).permutation(len(values))]
    ends = len(values) * 8 // 10, len(values) * 9 // 10
    train = values[: ends[0]]
    values = (values - train.mean(0)) / train.std(0)
    return Rows(*(torch.tensor(part).float() for part in np.split(values, ends)))


def fit_flowjax(python: str, rows: Rows, setting: dict[str, float]) -> Outcome:
    """Return how flowjax does, in a process of its own."""
    core = max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/rows.npz"
        np.savez(file, **{name: part.numpy() for name, part in rows._asdict().items()})
        worker = Worker("flowjax_step", python, {core}, folder)
        try:
            (validation, test), (steps, seconds) = worker.ask("fit", file, BATCH, setting)
        finally:
            worker.close()
    return Outcome(validation, test, steps, seconds)


def contest(rows: Rows, seed: int, given: argparse.Namespace) -> Iterator[tuple[str, Outcome]]:
    """Let each contestant fit, and return its best by the validation rows."""
    ours = [fit_ours(rows, given.budget, seed, **setting) for setting in OURS]
    yield "ours", max(ours, key=lambda outcome: outcome.validation)
    for library in [*PEERS, "flowjax"]:
        outcomes = []
        for bins, lr in itertools.product(given.bins, given.rates):
            setting = {"budget": given.budget, "lr": lr, "bins": bins, "seed": seed}
            try:
                if library == "flowjax":
                    outcomes.append(fit_flowjax(given.flowjax_python, rows, setting))
                else:
                    outcomes.append(fit_peer(library, rows, **setting))
            except (ModuleNotFoundError, RuntimeError) as error:
                print(f"{library}: left out: {str(error).splitlines()[0]}")
                break
        if outcomes:
            yield library, max(outcomes, key=lambda outcome: outcome.validation)
    yield "gaussian", gaussian(rows)
    yield "kernels", kernels(rows)


def row(cells: list[object]) -> None:
    """Print one row of a Markdown table at once."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def main() -> int:
    """Measure what is asked for."""
    given, missed = options(), []
    torch.set_num_threads(1)
    torch.distributions.Distribution.set_default_validate_args(False)
    print(f"torch {torch.__version__}, one thread, {given.budget:g} s each, float32; nats a row\n")
    row(["table", "seed", "contestant", "test", "validation", "steps", "s"])
    row(["---"] * 7)
    means: dict[str, dict[str, float]] = {}
    for table in given.tables:
        scores: dict[str, list[float]] = {}
        for seed in given.seeds:
            rows = read(table, given.data, seed)
            for name, found in contest(rows, seed, given):
                scores.setdefault(name, []).append(found.test)
                figures = f"{found.test:.3f}", f"{found.validation:.3f}"
                row([table, seed, name, *figures, found.steps, f"{found.seconds:.1f}"])
        means[table] = {name: statistics.fmean(values) for name, values in scores.items()}
    print("\nMeans over the seeds, and what ours is above the best of the others:\n")
    names = list(dict.fromkeys(name for found in means.values() for name in found))
    row(["table", *names, "ours above"])
    row(["---"] * (len(names) + 2))
    for table, found in means.items():
        rival = max((name for name in found if name != "ours"), key=lambda name: found[name])
        ahead = found["ours"] - found[rival]
        cells = [f"{found[name]:.3f}" if name in found else "" for name in names]
        row([table, *cells, f"{ahead:.3f} ({rival})"])
        if not ahead > 0:
            missed.append(f"{table}: {ahead:.3f} nats above {rival}, more than 0 wanted")
    for line in missed:
        print(f"missed: {line}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
