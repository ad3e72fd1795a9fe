"""Autoregressive transforms, cheap in both directions."""

from collections.abc import Callable, Sequence
from typing import TypedDict

import torch
from pyro.distributions import constraints
from torch import Tensor
from typing_extensions import Unpack

from pyro_flows import _checks
from pyro_flows.errors import DomainError
from pyro_flows.nn import MaskedNet
from pyro_flows.numerics import widen
from pyro_flows.transforms.base import FlowTransform, Push
from pyro_flows.transforms.univariate import Affine, Univariate, UnivariateTransform


class AutoregressiveOptions(TypedDict, total=False):
    """What every autoregressive transform takes; see :class:`Autoregressive`."""

    order: Sequence[int] | Tensor | None
    hidden_dims: Sequence[int]
    context_dim: int
    activation: str


class Autoregressive(UnivariateTransform):
    r"""Map each coordinate with parameters that are functions of the coordinates before it.

    .. math:: y_i = f(x_i;\, p_i(x_{<i}, c)), \qquad
        \log |\det J| = \sum_i \log f'(x_i;\, p_i)

    The inverse costs about one forward pass and ``D`` element-wise inversions (see
    :class:`~pyro_flows.nn.MaskedNet`); its gradients come from the implicit function theorem and
    keep no graph of its ``D`` steps.

    Args:
        univariate: The map :math:`f`, over the whole real line.
        input_dim: Number of coordinates, ``D``.
        order: The coordinates in the order in which they depend on one another, each of
            ``0 ... D-1`` once; as they stand, if not given.
        hidden_dims: Widths of the conditioner's hidden layers, each at least ``D - 1`` (``D`` with
            a context).
        context_dim: Number of entries of the context; zero for none.
        activation: Name of the conditioner's activation.

    Raises:
        DomainError: A size, the order, the map or the activation is not possible.

    Reference:
        Papamakarios, Nalisnick, Rezende, Mohamed & Lakshminarayanan (2021), *Normalizing flows for
        probabilistic modeling and inference*, section 3.1.

    Example:
        >>> import torch
        >>> from pyro_flows.transforms import Affine, Autoregressive
        >>> transform = Autoregressive(Affine(), 3, order=[2, 0, 1])
        >>> transform(torch.zeros(10, 3)).shape
        torch.Size([10, 3])
    """

    order: Tensor | None
    inverse_order: Tensor | None

    def __init__(
        self,
        univariate: Univariate,
        input_dim: int,
        *,
        order: Sequence[int] | Tensor | None = None,
        hidden_dims: Sequence[int] = (64, 64),
        context_dim: int = 0,
        activation: str = "silu",
    ) -> None:
        super().__init__(univariate, input_dim, context_dim=context_dim)
        register_order(self, order)
        self.conditioner = MaskedNet(
            input_dim,
            univariate.num_params,
            hidden_dims=hidden_dims,
            context_dim=context_dim,
            activation=activation,
        )

    def _check_univariate(self, value: Univariate) -> None:
        super()._check_univariate(value)
        if value.domain is not constraints.real:
            raise _checks.refusal(
                DomainError,
                self._name,
                expected="a map of the whole real line",
                got=f"{value!r}, over {value.domain}",
                advice="Use a Coupling, whose network sees angles by their sine and cosine.",
            )

    def _forward_and_push(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Push]:
        return self._in_order(self.conditioner.map, x, context)

    def _inverse_and_push(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Push]:
        return self._in_order(self.conditioner.solve, y, context)

    def _in_order(
        self,
        run: Callable[..., tuple[Tensor, Tensor, Push]],
        point: Tensor,
        context: Tensor | None,
    ) -> tuple[Tensor, Tensor, Push]:
        point, ladj, push = run(reorder(point, self.order), context, self.univariate)

        def push_in_order(score: Tensor) -> Tensor:
            return reorder(push(reorder(score, self.order)), self.inverse_order)

        return reorder(point, self.inverse_order), widen(ladj).sum(-1), push_in_order


def register_order(transform: FlowTransform, order: Sequence[int] | Tensor | None) -> None:
    """Give a transform the buffers ``order`` and ``inverse_order``, which may be none."""
    forward = backward = None
    if order is not None:
        size = transform.input_dim
        forward = torch.tensor(_checks.check_permutation(transform._name, order, size=size))
        backward = forward.argsort()
    transform.register_buffer("order", forward)
    transform.register_buffer("inverse_order", backward)


def reorder(x: Tensor, order: Tensor | None) -> Tensor:
    """Return the coordinates in that order; as they are, if there is none."""
    return x if order is None else x.index_select(-1, order)


class AffineAutoregressive(Autoregressive):
    r"""Scale and shift each coordinate by functions of the coordinates before it.

    .. math:: y_i = x_i \exp(s_i(x_{<i}, c)) + m_i(x_{<i}, c), \qquad
        \log |\det J| = \sum_i s_i

    As it stands this is the transform of an inverse autoregressive flow (IAF); run backwards, by
    :class:`~pyro_flows.transforms.Inverse`, that of a masked autoregressive flow (MAF).

    Args:
        input_dim: Number of coordinates, ``D``.
        log_scale_bound: Largest :math:`|s_i|`; approached smoothly.
        **options: Those of :class:`Autoregressive`.

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
        log_scale_bound: float = 3.0,
        **options: Unpack[AutoregressiveOptions],
    ) -> None:
        super().__init__(Affine(log_scale_bound), input_dim, **options)
