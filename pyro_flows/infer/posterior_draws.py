"""Draws of a model's latents that are kept, wherever they came from."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.errors import DomainError, ShapeError

_LEADING_AXES = 2


@dataclass(frozen=True)
class PosteriorDraws:
    """Draws of the latents of a model, in one or several chains.

    :func:`~pyro_flows.to_arviz` takes them in the place of a guide.

    Attributes:
        sites: The values of each latent in its own support, by the name of its site, of shape
            ``(chains, draws)`` + the site's shape.
        stats: What is known of each draw, of shape ``(chains, draws)``: ``log_p``, ``log_q``,
            ``accepted`` and the like.
        origin: How they came about, in words.

    Raises:
        DomainError: There is no site, or no draw.
        ShapeError: The numbers of chains and draws differ.

    Example:
        >>> import torch
        >>> draws = PosteriorDraws({"mu": torch.zeros(2, 100), "beta": torch.zeros(2, 100, 3)})
        >>> draws.num_chains, draws.num_draws
        (2, 100)
        >>> draws.flat()["beta"].shape
        torch.Size([200, 3])
    """

    sites: Mapping[str, Tensor]
    stats: Mapping[str, Tensor] = field(default_factory=dict)
    origin: str = ""

    def __post_init__(self) -> None:
        shapes = {name: tuple(value.shape[:_LEADING_AXES]) for name, value in self.sites.items()}
        shapes |= {name: tuple(value.shape) for name, value in self.stats.items()}
        if not self.sites or any(0 in shape for shape in shapes.values()):
            raise _checks.refusal(
                DomainError,
                "PosteriorDraws",
                expected="at least one site and one draw",
                got="none",
            )
        first = next(iter(shapes.values()))
        if len(first) < _LEADING_AXES or set(shapes.values()) != {first}:
            raise _checks.refusal(
                ShapeError,
                "PosteriorDraws",
                expected="every site, and every entry of stats, with the same chains and draws as "
                "its first two axes",
                got=", ".join(f"{name!r}: {shape}" for name, shape in shapes.items()),
            )

    @property
    def num_chains(self) -> int:
        """Number of chains."""
        return next(iter(self.sites.values())).shape[0]

    @property
    def num_draws(self) -> int:
        """Number of draws of each chain."""
        return next(iter(self.sites.values())).shape[1]

    def flat(self) -> dict[str, Tensor]:
        """Return the values with all draws of all chains on the first axis, one chain first."""
        return {name: torch.flatten(value, 0, 1) for name, value in self.sites.items()}
