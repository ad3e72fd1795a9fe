"""Fit a flow to data by maximum likelihood."""

import os
import time
from collections.abc import Sequence

import numpy as np
import pyro
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.density.dequantised import Density, Dequantised
from pyro_flows.density.minibatches import Augment, check_rows, split
from pyro_flows.density.options import MleOptions
from pyro_flows.density.result import MleResult
from pyro_flows.density.run import MleRun
from pyro_flows.density.saving import Beginning, to_share
from pyro_flows.errors import DomainError, NonFiniteError, ShapeError
from pyro_flows.infer.random import seeded
from pyro_flows.infer.training.loop import Callback
from pyro_flows.infer.training.options import MakeOptimizer
from pyro_flows.transforms import initialise_from_data

_WHO = "fit_mle"
# Of the rows from which each ActNorm starts; more tell little more.
_ENTRIES_TO_START = 2**20

HeldOutRows = float | Tensor | tuple[Tensor, Tensor] | None


def fit_mle(
    flow: Density,
    data: Tensor,
    *,
    context: Tensor | None = None,
    validation: HeldOutRows = 0.1,
    epochs: int = 200,
    batch_size: int = 256,
    lr: float = 2e-3,
    weight_decay: float = 0.0,
    patience: int | None = 30,
    clip_norm: float = 10.0,
    augment: Augment | None = None,
    engine: str = "auto",
    optimizer: MakeOptimizer | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 60.0,
    resume: bool = False,
    seed: int | None = None,
    progress: bool = True,
) -> MleResult:
    r"""Fit a flow to data by maximum likelihood, and keep the best state on held-out rows.

    .. math:: \min_\theta -\frac{1}{N} \sum_{n=1}^N \log q_\theta(x_n \mid c_n)

    Adam on one flat tensor, with a warm-up and half a cosine to zero. One step is recorded, and
    compiled where that pays, as in :func:`~pyro_flows.fit`; a step that is not finite changes
    nothing. Every ``ActNorm`` of the flow is first set from the data. At the end the best state on
    the held-out rows and the average over the last 30 % of the steps are compared on these rows.

    Args:
        flow: The flow, in the dtype and on the device of the data; for integers, one that is
            :class:`~pyro_flows.density.Dequantised`.
        data: Rows, of shape ``(N, D)``.
        context: Of shape ``(N, context_dim)``, for a flow with a context.
        validation: The share of the rows to hold out; or held-out rows, ``(M, D)``, with their
            contexts as a pair where there are some; or ``None`` for none.
        epochs: Largest number of passes over the data.
        batch_size: Rows of a step; all of them where there are fewer.
        lr: Largest step size.
        weight_decay: Decoupled decay of the parameters, as in AdamW.
        patience: Epochs without a better held-out likelihood after which to stop; ``None`` goes on
            to the end.
        clip_norm: Largest norm of the gradient, which is scaled down to it.
        augment: Returns other rows for those of a batch, at each step anew; none if not given.
        engine: ``"auto"``, ``"eager"``, ``"traced"`` or ``"compiled"``.
        optimizer: Returns an optimiser of torch's for the tensors that it is called with.
        callbacks: Called after each step with a :class:`~pyro_flows.infer.StepInfo`; one that
            returns true ends the run.
        checkpoint: A file to save the run in, at its end and every ``checkpoint_every`` seconds.
        checkpoint_every: Seconds between two saves.
        resume: Whether to go on from ``checkpoint``, if there is such a file; on the CPU, and on
            one rung of the engine, the run is then the same bit for bit, the split and the order
            of the rows among it.
        seed: Seeds the split and the order of the rows, and leaves the global random state alone.
        progress: Whether to show a progress bar.

    Returns:
        Losses, held-out likelihoods, and how the fit ended.

    Raises:
        DomainError: An argument is not possible, there are too few rows, or a density of integers
            is given anything else.
        NonFiniteError: The data hold a NaN or an infinity; or too many steps in a row were not
            finite, and the last good state is in place.
        ShapeError: Data or context do not have the shape that the flow takes.
        CheckpointError: The checkpoint cannot be written, or is damaged, or is another run's.

    Reference:
        Papamakarios, Nalisnick, Rezende, Mohamed & Lakshminarayanan (2021), *Normalizing flows for
        probabilistic modeling and inference*, section 2.3; Loshchilov & Hutter (2019), *Decoupled
        weight decay regularization*.

    Example:
        >>> import torch
        >>> from pyro_flows import flows
        >>> data = torch.randn(500, 2) * torch.tensor([1.0, 5.0]) + 3.0
        >>> flow = flows.realnvp(2, num_transforms=2)
        >>> result = fit_mle(flow, data, epochs=2, seed=0, progress=False)
        >>> result.steps, len(result.validation)
        (2, 2)
    """
    options = MleOptions(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        patience=patience,
        clip_norm=clip_norm,
        augment=augment,
        engine=engine,
        optimizer=optimizer,
        callbacks=callbacks,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        resume=resume,
        progress=progress,
    )
    began = time.perf_counter()
    tensors = _checked(flow, data, context)
    with seeded(_WHO, seed), pyro.validation_enabled(False):
        beginning = Beginning(options.checkpoint, resume=options.resume)
        with beginning:
            train, held_out = _split(flow, tensors, validation)
        given = validation if validation is None or isinstance(validation, float) else held_out
        same = to_share(options, flow, tensors, given) if options.checkpoint is not None else {}
        if not beginning.goes_on:
            _start(flow, train)
        run = MleRun(flow, train, held_out, options, same=same, beginning=beginning.state)
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
    )


def _start(flow: Density, train: list[Tensor]) -> None:
    """Set every ActNorm from some of the rows."""
    rows, *contexts = (tensor[: max(2, _ENTRIES_TO_START // flow.input_dim)] for tensor in train)
    points = flow.dequantise(rows)[0] if isinstance(flow, Dequantised) else rows
    initialise_from_data(flow.transform, points, *contexts)


def _checked(flow: Density, data: Tensor, context: Tensor | None) -> list[Tensor]:
    """Return data and context, if any, as rows that the flow takes."""
    if not isinstance(flow, Density):
        raise _checks.refusal(
            DomainError,
            _WHO,
            expected="a Flow, or a Dequantised one",
            got=_checks.describe(flow),
        )
    tensors = check_rows(_WHO, data, context)
    if data.shape[1:] != flow.event_shape:
        raise _checks.refusal(
            ShapeError,
            _WHO,
            expected=f"rows of {flow.event_shape[0]} entries",
            got=_checks.describe(data),
        )
    _checks.check_context(_WHO, context, flow.context_dim)
    for name, tensor in zip(("data", "context"), tensors, strict=False):
        _check_finite(name, tensor)
    if isinstance(flow, Dequantised):
        flow.check_integers(_WHO, data)
    return tensors


def _check_finite(name: str, tensor: Tensor) -> None:
    bad = (~tensor.isfinite()).flatten(1).sum(0)
    if bool(bad.any()):
        columns = ", ".join(f"{int(bad[k])} in column {k}" for k in bad.nonzero().flatten()[:10])
        raise _checks.refusal(
            NonFiniteError,
            _WHO,
            expected=f"{name} without NaN and infinities",
            got=columns,
            advice="Drop those rows knowingly.",
        )


def _split(
    flow: Density, tensors: list[Tensor], validation: HeldOutRows
) -> tuple[list[Tensor], list[Tensor]]:
    if validation is None:
        return tensors, []
    if isinstance(validation, Tensor):
        return tensors, _checked(flow, validation, None)
    if isinstance(validation, tuple):
        return tensors, _checked(flow, *validation)
    return split(_WHO, tensors, validation)
