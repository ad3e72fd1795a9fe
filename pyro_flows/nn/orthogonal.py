"""Orthogonal matrices with free parameters: products of Householder reflections."""

import torch
from torch import Tensor

from pyro_flows.numerics import widen


def householder_matrix(vectors: Tensor) -> Tensor:
    r"""Return the product of the reflections that some vectors define, an orthogonal matrix.

    .. math:: Q = H_1 H_2 \cdots H_K, \qquad H_k = I - 2 w_k w_k^\top, \quad w_k = v_k / \|v_k\|

    Up to :math:`D` of them are multiplied in their compact form, by one triangular system,

    .. math:: Q = I - V^\top S^{-1} V, \qquad
        S = \tfrac12 \mathrm{diag}(V V^\top) + \mathrm{striu}(V V^\top)

    with the :math:`v_k` in the rows of :math:`V`, in float64. Its determinant is
    :math:`(-1)^K`. A vector too short to have a direction counts as the first unit vector, and
    gets no gradient.

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
    # the plane, by vectors of nearly one direction, were orthogonal to 3e-11, now to 8e-15.
    count, input_dim = vectors.shape[-2:]
    rows = _directed(vectors)
    if count <= input_dim:
        return _compact_product(rows).to(vectors.dtype)
    first, *later = rows.split(input_dim, -2)
    product = _compact_product(first)
    for block in later:
        product = product @ _compact_product(block)
    return product.to(vectors.dtype)


def _compact_product(v: Tensor) -> Tensor:
    # In float64, no square of a float32 number overflows or vanishes; so the rows may be of any
    # length, to which a triangular system is indifferent. It is read on and above the diagonal.
    count, input_dim = v.shape[-2:]
    halving = torch.ones(count, count, dtype=v.dtype, device=v.device).fill_diagonal_(0.5)
    solved = torch.linalg.solve_triangular(v @ v.mT * halving, v, upper=True)
    eye = torch.eye(input_dim, dtype=v.dtype, device=v.device)
    if v.dim() == 2:
        return torch.addmm(eye, v.mT, solved, alpha=-1)
    return eye - v.mT @ solved


def _directed(vectors: Tensor) -> Tensor:
    """Return the vectors in float64, with the first unit vector for those that are too short."""
    peak = torch.linalg.vector_norm(vectors.detach(), torch.inf, dim=-1, keepdim=True)
    # Shorter vectors would have infinite gradients. Not `peak >= floor`, which would hide a NaN.
    short = peak < torch.finfo(widen(peak).dtype).tiny ** 0.5
    unit = torch.eye(1, vectors.shape[-1], dtype=torch.float64, device=vectors.device)
    return torch.where(short, unit, vectors.double())
