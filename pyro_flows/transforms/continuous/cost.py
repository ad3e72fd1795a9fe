"""What it costs to move points: terms that keep a field easy to solve."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.errors import DomainError
from pyro_flows.nn.field import Dynamics, Field


@dataclass(frozen=True)
class TransportCost:
    r"""The kinetic energy of points on their way, and the squared norm of the field's Jacobian.

    .. math:: \int_0^1 \lambda_K \|v(z_t, t, c)\|^2
        + \lambda_J \Big\|\frac{\partial v}{\partial z}(z_t, t, c)\Big\|_F^2 \, dt

    Of all the fields that move one density to another, the cheapest by these has straight paths
    and constant speeds, so that solvers take few steps. They are integrated along the solve of the
    flow itself. The norm is exact for up to four coordinates; for more it is estimated from the
    random direction of the trace, or from one of its own.

    Args:
        kinetic: :math:`\lambda_K`, in nats.
        jacobian: :math:`\lambda_J`, in nats.

    Raises:
        DomainError: A weight is negative, or both are zero.

    Reference:
        Finlay, Jacobsen, Nurbekyan & Oberman (2020), *How to train your neural ODE: The world of
        Jacobian and kinetic regularization*, equation 9.

    Example:
        >>> import torch
        >>> from pyro_flows import flows
        >>> from pyro_flows.density import fit_mle
        >>> cost = TransportCost(kinetic=0.02)
        >>> flow, data = flows.cnf(2), torch.randn(100, 2)
        >>> fit_mle(flow, data, penalty=cost, epochs=1, progress=False).steps
        1
    """

    kinetic: float = 0.01
    jacobian: float = 0.01

    def __post_init__(self) -> None:
        who = type(self).__name__
        for name in ("kinetic", "jacobian"):
            value = _checks.check_positive(who, name, getattr(self, name), zero=True)
            object.__setattr__(self, name, value)
        if not (self.kinetic or self.jacobian):
            raise _checks.refusal(
                DomainError,
                who,
                expected="kinetic or jacobian above 0",
                got="two zeros",
                advice="Leave the cost out.",
            )

    def along(
        self,
        field: Field,
        context: Tensor | None,
        noise: Tensor | None,
        *,
        exact_trace: bool,
        sign: float,
    ) -> Dynamics:
        """Return what maps a time and points to the velocity, the trace, and the cost's rate.

        Args:
            field: The field.
            context: Of shape ``(*, context_dim)``.
            noise: Random directions to estimate the norm from; it is exact, if not given.
            exact_trace: Whether the trace is exact all the same.
            sign: Minus one on the way from the data to the base, where time runs backwards.
        """
        if self.jacobian:
            full = field.dynamics_and_norm(context, noise, exact_trace=exact_trace)
        else:
            full = field.dynamics(context, None if exact_trace else noise)

        def run(t: Tensor, z: Tensor) -> tuple[Tensor, ...]:
            velocity, trace, *norms = full(t, z)
            rate = self.kinetic * velocity.square().sum(-1)
            for norm in norms:
                rate = rate + self.jacobian * norm
            return velocity, trace, sign * rate

        return run


class Bill:
    """The costs of all solves while it is open.

    Args:
        cost: What is charged.
        who: The caller, for errors' messages.
    """

    def __init__(self, cost: TransportCost, who: str) -> None:
        self.cost, self._who = cost, who
        self._terms: list[Tensor] = []

    def check(self) -> None:
        """Refuse a solve within ``torch.func``, whose tensors cannot leave it.

        Raises:
            DomainError: It is within one.
        """
        if torch._C._functorch.peek_interpreter_stack() is not None:
            raise _checks.refusal(
                DomainError,
                self._who,
                expected="a flow that runs for all particles at once on a plate, for a penalty",
                got="one within torch.func.vmap",
                advice="Write the model so that it broadcasts, or leave penalty out.",
            )

    def add(self, costs: Tensor) -> None:
        """Charge the points of a solve, of shape ``(*)``."""
        self._terms.append(costs.sum())

    def mean(self, num: int) -> Tensor:
        """Return all costs over a number of rows or particles.

        Args:
            num: That number.

        Raises:
            DomainError: Nothing was charged.
        """
        if not self._terms:
            raise _checks.refusal(
                DomainError,
                self._who,
                expected="a flow with a Continuous transform to train, for a penalty",
                got="a step without one",
                advice="Leave penalty out, or take flow='cnf'.",
            )
        return torch.stack(self._terms).sum() / num


_OPEN: ContextVar[Bill | None] = ContextVar("open bill", default=None)


def open_bill() -> Bill | None:
    """Return what solves are to be charged to; none where nobody asks."""
    return _OPEN.get()


@contextmanager
def billed(cost: TransportCost, who: str) -> Iterator[Bill]:
    """Charge every solve whose field is being trained.

    Args:
        cost: What is charged.
        who: The caller, for errors' messages.
    """
    bill = Bill(cost, who)
    token = _OPEN.set(bill)
    try:
        yield bill
    finally:
        _OPEN.reset(token)


def check_penalty(who: str, penalty: object) -> None:
    """Refuse anything but a cost, or none."""
    if penalty is not None and not isinstance(penalty, TransportCost):
        raise _checks.refusal(
            DomainError,
            who,
            expected="penalty to be a TransportCost",
            got=_checks.describe(penalty),
            advice="Pass pyro_flows.transforms.TransportCost(), for example.",
        )
