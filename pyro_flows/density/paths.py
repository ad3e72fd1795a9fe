"""Flow matching: the objective, the straight paths of which it learns, and their pairing."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from pyro_flows import _checks
from pyro_flows.checkpoint import JSON
from pyro_flows.density.dequantised import Density, Dequantised
from pyro_flows.density.objectives import Likelihood
from pyro_flows.errors import DomainError
from pyro_flows.infer.random import aside
from pyro_flows.transforms import Compose, Continuous, FlowTransform
from pyro_flows.transforms.continuous import BASE_TIME, DATA_TIME

PAIRINGS = ("optimal", "independent")
# The time of an assignment grows with the cube of their number: all 256 rows of a batch at once
# took 5 ms, in groups 0.8 ms, of a step of 0.5 ms.
_PAIRED_AT_ONCE = 64
_SPAN = DATA_TIME - BASE_TIME


class Matching(Likelihood):
    r"""The squared distance of the field from the velocity of straight paths.

    .. math:: \| v(z_t, t, c) - (z_1 - z_0) \|^2, \qquad z_t = (1 - t) z_0 + t z_1

    :math:`z_0` is drawn from the flow's base and pushed through what stands before the continuous
    transform; :math:`z_1` is a row, pulled back through what stands after it. Times are spread
    evenly over a batch.

    Args:
        density: What is fitted, with one :class:`~pyro_flows.transforms.Continuous` in it.
        pairing: Which :math:`z_0` goes with which :math:`z_1`; ``"optimal"`` without a context,
            if not given.

    Raises:
        DomainError: There is no such transform, or there are several; or the pairing does not go
            with a context.
    """

    who: ClassVar[str] = "fit_matching"
    kind: ClassVar[str] = "matching run"
    label: ClassVar[str] = "matching loss"
    likelihood: ClassVar[bool] = False

    def __init__(self, density: Density, pairing: str | None) -> None:
        super().__init__(density)
        self._before, self._continuous, self._after = _around_the_one(density.transform)
        default = "independent" if density.context_dim else "optimal"
        self._pairing = _checks.check_choice(self.who, "pairing", pairing or default, PAIRINGS)
        if self._pairing == "optimal" and density.context_dim:
            raise _checks.refusal(
                DomainError,
                self.who,
                expected="pairing='independent', for a flow with a context",
                got="pairing='optimal', by which draws of the base would depend on the context",
                advice="Leave pairing out.",
            )

    def options(self) -> dict[str, JSON]:
        """Return what must be the same when a run goes on, besides what all runs have."""
        return {"pairing": self._pairing}

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the parameters of the field that are to be trained, by name."""
        its = {id(parameter) for parameter in self._continuous.field.parameters()}
        return {n: parameter for n, parameter in super().trained().items() if id(parameter) in its}

    @torch.no_grad()
    def prepared(self, *rows: Tensor) -> tuple[Tensor, ...]:
        """Return times, and where each path begins and ends; not a part of the recorded step.

        Args:
            *rows: Rows, and their contexts, if any.
        """
        ends, *contexts = rows
        base = self.density
        if isinstance(base, Dequantised):
            ends, base = base.dequantise(ends)[0], base.flow
        starts = base.base_dist.sample(ends.shape[:1])
        for part in reversed(self._after):
            ends = part.inverse_and_ladj(ends, *_for(part, contexts))[0]
        for part in self._before:
            starts = part.forward_and_ladj(starts, *_for(part, contexts))[0]
        if self._pairing == "optimal":
            starts = _paired(starts, ends)
        return _times(ends), starts, ends, *contexts

    def held_out(self, rows: Sequence[Tensor], state: Tensor) -> Sequence[Tensor]:
        """Return paths that stay the same, for losses that can be compared.

        Args:
            rows: Rows, and their contexts, if any.
            state: The random state of torch to draw in.
        """
        with aside():
            torch.set_rng_state(state)
            return self.prepared(*rows)

    def losses(self, *prepared: Tensor) -> Tensor:
        """Return the loss of each path, of shape ``(N,)``."""
        times, starts, ends, *contexts = prepared
        steps = ends - starts
        points = starts + (times[:, None] - BASE_TIME) / _SPAN * steps
        velocity = self._continuous.field(times, points, *contexts)
        return (velocity - steps / _SPAN).square().sum(-1)


def _around_the_one(
    transform: FlowTransform,
) -> tuple[list[FlowTransform], Continuous, list[FlowTransform]]:
    """Return the parts before the continuous one, itself, and those after it."""
    parts = _flat(transform)
    found = [k for k, part in enumerate(parts) if isinstance(part, Continuous)]
    if len(found) != 1:
        raise _checks.refusal(
            DomainError,
            Matching.who,
            expected="a flow with one Continuous transform in its chain",
            got=f"{len(found)} of them among {', '.join(type(part).__name__ for part in parts)}",
            advice="Pass flows.cnf(D), for example; fit_mle fits any flow.",
        )
    one: Any = parts[found[0]]
    return parts[: found[0]], one, parts[found[0] + 1 :]


def _flat(transform: FlowTransform) -> list[FlowTransform]:
    if type(transform) is not Compose:
        return [transform]
    return [each for part in transform._ordered for each in _flat(part)]


def _for(part: FlowTransform, contexts: list[Tensor]) -> list[Tensor]:
    return contexts if part.context_dim else []


def _times(ends: Tensor) -> Tensor:
    """Return one time in each of as many intervals as there are rows, in random order."""
    places = torch.randperm(len(ends)).to(ends) + torch.rand_like(ends[:, 0])
    return BASE_TIME + _SPAN * places / len(ends)


def _paired(starts: Tensor, ends: Tensor) -> Tensor:
    """Return the starts in the order in which the squares of the paths' lengths sum to least."""
    # scipy takes half a second to import; ArviZ brings it.
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415

    orders = []
    for start, some, others in zip(
        range(0, len(ends), _PAIRED_AT_ONCE),
        starts.split(_PAIRED_AT_ONCE),
        ends.split(_PAIRED_AT_ONCE),
        strict=True,
    ):
        costs = torch.cdist(others, some).square().double().cpu().numpy()
        # A row that is not finite makes its step one that is skipped.
        orders.append(start + linear_sum_assignment(np.nan_to_num(costs))[1])
    return starts[torch.from_numpy(np.concatenate(orders)).to(starts.device)]
