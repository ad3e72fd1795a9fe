"""The method of Dormand and Prince, whose steps are as long as a tolerance allows."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.errors import DomainError, FlowError, NonFiniteError, NotConvergedError
from pyro_flows.nn.field import Dynamics
from pyro_flows.numerics import widen
from pyro_flows.transforms.continuous.solvers import Solution

# Of the whole way; a guess, which costs a velocity less than a search for a better one.
_FIRST_STEP = 0.1


def load_library(who: str) -> Any:
    """Return the module ``torchdiffeq``.

    It was chosen over torchode 1.0, which controls the error of each row by itself and reports a
    status: at the same tolerance that took 1.1 to 1.2 times the velocities and 1.1 to 1.3 times
    the time, with a larger error of the worst row, and its ``torchtyping`` needs a ``typeguard``
    below 3. What torchdiffeq leaves to bare ``assert``s, which ``python -O`` drops,
    :class:`_Guard` sees to.

    Args:
        who: The caller, for the error's message.

    Raises:
        DomainError: It is not installed.
    """
    try:
        import torchdiffeq  # noqa: PLC0415 (optional)
    except ModuleNotFoundError as error:
        raise _checks.refusal(
            DomainError,
            who,
            expected="torchdiffeq to be installed, for solver='dopri5'",
            got="no such module",
            advice="Install it with `pip install pyro-flows[ode]`, or take solver='rk4'.",
        ) from error
    return torchdiffeq


def solve_adaptive(
    dynamics: Dynamics,
    points: Tensor,
    *,
    start: float,
    end: float,
    tolerance: float,
    max_steps: int,
    num_rates: int,
    adjoint_for: Sequence[Tensor] | None,
    who: str,
) -> Solution:
    """Integrate a velocity and rates, in steps that keep each row within a tolerance.

    All rows take the same steps, short enough for the worst of them. Steps are chosen by the
    points and by the first rate, the trace.

    Args:
        dynamics: Maps a time and points to the velocity and rates.
        points: Of shape ``(*, D)``, the full batch.
        start: The time at the points.
        end: The time at the solution.
        tolerance: Largest error of a step, relative to one plus the values of a row.
        max_steps: Largest number of steps.
        num_rates: Number of rates.
        adjoint_for: The tensors, besides the points, whose gradients are to be had by another
            solve, backwards in time; none to differentiate the steps themselves.
        who: The caller, for the error's message.

    Raises:
        DomainError: The library is not installed.
        NonFiniteError: A point or a velocity is not finite.
        NotConvergedError: The steps are used up, or have become shorter than rounding.

    Reference:
        Dormand & Prince (1980), *A family of embedded Runge-Kutta formulae*.
    """
    library = load_library(who)
    _refuse_non_finite(who, points)
    state = torch.cat([points, points.new_zeros(*points.shape[:-1], num_rates)], -1)
    moved = points.shape[-1]
    if state.numel() == 0:
        return Solution(points, list(widen(state[..., moved:]).unbind(-1)), 0)
    guard = _Guard(dynamics, moved, start=start, end=end, max_steps=max_steps, who=who)
    options: dict[str, Any] = {"rtol": tolerance, "atol": tolerance, "method": "dopri5"}
    run = library.odeint
    if adjoint_for is not None and torch.is_grad_enabled():
        run = library.odeint_adjoint
        options["adjoint_params"] = tuple(adjoint_for)
        options["adjoint_options"] = {"norm": "seminorm", **_grid(state, 0.0)}
    options["options"] = {"norm": partial(_worst_row, moved + 1), **_grid(state, 1.0)}
    found = run(guard, state, state.new_tensor([0.0, 1.0]), **options)[-1]
    integrals = list(widen(found[..., moved:]).unbind(-1))
    return Solution(found[..., :moved], integrals, guard.num_evaluations)


def _grid(state: Tensor, end: float) -> dict[str, Any]:
    # Without a step that ends there, the library steps over the end and interpolates.
    return {"step_t": state.new_tensor([end], dtype=torch.float64), "first_step": _FIRST_STEP}


def _worst_row(count: int, errors: Tensor) -> Tensor:
    """Return the largest root mean square of a row's first entries, so that no row hides."""
    return errors[..., :count].square().mean(-1).sqrt().amax()


def _refuse_non_finite(who: str, points: Tensor) -> None:
    bad = (~points.isfinite()).any(-1)
    if bool(bad.any()):
        rows = bad.nonzero()[:3].tolist()
        raise _checks.refusal(
            NonFiniteError,
            who,
            expected="finite points",
            got=f"{int(bad.sum())} rows that are not, the first at {rows}",
            advice="Leave them out, or take solver='rk4', which keeps each row to itself.",
        )


class _Guard:
    """The rate of the solver's state; refuses to go on where a solve cannot end well.

    Args:
        dynamics: Maps a time and points to the velocity and rates.
        input_dim: Number of coordinates of the points.
        start: The time at which the solver's own is zero.
        end: The time at which the solver's own is one.
        max_steps: Largest number of steps.
        who: The caller, for the error's message.

    Attributes:
        num_evaluations: Number of velocities so far.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        input_dim: int,
        *,
        start: float,
        end: float,
        max_steps: int,
        who: str,
    ) -> None:
        self._dynamics, self._input_dim = dynamics, input_dim
        self._start, self._span = start, end - start
        self._max_steps, self._who = max_steps, who
        self._steps = {"solve": 0, "adjoint": 0}
        self.num_evaluations = 0

    def __call__(self, own_time: Tensor, state: Tensor) -> Tensor:
        """Return the rate of points and integrals, by the solver's own time."""
        self.num_evaluations += 1
        time = self._start + self._span * own_time
        velocity, *rates = self._dynamics(time, state[..., : self._input_dim])
        rate = self._span * torch.cat([velocity, torch.stack(rates, -1)], -1)
        if not bool(rate.isfinite().all()):
            raise self._refusal(
                NonFiniteError, time, "finite velocities", "a NaN or an infinity", _BLOWN_UP
            )
        return rate

    def callback_step(self, own_time: Tensor, state: Tensor, length: Tensor) -> None:
        """Count a step of the solve, which is about to be taken."""
        self._count("solve", own_time, length)

    def callback_step_adjoint(self, own_time: Tensor, state: Any, length: Tensor) -> None:
        """Count a step of the adjoint's solve, which is about to be taken."""
        self._count("adjoint", own_time, length)

    def _count(self, which: str, own_time: Tensor, length: Tensor) -> None:
        time = self._start + self._span * own_time
        if bool(own_time + length == own_time):
            raise self._refusal(
                NotConvergedError, time, "steps above rounding", f"one of {length:.1e}", _STIFF
            )
        if self._steps[which] == self._max_steps:
            budget = f"at most {self._max_steps} steps of the {which}"
            raise self._refusal(NotConvergedError, time, budget, "no end within them", _STIFF)
        self._steps[which] += 1

    def _refusal(
        self, error: type[FlowError], time: Tensor, expected: str, got: str, advice: str
    ) -> FlowError:
        taken = sum(self._steps.values())
        where = f"at time {float(time):.4g}, after {taken} steps and "
        return _checks.refusal(
            error,
            self._who,
            expected=expected,
            got=f"{got} {where}{self.num_evaluations} velocities",
            advice=advice,
        )


_BLOWN_UP = "Check the field's parameters and the size of the points; train in smaller steps."
_STIFF = (
    "The field may have become stiff: raise tolerance or max_steps, or train in smaller steps."
)
