"""Peak memory of a fit to a million rows of twenty columns, and rows a second.

Run with ``python benchmarks/density/memory.py [rows] [columns]``. Each flow is fitted in a process
of its own: to a float32 array for one epoch, with FlowDensity's other defaults, the checks of the
table, the standardisation and the held-out rows among it. Printed are the largest resident set of
that process, Python and torch included; the seconds of the whole ``fit``; and rows a second, those
trained on over the seconds of the steps and of the scoring of held-out rows.
"""

import resource
import subprocess
import sys
import time

import numpy as np

FLOWS = ("realnvp", "nsf")
# The target.
MOST_BYTES = 2e9


def fit(flow, rows, columns):
    import torch

    from pyro_flows.density import FlowDensity

    table = np.random.default_rng(0).standard_normal((rows, columns), dtype=np.float32)
    # Correlated, so that there is something to learn.
    table[:, 1:] += 0.5 * table[:, :-1]
    before = _peak()
    begin = time.perf_counter()
    density = FlowDensity(flow, epochs=1, batch_size=1024, random_state=0).fit(table)
    seconds = time.perf_counter() - begin
    result = density.result_
    rate = result.steps * 1024 / result.seconds
    print(
        f"{flow:8} {before / 1e6:7.0f} MB before  {_peak() / 1e6:7.0f} MB peak  "
        f"{'within' if _peak() < MOST_BYTES else 'ABOVE'} {MOST_BYTES / 1e6:.0f} MB  "
        f"fit {seconds:6.1f} s  {rate:8.0f} rows/s  {result.engine}, "
        f"{torch.get_num_threads()} threads  NLL {result.nll:.3f}",
        flush=True,
    )


def _peak():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def main():
    if sys.argv[1:2] == ["--one"]:
        fit(sys.argv[2], *map(int, sys.argv[3:]))
        return
    sizes = (sys.argv[1:] + ["1000000", "20"][len(sys.argv) - 1 :])[:2]
    print(f"{sizes[0]} x {sizes[1]} float32, {4e-6 * int(sizes[0]) * int(sizes[1]):.0f} MB")
    for flow in FLOWS:
        subprocess.run([sys.executable, __file__, "--one", flow, *sizes], check=True)


if __name__ == "__main__":
    main()
