"""The transform that follows an ordinary differential equation."""

import math
from typing import Any

import torch
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.errors import DomainError
from pyro_flows.nn.field import Dynamics, Field
from pyro_flows.transforms.base import FlowTransform
from pyro_flows.transforms.continuous.adaptive import load_library, solve_adaptive
from pyro_flows.transforms.continuous.cost import TransportCost, open_bill
from pyro_flows.transforms.continuous.exactness import exactness_is_asked
from pyro_flows.transforms.continuous.solvers import TABLEAUS, Solution, solve_fixed

# Time at the base distribution, and at the data. All that is continuous keeps to this.
BASE_TIME, DATA_TIME = 0.0, 1.0

SOLVERS = (*TABLEAUS, "dopri5")
TRACES = ("auto", "exact", "hutchinson")
NOISES = ("rademacher", "gaussian")
# Coordinates up to which as many products as coordinates cost less than the noise of one.
_FEW = 4


class Continuous(FlowTransform):
    r"""Move points with the velocity of a field, from time 0 to time 1.

    .. math:: \frac{dz}{dt} = v(z, t, c), \qquad x = z(0), \quad y = z(1), \qquad
        \log |\det J| = \int_0^1 \mathrm{tr} \frac{\partial v}{\partial z} \, dt

    Time 0 is at the base distribution and time 1 at the data; the inverse runs the same field
    from 1 to 0, whose log-determinant is then minus the integral.

    Solvers with a fixed number of steps (``"euler"``, ``"midpoint"``, ``"rk4"``, of order 1, 2
    and 4) cost the same for any points, can be recorded, compiled and mapped by ``vmap``, and
    let a NaN stay in its row. How exact they are is for the caller to know: compare with twice
    the steps, or with ``"dopri5"``. That one chooses its steps by a tolerance, needs the extra
    ``pyro-flows[ode]``, runs eagerly, and ends with a typed error where it does not end well.

    Args:
        field: The velocity.
        solver: ``"rk4"``, ``"midpoint"``, ``"euler"`` or ``"dopri5"``.
        num_steps: Number of steps of a solver that has a fixed one.
        tolerance: Of ``"dopri5"``: largest error of a step, relative to one plus the values.
        max_steps: Of ``"dopri5"``: largest number of steps of a solve.
        trace: ``"exact"``; or ``"hutchinson"``, an estimate from one random direction for each
            point and solve, and one Jacobian-vector product; or ``"auto"``: exact in evaluation
            mode, for up to four coordinates, and where the field's trace is cheap.
        noise: Kind of random directions: ``"rademacher"`` (signs) or ``"gaussian"``.
        adjoint: Save memory in training: compute again what the gradient needs, by one step for
            fixed steps, whose gradient stays exact; by a solve backwards in time for
            ``"dopri5"``, whose gradient is then as exact as the tolerance.

    Attributes:
        num_evaluations: How many velocities the last solve took.

    Raises:
        DomainError: An argument is not possible; or ``"dopri5"`` is asked for without its library.
        NonFiniteError: With ``"dopri5"``: a point or a velocity is not finite.
        NotConvergedError: With ``"dopri5"``: the steps are used up, or shorter than rounding.

    Reference:
        Chen, Rubanova, Bettencourt & Duvenaud (2018), *Neural ordinary differential equations*,
        theorem 1; Grathwohl, Chen, Bettencourt, Sutskever & Duvenaud (2019), *FFJORD*, section 3.

    Example:
        >>> import torch
        >>> from pyro_flows.nn import TimeNet
        >>> transform = Continuous(TimeNet(3))
        >>> transform(torch.ones(5, 3)).shape
        torch.Size([5, 3])
        >>> transform.num_evaluations
        32
    """

    inverse_kind = "numerical"

    def __init__(
        self,
        field: Field,
        *,
        solver: str = "rk4",
        num_steps: int = 8,
        tolerance: float = 1e-5,
        max_steps: int = 250,
        trace: str = "auto",
        noise: str = "rademacher",
        adjoint: bool = False,
    ) -> None:
        check_field(self._name, field)
        super().__init__(field.input_dim, context_dim=field.context_dim)
        self.field = field
        self.solver = _checks.check_choice(self._name, "solver", solver, SOLVERS)
        self.num_steps = _checks.check_count(self._name, "num_steps", num_steps)
        self.tolerance = _checks.check_positive(self._name, "tolerance", tolerance)
        self.max_steps = _checks.check_count(self._name, "max_steps", max_steps)
        self.trace = _checks.check_choice(self._name, "trace", trace, TRACES)
        self.noise = _checks.check_choice(self._name, "noise", noise, NOISES)
        self.adjoint = _checks.check_choice(self._name, "adjoint", adjoint, (False, True))
        self.num_evaluations = 0
        if solver == "dopri5":
            load_library(self._name)

    @property
    def stochastic(self) -> bool:
        """Whether the log-determinant is an unbiased estimate, in the mode that the module is in.

        The density that is computed from it is then a random number, whose logarithm alone has
        the right mean. Reports of guides, such as :func:`~pyro_flows.diagnose`, and what a fit
        says at its end, use exact traces in any mode.
        """
        if exactness_is_asked():
            return False
        if self.trace == "auto":
            few = self.input_dim <= _FEW
            return self.training and not few and not self.field.cheap_trace
        return self.trace == "hutchinson"

    def _forward_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._solve(x, context, BASE_TIME, DATA_TIME)

    def _inverse_and_ladj(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._solve(y, context, DATA_TIME, BASE_TIME)

    def _solve(
        self, points: Tensor, context: Tensor | None, start: float, end: float
    ) -> tuple[Tensor, Tensor]:
        if context is not None:
            batch = torch.broadcast_shapes(points.shape[:-1], context.shape[:-1])
            points = points.expand(*batch, self.input_dim)
        # Forward-mode products write into what they are given, as an expanded tensor cannot be.
        points = points.contiguous()
        noise = self._draw_noise(points) if self.stochastic else None
        bill = open_bill() if self._trains() else None
        if bill is None:
            dynamics = self.field.dynamics(context, noise)
        else:
            bill.check()
            dynamics = self._with_cost(bill.cost, points, context, noise, end - start)
        num_rates = 1 if bill is None else 2
        found = self._run(dynamics, points, context, start=start, end=end, num_rates=num_rates)
        self.num_evaluations = found.num_evaluations
        if bill is not None:
            bill.add(found.integrals[1])
        return found.points, found.integrals[0]

    def _trains(self) -> bool:
        """Whether this solve is one that the field's parameters are trained by."""
        return torch.is_grad_enabled() and any(p.requires_grad for p in self.field.parameters())

    def _with_cost(
        self,
        cost: TransportCost,
        points: Tensor,
        context: Tensor | None,
        noise: Tensor | None,
        span: float,
    ) -> Dynamics:
        exact_trace, sign = noise is None, math.copysign(1.0, span)
        if exact_trace and self.input_dim > _FEW:
            noise = self._draw_noise(points)
        return cost.along(self.field, context, noise, exact_trace=exact_trace, sign=sign)

    def _run(
        self,
        dynamics: Dynamics,
        points: Tensor,
        context: Tensor | None,
        *,
        start: float,
        end: float,
        num_rates: int,
    ) -> Solution:
        if self.solver in TABLEAUS:
            return solve_fixed(
                dynamics,
                points,
                start=start,
                end=end,
                tableau=TABLEAUS[self.solver],
                num_steps=self.num_steps,
                recompute=self.adjoint,
            )
        others = [*self.field.parameters(), *([] if context is None else [context])]
        return solve_adaptive(
            dynamics,
            points,
            start=start,
            end=end,
            tolerance=self.tolerance,
            max_steps=self.max_steps,
            num_rates=num_rates,
            adjoint_for=others if self.adjoint else None,
            who=self._name,
        )

    def _draw_noise(self, points: Tensor) -> Tensor:
        # Not like the points: what depends on nothing is drawn outside of a compiled step.
        kind: dict[str, Any] = {"dtype": points.dtype, "device": points.device}
        if self.noise == "gaussian":
            return torch.randn(points.shape, **kind)
        return 1.0 - 2.0 * (torch.rand(points.shape, **kind) < 0.5).to(points.dtype)

    def extra_repr(self) -> str:
        """Name the sizes and the solver in the module's representation."""
        return f"{super().extra_repr()}, solver={self.solver!r}"


def check_field(who: str, field: object) -> None:
    """Refuse anything but a field."""
    if not isinstance(field, Field):
        raise _checks.refusal(
            DomainError,
            who,
            expected="field to be a Field",
            got=_checks.describe(field),
            advice="Derive it from pyro_flows.nn.Field, or take pyro_flows.nn.TimeNet.",
        )
