"""Whether a guide and a model can run for many particles at once, found by trying.

A model that was written for one draw may fail under a particle plate, or broadcast wrongly without
a word; ``torch.func.vmap`` may run it then. Either way every site's log-density is compared, entry
by entry, with that of single particles.
"""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Transform, biject_to

from pyro_flows.errors import FlowError
from pyro_flows.infer.random import seeded
from pyro_flows.infer.tracer import Draws, Fn, Site, Tracer, check_latents, sample_sites
from pyro_flows.infer.vmap import densities_agree, missing_batching_rules
from pyro_flows.transforms.continuous import exact_traces

How = Literal["plate", "vmap", "loop"]
# The log-densities of one particle, by site.
LogProbs = dict[str, Tensor]

_PLATE, _VMAP = "under a particle plate", "under torch.func.vmap"
_NUM = 3
# Draws of a narrow guide are alike, and a model that mixes them would hardly show. The lesser ones
# are for a model that is not finite that far out.
_SPREADS = (10.0, 3.0, 1.0)
# What a gradient can lack altogether is looked for, not its rounding.
_GRADIENT_TOLERANCE = 0.05
# Units in the last place by which a computed value may differ.
_ROUNDING = 100
_LONGEST_ERROR = 160


class Broadcast(NamedTuple):
    """How a guide and a model run for many particles.

    Attributes:
        guide: Whether the guide broadcasts over a particle plate.
        model: Whether the model does.
        vmap: Whether ``torch.func.vmap`` runs what does not; not tried where all does.
        reason: Why not a plate, nor vmap, in words; empty if a plate does.
    """

    guide: bool
    model: bool
    vmap: bool
    reason: str

    @property
    def how(self) -> How:
        """The best way that is right: on a plate, else by vmap, else in a loop."""
        if self.guide and self.model:
            return "plate"
        return "vmap" if self.vmap else "loop"


class _Trouble(Exception):  # noqa: N818 - no error to anyone else
    """A guide or a model runs for many particles otherwise than for one."""


class _Reference(NamedTuple):
    """The model's log-densities in single runs, and for what."""

    draws: Draws
    log_probs: list[LogProbs]


@torch.no_grad()
def check_broadcast(tracer: Tracer) -> Broadcast:
    """Run guide and model for a few particles at once and one by one, and compare.

    Args:
        tracer: Runs both; it is told whether to mute vmap.

    Raises:
        DomainError: The model has latents in some draws that the guide lacks.
    """
    drawn = draws = references = None
    # Estimates would differ from one run to the other.
    with pyro.validation_enabled(False), exact_traces():
        try:
            drawn = _guide_on_plate(tracer)
            draws = tracer.draws(drawn, _NUM)
            references = _references(tracer, draws)
            _model_on_plate(tracer, drawn, references)
            return Broadcast(True, True, False, "")
        except _Trouble as trouble:
            reason = str(trouble)
        try:
            with missing_batching_rules() as missing:
                draws = draws or _guide_by_vmap(tracer)
                _model_by_vmap(tracer, draws, references or _references(tracer, draws))
            tracer.mutes_vmap = bool(missing)
        except _Trouble as trouble:
            return Broadcast(drawn is not None, False, False, f"{reason}, and {trouble}")
    return Broadcast(drawn is not None, False, True, reason)


def _guide_on_plate(tracer: Tracer) -> poutine.Trace:
    with _reported("guide", _PLATE):
        drawn = tracer.trace(tracer.over_particles(tracer.guide, _NUM))
        draws = tracer.draws(drawn, _NUM)
        # Both sides score given values, so that rounding in a round trip is no difference.
        ours = _on_plate(tracer, tracer.guide, drawn)
        _check_independent(tracer, draws)
        _check_equal(ours, _one_by_one(tracer, tracer.guide, draws))
    return drawn


def _guide_by_vmap(tracer: Tracer) -> Draws:
    with _reported("guide", _VMAP):
        draws, _ = tracer.draw_by_vmap(_NUM, _log_probs)
        ours = _by_vmap(tracer, tracer.guide, draws)
        _check_independent(tracer, draws)
        _check_equal(ours, _one_by_one(tracer, tracer.guide, draws))
    return draws


def _references(tracer: Tracer, draws: Draws) -> list[_Reference]:
    """Run single particles: far apart, and nearer to each other until all is finite."""
    found = []
    for factor in _SPREADS:
        spread = _spread(tracer, draws, factor)
        try:
            log_probs = _one_by_one(tracer, tracer.model, spread)
        except FlowError:
            raise
        except Exception:  # as a Cholesky decomposition may fail that far out
            if factor == _SPREADS[-1]:
                raise
            continue
        found.append(_Reference(spread, log_probs))
        if all(bool(value.isfinite().all()) for one in log_probs for value in one.values()):
            break
    return found


def _model_on_plate(tracer: Tracer, drawn: poutine.Trace, references: list[_Reference]) -> None:
    with _reported("model", _PLATE):
        for reference in references:
            spread = drawn.copy()
            for site in filter(tracer.has_particles, sample_sites(drawn)):
                name, shape, target = site["name"], site["value"].shape, site.copy()
                target["value"] = reference.draws.values[name][: shape[0]].reshape(shape)
                spread.nodes[name] = target
            _check_equal(_on_plate(tracer, tracer.model, spread), reference.log_probs)


def _model_by_vmap(tracer: Tracer, draws: Draws, references: list[_Reference]) -> None:
    with _reported("model", _VMAP):
        for reference in references:
            ours = _by_vmap(tracer, tracer.model, reference.draws)
            _check_equal(ours, reference.log_probs)
        # Not further apart than drawn: rounding in a gradient can be large out there.
        _check_gradients(tracer, draws)


def _on_plate(tracer: Tracer, fn: Fn, drawn: poutine.Trace) -> list[LogProbs]:
    with seeded("fit", 0):
        stacked = _log_probs(tracer.replay(tracer.over_particles(fn, _NUM), drawn))
    found: list[LogProbs] = [{} for _ in range(_NUM)]
    for name, value in stacked.items():
        plated = value if value.dim() > tracer.nesting else value[None]
        for k, one in enumerate(found):
            one[name] = plated[k if len(plated) > 1 else 0]
    return found


def _by_vmap(tracer: Tracer, fn: Fn, draws: Draws) -> list[LogProbs]:
    with seeded("fit", 0):
        stacked = tracer.over_vmap(fn, draws, _log_probs)
    return [{name: value[k] for name, value in stacked.items()} for k in range(_NUM)]


def _one_by_one(tracer: Tracer, fn: Fn, draws: Draws) -> list[LogProbs]:
    """Score single particles; what is drawn besides is the same for all, as it is by vmap."""
    found = []
    for one in tracer.singles(draws):
        with seeded("fit", 0):
            trace = tracer.replay(fn, one)
        check_latents(one, trace)
        found.append(_log_probs(trace))
    return found


def _log_probs(trace: poutine.Trace) -> LogProbs:
    for site in sample_sites(trace):
        _forgive_rounding(site)
    trace.compute_log_prob()
    return {site["name"]: torch.as_tensor(site["log_prob"]) for site in sample_sites(trace)}


def _forgive_rounding(site: Site) -> None:
    """Let a value that a guide computes be its own, where another batch rounds it otherwise.

    To a ``Delta`` the last bit of a simplex, say, is the difference between its density and none.
    """
    fn, value = site["fn"], site["value"]
    if isinstance(fn, Delta) and fn.v.is_floating_point():
        tolerance = _ROUNDING * torch.finfo(fn.v.dtype).eps
        same = torch.isclose(value, fn.v, rtol=tolerance, atol=tolerance)
        site["value"] = torch.where(same, fn.v, value)


def _spread(tracer: Tracer, draws: Draws, factor: float) -> Draws:
    """Pull the particles apart, in the unconstrained space of each latent."""
    values = {}
    for name, value in draws.values.items():
        transform = None if factor == 1 else _unconstrains(tracer, name)
        values[name] = value
        if transform is not None:
            unconstrained = transform.inv(value)
            centre = unconstrained.mean(0)
            values[name] = transform(centre + factor * (unconstrained - centre))
    return draws._replace(values=values)


def _unconstrains(tracer: Tracer, name: str) -> Transform | None:
    site: Site = tracer.single[1].nodes.get(name)
    if site is None or site_is_subsample(site) or site["fn"].support.is_discrete:
        return None
    try:
        return biject_to(site["fn"].support)
    except NotImplementedError:
        return None


def _check_independent(tracer: Tracer, draws: Draws) -> None:
    """Refuse a guide that draws once for all particles, but anew in each run."""
    alike = [name for name, value in draws.values.items() if bool((value == value[:1]).all())]
    if not alike:
        return
    before, again = tracer.single[0].nodes, tracer.trace(tracer.guide).nodes
    for name in alike:
        one: Site = before[name]
        other: Site = again[name]
        # What has no rsample is a count or a class, as a rule, and may well be alike.
        if one["fn"].has_rsample and not torch.equal(one["value"], other["value"]):
            raise _Trouble(f"draws the site {name!r} once for all particles")


def _check_equal(ours: list[LogProbs], theirs: list[LogProbs]) -> None:
    for mine, single in zip(ours, theirs, strict=True):
        for name, value in single.items():
            found = mine[name]
            if found.numel() != value.numel() or not densities_agree(
                found.reshape(value.shape), value
            ):
                raise _Trouble(f"has other log-densities at the site {name!r}")


@torch.enable_grad()
def _check_gradients(tracer: Tracer, draws: Draws) -> None:
    values = {name: value.detach().clone() for name, value in draws.values.items()}
    leaves = [value.requires_grad_() for value in values.values() if value.is_floating_point()]
    draws = draws._replace(values=values)
    ours = _gradients(_by_vmap(tracer, tracer.model, draws), leaves)
    for mine, single in zip(
        ours, _gradients(_one_by_one(tracer, tracer.model, draws), leaves), strict=True
    ):
        finite = single[single.isfinite()].abs()
        tolerance = _GRADIENT_TOLERANCE * float(finite.max()) if finite.numel() else 0.0
        if not torch.allclose(mine, single, rtol=0.0, atol=tolerance, equal_nan=True):
            raise _Trouble("has another gradient")


def _gradients(log_probs: list[LogProbs], leaves: list[Tensor]) -> list[Tensor]:
    total = torch.stack([value.sum() for one in log_probs for value in one.values()]).sum()
    if not total.requires_grad:
        return []
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    return [
        torch.zeros_like(leaf) if one is None else one
        for one, leaf in zip(found, leaves, strict=True)
    ]


@contextmanager
def _reported(who: str, where: str) -> Iterator[None]:
    """Say who ran into trouble, and where."""
    try:
        yield
    except FlowError:
        raise
    except _Trouble as trouble:
        raise _Trouble(f"the {who} {trouble} {where}") from None
    except Exception as error:  # whatever a model may raise
        first_line = str(error).partition("\n")[0]
        words = textwrap.shorten(f"{type(error).__name__}: {first_line}", _LONGEST_ERROR)
        raise _Trouble(f"the {who} fails {where} ({words})") from error
