"""What fresh draws say of a fitted guide, and which of a run's states they prefer."""

import math
from collections.abc import Iterable, Mapping
from itertools import islice, repeat
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_flows.infer.engine import Batch, FlatParameters
from pyro_flows.infer.importance import pareto_k
from pyro_flows.infer.particles import Particles
from pyro_flows.infer.training.averaging import choose
from pyro_flows.transforms.continuous import exact_traces

_FINAL_DRAWS, _FINAL_DRAWS_LOOPED = 10_000, 1024
_DRAWS_TO_CHOOSE, _DRAWS_TO_CHOOSE_LOOPED = 1024, 64
_LEAST_BATCH = 64
_LEAST_BOUNDS = 16
# Where each step sees a part of the data: what of it is seen matters more than how many draws.
MOST_BATCHES, BATCHES_TO_CHOOSE = 200, 40


class Outcome(NamedTuple):
    """What fresh draws say of a fitted guide."""

    elbo: float
    elbo_se: float
    ess: float
    k_hat: float


@exact_traces()
def choose_state(
    scorer: Particles,
    flat: FlatParameters,
    candidates: Mapping[str, list[Tensor]],
    particles: int,
    *,
    num_importance: int = 1,
    batches: Iterable[Batch] | None = None,
) -> str:
    """Put the state of the highest bound on fresh draws in place, and return its name.

    All states meet the same random numbers, the same subsamples and the same batches.

    Args:
        scorer: Draws and scores.
        flat: The parameters.
        candidates: States by name, those without tensors left out; the preferred ones first.
        particles: Number of draws that are scored at once.
        num_importance: Draws of one importance-weighted bound; one for the ELBO.
        batches: What to call the model with, a few draws each; the scorer's arguments if not
            given.
    """
    if batches is not None:
        batches = list(islice(batches, BATCHES_TO_CHOOSE))
    draws = _DRAWS_TO_CHOOSE if scorer.vectorized else _DRAWS_TO_CHOOSE_LOOPED
    draws = max(draws, _LEAST_BOUNDS * num_importance)
    begin = torch.get_rng_state()

    def score(tensors: list[Tensor]) -> list[tuple[float, float]]:
        flat.assign(tensors)
        torch.set_rng_state(begin)
        if batches is not None or scorer.subsamples:
            parts = _parts(scorer, batches, BATCHES_TO_CHOOSE, particles)
            return [_bound(part, num_importance) for part in parts]
        return [_bound(_log_weights(scorer, draws, particles), num_importance)]

    states = {name: tensors for name, tensors in candidates.items() if tensors}
    before = flat.copy()
    try:
        bounds = {name: torch.tensor(score(tensors)).double() for name, tensors in states.items()}
        # A part of the data that no state has a bound for tells them apart no more.
        telling = torch.stack([each[:, 0] for each in bounds.values()]).isfinite().any(0)
        scores = {name: _mean_bound(each[telling]) for name, each in bounds.items()}
        chosen = choose(scores)
    except BaseException:
        # Ctrl-C, say: no state that was only tried must stay.
        flat.assign(before)
        raise
    flat.assign(states[chosen])
    return chosen


@exact_traces()
def evaluate(
    scorer: Particles,
    particles: int,
    *,
    draws: int | None = None,
    batches: Iterable[Batch] | None = None,
) -> Outcome:
    """Score fresh draws, in batches like the fit's.

    Args:
        scorer: Draws and scores.
        particles: Number of draws that are scored at once.
        draws: Number of draws; 10,000, or fewer where they are run one by one, if not given.
        batches: One pass over what steps called the model with: the first 200 are scored with as
            many draws as a step took; the scorer's arguments if not given.
    """
    if batches is not None or scorer.subsamples:
        # The weights would tell of the subsample as much as of the guide.
        parts = list(_parts(scorer, batches, MOST_BATCHES + 1, particles))
        is_whole = batches is not None and not scorer.subsamples and len(parts) <= MOST_BATCHES
        bounds = torch.tensor([_bound(part, 1) for part in parts[:MOST_BATCHES]]).double()
        elbo, elbo_se = _mean_bound(bounds, is_whole=is_whole)
        return Outcome(elbo, elbo_se, math.nan, math.nan)
    draws = draws or (_FINAL_DRAWS if scorer.vectorized else _FINAL_DRAWS_LOOPED)
    log_weights = _log_weights(scorer, draws, particles)
    elbo, elbo_se = _bound(log_weights, 1)
    if bool((log_weights.isnan() | (log_weights == torch.inf)).any()):
        return Outcome(elbo, elbo_se, math.nan, math.nan)
    shares = torch.softmax(log_weights, 0)
    ess = float(1 / shares.square().sum()) / len(log_weights)
    return Outcome(elbo, elbo_se, ess, pareto_k(log_weights))


@torch.no_grad()
def _log_weights(scorer: Particles, draws: int, particles: int) -> Tensor:
    size = max(particles, _LEAST_BATCH)
    batches = [scorer.score(size) for _ in range(math.ceil(draws / size))]
    return torch.cat([batch.log_p - batch.log_q for batch in batches]).double()


@torch.no_grad()
def _parts(
    scorer: Particles, batches: Iterable[Batch] | None, most: int, particles: int
) -> Iterable[Tensor]:
    """Yield the log-weights of some draws for each of some batches, or fresh subsamples."""
    given = repeat((scorer.args, scorer.kwargs)) if batches is None else batches
    before = scorer.args, scorer.kwargs
    try:
        for batch in islice(given, most):
            scorer.args, scorer.kwargs = batch
            scores = scorer.score(particles)
            yield (scores.log_p - scores.log_q).double()
    finally:
        scorer.args, scorer.kwargs = before


def _mean_bound(parts: Tensor, *, is_whole: bool = False) -> tuple[float, float]:
    """Return the mean of the bounds of parts of the data, and its standard error.

    Args:
        parts: The bound of each, and its standard error, of shape ``(N, 2)``.
        is_whole: Whether the parts are all there are; else which ones they are is random, too.
    """
    bounds, errors = parts.T
    of_draws = errors.nan_to_num(0.0).square().sum().sqrt() / len(parts)
    of_parts = bounds.std() / len(parts) ** 0.5 if len(parts) > 1 else torch.zeros(())
    # Of one draw a part, only the spread of the parts tells: it is no less than that of draws.
    is_known = is_whole and not bool(errors.isnan().any())
    return float(bounds.mean()), float(of_draws if is_known else torch.maximum(of_draws, of_parts))


def _bound(log_weights: Tensor, num_importance: int) -> tuple[float, float]:
    """Return the importance-weighted bound, and its standard error."""
    count = len(log_weights) // num_importance
    groups = log_weights[: count * num_importance].reshape(count, num_importance)
    bounds = groups.logsumexp(-1) - math.log(num_importance)
    error = float(bounds.std() / count**0.5) if count > 1 else math.nan
    return float(bounds.mean()), error
