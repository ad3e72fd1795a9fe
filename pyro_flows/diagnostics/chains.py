"""Where draws come from: a guide, several guides, or draws that are kept."""

from typing import Any, NamedTuple

import numpy as np

from pyro_flows import _checks
from pyro_flows.diagnostics import arrays
from pyro_flows.diagnostics.draws import Draws
from pyro_flows.diagnostics.recorded import Recorded
from pyro_flows.errors import DomainError
from pyro_flows.infer.guides.flow_guide import FlowGuide
from pyro_flows.infer.posterior_draws import PosteriorDraws
from pyro_flows.infer.tracer import Fn

_NUM_DRAWS = 1000


class Chains(NamedTuple):
    """Draws in chains.

    Attributes:
        sources: What draws: for each chain, or for all of them.
        num_chains: Number of chains.
        num_draws: Number of draws of each.
        stats: What is known already of each draw, of shape ``(chains, draws)``.
        origin: The guide's name, or how the draws came about.
        is_recorded: Whether the draws are there already.
    """

    sources: list[Draws]
    num_chains: int
    num_draws: int
    stats: dict[str, np.ndarray]
    origin: str
    is_recorded: bool


def chains_of(
    model: Fn, guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any], num_draws: int | None
) -> Chains:
    """Return what draws from a guide, from several, or from draws that are kept.

    Args:
        model: The model.
        guide: A guide, a list of guides, or draws.
        args: Arguments of the model.
        kwargs: Keyword arguments of the model.
        num_draws: Number of draws of each chain; none is the default, or what there are.

    Raises:
        DomainError: An argument is not possible, or the latents of guide and model differ.
        ShapeError: The latents' shapes do.
    """
    if isinstance(guide, PosteriorDraws):
        return _recorded(model, guide, args, kwargs, num_draws)
    guides = list(guide) if isinstance(guide, (list, tuple)) else [guide]
    if not guides:
        raise _checks.refusal(
            DomainError, "to_arviz", expected="at least one guide", got="an empty list"
        )
    for each in guides:
        check_callable("guide", each)
    num_draws = _NUM_DRAWS if num_draws is None else num_draws
    num_draws = _checks.check_count("to_arviz", "num_draws", num_draws)
    sources: list[Draws] = []
    for each in guides:
        if isinstance(each, FlowGuide):
            each.initialise(*args, **kwargs)
        subsamples = sources[0].subsamples if sources else None
        sources.append(Draws(model, each, args, kwargs, subsamples))
    return Chains(sources, len(guides), num_draws, {}, _name(guides[0]), False)


def check_callable(name: str, function: Any) -> None:
    """Refuse what cannot be called.

    Args:
        name: Its name as an argument.
        function: The model or the guide.

    Raises:
        DomainError: It cannot be called.
    """
    if not callable(function):
        raise _checks.refusal(
            DomainError,
            "to_arviz",
            expected=f"a {name} to call",
            got=_checks.describe(function),
        )


def _recorded(
    model: Fn,
    draws: PosteriorDraws,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    num_draws: int | None,
) -> Chains:
    if num_draws is not None:
        raise _checks.refusal(
            DomainError,
            "to_arviz",
            expected="no num_draws together with draws that there are already",
            got=f"{num_draws!r}",
            advice="Leave it out; all draws of all chains are converted.",
        )
    source = Draws(model, Recorded(draws, model, args, kwargs), args, kwargs)
    stats = {name.replace("/", "."): arrays.to_numpy(v) for name, v in draws.stats.items()}
    return Chains([source], draws.num_chains, draws.num_draws, stats, draws.origin, True)


def _name(guide: Fn) -> str:
    return str(getattr(guide, "__name__", type(guide).__name__))
