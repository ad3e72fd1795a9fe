"""What fresh draws say of a fitted guide, and which of a run's states they prefer."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_flows.infer.engine import FlatParameters
from pyro_flows.infer.importance import pareto_k
from pyro_flows.infer.particles import Particles
from pyro_flows.infer.training.averaging import choose
from pyro_flows.transforms.continuous import exact_traces

_FINAL_DRAWS, _FINAL_DRAWS_LOOPED = 10_000, 1024
_DRAWS_TO_CHOOSE, _DRAWS_TO_CHOOSE_LOOPED = 1024, 64
_LEAST_BATCH = 64
_LEAST_BOUNDS = 16


class Outcome(NamedTuple):
    """What fresh draws say of a fitted guide."""

    elbo: float
    elbo_se: float
    ess: float
    k_hat: float


def choose_state(
    scorer: Particles,
    flat: FlatParameters,
    candidates: Mapping[str, list[Tensor]],
    particles: int,
    *,
    num_importance: int = 1,
) -> str:
    """Put the state of the highest bound on fresh draws in place, and return its name.

    All states meet the same random numbers, and the same subsamples.

    Args:
        scorer: Draws and scores.
        flat: The parameters.
        candidates: States by name, those without tensors left out; the preferred ones first.
        particles: Number of draws that are scored at once.
        num_importance: Draws of one importance-weighted bound; one for the ELBO.
    """
    draws = _DRAWS_TO_CHOOSE if scorer.vectorized else _DRAWS_TO_CHOOSE_LOOPED
    draws = max(draws, _LEAST_BOUNDS * num_importance)
    begin = torch.get_rng_state()

    def score(tensors: list[Tensor]) -> tuple[float, float]:
        flat.assign(tensors)
        torch.set_rng_state(begin)
        with exact_traces():
            return _bound(_log_weights(scorer, draws, particles), num_importance)

    states = {name: tensors for name, tensors in candidates.items() if tensors}
    before = flat.copy()
    try:
        chosen = choose(states, score)
    except BaseException:
        # Ctrl-C, say: no state that was only tried must stay.
        flat.assign(before)
        raise
    flat.assign(states[chosen])
    return chosen


def evaluate(scorer: Particles, particles: int, *, draws: int | None = None) -> Outcome:
    """Score fresh draws, in batches like the fit's.

    Args:
        scorer: Draws and scores.
        particles: Number of draws that are scored at once.
        draws: Number of draws; 10,000, or fewer where they are run one by one, if not given.
    """
    draws = draws or (_FINAL_DRAWS if scorer.vectorized else _FINAL_DRAWS_LOOPED)
    with exact_traces():
        log_weights = _log_weights(scorer, draws, particles)
    elbo, elbo_se = _bound(log_weights, 1)
    bad = bool((log_weights.isnan() | (log_weights == torch.inf)).any())
    if bad or scorer.subsamples:
        # With a subsample, the weights would tell of the subsample as much as of the guide.
        return Outcome(elbo, elbo_se, math.nan, math.nan)
    shares = torch.softmax(log_weights, 0)
    ess = float(1 / shares.square().sum()) / len(log_weights)
    return Outcome(elbo, elbo_se, ess, pareto_k(log_weights))


@torch.no_grad()
def _log_weights(scorer: Particles, draws: int, particles: int) -> Tensor:
    size = max(particles, _LEAST_BATCH)
    batches = [scorer.score(size) for _ in range(math.ceil(draws / size))]
    return torch.cat([batch.log_p - batch.log_q for batch in batches]).double()


def _bound(log_weights: Tensor, num_importance: int) -> tuple[float, float]:
    """Return the importance-weighted bound, and its standard error."""
    count = len(log_weights) // num_importance
    groups = log_weights[: count * num_importance].reshape(count, num_importance)
    bounds = groups.logsumexp(-1) - math.log(num_importance)
    return float(bounds.mean()), float(bounds.std() / count**0.5)
