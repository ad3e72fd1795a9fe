"""The planar transform, with an inverse."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_flows.nn import DenseNet
from pyro_flows.numerics import (
    above_minus_one,
    log_bend_slope,
    log_bend_slope_slope,
    solve_bend,
)
from pyro_flows.transforms.base import Push, PushingTransform


class Planar(PushingTransform):
    r"""Bend the space along one direction.

    .. math:: y = x + \hat u \tanh(w^\top x + b), \qquad
        \det J = 1 + w^\top \hat u \, \mathrm{sech}^2(w^\top x + b)

    The map is invertible where :math:`w^\top \hat u > -1`. The free vector :math:`u` is moved
    along :math:`w` to make it so,

    .. math:: \hat u = u + \frac{m(w^\top u) - w^\top u}{\|w\|^2} w, \qquad
        m(a) = \begin{cases} a & a \ge 0 \\ k (e^{a / k} - 1) & a < 0 \end{cases}

    with :math:`k = 0.999`. With this :math:`m`, unlike the softplus of the paper,
    :math:`\hat u` stays bounded as :math:`w \to 0`, and :math:`u = 0` is the identity, where
    training starts. The inverse reduces to one monotone equation for :math:`t = w^\top x + b`,
    whose Newton iteration is started so that it converges from one side.

    Args:
        input_dim: Number of coordinates.
        context_dim: Number of entries of the context, which then moves :math:`w, u, b`; zero for
            none.
        hidden_dims: Widths of the hidden layers of the context's network.

    Raises:
        DomainError: A size is not a positive integer.

    Reference:
        Rezende & Mohamed (2015), *Variational inference with normalizing flows*, equations 10-12
        and appendix A.1.

    Example:
        >>> import torch
        >>> transform = Planar(3)
        >>> y = transform(torch.ones(5, 3))
        >>> torch.allclose(transform.inv(y), torch.ones(5, 3))
        True
    """

    def __init__(
        self, input_dim: int, *, context_dim: int = 0, hidden_dims: Sequence[int] = (64, 64)
    ) -> None:
        super().__init__(input_dim, context_dim=context_dim)
        self.weight = nn.Parameter(torch.randn(input_dim) / input_dim**0.5)
        self.direction = nn.Parameter(torch.zeros(input_dim))
        self.bias = nn.Parameter(torch.randn(1))
        self.conditioner = (
            DenseNet(0, 2 * input_dim + 1, context_dim=context_dim, hidden_dims=hidden_dims)
            if context_dim
            else None
        )

    def _params(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return ``w``, ``u_hat``, ``b`` of shape ``(*, 1)``, and ``w . u_hat`` of ``(*)``."""
        w, u, b = self.weight, self.direction, self.bias
        if self.conditioner is not None:
            sizes = [self.input_dim, self.input_dim, 1]
            moves = self.conditioner(None, context).split(sizes, -1)
            w, u, b = w + moves[0], u + moves[1], b + moves[2]
        a = _dot(w, u)
        bounded = above_minus_one(a)
        norm_square = _dot(w, w).clamp(min=torch.finfo(w.dtype).tiny)
        u_hat = u + ((bounded - a) / norm_square)[..., None] * w
        return w, u_hat, b, bounded

    def _forward_and_push(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Push]:
        w, u_hat, b, bend = self._params(context)
        bent = torch.tanh(_project(x, w, b).double())

        def push(score: Tensor) -> Tensor:
            # By Sherman & Morrison's formula: the Jacobian is 1 + sech^2(t) u_hat w^T.
            gate, ladj_slope = log_bend_slope_slope(bent, bend)
            along = (gate * _project(score, u_hat) + ladj_slope) / (1 + gate * bend)
            return _move(score, along, w, sign=-1)

        return _move(x, bent, u_hat), log_bend_slope(bent, bend), push

    def _inverse_and_ladj(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        w, u_hat, b, bend = self._params(context)
        bent = torch.tanh(solve_bend(_project(y, w, b), bend).double())
        return _move(y, bent, u_hat, sign=-1), -log_bend_slope(bent, bend)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    if left.dim() == right.dim() == 1:
        return torch.dot(left, right)
    return (left * right).sum(-1)


# Of one set of parameters and a batch of points, both have an operator of their own.


def _project(points: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """Return ``w . x + b``, of shape ``(*)``."""
    if points.dim() == 2 and w.dim() == 1:
        product = torch.mv(points, w)
        return product if b is None else product + b
    product = (points * w).sum(-1)
    return product if b is None else product + b.squeeze(-1)


def _move(points: Tensor, bent: Tensor, u_hat: Tensor, *, sign: int = 1) -> Tensor:
    """Return the points plus or minus ``u_hat`` times ``bent``."""
    bent = bent.to(points.dtype)
    if points.dim() == 2 and u_hat.dim() == 1:
        return torch.addr(points, bent, u_hat, alpha=sign)
    return torch.addcmul(points, bent[..., None], u_hat, value=sign)
