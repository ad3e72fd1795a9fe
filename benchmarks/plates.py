"""Models whose plates hold latents: AutoPlateFlow against closed forms, NUTS and Pyro's guides.

    pip install -e '.[bench]'
    python benchmarks/plates.py [--parts normal schools linear rows radon] [--seeds 0] [--quick]
    python benchmarks/plates.py --parts reference

- ``normal``: a hierarchical normal model of 60 rows in mini-batches of 20, whose posterior and
  evidence have closed forms.
- ``schools``: eight schools, centred, against draws by quadrature over mean and spread.
- ``linear``: ms of a step for up to 5,000 members in memory.
- ``rows``: ms of a step with one latent for each of 100,000 rows of 20 numbers, in batches of 512
  with an encoder of 2 x 128 units and one particle, against an amortised Gaussian guide written by
  hand, whose encoder is the same; both are fitted by ``fit``, in compiled steps, in turn.
- ``radon``: varying intercepts and slopes of 919 rows in 85 groups of very different sizes, made
  with known parameters; means and sds against NUTS (``reference`` runs that again, for 20
  minutes), ELBOs against four of Pyro's guides, each trained by Pyro's SVI for 4,000 steps of 16
  particles.

All runs are of one thread. Where a figure misses its target, it is marked, and the exit status
is 1.
"""

import argparse
import itertools
import json
import math
import statistics
import sys
import time
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from _plate_models import (
    NOISE,
    NUM_ROWS,
    SCHOOLS,
    SPREAD,
    many_rows_model,
    radon_data,
    radon_model,
    rows_model,
    rows_posterior,
    schools_model,
    schools_posterior,
    whitened_radon_model,
)
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer import autoguide as pyros
from torch import nn

import pyro_flows as pf

REFERENCE = Path(__file__).with_name("plates_radon.json")
PARTS = ("normal", "schools", "linear", "rows", "radon")


def options():
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=(*PARTS, "reference"), default=PARTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--quick", action="store_true", help="few steps, to see that it runs")
    return parser.parse_args()


class Table:
    """Prints figures with their targets, and remembers whether one was missed."""

    def __init__(self):
        self.missed = False

    def row(self, what, figure, target="", met=True):
        self.missed |= not met
        mark = "" if met else " **missed**"
        print(f"| {what} | {figure}{mark} | {target} |", flush=True)


def draws_of(guide, num, *args):
    """Return draws of each site, of shape ``(num, -1)``, for all members."""
    with torch.no_grad(), pyro.plate("_many", num, dim=-3):
        return {name: value.reshape(num, -1).double() for name, value in guide(*args).items()}


def compare(draws, means, sds):
    """Return the largest error of a mean, in sds, and of an sd, as a share."""
    of_means = max(((draws[k].mean(0) - means[k]) / sds[k]).abs().max().item() for k in means)
    of_sds = max((draws[k].std(0) / sds[k] - 1).abs().max().item() for k in means)
    return of_means, of_sds


def normal(table, given, seed):
    generator = torch.Generator().manual_seed(3)
    y = 1.5 + (SPREAD**2 + NOISE**2) ** 0.5 * torch.randn(60, generator=generator)
    means, sds, evidence = rows_posterior(y)
    guide = pf.AutoPlateFlow(rows_model)
    steps = 50 if given.quick else 4000
    result = pf.fit(rows_model, guide, y, 20, steps=steps, particles=32, seed=seed, progress=False)
    report = pf.diagnose(rows_model, guide, y, num_draws=10_000, seed=seed)
    gap = evidence - report.elbo
    of_means, of_sds = compare(draws_of(guide, 40_000, y), means, sds)
    table.row(f"normal, seed {seed}: evidence - ELBO, nats", f"{gap:.4f}", "0.1", gap < 0.1)
    table.row("... largest error of a mean, sds", f"{of_means:.3f}", "0.05", of_means < 0.05)
    table.row("... largest error of an sd, share", f"{of_sds:.3f}", "0.05", of_sds < 0.05)
    table.row("... seconds, start included", f"{result.seconds:.0f}")


def schools(table, given, seed):
    guide = pf.AutoPlateFlow(schools_model)
    steps = 50 if given.quick else 2000
    result = pf.fit(schools_model, guide, *SCHOOLS, steps=steps, seed=seed, progress=False)
    report = pf.diagnose(schools_model, guide, *SCHOOLS, num_draws=100_000, seed=seed)
    draws = draws_of(guide, 100_000, *SCHOOLS)
    draws["log tau"] = draws.pop("tau").log()
    of_means, of_sds = compare(draws, *schools_posterior(*SCHOOLS))
    k_hat = report.k_hat
    table.row(f"schools, seed {seed}: k-hat", f"{k_hat:.2f}", "0.7", k_hat < 0.7)
    table.row("... largest error of a mean, sds", f"{of_means:.3f}", "0.1", of_means < 0.1)
    table.row("... largest error of an sd, share", f"{of_sds:.3f}")
    table.row("... ELBO and evidence", f"{report.elbo:.3f}, {report.log_evidence:.3f}")
    table.row("... seconds, start included", f"{result.seconds:.0f}")


def linear(table, given, seed):
    sizes = (100, 200) if given.quick else (1250, 2500, 5000)
    times = {}
    for size in sizes:
        y = torch.randn(size, generator=torch.Generator().manual_seed(seed))
        guide = pf.AutoPlateFlow(rows_model, start="prior")
        guide.initialise(y)
        largest = max(p.numel() for p in guide.state_dict().values())
        times[size] = ms_of_steps(
            guide, rows_model, [(y,)], particles=16, engine="traced", steps=60
        )
        table.row(f"linear: ms a step of {size} members", f"{times[size]:.1f}")
        table.row("... numbers of the largest tensor, by member", f"{largest / size:.0f}")
    first, last = sizes[0], sizes[-1]
    growth = (times[last] / times[first]) / (last / first)
    table.row(
        "linear: growth of the time by that of the members", f"{growth:.2f}", "1.2", growth < 1.2
    )


def ms_of_steps(guide, model, batches, *, particles, engine, steps):
    """Return the median ms of the later steps of a fit."""
    ends = []
    pf.fit(
        model,
        guide,
        batches=batches,
        steps=steps,
        particles=particles,
        lr=1e-3,
        engine=engine,
        stop_early=False,
        progress=False,
        callbacks=[lambda info: ends.append(time.perf_counter())],
    )
    taken = [after - before for before, after in itertools.pairwise(ends)]
    return 1e3 * statistics.median(taken[len(taken) // 2 :])


WIDTH, BATCH = 20, 512


class Encoder(nn.Module):
    def __init__(self, output_dim):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(WIDTH, 128),
            nn.SiLU(),
            nn.Linear(128, 128),
            nn.SiLU(),
            nn.Linear(128, output_dim),
        )

    def forward(self, indices, y, rows):
        return self.net(y)


class ByHand(pyro.nn.PyroModule):
    """What a user would write: independent Gaussians, the rows' by an encoder."""

    def __init__(self):
        super().__init__()
        self.encoder = Encoder(2)
        self.loc = nn.Parameter(torch.zeros(2))
        self.log_scale = nn.Parameter(torch.full((2,), -2.0))

    def forward(self, y, rows):
        scale = self.log_scale.exp()
        pyro.sample("mu", dist.Normal(self.loc[0], scale[0]))
        pyro.sample("spread", dist.LogNormal(self.loc[1], scale[1]))
        loc, log_scale = self.encoder(rows, y, rows).unbind(-1)
        with pyro.plate("rows", NUM_ROWS, subsample=rows):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))


def rows(table, given, seed):
    generator = torch.Generator().manual_seed(seed)
    z = 1 + 0.8 * torch.randn(NUM_ROWS, generator=generator)
    y = z[:, None] + torch.randn(NUM_ROWS, WIDTH, generator=generator)
    members = torch.randperm(NUM_ROWS, generator=generator).split(BATCH)[:50]
    batches = [(y[index], index) for index in members]
    engine, rounds = ("traced", 1) if given.quick else ("compiled", 3)
    times = {"by hand": [], "path gradient": [], "total gradient": []}
    for _ in range(rounds):
        for name, taken in times.items():
            guide = ByHand()
            if name != "by hand":
                gradient = name.split()[0]
                guide = pf.AutoPlateFlow(
                    many_rows_model, encode=Encoder(8), start="prior", gradient=gradient
                )
                guide.initialise(*batches[0])
            taken.append(
                ms_of_steps(guide, many_rows_model, batches, particles=1, engine=engine, steps=400)
            )
    hand = statistics.median(times["by hand"])
    table.row(f"rows: ms a step, by hand, {engine}", f"{hand:.2f}")
    for name in ("path gradient", "total gradient"):
        ms = statistics.median(times[name])
        met = ms < 1.5 * hand
        table.row(f"... AutoPlateFlow, {name}", f"{ms:.2f}, x {ms / hand:.2f}", "x 1.5", met)


def reference(table, given, seed):
    """Run NUTS for the radon-like model, and write down what it says."""
    pyro.set_rng_seed(seed)
    data = [x.double() if x.is_floating_point() else x for x in radon_data()]
    num, warmup = (20, 20) if given.quick else (6000, 1000)
    torch.set_default_dtype(torch.float64)
    mcmc = MCMC(NUTS(whitened_radon_model), num, warmup, disable_progbar=True)
    mcmc.run(*data)
    torch.set_default_dtype(torch.float32)
    draws = mcmc.get_samples()
    draws["effects"] = draws["means"][:, None] + draws["spreads"][:, None] * draws.pop("white")
    flat = {name: value.reshape(num, -1) for name, value in draws.items()}
    ess = min(
        pyro.ops.stats.effective_sample_size(value[None]).min().item() for value in flat.values()
    )
    if not given.quick:
        moments = {
            name: {"mean": value.mean(0).tolist(), "sd": value.std(0).tolist()}
            for name, value in flat.items()
        }
        REFERENCE.write_text(json.dumps({"draws": num, "least_ess": round(ess), "sites": moments}))
    table.row("reference: least effective draws of NUTS", f"{ess:.0f}")


PYROS = {
    "AutoNormal": pyros.AutoNormal,
    "AutoMultivariateNormal": pyros.AutoMultivariateNormal,
    "AutoLowRankMultivariateNormal": pyros.AutoLowRankMultivariateNormal,
    "AutoHierarchicalNormalMessenger": pyros.AutoHierarchicalNormalMessenger,
}


def elbo_by_svi(make, data, steps):
    """Train one of Pyro's guides, its step size decayed, and return its ELBO."""
    pyro.clear_param_store()
    guide = make(radon_model)
    # One of them would else make its parameters once for each particle.
    guide(*data)
    last = 0.1 ** (1 / steps)
    optimizer = pyro.optim.ClippedAdam({"lr": 0.02, "lrd": last, "clip_norm": 10.0})
    loss = Trace_ELBO(16, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(radon_model, guide, optimizer, loss)
    for _ in range(steps):
        svi.step(*data)
    final = Trace_ELBO(1000, vectorize_particles=True, max_plate_nesting=1)
    return -statistics.mean(final.loss(radon_model, guide, *data) for _ in range(5))


def radon(table, given, seed):
    data = radon_data()
    steps = 50 if given.quick else 2000
    guide = pf.AutoPlateFlow(radon_model)
    result = pf.fit(
        radon_model, guide, *data, steps=steps, particles=64, seed=seed, progress=False
    )
    report = pf.diagnose(radon_model, guide, *data, num_draws=10_000, seed=seed)
    table.row(f"radon, seed {seed}: ELBO", f"{report.elbo:.2f}")
    table.row(
        "... evidence by its weights", f"{report.log_evidence:.2f}, k-hat {report.k_hat:.2f}"
    )
    table.row("... seconds, start included", f"{result.seconds:.0f}")
    if REFERENCE.is_file():
        sites = json.loads(REFERENCE.read_text())["sites"]
        means = {name: torch.tensor(site["mean"]).double() for name, site in sites.items()}
        sds = {name: torch.tensor(site["sd"]).double() for name, site in sites.items()}
        draws = draws_of(guide, 40_000, *data)
        of_means, of_sds = compare(draws, means, sds)
        met = of_means < 0.1
        table.row("... largest error of a mean against NUTS, sds", f"{of_means:.3f}", "0.1", met)
        table.row("... largest error of an sd against NUTS, share", f"{of_sds:.3f}")
    best = -math.inf
    for name, make in PYROS.items():
        pyro.set_rng_seed(seed)
        elbo = elbo_by_svi(make, data, 20 if given.quick else 4000)
        table.row(f"... ELBO of {name}", f"{elbo:.2f}")
        best = max(best, elbo)
    table.row(
        "... above the best of these by", f"{report.elbo - best:.2f}", "0", report.elbo > best
    )


def main():
    given, table = options(), Table()
    torch.set_num_threads(1)
    print("| | figure | target |\n|---|---|---|")
    for part in given.parts:
        timed = part in ("linear", "rows", "reference")
        for seed in given.seeds[:1] if timed else given.seeds:
            pyro.clear_param_store()
            pyro.set_rng_seed(seed)
            globals()[part](table, given, seed)
    return int(table.missed)


if __name__ == "__main__":
    sys.exit(main())
