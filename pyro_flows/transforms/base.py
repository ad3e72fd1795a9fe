"""What every transform shares: shapes, checks, conditioning, and Pyro's protocol."""

from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any, ClassVar, Literal

import torch
from pyro.distributions import constraints
from pyro.distributions.conditional import ConditionalTransform
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn

from pyro_flows import _checks
from pyro_flows.errors import ShapeError


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


# What a forward pass keeps for the inverse at its result: tensors, nested as the transforms are.
Root = Any


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

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _forward_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(f"{self._name} does not define _forward_and_ladj.")

    def _inverse_and_ladj(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(f"{self._name} does not define _inverse_and_ladj.")

    def _forward_and_root(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Root]:
        """Return ``y``, ladj, and what spares the inverse at this ``y`` its search; or none."""
        return *self._forward_and_ladj(x, context), None

    def _inverse_from_root(
        self, y: Tensor, context: Tensor | None, root: Root
    ) -> tuple[Tensor, Tensor]:
        """Return what ``_inverse_and_ladj`` does, at a ``y`` whose root is known."""
        return self._inverse_and_ladj(y, context)

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


class RootedTransform(FlowTransform):
    """A transform whose forward pass keeps what spares the inverse at its result a search.

    A subclass writes ``_forward_and_root`` and ``_inverse_from_root``, which searches where the
    root is none.
    """

    def _forward_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._forward_and_root(x, context)[:2]

    def _inverse_and_ladj(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._inverse_from_root(y, context, None)


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
