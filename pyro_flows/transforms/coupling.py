"""Coupling transforms: some coordinates drive a map of the others."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.nn import DenseNet
from pyro_flows.numerics import soft_bound, widen, zero_ladj
from pyro_flows.transforms.base import FlowTransform


class _Coupling(FlowTransform):
    """Split the coordinates by a mask; what is kept conditions the map of what is moved.

    A subclass names its number of parameters per moved coordinate and maps those coordinates.
    """

    num_params: ClassVar[int]
    order: Tensor
    inverse_order: Tensor

    def __init__(
        self,
        input_dim: int,
        *,
        mask: Sequence[bool] | Tensor | None = None,
        hidden_dims: Sequence[int] = (64, 64),
        context_dim: int = 0,
        activation: str = "silu",
    ) -> None:
        super().__init__(input_dim, context_dim=context_dim)
        keep = self._as_mask(mask)
        order = torch.cat([keep.nonzero().flatten(), (~keep).nonzero().flatten()])
        self.num_kept = int(keep.sum())
        self.register_buffer("order", order)
        self.register_buffer("inverse_order", order.argsort())
        self.conditioner = DenseNet(
            self.num_kept,
            self.num_params * (input_dim - self.num_kept),
            hidden_dims=hidden_dims,
            context_dim=context_dim,
            activation=activation,
        )

    def _as_mask(self, mask: Sequence[bool] | Tensor | None) -> Tensor:
        if mask is None:
            return torch.arange(self.input_dim) < self.input_dim // 2
        return torch.tensor(_checks.check_mask(self._name, mask, self.input_dim))

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.index_select(-1, self.order)
        return x[..., : self.num_kept], x[..., self.num_kept :]

    def _join(self, kept: Tensor, moved: Tensor) -> Tensor:
        kept = kept.expand(*moved.shape[:-1], -1)
        return torch.cat([kept, moved], -1).index_select(-1, self.inverse_order)

    def _params(self, kept: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
        return self.conditioner(kept, context).chunk(self.num_params, -1)


class AffineCoupling(_Coupling):
    r"""Scale and shift some coordinates by functions of the others.

    .. math:: y_A = x_A, \quad y_B = x_B \odot \exp(s(x_A, c)) + t(x_A, c), \qquad
        \log |\det J| = \sum s(x_A, c)

    Args:
        input_dim: Number of coordinates.
        mask: True for the coordinates :math:`A` to keep, of shape ``(input_dim,)``; the first half
            if not given. Where none is kept, the map depends on the context alone.
        hidden_dims: Widths of the conditioner's hidden layers.
        context_dim: Number of entries of the context; zero for none.
        activation: Name of the conditioner's activation.
        log_scale_bound: Largest :math:`|s|`; approached smoothly.

    Raises:
        DomainError: A size, a bound, the mask or the activation is not possible.

    Reference:
        Dinh, Sohl-Dickstein & Bengio (2017), *Density estimation using Real NVP*, equations 4-8.

    Example:
        >>> import torch
        >>> transform = AffineCoupling(4, hidden_dims=(16,))
        >>> y, ladj = transform.forward_and_ladj(torch.randn(10, 4))
        >>> y.shape, ladj.shape
        (torch.Size([10, 4]), torch.Size([10]))
    """

    num_params = 2

    def __init__(
        self,
        input_dim: int,
        *,
        mask: Sequence[bool] | Tensor | None = None,
        hidden_dims: Sequence[int] = (64, 64),
        context_dim: int = 0,
        activation: str = "silu",
        log_scale_bound: float = 2.0,
    ) -> None:
        super().__init__(
            input_dim,
            mask=mask,
            hidden_dims=hidden_dims,
            context_dim=context_dim,
            activation=activation,
        )
        self.log_scale_bound = _checks.check_positive(
            self._name, "log_scale_bound", log_scale_bound
        )

    def _forward_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        kept, moved = self._split(x)
        raw, shift = self._params(kept, context)
        log_scale = soft_bound(raw, self.log_scale_bound)
        y = self._join(kept, moved * log_scale.exp() + shift)
        return y, widen(log_scale).sum(-1).expand(y.shape[:-1])

    def _inverse_and_ladj(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        kept, moved = self._split(y)
        raw, shift = self._params(kept, context)
        log_scale = soft_bound(raw, self.log_scale_bound)
        x = self._join(kept, (moved - shift) * torch.exp(-log_scale))
        return x, -widen(log_scale).sum(-1).expand(x.shape[:-1])


class AdditiveCoupling(_Coupling):
    r"""Shift some coordinates by a function of the others; the volume is preserved.

    .. math:: y_A = x_A, \quad y_B = x_B + t(x_A, c), \qquad \log |\det J| = 0

    Args:
        input_dim: Number of coordinates.
        mask: True for the coordinates :math:`A` to keep, of shape ``(input_dim,)``; the first half
            if not given. Where none is kept, the shift depends on the context alone.
        hidden_dims: Widths of the conditioner's hidden layers.
        context_dim: Number of entries of the context; zero for none.
        activation: Name of the conditioner's activation.

    Raises:
        DomainError: A size, the mask or the activation is not possible.

    Reference:
        Dinh, Krueger & Bengio (2015), *NICE: Non-linear independent components estimation*,
        section 3.2.

    Example:
        >>> import torch
        >>> transform = AdditiveCoupling(4, hidden_dims=(16,))
        >>> transform.log_abs_det_jacobian(torch.ones(4), torch.ones(4))
        tensor(0.)
    """

    num_params = 1

    def _forward_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        kept, moved = self._split(x)
        y = self._join(kept, moved + self._params(kept, context)[0])
        return y, zero_ladj(y)

    def _inverse_and_ladj(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        kept, moved = self._split(y)
        x = self._join(kept, moved - self._params(kept, context)[0])
        return x, zero_ladj(x)
