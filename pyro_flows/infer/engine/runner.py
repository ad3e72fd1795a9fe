"""A recorded step, which begins as a traced graph and becomes native code."""

import os
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyro_flows.infer.engine.executable import executable
from pyro_flows.infer.engine.graph import Graph
from pyro_flows.infer.engine.native import Compilation, CompilingError, Native, compile_here
from pyro_flows.infer.engine.recorder import RecordingError
from pyro_flows.infer.engine.step import Batch, StepFunction
from pyro_flows.infer.random import aside

# Relative differences: the same operators in the same order against other orders of summation.
_SAME, _REORDERED = 1e-5, 1e-3
_TRIES = 3
# How far parameters are moved for the comparison, in standard deviations.
_SHIFT = 0.05
# Loss and norm come before the gradients.
_NUM_SCALARS = 2
# What compiling takes, in seconds; it gains two thirds of a traced step or more.
_SECONDS, _SECONDS_PER_NODE = 8.0, 0.02
# Larger graphs take gigabytes and, in the end, hours.
_MOST_NODES = 5000
_TIMED_STEPS, _POLL_EVERY = 10, 20


class Runner:
    """Run a step on a recorded graph of it, and on native code once that is there.

    Args:
        step: The step.
        batch: What it is recorded with.

    Attributes:
        native: The graph as native code; none before it is loaded.

    Raises:
        RecordingError: The step cannot be recorded, or the graph does not give what the step does.
    """

    def __init__(self, step: StepFunction, batch: Batch) -> None:
        self.native: Native | None = None
        with aside():
            self._step, self._graph = step, Graph(step, batch)
        self._traced = executable(self._graph.main)
        self._compilation: Compilation | None = None
        self._batch, self._inputs = batch, self._graph.inputs(batch)
        self._began, self._taken, self._lent_threads = 0.0, 0, 0
        with aside():
            self._check(_SAME)

    def __call__(self, batch: Batch) -> Sequence[Tensor]:
        """Return what the step returns."""
        if batch is not self._batch:
            self._batch, self._inputs = batch, self._graph.inputs(batch)
        inputs = self._inputs + self._graph.noise()
        if self.native is not None:
            return self.native(inputs)
        with torch.no_grad():
            outcome: Sequence[Tensor] = self._traced(*inputs)
        return outcome

    def compile_now(self) -> None:
        """Wait until the graph is native code.

        Raises:
            CompilingError: It cannot be compiled.
        """
        self._begin()
        self._finish()

    def climb(self, remaining: int) -> None:
        """Begin to compile where that pays, and switch to native code when it is there.

        Args:
            remaining: Number of steps that are planned still.

        Raises:
            CompilingError: It cannot be compiled.
        """
        self._taken += 1
        if self._compilation is not None:
            if self._taken % _POLL_EVERY == 0 and not self._compilation.running:
                self._finish()
        elif self._taken == 1:
            self._began = time.perf_counter()
        elif self._taken == _TIMED_STEPS + 1:
            each = (time.perf_counter() - self._began) / _TIMED_STEPS
            if self._pays(each * remaining):
                self._begin()
                if self._compilation is None:
                    self._finish()

    def close(self) -> None:
        """Stop what compiles still."""
        if self._compilation is not None:
            self._compilation.stop()
            self._lend_threads(0)

    def _pays(self, seconds: float) -> bool:
        num_nodes = len(self._graph.main.graph.nodes)
        if num_nodes > _MOST_NODES:
            return False
        cost = _SECONDS + _SECONDS_PER_NODE * num_nodes
        # On a single core the compiler takes its time from the steps.
        alone = len(os.sched_getaffinity(0)) == 1 if hasattr(os, "sched_getaffinity") else False
        return seconds > (3 * cost if alone else cost)

    def _begin(self) -> None:
        with aside():
            inputs = self._inputs + self._graph.noise()
        on_cpu = all(tensor.device.type == "cpu" for tensor in inputs)
        if on_cpu:
            self._compilation = Compilation(self._graph.main, inputs)
            self._compilation.begin()
            self._lend_threads(1)

    def _lend_threads(self, number: int) -> None:
        """Leave a core to the compiler.

        Threads wait for the slowest, which would share its core: with two threads on two cores, a
        step of 0.05 seconds took 1.3.
        """
        available = torch.get_num_threads() + self._lent_threads
        self._lent_threads = min(number, available - 1)
        torch.set_num_threads(available - self._lent_threads)

    def _finish(self) -> None:
        begun = self._compilation
        try:
            self.native = compile_here(self._graph.main) if begun is None else begun.load()
        finally:
            self._lend_threads(0)
        try:
            with aside():
                self._check(_REORDERED)
        except RecordingError as error:
            self.native = None
            raise CompilingError(
                "the native code gives other numbers than the step; it may draw random numbers "
                "that depend on others in another order"
            ) from error

    def _check(self, tolerance: float) -> None:
        """Compare with the step, on random numbers and at parameters of their own.

        Away from the present ones, since the gradient of a guide that is right is all rounding.
        """
        flat = self._step.flat
        before = flat.copy()
        try:
            for seed in range(_TRIES):
                torch.manual_seed(seed)
                flat.assign([x + _SHIFT * torch.randn_like(x) for x in before])
                ours = _from_seed(seed, lambda: self(self._batch))
                theirs = _from_seed(seed, lambda: self._step(self._batch))
                if all(bool(tensor.isfinite().all()) for tensor in theirs):
                    _compare(ours, theirs, tolerance)
                    return
        finally:
            flat.assign(before)


def _from_seed(seed: int, run: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
    torch.manual_seed(seed)
    return run()


def _compare(ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float) -> None:
    for position, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        size = float(other.norm()) + (position < _NUM_SCALARS)
        if not float((mine - other).norm()) <= tolerance * size:
            raise RecordingError(
                "the recorded step gives other numbers than the step itself, which depends on "
                "more than its tensors"
            )
