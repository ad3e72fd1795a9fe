"""Time and memory of the conversion to ArviZ.

    python benchmarks/conversion.py

converts 4,000 draws of eight schools, and of a regression on 10,000 rows with its log-likelihood
and posterior predictive, each in a process of its own with ArviZ imported already. The guides are
at their start: converting does not depend on the fit. Prints the least seconds of some runs, in
processor time of the one thread, and the peak of the process's whole memory. The exit status is 1
where a target is missed: 1 second for eight schools; 5 seconds and 2 GB for the regression.
"""

import argparse
import multiprocessing
import resource
import sys
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from _timing import clock

import pyro_flows as pf
from pyro_flows.infer.importance import import_arviz

MOST_SECONDS = {"eight schools": 1.0, "regression": 5.0}
MOST_GIGABYTES = 2.0
NUM_DRAWS, ROWS, COLUMNS = 4000, 10_000, 10
EFFECTS, ERRORS = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0), (15, 10, 16, 11, 9, 11, 10, 18)


def eight_schools(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def regression(x, y):
    beta = pyro.sample("beta", dist.Normal(torch.zeros(COLUMNS), 1.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("row", len(y)):
        # One row of means for each draw: beta is (10,), or (draws, 1, 10).
        mean = beta @ x.T
        pyro.sample("y", dist.Normal(mean.squeeze(-2) if mean.dim() > 1 else mean, sigma), obs=y)


def case(name: str) -> tuple[Callable[..., Any], tuple[torch.Tensor, ...]]:
    """Return a model and its data."""
    if name == "eight schools":
        return eight_schools, (torch.tensor(EFFECTS), torch.tensor(ERRORS))
    x = torch.randn(ROWS, COLUMNS)
    return regression, (x, x.sum(-1) + torch.randn(ROWS))


def measure(name: str, repeats: int, threads: int, results: Any) -> None:
    """Put the least seconds, and the peak of the memory in GB, into the queue."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    import_arviz()
    model, data = case(name)
    guide = pf.AutoFlow(model)
    guide.initialise(*data)
    seconds = []
    for _ in range(repeats):
        began = clock()
        idata = pf.to_arviz(model, guide, *data, num_draws=NUM_DRAWS)
        seconds.append(clock() - began)
        assert idata["log_likelihood"]["y"].shape == (1, NUM_DRAWS, len(data[1]))
        del idata
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    results.put((min(seconds), peak / 1e9))


def main() -> int:
    """Measure both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    context, missed = multiprocessing.get_context("spawn"), 0
    print(f"torch {torch.__version__}, threads: {given.threads}, draws: {NUM_DRAWS}")
    for name, most in MOST_SECONDS.items():
        results = context.SimpleQueue()
        process = context.Process(
            target=measure, args=(name, given.repeats, given.threads, results)
        )
        process.start()
        process.join()
        if process.exitcode:
            return 1
        seconds, gigabytes = results.get()
        print(f"{name}: {seconds:.2f} s (at most {most:g}), peak {gigabytes:.2f} GB", flush=True)
        missed += seconds > most or gigabytes > MOST_GIGABYTES
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
