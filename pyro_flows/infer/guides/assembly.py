"""A guide's flow, put together from a recipe's, couplings and a start."""

from collections.abc import Mapping

import torch

from pyro_flows import _checks
from pyro_flows.distributions import Flow
from pyro_flows.errors import ShapeError
from pyro_flows.flows import Recipe
from pyro_flows.infer.guides.gaussian import Start
from pyro_flows.infer.guides.hierarchy import Parents, hierarchical_couplings
from pyro_flows.infer.guides.mode import FULL_RANK_LIMIT
from pyro_flows.transforms import ElementwiseAffine, LowerTriangularAffine


def assemble(
    who: str, recipe: Recipe, sizes: Mapping[str, int], parents: Parents, start: Start
) -> Flow:
    """Return the flow of a guide: the recipe's, then couplings between latents, then the start.

    Args:
        who: Named in the message.
        recipe: Returns a flow over all coordinates.
        sizes: The number of unconstrained coordinates of each latent, in their order.
        parents: For each latent the latents whose values its prior is given.
        start: Where the whole begins; its dtype and device become the flow's.

    Raises:
        ShapeError: The recipe returns no flow, or one of another size or with a context.
    """
    input_dim = sum(sizes.values())
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
    parts = [inner.transform, *hierarchical_couplings(parents, sizes), _affine(start)]
    return Flow(parts, base=inner.base_dist).to(start.loc)


def _affine(start: Start) -> ElementwiseAffine | LowerTriangularAffine:
    input_dim = len(start.loc)
    scale = start.scale if start.whitened else torch.ones_like(start.loc)
    affine: ElementwiseAffine | LowerTriangularAffine
    if input_dim > FULL_RANK_LIMIT:
        affine = ElementwiseAffine(input_dim, loc=start.loc, scale=scale)
    else:
        # The kind of the map depends on the model alone, so that a saved guide fits a new one.
        scale_tril = scale.diag_embed() if scale.dim() == 1 else scale
        affine = LowerTriangularAffine(input_dim, loc=start.loc, scale_tril=scale_tril)
    if not start.whitened:
        affine.log_scale.data.copy_(start.scale.log())
    return affine
