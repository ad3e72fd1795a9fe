"""Autoregressive transforms, cheap in both directions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.nn import MaskedNet
from pyro_flows.numerics import soft_bound, soft_bound_slope, widen
from pyro_flows.transforms.base import FlowTransform


class AffineAutoregressive(FlowTransform):
    r"""Scale and shift each coordinate by functions of the coordinates before it.

    .. math:: y_i = x_i \exp(s_i(x_{<i}, c)) + m_i(x_{<i}, c), \qquad
        \log |\det J| = \sum_i s_i

    As it stands this is the transform of an inverse autoregressive flow (IAF); run backwards, by
    :class:`~pyro_flows.transforms.Inverse`, that of a masked autoregressive flow (MAF). The
    inverse is exact and costs about one forward pass (see :mod:`pyro_flows.nn.masked`); its
    gradients come from the implicit function theorem and keep no graph of its ``D`` steps.

    Args:
        input_dim: Number of coordinates, ``D``.
        hidden_dims: Widths of the conditioner's hidden layers, each at least ``D - 1`` (``D`` with
            a context).
        context_dim: Number of entries of the context; zero for none.
        activation: Name of the conditioner's activation.
        log_scale_bound: Largest :math:`|s_i|`; approached smoothly.

    Raises:
        DomainError: A size, a bound or the activation is not possible.

    Reference:
        Kingma, Salimans, Jozefowicz, Chen, Sutskever & Welling (2016), *Improving variational
        inference with inverse autoregressive flow*, equations 9-10; Papamakarios, Pavlakou &
        Murray (2017), *Masked autoregressive flow for density estimation*, equations 4-5.

    Example:
        >>> import torch
        >>> transform = AffineAutoregressive(3, hidden_dims=(16,), context_dim=2)
        >>> y, ladj = transform.forward_and_ladj(torch.randn(10, 3), torch.randn(2))
        >>> y.shape, ladj.shape
        (torch.Size([10, 3]), torch.Size([10]))
    """

    def __init__(
        self,
        input_dim: int,
        *,
        hidden_dims: Sequence[int] = (64, 64),
        context_dim: int = 0,
        activation: str = "silu",
        log_scale_bound: float = 3.0,
    ) -> None:
        super().__init__(input_dim, context_dim=context_dim)
        self.log_scale_bound = _checks.check_positive(
            self._name, "log_scale_bound", log_scale_bound
        )
        self.conditioner = MaskedNet(
            input_dim,
            2,
            hidden_dims=hidden_dims,
            context_dim=context_dim,
            activation=activation,
        )

    def _shift_and_log_scale(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        shift, raw = self.conditioner(x, context).unbind(-1)
        return shift, soft_bound(raw, self.log_scale_bound)

    def _forward_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._shift_and_log_scale(x, context)
        return x * log_scale.exp() + shift, widen(log_scale).sum(-1)

    def _inverse_and_ladj(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        x, params = self.conditioner.solve(y, context, self._element_inverse)
        if torch.is_grad_enabled():
            x = self._attach_gradient(x, y, context)
            params = self.conditioner(x, context)
        return x, -widen(soft_bound(params[..., 1], self.log_scale_bound)).sum(-1)

    def _element_inverse(self, y: Tensor, params: Tensor) -> Tensor:
        return (y - params[0]) * torch.exp(-soft_bound(params[1], self.log_scale_bound))

    def _attach_gradient(self, x: Tensor, y: Tensor, context: Tensor | None) -> Tensor:
        """Give the solution ``x`` of ``f(x) = y`` its (implicit) gradient."""
        shift, log_scale = self._shift_and_log_scale(x, context)
        scale = log_scale.exp()
        residual = y - (x * scale + shift)
        slope, bounded = scale.detach(), log_scale.detach()
        by_log_scale = x * slope * soft_bound_slope(bounded, self.log_scale_bound)
        pull = torch.stack([torch.ones_like(by_log_scale), by_log_scale], -1)
        return x + self.conditioner.implicit_zero(residual, x, context, slope, pull)
