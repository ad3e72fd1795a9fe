"""Fit a continuous flow to data by flow matching."""

import os
from collections.abc import Sequence

from torch import Tensor

from pyro_flows.density.dequantised import Density
from pyro_flows.density.fitting import HeldOutRows, check_density, fit_density
from pyro_flows.density.minibatches import Augment
from pyro_flows.density.options import MleOptions
from pyro_flows.density.paths import Matching
from pyro_flows.density.result import MleResult
from pyro_flows.infer.training.loop import Callback
from pyro_flows.infer.training.options import MakeOptimizer


def fit_matching(
    flow: Density,
    data: Tensor,
    *,
    context: Tensor | None = None,
    pairing: str | None = None,
    validation: HeldOutRows = 0.1,
    epochs: int = 500,
    batch_size: int = 256,
    lr: float = 5e-3,
    weight_decay: float = 0.0,
    patience: int | None = None,
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
    r"""Fit a continuous flow to data by flow matching, which solves no differential equation.

    .. math:: \min_\theta \mathbb{E} \, \| v_\theta(z_t, t, c) - (z_1 - z_0) \|^2, \qquad
        z_t = (1 - t) z_0 + t z_1

    with :math:`z_0` from the flow's base, :math:`z_1` a row, and :math:`t` uniform. At the minimum
    the field moves the base to the distribution of the data, along the mean of the straight paths
    between them. A step costs one velocity for each row, where maximum likelihood takes a solve
    and its gradient; the flow then scores and samples as ever.

    Steps, held-out rows and checkpoints are those of :func:`~pyro_flows.density.fit_mle`. Only the
    field is trained. Parts of the flow that stand around it stay as they are: rows are pulled back
    through those on the side of the data, such as a standardisation, and draws of the base pushed
    through those on its side. Held-out rows are scored by the same paths all the time; at the end,
    the best state by these and the average are compared by their likelihood.

    Args:
        flow: The flow, with one :class:`~pyro_flows.transforms.Continuous` in its chain, in the
            dtype and on the device of the data.
        data: Rows, of shape ``(N, D)``.
        context: Of shape ``(N, context_dim)``, for a flow with a context.
        pairing: ``"optimal"``: in groups of 64 rows, draws of the base go with the rows that
            together lie nearest, which makes paths straighter and solves shorter; or
            ``"independent"``, the one that a context leaves possible. By the context, if not
            given.
        validation: The share of the rows to hold out; or held-out rows, ``(M, D)``, with their
            contexts as a pair where there are some; or ``None`` for none.
        epochs: Largest number of passes over the data.
        batch_size: Rows of a step; all of them where there are fewer.
        lr: Largest step size.
        weight_decay: Decoupled decay of the parameters, as in AdamW.
        patience: Epochs without a better held-out loss after which to stop; ``None`` goes on to
            the end. The loss is noisy: its minimum is far above zero.
        clip_norm: Largest norm of the gradient, which is scaled down to it.
        augment: Returns other rows for those of a batch, at each step anew; none if not given.
        engine: ``"auto"``, ``"eager"``, ``"traced"`` or ``"compiled"``.
        optimizer: Returns an optimiser of torch's for the tensors that it is called with.
        callbacks: Called after each step with a :class:`~pyro_flows.infer.StepInfo`; one that
            returns true ends the run.
        checkpoint: A file to save the run in, at its end and every ``checkpoint_every`` seconds.
        checkpoint_every: Seconds between two saves.
        resume: Whether to go on from ``checkpoint``, if there is such a file.
        seed: Seeds the run, and leaves the global random state alone.
        progress: Whether to show a progress bar.

    Returns:
        Matching losses, the negative log-likelihood at the end, and how the fit ended.

    Raises:
        DomainError: An argument is not possible, or the flow has not one continuous transform.
        NonFiniteError: The data hold a NaN or an infinity; or too many steps in a row were not
            finite, and the last good state is in place.
        ShapeError: Data or context do not have the shape that the flow takes.
        CheckpointError: The checkpoint cannot be written, or is damaged, or is another run's.

    Reference:
        Lipman, Chen, Ben-Hamu, Nickel & Le (2023), *Flow matching for generative modeling*,
        equations 9 and 23; Tong et al. (2024), *Improving and generalizing flow-based generative
        models with minibatch optimal transport*, section 3.2.

    Example:
        >>> import torch
        >>> from pyro_flows import flows
        >>> data = torch.randn(500, 2) * torch.tensor([1.0, 5.0]) + 3.0
        >>> result = fit_matching(flows.cnf(2), data, epochs=2, seed=0, progress=False)
        >>> result.steps, result.objective
        (2, 'matching loss')
    """
    objective = Matching(check_density(Matching.who, flow), pairing)
    options = MleOptions(
        who=Matching.who,
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
    return fit_density(objective, data, context, validation, options=options, seed=seed)
