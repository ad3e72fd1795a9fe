"""The radial transform, with an inverse in closed form."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_flows.nn import DenseNet
from pyro_flows.numerics import above_minus_one
from pyro_flows.transforms.base import Push, PushingTransform

# Radii from e^-10 to e^10: a point is never infinitely many radii away.
_LOG_RADIUS_BOUND = 10.0
_LARGEST_RADIUS = math.exp(_LOG_RADIUS_BOUND)


class Radial(PushingTransform):
    r"""Push the space away from a centre, or draw it in.

    .. math:: y = x + \beta \, \frac{x - x_0}{\alpha + r}, \qquad r = \|x - x_0\|

    With :math:`h = 1 / (\alpha + r)`, the log-determinant is

    .. math:: \log \det J = (D - 1) \log(1 + \beta h) + \log(1 + \beta h + \beta h' r)

    The map is invertible where :math:`\beta > -\alpha`. Both come from free numbers :math:`a, b`,
    as :math:`\alpha = e^a`, with :math:`|a|` softly bounded by ten, and
    :math:`\beta = \alpha \, m(b)`, where :math:`m` is the identity above zero and tends to -0.999
    below (see :func:`pyro_flows.numerics.above_minus_one`). So :math:`b = 0` is the identity,
    where training starts. The inverse is the positive root of a quadratic in :math:`r`.

    Args:
        input_dim: Number of coordinates.
        context_dim: Number of entries of the context, which then moves :math:`x_0, a, b`; zero for
            none.
        hidden_dims: Widths of the hidden layers of the context's network.

    Raises:
        DomainError: A size is not a positive integer.

    Reference:
        Rezende & Mohamed (2015), *Variational inference with normalizing flows*, equation 14 and
        appendix A.2.

    Example:
        >>> import torch
        >>> transform = Radial(3)
        >>> y = transform(torch.ones(5, 3))
        >>> torch.allclose(transform.inv(y), torch.ones(5, 3))
        True
    """

    def __init__(
        self, input_dim: int, *, context_dim: int = 0, hidden_dims: Sequence[int] = (64, 64)
    ) -> None:
        super().__init__(input_dim, context_dim=context_dim)
        self.center = nn.Parameter(torch.randn(input_dim))
        # The radius of a typical set: that of a normal distribution, of which a centre is a draw.
        self.log_radius = nn.Parameter(torch.full((1,), float(input_dim)).log() / 2)
        self.push = nn.Parameter(torch.zeros(1))
        self.conditioner = (
            DenseNet(0, input_dim + 2, context_dim=context_dim, hidden_dims=hidden_dims)
            if context_dim
            else None
        )

    # Distances, and what depends on them alone, are in float64: no square overflows there, and
    # neither one plus the excess of a stretch over one nor its gradient loses digits that matter.

    def _params(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        r"""Return :math:`x_0`; :math:`\alpha` and :math:`\beta / \alpha`, of shape ``(*, 1)``."""
        center, log_radius, push = self.center, self.log_radius, self.push
        if self.conditioner is not None:
            moves = self.conditioner(None, context).split([self.input_dim, 1, 1], -1)
            center, log_radius, push = center + moves[0], log_radius + moves[1], push + moves[2]
        alpha = _LARGEST_RADIUS ** torch.tanh(log_radius.double() / _LOG_RADIUS_BOUND)
        return center, alpha, above_minus_one(push.double())

    def _forward_and_push(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Push]:
        center, alpha, ratio = self._params(context)
        offset = x - center
        length = _length(offset)
        h = alpha / (length + alpha)
        excess = ratio * h
        y = x + excess.to(x.dtype) * offset

        def push(score: Tensor) -> Tensor:
            across, along = 1 + excess, 1 + excess * h
            ladj_slope = -excess * h / alpha * (2 * h / along + (self.input_dim - 1) / across)
            # The centre itself has no direction, and needs none.
            radius = offset / length.clamp(min=torch.finfo(length.dtype).tiny)
            radial = (score * radius).sum(-1, keepdim=True)
            move = (radial * (excess * (1 - h) / across) - ladj_slope) / along
            return (score / across + move * radius).to(score.dtype)

        return y, self._ladj_at(excess, h).to(_ladj_dtype(x)), push

    def _inverse_and_ladj(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        center, alpha, ratio = self._params(context)
        offset = y.double() - center
        s = _solve_distance(_length(offset) / alpha, 1 + ratio)
        x = y - ratio / (1 + ratio + s) * offset
        return x.to(y.dtype), -self._ladj(s, ratio).to(_ladj_dtype(y))

    def _ladj(self, s: Tensor, ratio: Tensor) -> Tensor:
        r"""Return the log-determinant at :math:`s = r / \alpha`; :math:`c = \beta / \alpha`."""
        h = 1 / (1 + s.double())
        return self._ladj_at(ratio * h, h)

    def _ladj_at(self, excess: Tensor, h: Tensor) -> Tensor:
        r"""Return the log-determinant, for :math:`h = 1 / (1 + s)` and :math:`e = c h`.

        Across the radius, the map stretches by :math:`1 + e`; along it, by :math:`1 + e h`.
        """
        along = torch.log1p(excess * h)
        return torch.add(along, torch.log1p(excess), alpha=self.input_dim - 1).squeeze(-1)


def _ladj_dtype(points: Tensor) -> torch.dtype:
    return torch.promote_types(points.dtype, torch.float32)


def _length(offset: Tensor) -> Tensor:
    """Return the norm, of shape ``(*, 1)``; zero has the gradient zero."""
    return torch.linalg.vector_norm(offset, dim=-1, keepdim=True, dtype=torch.float64)


def _solve_distance(image: Tensor, k: Tensor) -> Tensor:
    r"""Return the distance :math:`s \ge 0` whose image is :math:`S = s (k + s) / (1 + s)`.

    It is the positive root of :math:`s^2 + (k - S) s - S = 0`, for :math:`k > 0`. With
    :math:`N = k + S` and :math:`t = (k - S) / N`, its discriminant is :math:`N^2 q^2` with
    :math:`q^2 = t^2 + 4 S / N^2`, of which neither term overflows or cancels.
    """
    n = k + image
    t = (k - image) / n
    q = (t.square() + 4 * (image / n) / n).sqrt()
    # Two forms of one root: each subtracts where the other adds.
    adding = torch.where(t > 0, t + q, 1)
    return torch.where(t > 0, 2 * (image / n) / adding, n * (q - t) / 2)
