"""Fit a flow to data by maximum likelihood."""

import os
from collections.abc import Sequence

from torch import Tensor

from pyro_flows.density.dequantised import Density
from pyro_flows.density.fitting import HeldOutRows, check_density, fit_density
from pyro_flows.density.minibatches import Augment
from pyro_flows.density.objectives import Likelihood
from pyro_flows.density.options import MleOptions
from pyro_flows.density.result import MleResult
from pyro_flows.infer.training.loop import Callback
from pyro_flows.infer.training.options import MakeOptimizer
from pyro_flows.transforms import TransportCost


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
    penalty: TransportCost | None = None,
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
        penalty: A :class:`~pyro_flows.transforms.TransportCost` of continuous flows, which the
            gradient takes into account and the losses do not show.
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
        NotConvergedError: An iteration within a step, such as a solve with adaptive steps, did
            not end at the first step, nor after later ones and smaller step sizes.
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
    objective = Likelihood(check_density("fit_mle", flow))
    options = MleOptions(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        patience=patience,
        clip_norm=clip_norm,
        augment=augment,
        penalty=penalty,
        engine=engine,
        optimizer=optimizer,
        callbacks=callbacks,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        resume=resume,
        progress=progress,
    )
    return fit_density(objective, data, context, validation, options=options, seed=seed)
