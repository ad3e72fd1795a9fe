"""What ranks say: exact p-values, bias and width, and the table."""

import itertools

import numpy as np
import pytest
from scipy import stats

from pyro_flows import errors
from pyro_flows.diagnostics.calibration.result import Calibration, Failure
from pyro_flows.diagnostics.calibration.scores import score
from pyro_flows.diagnostics.calibration.uniformity import symmetry, uniformity

DRAWS = 999


def normal_ranks(bias, width, num=400, seed=0):
    """Ranks of N(0, 1) truths among draws from N(bias, width^2): a posterior for flat data."""
    rng = np.random.default_rng(seed)
    draws = bias + width * rng.standard_normal((num, DRAWS))
    return (draws < rng.standard_normal((num, 1))).sum(1)


def calibration(*columns, **options):
    ranks = np.stack(columns, 1)
    return Calibration(
        {"x": ranks}, DRAWS, len(ranks) + len(options.get("failures", ())), **options
    )


def least_tail(ranks, num_draws):
    """The statistic of Säilynoja et al. (2022), by scipy, at every point between two ranks."""
    num, possible = len(ranks), num_draws + 1
    tails = []
    for edge in range(1, min(num, possible)):
        edge = edge * possible // min(num, possible)  # noqa: PLW2901
        count, law = (ranks < edge).sum(), stats.binom(num, edge / possible)
        tails.append(2 * min(law.cdf(count), law.sf(count - 1)))
    return min(tails)


@pytest.mark.parametrize(("num", "num_draws"), [(3, 3), (4, 2), (4, 3), (2, 9)])
def test_uniformity_is_exact(num, num_draws):
    every = np.array(list(itertools.product(range(num_draws + 1), repeat=num))).T
    extremes = np.array([least_tail(ranks, num_draws) for ranks in every.T])
    exact = [(extremes <= extreme * (1 + 1e-9)).mean() for extreme in extremes]
    np.testing.assert_allclose(uniformity(every, num_draws), exact, rtol=1e-8)


def test_symmetry_is_exact():
    """All ways to flip the signs about the middle are equally likely without a bias."""
    sizes = np.array([10, 75, 200, 333, 410, 480, 499])
    signs = np.array(list(itertools.product([-1, 1], repeat=len(sizes)))).T
    ranks = (DRAWS + signs * (2 * sizes[:, None] + 1)) // 2
    p = ranks / DRAWS
    extents = np.array([stats.ks_2samp(x, 1 - x, method="asymp").statistic for x in p.T])
    exact = [(extents >= extent - 1e-9).mean() for extent in extents]
    np.testing.assert_allclose(symmetry(ranks, DRAWS), exact, rtol=1e-8)


@pytest.mark.parametrize(("num", "num_draws"), [(40, 99), (150, 999)])
def test_p_values_are_uniform_where_ranks_are(num, num_draws):
    ranks = np.random.default_rng(0).integers(0, num_draws + 1, (num, 1000))
    for level in (0.01, 0.05, 0.2):
        noise = 4 * (level * (1 - level) / 1000) ** 0.5
        assert abs((uniformity(ranks, num_draws) <= level).mean() - level) < noise
        # The largest excursion of a walk takes few values, so its p-values are those or larger.
        share = (symmetry(ranks, num_draws) <= level).mean()
        assert 0.5 * level - noise < share < level + noise


def test_ties_about_the_middle_have_no_order():
    """FAULTS 91: equal offsets, and ranks in the middle, hold no excursion."""
    both_ends = np.repeat([0, 100, 50], 30)
    assert symmetry(both_ends[:, None], 100) == 1.0
    assert symmetry(np.full((30, 1), 50), 100) == 1.0
    assert symmetry(np.full((30, 1), 51), 100) == pytest.approx(2 * 0.5**30)


@pytest.mark.parametrize(
    ("bias", "width"),
    [(0, 0.1), (0, 0.5), (0, 1), (0, 3), (0.5, 0.1), (0.5, 1), (-3, 0.5), (-3, 1), (-3, 3)],
)
def test_bias_and_width_are_those_of_normal_guides(bias, width):
    """Also where many a truth lies beyond all draws."""
    ranks = normal_ranks(bias, width, num=2000)
    inside = ((ranks > 0) & (ranks < DRAWS)).sum()
    found = score(ranks, DRAWS)
    error = 5 / inside**0.5
    assert found.width == pytest.approx(width, rel=error)
    assert found.bias == pytest.approx(bias, abs=error * max(1, abs(bias)))


def test_nothing_but_ends_bounds_the_bias_alone():
    high, low = score(np.full(50, DRAWS), DRAWS), score(np.zeros(50, int), DRAWS)
    assert (high.bias, high.fault) == (-np.inf, "biased downward")
    assert (low.bias, low.fault) == (np.inf, "biased upward")
    assert score(np.full(50, 500), DRAWS).fault == "too wide"


@pytest.mark.parametrize(
    ("bias", "width", "fault"),
    [
        (0.0, 1.0, ""),
        (0.0, 0.5, "too narrow"),
        (0.0, 2.0, "too wide"),
        (0.5, 1.0, "biased upward"),
        (-0.5, 1.0, "biased downward"),
        (-3.0, 1.0, "biased downward"),
        (0.5, 0.5, "too narrow and biased upward"),
        (-1.0, 2.0, "too wide and biased downward"),
    ],
)
def test_faults_in_words(bias, width, fault):
    (found,) = calibration(normal_ranks(bias, width)).summary()
    assert found.fault == fault
    assert found.label == "x[0]"


def test_a_fault_without_bias_or_width_is_not_uniform():
    """Draws of a guide that leaves gaps."""
    ranks = np.concatenate([np.arange(100, 250), np.arange(750, 900)])
    (found,) = calibration(ranks).summary()
    assert found.fault == "not uniform"


def test_right_fits_are_called_wrong_as_rarely_as_asked():
    rng = np.random.default_rng(1)
    alarms = [
        any(q.fault for q in calibration(*rng.integers(0, 1000, (5, 40))).summary(level=0.1))
        for _ in range(150)
    ]
    assert np.mean(alarms) < 0.1 + 3 * (0.09 / 150) ** 0.5


def test_level_is_refused():
    found = calibration(normal_ranks(0, 1))
    for level in (0.0, 1.0, -1, "no"):
        with pytest.raises(errors.DomainError, match=r"Calibration: expected level"):
            found.summary(level)


def test_entries_that_never_vary_are_left_out():
    ranks = np.stack([np.zeros(200, int), normal_ranks(0, 1, num=200)], 1)
    found = Calibration({"x": ranks}, DRAWS, 200, constant={"x": np.array([True, False])})
    assert [q.label for q in found.summary()] == ["x[1]"]
    nothing = Calibration({"x": ranks}, DRAWS, 200, constant={"x": np.array([True, True])})
    assert nothing.verdict == "nothing to judge by"


def test_histogram_counts_every_rank():
    found = calibration(normal_ranks(0, 1), normal_ranks(0, 0.2))
    counts = found.histogram(bins=10)["x"]
    assert counts.shape == (10, 2)
    assert counts.sum(0).tolist() == [400, 400]
    edges = np.arange(0, 1001, 100) - 0.5
    assert counts[:, 1].tolist() == np.histogram(found.ranks["x"][:, 1], edges)[0].tolist()
    assert counts[[0, -1], 1].min() > 100


def test_bins_that_do_not_fit_are_refused():
    """FAULTS 91: too few draws, or too few simulations, for the bins."""
    found = calibration(normal_ranks(0, 1))
    with pytest.raises(errors.DomainError, match=r"got 33. Pass bins=40, or .* num_draws=1022"):
        found.histogram(bins=33)
    with pytest.raises(errors.DomainError, match=r"at least 500 .* for 100 bins; got 400"):
        found.histogram(bins=100)
    with pytest.raises(errors.DomainError, match=r"divide the 1000 possible ranks; got 2000"):
        found.histogram(bins=2000)


def test_table_shows_failures_with_their_reasons():
    """FAULTS 90: counted and shown."""
    failures = (
        Failure(3, "ValueError: no root"),
        Failure(7, "NonFiniteError: NaN at the site 'y'"),
        Failure(9, "ValueError: no root at 2"),
    )
    found = calibration(normal_ranks(0, 1), failures=failures, k_hats=np.array([0.1, 0.9, np.nan]))
    text = repr(found)
    assert found.num_fitted == 400
    assert "no fault seen in 1 quantity; 3 simulations could not be fitted" in text
    assert "3 of 403 failed:" in text
    assert "2 as no. 3: ValueError: no root\n" in text
    assert "1 as no. 7: NonFiniteError: NaN at the site 'y'" in text
    assert "k-hat above 0.7 in 1 of 400 fits" in text


def test_long_tables_show_the_worst():
    columns = [normal_ranks(0, 1, num=50, seed=seed) for seed in range(40)]
    found = calibration(*columns, normal_ranks(3, 1, num=50), normal_ranks(0, 0.1, num=50))
    lines = repr(found).splitlines()
    assert lines[0].startswith("Calibration: not right: x[4")
    assert len(lines) == 3 + 30 + 1
    assert lines[-1] == "  and 12 with larger p-values"
    assert "x[40]" in repr(found)
    assert "x[41]" in repr(found)


def test_probabilities_are_shares_of_draws():
    found = calibration(np.array([0, 999, 333]))
    np.testing.assert_allclose(found.probabilities["x"][:, 0], [0, 1, 1 / 3], rtol=1e-12)
