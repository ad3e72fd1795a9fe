"""Continuous flows on two tables, by flow matching, against couplings by maximum likelihood.

    python -m benchmarks.density.continuous [--quick] [--tables power-plant protein] [--whitened]
        [--data ../shared/uci] [--seeds 0] [--budget 60] [--threads 1]

Rows and their three parts are those of ``benchmarks.density.uci``. Each contestant trains for the
same seconds of one thread's own time, with recorded steps in batches of 256, and keeps its best
state on the validation rows. The couplings are eight affine ones (``realnvp``) and three splines
(``nsf``), of two layers of 128 units; the continuous flow has three of 128. It is trained by
flow matching, or in turn by that and maximum likelihood with a cost of transport. Its rows are
scored by Dormand-Prince at a tolerance of 1e-5, with the exact trace. Each runs twice: as it is,
and with a last transform that gives back the covariance of the training rows, so that flows see
rows without correlations. Printed is the mean log-likelihood of the test rows in nats, in
standardised units.

The exit status is 1 where the continuous flow's best run scores below the affine couplings'.
"""

import argparse
import itertools
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from _peers.densities import Outcome, Rows, fit_within, mean_score
from torch import Tensor

from benchmarks.density.uci import ROOT, read, row
from pyro_flows import Flow, flows
from pyro_flows.density import MleResult, fit_matching, fit_mle
from pyro_flows.transforms import LowerTriangularAffine, TransportCost

WIDTH, LR = 128, 5e-3
TOLERANCE = 1e-5
MATCHING_EPOCHS, COST = 6, TransportCost(0.01, 0.01)


def continuous(dim: int) -> Flow:
    """Return a continuous flow that is scored by adaptive steps."""
    flow = flows.cnf(dim, hidden_dims=(WIDTH,) * 3, activation="silu")
    (part,) = flow.transform.parts
    part.solver, part.tolerance = "dopri5", TOLERANCE
    return flow


def in_turn(flow: Flow, data: Tensor, *, epochs: int, lr: float, **options: object) -> MleResult:
    """Train by flow matching, then by maximum likelihood with a price on what is hard to solve."""
    part = flow.transform.parts[0]
    fit_matching(flow, data, epochs=MATCHING_EPOCHS * epochs, lr=2 * lr, **options)
    part.solver, part.num_steps = "rk4", 8
    result = fit_mle(flow, data, epochs=epochs, lr=0.4 * lr, penalty=COST, **options)
    part.solver = "dopri5"
    return result


CONTESTANTS: dict[str, tuple[Callable[[int], Flow], Callable[..., MleResult]]] = {
    "continuous, matching": (continuous, fit_matching),
    "continuous, in turn": (continuous, in_turn),
    "affine couplings": (partial(flows.realnvp, hidden_dims=(WIDTH,) * 2), fit_mle),
    "spline couplings": (partial(flows.nsf, kind="coupling", hidden_dims=(WIDTH,) * 2), fit_mle),
}


def contest(name: str, rows: Rows, seed: int, budget: float, *, whitened: bool) -> Outcome:
    """Train one contestant for its time, and score the rows."""
    recipe, train = CONTESTANTS[name]

    def make() -> Flow:
        flow = recipe(rows.train.shape[1])
        if not whitened:
            return flow
        covariance = rows.train.double().T.cov()
        scale_tril = torch.linalg.cholesky(covariance).float()
        last = LowerTriangularAffine(len(scale_tril), scale_tril=scale_tril)
        return Flow([*flow.transform.parts, last], base=flow.base_dist)

    result, seconds, flow = fit_within(budget, train, make, rows, seed, lr=LR)
    flow.eval()
    scores = [mean_score(flow.log_prob, part) for part in (rows.validation, rows.test)]
    return Outcome(*scores, result.steps, seconds)


def main() -> int:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tables = ["power-plant", "protein"]
    parser.add_argument("--tables", nargs="+", choices=tables, default=tables)
    names = list(CONTESTANTS)
    parser.add_argument("--contestants", nargs="+", choices=names, default=names)
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument("--whitened", dest="ways", action="store_const", const=(True,))
    rows.add_argument("--as-it-is", dest="ways", action="store_const", const=(False,))
    parser.set_defaults(ways=(False, True))
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "uci")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--budget", type=float, default=60.0, help="seconds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="two seconds, to see that it runs")
    given, missed = parser.parse_args(), []
    given.budget = 2.0 if given.quick else given.budget
    torch.set_num_threads(given.threads)
    print(f"torch {torch.__version__}, {given.threads} threads, {given.budget:g} s each\n")
    row(["table", "seed", "contestant", "whitened", "test", "validation", "steps", "s"])
    row(["---"] * 8)
    for table in given.tables:
        for seed in given.seeds:
            rows, tests = read(table, given.data, seed), {}
            for name, whitened in itertools.product(given.contestants, given.ways):
                found = contest(name, rows, seed, given.budget, whitened=whitened)
                tests[name] = max(found.test, tests.get(name, -math.inf))
                figures = f"{found.test:.3f}", f"{found.validation:.3f}"
                steps = found.steps, f"{found.seconds:.1f}"
                row([table, seed, name, whitened, *figures, *steps])
            ours = max(tests[name] for name in tests if name.startswith("continuous"))
            short = tests.get("affine couplings", -math.inf) - ours
            if short > 0:
                missed.append(f"{table}, seed {seed}: {short:.3f} nats below affine couplings")
    for line in missed:
        print(f"missed: {line}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
