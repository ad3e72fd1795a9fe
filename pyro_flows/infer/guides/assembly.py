"""A guide's flow, put together from a recipe's, what follows other latents, and a start."""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from pyro_flows import _checks
from pyro_flows.distributions import Flow
from pyro_flows.errors import ShapeError
from pyro_flows.flows import Recipe
from pyro_flows.infer.guides.gaussian import Start
from pyro_flows.infer.guides.hierarchy import LOG_SCALE_BOUND, Parents, hierarchical_couplings
from pyro_flows.infer.guides.mode import FULL_RANK_LIMIT
from pyro_flows.infer.guides.posterior_graph import Graph, nodes_of
from pyro_flows.transforms import (
    ElementwiseAffine,
    FlowTransform,
    GraphicalAutoregressive,
    LowerTriangularAffine,
)


class Structure(NamedTuple):
    """What a guide's flow follows of its model.

    Attributes:
        shapes: The unconstrained shape of each latent, in the model's order.
        parents: For each latent the latents whose values its prior is given.
        graph: How the latents depend on one another, given the data, where the flow follows that.
    """

    shapes: Mapping[str, torch.Size]
    parents: Parents
    graph: Graph | None = None


def assemble(who: str, recipe: Recipe, structure: Structure, start: Start) -> Flow:
    """Return the flow of a guide: the recipe's, then what follows other latents, then the start.

    Args:
        who: Named in the message.
        recipe: Returns a flow over all coordinates.
        structure: What it follows.
        start: Where the whole begins; its dtype and device become the flow's.

    Raises:
        ShapeError: The recipe returns no flow, or one of another size or with a context.
    """
    input_dim = len(start.loc)
    inner: object = recipe(input_dim)
    if not isinstance(inner, Flow) or inner.event_shape != (input_dim,):
        raise _checks.refusal(
            ShapeError,
            who,
            expected=f"the recipe to return a Flow over {input_dim} coordinates",
            got=_checks.describe(inner),
        )
    if inner.context_dim:
        raise _checks.refusal(
            ShapeError,
            who,
            expected="a flow without a context",
            got=f"context_dim={inner.context_dim}",
            advice="A joint guide has no context to give.",
        )
    outer = _along_priors if structure.graph is None else _along_graph
    return Flow([inner.transform, *outer(structure, start)], base=inner.base_dist).to(start.loc)


def _along_priors(structure: Structure, start: Start) -> list[FlowTransform]:
    sizes = {name: shape.numel() for name, shape in structure.shapes.items()}
    return [*hierarchical_couplings(structure.parents, sizes), _affine(start)]


def _along_graph(structure: Structure, start: Start) -> list[FlowTransform]:
    """Return what has the start's correlations as far as they are on the graph's edges."""
    followed = GraphicalAutoregressive(
        nodes_of(structure.graph or {}, structure.shapes),
        log_scale_bound=LOG_SCALE_BOUND,
        dense_limit=FULL_RANK_LIMIT,
    )
    if start.scale.dim() == 2:
        deviations = start.scale.norm(dim=-1)
        followed.start_from(start.scale / deviations[:, None])
        start = start._replace(scale=deviations)
    return [followed, _elementwise(start)]


def _elementwise(start: Start) -> ElementwiseAffine:
    scale = start.scale if start.whitened else torch.ones_like(start.loc)
    affine = ElementwiseAffine(len(start.loc), loc=start.loc, scale=scale)
    if not start.whitened:
        affine.log_scale.data.copy_(start.scale.log())
    return affine


def _affine(start: Start) -> ElementwiseAffine | LowerTriangularAffine:
    input_dim = len(start.loc)
    if input_dim > FULL_RANK_LIMIT:
        return _elementwise(start)
    scale = start.scale if start.whitened else torch.ones_like(start.loc)
    # The kind of the map depends on the model alone, so that a saved guide fits a new one.
    scale_tril = scale.diag_embed() if scale.dim() == 1 else scale
    affine = LowerTriangularAffine(input_dim, loc=start.loc, scale_tril=scale_tril)
    if not start.whitened:
        affine.log_scale.data.copy_(start.scale.log())
    return affine
