"""The block neural autoregressive transform, with an inverse."""

from collections.abc import Sequence

from torch import Tensor

from pyro_flows.nn.block import BlockNet
from pyro_flows.transforms.autoregressive import register_order, reorder
from pyro_flows.transforms.base import Push, PushingTransform, parameters_held


class BlockNeuralAutoregressive(PushingTransform):
    r"""Map each coordinate by a monotone network whose weights are those of one network for all.

    Each coordinate owns a block of units in every layer. From one block of a coordinate to its
    next, weights are positive; to the blocks of later coordinates they are free. With
    :math:`h^0 = x`, unit ``k`` of coordinate ``i`` in layer ``l`` is

    .. math:: t_{ik} = \sum_m P^l_{ikm} h^{l-1}_{im}, \quad
        r_{ik} = b^l_{ik} + \sum_{j < i} W^l_{ikj} \cdot z^{l-1}_j, \quad
        h^l_{ik} = \alpha^l_{ik} t_{ik}
            + (1 - \alpha^l_{ik}) \frac{\tanh(w^l_{ik} t_{ik} + r_{ik})}{w^l_{ik}}

    where :math:`z^l_j` holds :math:`x_j` and the values of tanh in block ``j`` (:math:`x_j` alone
    below the first layer). Shift and log-scale of the output see the coordinates before it in the
    same way,

    .. math:: y_i = e^{s_i} \sum_m P_{im} h^L_{im} + \mu_i, \qquad
        (\mu_i, s_i) = b_i + \sum_{j < i} W_{ij} \cdot z^L_j

    and the log-determinant is the sum of all :math:`\log \partial y_i / \partial x_i`, each from
    a product of positive matrices along the coordinate's own blocks. What differs from the paper:

    - The rows of :math:`P` sum to one, and a unit has slope one where its tanh is steepest. Any
      network of positive weights can be brought to this form, unit by unit. With
      :math:`|\log \alpha| \le B / (L + 1)` and :math:`|s| \le B / (L + 1)`, all slopes lie between
      :math:`e^{-B}` and :math:`e^B`, whatever the parameters; their products need no logarithms.
    - The units leak, :math:`\alpha > 0`, so that the map is onto. With tanh alone, the image would
      be a box.
    - What comes from other blocks moves a unit's step, but not its linear part. Training starts
      at the identity, :math:`\alpha = 1` and :math:`W = b = 0` in the output, with steps in random
      places; the gradients of the other parameters are zero there, and nowhere else.
    - The output's scale is a function of the coordinates before, as in
      :class:`~pyro_flows.transforms.AffineAutoregressive`.

    The inverse solves for one coordinate after the other, each within bounds that are known from
    the weights; its gradients come from the implicit function theorem.

    Args:
        input_dim: Number of coordinates, ``D``.
        hidden_factors: By layer, the number of units that each coordinate owns.
        order: The coordinates in the order in which they depend on one another, each of
            ``0 ... D-1`` once; as they stand, if not given.
        context_dim: Number of entries of the context, which then moves all of :math:`b`; zero for
            none.
        hidden_dims: Widths of the hidden layers of the context's network.
        log_scale_bound: Largest :math:`|\log \partial y_i / \partial x_i|`, :math:`B`; approached
            smoothly.

    Raises:
        DomainError: A size, the order or the bound is not possible; or a second derivative of the
            inverse is asked for.
        NotConvergedError: In the inverse: no finite point is mapped to the target.

    Reference:
        De Cao, Titov & Aziz (2019), *Block neural autoregressive flow*, section 3.

    Example:
        >>> import torch
        >>> transform = BlockNeuralAutoregressive(3, hidden_factors=(4, 4))
        >>> y = transform(torch.ones(10, 3))
        >>> torch.allclose(transform.inv(y), torch.ones(10, 3))
        True
    """

    inverse_kind = "numerical"
    order: Tensor | None
    inverse_order: Tensor | None

    def __init__(
        self,
        input_dim: int,
        *,
        hidden_factors: Sequence[int] = (8, 8),
        order: Sequence[int] | Tensor | None = None,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
        log_scale_bound: float = 15.0,
    ) -> None:
        super().__init__(input_dim, context_dim=context_dim)
        register_order(self, order)
        self.conditioner = BlockNet(
            input_dim,
            hidden_factors=hidden_factors,
            context_dim=context_dim,
            hidden_dims=hidden_dims,
            log_scale_bound=log_scale_bound,
        )

    def _forward_and_push(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Push]:
        x = reorder(x, self.order)
        y, log_slope = self.conditioner(x, context)

        def push(score: Tensor) -> Tensor:
            held = None if context is None else context.detach()
            with parameters_held(self):
                score = self.conditioner.push(reorder(score, self.order), x, held)
            return reorder(score, self.inverse_order)

        return reorder(y, self.inverse_order), log_slope.sum(-1), push

    def _inverse_and_ladj(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        y = reorder(y, self.order)
        x, log_slope = self.conditioner.solve(y, context, who=self._name)
        return reorder(x, self.inverse_order), -log_slope.sum(-1)
