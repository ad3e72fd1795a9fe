"""The fit of a density to rows, by any objective."""

import time

import numpy as np
import pyro
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.density.dequantised import Density, Dequantised
from pyro_flows.density.minibatches import check_rows, split
from pyro_flows.density.objectives import Likelihood
from pyro_flows.density.options import MleOptions
from pyro_flows.density.result import MleResult
from pyro_flows.density.run import MleRun
from pyro_flows.density.saving import Beginning, to_share
from pyro_flows.errors import DomainError, NonFiniteError, ShapeError
from pyro_flows.infer.random import seeded
from pyro_flows.transforms import ActNorm, initialise_from_data

# Of the rows from which each ActNorm starts; more tell little more.
_ENTRIES_TO_START = 2**20

HeldOutRows = float | Tensor | tuple[Tensor, Tensor] | None


def fit_density(
    objective: Likelihood,
    data: Tensor,
    context: Tensor | None,
    validation: HeldOutRows,
    *,
    options: MleOptions,
    seed: int | None,
) -> MleResult:
    """Fit a density to rows, and keep the best state on those held out.

    Args:
        objective: What is minimised, and of what.
        data: Rows.
        context: Their contexts, if any.
        validation: The share of the rows to hold out; or held-out rows; or none.
        options: The options.
        seed: Seeds the run.

    Raises:
        DomainError: An argument is not possible, or there are too few rows.
        NonFiniteError: The rows hold a NaN or an infinity; or too many steps in a row were not
            finite.
        ShapeError: Rows or contexts do not have the shape that the flow takes.
        CheckpointError: The checkpoint cannot be written, or is damaged, or is another run's.
    """
    began, who, flow = time.perf_counter(), objective.who, objective.density
    tensors = _checked(who, flow, data, context)
    with seeded(who, seed), pyro.validation_enabled(False):
        beginning = Beginning(options.checkpoint, kind=objective.kind, resume=options.resume)
        with beginning:
            train, held_out = _split(who, flow, tensors, validation)
        given = validation if validation is None or isinstance(validation, float) else held_out
        same = to_share(options, flow, tensors, given) if options.checkpoint is not None else {}
        if not beginning.goes_on:
            _start(flow, train)
        same |= objective.options()
        run = MleRun(objective, train, held_out, options, same=same, beginning=beginning.state)
        run.take()
    return MleResult(
        losses=np.array(run.loop.losses),
        validation=np.array(run.held_out.scores),
        nll=run.nll,
        status=run.status,
        reason=run.reason,
        epochs=-(-len(run.loop.losses) // run.steps_per_epoch),
        steps=len(run.loop.losses),
        skipped_steps=run.loop.skipped,
        seconds=time.perf_counter() - began,
        lr=run.loop.base_sizes[0],
        state=run.state,
        engine=run.loop.engine.rung,
        objective=objective.label,
    )


def _start(flow: Density, train: list[Tensor]) -> None:
    """Set every ActNorm, if there are some, from some of the rows."""
    if not any(isinstance(part, ActNorm) for part in flow.transform.modules()):
        return
    rows, *contexts = (tensor[: max(2, _ENTRIES_TO_START // flow.input_dim)] for tensor in train)
    points = flow.dequantise(rows)[0] if isinstance(flow, Dequantised) else rows
    initialise_from_data(flow.transform, points, *contexts)


def check_density(who: str, flow: object) -> Density:
    """Return ``flow``, if it can be fitted.

    Args:
        who: The caller, for the error's message.
        flow: What is to be fitted.

    Raises:
        DomainError: It is neither a flow nor a dequantised one.
    """
    if not isinstance(flow, Density):
        raise _checks.refusal(
            DomainError,
            who,
            expected="a Flow, or a Dequantised one",
            got=_checks.describe(flow),
        )
    return flow


def _checked(who: str, flow: Density, data: Tensor, context: Tensor | None) -> list[Tensor]:
    """Return data and context, if any, as rows that the flow takes."""
    tensors = check_rows(who, data, context)
    if data.shape[1:] != flow.event_shape:
        raise _checks.refusal(
            ShapeError,
            who,
            expected=f"rows of {flow.event_shape[0]} entries",
            got=_checks.describe(data),
        )
    _checks.check_context(who, context, flow.context_dim)
    for name, tensor in zip(("data", "context"), tensors, strict=False):
        _check_finite(who, name, tensor)
    if isinstance(flow, Dequantised):
        flow.check_integers(who, data)
    return tensors


def _check_finite(who: str, name: str, tensor: Tensor) -> None:
    bad = (~tensor.isfinite()).flatten(1).sum(0)
    if bool(bad.any()):
        columns = ", ".join(f"{int(bad[k])} in column {k}" for k in bad.nonzero().flatten()[:10])
        raise _checks.refusal(
            NonFiniteError,
            who,
            expected=f"{name} without NaN and infinities",
            got=columns,
            advice="Drop those rows knowingly.",
        )


def _split(
    who: str, flow: Density, tensors: list[Tensor], validation: HeldOutRows
) -> tuple[list[Tensor], list[Tensor]]:
    if validation is None:
        return tensors, []
    if isinstance(validation, Tensor):
        return tensors, _checked(who, flow, validation, None)
    if isinstance(validation, tuple):
        return tensors, _checked(who, flow, *validation)
    return split(who, tensors, validation)
