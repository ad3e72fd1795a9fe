"""The stages of a fully connected network: their values, and what cotangents send back."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from pyro_flows.nn.activations import ACTIVATIONS


def pre_activations(
    x: Tensor, shift: Tensor | None, weights: Sequence[Tensor], activation: str
) -> list[Tensor]:
    """Return every stage of a network before its activation; the last are its results.

    Args:
        x: Of shape ``(*, n)``.
        shift: What is added to the first stage, or none.
        weights: Matrix and bias of each layer, in turn.
        activation: Name of the activation.
    """
    # The bias goes into the product: a sum of its own costs as much as an activation.
    first = linear(x, weights[0], weights[1])
    return stages_from(first if shift is None else first + shift, weights[2:], activation)


def stages_from(first: Tensor, weights: Sequence[Tensor], activation: str) -> list[Tensor]:
    """Return every stage, given the first one.

    Args:
        first: Of shape ``(*, n)``, before its activation.
        weights: Matrix and bias of each layer above it, in turn.
        activation: Name of the activation.
    """
    activate = ACTIVATIONS[activation].function
    stages = [first]
    for matrix, bias in zip(weights[0::2], weights[1::2], strict=True):
        stages.append(linear(activate(stages[-1]), matrix, bias))
    return stages


def received(
    cotangent: Tensor, hidden: Sequence[Tensor], matrices: Sequence[Tensor], activation: str
) -> list[Tensor]:
    """Return what the input and every stage receive, given what the last stage does.

    Args:
        cotangent: Of shape ``(*, m)``, at the last stage.
        hidden: The stages before it, of shape ``(*, n)`` each.
        matrices: The matrix of each layer.
        activation: Name of the activation.
    """
    pull = ACTIVATIONS[activation].pull
    found = [cotangent]
    for stage, matrix in zip(reversed(hidden), reversed(matrices[1:]), strict=True):
        found.insert(0, pull(found[0] @ matrix, stage))
    return [found[0] @ matrices[0], *found]


def jacobian_of_rows(
    rows: Tensor, hidden: Sequence[Tensor], matrices: Sequence[Tensor], activation: str
) -> Tensor:
    r"""Return :math:`\sum_k r_{kj} \, \partial p_{kj} / \partial x_i` for parameters :math:`p`.

    Args:
        rows: :math:`r`, of shape ``(N, K, D)``.
        hidden: The stages before the parameters, of shape ``(N, n)`` each.
        matrices: The matrix of each layer; the last one's rows are parameters, those of a kind
            side by side.
        activation: Name of the activation.

    Returns:
        Of shape ``(D, N, D)``, the parameters' ``j`` on the first axis.
    """
    *earlier, last = matrices
    found = torch.bmm(rows.permute(2, 0, 1), last.unflatten(0, rows.shape[1:]).transpose(0, 1))
    for stage, matrix in zip(reversed(hidden), reversed(earlier), strict=True):
        found = (found * ACTIVATIONS[activation].slope(stage)) @ matrix
    return found
