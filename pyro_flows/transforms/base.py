"""What every transform shares: shapes, checks, conditioning, and Pyro's protocol."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import Any, ClassVar, Literal

import torch
from pyro.distributions import constraints
from pyro.distributions.conditional import ConditionalTransform
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn

from pyro_flows import _checks
from pyro_flows.errors import ShapeError
from pyro_flows.numerics import linearise


def any_float(module: nn.Module) -> Tensor | None:
    """Return a parameter or buffer that shows a module's dtype and device, if it has one."""
    # Not by .parameters(): it hashes modules, which breaks the graph of torch.compile.
    for tensor in chain(module._parameters.values(), module._buffers.values()):
        if tensor is not None and tensor.is_floating_point():
            return tensor
    found = (any_float(child) for child in module._modules.values() if child is not None)
    return next((tensor for tensor in found if tensor is not None), None)


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Return a context without autocast, under which forward and inverse would not agree."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()


# Maps the score of a random point, the gradient of its log-density, to that of its image. All
# parameters and the context are held; it runs without a graph, or refers to tensors of one.
Push = Callable[[Tensor], Tensor]
Run = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor, Push]]


@contextmanager
def parameters_held(module: nn.Module) -> Iterator[None]:
    """Let a module compute with detached aliases of its parameters.

    ``torch.func.functional_call`` would do, but refuses to run under ``torch.jit.trace``.
    """
    owners = [
        (owner, name, parameter)
        for owner in module.modules()
        for name, parameter in owner._parameters.items()
        if parameter is not None
    ]
    try:
        for owner, name, parameter in owners:
            owner._parameters[name] = parameter.detach()  # type: ignore[assignment]
        yield
    finally:
        for owner, name, parameter in owners:
            owner._parameters[name] = parameter


def derive_anew(cls: type, base: type, written: str, derived: str) -> None:
    """Give a class that writes a map anew the derivatives of any map, not those of the old one."""
    if written in vars(cls) and derived not in vars(cls):
        setattr(cls, derived, getattr(base, derived))


_Direction = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]


class FlowTransform(TransformModule, ConditionalTransform):
    r"""Base of every transform: a bijection of :math:`\mathbb{R}^D` that may depend on a context.

    A subclass writes two methods, each for inputs that are already checked:

    - ``_forward_and_ladj(x, context)`` returns ``y`` and
      :math:`\log |\det \partial y / \partial x|`,
    - ``_inverse_and_ladj(y, context)`` returns ``x`` and
      :math:`\log |\det \partial x / \partial y|`.

    The rest is derived here. Nothing is cached, so nothing goes stale when parameters move: a
    draw's own density is kept by the :class:`~pyro_flows.Flow` that drew it.

    Attributes:
        input_dim: Number of coordinates, on the last axis.
        context_dim: Number of entries of the context; zero for none.
        inverse_kind: ``"exact"`` (to rounding) or ``"numerical"`` (to a tolerance).

    Args:
        input_dim: Number of coordinates.
        context_dim: Number of entries of the context; zero for none.

    Raises:
        DomainError: A size is not a positive integer.

    Example:
        A transform of one's own, in Pyro's protocol:

        >>> import torch
        >>> class Double(FlowTransform):
        ...     def _forward_and_ladj(self, x, context):
        ...         return 2 * x, torch.full(x.shape[:-1], self.input_dim * 0.6931471805599453)
        ...
        ...     def _inverse_and_ladj(self, y, context):
        ...         return y / 2, torch.full(y.shape[:-1], -self.input_dim * 0.6931471805599453)
        >>> Double(3).inv(torch.ones(3))
        tensor([0.5000, 0.5000, 0.5000])
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True
    # Meaningless for vectors; torch.jit.trace_module reads every attribute, and torch's raises.
    sign = +1
    inverse_kind: ClassVar[Literal["exact", "numerical"]] = "exact"

    def __init__(self, input_dim: int, *, context_dim: int = 0) -> None:
        super().__init__()
        self.input_dim = _checks.check_count(self._name, "input_dim", input_dim)
        self.context_dim = _checks.check_count(self._name, "context_dim", context_dim, least=0)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        derive_anew(cls, FlowTransform, "_forward_and_ladj", "_forward_and_push")
        derive_anew(cls, FlowTransform, "_inverse_and_ladj", "_inverse_and_push")

    @property
    def stochastic(self) -> bool:
        """Whether the log-determinant is an estimate, in the present mode: that of any part."""
        parts = (part for part in self.modules() if isinstance(part, FlowTransform))
        return any(part.stochastic for part in parts if part is not self)

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _forward_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(f"{self._name} does not define _forward_and_ladj.")

    def _inverse_and_ladj(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(f"{self._name} does not define _inverse_and_ladj.")

    # A score g moves with its point: J^T g_y = g_x - grad ladj(x), for the Jacobian J at x (Vaitl,
    # Nicoli, Nakajima & Kessel 2022, proposition 2). Here, the gradient of the way back says so.

    def _forward_and_push(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Push]:
        """Return ``y``, ladj, and what maps the score of ``x`` to that of ``y``."""
        y, ladj = self._forward_and_ladj(x, context)
        return y, ladj, lambda score: self._push(self._inverse_and_ladj, y, context, score)

    def _inverse_and_push(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Push]:
        """Return ``x``, ladj, and what maps the score of ``y`` to that of ``x``."""
        x, ladj = self._inverse_and_ladj(y, context)
        return x, ladj, lambda score: self._push(self._forward_and_ladj, x, context, score)

    def _push(
        self, way_back: _Direction, point: Tensor, context: Tensor | None, score: Tensor
    ) -> Tensor:
        held = None if context is None else context.detach()
        with parameters_held(self):
            (_, ladj), pull = linearise(lambda point: way_back(point, held), point)
            return pull(score, torch.ones_like(ladj))[0]

    def forward_and_ladj(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        r"""Return ``y`` and :math:`\log |\det \partial y / \partial x|` in one pass.

        Args:
            x: Of shape ``(*, input_dim)``.
            context: Of shape ``(*, context_dim)``; its batch axes broadcast with those of ``x``.

        Returns:
            ``y`` of shape ``(*, input_dim)`` and the log-determinant of shape ``(*)``.

        Raises:
            DomainError: ``x`` is not a real floating-point tensor of the parameters' dtype.
            ShapeError: A shape is wrong, or the context is missing or not wanted.
        """
        self._check(x, context)
        with full_precision(x):
            return self._forward_and_ladj(x, context)

    def inverse_and_ladj(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        r"""Return ``x`` and :math:`\log |\det \partial x / \partial y|` in one pass.

        Args:
            y: Of shape ``(*, input_dim)``.
            context: Of shape ``(*, context_dim)``; its batch axes broadcast with those of ``y``.

        Returns:
            ``x`` of shape ``(*, input_dim)`` and the log-determinant of shape ``(*)``.

        Raises:
            DomainError: ``y`` is not a real floating-point tensor of the parameters' dtype.
            ShapeError: A shape is wrong, or the context is missing or not wanted.
        """
        self._check(y, context)
        with full_precision(y):
            return self._inverse_and_ladj(y, context)

    def _check(self, points: Tensor, context: Tensor | None) -> None:
        _checks.check_points(self._name, "points", points, self.input_dim)
        _checks.check_context(self._name, context, self.context_dim)
        _checks.check_dtypes(
            self._name, points=points, context=context, parameters=any_float(self)
        )
        if context is not None:
            _checks.check_broadcast(
                self._name, points=points.shape[:-1], context=context.shape[:-1]
            )

    def condition(self, context: Tensor) -> "FlowTransform | Conditioned":
        """Return this transform with the context fixed; itself, where it takes none.

        Args:
            context: Of shape ``(*, context_dim)``.

        Raises:
            ShapeError: The context has the wrong size.
        """
        if self.context_dim == 0:
            return self
        _checks.check_context(self._name, context, self.context_dim)
        return Conditioned(self, context)

    def _call(self, x: Tensor) -> Tensor:
        return self.forward_and_ladj(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.inverse_and_ladj(y)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        r"""Return :math:`\log |\det \partial y / \partial x|` at ``x``, of shape ``(*)``."""
        return self.forward_and_ladj(x)[1]

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """Return the shape of ``y`` for an ``x`` of the given shape."""
        if len(shape) == 0 or shape[-1] != self.input_dim:
            raise _checks.refusal(
                ShapeError,
                self._name,
                expected=f"a shape (*, {self.input_dim})",
                got=f"{tuple(shape)}",
            )
        return shape

    inverse_shape = forward_shape

    def with_cache(self, cache_size: int = 1) -> "FlowTransform":
        """Return this transform: it holds no cache."""
        return self

    def extra_repr(self) -> str:
        """Name the sizes in the module's representation."""
        context = f", context_dim={self.context_dim}" if self.context_dim else ""
        return f"input_dim={self.input_dim}{context}"

    def __repr__(self) -> str:
        return nn.Module.__repr__(self)

    def __getstate__(self) -> dict[str, Any]:
        # The inverse is a view that refers back; torch rebuilds it on demand.
        return {**super().__getstate__(), "_inv": None}


class PushingTransform(FlowTransform):
    """A transform that knows the derivatives which move a score forward.

    A subclass writes ``_forward_and_push`` and ``_inverse_and_ladj``.
    """

    def _forward_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._forward_and_push(x, context)[:2]


class Conditioned(torch.distributions.Transform):
    """A transform with its context fixed; its batch shape is that of the context.

    Args:
        transform: A transform that takes a context.
        context: Of shape ``(*, context_dim)``.
    """

    bijective = True
    sign = +1

    def __init__(self, transform: FlowTransform, context: Tensor) -> None:
        super().__init__()
        self.transform, self.context = transform, context
        self.domain, self.codomain = transform.domain, transform.codomain

    def _call(self, x: Tensor) -> Tensor:
        return self.transform.forward_and_ladj(x, self.context)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.transform.inverse_and_ladj(y, self.context)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        r"""Return :math:`\log |\det \partial y / \partial x|` at ``x``, of shape ``(*)``."""
        return self.transform.forward_and_ladj(x, self.context)[1]

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """Return the shape of ``y`` for an ``x`` of the given shape."""
        shape = self.transform.forward_shape(shape)
        return torch.broadcast_shapes(shape, (*self.context.shape[:-1], 1))

    inverse_shape = forward_shape

    def with_cache(self, cache_size: int = 1) -> "Conditioned":
        """Return this transform: it holds no cache."""
        return self
