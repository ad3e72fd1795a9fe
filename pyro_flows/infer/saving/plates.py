"""What a file holds of a guide for models with plates, and how that is put into a new one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_flows import flows
from pyro_flows.checkpoint import JSON, Checkpoint, check_matches, layout
from pyro_flows.distributions import Flow
from pyro_flows.flows.registry import named
from pyro_flows.infer.guides.gaussian import Start
from pyro_flows.infer.guides.plates.encoders import Source
from pyro_flows.infer.guides.plates.guide import AutoPlateFlow
from pyro_flows.infer.guides.plates.layout import Layout
from pyro_flows.infer.guides.plates.members import MemberStart
from pyro_flows.infer.guides.plates.parts import (
    MemberRecipe,
    Parts,
    make_parts,
    member_flow,
)
from pyro_flows.infer.guides.plates.start import Starts
from pyro_flows.infer.random import aside
from pyro_flows.infer.saving.probe import differs, probe
from pyro_flows.infer.saving.record import described

_DEFAULT = "member_flow"


class SavedRecipe(NamedTuple):
    """A recipe in a record: its registered name and options, or the name of a function."""

    recipe: JSON
    function: str


def saved_recipe(recipe: flows.Recipe | MemberRecipe) -> SavedRecipe:
    """Return what a file can hold of a recipe.

    Args:
        recipe: The recipe.
    """
    if recipe is member_flow:
        return SavedRecipe({"name": _DEFAULT, "options": {}}, "")
    found = named(recipe)
    function: Any = recipe
    # For the message that asks for it again.
    name = "" if found else getattr(function, "__qualname__", repr(type(function)))
    return SavedRecipe(None if found is None else found._asdict(), name)


def is_default(recipe: Any) -> bool:
    """Whether a recipe in a record is that of members' flows if no other is asked for."""
    return isinstance(recipe, Mapping) and recipe.get("name") == _DEFAULT


def record_of(guide: AutoPlateFlow) -> dict[str, JSON]:
    """Return a guide's record.

    Args:
        guide: One that is set up.
    """
    recipe, of_members = saved_recipe(guide.recipe), saved_recipe(guide.member_recipe)
    parents = {name: sorted(others) for name, others in guide.parents.items()}
    return {
        "class": "AutoPlateFlow",
        "recipe": recipe.recipe,
        "function": recipe.function,
        "member_recipe": of_members.recipe,
        "member_function": of_members.function,
        "plates": guide.local_plates,
        "embed": guide.embed,
        "latents": list(_latents(guide, guide._sources)),
        "parents": parents,
        "origin": guide.origin,
        "gradient": guide.gradient,
    }


def tensors_of(parts: Parts) -> dict[str, Tensor]:
    """Return a guide's weights, and some draws of its flows, by name.

    Args:
        parts: The guide's modules.
    """
    tensors = {f"weights/{name}": tensor for name, tensor in parts.state_dict().items()}
    for number, flow in enumerate(_flows(parts)):
        tensors |= {f"probe_{number}/{name}": value for name, value in probe(flow).items()}
    return tensors


def _flows(parts: Parts) -> list[Flow]:
    found = [] if parts.of_globals is None else [parts.of_globals]
    return found + [part.flow for part in parts.blocks]


def _latents(guide: AutoPlateFlow, sources: Sequence[Source]) -> Iterator[str]:
    """Describe the latents, so that those of another model read otherwise."""
    sites = guide.sites
    for name, shape in guide.layout.shapes.items():
        yield f"{name!r} of shape {tuple(shape)} in {described(sites[name]['fn'].support)}"
    for block, source in zip(guide.layout.blocks, sources, strict=True):
        where = [
            f"{plate!r} of {guide.table_sizes[plate]}" if source.has_tables else repr(plate)
            for plate in block.plates
        ]
        how = f", encoded by {source.length} numbers" if source.encoder else ""
        for site in block.sites:
            own = "".join(f", {size} at axis {dim}" for dim, size in site.own)
            support = described(sites[site.name]["fn"].support)
            yield (
                f"{site.name!r} of shape {tuple(site.event_shape)}{own} for each member of "
                f"{' and '.join(where)} in {support}{how}"
            )


class SavedParts(NamedTuple):
    """What a file holds of a guide, until the guide is set up.

    Attributes:
        found: The file.
        latents: What it says of the latents, in words.
        dtype: Of these, by name.
        parents: For each latent the latents whose values its prior is given.
        building: Returns the context to build the modules in.
    """

    found: Checkpoint
    latents: list[str]
    dtype: str
    parents: dict[str, frozenset[str]]
    building: Callable[[], AbstractContextManager[Any]]

    def parts_for(
        self,
        guide: AutoPlateFlow,
        dtype: torch.dtype,
        sources: Sequence[Source],
    ) -> Parts:
        """Return the modules, if the guide's latents are those of the file.

        Args:
            guide: The guide, whose layout is known.
            dtype: Of its latents.
            sources: What tells the members of each block apart.
        """
        found = self.found
        ours = list(_latents(guide, sources))
        kind = str(dtype).removeprefix("torch.")
        if ours != self.latents or self.dtype != kind:
            raise layout.refusal(
                "load",
                found.path,
                expected="a guide of the model's latents in",
                got=f"{'; '.join(self.latents)} ({self.dtype}) where the model has "
                f"{'; '.join(ours)} ({kind})",
                advice="Load it with the model, encoders and sizes that it was saved with. "
                + layout.written_by(found.versions),
            )
        starts = _placeholders(guide, self.parents, sources)
        recipes = guide.recipe, guide.member_recipe
        with aside(), self.building():
            parts = make_parts("load", guide.layout, starts, recipes, sources).to(dtype)
        check_matches("load", found.part("weights"), parts.state_dict())
        parts.load_state_dict(found.part("weights").tensors)
        for number, flow in enumerate(_flows(parts)):
            difference = differs(flow, found.part(f"probe_{number}").tensors)
            if difference:
                raise layout.refusal(
                    "load",
                    found.path,
                    expected="the flows that were saved in",
                    got=f"one of the same sizes with {difference}",
                    advice="Pass the recipes it was built by as flow=... and member_flow=...",
                )
        return parts


def _placeholders(
    guide: AutoPlateFlow,
    parents: dict[str, frozenset[str]],
    sources: Sequence[Source],
) -> Starts:
    of_layout: Layout = guide.layout
    number, of_globals = of_layout.global_dim, None
    if number:
        of_globals = Start(torch.zeros(number), torch.ones(number), "")
    of_blocks = []
    for block, source in zip(of_layout.blocks, sources, strict=True):
        plates = block.plates if source.has_tables else ()
        sizes = [guide.table_sizes[plate] for plate in plates]
        size = block.input_dim
        of_blocks.append(
            MemberStart(
                torch.zeros(*sizes, size),
                torch.eye(size).expand(*sizes, size, size),
                torch.zeros(*sizes, size, of_layout.followed_dim(block)),
                whitened=True,
            )
        )
    return Starts(of_globals, tuple(of_blocks), parents, "")
