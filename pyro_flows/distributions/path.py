"""The log-density at a draw, with the path gradient."""

from typing import Any

import torch
from torch import Tensor

from pyro_flows import _checks


def at_draw(value: Tensor, log_prob: Tensor, score: Tensor) -> Tensor:
    """Return ``log_prob``, with ``score`` for its gradient at ``value`` and none for all else.

    Args:
        value: A draw, of shape ``(*, D)``.
        log_prob: Its log-density, of shape ``(*)``.
        score: The gradient of the log-density at ``value``, of shape ``(*, D)``.
    """
    return _AtDraw.apply(value, log_prob, score)


class _AtDraw(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, log_prob: Tensor, score: Tensor) -> Tensor:
        return log_prob.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        value, _, score = inputs
        ctx.save_for_backward(value, score)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        return _Gradient.apply(cotangent, *ctx.saved_tensors), None, None


class _Gradient(torch.autograd.Function):
    """The gradient for the draw, which refuses to be differentiated once more."""

    generate_vmap_rule = True

    @staticmethod
    def forward(cotangent: Tensor, value: Tensor, score: Tensor) -> Tensor:
        # The draw is not needed here; but it is what a second derivative would be for.
        return cotangent[..., None].to(score.dtype) * score

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        raise _checks.second_derivative(
            "Flow",
            of="path gradient at its own draw",
            advice="Take second derivatives of log_prob, at a value of your own.",
        )
