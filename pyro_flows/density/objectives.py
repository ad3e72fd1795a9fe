"""What the fit of a density minimises: the negative log-likelihood, unless another is given."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from pyro_flows.checkpoint import JSON
from pyro_flows.density.dequantised import Density
from pyro_flows.density.validation import log_likelihood


class Likelihood:
    r"""The negative log-likelihood of a row, :math:`-\log q(x \mid c)`, and what a run asks of it.

    Another objective derives from it, and says how rows become what its losses are computed from.

    Attributes:
        who: The function that fits by it, for messages.
        kind: The sort of its run files.
        label: Its name, for the progress bar and the log.
        likelihood: Whether its mean is the negative log-likelihood of the rows.

    Args:
        density: What is fitted.
    """

    who: ClassVar[str] = "fit_mle"
    kind: ClassVar[str] = "maximum-likelihood run"
    label: ClassVar[str] = "NLL"
    likelihood: ClassVar[bool] = True

    def __init__(self, density: Density) -> None:
        self.density = density

    def options(self) -> dict[str, JSON]:
        """Return what must be the same when a run goes on, besides what all runs have."""
        return {}

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the parameters that are trained, by name."""
        named = self.density.named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}

    def prepared(self, *rows: Tensor) -> tuple[Tensor, ...]:
        """Return what :meth:`losses` takes; not a part of the recorded step.

        Args:
            *rows: Rows, and their contexts, if any.
        """
        return rows

    def held_out(self, rows: Sequence[Tensor], state: Tensor) -> Sequence[Tensor]:
        """Return what held-out rows are scored by, over and over.

        Args:
            rows: Rows, and their contexts, if any.
            state: The random state of torch to draw in, if anything is drawn once and for all.
        """
        return rows

    def losses(self, *prepared: Tensor) -> Tensor:
        """Return the loss of each row, of shape ``(N,)``."""
        return -log_likelihood(self.density, *prepared)
