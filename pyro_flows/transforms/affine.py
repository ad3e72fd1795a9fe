"""Affine transforms with free parameters: element-wise, and lower-triangular (full rank)."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_flows import _checks
from pyro_flows.errors import DomainError
from pyro_flows.nn import DenseNet
from pyro_flows.numerics import expand_batch, soft_bound, solve_rows, widen
from pyro_flows.transforms.base import Push, PushingTransform

# Largest change of a log-scale that a context can make.
_LOG_SCALE_BOUND = 3.0


class MovedAffine(PushingTransform):
    """An affine map with a shift and log-scales that start at zero, and that a context moves."""

    def _own_moves(self, like: Tensor, hidden_dims: Sequence[int]) -> None:
        """Create the parameters, of the shape, the dtype and the device of ``like``."""
        self.loc = nn.Parameter(torch.zeros_like(like))
        self.log_scale = nn.Parameter(torch.zeros_like(like))
        self.conditioner = None
        if self.context_dim:
            net = DenseNet(
                0, 2 * self.input_dim, context_dim=self.context_dim, hidden_dims=hidden_dims
            )
            self.conditioner = net.to(like)

    def _loc_and_log_scale(self, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.conditioner is None:
            return self.loc, self.log_scale
        loc, raw = self.conditioner(None, context).chunk(2, -1)
        return self.loc + loc, self.log_scale + soft_bound(raw, _LOG_SCALE_BOUND)


class _LocatedAffine(MovedAffine):
    """An affine map whose parameters move relative to a fixed location and a fixed scale.

    The location and the scale are buffers; the parameters start at zero, so that a step of an
    optimiser means the same for coordinates of any size.
    """

    fixed_loc: Tensor
    fixed_scale: Tensor
    _scale_name: ClassVar[str]

    def __init__(
        self,
        input_dim: int,
        *,
        loc: Tensor | None,
        scale: Tensor | None,
        context_dim: int,
        hidden_dims: Sequence[int],
    ) -> None:
        super().__init__(input_dim, context_dim=context_dim)
        unit = self._unit_scale()
        if scale is not None:
            scale = _checks.check_buffer(self._name, self._scale_name, scale, unit.shape)
        if loc is not None:
            loc = _checks.check_buffer(self._name, "loc", loc, (input_dim,))
        _checks.check_dtypes(self._name, **{"loc": loc, self._scale_name: scale})
        # What is not given follows what is, in dtype and device.
        like = next((given for given in (scale, loc) if given is not None), unit)
        self.register_buffer("fixed_loc", torch.zeros(input_dim).to(like) if loc is None else loc)
        self.register_buffer("fixed_scale", unit.to(like) if scale is None else scale)
        self._own_moves(self.fixed_loc, hidden_dims)

    def _unit_scale(self) -> Tensor:
        raise NotImplementedError

    def _ladj(self, log_scale: Tensor, fixed_diagonal: Tensor, batch: torch.Size) -> Tensor:
        ladj = (widen(log_scale) + widen(fixed_diagonal).log()).sum(-1)
        return expand_batch(ladj, batch)


class ElementwiseAffine(_LocatedAffine):
    r"""Scale and shift each coordinate.

    .. math:: y = \mu + \sigma \odot (e^{s} \odot x + m), \qquad
        \log |\det J| = \sum_i (\log \sigma_i + s_i)

    The location :math:`\mu` and the scale :math:`\sigma` are fixed buffers; the parameters
    :math:`m, s` start at zero and move relative to them. With a context, a network adds to
    :math:`m` and :math:`s`.

    Args:
        input_dim: Number of coordinates.
        loc: :math:`\mu`, of shape ``(input_dim,)``; zero if not given.
        scale: :math:`\sigma > 0`, of shape ``(input_dim,)``; one if not given.
        context_dim: Number of entries of the context; zero for none.
        hidden_dims: Widths of the hidden layers of the context's network.

    Raises:
        DomainError: A size is not possible, a scale is not positive and finite, or ``loc`` and
            ``scale`` are not floating-point tensors of one dtype.
        ShapeError: ``loc`` or ``scale`` has the wrong shape.

    Example:
        >>> import torch
        >>> transform = ElementwiseAffine(2, loc=torch.tensor([1.0, 2.0]))
        >>> transform(torch.zeros(2)).tolist()
        [1.0, 2.0]
    """

    _scale_name = "scale"

    def __init__(
        self,
        input_dim: int,
        *,
        loc: Tensor | None = None,
        scale: Tensor | None = None,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__(
            input_dim, loc=loc, scale=scale, context_dim=context_dim, hidden_dims=hidden_dims
        )
        if not bool((self.fixed_scale > 0).all()):
            raise _checks.refusal(
                DomainError,
                self._name,
                expected="every scale to be > 0",
                got=f"{self.fixed_scale.tolist()}",
            )

    def _unit_scale(self) -> Tensor:
        return torch.ones(self.input_dim)

    def _forward_and_push(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Push]:
        loc, log_scale = self._loc_and_log_scale(context)
        scale = log_scale.exp()
        y = (x * scale + loc) * self.fixed_scale + self.fixed_loc
        ladj = self._ladj(log_scale, self.fixed_scale, y.shape[:-1])
        # Not by their product, which may underflow.
        return y, ladj, lambda score: score / scale / self.fixed_scale

    def _inverse_and_ladj(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        loc, log_scale = self._loc_and_log_scale(context)
        x = ((y - self.fixed_loc) / self.fixed_scale - loc) * torch.exp(-log_scale)
        return x, -self._ladj(log_scale, self.fixed_scale, x.shape[:-1])


class LowerTriangularAffine(_LocatedAffine):
    r"""Map the coordinates by a lower-triangular matrix with a positive diagonal, and shift them.

    .. math:: y = \mu + L (U (e^{s} \odot x) + m), \qquad
        \log |\det J| = \sum_i (\log L_{ii} + s_i)

    The location :math:`\mu` and the Cholesky factor :math:`L` are fixed buffers; the unit
    lower-triangular :math:`U` and :math:`m, s` are parameters, which start at the identity and
    move in the whitened space. With a context, a network adds to :math:`m` and :math:`s`.

    Args:
        input_dim: Number of coordinates.
        loc: :math:`\mu`, of shape ``(input_dim,)``; zero if not given.
        scale_tril: :math:`L`, of shape ``(input_dim, input_dim)``, lower-triangular with a
            positive diagonal; the identity if not given.
        context_dim: Number of entries of the context; zero for none.
        hidden_dims: Widths of the hidden layers of the context's network.

    Raises:
        DomainError: A size is not possible, ``scale_tril`` is not a Cholesky factor, or ``loc``
            and ``scale_tril`` are not floating-point tensors of one dtype.
        ShapeError: ``loc`` or ``scale_tril`` has the wrong shape.

    Example:
        >>> import torch
        >>> transform = LowerTriangularAffine(2, scale_tril=torch.tensor([[2.0, 0.0], [1.0, 3.0]]))
        >>> transform(torch.ones(2)).tolist()
        [2.0, 4.0]
    """

    _scale_name = "scale_tril"
    lower: Tensor

    def __init__(
        self,
        input_dim: int,
        *,
        loc: Tensor | None = None,
        scale_tril: Tensor | None = None,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__(
            input_dim, loc=loc, scale=scale_tril, context_dim=context_dim, hidden_dims=hidden_dims
        )
        self._check_cholesky_factor(self.fixed_scale)
        lower = torch.zeros_like(self.fixed_scale)
        # With one coordinate there is nothing below the diagonal to learn.
        if input_dim > 1:
            self.lower = nn.Parameter(lower)
        else:
            self.register_buffer("lower", lower)

    def _unit_scale(self) -> Tensor:
        return torch.eye(self.input_dim)

    def _check_cholesky_factor(self, value: Tensor) -> None:
        if not torch.equal(value, value.tril()) or not bool((value.diagonal() > 0).all()):
            raise _checks.refusal(
                DomainError,
                self._name,
                expected="scale_tril to be lower-triangular with a positive diagonal",
                got=f"{value.tolist()}",
                advice="Pass torch.linalg.cholesky(covariance).",
            )

    def _unit_lower(self) -> Tensor:
        eye = torch.eye(self.input_dim, dtype=self.lower.dtype, device=self.lower.device)
        return self.lower.tril(-1) + eye

    def _forward_and_push(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Push]:
        loc, log_scale = self._loc_and_log_scale(context)
        scale, lower = log_scale.exp(), self._unit_lower()
        inner = functional.linear(x * scale, lower) + loc
        y = functional.linear(inner, self.fixed_scale, self.fixed_loc)

        def push(score: Tensor) -> Tensor:
            score = solve_rows(lower.T, score / scale, upper=True)
            return solve_rows(self.fixed_scale.T, score, upper=True)

        return y, self._ladj(log_scale, self.fixed_scale.diagonal(), y.shape[:-1]), push

    def _inverse_and_ladj(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        loc, log_scale = self._loc_and_log_scale(context)
        inner = solve_rows(self.fixed_scale, y - self.fixed_loc) - loc
        x = solve_rows(self._unit_lower(), inner) * torch.exp(-log_scale)
        return x, -self._ladj(log_scale, self.fixed_scale.diagonal(), x.shape[:-1])
