"""Eighteen posteriors, fitted by guides with one set of defaults, against reference draws.

    pip install -e '.[bench]'
    python -m benchmarks.posteriors [--posteriordb FOLDER] [--posteriors NAME ...]
        [--guides ours AutoNormal AutoMultivariateNormal AutoIAFNormal | a recipe's name ...]
        [--seeds 0 1 2] [--dtype float32] [--jobs 1] [--markdown FILE] [--csv FILE]

Each fit runs in a fresh process with an empty compiler's cache; its seconds count all from the
making of the guide to the end of the fit. ``ours`` is the default guide with the default options;
Pyro's guides take 5,000 steps of Adam at 1e-2 and at 1e-3, with 16 particles at once, and the
higher ELBO counts. The columns: largest and mean |mean error| over the reference sd; largest |log
sd ratio|, and the same between halves of the reference draws; mean marginal 1-Wasserstein distance
over that between these halves; of 10,000 draws the k-hat (not defined where all weights are as
good as equal), the effective share and the ELBO; seconds; how the fit ended.

The exit status is 1 where ours misses a target.
"""

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks.posteriors.contestants import PYROS
from benchmarks.posteriors.models import POSTERIORS
from benchmarks.posteriors.one_fit import one_fit
from benchmarks.posteriors.posteriordb import default_root
from benchmarks.posteriors.report import write


def main() -> int:
    """Run the table, and return the exit status."""
    options = arguments()
    jobs = [
        (name, guide, seed, options.posteriordb, options.dtype)
        for name in options.posteriors
        for guide in options.guides
        for seed in options.seeds
    ]
    context = get_context("spawn")
    with ProcessPoolExecutor(options.jobs, context, max_tasks_per_child=1) as pool:
        return write(pool.map(one_fit, *zip(*jobs, strict=True)), options.markdown, options.csv)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--posteriordb", type=Path, default=default_root(), help="its folder")
    result.add_argument("--posteriors", nargs="+", choices=list(POSTERIORS), metavar="NAME")
    result.add_argument("--guides", nargs="+", default=["ours", *PYROS])
    result.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    result.add_argument("--jobs", type=int, default=1, help="fits at a time")
    result.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    result.add_argument("--markdown", type=Path, help="where the table goes besides")
    result.add_argument("--csv", type=Path, help="where the figures go, unrounded")
    options = result.parse_args()
    options.posteriors = options.posteriors or list(POSTERIORS)
    return options


if __name__ == "__main__":
    sys.exit(main())
