"""What a model and a guide must be for MCMC."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from pyro.infer.autoguide.guides import AutoGuide

from pyro_flows import _checks
from pyro_flows.errors import DomainError, FlowError
from pyro_flows.infer.guides.model_check import ModelCheck
from pyro_flows.infer.tracer import Tracer

_Tracer = TypeVar("_Tracer", bound=Tracer)


def check_functions(who: str, model: Any, guide: Any) -> None:
    """Refuse what cannot be called, and an autoguide that never ran.

    Args:
        who: The caller, for the messages.
        model: The model.
        guide: A guide for it.
    """
    for name, function in {"model": model, "guide": guide}.items():
        if not callable(function):
            raise _checks.refusal(
                DomainError,
                who,
                expected=f"a {name} to call",
                got=_checks.describe(function),
            )
    if isinstance(guide, AutoGuide) and guide.prototype_trace is None:
        raise _checks.refusal(
            DomainError,
            who,
            expected="a fitted guide",
            got=f"{type(guide).__name__}, which never ran",
            advice="Call pf.fit(model, guide, *args) first.",
        )


def run_once(
    kind: type[_Tracer],
    who: str,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    *,
    kwargs: dict[str, Any],
) -> _Tracer:
    """Run model and guide once, and refuse a density that is not a function of the latents.

    Args:
        kind: The class of what is returned.
        who: The caller, for the messages.
        model: The model.
        guide: A guide for it, which is set up.
        args: Arguments of both.
        kwargs: Keyword arguments of both.

    Raises:
        DomainError: They do not run on these arguments, a latent is not in the guide, a plate is
            subsampled, or the model draws other random numbers.
        NonFiniteError: The data hold a NaN.
    """
    try:
        with torch.no_grad(), ModelCheck(who, latents=False):
            tracer = kind(model, guide, args, kwargs)
    except FlowError:
        raise
    except (ValueError, RuntimeError) as error:
        raise _checks.refusal(
            DomainError,
            who,
            expected="a model and a guide that run under Pyro's validation",
            got=f"the error below\n{error}\n",
            advice="Pass the arguments that the guide was fitted with.",
        ) from error
    _check_whole(who, tracer)
    _check_repeatable(who, tracer)
    return tracer


def _check_whole(who: str, tracer: Tracer) -> None:
    if tracer.subsamples:
        raise _checks.refusal(
            DomainError,
            who,
            expected="a model that sees all of its data",
            got="one whose plates are subsampled",
            advice="A chain accepts by the posterior given all data: pass the model without "
            "subsample_size.",
        )


@torch.no_grad()
def _check_repeatable(who: str, tracer: Tracer) -> None:
    first, second = (
        torch.as_tensor(tracer.replay(tracer.model, tracer.single[0]).log_prob_sum())
        for _ in range(2)
    )
    if not torch.equal(first.nan_to_num(), second.nan_to_num()):
        raise _checks.refusal(
            DomainError,
            who,
            expected="a model whose log-density depends on its latents and data alone",
            got=f"{float(first):g} and then {float(second):g} for the same latents",
            advice="Call .eval() on modules with dropout, and draw what is random at sites.",
        )
