"""Affine transforms with free parameters: element-wise, and lower-triangular (full rank)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_flows import _checks
from pyro_flows.errors import DomainError, ShapeError
from pyro_flows.nn import DenseNet
from pyro_flows.numerics import soft_bound
from pyro_flows.transforms.base import FlowTransform


# Largest change of a log-scale that a context can make.
_LOG_SCALE_BOUND = 3.0


class _LocatedAffine(FlowTransform):
    """An affine map whose parameters move relative to a fixed location and a fixed scale.

    The location and the scale are buffers; the parameters start at zero, so that a step of an
    optimiser means the same for coordinates of any size.
    """

    fixed_loc: Tensor
    fixed_scale: Tensor

    def __init__(
        self,
        input_dim: int,
        *,
        loc: Tensor | None,
        scale: Tensor,
        context_dim: int,
        hidden_dims: Sequence[int],
    ) -> None:
        super().__init__(input_dim, context_dim=context_dim)
        fixed_loc = torch.zeros(input_dim).to(scale) if loc is None else loc
        self.register_buffer("fixed_loc", self._as_buffer("loc", fixed_loc, (input_dim,)))
        self.register_buffer("fixed_scale", self._as_buffer("scale", scale, scale.shape))
        self.loc = nn.Parameter(torch.zeros_like(self.fixed_loc))
        self.log_scale = nn.Parameter(torch.zeros_like(self.fixed_loc))
        self.conditioner = (
            DenseNet(0, 2 * input_dim, context_dim=context_dim, hidden_dims=hidden_dims)
            if context_dim
            else None
        )

    def _as_buffer(self, name: str, value: Tensor, shape: Sequence[int]) -> Tensor:
        value = torch.as_tensor(value).detach().clone()
        if tuple(value.shape) != tuple(shape) or not value.is_floating_point():
            raise _checks.refusal(
                ShapeError,
                self._name,
                expected=f"{name} to be a floating-point tensor of shape {tuple(shape)}",
                got=_checks.describe(value),
            )
        if not bool(value.isfinite().all()):
            raise _checks.refusal(
                DomainError, self._name, expected=f"{name} to be finite", got=f"{value.tolist()}"
            )
        return value

    def _loc_and_log_scale(self, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.conditioner is None:
            return self.loc, self.log_scale
        loc, raw = self.conditioner(None, context).chunk(2, -1)
        return self.loc + loc, self.log_scale + soft_bound(raw, _LOG_SCALE_BOUND)

    def _ladj(self, log_scale: Tensor, fixed_diagonal: Tensor, batch: torch.Size) -> Tensor:
        return (log_scale + fixed_diagonal.log()).sum(-1).expand(batch)


class ElementwiseAffine(_LocatedAffine):
    r"""Scale and shift each coordinate.

    .. math:: y = \mu + \sigma \odot (e^{s} \odot x + m), \qquad
        \log |\det J| = \sum_i (\log \sigma_i + s_i)

    The location :math:`\mu` and the scale :math:`\sigma` are fixed buffers; the parameters :math:`m, s`
    start at zero and move relative to them. With a context, a network adds to :math:`m` and :math:`s`.

    Args:
        input_dim: Number of coordinates.
        loc: :math:`\mu`, of shape ``(input_dim,)``; zero if not given.
        scale: :math:`\sigma > 0`, of shape ``(input_dim,)``; one if not given.
        context_dim: Number of entries of the context; zero for none.
        hidden_dims: Widths of the hidden layers of the context's network.

    Raises:
        DomainError: A size is not possible, or a scale is not positive and finite.
        ShapeError: ``loc`` or ``scale`` has the wrong shape.

    Example:
        >>> import torch
        >>> transform = ElementwiseAffine(2, loc=torch.tensor([1.0, 2.0]))
        >>> transform(torch.zeros(2)).tolist()
        [1.0, 2.0]
    """

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
            input_dim,
            loc=loc,
            scale=torch.ones(input_dim) if scale is None else scale,
            context_dim=context_dim,
            hidden_dims=hidden_dims,
        )
        if self.fixed_scale.shape != (input_dim,) or not bool((self.fixed_scale > 0).all()):
            raise _checks.refusal(
                DomainError,
                self._name,
                expected=f"{input_dim} scales > 0",
                got=f"{self.fixed_scale.tolist()}",
            )

    def _forward_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        loc, log_scale = self._loc_and_log_scale(context)
        y = (x * log_scale.exp() + loc) * self.fixed_scale + self.fixed_loc
        return y, self._ladj(log_scale, self.fixed_scale, y.shape[:-1])

    def _inverse_and_ladj(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        loc, log_scale = self._loc_and_log_scale(context)
        x = ((y - self.fixed_loc) / self.fixed_scale - loc) * torch.exp(-log_scale)
        return x, -self._ladj(log_scale, self.fixed_scale, x.shape[:-1])


class LowerTriangularAffine(_LocatedAffine):
    r"""Map the coordinates by a lower-triangular matrix with a positive diagonal, and shift them.

    .. math:: y = \mu + L (U (e^{s} \odot x) + m), \qquad
        \log |\det J| = \sum_i (\log L_{ii} + s_i)

    The location :math:`\mu` and the Cholesky factor :math:`L` are fixed buffers; the unit lower-triangular
    :math:`U` and :math:`m, s` are parameters, which start at the identity and move in the whitened space. With a
    context, a network adds to :math:`m` and :math:`s`.

    Args:
        input_dim: Number of coordinates.
        loc: :math:`\mu`, of shape ``(input_dim,)``; zero if not given.
        scale_tril: :math:`L`, of shape ``(input_dim, input_dim)``, lower-triangular with a positive
            diagonal; the identity if not given.
        context_dim: Number of entries of the context; zero for none.
        hidden_dims: Widths of the hidden layers of the context's network.

    Raises:
        DomainError: A size is not possible, or ``scale_tril`` is not a Cholesky factor.
        ShapeError: ``loc`` or ``scale_tril`` has the wrong shape.

    Example:
        >>> import torch
        >>> transform = LowerTriangularAffine(2, scale_tril=torch.tensor([[2.0, 0.0], [1.0, 3.0]]))
        >>> transform(torch.ones(2)).tolist()
        [2.0, 4.0]
    """

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
            input_dim,
            loc=loc,
            scale=torch.eye(input_dim) if scale_tril is None else scale_tril,
            context_dim=context_dim,
            hidden_dims=hidden_dims,
        )
        self.lower = nn.Parameter(torch.zeros_like(self.fixed_scale))
        self._check_cholesky_factor(self.fixed_scale)

    def _check_cholesky_factor(self, value: Tensor) -> None:
        square = value.shape == (self.input_dim, self.input_dim)
        if (
            not square
            or not torch.equal(value, value.tril())
            or bool((value.diagonal() <= 0).any())
        ):
            raise _checks.refusal(
                DomainError,
                self._name,
                expected=f"scale_tril to be lower-triangular with a positive diagonal, "
                f"of shape {(self.input_dim, self.input_dim)}",
                got=f"{value.tolist()}",
                advice="Pass torch.linalg.cholesky(covariance).",
            )

    def _unit_lower(self) -> Tensor:
        eye = torch.eye(self.input_dim, dtype=self.lower.dtype, device=self.lower.device)
        return self.lower.tril(-1) + eye

    def _forward_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        loc, log_scale = self._loc_and_log_scale(context)
        inner = (x * log_scale.exp()) @ self._unit_lower().T + loc
        y = inner @ self.fixed_scale.T + self.fixed_loc
        return y, self._ladj(log_scale, self.fixed_scale.diagonal(), y.shape[:-1])

    def _inverse_and_ladj(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        loc, log_scale = self._loc_and_log_scale(context)
        inner = _solve_lower(self.fixed_scale, y - self.fixed_loc) - loc
        x = _solve_lower(self._unit_lower(), inner) * torch.exp(-log_scale)
        return x, -self._ladj(log_scale, self.fixed_scale.diagonal(), x.shape[:-1])


def _solve_lower(matrix: Tensor, rows: Tensor) -> Tensor:
    """Solve ``matrix @ v = row`` for each row of ``rows``, of shape ``(*, D)``."""
    flat = rows.reshape(-1, rows.shape[-1])
    return torch.linalg.solve_triangular(matrix.T, flat, upper=True, left=False).view(rows.shape)
