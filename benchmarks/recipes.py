"""What each recipe costs: drawing, scoring, and a step of each, in ms.

    python benchmarks/recipes.py [--dim 16] [--points 1000] [--repeats 7]

Draws points with their log-densities, and scores others, by a flow of every recipe with its
defaults, all in turn, medians, one thread, float32, without gradients; and the same with the
gradients of all parameters, as in a step that fits a guide or a density. Nothing is judged: the
table tells what to expect of one family beside another.
"""

import argparse

import torch
from _timing import interleaved

import pyro_flows as pf

RECIPES = {
    "realnvp": pf.flows.realnvp,
    "nice": pf.flows.nice,
    "iaf": pf.flows.iaf,
    "maf": pf.flows.maf,
    "nsf": pf.flows.nsf,
    "nsf, coupling": lambda dim: pf.flows.nsf(dim, kind="coupling"),
    "naf": pf.flows.naf,
    "bnaf": pf.flows.bnaf,
    "sospf": pf.flows.sospf,
    "elementwise": pf.flows.elementwise,
    "planar": pf.flows.planar,
    "radial": pf.flows.radial,
    "sylvester": pf.flows.sylvester,
    "cnf": pf.flows.cnf,
}


def runs(flow, x):
    """Return what is timed: both directions, without gradients and with."""

    def draw():
        return flow.rsample_with_log_prob((len(x),))[1].mean()

    def score():
        return flow.log_prob(x).mean()

    return {
        "draw": torch.no_grad()(draw),
        "score": torch.no_grad()(score),
        "draw, gradients": lambda: draw().backward(),
        "score, gradients": lambda: score().backward(),
    }


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--dim", type=int, default=16)
    arguments.add_argument("--points", type=int, default=1000)
    arguments.add_argument("--repeats", type=int, default=7)
    options = arguments.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    x = torch.randn(options.points, options.dim)
    flows = {name: recipe(options.dim) for name, recipe in RECIPES.items()}
    timed = {
        (name, what): run for name, flow in flows.items() for what, run in runs(flow, x).items()
    }
    seconds = interleaved(timed, options.repeats)
    columns = list(runs(flows["nice"], x))
    print(f"{options.points} points of {options.dim} coordinates, ms\n")
    print("| recipe | parameters |", *(f"{what} |" for what in columns))
    print("|---|---|" + "---|" * len(columns))
    for name, flow in flows.items():
        count = sum(parameter.numel() for parameter in flow.parameters())
        print(f"| {name} | {count:,} |", *(f"{1e3 * seconds[name, c]:.1f} |" for c in columns))


if __name__ == "__main__":
    main()
