"""What a guide's file says of its latents."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from pyro.infer.autoguide.guides import AutoContinuous
from torch import Tensor
from torch.distributions.constraints import Constraint

from pyro_flows.checkpoint import JSON
from pyro_flows.infer.guides.posterior_graph import Dependence, Graph

# More numbers than these are told by their range and mean.
_MOST_NUMBERS = 8


class Site(NamedTuple):
    """A latent in a file.

    Attributes:
        name: Its site's name.
        shape: Of its value.
        unconstrained_shape: Of its unconstrained coordinates.
        support: Where it lies, in words.
    """

    name: str
    shape: list[int]
    unconstrained_shape: list[int]
    support: str

    def __str__(self) -> str:
        sizes = ""
        if self.shape != self.unconstrained_shape:
            sizes = f" by {tuple(self.unconstrained_shape)}"
        return f"{self.name!r} of shape {tuple(self.shape)}{sizes} in {self.support}"

    @property
    def size(self) -> int:
        """Number of unconstrained coordinates."""
        return torch.Size(self.unconstrained_shape).numel()


def sites_of(guide: AutoContinuous) -> list[Site]:
    """Return a guide's latents in their order, once it is set up."""
    trace: Any = guide.prototype_trace
    return [
        Site(
            name,
            list(site["value"].shape),
            list(guide._unconstrained_shapes[name]),
            described(site["fn"].support),
        )
        for name, site in trace.iter_stochastic_nodes()
    ]


def sites_in(record: Mapping[str, Any]) -> list[Site]:
    """Return the latents of a record; a ValueError or a TypeError where they are none."""
    sites = [Site(**entry) for entry in record["sites"]]
    for site in sites:
        texts = isinstance(site.name, str) and isinstance(site.support, str)
        sizes = [*site.shape, *site.unconstrained_shape]
        if not texts or not all(type(size) is int and size >= 0 for size in sizes):
            raise ValueError(f"a latent {site!r}")
    return sites


def parents_in(record: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """Return for each latent those that its prior is given; a ValueError where there is none."""
    parents = {name: frozenset(others) for name, others in record["parents"].items()}
    latents = {site.name for site in sites_in(record)}
    for others in parents.values():
        if not all(isinstance(other, str) for other in others) or others & latents - set(parents):
            raise ValueError(f"parents {parents!r}")
    return parents


def graph_in(record: Mapping[str, Any]) -> Graph | None:
    """Return the graph that a record's flow follows; a ValueError where it is none."""
    if record.get("graph") is None:
        return None
    names = [site.name for site in sites_in(record)]
    graph: dict[str, Dependence] = {}
    for site in sites_in(record):
        entry = record["graph"][site.name]
        parents = {name: frozenset(plates) for name, plates in entry["parents"].items()}
        dependence = Dependence(dict(entry["plates"]), frozenset(entry["dense"]), parents)
        axes = set(dependence.plates.values())
        earlier = set(names[: names.index(site.name)])
        if not axes <= set(range(len(site.unconstrained_shape))) or set(parents) - earlier:
            raise ValueError(f"the dependence {dependence!r} of {site.name!r}")
        if any(plates - graph[name].plates.keys() for name, plates in parents.items()):
            raise ValueError(f"the plates {parents!r} of {site.name!r}")
        graph[site.name] = dependence
    return graph


def record_of_graph(graph: Graph | None) -> JSON:
    """Return the graph that a flow follows as JSON."""
    if graph is None:
        return None
    return {
        name: {
            "plates": dict(dependence.plates),
            "dense": sorted(dependence.dense),
            "parents": {other: sorted(plates) for other, plates in dependence.parents.items()},
        }
        for name, dependence in graph.items()
    }


def record_of_site(site: Site) -> dict[str, JSON]:
    """Return a latent as JSON."""
    return dict(site._asdict())


def described(support: Constraint) -> str:
    """Name a support with its bounds, the same on every device.

    Args:
        support: The support.
    """
    # Some keep what they were made of besides what they are.
    held = {key: value for key, value in vars(support).items() if key != "_is_discrete"}
    words = [f"{key.lstrip('_')}={_bound(value)}" for key, value in held.items()]
    return f"{type(support).__name__.lstrip('_')}({', '.join(words)})"


def _bound(value: Any) -> str:
    if isinstance(value, Constraint):
        return described(value)
    if isinstance(value, Tensor):
        value = value.detach()
        if value.numel() > _MOST_NUMBERS:
            numbers = [float(value.min()), float(value.max()), float(value.double().mean())]
            return f"{tuple(value.shape)} numbers of range and mean {_bound(numbers)}"
        return _bound(value.tolist())
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_bound, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
