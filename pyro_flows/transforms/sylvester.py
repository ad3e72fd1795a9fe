"""The Sylvester transform, with an inverse."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_flows import _checks
from pyro_flows.errors import DomainError
from pyro_flows.nn import DenseNet
from pyro_flows.nn.orthogonal import householder_matrix
from pyro_flows.numerics import (
    above_minus_one,
    log_bend_slope,
    log_bend_slope_slope,
    log_sech_square,
    solve_bend,
    widen,
)
from pyro_flows.transforms.base import Push, PushingTransform

_LOG_SLOPE_BOUND = 3.0
_LARGEST_SLOPE = math.exp(_LOG_SLOPE_BOUND)


class _Params(NamedTuple):
    """The matrices of the map, ``(*, D, M)`` and twice ``(*, M, M)``, and vectors ``(*, M)``."""

    frame: Tensor
    outer: Tensor
    inner: Tensor
    bias: Tensor
    bend: Tensor


class Sylvester(PushingTransform):
    r"""Bend the space along several directions at once.

    .. math:: y = x + Q R \tanh(\tilde R Q^\top x + b), \qquad
        \det J = \prod_i \left(1 + R_{ii} \tilde R_{ii} \, \mathrm{sech}^2 a_i\right), \quad
        a = \tilde R Q^\top x + b

    The columns of :math:`Q`, of shape ``(D, M)``, are orthonormal; :math:`R` and
    :math:`\tilde R`, of shape ``(M, M)``, are upper-triangular. The map is invertible where
    :math:`R_{ii} \tilde R_{ii} > -1`; since tanh is odd, :math:`\tilde R_{ii} > 0` loses nothing.
    Free numbers :math:`s_i, c_i` thus give :math:`\tilde R_{ii} = e^{s_i}`, with :math:`|s_i|`
    softly bounded by three, and :math:`R_{ii} = m(c_i) / \tilde R_{ii}`, with the :math:`m` of
    :func:`pyro_flows.numerics.above_minus_one`. Training starts at the identity, :math:`R = 0`.

    :math:`Q` holds the first columns of a product of Householder reflections, by whose number the
    three flows of the paper differ:

    - ``num_reflections=num_hidden``, as is the default, reaches every :math:`Q` but for the signs
      of its columns, which :math:`R`, :math:`\tilde R` and :math:`b` take up (orthogonal),
    - fewer are cheaper (Householder),
    - none leaves the coordinates as they are (triangular). Let ``reverse`` alternate along a chain
      then, so that each coordinate gets to move by each other one.

    The inverse is a walk over the ``M`` hidden coordinates, each of which solves one monotone
    equation as :class:`~pyro_flows.transforms.Planar` does. Its gradients, which keep no graph of
    the walk, are right to third order. It is as exact as the map is well-conditioned: large
    entries above the diagonals cost digits, the more so with many hidden units.

    Args:
        input_dim: Number of coordinates, ``D``.
        num_hidden: Number of hidden units, ``M``, at most ``D``; ``D`` if not given.
        num_reflections: Number of Householder reflections; ``num_hidden`` if not given.
        reverse: Take the columns of :math:`Q` from the last one backwards.
        context_dim: Number of entries of the context, which then moves all parameters, those of
            :math:`Q` as well; zero for none.
        hidden_dims: Widths of the hidden layers of the context's network.

    Raises:
        DomainError: A size is not possible.

    Reference:
        van den Berg, Hasenclever, Tomczak & Welling (2018), *Sylvester normalizing flows for
        variational inference*, theorems 1 and 2, and section 3.

    Example:
        >>> import torch
        >>> transform = Sylvester(5, num_hidden=2)
        >>> y = transform(torch.ones(10, 5))
        >>> torch.allclose(transform.inv(y), torch.ones(10, 5))
        True
    """

    inverse_kind = "numerical"
    vectors: Tensor
    columns: Tensor
    places: Tensor

    def __init__(
        self,
        input_dim: int,
        *,
        num_hidden: int | None = None,
        num_reflections: int | None = None,
        reverse: bool = False,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__(input_dim, context_dim=context_dim)
        m = self.num_hidden = self._check_hidden(input_dim if num_hidden is None else num_hidden)
        k = m if num_reflections is None else num_reflections
        k = _checks.check_count(self._name, "num_reflections", k, least=0)
        columns = torch.arange(input_dim)
        self.register_buffer("columns", (columns.flip(0) if reverse else columns)[:m])
        # A triangle is stored as its diagonal, and then the rows of what is above it.
        above = m * (m - 1) // 2
        places = _triangle_places(m)
        self.register_buffer("places", torch.cat([places, m + above + places]))
        self.outer = nn.Parameter(torch.zeros(m + above))
        self.inner = nn.Parameter(torch.cat([torch.zeros(m), torch.randn(above) / m**0.5]))
        self.bias = nn.Parameter(torch.randn(m))
        # On a line, a reflection has no direction to learn.
        if k and input_dim > 1:
            self.vectors = nn.Parameter(torch.randn(k, input_dim))
        else:
            self.register_buffer("vectors", torch.ones(k, input_dim))
        self._sizes = [t.numel() for t in (self.outer, self.inner, self.bias, self.vectors)]
        self.conditioner = (
            DenseNet(0, sum(self._sizes), context_dim=context_dim, hidden_dims=hidden_dims)
            if context_dim
            else None
        )

    def _check_hidden(self, num_hidden: int) -> int:
        num_hidden = _checks.check_count(self._name, "num_hidden", num_hidden)
        if num_hidden > self.input_dim:
            raise _checks.refusal(
                DomainError,
                self._name,
                expected=f"num_hidden of at most input_dim={self.input_dim}",
                got=f"{num_hidden}",
                advice="Chain several of these transforms for more hidden units.",
            )
        return num_hidden

    def _params(self, context: Tensor | None) -> _Params:
        outer, inner, bias, vectors = self.outer, self.inner, self.bias, self.vectors
        if self.conditioner is not None:
            moves = self.conditioner(None, context).split(self._sizes, -1)
            outer, inner, bias = outer + moves[0], inner + moves[1], bias + moves[2]
            vectors = vectors + moves[3].unflatten(-1, vectors.shape)
        m = self.num_hidden
        sizes = [m, outer.shape[-1] - m]
        raw_bend, above_outer = outer.split(sizes, -1)
        raw_slope, above_inner = inner.split(sizes, -1)
        bend = above_minus_one(raw_bend)
        slope = _LARGEST_SLOPE ** torch.tanh(raw_slope / _LOG_SLOPE_BOUND)
        flat = torch.cat([bend / slope, above_outer, slope, above_inner], -1)
        triangles = flat.index_select(-1, self.places).unflatten(-1, (2, m, m)).triu()
        outer, inner = triangles.unbind(-3)
        frame = householder_matrix(vectors).index_select(-1, self.columns)
        return _Params(frame, outer, inner, bias, bend)

    def _forward_and_push(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Push]:
        p = self._params(context)
        into, out = p.inner @ p.frame.mT, p.frame @ p.outer
        bent = torch.tanh(_affine(into, x, p.bias).double())

        def push(score: Tensor) -> Tensor:
            # By Woodbury's formula: the Jacobian is 1 + Q R sech^2(a) R' Q^T.
            gate, ladj_slope = log_bend_slope_slope(bent, p.bend)
            product = (p.inner @ p.outer).mT
            eye = torch.eye(self.num_hidden, dtype=gate.dtype, device=gate.device)
            target = _apply(out.mT, score) - _apply(product, ladj_slope.to(score.dtype))
            solved = torch.linalg.solve_triangular(
                eye + product * gate[..., None, :], widen(target[..., None]), upper=False
            )
            return score - _apply(into.mT, (ladj_slope + gate * solved[..., 0]).to(score.dtype))

        return _move(x, out, bent), log_bend_slope(bent, p.bend).sum(-1), push

    def _inverse_and_ladj(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        p = self._params(context)
        a = self._solve(_apply(p.frame.mT, y), p)
        bent = torch.tanh(a.double())
        x = _move(y, p.frame @ p.outer, -bent)
        return x, -log_bend_slope(bent, p.bend).sum(-1)

    @torch.no_grad()
    def _search(self, w: Tensor, p: _Params) -> Tensor:
        """Return the ``z`` that :meth:`_solve` looks for, without a gradient."""
        z, a = w, p.bias
        # Below a unit's own, all is known; its part of both sums goes to the units above.
        for i in reversed(range(self.num_hidden)):
            target = p.inner[..., i, i] * z[..., i] + a[..., i]
            bent = solve_bend(target, p.bend[..., i]).tanh()[..., None]
            z = z - bent * p.outer[..., i]
            a = a + z[..., i, None] * p.inner[..., i]
        return z

    def _solve(self, w: Tensor, p: _Params) -> Tensor:
        r"""Return the :math:`a = \tilde R z + b` at which :math:`z + R \tanh a = w`."""
        z = self._search(w, p)
        with torch.no_grad():
            a = _activation(z, p)
        if not torch.is_grad_enabled():
            return a
        with torch.no_grad():
            jacobian = _jacobian(a, p)
        # Two of Newton's steps, whose value is rounding: the first gets the first derivative of
        # the implicit function right, even at a constant Jacobian; the two, three.
        z = z - _newton_step(jacobian, z, w, p)
        z = z - _newton_step(_jacobian(_activation(z, p), p), z, w, p)
        return _activation(z, p)


def _triangle_places(m: int) -> Tensor:
    """Return where the entries of a flat upper triangle are; below the diagonal, anywhere."""
    places = torch.zeros(m, m, dtype=torch.long)
    above = torch.triu_indices(m, m, 1)
    places[above[0], above[1]] = m + torch.arange(above.shape[1])
    return places.diagonal_scatter(torch.arange(m)).flatten()


def _apply(matrix: Tensor, rows: Tensor) -> Tensor:
    """Return ``matrix @ row`` for each row, where both may have batch axes."""
    if matrix.dim() == 2:
        return functional.linear(rows, matrix)
    return (rows[..., None, :] @ matrix.mT)[..., 0, :]


# Of one set of parameters, a batch of points goes into one matrix product.


def _affine(matrix: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
    if matrix.dim() == 2:
        return functional.linear(rows, matrix, bias)
    return _apply(matrix, rows) + bias


def _move(points: Tensor, matrix: Tensor, bent: Tensor) -> Tensor:
    """Return the points plus ``matrix`` times ``bent``."""
    bent = bent.to(points.dtype)
    if points.dim() == matrix.dim() == 2:
        return torch.addmm(points, bent, matrix.mT)
    return points + _apply(matrix, bent)


def _activation(z: Tensor, p: _Params) -> Tensor:
    return _affine(p.inner, z, p.bias)


def _jacobian(a: Tensor, p: _Params) -> Tensor:
    """Return the derivative of ``z + R tanh(a)`` for ``z``, of shape ``(*, M, M)``."""
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    return eye + (p.outer * log_sech_square(a).exp()[..., None, :]) @ p.inner


def _newton_step(jacobian: Tensor, z: Tensor, w: Tensor, p: _Params) -> Tensor:
    residual = z + _apply(p.outer, torch.tanh(_activation(z, p))) - w
    step = torch.linalg.solve_triangular(widen(jacobian), widen(residual[..., None]), upper=True)
    return step[..., 0].to(z.dtype)
