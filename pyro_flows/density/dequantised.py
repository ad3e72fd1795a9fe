"""Integers as what a flow can model: noise fills the gaps between them."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from pyro_flows import _checks
from pyro_flows.density.noise import UniformNoise
from pyro_flows.distributions import DistributionModule, Flow
from pyro_flows.distributions.base import Shape
from pyro_flows.errors import DomainError, ShapeError
from pyro_flows.transforms import FlowTransform


class Dequantised(DistributionModule):
    r"""A distribution of integers: those below the draws of a flow.

    .. math:: \log P(x) = \log \int_{[0, 1)^D} q(x + u) \, du
        \ge \mathbb{E}_{r(u \mid x)} [\log q(x + u) - \log r(u \mid x)]

    A density alone grows without bound on integers. What is estimated here, with fresh noise at
    each call, is a lower bound of the log-probability of the integers themselves: it cannot be
    above zero in the mean, and flows compare by it honestly. In bits a dimension it is
    :math:`-\log_2 P(x) / D`.

    Args:
        flow: The flow :math:`q`, over the integers' own scale.
        noise: The noise :math:`r`: a module that maps integers to noise in ``[0, 1)`` and its
            log-density; uniform if not given.
        columns: True for the coordinates that are integers, of shape ``(D,)``; all if not given.
            The others take no noise, and their density counts as it is.

    Raises:
        DomainError: ``flow`` is no flow, the noise no module, or the columns not booleans.
        ShapeError: ``columns`` has the wrong shape, or is given with noise of one's own.

    Reference:
        Ho, Chen, Srinivas, Duan & Abbeel (2019), *Flow++: Improving flow-based generative models
        with variational dequantization and architecture design*, equation 11; Theis, van den Oord
        & Bethge (2016), *A note on the evaluation of generative models*, equation 5.

    Example:
        >>> import torch
        >>> from pyro_flows import flows
        >>> counts = Dequantised(flows.realnvp(2))
        >>> x = counts.sample((100,))
        >>> bool((x == x.floor()).all()), counts.log_prob(x).shape
        (True, torch.Size([100]))
    """

    has_rsample = False
    columns: Tensor | None

    def __init__(
        self,
        flow: Flow,
        *,
        noise: nn.Module | None = None,
        columns: Tensor | None = None,
    ) -> None:
        if not isinstance(flow, Flow):
            raise _checks.refusal(
                DomainError, self._name, expected="a Flow", got=_checks.describe(flow)
            )
        super().__init__(flow.input_dim)
        if noise is not None:
            _checks.check_module(self._name, "noise", noise)
        self.flow, self.noise = flow, noise or UniformNoise()
        self.register_buffer("columns", self._as_columns(columns, noise))

    def _as_columns(self, columns: Tensor | None, noise: nn.Module | None) -> Tensor | None:
        if columns is None:
            return None
        if not isinstance(columns, Tensor) or columns.dtype is not torch.bool:
            raise _checks.refusal(
                DomainError,
                self._name,
                expected="columns to be a tensor of booleans",
                got=_checks.describe(columns),
            )
        if columns.shape != self.event_shape or noise is not None:
            raise _checks.refusal(
                ShapeError,
                self._name,
                expected=f"columns of shape ({self.input_dim},), with uniform noise",
                got=_checks.describe(columns) + (" and noise" if noise is not None else ""),
            )
        return columns

    @property
    def transform(self) -> FlowTransform:
        """That of the flow."""
        return self.flow.transform

    @property
    def context_dim(self) -> int:
        """Number of entries of the context; zero for none."""
        return self.flow.context_dim

    def condition(self, context: Tensor) -> "Dequantised":
        """Return the distribution given a context; it shares the parameters of this one.

        Args:
            context: Of shape ``(*, context_dim)``.

        Raises:
            ShapeError: The context has the wrong size, or the flow takes none.
        """
        return self._around(self.flow.condition(context))

    def expand(
        self, batch_shape: Shape, _instance: DistributionModule | None = None
    ) -> "Dequantised":
        """Return a distribution of the given batch shape, with the parameters of this one.

        Args:
            batch_shape: One that the present batch shape expands to.

        Raises:
            ShapeError: The present batch shape does not expand to it.
        """
        return self._around(self.flow.expand(batch_shape))

    def _around(self, flow: Flow) -> "Dequantised":
        new: Any = super().expand(flow.batch_shape)
        new._modules = {**self._modules, "flow": flow}
        return new

    def dequantise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the integers with noise, and the log-density of the noise.

        Args:
            x: Integers, of shape ``(*, D)``, in the flow's dtype.
        """
        noise, log_density = self.noise(x)
        if self.columns is not None:
            noise = torch.where(self.columns, noise, 0.0)
        return x + noise, log_density

    def check_integers(self, who: str, rows: Tensor) -> None:
        """Refuse rows with anything but integers where these are due, or with others than known.

        Args:
            who: The caller, for the error's message.
            rows: Of shape ``(N, D)``.

        Raises:
            DomainError: An entry is not possible.
        """
        entries = rows if self.columns is None else rows[:, self.columns]
        most = getattr(self.noise, "num_values", None)
        possible = entries == entries.floor()
        if most is not None:
            possible &= (entries >= 0) & (entries < most)
        if not bool(possible.all()):
            raise _checks.refusal(
                DomainError,
                who,
                expected="integers" if most is None else f"integers from 0 to {most - 1}",
                got=f"{_checks.shortened(entries[~possible].tolist())}",
                advice="Undo a scaling, or fit the flow itself to real numbers.",
            )

    def log_prob(self, value: Tensor) -> Tensor:
        """Return an unbiased estimate of the bound, of shape ``(*)``.

        Args:
            value: Integers, of shape ``(*, D)``, in the flow's dtype.

        Raises:
            DomainError: ``value`` is not a real floating-point tensor.
            ShapeError: A shape is wrong, or the flow takes a context and none was fixed.
        """
        _checks.check_points(self._name, "value", value, self.input_dim)
        values, log_noise = self.dequantise(value)
        return self.flow.log_prob(values) - log_noise

    def tighter_log_prob(self, value: Tensor, num_draws: int) -> Tensor:
        r"""Return a tighter bound, :math:`\log \frac1K \sum_k q(x + u_k) / r(u_k \mid x)`.

        Args:
            value: Integers, of shape ``(*, D)``.
            num_draws: Number :math:`K` of draws of the noise.

        Reference:
            Burda, Grosse & Salakhutdinov (2016), *Importance weighted autoencoders*, equation 8.
        """
        num_draws = _checks.check_count(self._name, "num_draws", num_draws)
        bounds = torch.stack([self.log_prob(value) for _ in range(num_draws)])
        return bounds.logsumexp(0) - math.log(num_draws)

    def sample(self, sample_shape: Shape = torch.Size()) -> Tensor:
        """Draw integers, of shape ``sample_shape + batch_shape + (D,)``.

        Args:
            sample_shape: Leading axes of the sample.
        """
        with torch.no_grad():
            return self.rounded(self.flow.sample(torch.Size(sample_shape)))

    def rounded(self, values: Tensor) -> Tensor:
        """Return draws of the flow as integers: those below.

        Args:
            values: Of shape ``(*, D)``.
        """
        return (
            values.floor()
            if self.columns is None
            else torch.where(self.columns, values.floor(), values)
        )


# What maximum likelihood fits.
Density = Flow | Dequantised
