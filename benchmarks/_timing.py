"""Times of several things that are run in turn, and the memory that one of them takes."""

import gc
import math
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

Run = Callable[[], object]

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler would log each start and stop


def clock() -> float:
    """Return seconds; of the one thread's own work, which other programs add nothing to.

    With more threads there is no such clock, and it is that on the wall.
    """
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def interleaved(runs: dict[str, Run], repeats: int, *, least: float = 0.01) -> dict[str, float]:
    """Return the median seconds of each run, out of repeats that take them in turn.

    How fast the machine clocks, and what it does besides, thus meets all of them alike.

    Args:
        runs: What to time.
        repeats: How often each is timed, after a warm-up.
        least: Seconds for which each is timed at a time, over and over if it is quicker.
    """
    counts = {name: _count(run, least) for name, run in runs.items()}
    seconds = {name: [] for name in runs}
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            for name, run in runs.items():
                seconds[name].append(_seconds(run, counts[name]))
    finally:
        gc.enable()
    return {name: statistics.median(values) for name, values in seconds.items()}


def once(run: Run) -> float:
    """Return the seconds of one run."""
    return _seconds(run, 1)


def _count(run: Run, least: float) -> int:
    for _ in range(3):
        run()
    return max(1, math.ceil(least / _seconds(run, 3)))


def _seconds(run: Run, count: int) -> float:
    """Return the seconds of one out of ``count`` runs."""
    began = clock()
    for _ in range(count):
        run()
    return (clock() - began) / count


def allocated(run: Callable[[], Tensor]) -> tuple[int, int]:
    """Return the bytes that a run's graph keeps for the gradients, and the peak with them.

    Both are read from the profiler's record of every allocation on the CPU, temporary tensors
    inside an operator included, and are relative to what there was before. Hooks on saved tensors
    would miss what lives during the pass and what a graph holds otherwise.

    Args:
        run: Returns a scalar to differentiate; called once, after a warm-up.
    """
    run().backward()  # the parameters have their gradients from here on
    forward = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    backward = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with forward:
        loss = run()
    with backward:
        loss.backward()
    changes = _changes(forward)
    return sum(changes), _peak(changes + _changes(backward))


def _changes(passed: profile) -> list[int]:
    """Return the bytes of each allocation, and minus those of each release, in order."""
    events = passed.profiler.kineto_results.events()
    moves = [event for event in events if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(moves, key=lambda event: event.start_ns())]


def _peak(changes: list[int]) -> int:
    live = peak = 0
    for change in changes:
        live += change
        peak = max(peak, live)
    return peak
