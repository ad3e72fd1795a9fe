"""The search for a mode of a log-density: a path of points with the curvature there."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_flows.infer.guides.log_density import LogDensity

# Above this many latents curvatures are diagonal.
FULL_RANK_LIMIT = 500
_MAX_ITERATIONS, _LBFGS_ROUNDS = 40, 5
_MAX_HALVINGS, _MAX_DOUBLINGS = 20, 3
# Eigenvalues of a matrix with a unit diagonal that rounding could have made, in units of it.
_SINGULAR = 100
_LEAST_GAIN = 1e-4


class Iterate(NamedTuple):
    """A point of a search, and minus the Hessian there where the search needed it.

    Attributes:
        z: The point.
        precision: Minus the Hessian, or none.
        is_mode: Whether a step from here promises next to nothing, and all directions bend down.
    """

    z: Tensor
    precision: Tensor | None
    is_mode: bool = False


def search(density: LogDensity, z: Tensor) -> list[Iterate]:
    """Return iterates of a search for the mode, from ``z`` on.

    A saddle-free Newton method; L-BFGS in high dimensions.

    Args:
        density: The log-density.
        z: Where to begin, of shape ``(D,)``.
    """
    if density.input_dim > FULL_RANK_LIMIT:
        return [Iterate(point, None) for point in _lbfgs(density, z)]
    path = []
    for _ in range(_MAX_ITERATIONS):
        precision = -density.hessian(z)
        step, gain, is_concave = _newton_step(density, z, precision)
        path.append(Iterate(z, precision, is_concave and gain <= _LEAST_GAIN))
        arrived = _line_search(density, z, step) if gain > _LEAST_GAIN else None
        if arrived is None:
            break
        z = arrived
    return path


def _newton_step(density: LogDensity, z: Tensor, precision: Tensor) -> tuple[Tensor, float, bool]:
    """Return a Newton step uphill, the gain that it promises, and whether the density is concave.

    Eigenvectors are those of the precision with a unit diagonal, so that the units of the latents,
    of which some may be thousands, do not matter. Along those where the density is not concave the
    Newton step is no guide: the step follows the gradient, and moves no latent by more than one.

    Reference:
        Dauphin et al. (2014), *Identifying and attacking the saddle point problem*.
    """
    value, grad = density.value_and_grad(z)
    if not bool(value.isfinite() & grad.isfinite().all() & precision.isfinite().all()):
        return torch.zeros_like(z), 0.0, False
    unit = scales_of(precision.diagonal())
    curvature, vectors = torch.linalg.eigh(unit[:, None] * precision * unit)
    along = vectors.T @ (unit * grad) / curvature.abs().clamp(min=_rounding(z))
    concave = curvature > 0
    step = unit * (vectors[:, concave] @ along[concave])
    uphill = unit * (vectors[:, ~concave] @ along[~concave])
    step = step + uphill / uphill.abs().max().clamp(min=1.0)
    return step, float(grad @ step), bool(concave.all())


def scales_of(diagonal: Tensor) -> Tensor:
    """Return the scales that the diagonal of a precision has; where negative, ten at most.

    Args:
        diagonal: Of shape ``(D,)``.
    """
    least = float(diagonal.abs().max()) * _rounding(diagonal) ** 2
    saddle = diagonal.abs().clamp(min=1e-2)
    return torch.where(diagonal > 0, diagonal.clamp(min=least), saddle).rsqrt()


def _rounding(of: Tensor) -> float:
    return _SINGULAR * torch.finfo(of.dtype).eps


def _line_search(density: LogDensity, z: Tensor, step: Tensor) -> Tensor | None:
    """Halve a step until the log-density rises, or double it while it does.

    Returns:
        Where the step ends; none if the log-density never rises.
    """
    with torch.no_grad():
        before = density(z)
        for halving in range(_MAX_HALVINGS):
            candidate = z + step * 0.5**halving
            value = density(candidate)
            if bool(value > before):
                break
        else:
            return None
        for doubling in range(_MAX_DOUBLINGS if halving == 0 else 0):
            further = z + step * 2.0 ** (doubling + 1)
            before, value = value, density(further)
            if not bool(value > before):
                break
            candidate = further
    return candidate


def _lbfgs(density: LogDensity, z: Tensor) -> list[Tensor]:
    path, point = [z], z.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([point], line_search_fn="strong_wolfe", max_iter=10)

    def closure() -> Tensor:
        value, point.grad = density.value_and_grad(point)
        point.grad.neg_()
        return -value

    for _ in range(_LBFGS_ROUNDS):
        optimizer.step(closure)
        if not bool(point.isfinite().all()):
            break
        path.append(point.detach().clone())
    return path


def inverse_factor(precision: Tensor) -> Tensor:
    """Return the Cholesky factor of the inverse of a symmetric matrix, made positive definite.

    Eigenvalues, of the matrix with a unit diagonal, are taken in absolute value; where it is not
    positive definite, they are kept above 1e-2 so that no direction gets more than ten units.
    """
    if not bool(precision.isfinite().all()):
        return torch.full_like(precision, math.nan)
    wide = precision.double()
    unit = scales_of(wide.diagonal())
    values, vectors = torch.linalg.eigh(unit[:, None] * wide * unit)
    rounding = _rounding(precision)
    values = values.abs().clamp(min=1e-2 if float(values.min()) < -rounding else rounding)
    # The factor R of (V values^-1/2)^T = Q R gives the covariance R^T R without forming it.
    _, factor = torch.linalg.qr((vectors * values.rsqrt()).T)
    return (unit[:, None] * factor.T * factor.diagonal().sign()).to(precision)
