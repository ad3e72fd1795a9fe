"""Steps of the importance-weighted bound, after a fit that leaves the weights a heavy tail."""

import logging
import math
from collections.abc import Callable, Iterator

from pyro_flows.errors import NonFiniteError
from pyro_flows.infer.engine import Batch
from pyro_flows.infer.particles import Particles
from pyro_flows.infer.training.loop import Loop
from pyro_flows.infer.training.options import FitOptions
from pyro_flows.infer.training.outcome import Outcome, choose_state, evaluate

logger = logging.getLogger("pyro_flows")

# Shares of the fit's steps and step size.
_SHARE_OF_STEPS, SHARE_OF_LR = 0.2, 0.2
_MOST_ROUNDS = 3
# As k-hat of 10,000 draws is off by 0.1 or so, which would choose between states by luck.
_DRAWS = 40_000
_NUM_IMPORTANCE = 16
# Without, one draw in 10,000 may cost the ELBO 40 nats; with ten times as much, k-hat stays.
ELBO_WEIGHT = 2e-3
_LEAST_STEPS = 100
# Above, the weights have no finite variance (Vehtari et al. 2024, section 2).
_HEAVY = 0.5
# Share of the draws: where less is lost, the weights differ by a percent, whatever their tail.
_NEGLIGIBLE = 1e-4
_LEAST_ESS, _MOST_LOSS = 0.9, 0.05


def is_due(options: FitOptions, scorer: Particles, outcome: Outcome) -> bool:
    """Say whether a fit is to be refined.

    Where the ELBO was maximised by path gradients, with Adam, over all of the data, and k-hat is
    above 0.5, unless the weights are as good as equal.

    Args:
        options: The fit's options.
        scorer: Draws and scores.
        outcome: What fresh draws say of the guide.
    """
    own = options.optimizer or options.scheduler or options.num_importance > 1
    possible = scorer.vectorized and getattr(scorer.guide, "gradient", "total") == "path"
    long = steps_of(options) >= _LEAST_STEPS and num_importance_of(options) > 1
    asked = options.refine and options.batches is None and not own
    heavy = outcome.k_hat > _HEAVY and outcome.ess < 1 - _NEGLIGIBLE
    return asked and possible and long and heavy


def steps_of(options: FitOptions) -> int:
    """Return the number of steps of a refinement."""
    return int(_SHARE_OF_STEPS * options.steps)


def num_importance_of(options: FitOptions) -> int:
    """Return the number of draws under one logarithm, which divides those drawn at once."""
    return math.gcd(_NUM_IMPORTANCE, options.chunk)


def refine(
    make_loop: Callable[[], Loop],
    batches: Iterator[Batch],
    options: FitOptions,
    scorer: Particles,
) -> Outcome | None:
    """Maximise the importance-weighted bound from the present state, and keep what is better.

    The gradient of the ELBO hardly sees the tails that the guide leaves too light; the weights do,
    squared, in the doubly reparametrised gradient. A state is kept where k-hat is lower, and at
    most a tenth of the effective draws and 0.05 nats of the ELBO are lost for it. While that helps
    and k-hat is above 0.5, there is another round, of three at most.

    Args:
        make_loop: Returns the loop of a round.
        batches: What each step is called with.
        options: The fit's options.
        scorer: Draws and scores.

    Returns:
        What fresh draws say of the new state, or none if the old one stays.

    Reference:
        Burda, Grosse & Salakhutdinov (2016), *Importance weighted autoencoders*; Tucker, Lawson,
        Gu & Maddison (2019), *Doubly reparameterized gradient estimators*.
    """
    kept: Outcome | None = None
    try:
        bar = evaluate(scorer, options.chunk, draws=_DRAWS)
        for _ in range(_MOST_ROUNDS):
            after = _round(make_loop(), batches, options, scorer, bar)
            if after is None:
                break
            kept, bar = after, bar._replace(k_hat=after.k_hat)
            if kept.k_hat <= _HEAVY:
                break
    except KeyboardInterrupt:
        logger.info("fit: is refined no further, since the user stopped it")
    return kept


def _round(
    loop: Loop, batches: Iterator[Batch], options: FitOptions, scorer: Particles, bar: Outcome
) -> Outcome | None:
    """Take the steps, and keep the state, or else the one before, by what has to be met."""
    state, after, keeps = loop.flat.copy(), None, False
    try:
        after = _refined(loop, batches, options, scorer)
        keeps = after is not None and _better(after, bar)
    except NonFiniteError as error:
        logger.info("fit: was not refined: %s", error)
    finally:
        if not keeps:
            loop.flat.assign(state)
    if after is not None:
        words = "kept" if keeps else "not kept"
        logger.info(
            "fit: importance-weighted steps took k-hat from %.2f to %.2f, ESS to %.0f %%, the "
            "ELBO to %.2f; %s",
            *(bar.k_hat, after.k_hat, 100 * after.ess, after.elbo, words),
        )
    return after if keeps else None


def _refined(
    loop: Loop, batches: Iterator[Batch], options: FitOptions, scorer: Particles
) -> Outcome | None:
    status, _ = loop.run(
        batches, title="refine", progress=options.progress, after_step=lambda: None
    )
    if status == "interrupted":
        return None
    candidates = {"average": loop.average.tensors(), "last": loop.flat.copy()}
    num_importance = num_importance_of(options)
    choose_state(scorer, loop.flat, candidates, options.chunk, num_importance=num_importance)
    return evaluate(scorer, options.chunk, draws=_DRAWS)


def _better(after: Outcome, bar: Outcome) -> bool:
    return (
        after.k_hat < bar.k_hat
        and after.ess > _LEAST_ESS * bar.ess
        and after.elbo > bar.elbo - _MOST_LOSS
    )
