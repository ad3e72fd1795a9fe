"""Runge-Kutta methods with a fixed number of steps: what they compute can be recorded."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pyro_flows.nn.field import Dynamics
from pyro_flows.numerics import widen


class Tableau(NamedTuple):
    r"""The coefficients of an explicit Runge-Kutta method (Butcher 1963).

    Attributes:
        nodes: When each stage is, in steps: :math:`c_i`.
        rows: What each stage takes from the ones before it: :math:`a_{ij}`.
        weights: What the step takes from each stage: :math:`b_i`.
    """

    nodes: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


TABLEAUS = {
    "euler": Tableau((0.0,), ((),), (1.0,)),
    "midpoint": Tableau((0.0, 0.5), ((), (0.5,)), (0.0, 1.0)),
    "rk4": Tableau(
        (0.0, 0.5, 0.5, 1.0),
        ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
        (1 / 6, 1 / 3, 1 / 3, 1 / 6),
    ),
}


class Solution(NamedTuple):
    """Where points have moved, the integrals along the way, and how many velocities that took.

    Attributes:
        points: Of shape ``(*, D)``.
        integrals: That of each rate which the dynamics return besides the velocity, the trace
            first, each of shape ``(*)``.
        num_evaluations: Number of velocities.
    """

    points: Tensor
    integrals: list[Tensor]
    num_evaluations: int


def solve_fixed(
    dynamics: Dynamics,
    points: Tensor,
    *,
    start: float,
    end: float,
    tableau: Tableau,
    num_steps: int,
    recompute: bool,
) -> Solution:
    """Integrate a velocity and rates such as its trace, in steps of one length.

    Written here because a step of training has to be recordable as a graph, in which no value of
    a tensor decides what is computed next. Each row is computed by itself, and a NaN stays in its
    own.

    Args:
        dynamics: Maps a time and points to the velocity and rates.
        points: Of shape ``(*, D)``, the full batch.
        start: The time at the points.
        end: The time at the solution.
        tableau: The method.
        num_steps: Number of steps.
        recompute: Keep each step's points alone for the gradient, and compute the rest again.
    """
    length = (end - start) / num_steps
    integrals: list[Tensor] = []
    for step in range(num_steps):
        given = (dynamics, points, start + step * length, length, tableau)
        if recompute and torch.is_grad_enabled():
            # Nothing random happens within a step.
            found = checkpoint(_step, *given, use_reentrant=False, preserve_rng_state=False)
        else:
            found = _step(*given)
        points, *gains = found
        pairs = zip(integrals, gains, strict=True)
        integrals = [total + gain for total, gain in pairs] if integrals else gains
    return Solution(points, integrals, num_steps * len(tableau.nodes))


def _step(
    dynamics: Dynamics, points: Tensor, time: float, length: float, tableau: Tableau
) -> tuple[Tensor, ...]:
    """Return where the points are one step later, and the integral of each rate until then."""
    stages: list[tuple[Tensor, ...]] = []
    for node, row in zip(tableau.nodes, tableau.rows, strict=True):
        # Filled on the device: a number from the host would have to wait for it.
        now = torch.full((), time + node * length, dtype=points.dtype, device=points.device)
        velocities = [stage[0] for stage in stages]
        stages.append(dynamics(now, _moved(points, velocities, row, length)))
    velocities, *rates = (list(column) for column in zip(*stages, strict=True))
    gains = [
        _moved(torch.zeros_like(widen(each[0])), each, tableau.weights, length) for each in rates
    ]
    return _moved(points, velocities, tableau.weights, length), *gains


def _moved(
    origin: Tensor, rates: list[Tensor], weights: tuple[float, ...], length: float
) -> Tensor:
    for rate, weight in zip(rates, weights, strict=True):
        if weight:
            origin = torch.add(origin, rate, alpha=weight * length)
    return origin
