"""One site's values, density and mask, as arrays."""

import numpy as np
import torch
from pyro.distributions import MaskedDistribution
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.diagnostics.layout import SiteLayout
from pyro_flows.errors import NonFiniteError, ShapeError
from pyro_flows.infer.tracer import Site

# Files hold no other floating-point numbers than those of 32 and 64 bits.
_WIDER = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


def values(value: Tensor, layout: SiteLayout, num: int) -> np.ndarray:
    """Return the values of a site in ``num`` draws, of shape ``(num, *kept axes)``.

    Args:
        value: The values, with the draws on the first axis or the same for all.
        layout: The layout of the site.
        num: Number of draws.

    Raises:
        ShapeError: The values do not have the shape of the layout.
    """
    return _keep(_rows(value, layout.shape, layout.name, num), layout)


def log_likelihood(
    site: Site, layout: SiteLayout, num: int, marginal: Tensor | None = None
) -> np.ndarray:
    """Return the log-density of each observation, not scaled by plates; NaN where it is masked.

    Args:
        site: The observed site, scored.
        layout: Its layout.
        num: Number of draws.
        marginal: The log-density with discrete latents summed over, in the place of the site's.

    Raises:
        NonFiniteError: An entry that is not masked is NaN.
        ShapeError: The density does not have the shape of the layout.
    """
    density = site["unscaled_log_prob"] if marginal is None else marginal
    density, mask = density.detach().cpu(), _mask(site)
    shown = density if mask is None else torch.where(mask, density, 0.0)
    check_no_nan("log-likelihoods", shown, layout.name)
    if mask is not None:
        density = torch.where(mask, density, torch.nan)
    return _keep(_rows(density, layout.batch_shape, layout.name, num), layout)


def log_prior(site: Site, layout: SiteLayout, num: int) -> np.ndarray:
    """Return the log-density of each entry of a latent, not scaled by plates; 0 where masked.

    Args:
        site: The latent site, scored.
        layout: Its layout.
        num: Number of draws.

    Raises:
        ShapeError: The density does not have the shape of the layout.
    """
    density, mask = torch.as_tensor(site["unscaled_log_prob"]).detach().cpu(), _mask(site)
    if mask is not None:
        density = torch.where(mask, density, 0.0)
    return _keep(_rows(density, layout.batch_shape, layout.name, num), layout)


def observed(site: Site, layout: SiteLayout) -> np.ndarray:
    """Return a copy of the data of a site, on the kept axes; NaN where they are masked.

    Args:
        site: The observed site.
        layout: Its layout.
    """
    array = values(torch.as_tensor(site["value"]), layout, 1)[0].copy()
    mask = _mask(site)
    if mask is None or bool(mask.all()):
        return array
    events = (1,) * (len(layout.shape) - layout.batch_dim)
    return np.where(values(mask.reshape(mask.shape + events), layout, 1)[0], array, np.nan)


def check_no_nan(what: str, value: Tensor, name: str) -> None:
    """Refuse a NaN.

    Args:
        what: What the values are.
        value: The values.
        name: The name of the site.

    Raises:
        NonFiniteError: There is one.
    """
    count = int(value.isnan().sum())
    if count:
        raise _checks.refusal(
            NonFiniteError,
            "to_arviz",
            expected=f"{what} of the site {name!r} without NaN",
            got=f"{count} NaN among {value.numel()} values",
            advice="Look at what the site's parameters become there; predictive=False and "
            "log_likelihood=False leave those groups out.",
        )


def to_numpy(value: Tensor) -> np.ndarray:
    """Return a tensor as an array of a dtype that files can hold.

    Args:
        value: The tensor.
    """
    value = value.detach().cpu()
    return np.asarray(value.to(_WIDER.get(value.dtype, value.dtype)))


def _rows(value: Tensor, shape: torch.Size, name: str, num: int) -> Tensor:
    """Take out the axes of size 1 between the draws and the first plate."""
    extra = value.dim() - len(shape)
    rows = value.flatten(0, extra - 1) if extra > 1 else value
    try:
        return rows.expand(num, *shape)
    except RuntimeError:
        raise _checks.refusal(
            ShapeError,
            "to_arviz",
            expected=f"values of shape {tuple(shape)} at the site {name!r} in each of {num} draws",
            got=f"{tuple(value.shape)}",
            advice="Let the shapes of a model not depend on its latents.",
        ) from None


def _keep(rows: Tensor, layout: SiteLayout) -> np.ndarray:
    kept = tuple(
        slice(None) if axis in layout.axes else 0
        for axis in range(min(rows.dim() - 1, layout.batch_dim))
    )
    return to_numpy(rows[(slice(None), *kept)])


def _mask(site: Site) -> Tensor | None:
    """Return where a site counts: what the handlers around it and its own distribution say."""
    found = [mask for mask in (site["mask"], _mask_of(site["fn"])) if mask is not None]
    masks = [torch.as_tensor(mask).bool().cpu() for mask in found]
    return torch.stack(torch.broadcast_tensors(*masks)).all(0) if masks else None


def _mask_of(fn: object) -> Tensor | bool | None:
    if isinstance(fn, torch.distributions.Independent) and fn.reinterpreted_batch_ndims:
        mask = _mask_of(fn.base_dist)
        if mask is None or isinstance(mask, bool):
            return mask
        # An event is hidden where all of it is.
        return mask.flatten(-fn.reinterpreted_batch_ndims).any(-1)
    if isinstance(fn, MaskedDistribution):
        inner = _mask_of(fn.base_dist)
        return fn._mask if inner is None else fn._mask & inner
    return None
