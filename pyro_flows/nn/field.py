"""Fields: the velocities of continuous flows, and the traces of their Jacobians."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

from torch import Tensor, nn

from pyro_flows import _checks
from pyro_flows.nn.divergence import by_all_products, by_one_product

# From t and z to the velocity, the trace of its Jacobian, and perhaps a further rate.
Dynamics = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


class Field(nn.Module):
    r"""Base of every field: a velocity :math:`v(z, t, c)` at each point, time and context.

    A subclass writes ``forward(t, z, context)``, which maps each row of ``z`` by itself. It may
    also write :meth:`dynamics`, where it knows the trace of its Jacobian, and then sets
    ``cheap_trace``.

    Attributes:
        input_dim: Number of coordinates, on the last axis.
        context_dim: Number of entries of the context; zero for none.
        cheap_trace: Whether the exact trace costs about as much as the velocity, for any number
            of coordinates.

    Args:
        input_dim: Number of coordinates.
        context_dim: Number of entries of the context; zero for none.

    Raises:
        DomainError: A size is not a positive integer.

    Example:
        >>> import torch
        >>> class Decay(Field):
        ...     def forward(self, t, z, context=None):
        ...         return -z
        >>> velocity, trace = Decay(3).dynamics()(torch.tensor(0.0), torch.ones(5, 3))
        >>> trace
        tensor([-3., -3., -3., -3., -3.])
    """

    cheap_trace: bool = False

    def __init__(self, input_dim: int, *, context_dim: int = 0) -> None:
        super().__init__()
        who = type(self).__name__
        self.input_dim = _checks.check_count(who, "input_dim", input_dim)
        self.context_dim = _checks.check_count(who, "context_dim", context_dim, least=0)

    def forward(self, t: Tensor, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the velocity, of shape ``(*, input_dim)``.

        Args:
            t: Times, of shape ``(*)``.
            z: Points, of shape ``(*, input_dim)``.
            context: Of shape ``(*, context_dim)``.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define forward.")

    def dynamics(self, context: Tensor | None = None, noise: Tensor | None = None) -> Dynamics:
        """Return what maps a time and points to the velocity and the trace of its Jacobian.

        The parameters are those at the time of this call, also where it runs later: an adjoint
        pass comes after ``torch.func.functional_call`` has put the module's own ones back.

        Args:
            context: Of shape ``(*, context_dim)``.
            noise: Random directions, of the shape of the points, to estimate the trace from; it
                is exact, if not given.
        """
        full = self._by_products(context, noise)
        return lambda t, z: full(t, z)[:2]

    def dynamics_and_norm(
        self,
        context: Tensor | None = None,
        noise: Tensor | None = None,
        *,
        exact_trace: bool = True,
    ) -> Dynamics:
        """Return what also returns the squared Frobenius norm of the Jacobian.

        Args:
            context: Of shape ``(*, context_dim)``.
            noise: Random directions, of the shape of the points, to estimate the norm from; it is
                exact, if not given.
            exact_trace: Whether the trace is exact where the norm is estimated.
        """
        full = self._by_products(context, noise)
        if noise is None or not exact_trace:
            return full
        plain = self.dynamics(context)

        def run(t: Tensor, z: Tensor) -> tuple[Tensor, ...]:
            return *plain(t, z), full(t, z)[2]

        return run

    def _by_products(self, context: Tensor | None, noise: Tensor | None) -> Dynamics:
        held = _Held(self)

        def run(t: Tensor, z: Tensor) -> tuple[Tensor, ...]:
            def velocity(z: Tensor) -> Tensor:
                return cast(Tensor, self(t, z, context))

            with held.in_place():
                if noise is None:
                    return by_all_products(velocity, z)
                return by_one_product(velocity, z, noise)

        return run

    def extra_repr(self) -> str:
        """Name the sizes in the module's representation."""
        context = f", context_dim={self.context_dim}" if self.context_dim else ""
        return f"input_dim={self.input_dim}{context}"


class _Held:
    """The parameters that a module has now, to be put in place later."""

    def __init__(self, module: nn.Module) -> None:
        self._owners = [
            (owner._parameters, name, parameter)
            for owner in module.modules()
            for name, parameter in owner._parameters.items()
        ]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the module compute with them."""
        others = [(owner, name, owner[name]) for owner, name, held in self._owners]
        try:
            for owner, name, held in self._owners:
                owner[name] = held
            yield
        finally:
            for owner, name, other in others:
                owner[name] = other
