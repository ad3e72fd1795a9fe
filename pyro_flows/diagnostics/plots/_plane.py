"""What pictures of flows in two dimensions share."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.diagnostics.plots._points import limits, to_array
from pyro_flows.distributions import Flow
from pyro_flows.distributions.normal import StandardNormal
from pyro_flows.errors import DomainError, NonFiniteError, ShapeError
from pyro_flows.infer.random import seeded
from pyro_flows.transforms.base import any_float

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Bounds = tuple[tuple[float, float], tuple[float, float]]

PLANE_DIM = 2
# Those of the standard normal that hold 99 % of its draws.
_NORMAL_BOUNDS = ((-3.0, 3.0), (-3.0, 3.0))
_DRAWS = 4000
# As many points as are pushed or scored at once.
_CHUNK = 10_000


def check_flow(who: str, flow: Any, context: Any = None, *, rows: int | None = None) -> Flow:
    """Return a flow in two dimensions, given its context.

    Args:
        who: Named in the message.
        flow: The flow.
        context: Its context, if it takes one and none was fixed.
        rows: Number of contexts that may be there, one for each point.

    Raises:
        DomainError: It is no flow.
        ShapeError: It has another number of dimensions, or a context is missing or not wanted, or
            there are several.
    """
    if not isinstance(flow, Flow) or flow.input_dim != PLANE_DIM:
        raise _checks.refusal(
            ShapeError if isinstance(flow, Flow) else DomainError,
            who,
            expected="a Flow in two dimensions",
            got=f"{flow.input_dim}" if isinstance(flow, Flow) else f"{type(flow).__name__}",
            advice="Build one with pyro_flows.flows.realnvp(2), for example.",
        )
    if context is not None:
        given = as_tensor(flow, to_array(who, "context", context))
        _checks.check_context(who, given, flow.context_dim)
        flow = flow.condition(given)
    elif flow._context is None:
        _checks.check_context(who, None, flow.context_dim)
    if flow.batch_shape not in {torch.Size(), torch.Size([rows or 0])}:
        raise _checks.refusal(
            ShapeError,
            who,
            expected="one context" + (f", or {rows}, one for each point" if rows else ""),
            got=f"contexts of batch shape {tuple(flow.batch_shape)}",
            advice="Draw a picture for each.",
        )
    return flow


def as_tensor(flow: Flow, array: np.ndarray) -> Tensor:
    """Return numbers in the dtype and on the device of a flow.

    Args:
        flow: The flow.
        array: The numbers.
    """
    like = any_float(flow)
    like = torch.empty(()) if like is None else like
    return torch.as_tensor(array, dtype=like.dtype, device=like.device)


@torch.no_grad()
def log_density(who: str, flow: Flow, points: np.ndarray) -> np.ndarray:
    """Return the log-density of points, of shape ``(N, 2)``; minus infinity off the support.

    Args:
        who: Named in the message.
        flow: The flow.
        points: The points.

    Raises:
        NonFiniteError: It is NaN or plus infinity somewhere.
    """
    chunks = as_tensor(flow, points).split(_CHUNK)
    inside = np.concatenate([_numpy(flow.support.check(chunk)) for chunk in chunks]) > 0
    values = np.concatenate([_numpy(flow.log_prob(chunk)) for chunk in chunks])
    values[~inside] = -np.inf
    bad = int((np.isnan(values) | (values == np.inf)).sum())
    if bad:
        raise _checks.refusal(
            NonFiniteError,
            who,
            expected="log-densities below infinity on the support of the flow",
            got=f"{bad} of {values.size} that are NaN or infinite",
            advice="Look at the parameters of the flow, or pass narrower bounds.",
        )
    return values


@torch.no_grad()
def push(who: str, flow: Flow, points: np.ndarray, *, inverse: bool = False) -> np.ndarray:
    """Return what points of the base, of shape ``(N, 2)``, become under the transform.

    Args:
        who: Named in the message.
        flow: The flow.
        points: The points.
        inverse: Whether to return what points of the flow were in the base instead.

    Raises:
        NonFiniteError: A point leaves the finite numbers.
    """
    transform, context = flow.transform, flow._context
    move = transform.inverse_and_ladj if inverse else transform.forward_and_ladj
    moved = _numpy(move(as_tensor(flow, points), context)[0])
    bad = int((~np.isfinite(moved)).any(-1).sum())
    if bad:
        which = "the inverse of the transform" if inverse else "the transform"
        raise _checks.refusal(
            NonFiniteError,
            who,
            expected=f"points that {which} keeps finite",
            got=f"{bad} of {len(moved)} that it makes NaN or infinite",
            advice="Look at the flow's parameters, and whether the points are on its support.",
        )
    return moved


@torch.no_grad()
def base_draws(who: str, flow: Flow, count: int = _DRAWS) -> np.ndarray:
    """Return draws of the base, the same in every call; the random state is left alone.

    Args:
        who: Named in the message.
        flow: The flow.
        count: Number of draws.
    """
    with seeded(who, 0):
        return _numpy(flow.base_dist.sample(torch.Size((count,))))


def base_bounds(who: str, flow: Flow) -> Bounds:
    """Return where most of the base is.

    Args:
        who: Named in the message.
        flow: The flow.
    """
    if isinstance(flow.base_dist, StandardNormal):
        return _NORMAL_BOUNDS
    return around(base_draws(who, flow))


def around(*points: np.ndarray) -> Bounds:
    """Return where most points are.

    Args:
        *points: Of shape ``(N, 2)``.
    """
    return limits(*(each[:, 0] for each in points)), limits(*(each[:, 1] for each in points))


def check_bounds(who: str, bounds: Any) -> Bounds:
    """Return ``bounds`` as two pairs of finite numbers, the lower one first.

    Args:
        who: Named in the message.
        bounds: ``((low, high), (low, high))``, of the first and the second coordinate.

    Raises:
        DomainError: They are none.
        ShapeError: They are not two pairs.
    """
    array = to_array(who, "bounds", bounds)
    if array.shape != (PLANE_DIM, 2):
        raise _checks.refusal(
            ShapeError,
            who,
            expected="bounds as ((low, high), (low, high)), a pair for each coordinate",
            got=f"shape {array.shape}",
        )
    if not (array[:, 0] < array[:, 1]).all():
        raise _checks.refusal(
            DomainError, who, expected="bounds with low < high", got=f"{array.tolist()}"
        )
    (left, right), (bottom, top) = array.tolist()
    return (left, right), (bottom, top)


def name_plane(ax: "Axes", bounds: Bounds | None = None, *, base: bool = False) -> None:
    """Label the axes of a plane, with a unit of one length on both.

    Args:
        ax: The axes.
        bounds: Their limits; those of what is drawn if not given.
        base: Whether it is the plane of the base.
    """
    suffix = " of the base" if base else ""
    ax.set(xlabel=f"first coordinate{suffix}", ylabel=f"second coordinate{suffix}")
    ax.set_aspect("equal")
    if bounds is not None:
        ax.set(xlim=bounds[0], ylim=bounds[1])


def _numpy(tensor: Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().cpu().double())
