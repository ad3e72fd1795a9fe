"""Which latents of a model are global, and which belong to the members of its plates."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.errors import DomainError
from pyro_flows.infer.guides.latents import event_dim_of

# A latent's site in a trace, typed by Pyro in part.
Site = Any


class LocalSite(NamedTuple):
    """What one member has of a latent.

    Attributes:
        name: The site's name.
        own: Axes of the batch that are no plates of its block: their places, from the right, and
            sizes.
        event_shape: Of the unconstrained value.
    """

    name: str
    own: tuple[tuple[int, int], ...]
    event_shape: torch.Size

    @property
    def size(self) -> int:
        """Number of unconstrained coordinates of a member."""
        return torch.Size(size for _, size in self.own).numel() * self.event_shape.numel()


class Block(NamedTuple):
    """The latents that stand in the same plates; one member of these has one of each.

    Attributes:
        plates: The plates' names, the leftmost first.
        dims: Their axes, from the right.
        sites: The latents, in the model's order.
        parents: Numbers of the blocks in some of these plates alone, which this one follows.
    """

    plates: tuple[str, ...]
    dims: tuple[int, ...]
    sites: tuple[LocalSite, ...]
    parents: tuple[int, ...]

    @property
    def input_dim(self) -> int:
        """Number of unconstrained coordinates of a member."""
        return sum(site.size for site in self.sites)

    def spread(self, table: Tensor) -> Tensor:
        """Put the members' axes, the first ones of a table, where their plates are.

        Args:
            table: Of shape ``(members of each plate, *)``.
        """
        count = len(self.plates)
        shape = [1] * -self.dims[0]
        for dim, size in zip(self.dims, table.shape[:count], strict=True):
            shape[dim] = size
        return table.reshape(*shape, *table.shape[count:])

    def members_first(self, site: LocalSite, value: Tensor) -> Tensor:
        """Return a latent's unconstrained value with its members' axes first, the rest flat.

        Args:
            site: The latent.
            value: Its value in a run of the model.
        """
        batch_dim = value.dim() - len(site.event_shape)
        axes = [batch_dim + dim for dim in self.dims]
        first = value.movedim(axes, list(range(len(axes))))
        return first.flatten(len(axes)) if first.dim() > len(axes) else first[..., None]

    def unpack(self, z: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield each latent's name and unconstrained value, as its site has it.

        Args:
            z: Of shape ``(*, input_dim)``, the members on the axes of their plates.
        """
        sizes = [site.size for site in self.sites]
        for site, chunk in zip(self.sites, z.split(sizes, -1), strict=True):
            yield site.name, _as_site(site, chunk)


def _as_site(site: LocalSite, chunk: Tensor) -> Tensor:
    """Move the axes of a latent that are no plates of its block to their places."""
    rank = max([-dim for dim, _ in site.own], default=0)
    batch = [1] * (rank - chunk.dim() + 1) + list(chunk.shape[:-1])
    value = chunk.reshape(*batch, *(size for _, size in site.own), *site.event_shape)
    for position, (dim, size) in enumerate(site.own):
        value = value.transpose(len(batch) + dim, len(batch) + position)
        batch[dim] = size
    return value.reshape(*batch, *site.event_shape)


class Layout(NamedTuple):
    """The latents of a model.

    Attributes:
        shapes: The unconstrained shape of each global latent, in the model's order.
        blocks: The others, those that no other block precedes first.
    """

    shapes: dict[str, torch.Size]
    blocks: tuple[Block, ...]

    @property
    def global_dim(self) -> int:
        """Number of unconstrained coordinates of the global latents."""
        return sum(shape.numel() for shape in self.shapes.values())

    def followed_dim(self, block: Block) -> int:
        """Return the number of coordinates that the members of a block follow."""
        return self.global_dim + sum(self.blocks[k].input_dim for k in block.parents)


def layout_of(
    who: str,
    sites: Mapping[str, Site],
    shapes: Mapping[str, torch.Size],
    plates: Iterable[str] | None,
) -> Layout:
    """Sort the latents of a model.

    Args:
        who: Named in messages.
        sites: The latents' sites, by name.
        shapes: Their unconstrained shapes.
        plates: Names of the plates whose members have latents of their own; all that hold latents
            if not given.

    Raises:
        DomainError: A name is not that of a plate with latents, or there is no such plate.
    """
    dims = {frame.name: frame.dim for site in sites.values() for frame in _frames(site)}
    local = set(dims if plates is None else plates)
    if not local or local - set(dims):
        raise _checks.refusal(
            DomainError,
            who,
            expected="plates that hold latents"
            + (f", of which this model has {sorted(dims)}" if dims else ""),
            got=f"{sorted(local - set(dims))}" if dims else "a model without such",
            advice="Put the latents that each member has of its own under `with pyro.plate(...)`."
            if dims
            else "Take AutoFlow.",
        )
    members: dict[tuple[str, ...], list[str]] = {}
    for name, site in sites.items():
        frames = sorted(_frames(site), key=lambda frame: frame.dim)
        members.setdefault(tuple(f.name for f in frames if f.name in local), []).append(name)
    names = members.pop((), [])
    ordered = sorted(members, key=len)
    return Layout(
        {name: shapes[name] for name in names},
        tuple(
            Block(
                within,
                tuple(dims[plate] for plate in within),
                tuple(
                    _local_site(name, sites[name], shapes[name], {dims[plate] for plate in within})
                    for name in members[within]
                ),
                tuple(k for k, other in enumerate(ordered) if set(other) < set(within)),
            )
            for within in ordered
        ),
    )


def _local_site(name: str, site: Site, shape: torch.Size, members: set[int]) -> LocalSite:
    event_dim = event_dim_of(site, shape)
    batch = shape[: len(shape) - event_dim]
    sizes = {dim: batch[dim] for dim in range(-len(batch), 0) if dim not in members}
    own = tuple((dim, size) for dim, size in sizes.items() if size > 1)
    return LocalSite(name, own, shape[len(batch) :])


def _frames(site: Site) -> list[Any]:
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized]
