"""AutoFlow along priors and along the posterior's graph: what it reaches, and what it costs.

    python benchmarks/following.py [--models schools groups chain] [--seeds 0 1 2] [--steps N]

- ``schools``: eight schools, centred; 10 latents.
- ``groups``: 500 groups of five rows, their mean, spread and noise; 503 latents.
- ``chain``: a random walk of log-volatilities of 40 days, written as a loop; 42 latents.

Each model is fitted by ``AutoFlow`` with its defaults (``prior``), with ``follow="posterior"``,
and with that around the default's couplings (``posterior, realnvp``). Printed are the ELBO, k-hat
and effective share of 10,000 draws, the number of parameters, and seconds of the thread's time.
"""

import argparse
import sys
import time

import pyro
import pyro.distributions as dist
import torch
from _plate_models import SCHOOLS, schools_model

import pyro_flows as pf

WAYS = {
    "prior": {},
    "posterior": {"follow": "posterior"},
    "posterior, realnvp": {"follow": "posterior", "flow": "realnvp"},
}
NUM_DRAWS = 10_000


def groups_model(y):
    """A mean for each group, around a common one."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(2.0))
    noise = pyro.sample("noise", dist.HalfNormal(2.0))
    with pyro.plate("groups", y.shape[0], dim=-2):
        mean = pyro.sample("mean", dist.Normal(mu, tau))
        with pyro.plate("rows", y.shape[1], dim=-1):
            pyro.sample("y", dist.Normal(mean, noise), obs=y)


def chain_model(returns):
    """A random walk of the log of a volatility, a site for each day."""
    step = pyro.sample("step", dist.HalfNormal(0.5))
    level = pyro.sample("h_0", dist.Normal(0.0, 2.0))
    for day in range(len(returns)):
        level = pyro.sample(f"h_{day + 1}", dist.Normal(level, step))
        pyro.sample(f"return_{day}", dist.Normal(0.0, level.exp()), obs=returns[day])


def models():
    """Return each model with its data."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    walk = (0.2 * normal(40)).cumsum(0) - 1.0
    return {
        "schools": (schools_model, SCHOOLS),
        "groups": (groups_model, (1.0 + 0.5 * normal(500, 1) + normal(500, 5),)),
        "chain": (chain_model, (walk.exp() * normal(40),)),
    }


def row(cells):
    """Print one row of a Markdown table at once."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def main():
    """Fit what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=list(models()), default=list(models()))
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="the default's, if not given")
    given = parser.parse_args()
    torch.set_num_threads(1)
    options = {} if given.steps is None else {"steps": given.steps}
    row(["model", "follow", "seed", "ELBO", "k-hat", "effective", "parameters", "steps", "s"])
    row(["---"] * 9)
    for name in given.models:
        model, data = models()[name]
        for way in given.ways:
            for seed in given.seeds:
                pyro.clear_param_store()
                guide, began = pf.AutoFlow(model, **WAYS[way]), time.thread_time()
                result = pf.fit(model, guide, *data, seed=seed, progress=False, **options)
                spent = time.thread_time() - began
                report = pf.diagnose(model, guide, *data, num_draws=NUM_DRAWS, seed=seed)
                numbers = sum(parameter.numel() for parameter in guide.parameters())
                effective = f"{report.ess / NUM_DRAWS:.0%}"
                quality = f"{report.elbo:.3f}", f"{report.k_hat:.2f}", effective
                row([name, way, seed, *quality, numbers, len(result.losses), f"{spent:.0f}"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
