"""Increasing maps of one coordinate, whose parameters come from elsewhere."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pyro.distributions import constraints
from torch import Tensor
from typing_extensions import override

from pyro_flows import _checks
from pyro_flows.errors import DomainError
from pyro_flows.nn.implicit import Tangent
from pyro_flows.nn.opaque import opaque
from pyro_flows.numerics import Pull, linearise, pull_tanh, widen
from pyro_flows.roots import solve_increasing
from pyro_flows.transforms.base import FlowTransform, derive_anew
from pyro_flows.transforms.domains import on_vectors


class Univariate:
    r"""Base of the increasing maps of one coordinate, :math:`y = f(x; p)` with ``K`` parameters.

    The same map serves free parameters (:class:`~pyro_flows.transforms.Elementwise`), parameters
    from some of the other coordinates (:class:`~pyro_flows.transforms.Coupling`), and from the
    coordinates before (:class:`~pyro_flows.transforms.Autoregressive`). With all parameters at
    zero, where every conditioner starts, the map is the identity.

    A subclass writes :meth:`forward_and_ladj`; it inherits a numerical inverse, whose gradients
    come from the implicit function theorem. One with an inverse in closed form writes
    :meth:`inverse_and_ladj` as well, and sets ``inverse_kind`` to ``"exact"``. An instance holds
    options only, no tensors.

    Attributes:
        num_params: Number of parameters per coordinate, ``K``.
        inverse_kind: ``"exact"`` (to rounding) or ``"numerical"`` (to a tolerance).
        num_features: Numbers by which a network sees one coordinate; two for an angle.

    Example:
        A map of one's own, inverted numerically and used in a coupling:

        >>> import torch
        >>> from pyro_flows.transforms import Coupling, Univariate
        >>> class Bend(Univariate):
        ...     num_params = 1
        ...
        ...     def forward_and_ladj(self, x, params):
        ...         bend = torch.tanh(params[..., 0, :]) * 0.9
        ...         return x + bend * torch.tanh(x), torch.log1p(bend / x.cosh().square())
        >>> transform = Coupling(Bend(), 4)
        >>> torch.allclose(transform.inv(transform(torch.ones(4))), torch.ones(4))
        True
    """

    num_params: int
    inverse_kind: ClassVar[Literal["exact", "numerical"]] = "numerical"
    num_features: ClassVar[int] = 1

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        derive_anew(cls, Univariate, "forward_and_ladj", "forward_and_tangent")
        derive_anew(cls, Univariate, "inverse_and_ladj", "inverse_and_tangent")

    @property
    def domain(self) -> Any:
        """Where ``x`` lies."""
        return constraints.real

    @property
    def codomain(self) -> Any:
        """Where ``y`` lies."""
        return constraints.real

    @property
    def _name(self) -> str:
        return type(self).__name__

    def features(self, x: Tensor) -> Tensor:
        """Return what a network sees of coordinates of shape ``(*, n)``: the same, in general."""
        return x

    def forward_and_ladj(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return :math:`y = f(x; p)` and :math:`\log f'(x; p)`, both of shape ``(*, n)``.

        Args:
            x: Of shape ``(*, n)``.
            params: Of shape ``(*, K, n)``; its batch axes broadcast with those of ``x``.
        """
        raise NotImplementedError(f"{self._name} does not define forward_and_ladj.")

    def inverse_and_ladj(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return :math:`x = f^{-1}(y; p)` and minus :math:`\log f'(x; p)`, of shape ``(*, n)``.

        Args:
            y: Of shape ``(*, n)``.
            params: Of shape ``(*, K, n)``; its batch axes broadcast with those of ``y``.
        """
        x = self.inverse(y, params)
        if torch.is_grad_enabled():
            # Newton's steps, whose value is rounding and whose derivatives are those of the
            # implicit function: one step alone gets the first one right, two get three.
            for _ in range(2):
                value, ladj = self.forward_and_ladj(x, params)
                x = x + (y - value) * torch.exp(-ladj)
        return x, -self.forward_and_ladj(x, params)[1]

    def inverse(self, y: Tensor, params: Tensor) -> Tensor:
        """Return the root ``x`` that a numerical inverse finds, without a gradient.

        Args:
            y: Of shape ``(*, n)``.
            params: Of shape ``(*, K, n)``.

        Raises:
            NotConvergedError: The root was not found.
        """

        def kernel(y: Tensor, flat: Tensor) -> Tensor:
            params = flat.unflatten(-1, (self.num_params, -1))
            return self._solve(y, params)

        batch = torch.broadcast_shapes(y.shape, (*params.shape[:-2], 1))[:-1]
        rows = [y.expand(*batch, -1), params.flatten(-2).expand(*batch, -1)]
        return opaque(kernel, rows, [])

    def _solve(self, y: Tensor, params: Tensor) -> Tensor:
        """Return the root; a subclass that knows a bracket narrows the search."""
        params = widen(params)
        x = solve_increasing(lambda x: self.forward_and_ladj(x, params), widen(y), who=self._name)
        return x.to(y.dtype)

    def slope_and_pull(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return :math:`\partial f / \partial x` and :math:`\partial f / \partial p`, detached.

        Args:
            x: Of shape ``(*, n)``.
            params: Of shape ``(*, K, n)``.
        """
        with torch.no_grad():
            return self.forward_and_tangent(x.detach(), params.detach())[2].slope_and_pull()

    def forward_and_tangent(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor, Tangent]:
        """Return what :meth:`forward_and_ladj` does, and the derivatives there.

        Args:
            x: Of shape ``(*, n)``.
            params: Of shape ``(*, K, n)``.
        """
        return *self.forward_and_ladj(x, params), _Linearised(self, x, params)

    def inverse_and_tangent(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor, Tangent]:
        """Return what :meth:`inverse_and_ladj` does, and the derivatives of the map at ``x``.

        Args:
            y: Of shape ``(*, n)``.
            params: Of shape ``(*, K, n)``.
        """
        x, ladj = self.inverse_and_ladj(y, params)
        return x, ladj, _Linearised(self, x, params)


class _Linearised:
    """The derivatives of any map, by autodiff."""

    def __init__(self, univariate: Univariate, x: Tensor, params: Tensor) -> None:
        self._univariate, self._at = univariate, (x, params)

    @cached_property
    def _values_and_pull(self) -> tuple[tuple[Tensor, ...], Pull]:
        return linearise(self._univariate.forward_and_ladj, *self._at)

    @cached_property
    def _slope_and_pull(self) -> tuple[Tensor, ...]:
        (y, _), pull = self._values_and_pull
        return pull(torch.ones_like(y), None)

    def slope_and_pull(self) -> tuple[Tensor, Tensor]:
        slope, by_params = self._slope_and_pull
        return slope, by_params

    def push(self, score: Tensor) -> tuple[Tensor, Tensor]:
        (_, ladj), pull = self._values_and_pull
        by_x, by_params = pull(None, torch.ones_like(ladj))
        slope, moved = self._slope_and_pull
        score = (score - by_x) / slope
        return score, torch.addcmul(by_params, score[..., None, :], moved)

    def pull(self, score: Tensor) -> tuple[Tensor, Tensor]:
        (_, ladj), pull = self._values_and_pull
        by_x, by_params = pull(score, torch.ones_like(ladj))
        return by_x, by_params


@dataclass(frozen=True)
class Affine(Univariate):
    r"""Scale and shift: :math:`y = x e^s + m`, with the parameters :math:`m` and a raw :math:`s`.

    Args:
        log_scale_bound: Largest :math:`|s|`; approached smoothly.

    Raises:
        DomainError: The bound is not a positive number.

    Reference:
        Dinh, Sohl-Dickstein & Bengio (2017), *Density estimation using Real NVP*, equation 4.

    Example:
        >>> import torch
        >>> y, ladj = Affine().forward_and_ladj(torch.ones(5), torch.zeros(2, 5))
        >>> y.tolist(), ladj.tolist()
        ([1.0, 1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0])
    """

    log_scale_bound: float = 3.0
    num_params = 2
    inverse_kind = "exact"

    def __post_init__(self) -> None:
        _checks.check_positive(self._name, "log_scale_bound", self.log_scale_bound)

    def _shift_and_squashed(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``m`` and ``s``, over its bound."""
        shift, raw = params.unbind(-2)
        return shift, torch.tanh(raw / self.log_scale_bound)

    @override
    def forward_and_ladj(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward_and_tangent(x, params)[:2]

    @override
    def inverse_and_ladj(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return self.inverse_and_tangent(y, params)[:2]

    @override
    def forward_and_tangent(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor, Tangent]:
        shift, squashed = self._shift_and_squashed(params)
        log_scale = squashed * self.log_scale_bound
        scale = log_scale.exp()
        return x * scale + shift, log_scale, _AffineTangent(x, scale, squashed)

    @override
    def inverse_and_tangent(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor, Tangent]:
        shift, squashed = self._shift_and_squashed(params)
        log_scale = squashed * self.log_scale_bound
        scale = log_scale.exp()
        x = (y - shift) / scale
        return x, -log_scale, _AffineTangent(x, scale, squashed)


class _AffineTangent(NamedTuple):
    """Where a shift and a scale are, with the log-scale over its bound."""

    x: Tensor
    scale: Tensor
    squashed: Tensor

    def push(self, score: Tensor) -> tuple[Tensor, Tensor]:
        by_y = score / self.scale
        return by_y, self._share(by_y, score * self.x)

    def pull(self, score: Tensor) -> tuple[Tensor, Tensor]:
        by_x = score * self.scale
        return by_x, self._share(score, by_x * self.x)

    def slope_and_pull(self) -> tuple[Tensor, Tensor]:
        by_raw = pull_tanh(self.x * self.scale, self.squashed)
        return self.scale, torch.stack([torch.ones_like(by_raw), by_raw], -2)

    def _share(self, by_shift: Tensor, by_log_scale: Tensor) -> Tensor:
        return torch.stack([by_shift, pull_tanh(by_log_scale + 1, self.squashed)], -2)


@dataclass(frozen=True)
class Shift(Univariate):
    """Shift by the one parameter, which preserves volumes: :math:`y = x + m`.

    Reference:
        Dinh, Krueger & Bengio (2015), *NICE: Non-linear independent components estimation*,
        section 3.2.

    Example:
        >>> import torch
        >>> Shift().forward_and_ladj(torch.ones(2), torch.ones(1, 2))[0].tolist()
        [2.0, 2.0]
    """

    num_params = 1
    inverse_kind = "exact"

    @override
    def forward_and_ladj(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        y = x + params.squeeze(-2)
        return y, torch.zeros_like(y)

    @override
    def inverse_and_ladj(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        x = y - params.squeeze(-2)
        return x, torch.zeros_like(x)

    @override
    def forward_and_tangent(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor, Tangent]:
        return *self.forward_and_ladj(x, params), _ShiftTangent(x)

    @override
    def inverse_and_tangent(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor, Tangent]:
        x, ladj = self.inverse_and_ladj(y, params)
        return x, ladj, _ShiftTangent(x)


class _ShiftTangent(NamedTuple):
    x: Tensor

    def push(self, score: Tensor) -> tuple[Tensor, Tensor]:
        return score, score[..., None, :]

    def pull(self, score: Tensor) -> tuple[Tensor, Tensor]:
        return self.push(score)

    def slope_and_pull(self) -> tuple[Tensor, Tensor]:
        ones = torch.ones_like(self.x)
        return ones, ones[..., None, :]


class UnivariateTransform(FlowTransform):
    """What transforms that map each coordinate by a :class:`Univariate` share.

    Args:
        univariate: The map.
        input_dim: Number of coordinates.
        context_dim: Number of entries of the context; zero for none.

    Raises:
        DomainError: ``univariate`` is no such map, or a size is not a positive integer.
    """

    def __init__(self, univariate: Univariate, input_dim: int, *, context_dim: int) -> None:
        super().__init__(input_dim, context_dim=context_dim)
        self._check_univariate(univariate)
        self.univariate = univariate
        self.inverse_kind = univariate.inverse_kind  # type: ignore[misc]

    def _forward_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._forward_and_push(x, context)[:2]

    def _inverse_and_ladj(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._inverse_and_push(y, context)[:2]

    def _check_univariate(self, value: Univariate) -> None:
        if not isinstance(value, Univariate):
            raise _checks.refusal(
                DomainError,
                self._name,
                expected="a Univariate map",
                got=_checks.describe(value),
                advice="Pass Affine(), for example, or subclass Univariate.",
            )
        who = f"{self._name}: {value._name}"
        _checks.check_count(who, "num_params", getattr(value, "num_params", None))

    @property
    def domain(self) -> Any:  # type: ignore[override]
        """Where ``x`` lies."""
        return on_vectors(self.univariate.domain)

    @property
    def codomain(self) -> Any:  # type: ignore[override]
        """Where ``y`` lies."""
        return on_vectors(self.univariate.codomain)
