"""A block-triangular network: an increasing function of each coordinate, given those before it."""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from pyro_flows import _checks
from pyro_flows.errors import DomainError
from pyro_flows.nn.block_inverse import attach_gradient, walk, walk_back
from pyro_flows.nn.block_layers import (
    BlockLayer,
    HiddenWeights,
    OutputWeights,
    bend,
    from_before,
    mix,
)
from pyro_flows.nn.dense import DenseNet
from pyro_flows.nn.opaque import opaque
from pyro_flows.numerics import linearise, soft_bound, widen

# Keeps a unit's step wider than what rounding does to its place.
_LOG_SHARPNESS_BOUND = 3.0
# From the identity to a saturated unit is a long way: at this gain, tens of an optimiser's steps
# instead of hundreds.
_BEND_GAIN = 10.0


class BlockNet(nn.Module):
    r"""Map coordinates to coordinates, each by an increasing function given those before.

    In every layer, each coordinate owns a block of units. Along its own blocks a coordinate
    passes through positive weights and increasing units; into the blocks of later coordinates it
    passes through free weights. See :class:`~pyro_flows.transforms.BlockNeuralAutoregressive` for
    the formulas. The bends and the last layer start at zero, where the network is the identity.

    Args:
        input_dim: Number of coordinates, ``D``.
        hidden_factors: By layer, the number of units that each coordinate owns.
        context_dim: Number of entries of the context, which moves every bias; zero for none.
        hidden_dims: Widths of the hidden layers of the context's network.
        log_scale_bound: Largest absolute log-slope of a coordinate.

    Raises:
        DomainError: A size or the bound is not possible.

    Example:
        >>> import torch
        >>> net = BlockNet(3, hidden_factors=(4,))
        >>> y, log_slope = net(torch.ones(10, 3))
        >>> log_slope.shape
        torch.Size([10, 3])
    """

    def __init__(
        self,
        input_dim: int,
        *,
        hidden_factors: Sequence[int] = (8, 8),
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
        log_scale_bound: float = 15.0,
    ) -> None:
        super().__init__()
        who = type(self).__name__
        self.input_dim = _checks.check_count(who, "input_dim", input_dim)
        factors = self._check_factors(hidden_factors)
        bound = _checks.check_positive(who, "log_scale_bound", log_scale_bound)
        # One share for the leaks of each hidden layer, and one for the scale.
        self._share = bound / (len(factors) + 1)
        self._sizes = [input_dim * count for count in (*factors, 2)]
        # Later blocks see a coordinate itself and, above the first layer, its units' steps.
        features = [1, *(factor + 1 for factor in factors)]
        self.layers = nn.ModuleList(
            BlockLayer(input_dim, below, mixed, num_features=seen, num_rows=rows)
            for (below, mixed), seen, rows in zip(
                pairwise((1, *factors, 1)), features, (*factors, 2), strict=True
            )
        )
        num_hidden = sum(self._sizes[:-1])
        self.sharpness = nn.Parameter(torch.zeros(num_hidden))
        self.bend = nn.Parameter(torch.zeros(num_hidden))
        self.bias = nn.Parameter(torch.cat([torch.randn(num_hidden), torch.zeros(2 * input_dim)]))
        last = self._layers[-1].weight
        if last is not None:
            nn.init.zeros_(last)
        self.conditioner = (
            DenseNet(0, sum(self._sizes), context_dim=context_dim, hidden_dims=hidden_dims)
            if context_dim
            else None
        )

    def _check_factors(self, hidden_factors: Sequence[int]) -> tuple[int, ...]:
        who = type(self).__name__
        factors = _checks.check_counts(who, "hidden_factors", hidden_factors)
        if not factors:
            raise _checks.refusal(
                DomainError,
                who,
                expected="at least one entry in hidden_factors",
                got="()",
                advice="Use an AffineAutoregressive for a map without hidden units.",
            )
        return factors

    @property
    def _layers(self) -> list[BlockLayer]:
        return cast("list[BlockLayer]", list(self.layers))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``y`` and the log-slope of each coordinate, both of shape ``(*, input_dim)``.

        Args:
            x: Of shape ``(*, input_dim)``.
            context: Of shape ``(*, context_dim)``; its batch axes broadcast with those of ``x``.
        """
        rows, weights = self._state(x, context)
        columns, hidden, output = self._unpack(*rows, *weights)
        own = h = features = columns[:, None]
        slope = torch.ones_like(h)
        for layer in hidden:
            units = bend(mix(layer.mixing, h), from_before(layer, features), layer)
            h, slope = units.value, units.value_by_own * mix(layer.mixing, slope)
            features = torch.cat([own, units.step], 1)
        shift, raw = from_before(output, features).unbind(1)
        log_scale = soft_bound(raw, self._share)
        y = mix(output.mixing, h)[:, 0] * log_scale.exp() + shift
        log_slope = mix(output.mixing, slope)[:, 0].log() + log_scale
        shape = rows[0].shape
        return y.T.reshape(shape).to(x.dtype), log_slope.T.reshape(shape)

    def _state(self, x: Tensor, context: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
        """Return two rows, of shape ``(*, n)``, and weights, as :meth:`_unpack` takes them."""
        bias = widen(self.bias)
        if self.conditioner is not None:
            bias = bias + widen(self.conditioner(None, context))
        batch = torch.broadcast_shapes(x.shape[:-1], bias.shape[:-1])
        rows = [row.expand(*batch, -1) for row in (widen(x), bias)]
        sharpness = soft_bound(widen(self.sharpness), _LOG_SHARPNESS_BOUND).exp()
        leak = torch.exp(-soft_bound(widen(self.bend) * _BEND_GAIN, self._share))
        matrices = [matrix for layer in self._layers for matrix in layer.matrices(bias)]
        return rows, [sharpness, leak, *matrices]

    def _unpack(
        self, x: Tensor, bias: Tensor, sharpness: Tensor, leak: Tensor, *matrices: Tensor
    ) -> tuple[Tensor, list[HiddenWeights], OutputWeights]:
        """Return the points, of shape ``(D, N)``, and the layers."""
        bias = bias.reshape(-1, bias.shape[-1]).T
        biases, sharpnesses, leaks = (
            [part.unflatten(0, (self.input_dim, -1)) for part in whole.split(sizes)]
            for whole, sizes in (
                (bias, self._sizes),
                (sharpness[:, None], self._sizes[:-1]),
                (leak[:, None], self._sizes[:-1]),
            )
        )
        *pairs, last = zip(matrices[0::2], matrices[1::2], strict=True)
        hidden = [
            HiddenWeights(*pair, *rest)
            for pair, *rest in zip(pairs, biases[:-1], sharpnesses, leaks, strict=True)
        ]
        return x.reshape(-1, self.input_dim).T, hidden, OutputWeights(*last, biases[-1])

    def solve(self, y: Tensor, context: Tensor | None, *, who: str) -> tuple[Tensor, Tensor]:
        """Return the ``x`` that is mapped to ``y``, and its log-slopes, with first derivatives.

        Args:
            y: Of shape ``(*, input_dim)``.
            context: Of shape ``(*, context_dim)``, or none.
            who: The caller, for the error's message.

        Raises:
            NotConvergedError: A root was not found.
            DomainError: In a second derivative.
        """
        rows, weights = self._state(y, context)
        x, log_slope = self._search(rows, weights, who)
        x = x.to(y.dtype)
        if torch.is_grad_enabled():
            residual = y - self(x, context)[0]
            x = attach_gradient(x, residual, self._transposed_solve, rows[1], weights)
            log_slope = self(x, context)[1]
        return x, log_slope

    def push(self, score: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        """Return the score of ``y``, given that of ``x``.

        Args:
            score: The gradient of a log-density at ``x``, of shape ``(*, input_dim)``.
            x: Of that shape.
            context: Of shape ``(*, context_dim)``, or none.
        """
        (_, log_slope), pull = linearise(lambda x: self(x, context), x)
        (by_ladj,) = pull(None, torch.ones_like(log_slope))
        rows, weights = self._state(x, context)
        return opaque(self._transposed_solve, [score - by_ladj, x, rows[1]], weights)

    def _search(self, rows: list[Tensor], weights: list[Tensor], who: str) -> tuple[Tensor, ...]:
        def kernel(y: Tensor, *tensors: Tensor) -> Tensor:
            columns, hidden, output = self._unpack(y, *tensors)
            result = walk(columns, hidden, output, self._share, who)
            return result.T.reshape(*y.shape[:-1], 2 * self.input_dim)

        return opaque(kernel, rows, weights).chunk(2, -1)

    def _transposed_solve(self, cotangent: Tensor, x: Tensor, *tensors: Tensor) -> Tensor:
        columns = widen(cotangent).reshape(-1, self.input_dim).T
        u = walk_back(columns, *self._unpack(widen(x), *tensors), self._share)
        return u.T.reshape(cotangent.shape).to(cotangent.dtype)
