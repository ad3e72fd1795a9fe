"""Start values: a Gaussian in the unconstrained space that a guide begins with."""

import logging
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.errors import NotConvergedError
from pyro_flows.infer.guides.log_density import LogDensity
from pyro_flows.numerics import LOG_SQRT_TAU

logger = logging.getLogger("pyro_flows")

# Above this many latents the Gaussian is diagonal.
FULL_RANK_LIMIT = 500
_MAX_ITERATIONS = 100
_MAX_HALVINGS, _MAX_DOUBLINGS = 20, 3
# Eigenvalues of a matrix with a unit diagonal that rounding could have made, in units of it.
_SINGULAR = 100
_LEAST_GAIN = 1e-4
_MAX_CANDIDATES = 8
_ELBO_DRAWS = 32
_PRIOR_SCALE = 0.1


class Start(NamedTuple):
    """A Gaussian to start from.

    Attributes:
        loc: Mean, of shape ``(D,)``.
        scale: Cholesky factor of the covariance, of shape ``(D, D)``, or standard deviations,
            ``(D,)``.
        origin: Where it came from, in words.
        whitened: Whether training moves relative to ``scale``, which then has to be of the
            posterior's size; else it moves in absolute units.
    """

    loc: Tensor
    scale: Tensor
    origin: str
    whitened: bool = True


StartFn = Callable[[LogDensity, list[Tensor]], Start]


def prior_start(density: LogDensity, inits: list[Tensor]) -> Start:
    """Return the best of some points of ``init_loc_fn``, each with a scale of 0.1.

    Args:
        density: The model's log-density.
        inits: Points, each of shape ``(D,)``.
    """
    return best_start(density, _prior_starts(inits))[0]


def laplace_start(density: LogDensity, inits: list[Tensor]) -> Start:
    """Return the best Gaussian along searches for a mode that begin at ``inits``.

    Each search is a saddle-free Newton method (L-BFGS in high dimensions); some of its iterates,
    the last among them, become Gaussians with the inverse Hessian for their covariance. Where the
    density has no mode, as with centered hierarchies, an earlier iterate wins.

    Args:
        density: The model's log-density.
        inits: Points, each of shape ``(D,)``.

    Raises:
        NotConvergedError: No search met a finite Hessian.
    """
    return best_start(density, _laplace_starts(density, inits))[0]


def auto_start(density: LogDensity, inits: list[Tensor]) -> Start:
    """Return the Laplace start where it improves the ELBO, else the best of ``inits``; say which.

    Args:
        density: The model's log-density.
        inits: Points, each of shape ``(D,)``.
    """
    if density.hides_latents(inits[0]):
        logger.info("start: no search for a mode, since the guide does not see all latents")
        return prior_start(density, inits)
    priors = _prior_starts(inits)
    try:
        laplaces = _laplace_starts(density, inits)
    except (NotConvergedError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
        logger.warning("start: fell back to %s, since %s", priors[0].origin, error)
        return best_start(density, priors)[0]
    best, elbos = best_start(density, [*laplaces, *priors])
    if not best.whitened:
        logger.warning(
            "start: fell back to %s, whose ELBO of %.4g is above the Laplace start's %.4g",
            best.origin,
            max(elbos),
            max(elbos[: len(laplaces)]),
        )
    return best


STARTS: dict[str, StartFn] = {"auto": auto_start, "laplace": laplace_start, "prior": prior_start}


def best_start(density: LogDensity, starts: list[Start]) -> tuple[Start, list[float]]:
    """Return the start of the highest ELBO, and the ELBO of each."""
    elbos = [gaussian_elbo(density, start) for start in starts]
    return starts[int(np.argmax(elbos))], elbos


@torch.no_grad()
def gaussian_elbo(density: LogDensity, start: Start) -> float:
    """Estimate the ELBO of a Gaussian, on fixed draws; minus infinity if it is not finite."""
    loc, scale = start.loc, start.scale
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(_ELBO_DRAWS // 2, loc.shape[0], generator=generator).to(loc)
    eps = torch.cat([half, -half])
    full = scale.dim() == 2
    draws = loc + (eps @ scale.T if full else eps * scale)
    log_p = density.at_many(draws)
    # With log q at the draws, and not its mean, the estimate has no variance where q is exact.
    log_scale = (scale.diagonal() if full else scale).log().sum()
    log_q = -0.5 * eps.square().sum(-1) - log_scale - loc.shape[0] * LOG_SQRT_TAU
    elbo = float((log_p - log_q).mean())
    return elbo if math.isfinite(elbo) else -math.inf


def _prior_starts(inits: list[Tensor]) -> list[Start]:
    scale = torch.full_like(inits[0], _PRIOR_SCALE)
    return [Start(z, scale, "a draw of init_loc_fn", whitened=False) for z in inits]


def _laplace_starts(density: LogDensity, inits: list[Tensor]) -> list[Start]:
    density, dtype = density.precise(inits[0])
    starts = [
        start._replace(loc=start.loc.to(z), scale=start.scale.to(z))
        for z in inits
        for start in _gaussians(density, _search(density, z.to(dtype)))
    ]
    if not starts:
        raise _checks.refusal(
            NotConvergedError,
            "laplace_start",
            expected="a finite Hessian somewhere on the way to a mode",
            got=f"none from {len(inits)} points",
            advice='Pass start="prior", or an init_loc_fn nearer to the mode.',
        )
    return starts


class _Iterate(NamedTuple):
    """A point of a search, and minus the Hessian there where the search needed it."""

    z: Tensor
    precision: Tensor | None


def _search(density: LogDensity, z: Tensor) -> list[_Iterate]:
    """Return iterates of a search for the mode, from ``z`` on."""
    if density.input_dim > FULL_RANK_LIMIT:
        return [_Iterate(point, None) for point in _lbfgs(density, z)]
    path = []
    for _ in range(_MAX_ITERATIONS):
        precision = -density.hessian(z)
        path.append(_Iterate(z, precision))
        step, gain = _newton_step(density, z, precision)
        arrived = _line_search(density, z, step) if gain > _LEAST_GAIN else None
        if arrived is None:
            break
        z = arrived
    return path


def _newton_step(density: LogDensity, z: Tensor, precision: Tensor) -> tuple[Tensor, float]:
    """Return a Newton step uphill, and the gain in log-density that it promises.

    Where the density is not concave the Newton step is no guide; along those eigenvectors the step
    follows the gradient, by one unit at most. Eigenvectors are those of the precision with a unit
    diagonal, so that the units of the latents, of which some may be thousands, do not matter.

    Reference:
        Dauphin et al. (2014), *Identifying and attacking the saddle point problem*.
    """
    value, grad = density.value_and_grad(z)
    if not bool(value.isfinite() & grad.isfinite().all() & precision.isfinite().all()):
        return torch.zeros_like(z), 0.0
    unit = _units(precision.diagonal())
    curvature, vectors = torch.linalg.eigh(unit[:, None] * precision * unit)
    along = vectors.T @ (unit * grad) / curvature.abs().clamp(min=_rounding(z))
    concave = curvature > 0
    step = unit * (vectors[:, concave] @ along[concave])
    uphill = unit * (vectors[:, ~concave] @ along[~concave])
    step = step + uphill / uphill.abs().max().clamp(min=1.0)
    return step, float(grad @ step)


def _units(diagonal: Tensor) -> Tensor:
    """Return the scales that the diagonal of a precision has; where negative, ten at most."""
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

    for _ in range(_MAX_ITERATIONS // 10):
        optimizer.step(closure)
        if not bool(point.isfinite().all()):
            break
        path.append(point.detach().clone())
    return path


def _gaussians(density: LogDensity, path: list[_Iterate]) -> Iterable[Start]:
    # Without a mode, what is good comes early.
    steps = np.geomspace(1, len(path), min(len(path), _MAX_CANDIDATES)).round().astype(int) - 1
    for step in np.unique(steps):
        z, precision = path[step]
        last = "the mode" if step == len(path) - 1 else "a step of the search for a mode"
        if precision is None:
            diagonal = -density.hessian_diagonal(z)
            scale = _units(diagonal)
        else:
            scale = _inverse_factor(precision)
        if bool(scale.isfinite().all()):
            yield Start(z, scale, f"a Gaussian at {last}")


def _inverse_factor(precision: Tensor) -> Tensor:
    """Return the Cholesky factor of the inverse of a symmetric matrix, made positive definite.

    Eigenvalues, of the matrix with a unit diagonal, are taken in absolute value; where it is not
    positive definite, they are kept above 1e-2 so that no direction gets more than ten units.
    """
    if not bool(precision.isfinite().all()):
        return torch.full_like(precision, math.nan)
    wide = precision.double()
    unit = _units(wide.diagonal())
    values, vectors = torch.linalg.eigh(unit[:, None] * wide * unit)
    rounding = _rounding(precision)
    values = values.abs().clamp(min=1e-2 if float(values.min()) < -rounding else rounding)
    # The factor R of (V values^-1/2)^T = Q R gives the covariance R^T R without forming it.
    _, factor = torch.linalg.qr((vectors * values.rsqrt()).T)
    return (unit[:, None] * factor.T * factor.diagonal().sign()).to(precision)
