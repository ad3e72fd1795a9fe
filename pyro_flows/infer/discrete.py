"""Discrete latents that a guide leaves out: summed over, and drawn given all else."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer.discrete import infer_discrete
from pyro.ops.contract import contract_to_tensor
from pyro.ops.packed import scale_and_mask, unpack
from pyro.ops.rings import LogRing
from pyro.poutine.broadcast_messenger import BroadcastMessenger
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.errors import DomainError
from pyro_flows.infer.given import Given
from pyro_flows.infer.tracer import PARTICLES, Fn, Site, sample_sites


class WithDiscrete:
    """A guide that draws the discrete latents as well, each given all others and the data.

    Args:
        model: The model.
        guide: A guide for its other latents.
        names: The discrete latents, marked ``infer={"enumerate": "parallel"}`` in the model.
        nesting: Number of axes of the plates, without that of the particles.
    """

    def __init__(self, model: Fn, guide: Fn, names: Iterable[str], nesting: int) -> None:
        self._model, self._guide, self._nesting = model, guide, nesting
        self.names = tuple(names)

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Sample every latent.

        Args:
            *args: The model's arguments.
            **kwargs: The model's keyword arguments.
        """
        drawn = poutine.trace(self._guide).get_trace(*args, **kwargs)
        model = poutine.replay(self._model, trace=drawn)
        for frame in _particles(drawn):
            model = _Under(frame)(model)
        inferred = infer_discrete(model, first_available_dim=-2 - self._nesting)
        with poutine.block():
            trace = poutine.trace(inferred).get_trace(*args, **kwargs)
        for name in self.names:
            site: Site = trace.nodes[name]
            value = site["value"].expand(site["fn"].batch_shape)
            # It adds nothing to the guide's density, since the latent is summed over.
            pyro.sample(name, Given(value))


class Marginal:
    """The log-density of a model with its discrete latents summed over.

    Args:
        model: The model, replayed by draws of its other latents, perhaps on a plate of particles.
        nesting: Number of axes of the plates, without that of the particles.
        num: Number of particles.
        args: Arguments of the model.
        kwargs: Keyword arguments of the model.

    Raises:
        DomainError: A batch axis is none of a plate, or plates of different subsamples share a
            discrete latent.

    Reference:
        Obermeyer et al. (2019), *Tensor variable elimination for plated factor graphs*.
    """

    def __init__(
        self, model: Fn, nesting: int, num: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        with EnumMessenger(-2 - nesting):
            trace = poutine.trace(model).get_trace(*args, **kwargs)
        self._trace = _without_values(trace)
        self._num = num
        self._terms = _terms(self._trace)
        sizes = {
            self._trace.plate_to_symbol[frame.name]: frame.size
            for term in self._terms
            for frame in term.site["cond_indep_stack"]
            if frame.vectorized
        }
        self._ring = LogRing(dim_to_size=sizes)
        self._particles = frozenset(self._trace.plate_to_symbol.get(PARTICLES, ""))

    @property
    def log_p(self) -> Tensor:
        """The joint log-density of data and other latents, of shape ``(num,)``."""
        plain = [term.site["packed"]["log_prob"] for term in self._terms if not term.summed]
        total = sum((self._over_particles(value) for value in plain), torch.zeros(()))
        summed = [term for term in self._terms if term.summed]
        if summed:
            total = total + _common_scale(summed) * self._contract(summed, self._particles)
        return total.expand(self._num)

    def log_likelihood(self, name: str) -> Tensor | None:
        """Return the log-density of each observation of a site, not scaled by plates.

        Args:
            name: The observed site.

        Returns:
            The log-density, of shape ``(num, ...)`` as without discrete latents; none, if the site
            depends on none of these.

        Raises:
            DomainError: The observations do not separate when the discrete latents are summed
                over.
        """
        start = next(term for term in self._terms if term.site["name"] == name)
        if not start.summed:
            return None
        linked = _linked(start, self._terms)
        others = [term.site["name"] for term in linked if term is not start and term.is_evidence]
        shared = [term.site["name"] for term in linked if term.ordinal != start.ordinal]
        if others or shared:
            raise _not_separable(name, others, shared)
        return unpack(self._contract(linked, start.ordinal), self._trace.symbol_to_dim)

    def _contract(self, terms: "list[_Term]", ordinal: frozenset[str]) -> Tensor:
        tree: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
        for term in terms:
            tree.setdefault(term.ordinal, []).append(term.log_prob)
        dims = {dim for term in terms for dim in term.summed}
        return contract_to_tensor(tree, dims, ordinal, ring=self._ring)

    def _over_particles(self, value: Tensor) -> Tensor:
        """Sum a packed log-density over everything but the particles' axis."""
        dims: str = value._pyro_dims  # type: ignore[attr-defined]
        axes = [axis for axis, dim in enumerate(dims) if dim not in self._particles]
        return value.sum(axes) if axes else value


class _Term(NamedTuple):
    """A factor of the joint density.

    Attributes:
        site: Its site.
        ordinal: The symbols of its plates.
        summed: Those of the discrete latents that it depends on.
        log_prob: Its log-density, masked but not scaled, packed.
    """

    site: Site
    ordinal: frozenset[str]
    summed: frozenset[str]
    log_prob: Tensor

    @property
    def is_evidence(self) -> bool:
        """Whether it is anything but the prior of a latent that is summed over."""
        return self.site["infer"].get("_enumerate_dim") is None


def enumerated_names(sites: Iterable[Site]) -> list[str]:
    """Return the names of the latents that are marked for enumeration.

    Args:
        sites: Latent sites of a model that its guide does not draw.

    Raises:
        DomainError: One of them has vectors as values, or cannot be enumerated.
    """
    marked = [site for site in sites if site["infer"].get("enumerate") == "parallel"]
    for site in marked:
        if not site["fn"].has_enumerate_support or site["fn"].event_dim:
            raise _checks.refusal(
                DomainError,
                "to_arviz",
                expected=f"a discrete latent with scalar values, finitely many, at the site "
                f"{site['name']!r}, which the guide does not draw",
                got=f"{type(site['fn']).__name__} with events of shape "
                f"{tuple(site['fn'].event_shape)}",
                advice="Write it as a Categorical or a Bernoulli, or sample it in the guide.",
            )
    return [site["name"] for site in marked]


def _without_values(trace: poutine.Trace) -> poutine.Trace:
    """Drop the sites that have no density: subsamples and deterministic ones."""
    pruned = prune_subsample_sites(trace)
    for site in sample_sites(pruned):
        if site["infer"].get("_deterministic"):
            del pruned.nodes[site["name"]]
    return pruned


def _terms(trace: poutine.Trace) -> list[_Term]:
    """Score and pack the sites of an enumerated trace."""
    trace.compute_log_prob()
    try:
        trace.pack_tensors()
    except ValueError as error:
        raise _checks.refusal(
            DomainError,
            "to_arviz",
            expected="each batch axis of a model with enumerated latents to be that of a plate",
            got=str(error).partition("\n")[0],
            advice="Declare the axes by pyro.plate, or as part of an event by .to_event().",
        ) from None
    plates = frozenset(trace.plate_to_symbol.values())
    terms = []
    for site in sample_sites(trace):
        packed = site["packed"]
        log_prob = scale_and_mask(packed["unscaled_log_prob"], mask=packed["mask"])
        ordinal = frozenset(
            trace.plate_to_symbol[frame.name]
            for frame in site["cond_indep_stack"]
            if frame.vectorized
        )
        terms.append(_Term(site, ordinal, frozenset(log_prob._pyro_dims) - plates, log_prob))
    return terms


def _particles(trace: poutine.Trace) -> set[CondIndepStackFrame]:
    """Return the particles' plate around a guide, if there is one."""
    frames = (frame for site in sample_sites(trace) for frame in site["cond_indep_stack"])
    return {frame for frame in frames if frame.name == PARTICLES}


class _Under(Messenger):
    """Put back a plate that a block hides; entering it again would count as a second one."""

    def __init__(self, frame: CondIndepStackFrame) -> None:
        super().__init__()
        self._frame = frame

    def _process_message(self, msg: Site) -> None:
        msg["cond_indep_stack"] = (self._frame, *msg["cond_indep_stack"])
        BroadcastMessenger._pyro_sample(msg)


def _linked(start: _Term, terms: list[_Term]) -> list[_Term]:
    """Return the terms that depend on the same discrete latents, directly or through others."""
    linked, dims = [start], set(start.summed)
    rest = [term for term in terms if term is not start]
    while True:
        found = [term for term in rest if term.summed & dims]
        if not found:
            return linked
        linked += found
        rest = [term for term in rest if not term.summed & dims]
        dims.update(*(term.summed for term in found))


def _common_scale(terms: list[_Term]) -> Tensor | float:
    scales = {float(term.site["scale"]) for term in terms}
    if len(scales) > 1:
        raise _checks.refusal(
            DomainError,
            "to_arviz",
            expected="one scale for all sites that depend on enumerated latents",
            got=", ".join(map(str, sorted(scales))),
            advice="Subsample all of their plates alike, or none.",
        )
    return scales.pop()


def _not_separable(name: str, others: list[str], shared: list[str]) -> Exception:
    if others:
        reason = f"{', '.join(map(repr, others))} that depend on the same latents"
    else:
        reason = f"{', '.join(map(repr, shared))} in other plates"
    return _checks.refusal(
        DomainError,
        "to_arviz",
        expected=f"enumerated latents that each belong to one observation of the site {name!r}",
        got=reason,
        advice="Pass log_likelihood=False: the observations have no log-likelihoods of their own.",
    )
