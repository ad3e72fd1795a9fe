"""Eight schools, both forms, three seeds, with the defaults: errors against reference draws.

    python benchmarks/eight_schools.py [--posteriordb FOLDER] [--flow NAME] [--seeds 0 1 2]

Prints a Markdown table; the exit status is 1 where a row misses its target: a largest mean error
of 0.1 reference sd, a largest |log sd ratio| of 0.15, 60 s.
"""

import sys

from _eight_schools import REFERENCE, SIGMA, Y, centered, noncentered, posterior_draws
from _posteriordb import discrepancies, parser, reference_draws

import pyro_flows as pf

TARGETS = {"mean error": 0.1, "log sd ratio": 0.15, "seconds": 60.0}


def main():
    arguments = parser(__doc__)
    arguments.add_argument(
        "--flow", default=None, help="a recipe's name; the default guide if left out"
    )
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = arguments.parse_args()
    reference = reference_draws(options.posteriordb, REFERENCE)
    choice = {} if options.flow is None else {"flow": options.flow}
    print("| model | seed | mean error / sd | log sd ratio | k-hat | ELBO | seconds |")
    print("|---|---|---|---|---|---|---|")
    missed = False
    for model in (noncentered, centered):
        for seed in options.seeds:
            guide = pf.AutoFlow(model, **choice)
            result = pf.fit(model, guide, Y, SIGMA, seed=seed, progress=False)
            mean, ratio = discrepancies(posterior_draws(model, guide, 20_000), reference)
            missed |= any(
                value > limit
                for value, limit in zip(
                    (mean, ratio, result.seconds), TARGETS.values(), strict=True
                )
            )
            print(
                f"| {model.__name__} | {seed} | {mean:.3f} | {ratio:.3f} | {result.k_hat:.2f} "
                f"| {result.elbo:.3f} ± {result.elbo_se:.3f} | {result.seconds:.1f} |",
                flush=True,
            )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
