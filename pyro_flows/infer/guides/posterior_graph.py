"""Which latents depend on which given the data, and nodes that follow this graph."""

import logging
from collections.abc import Callable, Mapping
from itertools import combinations_with_replacement
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer.inspect import get_dependencies
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.errors import DomainError
from pyro_flows.infer.guides.latents import event_dim_of, places_of
from pyro_flows.infer.random import aside
from pyro_flows.transforms import Node

logger = logging.getLogger("pyro_flows")

# Weights of a node, beyond which its widest parents are left out.
_MOST_WEIGHTS = 2_000_000

# A latent's site in a trace, typed by Pyro in part.
Site = Any


class Dependence(NamedTuple):
    """How a latent depends on others, given the data.

    Attributes:
        plates: Its plates, and the axis of each in its unconstrained shape.
        dense: The plates whose members depend on one another, given the latents before.
        parents: The latents before it that it follows, and the plates in which a member of it
            follows that member of theirs alone.
    """

    plates: dict[str, int]
    dense: frozenset[str]
    parents: dict[str, frozenset[str]]


Graph = Mapping[str, Dependence]


def posterior_graph(
    who: str,
    model: Callable[..., Any],
    trace: poutine.Trace,
    shapes: Mapping[str, torch.Size],
    arguments: tuple[tuple[Any, ...], dict[str, Any]],
) -> dict[str, Dependence]:
    """Return how the latents of a model depend on those before them, given the data.

    The graph is that of the model with the parents of each site joined, and, from the last latent
    to the first, those that a latent follows joined when it is left out: so that a distribution
    with these parents can be any posterior with this graph.

    Args:
        who: Named in the message.
        model: The model.
        trace: Holds a value for each latent, as not every prior has draws.
        shapes: The latents' unconstrained shapes, in the model's order.
        arguments: The model's arguments, and its keyword arguments.

    Raises:
        DomainError: The model does not run on tensors that note where they come from.

    Reference:
        Webb et al. (2018), *Faithful inversion of generative models for effective amortized
        inference*, algorithm 1.
    """
    replayed = poutine.replay(model, trace=trace)
    try:
        with aside(), poutine.block(), pyro.validation_enabled(False):
            found: Any = get_dependencies(replayed, *arguments)["posterior_dependencies"]
    except Exception as error:  # whatever a model may say to them
        raise _checks.refusal(
            DomainError,
            who,
            expected="a model that runs on tensors which note what they depend on",
            got=f"{type(error).__name__}: {error}",
            advice='Pass follow="prior".',
        ) from error
    axes = {name: _plate_axes(trace.nodes[name], shape) for name, shape in shapes.items()}
    across = {
        frozenset((one, other)): frozenset(plates)
        for one, others in found.items()
        for other, plates in others.items()
        if one in shapes and other in shapes
    }
    _leave_out_from_the_last(list(shapes), axes, across)
    return {name: _dependence(name, shapes, axes, across) for name in shapes}


def _plate_axes(site: Site, shape: torch.Size) -> dict[str, int]:
    batch_dim = len(shape) - event_dim_of(site, shape)
    frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
    return {frame.name: batch_dim + frame.dim for frame in frames}


def _leave_out_from_the_last(
    order: list[str],
    axes: Mapping[str, dict[str, int]],
    across: dict[frozenset[str], frozenset[str]],
) -> None:
    """Join what each latent follows; a pair's plates are those across which all are joined."""
    while order:
        last = order.pop()
        own = across.get(frozenset((last,)), frozenset())
        near = [name for name in order if frozenset((name, last)) in across]
        for one, other in combinations_with_replacement(near, 2):
            pair, common = frozenset((one, other)), axes[one].keys() & axes[other].keys()
            joined = own | across[frozenset((one, last))] | across[frozenset((other, last))]
            dense = frozenset(common - (axes[last].keys() - joined))
            across[pair] = across.get(pair, frozenset()) | dense


def _dependence(
    name: str,
    shapes: Mapping[str, torch.Size],
    axes: Mapping[str, dict[str, int]],
    across: Mapping[frozenset[str], frozenset[str]],
) -> Dependence:
    before = list(shapes)[: list(shapes).index(name)]
    parents = {
        other: frozenset((axes[name].keys() & axes[other].keys()) - across[pair])
        for other in before
        if (pair := frozenset((name, other))) in across
    }
    dense = across.get(frozenset((name,)), frozenset())
    return Dependence(axes[name], dense & axes[name].keys(), parents)


def nodes_of(graph: Graph, shapes: Mapping[str, torch.Size]) -> list[Node]:
    """Return a node for each latent, over the joined unconstrained coordinates of all.

    Args:
        graph: How the latents depend on one another.
        shapes: Their unconstrained shapes, in the model's order.
    """
    places = places_of(shapes)
    return [_node(name, graph, places) for name in shapes]


def _node(name: str, graph: Graph, places: Mapping[str, Tensor]) -> Node:
    here = graph[name]
    apart = [plate for plate in here.plates if plate not in here.dense]
    own = _members_first(places[name], [here.plates[plate] for plate in apart])
    sizes = own.shape[:-1]
    found = []
    for other, alone in here.parents.items():
        theirs = [plate for plate in apart if plate in alone]
        rows = _members_first(places[other], [graph[other].plates[plate] for plate in theirs])
        for axis, plate in enumerate(apart):
            if plate not in theirs:
                rows = rows.unsqueeze(axis)
        found.append(rows.expand(*sizes, rows.shape[-1]).reshape(sizes.numel(), -1))
    own = own.reshape(sizes.numel(), -1)
    return Node(own, _within_limit(name, own, found))


def _members_first(places: Tensor, axes: list[int]) -> Tensor:
    """Return places with some axes first, and the others in one, the last."""
    first = places.movedim(axes, list(range(len(axes))))
    return first.flatten(len(axes)) if first.dim() > len(axes) else first[..., None]


def _within_limit(name: str, own: Tensor, parents: list[Tensor]) -> Tensor:
    kept = sorted(parents, key=lambda rows: rows.shape[1])
    while kept and sum(rows.numel() for rows in kept) * own.shape[1] > _MOST_WEIGHTS:
        logger.info("AutoFlow: %r does not follow %d others", name, kept.pop().shape[1])
    return torch.cat([own[:, :0], *kept], 1)
