"""The modules of a guide for models with plates."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyro_flows import _checks
from pyro_flows.distributions import Flow
from pyro_flows.errors import ShapeError
from pyro_flows.flows import Recipe
from pyro_flows.flows.coupling import alternating_masks
from pyro_flows.infer.guides.assembly import Structure, assemble
from pyro_flows.infer.guides.gaussian import Start
from pyro_flows.infer.guides.hierarchy import LOG_SCALE_BOUND
from pyro_flows.infer.guides.plates.encoders import Source
from pyro_flows.infer.guides.plates.layout import Block, Layout
from pyro_flows.infer.guides.plates.members import (
    MemberDistribution,
    Members,
    embedding_dim_of,
)
from pyro_flows.infer.guides.plates.start import Starts
from pyro_flows.transforms import AffineCoupling, Elementwise, RationalQuadraticSpline

# Returns a flow from the number of coordinates of a member, and context_dim as a keyword.
MemberRecipe = Callable[..., Flow]

_COUPLINGS, _WIDTH = 4, 32


def member_flow(input_dim: int, *, context_dim: int) -> Flow:
    """Build the flow of a plate's members: splines, couplings, and conditional affine maps.

    The last of these is linear in the context, as the log-scale of effects is in that of their
    prior, however far a draw of it goes.

    Args:
        input_dim: Number of coordinates of a member.
        context_dim: Number of entries of the context.

    Example:
        >>> member_flow(2, context_dim=3).condition(torch.zeros(10, 3)).sample().shape
        torch.Size([10, 2])
    """
    # One layer, since the networks run for each member of each particle.
    hidden_dims = (max(_WIDTH, input_dim),)
    of_context: dict[str, Any] = {"context_dim": context_dim}
    masks = alternating_masks(input_dim, _COUPLINGS) if input_dim > 1 else []
    moves_all: dict[str, Any] = {
        **of_context,
        "mask": [False] * input_dim,
        "log_scale_bound": LOG_SCALE_BOUND,
    }
    spline = RationalQuadraticSpline()
    return Flow(
        [
            Elementwise(spline, input_dim, hidden_dims=(), **of_context),
            *(
                AffineCoupling(input_dim, mask=mask, hidden_dims=hidden_dims, **of_context)
                for mask in masks
            ),
            AffineCoupling(input_dim, hidden_dims=hidden_dims, **moves_all),
            AffineCoupling(input_dim, hidden_dims=(), **moves_all),
        ]
    )


class BlockPart(nn.Module):
    """The flow that all members of a block share, what each has of its own, and an encoder.

    Args:
        flow: The flow.
        members: What members have of their own.
        encoder: A module that says of members what the data do; none for embeddings, or where the
            encoder is a function.
    """

    def __init__(self, flow: Flow, members: Members, encoder: nn.Module | None) -> None:
        super().__init__()
        self.flow, self.members, self.encoder = flow, members, encoder

    def distribution(
        self,
        block: Block,
        indices: Sequence[Tensor | None],
        follows: Tensor | None,
        feature: Tensor | None,
        *,
        path_gradient: bool,
    ) -> MemberDistribution:
        """Return the distribution of the latents of some members, for one evaluation.

        Args:
            block: The latents.
            indices: The members of each plate; none for all.
            follows: What they follow, of shape ``(*, P)``.
            feature: What an encoder says of them, of shape ``(*, C)``.
            path_gradient: Whether an ELBO takes the path gradient.
        """
        given = self.members.given(block, indices, follows, feature)
        held = None
        if path_gradient and torch.is_grad_enabled():
            held = self.members.given(block, indices, follows, feature, held=True)
        return MemberDistribution(self.flow, given, held)


class Parts(nn.Module):
    """All modules of a guide.

    Args:
        of_globals: The flow over the global latents; none if there is none.
        standard: Where these lie, and how widely, each of shape ``(D,)``.
        blocks: A part for each block.
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self, of_globals: Flow | None, standard: tuple[Tensor, Tensor], blocks: list[BlockPart]
    ) -> None:
        super().__init__()
        self.of_globals = of_globals
        self.register_buffer("loc", standard[0].clone())
        self.register_buffer("scale", standard[1].clone())
        self._blocks = nn.ModuleList(blocks)

    @property
    def blocks(self) -> list[BlockPart]:
        """The part of each block."""
        return [cast(BlockPart, part) for part in self._blocks]

    def standardised(self, z: Tensor) -> Tensor:
        """Return the global latents relative to where they lie at the start."""
        return (z - self.loc) / self.scale


def make_parts(
    who: str,
    layout: Layout,
    starts: Starts,
    recipes: tuple[Recipe, MemberRecipe],
    sources: Sequence[Source],
) -> Parts:
    """Make the modules of a guide.

    Args:
        who: Named in messages.
        layout: The latents.
        starts: Where they begin.
        recipes: That of the global flow, and that of the members'.
        sources: What tells the members of each block apart.

    Raises:
        ShapeError: A recipe returns another flow than it was asked for.
    """
    of_globals, standard = None, (torch.zeros(0), torch.zeros(0))
    if starts.of_globals is not None:
        shapes = layout.shapes
        parents = {
            name: others & set(shapes) for name, others in starts.parents.items() if name in shapes
        }
        of_globals = assemble(who, recipes[0], Structure(shapes, parents), starts.of_globals)
        standard = starts.of_globals.loc, _deviations(starts.of_globals)
    blocks = []
    for block, start, source in zip(layout.blocks, starts.of_blocks, sources, strict=True):
        own = embedding_dim_of(block.input_dim) if source.has_tables else 0
        context_dim = layout.followed_dim(block) + own + source.length
        flow = _checked(who, recipes[1], block, context_dim).to(start.loc)
        members = Members(start, embeds=source.has_tables)
        blocks.append(BlockPart(flow, members, source.module))
    return Parts(of_globals, standard, blocks)


def _deviations(start: Start) -> Tensor:
    return start.scale if start.scale.dim() == 1 else start.scale.square().sum(-1).sqrt()


def _checked(who: str, recipe: MemberRecipe, block: Block, context_dim: int) -> Flow:
    flow: object = recipe(block.input_dim, context_dim=context_dim)
    fits = isinstance(flow, Flow) and flow.event_shape == (block.input_dim,)
    if not fits or cast(Flow, flow).context_dim != context_dim:
        raise _checks.refusal(
            ShapeError,
            who,
            expected=f"member_flow to return a Flow over the {block.input_dim} coordinates of a "
            f"member of {', '.join(map(repr, block.plates))}, with context_dim={context_dim}",
            got=_checks.describe(flow),
            advice="It is called as member_flow(input_dim, context_dim=context_dim).",
        )
    return cast(Flow, flow)
