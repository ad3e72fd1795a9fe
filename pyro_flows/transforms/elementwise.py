"""Element-wise transforms: every coordinate on its own."""

from collections.abc import Sequence
from typing import TypedDict

from torch import Tensor

from pyro_flows.nn import DenseNet
from pyro_flows.numerics import expand_batch, widen
from pyro_flows.transforms.base import Push
from pyro_flows.transforms.univariate import Univariate, UnivariateTransform


class ElementwiseOptions(TypedDict, total=False):
    """What every element-wise transform takes; see :class:`Elementwise`."""

    hidden_dims: Sequence[int]
    context_dim: int
    activation: str


class Elementwise(UnivariateTransform):
    r"""Map each coordinate with free parameters, or with functions of the context.

    .. math:: y_i = f(x_i;\, p_i(c)), \qquad \log |\det J| = \sum_i \log f'(x_i;\, p_i)

    Args:
        univariate: The map :math:`f`.
        input_dim: Number of coordinates, ``D``.
        hidden_dims: Widths of the hidden layers of the context's network.
        context_dim: Number of entries of the context; zero for none.
        activation: Name of the activation of the context's network.

    Raises:
        DomainError: A size, the map or the activation is not possible.

    Example:
        >>> import torch
        >>> from pyro_flows.transforms import Affine, Elementwise
        >>> Elementwise(Affine(), 3)(torch.ones(3)).tolist()
        [1.0, 1.0, 1.0]
    """

    def __init__(
        self,
        univariate: Univariate,
        input_dim: int,
        *,
        hidden_dims: Sequence[int] = (64, 64),
        context_dim: int = 0,
        activation: str = "silu",
    ) -> None:
        super().__init__(univariate, input_dim, context_dim=context_dim)
        self.conditioner = DenseNet(
            0,
            univariate.num_params * input_dim,
            hidden_dims=hidden_dims,
            context_dim=context_dim,
            activation=activation,
        )

    def _params(self, context: Tensor | None) -> Tensor:
        flat = self.conditioner(None, context)
        return flat.unflatten(-1, (self.univariate.num_params, self.input_dim))

    def _forward_and_push(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Push]:
        y, ladj, tangent = self.univariate.forward_and_tangent(x, self._params(context))
        ladj = expand_batch(widen(ladj).sum(-1), y.shape[:-1])
        return y, ladj, lambda score: tangent.push(score)[0]

    def _inverse_and_push(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Push]:
        x, ladj, tangent = self.univariate.inverse_and_tangent(y, self._params(context))
        ladj = expand_batch(widen(ladj).sum(-1), x.shape[:-1])
        return x, ladj, lambda score: tangent.pull(score)[0]
