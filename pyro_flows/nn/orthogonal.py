"""Orthogonal matrices with free parameters: products of Householder reflections."""

import torch
from torch import Tensor

from pyro_flows.numerics import widen


def householder_matrix(vectors: Tensor) -> Tensor:
    r"""Return the product of the reflections that some vectors define, an orthogonal matrix.

    .. math:: Q = H_1 H_2 \cdots H_K, \qquad H_k = I - 2 w_k w_k^\top, \quad w_k = v_k / \|v_k\|

    Up to :math:`D` of them are multiplied in their compact form, by one triangular system,

    .. math:: Q = I - W^\top S^{-1} W, \qquad
        S = \tfrac12 I + \mathrm{striu}(W W^\top)

    with the :math:`w_k` in the rows of :math:`W`. Its determinant is :math:`(-1)^K`. A vector too
    short to have a direction counts as the first unit vector, and gets no gradient.

    Args:
        vectors: The :math:`v_k`, of shape ``(*, K, D)``.

    Returns:
        The matrices, of shape ``(*, D, D)``.

    Reference:
        Joffrain, Low, Quintana-Orti, van de Geijn & Van Zee (2006), *Accumulating Householder
        transformations, revisited* (there, the UT transform).

    Example:
        >>> import torch
        >>> householder_matrix(torch.tensor([[0.0, 2.0]]))
        tensor([[ 1.,  0.],
                [ 0., -1.]])
    """
    # Longer blocks, of vectors that depend on each other, would lose digits: 1,000 reflections of
    # the plane, by vectors of nearly one direction, were orthogonal to 7e-3 in float32.
    first, *later = _unit_rows(widen(vectors)).split(vectors.shape[-1], -2)
    product = _compact_product(first)
    for block in later:
        product = product @ _compact_product(block)
    return product.to(vectors.dtype)


def _compact_product(w: Tensor) -> Tensor:
    count, input_dim = w.shape[-2:]
    half = 0.5 * torch.eye(count, dtype=w.dtype, device=w.device)
    system = (w @ w.mT).triu(1) + half
    eye = torch.eye(input_dim, dtype=w.dtype, device=w.device)
    return eye - w.mT @ torch.linalg.solve_triangular(system, w, upper=True)


def _unit_rows(vectors: Tensor) -> Tensor:
    """Return each row over its length, whose square neither overflows nor vanishes."""
    peak = vectors.detach().abs().amax(-1, keepdim=True)
    # Shorter vectors would have infinite gradients. Not `peak >= floor`, which would hide a NaN.
    short = peak < torch.finfo(vectors.dtype).tiny ** 0.5
    unit = torch.eye(1, vectors.shape[-1], dtype=vectors.dtype, device=vectors.device)
    scaled = torch.where(short, unit, vectors) / torch.where(short, 1.0, peak)
    return scaled / scaled.square().sum(-1, keepdim=True).sqrt()
