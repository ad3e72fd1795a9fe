"""A guide for models whose plates hold latents: flows whose parameters members share."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Protocol, cast

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger, init_to_median
from torch import Tensor
from torch.distributions import biject_to

from pyro_flows import _checks, flows
from pyro_flows.errors import DomainError
from pyro_flows.flows.registry import find_for_guide
from pyro_flows.infer.guides.auto_flow import or_origin
from pyro_flows.infer.guides.flow_guide import FlowGuide, num_fixed_draws
from pyro_flows.infer.guides.hierarchy import Parents
from pyro_flows.infer.guides.latents import event_dim_of
from pyro_flows.infer.guides.model_check import ModelCheck
from pyro_flows.infer.guides.plates.encoders import (
    Encode,
    Source,
    encoded,
    is_index,
    sources_of,
    tried,
)
from pyro_flows.infer.guides.plates.layout import Block, Layout, layout_of
from pyro_flows.infer.guides.plates.members import joined
from pyro_flows.infer.guides.plates.parts import MemberRecipe, Parts, make_parts, member_flow
from pyro_flows.infer.guides.plates.plates_of_model import SeenPlate, look_for_plates
from pyro_flows.infer.guides.plates.start import find_starts
from pyro_flows.infer.guides.sites import at_its_site
from pyro_flows.infer.guides.start import StartFn
from pyro_flows.infer.random import seeded

logger = logging.getLogger("pyro_flows")

Site = Any


class SavedPlates(Protocol):
    """What a file holds of a guide, until the guide is set up."""

    def parts_for(
        self,
        guide: "AutoPlateFlow",
        dtype: torch.dtype,
        sources: Sequence[Source],
    ) -> Parts:
        """Return the modules, if the guide's latents are those of the file."""
        ...


class AutoPlateFlow(FlowGuide):
    r"""Approximate the posterior of a model whose plates hold latents, whole or subsampled.

    .. math:: q(g) \prod_n q(z_n \mid g, c_n)

    A flow over the global latents :math:`g` stands where an :class:`~pyro_flows.AutoFlow` would
    have it. All members of a plate share one conditional flow over all their latents :math:`z_n`,
    which follows the global ones, so that funnels between scales and the latents below them are
    captured. What a member has of its own, :math:`c_n`, is an affine map and an embedding, for
    plates of a fixed size, or what an encoder says of it, for any number of members, new ones
    among them, or both. Members of a plate within another follow the latents of the outer one as
    well. Where plates cross, latents of different plates are independent given the global ones.
    Ragged groups are padded, and their likelihood masked by ``pyro.poutine.mask``.

    The members' latents stand in plates of the guide, which draws the subsamples; those that the
    model asks for, by ``subsample=``, it sees by running the model up to its plates.

    Args:
        model: A Pyro model whose latents are continuous.
        flow: The recipe of the global flow, as for :class:`~pyro_flows.AutoFlow`.
        member_flow: The recipe of the members' flows: a function of the number of coordinates of
            a member and ``context_dim``, such as ``pf.flows.nsf``, or its name; splines,
            couplings and a conditional affine map if not given.
        encode: A module or a function ``(indices, *args, **kwargs)``, of a plate's members and
            the model's arguments, that returns a tensor of shape ``(len(indices), C)``; for
            several plates a dictionary by their names. Latents in two plates have the tuple of
            both names for a key, ``(indices, indices, ...)`` for arguments and two leading axes.
        embed: Whether members with an encoder have an affine map and an embedding of their own as
            well, which ties the guide to these members.
        plates: Names of the plates whose members have latents of their own; all that hold latents
            if not given. The latents of other plates are global.
        start: As for :class:`~pyro_flows.AutoFlow`. Of a subsampled plate, the search sees one
            subsample; other members begin where these lie on average.
        init_loc_fn: As for :class:`~pyro_flows.AutoFlow`.
        create_plates: As for Pyro's guides, returns the plates that ``model`` subsamples.
        gradient: ``"path"`` or ``"total"``.

    Raises:
        DomainError: An argument is not possible. On setting up: a latent is discrete, or stands
            in a sequential plate; no plate holds latents; an encoder hides parameters. In use: a
            plate without an encoder has another size than before.
        ShapeError: A recipe returns a flow of another size, or an encoder's output does not fit
            the plate.

    Reference:
        Agrawal & Domke (2021), *Amortized variational inference for simple hierarchical models*;
        Kingma & Welling (2014), *Auto-encoding variational Bayes*.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
        ...     with pyro.plate("rows", len(y), subsample_size=5) as rows:
        ...         z = pyro.sample("z", dist.Normal(mean, 1.0))
        ...         pyro.sample("y", dist.Normal(z, 1.0), obs=y[rows])
        >>> guide = AutoPlateFlow(model)
        >>> guide(torch.zeros(20))["z"].shape
        torch.Size([5])
        >>> guide.median(torch.zeros(20))["z"].shape
        torch.Size([20])
    """

    _attribute = "parts"

    def __init__(
        self,
        model: Callable[..., Any],
        flow: str | flows.Recipe = "realnvp",
        *,
        member_flow: str | MemberRecipe = member_flow,
        encode: Encode | None = None,
        embed: bool = False,
        plates: Iterable[str] | None = None,
        start: str | StartFn = "auto",
        init_loc_fn: Callable[..., Tensor] | None = None,
        create_plates: Callable[..., Any] | None = None,
        gradient: str = "path",
    ) -> None:
        self._check_model(model)
        checked = ModelCheck(self._who, may_subsample=self._may_subsample)(model)
        init = InitMessenger(or_origin(init_loc_fn or init_to_median))
        super().__init__(init(checked), create_plates=create_plates)
        self._own(model, start, gradient)
        self.recipe = find_for_guide(flow)
        self.member_recipe: MemberRecipe = flows.find(member_flow)
        self._init_loc_fn = init_loc_fn
        self._encode, self.embed = encode, bool(embed)
        self.local_plates = None if plates is None else sorted(plates)
        self.layout = Layout({}, ())
        self.parents: Parents = {}
        self.origin = ""
        # Of a file, until the model's arguments are there to compare its latents with.
        self._saved: SavedPlates | None = None
        self._sources: list[Source] = []
        # Of the plates: the sizes of those with tables, and which have all members in order.
        self.table_sizes: dict[str, int] = {}
        self._whole: set[str] = set()
        self._last_seen: dict[str, SeenPlate] = {}
        self._takes_all = False

    def _may_subsample(self, plate: str) -> bool:
        return self.local_plates is None or plate in self.local_plates

    def _build(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sites = self.sites
        self.latent_dim = len(sites)
        if not sites:
            raise RuntimeError("no latents")
        shapes = {
            name: biject_to(site["fn"].support).inv(site["value"]).shape
            for name, site in sites.items()
        }
        self.layout = layout_of(self._who, sites, shapes, self.local_plates)
        self.latent_dim = self.layout.global_dim + max(b.input_dim for b in self.layout.blocks)
        self._sources = sources_of(self._who, self.layout, self._encode, embed=self.embed)
        self.table_sizes = self._sizes_of_tables()
        self._create_plates(*args, **kwargs)
        self._sources = [
            tried(self._who, block, source, self._members(block), (args, kwargs))
            for block, source in self._blocks()
        ]
        for block, source in self._blocks():
            self._rows(block, source)
        if self._saved is not None:
            values = [site["value"] for site in sites.values()]
            self.parts = self._saved.parts_for(self, values[0].dtype, self._sources)
            self.parts.to(values[0].device)
            self._saved = None
            return
        logger.info("%s: looks for a start", self._who)
        starts = find_starts(
            self._bare_model[0],
            self.layout,
            self._sources,
            self.table_sizes,
            (args, kwargs),
            start=self._start_fn,
            init_loc_fn=self._init_loc_fn,
        )
        self.parents, self.origin = starts.parents, starts.origin
        recipes = self.recipe, self.member_recipe
        self.parts = make_parts(self._who, self.layout, starts, recipes, self._sources)

    @property
    def sites(self) -> dict[str, Site]:
        """The latents' sites in the model, by name, once the guide is set up."""
        prototype: Any = self.prototype_trace
        return dict(prototype.iter_stochastic_nodes())

    def _blocks(self) -> Iterator[tuple[Block, Source]]:
        return zip(self.layout.blocks, self._sources, strict=True)

    def _members(self, block: Block) -> list[Tensor]:
        return [self.plates[name].indices for name in block.plates]

    def _sizes_of_tables(self) -> dict[str, int]:
        """Return the sizes of the plates whose members have something of their own."""
        names = {n for block, source in self._blocks() if source.has_tables for n in block.plates}
        frames = {name: self._prototype_frames[name] for name in names}
        return {name: frame.full_size or frame.size for name, frame in frames.items()}

    def _create_plates(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if self.master is not None:
            return super()._create_plates(*args, **kwargs)
        made: Any = [] if self.create_plates is None else self.create_plates(*args, **kwargs)
        made = [made] if isinstance(made, pyro.plate) else made
        self.plates = {plate.name: plate for plate in made}
        self._whole = set()
        missing = set(self._prototype_frames) - set(self.plates)
        for name, seen in self._seen(missing, args, kwargs).items():
            self.plates[name] = pyro.plate(
                name,
                seen.size,
                subsample_size=seen.subsample_size if seen.subsample is None else None,
                subsample=seen.subsample,
                dim=self._prototype_frames[name].dim,
            )
            if seen.is_whole:
                self._whole.add(name)
        self._check_sizes()
        return self.plates

    def _seen(
        self, names: set[str], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> dict[str, SeenPlate]:
        """Return some plates as the model makes them, or, without the model, made them."""
        if not names:
            return {}
        if self._bare_model is not None:
            values = {name: site["value"] for name, site in self.sites.items()}
            model = self._bare_model[0]
            self._last_seen = look_for_plates(
                self._who, names, values, lambda: model(*args, **kwargs)
            )
        elif any(source.encoder for source in self._sources) or any(
            seen.subsample is not None for seen in self._last_seen.values()
        ):
            raise _checks.refusal(
                DomainError,
                self._who,
                expected="the model, to see which members it asks for",
                got="a guide that was pickled, without its model",
                advice="Save it with pyro_flows.save, and load it with the model.",
            )
        if not self._takes_all:
            return self._last_seen
        whole = {
            name: seen._replace(subsample_size=None) for name, seen in self._last_seen.items()
        }
        return {**self._last_seen, **whole}

    def _check_sizes(self) -> None:
        for name, size in self.table_sizes.items():
            if self.plates[name].size != size:
                raise _checks.refusal(
                    DomainError,
                    self._who,
                    expected=f"{size} members of the plate {name!r}, as when it was set up",
                    got=f"{self.plates[name].size}",
                    advice="Each has parameters of its own. Make a new guide, or pass an encoder, "
                    f"encode={{{name!r}: ...}}, which serves any number of members.",
                )

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw all latents, each at a site of its name.

        Args:
            *args: The model's arguments.
            **kwargs: The model's keyword arguments.
        """
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        drawn = self._draw(args, kwargs)
        return {name: at_its_site(site, drawn[name], plates) for name, site in self.sites.items()}

    def _draw(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        """Draw the unconstrained value of each latent."""
        parts = cast(Parts, self._ready())
        path_gradient = self.gradient == "path"
        drawn: dict[str, Tensor] = {}
        followed: list[Tensor] = []
        if parts.of_globals is not None:
            posterior = parts.of_globals.with_draw_kept(path_gradient=path_gradient)
            z = self._auxiliary("global", posterior, ())
            drawn.update(self._unpacked(z))
            followed.append(parts.standardised(z))
        standardised: list[Tensor] = []
        for (block, source), part in zip(self._blocks(), parts.blocks, strict=True):
            feature, of_model = None, (args, kwargs)
            if source.encoder is not None:
                members = self._members(block)
                feature = encoded(self._who, block, source.encoder, members, of_model)
            posterior = part.distribution(
                block,
                self._rows(block, source),
                _joined([*followed, *(standardised[k] for k in block.parents)]),
                feature,
                path_gradient=path_gradient,
            )
            z = self._auxiliary("_".join(block.plates), posterior, block.plates)
            drawn.update(block.unpack(z))
            standardised.append(part.members.standardised(z))
        return drawn

    def _auxiliary(self, name: str, posterior: Any, plates: Sequence[str]) -> Tensor:
        with ExitStack() as stack:
            for plate in plates:
                stack.enter_context(self.plates[plate])
            site = f"_{self._pyro_name}_{name}"
            return pyro.sample(site, posterior, infer={"is_auxiliary": True})

    def _rows(self, block: Block, source: Source) -> list[Tensor | None]:
        """Return the places in tables of the members of each plate; none for all."""
        rows: list[Tensor | None] = []
        for name in block.plates if source.has_tables else ():
            index = self.plates[name].indices
            if not is_index(index):
                raise _checks.refusal(
                    DomainError,
                    self._who,
                    expected=f"subsample={name!r}'s members by their numbers, an int64 tensor",
                    got=_checks.describe(index),
                    advice="Pass the rows' numbers as subsample=, or an encoder to the guide.",
                )
            rows.append(
                None if name in self._whole and len(index) == self.table_sizes[name] else index
            )
        return rows

    def _unpacked(self, z: Tensor) -> dict[str, Tensor]:
        """Return the global latents of a vector, particles on the axes that it has."""
        values, position = {}, 0
        for name, shape in self.layout.shapes.items():
            site = self.sites[name]
            event_dim = event_dim_of(site, shape)
            chunk = z[..., position : position + shape.numel()]
            batch = z.shape[:-1] + (1,) * event_dim
            values[name] = chunk.reshape(torch.broadcast_shapes(shape, batch))
            position += shape.numel()
        return values

    def _fixed_draws(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        """Return draws for all members, but for those that the model asks for by name."""
        nesting = max(-frame.dim for frame in self._prototype_frames.values())
        self._takes_all = True
        try:
            num = num_fixed_draws(max(self.latent_dim, *self.table_sizes.values(), 1))
            with (
                seeded(self._who, 0),
                poutine.block(),
                pyro.plate("_draws", num, dim=-1 - nesting),
            ):
                drawn = self(*args, **kwargs)
        finally:
            self._takes_all = False
        ranks = {name: site["value"].dim() for name, site in self.sites.items()}
        return {
            name: value.reshape(num, *value.shape[value.dim() - ranks[name] :])
            for name, value in drawn.items()
        }


def _joined(parts: list[Tensor]) -> Tensor | None:
    return joined(parts) if parts else None
