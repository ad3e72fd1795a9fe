"""What there is to train: the parameters of guide and model, by name."""

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_flows import _checks
from pyro_flows.errors import DomainError


def trainable(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the parameters of the guide, and those of the model alone, by name.

    They are those of the modules, and those in Pyro's store that a run meets. What guide and model
    share counts as the guide's.

    Args:
        model: The model.
        guide: The guide.
        args: Arguments of both.
        kwargs: Keyword arguments of both.

    Raises:
        DomainError: There is none that requires a gradient.
    """
    with torch.no_grad(), poutine.block(), poutine.trace(param_only=True) as met_by_guide:
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    with torch.no_grad(), poutine.block(), poutine.trace(param_only=True) as met_by_model:
        poutine.replay(model, trace=guide_trace)(*args, **kwargs)
    seen: set[int] = set()
    of_guide = _named("guide", guide, met_by_guide.trace, seen)
    of_model = _named("model", model, met_by_model.trace, seen)
    if not (of_guide or of_model):
        raise _checks.refusal(
            DomainError,
            "fit",
            expected="a guide or a model with parameters to train",
            got="none that require a gradient",
            advice="Call requires_grad_(True) on a frozen guide.",
        )
    return of_guide, of_model


def _named(role: str, part: Any, met: poutine.Trace, seen: set[int]) -> dict[str, Tensor]:
    """Return a part's parameters that were not seen before, under names that no other part has."""
    found: dict[str, Tensor] = dict(part.named_parameters()) if isinstance(part, nn.Module) else {}
    sites: dict[str, Any] = dict(met.nodes)
    found |= {f"store.{name}": _unconstrained(site["value"]) for name, site in sites.items()}
    named = {}
    for name, parameter in found.items():
        if parameter.requires_grad and id(parameter) not in seen:
            seen.add(id(parameter))
            named[f"{role}.{name}"] = parameter
    return named


def _unconstrained(value: Any) -> Tensor:
    # A module's own parameter without a constraint, under module_local_params, is as it is stored.
    return value.unconstrained() if hasattr(value, "unconstrained") else value
