"""A search for the step size: short runs at several, all in one batch."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pyro_flows.infer.engine import Batch, FlatParameters, StepFunction
from pyro_flows.infer.engine.graph import Graph
from pyro_flows.infer.engine.recorder import RecordingError
from pyro_flows.infer.training.adam import FlatAdam
from pyro_flows.infer.training.schedule import Schedule

logger = logging.getLogger("pyro_flows")

# Of the step size that is taken without a search.
_FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
_MOST_STEPS = 200
# The share of a short run, at its end, whose losses are compared.
_TAIL = 0.25

# Takes the flat parameters of every run, with a leading axis, and returns losses and gradients.
_Steps = Callable[[Batch, list[Tensor]], tuple[Tensor, list[Tensor]]]


def search_step_size(step: StepFunction, batches: Iterator[Batch], lr: float, steps: int) -> float:
    """Return the step size, among five around ``lr``, whose short run ends with the lowest loss.

    All runs start from the present parameters, which stay as they are, and meet the same random
    numbers. They are one run of a vmapped graph, where the step can be recorded and vmapped, else
    one after the other.

    Args:
        step: The step.
        batches: What each step is called with.
        lr: The step size in the middle.
        steps: Number of steps of the fit; a tenth of them, and 200 at most, are searched with.
    """
    flat, sizes = step.flat, [factor * lr for factor in _FACTORS]
    schedule = Schedule(min(_MOST_STEPS, max(steps // 10, 1)))
    before = flat.copy()
    rows = [tensor.detach().repeat(len(sizes), 1) for tensor in flat.tensors]
    optimizers = [FlatAdam([row[k] for row in rows], lr=1.0) for k in range(len(sizes))]
    losses = np.empty((schedule.steps, len(sizes)))
    evaluate: _Steps | None = None
    try:
        for taken in range(schedule.steps):
            batch = next(batches)
            evaluate = evaluate or _evaluation(step, batch, rows)
            values, grads = evaluate(batch, rows)
            factor = schedule.factor(taken)
            for k, optimizer in enumerate(optimizers):
                mine = [grad[k] for grad in grads]
                moved = _advance(optimizer, sizes[k] * factor, values[k], mine)
                losses[taken, k] = float(values[k]) if moved else math.inf
    finally:
        flat.assign(before)
    return _lowest(sizes, losses[-max(int(_TAIL * schedule.steps), 1) :])


def _advance(optimizer: FlatAdam, lr: float, loss: Tensor, grads: list[Tensor]) -> bool:
    """Take a step of one run, unless its loss or gradient is not finite."""
    if not all(bool(tensor.isfinite().all()) for tensor in (loss, *grads)):
        return False
    (group,) = optimizer.param_groups
    group["lr"] = lr
    for row, grad in zip(group["params"], grads, strict=True):
        row.grad = grad
    optimizer.step()
    return True


def _lowest(sizes: Sequence[float], tails: np.ndarray) -> float:
    levels = np.median(tails, axis=0)
    best = sizes[int(np.argmin(levels))]
    words = ", ".join(f"{lr:.1e}: {level:.4g}" for lr, level in zip(sizes, levels, strict=True))
    logger.info("fit: step size %.1e, of the losses %s", best, words)
    return best


def _evaluation(step: StepFunction, batch: Batch, rows: list[Tensor]) -> _Steps:
    """Return how to evaluate all runs at once; in turn, where that cannot be."""
    in_turn = _in_turn(step)
    state = torch.get_rng_state()
    try:
        at_once = _at_once(Graph(step, batch), step.flat)
        at_once(batch, rows)
    # Recorded models may hold any operator, and not all have a batched form.
    except (RecordingError, RuntimeError, ValueError) as error:
        first_line = str(error).partition("\n")[0]
        logger.info("fit: searches the step size in one run after the other: %s", first_line)
        return in_turn
    finally:
        torch.set_rng_state(state)
    return at_once


def _at_once(graph: Graph, flat: FlatParameters) -> _Steps:
    def evaluate(batch: Batch, rows: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        named = _stacked(flat, rows)
        inputs = graph.inputs(batch)
        first = len(inputs) - len(graph.names)
        dims: list[int | None] = [None] * len(inputs)
        for position, name in enumerate(graph.names, first):
            if name is not None:
                inputs[position], dims[position] = named[name], 0
        noise = graph.noise()
        function = torch.func.vmap(
            lambda *tensors: tuple(graph.main(*tensors)),
            in_dims=(*dims, *[None] * len(noise)),
            randomness="same",
        )
        with torch.no_grad():
            loss, _, *grads = function(*inputs, *noise)
        return loss, grads

    return evaluate


def _stacked(flat: FlatParameters, rows: list[Tensor]) -> dict[str, Tensor]:
    """Return each parameter of every run, with a leading axis, by its name."""
    runs = [flat.split([row[k] for row in rows]) for k in range(len(rows[0]))]
    named = [{name: value for part in run for name, value in part.items()} for run in runs]
    return {name: torch.stack([one[name] for one in named]) for name in named[0]}


def _in_turn(step: StepFunction) -> _Steps:
    def evaluate(batch: Batch, rows: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        state, outcomes = torch.get_rng_state(), []
        for k in range(len(rows[0])):
            torch.set_rng_state(state)
            step.flat.assign([row[k] for row in rows])
            outcomes.append(step(batch))
        losses, _, *grads = zip(*outcomes, strict=True)
        return torch.stack(losses), [torch.stack(grad) for grad in grads]

    return evaluate
