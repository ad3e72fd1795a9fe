"""Peak memory of a fit to a million rows of twenty columns, and rows a second.

    python benchmarks/density/memory.py [--rows 1000000] [--columns 20] [--flows realnvp nsf]

Fits FlowDensity for one epoch to a float32 array, in batches of 1024 and with its other defaults,
each flow in a process of its own: checks, standardisation and held-out rows are among it. Prints
the largest resident set of the process before the fit (Python, torch and the array) and at its
end, the seconds of all of it, and rows a second of the steps with the scoring of held-out rows.
The exit status is 1 where a process takes 2 GB or more.
"""

import argparse
import resource
import subprocess
import sys
import time

import numpy as np

MOST_BYTES = 2e9
BATCH_SIZE = 1024


def peak():
    """Return the largest resident set so far, in bytes."""
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest


def measure(flow, rows, columns):
    import torch

    from pyro_flows.density import FlowDensity

    table = np.random.default_rng(0).standard_normal((rows, columns), dtype=np.float32)
    # Correlated, so that there is something to learn.
    table[:, 1:] += 0.5 * table[:, :-1]
    before, began = peak(), time.perf_counter()
    density = FlowDensity(flow, epochs=1, batch_size=BATCH_SIZE, random_state=0).fit(table)
    seconds, result = time.perf_counter() - began, density.result_
    print(
        f"{flow:8} {before / 1e6:5.0f} MB before, {peak() / 1e6:5.0f} MB at the peak; "
        f"{seconds:6.1f} s, {result.steps * BATCH_SIZE / result.seconds:7.0f} rows/s "
        f"({result.engine}, {torch.get_num_threads()} threads), NLL {result.nll:.3f}",
        flush=True,
    )
    return peak() < MOST_BYTES


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=20)
    parser.add_argument("--flows", nargs="+", default=["realnvp", "nsf"])
    parser.add_argument("--here", action="store_true", help="in this process")
    given = parser.parse_args()
    if given.here:
        return 0 if all(measure(f, given.rows, given.columns) for f in given.flows) else 1
    sizes = ["--rows", str(given.rows), "--columns", str(given.columns)]
    print(f"{given.rows} x {given.columns}: {4e-6 * given.rows * given.columns:.0f} MB")
    commands = [[sys.executable, __file__, "--here", *sizes, "--flows", f] for f in given.flows]
    return max([subprocess.run(command, check=False).returncode for command in commands])


if __name__ == "__main__":
    sys.exit(main())
