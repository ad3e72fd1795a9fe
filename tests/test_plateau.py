"""The stopping rule, on curves whose course is known."""

import json

import numpy as np
import pytest

from pyro_flows import errors
from pyro_flows.infer.training.plateau import due, on_plateau


def stop(losses, **options):
    """Return the step at which a run with these losses would stop; None if it would not."""
    losses = [float(loss) for loss in losses]
    looked = (step for step in range(len(losses) + 1) if due(step))
    return next((step for step in looked if on_plateau(losses[:step], **options)), None)


def noise(num, scale=1.0, seed=0):
    return scale * np.random.default_rng(seed).standard_normal(num)


def heavy(num, scale=1.0, seed=0):
    """Draws with an infinite variance, on the side of large losses, as bad particles make them."""
    return scale * np.random.default_rng(seed).pareto(1.5, num)


STEPS = np.arange(8000)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scale", [0.0, 0.01, 0.1])
def test_a_flat_run_stops_soon(scale, seed):
    at = stop(100 + noise(8000, scale, seed))
    assert at is not None
    assert 500 <= at <= 1500


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("time", [30, 100, 300])
def test_a_descent_stops_once_little_is_left(time, seed):
    descent = 50 * np.exp(-STEPS / time)
    at = stop(descent + noise(8000, 0.05, seed))
    assert at is not None
    assert descent[at] < 0.05
    # The last half of 0.7 of the run has to be flat as well.
    assert at < 3 * time * np.log(50 / 0.02) + 1000


@pytest.mark.parametrize("seed", range(5))
def test_a_descent_by_a_power_law_stops_late(seed):
    """It never ends; by each doubling of the run it falls by less."""
    descent = 30 / np.sqrt(1 + STEPS / 10)
    at = stop(descent + noise(8000, 0.05, seed))
    assert at is None


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_a_slow_descent_is_seen_below_the_noise(scale, seed):
    """In 100 steps it falls by 0.02, far less than the noise; over the run, by more than 1."""
    assert stop(-2e-4 * STEPS + noise(8000, scale, seed)) is None


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_a_flat_start_before_the_descent_is_no_plateau(scale, seed):
    """A guide far from its target has noisy losses, which leave the fall unknown."""
    losses = np.where(STEPS < 1000, 40.0, 5 + 35 * np.exp(-(STEPS - 1000) / 100))
    at = stop(losses + noise(8000, 1.0, seed) * np.where(STEPS < 1500, scale, 0.02))
    assert at is not None
    assert losses[at] < 5.01


@pytest.mark.parametrize("seed", range(5))
def test_a_short_flat_start_without_noise_is_no_plateau(seed):
    losses = np.where(STEPS < 300, 40.0, 5 + 35 * np.exp(-(STEPS - 300) / 100))
    at = stop(losses + noise(8000, 0.01, seed))
    assert at is not None
    assert losses[at] < 5.05


@pytest.mark.parametrize("seed", range(5))
def test_heavy_tails_do_not_hide_a_plateau_nor_a_descent(seed):
    tails = heavy(8000, 0.1, seed)
    assert stop(100 + tails) is not None
    assert stop(100 - 2e-4 * STEPS + tails) is None


@pytest.mark.parametrize("seed", range(5))
def test_a_burst_of_bad_steps_does_not_hide_a_plateau(seed):
    losses = 10 + noise(2000, 0.02, seed)
    losses[1200:1250] += np.linspace(20, 0, 50)
    assert on_plateau(losses)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_skipped_steps_are_left_out(bad):
    losses = 10 + 20 * np.exp(-STEPS / 100) + noise(8000, 0.05)
    holed = losses.copy()
    holed[np.random.default_rng(0).random(8000) < 0.2] = bad
    assert stop(holed) is not None
    assert abs(stop(holed) - stop(losses)) <= 500


def test_nothing_is_concluded_from_hardly_any_loss():
    losses = np.full(3000, 10.0)
    losses[2000:] = np.nan
    assert not on_plateau(losses)
    assert not on_plateau(np.full(3000, np.nan))
    assert not on_plateau([])


@pytest.mark.parametrize("slope", [3e-5, 1e-3, 1.0])
def test_a_rising_loss_is_no_plateau(slope):
    assert not on_plateau(slope * np.arange(2000))


def test_noise_that_hides_the_fall_is_no_plateau():
    """By luck alone the fall is small at all three points in one of a hundred such runs."""
    assert not any(on_plateau(10 + noise(600, 0.3, seed)) for seed in range(400))
    assert stop(10 + noise(8000, 20.0)) is None


@pytest.mark.parametrize("factor", [1.0, -1.0, 1e4])
def test_the_level_does_not_matter(factor):
    losses = 20 * np.exp(-STEPS / 100) + noise(8000, 0.05)
    assert stop(losses + factor * 100) == stop(losses)


def test_the_rule_grows_with_the_run():
    """A run drawn out ten times stops ten times as late."""
    quick = 50 * np.exp(-np.arange(3000) / 100)
    slow = 50 * np.exp(-np.arange(30_000) / 1000)
    assert stop(slow) == pytest.approx(10 * stop(quick), rel=0.15)


def test_tolerance_is_in_nats():
    losses = 20 * np.exp(-STEPS / 200)
    assert (
        stop(losses, tolerance=1.0) < stop(losses, tolerance=0.02) < stop(losses, tolerance=1e-3)
    )


def test_never_before_500_steps():
    assert not on_plateau(np.zeros(499))
    assert on_plateau(np.zeros(500))


def test_the_answer_depends_on_the_losses_alone():
    """FAULTS 69: a resumed run, which has read its losses back, stops where the other does."""
    losses = list(20 * np.exp(-np.arange(3000) / 100) + noise(3000, 0.05))
    at = stop(losses)
    saved = json.loads(json.dumps(losses[: at - 170]))
    assert stop(saved + losses[at - 170 :]) == at
    assert stop(np.asarray(losses)) == at


def test_checks_become_rarer_as_the_run_grows():
    steps = [step for step in range(100_001) if due(step)]
    assert steps[:3] == [500, 550, 600]
    gaps = np.diff(steps)
    assert (gaps / steps[:-1]).max() <= 0.1
    assert len(steps) < 400


@pytest.mark.parametrize("tolerance", [0.0, -1.0, float("nan")])
def test_tolerance_is_checked(tolerance):
    with pytest.raises(errors.DomainError, match="on_plateau: expected tolerance"):
        on_plateau(np.zeros(10), tolerance)
