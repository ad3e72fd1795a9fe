"""Start values: a Gaussian in the unconstrained space that a guide begins with."""

import logging
import time
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.errors import FlowError, NotConvergedError
from pyro_flows.infer.guides.gaussian import (
    ClimbingGaussian,
    Start,
    checked_elbo,
    gaussian_elbo,
)
from pyro_flows.infer.guides.log_density import LogDensity
from pyro_flows.infer.guides.mode import (
    FULL_RANK_LIMIT,
    Iterate,
    inverse_factor,
    scales_of,
    search,
)

logger = logging.getLogger("pyro_flows")

_MAX_CANDIDATES = 8
_MODE = "a Gaussian at the mode"
_PRIOR_SCALE = 0.1
# Modes are told apart from this many standard deviations on, and matter down to this many nats.
_APART, _RIVAL = 3.0, 5.0
# How many Gaussians climb how many steps, before the better ones go on.
_CLIMBERS, _FIRST_STEPS = 6, 10
_ROUNDS = ((3, 20), (1, 70))
# Seconds for the first steps, from which on there are no more; nats that two starts may differ by.
_DEAR, _LITTLE = 10.0, 0.1

StartFn = Callable[[LogDensity, list[Tensor]], Start]


def prior_start(density: LogDensity, inits: list[Tensor]) -> Start:
    """Return the best of some points, each with a scale of 0.1.

    Args:
        density: The model's log-density.
        inits: Points, each of shape ``(D,)``.
    """
    return best_start(density, _around(inits, _PRIOR_SCALE))[0]


def laplace_start(density: LogDensity, inits: list[Tensor]) -> Start:
    """Return the best Gaussian along searches for a mode that begin at ``inits``.

    Some iterates of each search, the last among them, become Gaussians with the inverse Hessian
    for their covariance. Where the density has no mode, as with centered hierarchies, an earlier
    iterate wins.

    Args:
        density: The model's log-density.
        inits: Points, each of shape ``(D,)``.

    Raises:
        NotConvergedError: No search met a finite Hessian.
    """
    return best_start(density, _laplace_starts(*density.precise(inits[0]), inits))[0]


def auto_start(density: LogDensity, inits: list[Tensor]) -> Start:
    """Return the Gaussian of the highest ELBO that natural gradients find, from several starts.

    They begin at Laplace starts, and at wide and narrow Gaussians around ``inits``; the best few
    go on. Where the density cannot be evaluated for many draws at once, or no Gaussian has a
    finite ELBO, the best start before all climbing is returned.

    Args:
        density: The model's log-density.
        inits: Points, each of shape ``(D,)``.
    """
    if density.hides_latents(inits[0]):
        logger.info("start: no search for a mode, since the guide does not see all latents")
        return prior_start(density, inits[:1])
    priors = _around(inits, _PRIOR_SCALE)
    precise, dtype = density.precise(inits[0])
    try:
        starts = [*_laplace_starts(precise, dtype, inits), *priors]
    except NotConvergedError as error:
        logger.info("start: no search for a mode, since %s", error)
        starts = priors
    best, elbos = best_start(density, starts)
    _report_modes(starts, elbos)
    try:
        ranked = [starts[k] for k in np.argsort(elbos)[::-1]]
        different = [start.to(dtype) for start in _different(ranked)]
        climbed = _climbed(precise, different, [z.to(dtype) for z in inits])
        climbed = climbed and climbed.to(inits[0])
        # In the guide's dtype: float32 may round what float64 climbed through.
        if climbed and checked_elbo(density, climbed) > checked_elbo(density, best) - _LITTLE:
            return climbed
    except FlowError:
        raise
    except (RuntimeError, ValueError) as error:
        logger.info("start: no Gaussian climbs, since %s", error)
    if not best.whitened:
        logger.warning("start: fell back to %s, whose ELBO is %.4g", best.origin, max(elbos))
    return best


def _climbed(density: LogDensity, ranked: list[Start], inits: list[Tensor]) -> Start | None:
    """Return the best Gaussian on the way up from some starts; none if no ELBO is finite.

    Args:
        density: The model's log-density.
        ranked: Starts, the best one first.
        inits: Points, each of shape ``(D,)``.
    """
    if not density.vmaps(torch.stack(inits)):
        return None
    generator = torch.Generator().manual_seed(0)

    def climber(start: Start) -> ClimbingGaussian:
        if start.scale.dim() == 1 and len(start.loc) <= FULL_RANK_LIMIT:
            start = start._replace(scale=start.scale.diag_embed())
        climbing = ClimbingGaussian(density, start, generator)
        climbing.climb(_FIRST_STEPS)
        return climbing

    began = time.monotonic()
    climbers = [climber(ranked[0])]
    is_dear = time.monotonic() - began > _DEAR
    if is_dear:
        logger.info("start: a single Gaussian climbs a few steps, since each takes long")
    elif not _is_mode(ranked[0]) or not climbers[0].is_steady:
        climbers += [climber(start) for start in ranked[1:_CLIMBERS]]
        climbers += [climber(start) for start in _around(inits[:2], 1.0, _PRIOR_SCALE)]
    for count, steps in () if is_dear else _ROUNDS:
        climbers = sorted(climbers, key=lambda each: each.elbo, reverse=True)[:count]
        for climbing in climbers:
            climbing.climb(steps)
    return climbers[0].result()


def _report_modes(starts: list[Start], elbos: list[float]) -> None:
    """Warn where searches found modes apart from one another whose ELBO is nearly the best."""
    least = max(elbos) - _RIVAL
    ranked = [k for k in np.argsort(elbos)[::-1] if elbos[k] > least and _is_mode(starts[k])]
    number = len(_different([starts[k] for k in ranked]))
    if number > 1:
        logger.warning(
            "start: found %d modes, of ELBOs from %.4g to %.4g; the guide begins with one, and "
            "may miss the others",
            number,
            elbos[ranked[-1]],
            elbos[ranked[0]],
        )


def _is_mode(start: Start) -> bool:
    return start.origin == _MODE


def _different(ranked: list[Start]) -> list[Start]:
    """Leave out starts at a mode which one before them is at, too."""
    kept: list[Start] = []
    for start in ranked:
        modes = [other for other in kept if _is_mode(other)]
        if not _is_mode(start) or all(_are_apart(start, other) for other in modes):
            kept.append(start)
    return kept


def _are_apart(one: Start, other: Start) -> bool:
    between = (one.loc - other.loc)[:, None]
    distances = [
        torch.linalg.solve_triangular(start.scale, between, upper=False).norm()
        if start.scale.dim() == 2
        else (between[:, 0] / start.scale).norm()
        for start in (one, other)
    ]
    return bool(min(distances) > _APART)


def _around(points: list[Tensor], *widths: float) -> list[Start]:
    origin = "a point where searches begin"
    return [
        Start(z, torch.full_like(z, width), origin, whitened=False)
        for z in points
        for width in widths
    ]


STARTS: dict[str, StartFn] = {"auto": auto_start, "laplace": laplace_start, "prior": prior_start}


def best_start(density: LogDensity, starts: list[Start]) -> tuple[Start, list[float]]:
    """Return the start of the highest ELBO, and the ELBO of each."""
    elbos = [gaussian_elbo(density, start) for start in starts]
    return starts[int(np.argmax(elbos))], elbos


def _laplace_starts(density: LogDensity, dtype: torch.dtype, inits: list[Tensor]) -> list[Start]:
    starts: list[Start] = []
    for z in inits:
        try:
            path = search(density, z.to(dtype))
            starts += [start.to(z) for start in _gaussians(density, path)]
        except FlowError:
            raise
        except (RuntimeError, ValueError) as error:
            # A model that raises where a step went far, as a Cholesky factor does.
            logger.info("start: a search for a mode ended, since %s", error)
    if not starts:
        raise _checks.refusal(
            NotConvergedError,
            "laplace_start",
            expected="a finite Hessian somewhere on the way to a mode",
            got=f"none from {len(inits)} points",
            advice='Pass start="prior", or an init_loc_fn nearer to the mode.',
        )
    return starts


def _gaussians(density: LogDensity, path: list[Iterate]) -> Iterable[Start]:
    # Without a mode, what is good comes early.
    steps = np.geomspace(1, len(path), min(len(path), _MAX_CANDIDATES)).round().astype(int) - 1
    for step in np.unique(steps):
        z, precision, is_mode = path[step]
        here = _MODE if is_mode else "a Gaussian at a step of the search for a mode"
        if precision is None:
            diagonal = -density.hessian_diagonal(z)
            scale = scales_of(diagonal)
        else:
            scale = inverse_factor(precision)
        if bool(scale.isfinite().all()):
            yield Start(z, scale, here)
