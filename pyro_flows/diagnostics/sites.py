"""What the sites of a trace are, and whether a guide's are those of the model."""

from collections.abc import Iterable
from itertools import dropwhile

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_factor, site_is_subsample

from pyro_flows import _checks
from pyro_flows.errors import DomainError, ShapeError
from pyro_flows.infer.tracer import PARTICLES, Site, sample_sites

_CHANGED = "The model is another than the guide was fitted to, or has other arguments: pass those "
_REFIT = "of the fit, or fit a new guide."


class Fits(Messenger):
    """Refuse latents and plates of other sizes than a guide's, before they meet in the model.

    Args:
        guide_trace: The guide's trace.

    Raises:
        ShapeError: A site has another shape.
    """

    def __init__(self, guide_trace: poutine.Trace) -> None:
        super().__init__()
        self._nodes = guide_trace.nodes

    def _pyro_sample(self, msg: Site) -> None:
        ours: Site = self._nodes.get(msg["name"])
        if ours is None or ours["type"] != "sample" or is_deterministic(msg):
            return
        if site_is_subsample(msg):
            _check_plate(msg, ours)
        elif not msg["is_observed"]:
            _check_shape(msg, ours)


def _check_plate(site: Site, ours: Site) -> None:
    if site_is_subsample(ours) and site["fn"].size != ours["fn"].size:
        raise _checks.refusal(
            ShapeError,
            "to_arviz",
            expected=f"a guide for the {site['fn'].size} members of the model's plate "
            f"{site['name']!r}",
            got=f"one for {ours['fn'].size}",
            advice=_CHANGED + _REFIT,
        )


def _check_shape(site: Site, ours: Site) -> None:
    shape = tuple(site["fn"].batch_shape + site["fn"].event_shape)
    found = tuple(ours["value"].shape)
    if _essential(shape) != _essential(found):
        raise _checks.refusal(
            ShapeError,
            "to_arviz",
            expected=f"draws of the shape {shape} at the site {site['name']!r}, as the model has "
            "it",
            got=f"{found}",
            advice=_CHANGED + _REFIT,
        )


def _essential(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(dropwhile(lambda size: size == 1, shape))


def modelled(trace: poutine.Trace) -> dict[str, Site]:
    """Return the sample sites of a trace, without subsamples and factors."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not (site_is_subsample(site) or site_is_factor(site))
    }


def is_deterministic(site: Site) -> bool:
    """Whether a site is a ``pyro.deterministic``."""
    return bool(site["infer"].get("_deterministic"))


def is_data(site: Site) -> bool:
    """Whether a site holds data: observed, and no other statement in that guise."""
    return site["is_observed"] and not (is_deterministic(site) or site_is_factor(site))


def data_shape(site: Site) -> tuple[torch.Size, torch.Size]:
    """Return the batch and the event shape of the value of a site, which its plates may widen."""
    shape, event_dim = torch.as_tensor(site["value"]).shape, site["fn"].event_dim
    batch_shape = torch.broadcast_shapes(
        site["fn"].batch_shape, shape[: max(len(shape) - event_dim, 0)]
    )
    return batch_shape, site["fn"].event_shape


def nesting(*traces: poutine.Trace) -> int:
    """Return the number of axes of the plates, without that of the particles."""
    frames = (
        frame
        for trace in traces
        for site in sample_sites(trace)
        for frame in site["cond_indep_stack"]
    )
    return max((-f.dim for f in frames if f.dim is not None and f.name != PARTICLES), default=0)


def missing_latents(found: dict[str, Site], guide_trace: poutine.Trace) -> list[str]:
    """Return the latents that a guide does not draw.

    Args:
        found: The model's sites.
        guide_trace: The guide's trace.
    """
    latents = [name for name, site in found.items() if not site["is_observed"]]
    return [name for name in latents if name not in guide_trace]


def check_latents(
    found: dict[str, Site], guide_trace: poutine.Trace, missing: Iterable[str]
) -> None:
    """Refuse a guide whose latents are not those of the model.

    Args:
        found: The model's sites.
        guide_trace: The guide's trace.
        missing: The latents that the guide lacks, those apart that are summed over.

    Raises:
        DomainError: A latent is in one of them only.
    """
    if missing:
        raise _checks.refusal(
            DomainError,
            "to_arviz",
            expected="a guide, or draws, of every latent of the model",
            got=f"none at {_listed(sorted(missing))}",
            advice="Sample them in the guide as well; mark a discrete latent that was enumerated "
            'in the fit with infer={"enumerate": "parallel"}. If the model has changed since the '
            "fit, fit a new guide.",
        )
    drawn = [site for site in sample_sites(guide_trace) if not site["is_observed"]]
    check_known(found, [s["name"] for s in drawn if not s["infer"].get("is_auxiliary")])


def check_known(found: dict[str, Site], names: Iterable[str]) -> None:
    """Refuse sites that are no latents of the model.

    Args:
        found: The model's sites.
        names: The sites.

    Raises:
        DomainError: One of them is unknown to the model, or observed.
    """
    unknown = [name for name in names if name not in found or found[name]["is_observed"]]
    if unknown:
        raise _checks.refusal(
            DomainError,
            "to_arviz",
            expected="a guide, or draws, of the model's latents alone",
            got=f"{_listed(unknown)} as well, which the model observes or does not have",
            advice=_CHANGED + "of the fit, or mark the guide's own sites with "
            'infer={"is_auxiliary": True}.',
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
