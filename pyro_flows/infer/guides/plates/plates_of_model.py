"""The plates that a model makes for some arguments, seen before the guide draws."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to

from pyro_flows import _checks
from pyro_flows.errors import DomainError

Site = Any


class SeenPlate(NamedTuple):
    """A plate that a model makes.

    Attributes:
        size: Number of all members.
        subsample_size: Number of members that it draws; none for all.
        subsample: The members that the model asks for; none if it leaves them to the plate.
    """

    size: int
    subsample_size: int | None
    subsample: Any

    @property
    def is_whole(self) -> bool:
        """Whether all members are there, in their order."""
        draws = self.subsample_size is not None and self.subsample_size < self.size
        return self.subsample is None and not draws


class _AllSeen(Exception):  # noqa: N818 - no error
    """The plates that were looked for are known: the rest of the model need not run."""


class _Look(Messenger):
    """Note plates, and let nothing be drawn."""

    def __init__(self, names: Iterable[str], values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names, self._values = set(names), values
        self.seen: dict[str, SeenPlate] = {}

    def _pyro_sample(self, msg: Site) -> None:
        if site_is_subsample(msg):
            name, fn, subsample = msg["name"], msg["fn"], msg["value"]
            if name in self._names:
                self.seen[name] = SeenPlate(fn.size, fn.subsample_size, subsample)
            if self._names <= set(self.seen):
                raise _AllSeen
            if subsample is None:
                msg["value"] = torch.arange(min(fn.subsample_size or fn.size, fn.size))
        elif msg["value"] is None:
            msg["value"] = self._value(msg)

    def _value(self, site: Site) -> Tensor:
        value, shape = self._values.get(site["name"]), site["fn"].shape()
        if value is not None and value.shape == shape:
            return value
        try:
            transform = biject_to(site["fn"].support)
        except NotImplementedError:
            return site["fn"].sample()
        origin = torch.zeros(transform.inverse_shape(shape))
        return transform(origin if value is None else origin.to(value))


@torch.no_grad()
def look_for_plates(
    who: str, names: Iterable[str], values: Mapping[str, Tensor], model: Callable[[], Any]
) -> dict[str, SeenPlate]:
    """Run a model until it has made some plates, and return these.

    A guide must draw for the members that the model will ask for, and draws first.

    Args:
        who: Named in the message.
        names: The plates' names.
        values: Values for latents on the way.
        model: The model, with its arguments.

    Raises:
        DomainError: The model makes no plate of some name.
    """
    names = list(names)
    look = _Look(names, values)
    try:
        with poutine.block(), look:
            model()
    except _AllSeen:
        return look.seen
    missing = sorted(set(names) - set(look.seen))
    if missing:
        raise _checks.refusal(
            DomainError,
            who,
            expected=f"the plates {missing}, which the model made when the guide was set up",
            got="a run of the model without them",
            advice="Make a new guide for another model, or for arguments by which it changes.",
        )
    return look.seen
