"""Which axes of a site's values are kept, and what they are called."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from pyro_flows import _checks
from pyro_flows.diagnostics import names
from pyro_flows.diagnostics.draws import Draws
from pyro_flows.diagnostics.sites import data_shape, is_data, is_deterministic
from pyro_flows.errors import DomainError
from pyro_flows.infer.tracer import PARTICLES, Site

Kind = Literal["latent", "deterministic", "data"]


@dataclass(frozen=True)
class SiteLayout:
    """The values of a site in one draw.

    Attributes:
        name: The name in the model.
        label: The name in the result.
        kind: Latent, deterministic or data.
        shape: The shape of the values, all plates included.
        batch_dim: How many of its axes precede those of an event.
        axes: The axes that are kept; an axis that Pyro put between two plates is not.
        dims: A name for each of these.
    """

    name: str
    label: str
    kind: Kind
    shape: torch.Size
    batch_dim: int
    axes: tuple[int, ...]
    dims: tuple[str, ...]

    @property
    def batch_shape(self) -> torch.Size:
        """The shape of the log-density."""
        return self.shape[: self.batch_dim]


@dataclass(frozen=True)
class Layout:
    """The layout of a model.

    Attributes:
        sites: The layout of each site, by its name.
        constants: The dims of each constant, by its name in the result.
        labels: The name in the result of each site and constant.
        members: The coordinates of each dim, if they are not plain numbers.
    """

    sites: dict[str, SiteLayout]
    constants: dict[str, tuple[str, ...]]
    labels: dict[str, str]
    members: dict[str, np.ndarray]

    def dims(self, label: str, count: int) -> tuple[str, ...]:
        """Return the names of the first axes of a variable; none of a plain statistic.

        Args:
            label: Its name in the result.
            count: Number of axes: those of an event are missing from a log-density.
        """
        if label in self.constants:
            return self.constants[label]
        dims = next((site.dims for site in self.sites.values() if site.label == label), ())
        return dims[:count]

    def attrs(self) -> dict[str, str]:
        """Return what the names alone do not say."""
        renamed = {label: name for name, label in self.labels.items() if name != label}
        return {"renamed_sites": json.dumps(renamed)} if renamed else {}


@dataclass(frozen=True)
class Naming:
    """What a user says of names.

    Attributes:
        dims: The names of the axes of a site or constant, by its name.
        coords: The names of the members of a dim, by its name.
        constants: The constants.
    """

    dims: Mapping[str, Any] = field(default_factory=dict)
    coords: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)


class _Axes(NamedTuple):
    """The axes of a site, or of a constant, with the model's or the user's names for them."""

    shape: torch.Size
    batch_dim: int
    kept: tuple[int, ...]
    names: tuple[str, ...]


def layout_of(draws: Draws, naming: Naming | None = None) -> Layout:
    """Return the layout of a model, from one draw.

    Args:
        draws: The draws.
        naming: What the user says of names.

    Raises:
        DomainError: A name, a number of dims or of coordinates is not possible.
    """
    naming = naming or Naming()
    labels = names.label_variables([*draws.sites, *naming.constants])
    names.check_known("dims", naming.dims, labels)
    axes = {
        name: _site_axes(site, labels[name], draws.event_dims.get(name, ()), naming.dims.get(name))
        for name, site in draws.sites.items()
    }
    constants = {
        name: _constant_axes(name, labels[name], array.shape, naming.dims.get(name))
        for name, array in naming.constants.items()
    }
    sizes = _sizes({**axes, **constants})
    renamed = names.label_dims(sizes, labels.values())
    sites = {
        name: SiteLayout(
            name,
            labels[name],
            _kind(draws.sites[name]),
            found.shape,
            found.batch_dim,
            found.kept,
            tuple(renamed[dim] for dim in found.names),
        )
        for name, found in axes.items()
    }
    constant_dims = {
        labels[name]: tuple(renamed[dim] for dim in found.names)
        for name, found in constants.items()
    }
    members = _members(draws, naming.coords, sizes)
    members = {renamed[dim]: values for dim, values in members.items()}
    return Layout(sites, constant_dims, labels, members)


def _site_axes(site: Site, label: str, event_dims: Any, dims: Any) -> _Axes:
    shape, name = _shape(site), site["name"]
    plates = {
        frame.dim: frame
        for frame in site["cond_indep_stack"]
        if frame.vectorized and frame.name != PARTICLES
    }
    batch_dim = len(shape) - _event_dim(site, shape, plates)
    kept: dict[int, str | None] = {}
    for axis, size in enumerate(shape[:batch_dim]):
        plate = plates.get(axis - batch_dim)
        if plate is not None or size > 1:
            kept[axis] = None if plate is None else plate.name
    events = range(batch_dim, len(shape))
    given = names.check_names(
        f"event_dims of the site {name!r}", event_dims, len(events), exact=False
    )
    kept |= dict.fromkeys(events) | dict(zip(events, given, strict=False))
    named = _all_named(label, kept.values())
    if dims is not None:
        named = tuple(names.check_names(f"dims[{name!r}]", dims, len(kept), exact=True))
    if len(set(named)) < len(named):
        raise _checks.refusal(
            DomainError,
            "to_arviz",
            expected=f"dims of the site {name!r} with a name each",
            got=", ".join(named),
            advice="Rename its event_dims.",
        )
    return _Axes(shape, batch_dim, tuple(kept), named)


def _constant_axes(name: str, label: str, shape: tuple[int, ...], dims: Any) -> _Axes:
    named = _all_named(label, [None] * len(shape))
    if dims is not None:
        named = tuple(names.check_names(f"dims[{name!r}]", dims, len(shape), exact=True))
    return _Axes(torch.Size(shape), len(shape), tuple(range(len(shape))), named)


def _kind(site: Site) -> Kind:
    if is_data(site):
        return "data"
    return "deterministic" if is_deterministic(site) else "latent"


def _shape(site: Site) -> torch.Size:
    if is_deterministic(site):
        return torch.Size(site["value"].shape)
    batch_shape, event_shape = data_shape(site)
    return batch_shape + event_shape


def _event_dim(site: Site, shape: torch.Size, plates: dict[int, Any]) -> int:
    event_dim = int(site["fn"].event_dim)
    if not is_deterministic(site) or event_dim < len(shape):
        return event_dim
    # Without event_dim, pyro.deterministic takes every axis for one of the event.
    batch_dim = max((-dim for dim in plates), default=0)
    fits = batch_dim <= len(shape) and all(
        shape[batch_dim + dim] == plate.size for dim, plate in plates.items()
    )
    return len(shape) - batch_dim if fits else len(shape)


def _all_named(label: str, given: Iterable[str | None]) -> tuple[str, ...]:
    """Name the axes that have no name as ArviZ does."""
    return tuple(f"{label}_dim_{i}" if name is None else name for i, name in enumerate(given))


def _sizes(axes: Mapping[str, _Axes]) -> dict[str, int]:
    """Return the size of each dim, in the order in which they come."""
    sizes: dict[str, tuple[int, str]] = {}
    for variable, found in axes.items():
        for axis, dim in zip(found.kept, found.names, strict=True):
            size = found.shape[axis]
            known, first = sizes.setdefault(dim, (size, variable))
            if known != size:
                raise _checks.refusal(
                    DomainError,
                    "to_arviz",
                    expected=f"one size of the dim {dim!r}",
                    got=f"{known} at the site {first!r}, {size} at {variable!r}",
                    advice="Rename the dim at one of them.",
                )
    return {dim: size for dim, (size, _) in sizes.items()}


def _members(
    draws: Draws, coords: Mapping[str, Any], sizes: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Return the coordinates of each dim that has any, by the model's name."""
    names.check_known("coords", coords, sizes)
    plates = {
        plate: np.asarray(index.cpu())
        for plate, index in draws.members.items()
        if sizes.get(plate) == len(index)
    }
    full_sizes = draws.plate_sizes
    given = {
        dim: names.check_members(
            dim, values, full_sizes[dim] if dim in plates else sizes[dim], plates.get(dim)
        )
        for dim, values in coords.items()
    }
    return plates | given
