"""The masked autoregressive flow, forwards and backwards: the ratio of the two costs.

    python benchmarks/maf_inverse.py [--dim 64] [--points 10000] [--repeats 15] [--threads 1 2]

Times the density direction (one network pass a layer) and the sampling direction (the block-wise
inverse) of a three-layer flow, eager, without gradients, in turn, in float32; prints the medians'
ratio and the largest difference after a round trip. The exit status is 1 where the ratio is above
3 or the difference above 1e-4.
"""

import argparse
import statistics
import sys
import time

import torch

import pyro_flows as pf


def timed(run):
    began = time.perf_counter()
    result = run()
    return result, time.perf_counter() - began


@torch.no_grad()
def measure(flow, x, repeats):
    """Return the median seconds of scoring and of sampling, and the round trip's error."""
    scoring, sampling = [], []
    for _ in range(repeats + 2):
        (eps, _), seconds = timed(lambda: flow.transform.inverse_and_ladj(x))
        scoring.append(seconds)
        (back, _), seconds = timed(lambda eps=eps: flow.transform.forward_and_ladj(eps))
        sampling.append(seconds)
    medians = [statistics.median(seconds[2:]) for seconds in (scoring, sampling)]
    return *medians, float((back - x).abs().max())


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--dim", type=int, default=64)
    arguments.add_argument("--points", type=int, default=10_000)
    arguments.add_argument("--repeats", type=int, default=15)
    arguments.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = arguments.parse_args()
    torch.manual_seed(0)
    flow = pf.flows.maf(options.dim, num_transforms=3)
    for parameter in flow.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    x = torch.randn(options.points, options.dim)
    print(f"maf({options.dim}), 3 layers, {options.points} points")
    missed = False
    for threads in options.threads:
        torch.set_num_threads(threads)
        scoring, sampling, difference = measure(flow, x, options.repeats)
        ratio = sampling / scoring
        missed |= ratio > 3 or difference > 1e-4
        print(
            f"{threads} threads: scoring {scoring * 1e3:.1f} ms, "
            f"sampling {sampling * 1e3:.1f} ms, "
            f"sampling / scoring {ratio:.2f}, largest round-trip difference {difference:.1e}"
        )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
