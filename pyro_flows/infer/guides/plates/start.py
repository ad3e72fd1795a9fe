"""Where the latents of a model with plates begin: a Gaussian over all, taken apart."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_flows.infer.guides.auto_flow import AutoFlow
from pyro_flows.infer.guides.gaussian import Start
from pyro_flows.infer.guides.hierarchy import Parents, prior_parents
from pyro_flows.infer.guides.latents import places_of
from pyro_flows.infer.guides.plates.encoders import Source
from pyro_flows.infer.guides.plates.layout import Block, Layout
from pyro_flows.infer.guides.plates.members import MemberStart, pooled
from pyro_flows.infer.tracer import subsample_sites
from pyro_flows.numerics import regression

# Above so many numbers, members do not follow other latents at the start.
_MOST_NUMBERS = 20_000_000

Site = Any


class Starts(NamedTuple):
    """Where a guide begins.

    Attributes:
        of_globals: Where the global latents begin; none if there is none.
        of_blocks: For each block, where its members do that the search saw, and none for others.
        parents: For each latent the latents whose values its prior is given.
        origin: Where the start came from, in words.
    """

    of_globals: Start | None
    of_blocks: tuple[MemberStart, ...]
    parents: Parents
    origin: str


class _Unscaled(Messenger):
    """Take the members of a subsample for all that there are."""

    def _pyro_sample(self, msg: Site) -> None:
        for frame in msg["cond_indep_stack"]:
            if frame.full_size not in (None, frame.size):
                msg["scale"] = msg["scale"] * frame.size / frame.full_size


class _Search(AutoFlow):
    """Looks for a Gaussian over the latents of one subsample, and is no guide."""

    start: Start

    @property
    def _who(self) -> str:
        return "AutoPlateFlow"

    def _may_subsample(self, plate: str) -> bool:
        return True

    def _build(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        trace: Any = self.prototype_trace
        self.parents = prior_parents(self._bare_model[0], trace, args, kwargs)
        self.start = self._find_start(args, kwargs)


def find_starts(
    model: Callable[..., Any],
    layout: Layout,
    sources: Sequence[Source],
    sizes: Mapping[str, int],
    arguments: tuple[tuple[Any, ...], dict[str, Any]],
    **options: Any,
) -> Starts:
    """Search a Gaussian over the latents of one run, and take it apart.

    Of a subsampled plate, the search sees one subsample, for which it takes the whole plate;
    other members begin where these lie on average.

    Args:
        model: The model.
        layout: Its latents.
        sources: What tells the members of each block apart.
        sizes: The full size of each plate whose members have tables.
        arguments: The model's arguments, and its keyword arguments.
        **options: The start and ``init_loc_fn`` of an :class:`~pyro_flows.AutoFlow`.
    """
    args, kwargs = arguments
    with poutine.block():
        run = poutine.trace(model).get_trace(*args, **kwargs)
    subsamples = poutine.Trace()
    subsamples.nodes.update(subsample_sites(run))
    members = {name: torch.as_tensor(s["value"]) for name, s in subsample_sites(run).items()}
    search = _Search(_Unscaled()(poutine.replay(model, trace=subsamples)), **options)
    search.initialise(*args, **kwargs)
    start = search.start
    gaussian = _Gaussian(start, places_of(search._unconstrained_shapes), layout)
    of_blocks = []
    for block, source in zip(layout.blocks, sources, strict=True):
        found = gaussian.of_members(block)
        if source.has_tables:
            chosen = [members[plate] for plate in block.plates]
            full = [sizes[plate] for plate in block.plates]
            found = _over_all(found, chosen, full)
        else:
            found = _of_the_pool(found)
        of_blocks.append(found)
    return Starts(gaussian.of_globals(), tuple(of_blocks), search.parents, start.origin)


class _Gaussian:
    """A Gaussian over all latents of a run, of which parts are asked for."""

    def __init__(self, start: Start, indices: Mapping[str, Tensor], layout: Layout) -> None:
        self._start, self._indices, self._layout = start, indices, layout
        self._loc = start.loc.double()
        scale = start.scale.double()
        self._covariance = scale @ scale.T if scale.dim() == 2 else None
        self._variance = scale.square().sum(-1) if scale.dim() == 2 else scale.square()
        parts = [indices[name].flatten() for name in layout.shapes]
        self._globals = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long)

    def of_globals(self) -> Start | None:
        if not len(self._globals):
            return None
        loc, scale = self._loc[self._globals], self._variance[self._globals].sqrt()
        if self._covariance is not None:
            chosen = self._covariance[self._globals[:, None], self._globals]
            scale = torch.linalg.cholesky(chosen)
        return self._start._replace(loc=loc, scale=scale).to(self._start.loc)

    def _own(self, block: Block) -> Tensor:
        """Return the places of each member's coordinates, of shape ``(*sizes, L)``."""
        parts = [block.members_first(site, self._indices[site.name]) for site in block.sites]
        return torch.cat(parts, -1)

    def _followed(self, block: Block) -> tuple[Tensor, Tensor, Tensor]:
        """Return the places of what each member follows, and how that is standardised."""
        sizes = self._own(block).shape[:-1]
        parts = [self._globals.expand(*sizes, -1)]
        locs, scales = [self._loc[self._globals]], [self._variance[self._globals].sqrt()]
        for k in block.parents:
            other = self._layout.blocks[k]
            places = self._own(other)
            shape = [
                n if p in other.plates else 1 for p, n in zip(block.plates, sizes, strict=True)
            ]
            parts.append(places.reshape(*shape, -1).expand(*sizes, -1))
            found = self.of_members(other)
            loc, scale = pooled(found.loc, found.scale)
            locs.append(loc.double())
            scales.append(scale.double())
        return torch.cat(parts, -1), torch.cat(locs), torch.cat(scales)

    def of_members(self, block: Block) -> MemberStart:
        own = self._own(block)
        followed, pool_loc, pool_scale = self._followed(block)
        loc, size, follows = self._loc[own], own.shape[-1], followed.shape[-1]
        numbers = own[..., 0].numel() * (follows + size) ** 2
        if self._covariance is None or numbers > _MOST_NUMBERS:
            scale = self._variance[own].sqrt().diag_embed()
            slope = loc.new_zeros(*own.shape, follows)
        else:
            slope, scale = regression(self._covariance, own, followed)
            loc = loc + (slope * (pool_loc - self._loc[followed])[..., None, :]).sum(-1)
            slope = torch.linalg.solve_triangular(scale, slope * pool_scale, upper=False)
        like = self._start.loc
        return MemberStart(loc.to(like), scale.to(like), slope.to(like), self._start.whitened)


def _of_the_pool(found: MemberStart) -> MemberStart:
    """Return one start for whatever members there are."""
    loc, scale = pooled(found.loc, found.scale)
    slope = (found.scale @ found.slope).flatten(0, -3).mean(0)
    return found._replace(loc=loc, scale=scale.diag_embed(), slope=slope / scale[:, None])


def _over_all(found: MemberStart, chosen: list[Tensor], sizes: list[int]) -> MemberStart:
    """Return a start for all members: those that were seen, and the others from the pool."""
    pool = _of_the_pool(found)
    grid = torch.meshgrid(*chosen, indexing="ij")

    def table(seen: Tensor, other: Tensor) -> Tensor:
        every = other.expand(*sizes, *other.shape).clone()
        every[tuple(grid)] = seen
        return every

    return found._replace(
        loc=table(found.loc, pool.loc),
        scale=table(found.scale, pool.scale),
        slope=table(found.slope, pool.slope),
    )
