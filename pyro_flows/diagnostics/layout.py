"""Which axes of a site's values are kept, and what they are called."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from pyro_flows import _checks
from pyro_flows.diagnostics.draws import Draws, Site, data_shape, is_data, is_deterministic
from pyro_flows.errors import DomainError
from pyro_flows.infer.tracer import PARTICLES

Kind = Literal["latent", "deterministic", "data"]

# ArviZ reads these names as the axes of every sample.
SAMPLE_DIMS = ("chain", "draw")


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
        dims: A name for each of these, or none.
    """

    name: str
    label: str
    kind: Kind
    shape: torch.Size
    batch_dim: int
    axes: tuple[int, ...]
    dims: tuple[str | None, ...]

    @property
    def batch_shape(self) -> torch.Size:
        """The shape of the log-density."""
        return self.shape[: self.batch_dim]


@dataclass(frozen=True)
class Layout:
    """The layout of a model.

    Attributes:
        sites: The layout of each site, by its name.
        members: The indices of the members of each plate, by the name of its dim.
        renamed: The name in the model of each site that goes by another in the result.
    """

    sites: dict[str, SiteLayout]
    members: dict[str, np.ndarray]
    renamed: dict[str, str]

    def dims(self) -> dict[str, list[str | None]]:
        """Return the names of the dims of each site, as ArviZ takes them."""
        return {site.label: _named(site.dims) for site in self.sites.values() if any(site.dims)}

    def attrs(self) -> dict[str, str]:
        """Return what the names alone do not say."""
        return {"renamed_sites": json.dumps(self.renamed)} if self.renamed else {}


def layout_of(draws: Draws) -> Layout:
    """Return the layout of a model, from one draw.

    Args:
        draws: The draws.

    Raises:
        DomainError: A name or a number of dims is not possible.
    """
    labels = _label_sites(draws.sites)
    raw = {
        name: _raw_dims(site, draws.event_dims.get(name, ())) for name, site in draws.sites.items()
    }
    names = [dim for _, _, dims in raw.values() for dim in dims if dim is not None]
    dim_labels = _label_dims(names, set(labels.values()))
    sites = {
        name: SiteLayout(
            name,
            labels[name],
            _kind(site),
            _shape(site),
            batch_dim,
            axes,
            tuple(None if dim is None else dim_labels[dim] for dim in dims),
        )
        for (name, site), (batch_dim, axes, dims) in zip(
            draws.sites.items(), raw.values(), strict=True
        )
    }
    sizes = _sizes(sites.values())
    members = {
        dim_labels[plate]: np.asarray(index.cpu())
        for plate, index in draws.members.items()
        if plate in dim_labels and len(index) == sizes[dim_labels[plate]]
    }
    renamed = {label: name for name, label in labels.items() if name != label}
    return Layout(sites, members, renamed)


def _kind(site: Site) -> Kind:
    if is_data(site):
        return "data"
    return "deterministic" if is_deterministic(site) else "latent"


def _shape(site: Site) -> torch.Size:
    if is_deterministic(site):
        return torch.Size(site["value"].shape)
    batch_shape, event_shape = data_shape(site)
    return batch_shape + event_shape


def _raw_dims(site: Site, event_dims: Any) -> tuple[int, tuple[int, ...], tuple[str | None, ...]]:
    """Return the number of batch axes, the axes to keep, and the model's names for them."""
    shape = _shape(site)
    plates = {
        frame.dim: frame
        for frame in site["cond_indep_stack"]
        if frame.vectorized and frame.name != PARTICLES
    }
    batch_dim = len(shape) - _event_dim(site, shape, plates)
    axes: list[int] = []
    dims: list[str | None] = []
    for axis, size in enumerate(shape[:batch_dim]):
        plate = plates.get(axis - batch_dim)
        if plate is not None or size > 1:
            axes.append(axis)
            dims.append(None if plate is None else plate.name)
    axes += range(batch_dim, len(shape))
    dims += _check_event_dims(site["name"], event_dims, len(shape) - batch_dim)
    named = [dim for dim in dims if dim is not None]
    if len(set(named)) < len(named):
        raise _checks.refusal(
            DomainError,
            "to_arviz",
            expected=f"dims of the site {site['name']!r} with a name each",
            got=", ".join(named),
            advice="Rename its event_dims.",
        )
    return batch_dim, tuple(axes), tuple(dims)


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


def _check_event_dims(site: str, names: Any, event_dim: int) -> list[str | None]:
    listed = list(names) if isinstance(names, Sequence) and not isinstance(names, str) else None
    if listed is None or len(listed) > event_dim or not all(isinstance(n, str) for n in listed):
        raise _checks.refusal(
            DomainError,
            "to_arviz",
            expected=f"event_dims of the site {site!r} to be up to {event_dim} names",
            got=f"{names!r}",
            advice='Pass infer={"event_dims": [...]}, a name for each axis of an event.',
        )
    return listed + [None] * (event_dim - len(listed))


def _label_sites(names: Iterable[str]) -> dict[str, str]:
    labels = {name: name.replace("/", ".") for name in names}
    uses = Counter(labels.values())
    for name, label in labels.items():
        if not name or name in SAMPLE_DIMS or uses[label] > 1:
            raise _checks.refusal(
                DomainError,
                "to_arviz",
                expected="names of sites that can be told apart, and from ArviZ's own dims",
                got=f"{name!r}" + (f", which becomes {label!r}" if name != label else ""),
                advice="Rename the site; poutine.scope can do so from outside.",
            )
    return labels


def _label_dims(names: Iterable[str], taken: set[str]) -> dict[str, str]:
    """Return names for dims that no site and no other dim has, and no file refuses."""
    labels: dict[str, str] = {}
    taken = taken.union(SAMPLE_DIMS)
    for name in dict.fromkeys(names):
        label = name.replace("/", ".") or "dim"
        while label in taken:
            label += "_dim"
        labels[name] = label
        taken.add(label)
    return labels


def _sizes(sites: Iterable[SiteLayout]) -> dict[str, int]:
    sizes: dict[str, tuple[int, str]] = {}
    for site in sites:
        for axis, dim in zip(site.axes, site.dims, strict=True):
            if dim is None:
                continue
            size = site.shape[axis]
            known, first = sizes.setdefault(dim, (size, site.name))
            if known != size:
                raise _checks.refusal(
                    DomainError,
                    "to_arviz",
                    expected=f"one size of the dim {dim!r}",
                    got=f"{known} at the site {first!r}, {size} at {site.name!r}",
                    advice="Rename the dim at one of them.",
                )
    return {dim: size for dim, (size, _) in sizes.items()}


def _named(dims: tuple[str | None, ...]) -> list[str | None]:
    """Leave out what ArviZ names by itself, at the end."""
    last = max(position for position, dim in enumerate(dims) if dim is not None)
    return list(dims[: last + 1])
