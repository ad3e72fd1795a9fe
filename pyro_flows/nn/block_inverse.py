r"""The inverse of a block-triangular network, and its gradient by the implicit function theorem.

Both walk over the coordinates and use every weight once. What the earlier coordinates add to a
block is computed before its root is sought, so that the root finder iterates over that block
alone. The transposed Jacobian is solved by the same walk, backwards.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.nn.adjoint import BLOCK
from pyro_flows.nn.block_layers import (
    HiddenWeights,
    OutputWeights,
    Units,
    bend,
    from_before,
    mix,
)
from pyro_flows.nn.opaque import opaque
from pyro_flows.numerics import soft_bound, soft_bound_slope
from pyro_flows.roots import solve_increasing


class _OwnPath:
    """The function of one coordinate, before its scale, with all that others add to it fixed.

    Args:
        layers: The hidden layers of the coordinate's block.
        added: By layer, what the other blocks and the bias add, of shape ``(A, N)``.
        mixing: The last layer's, of shape ``(1, M)``.
    """

    def __init__(self, layers: list[HiddenWeights], added: list[Tensor], mixing: Tensor) -> None:
        self.layers, self.added, self.mixing = layers, added, mixing

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(N,)`` to its image and log-slope."""
        return self.with_steps(x)[:2]

    def with_steps(self, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return the steps of the units as well, by layer."""
        h = x[None]
        slope, steps = torch.ones_like(h), []
        for layer, added in zip(self.layers, self.added, strict=True):
            units = bend(mix(layer.mixing, h), added, layer)
            h, slope = units.value, units.value_by_own * mix(layer.mixing, slope)
            steps.append(units.step)
        return mix(self.mixing, h)[0], mix(self.mixing, slope)[0].log(), steps


def walk(
    y: Tensor, hidden: list[HiddenWeights], output: OutputWeights, bound: float, who: str
) -> Tensor:
    """Return the solution and its log-slopes, one above the other, of shape ``(2 * D, N)``.

    Args:
        y: Of shape ``(D, N)``.
        hidden: The hidden layers.
        output: The last layer.
        bound: Bound on the last layer's log-scale.
        who: The caller, for the error's message.

    Raises:
        NotConvergedError: A root was not found.
    """
    layers: list[HiddenWeights | OutputWeights] = [*hidden, output]
    tail, spread = _tails(hidden, output)
    result = y.new_empty(2 * len(y), y.shape[1])
    x, log_slope = result.chunk(2)
    # By layer, the features of the blocks that are known: a coordinate, and its units' steps.
    known = [y.new_empty(len(y), layer.weight.shape[1] // len(y), y.shape[1]) for layer in layers]
    for i in range(len(y)):
        *added, (shift, raw) = (
            _added(layer, seen[:i], i) for layer, seen in zip(layers, known, strict=True)
        )
        log_scale = soft_bound(raw, bound)
        target = (y[i] - shift) * torch.exp(-log_scale)
        path = _OwnPath([layer.of_block(i) for layer in hidden], added, output.mixing[i])
        bracket = _bracket(target, tail[i], spread[i])
        x[i] = solve_increasing(path, target, bracket=bracket, who=who)
        _, own, steps = path.with_steps(x[i])
        log_slope[i] = own + log_scale
        known[0][i, 0] = x[i]
        for seen, step in zip(known[1:], steps, strict=True):
            seen[i, 0], seen[i, 1:] = x[i], step
    return result


def _added(layer: HiddenWeights | OutputWeights, known: Tensor, i: int) -> Tensor:
    """Return what the blocks before ``i``, and the bias, add to its rows, of shape ``(A, N)``."""
    features, rows = known.flatten(0, 1), layer.bias.shape[1]
    weight = layer.weight[i * rows : (i + 1) * rows, : len(features)]
    return torch.addmm(layer.bias[i], weight, features)


def _tails(hidden: list[HiddenWeights], output: OutputWeights) -> tuple[Tensor, Tensor]:
    r"""Return :math:`a, r`, of shape ``(D, 1)``: a path lies within :math:`r` of :math:`a x`."""
    tail = torch.ones_like(output.mixing[:, :, :1])
    spread = torch.zeros_like(tail)
    for layer in hidden:
        step = (1 - layer.leak).abs() / layer.sharpness
        tail = layer.leak * mix(layer.mixing, tail)
        spread = layer.leak * mix(layer.mixing, spread) + step
    return mix(output.mixing, tail)[:, 0], mix(output.mixing, spread)[:, 0]


def _bracket(target: Tensor, tail: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    room = 64 * torch.finfo(target.dtype).eps  # For rounding.
    spread = spread * (1 + room) + target.abs() * room
    return (target - spread) / tail, (target + spread) / tail


def walk_back(
    cotangent: Tensor,
    x: Tensor,
    hidden: list[HiddenWeights],
    output: OutputWeights,
    bound: float,
) -> Tensor:
    r"""Return the solution of :math:`J^\top u = g`, with the Jacobian at ``x``.

    Args:
        cotangent: :math:`g`, of shape ``(D, N)``.
        x: Of shape ``(D, N)``.
        hidden: The hidden layers.
        output: The last layer.
        bound: Bound on the last layer's log-scale.
    """
    if len(x) <= BLOCK:
        matrix = _jacobian(x, hidden, output, bound).permute(2, 1, 0)
        target = cotangent.T[..., None]
        return torch.linalg.solve_triangular(matrix, target, upper=True)[..., 0].T
    units, own, by_rows = _derivatives(x, hidden, output, bound)
    layers: list[HiddenWeights | OutputWeights] = [*hidden, output]
    result = torch.empty_like(cotangent)
    # By layer, what the outputs of the blocks that are done send to the rows that see others.
    sent = [x.new_empty(*layer.bias.shape[:2], x.shape[1]) for layer in layers]
    for i in reversed(range(len(x))):
        back = [_to_features(*pair, i) for pair in zip(layers, sent, strict=True)]
        # What later outputs send to the block's units, from the last layer down to x itself.
        units_get = [torch.zeros_like(units[-1].value[i])]
        for layer, unit, row in zip(
            reversed(hidden), reversed(units), reversed(back[1:]), strict=True
        ):
            by_step = layer.sharpness[i] * unit.step_by_added[i] * row[1:]
            by_value = unit.value_by_own[i] * units_get[0]
            units_get.insert(0, layer.mixing[i].T @ (by_value + by_step))
        x_gets = units_get[0][0] + torch.stack([row[0] for row in back]).sum(0)
        result[i] = (cotangent[i] - x_gets) / own[0][i, 0]
        for s, (layer, unit) in enumerate(zip(hidden, units, strict=True)):
            value_gets = units_get[s + 1] + result[i] * own[s + 1][i]
            size = (1 - layer.leak[i]) / layer.sharpness[i]
            sent[s][i] = unit.step_by_added[i] * (size * value_gets + back[s + 1][1:])
        sent[-1][i] = result[i] * by_rows[i]
    return result


def _jacobian(
    x: Tensor, hidden: list[HiddenWeights], output: OutputWeights, bound: float
) -> Tensor:
    """Return the derivatives of every output by every ``x``, of shape ``(D, D, N)``."""
    units, own, by_rows = _derivatives(x, hidden, output, bound)
    eye = torch.eye(len(x), dtype=x.dtype, device=x.device)
    h = by_x = eye[:, None, :, None].expand(-1, 1, -1, x.shape[1])
    features = by_x
    for layer, unit in zip(hidden, units, strict=True):
        through = mix(layer.mixing, h.flatten(2)).unflatten(2, h.shape[2:])
        sharpness, leak = layer.sharpness[..., None], layer.leak[..., None]
        step = unit.step_by_added[:, :, None] * torch.addcmul(
            _from_features(layer, features), sharpness, through
        )
        h = torch.addcmul(leak * through, (1 - leak) / sharpness, step)
        features = torch.cat([by_x, step], 1)
    by_others = (by_rows[:, :, None] * _from_features(output, features)).sum(1)
    return by_others + (own[-1][:, :, None] * h).sum(1)


def _from_features(layer: HiddenWeights | OutputWeights, features: Tensor) -> Tensor:
    """Return what features, of shape ``(D, F, D, N)``, add to each row, of ``(D, A, D, N)``."""
    added = layer.weight @ features.flatten(0, 1).flatten(1)
    return added.view(*layer.bias.shape[:2], *features.shape[2:])


def _to_features(layer: HiddenWeights | OutputWeights, sent: Tensor, i: int) -> Tensor:
    """Return what the blocks after ``i`` send to its features, of shape ``(F, N)``."""
    count = layer.weight.shape[1] // len(sent)
    rows = sent[i + 1 :].flatten(0, 1)
    return layer.weight[len(layer.weight) - len(rows) :, i * count : (i + 1) * count].T @ rows


def _derivatives(
    x: Tensor, hidden: list[HiddenWeights], output: OutputWeights, bound: float
) -> tuple[list[Units], list[Tensor], Tensor]:
    """Return what :func:`walk_back` needs, each of shape ``(D, *, N)``.

    The units; the derivatives of an output by what is in its own block, from its ``x`` up; and
    those by the last layer's two rows.
    """
    h = features = x[:, None]
    units = []
    for layer in hidden:
        units.append(bend(mix(layer.mixing, h), from_before(layer, features), layer))
        h, features = units[-1].value, torch.cat([x[:, None], units[-1].step], 1)
    log_scale = soft_bound(from_before(output, features)[:, 1:], bound)
    scale = log_scale.exp()
    by_raw = mix(output.mixing, h) * scale * soft_bound_slope(log_scale, bound)
    own = [output.mixing.mT * scale]
    for layer, unit in zip(reversed(hidden), reversed(units), strict=True):
        own.insert(0, layer.mixing.mT @ (unit.value_by_own * own[0]))
    return units, own, torch.cat([torch.ones_like(by_raw), by_raw], 1)


def attach_gradient(
    x: Tensor,
    residual: Tensor,
    transposed_solve: Callable[..., Tensor],
    bias: Tensor,
    weights: Sequence[Tensor],
) -> Tensor:
    r"""Return a solution of :math:`f(x; \theta) = y` with its gradient, to first order.

    Since :math:`\mathrm{d}x = J^{-1} \mathrm{d}r` for the residual :math:`r = y - f(x; \theta)` at
    a fixed :math:`x`, a cotangent :math:`g` of the solution becomes :math:`J^{-\top} g` for it.

    Args:
        x: The solution, of shape ``(*, D)``.
        residual: :math:`r`, of that shape; only its gradient matters.
        transposed_solve: Maps the cotangent, ``x``, the bias and the weights to
            :math:`J^{-\top} g`.
        bias: Of shape ``(*, n)``, with the batch axes of ``x``.
        weights: Tensors without batch axes.
    """
    tensors = [tensor.detach() for tensor in (x, bias, *weights)]
    return _Solution.apply(transposed_solve, residual, *tensors)


class _Solution(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        kernel: Callable[..., Tensor], residual: Tensor, x: Tensor, *tensors: Tensor
    ) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.kernel, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        residual, *tensors = ctx.saved_tensors
        u = _TransposedSolve.apply(ctx.kernel, cotangent, residual, *tensors)
        return None, u, *(None for _ in tensors)


class _TransposedSolve(torch.autograd.Function):
    """A gradient that refuses to be differentiated: the walk keeps no graph for it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        kernel: Callable[..., Tensor],
        cotangent: Tensor,
        residual: Tensor,
        x: Tensor,
        bias: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        return opaque(kernel, [cotangent, x, bias], weights)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        raise _checks.second_derivative(
            "BlockNet",
            of="inverse",
            advice="Take second derivatives through the other direction, which has all of them.",
        )
