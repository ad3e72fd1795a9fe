"""Pictures of a fit: its losses, its weights, and its calibration."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from scipy import stats

from pyro_flows.density import MleResult
from pyro_flows.diagnostics import plots
from pyro_flows.diagnostics.plots.ranks import binomial_band, symmetry_p_value
from pyro_flows.errors import NonFiniteError
from pyro_flows.infer import FitResult, pareto_k

NAN = math.nan


@pytest.fixture(autouse=True)
def _no_window():
    plt.switch_backend("agg")
    yield
    plt.close("all")


def fitted(losses, **changes):
    result = FitResult(
        losses=np.asarray(losses),
        status="converged",
        reason="",
        steps=len(losses),
        skipped_steps=0,
        restarts=0,
        seconds=1.0,
        lr=0.1,
        state="average",
        engine="eager",
        step_bytes=0,
        elbo=-3.0,
        elbo_se=0.01,
        ess=1.0,
        k_hat=0.1,
        vectorized=True,
        subsampled=False,
    )
    return dataclasses.replace(result, **changes)


def labelled(ax):
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def descent(steps=1000):
    steps = np.arange(steps)
    noise = np.random.default_rng(0).normal(scale=0.05, size=steps.size)
    return 3.0 + 2.0 * np.exp(-steps / 100) + noise


# Losses.


def test_loss_curve_and_its_marks():
    losses = descent()
    ax = plots.plot_loss(fitted(losses), exact=-2.9)
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), np.c_[np.arange(1, 1001), losses])
    lines = labelled(ax)
    medians = lines["loss of a step, median"].get_xydata()
    np.testing.assert_allclose(medians[:, 0], np.arange(5.5, 1000, 10))
    np.testing.assert_allclose(medians[:, 1], np.median(losses.reshape(100, 10), 1))
    assert set(lines["stopped at step 1,000: converged"].get_xdata()) == {1000}
    assert set(lines["state kept, average: 3.000 ± 0.01"].get_ydata()) == {3.0}
    assert set(lines["exact: 2.900"].get_ydata()) == {2.9}
    band = ax.patches[0].get_bbox()
    assert (band.y0, band.y1) == pytest.approx((2.99, 3.01))
    assert ax.get_ylabel() == "loss: negative ELBO (nats)"
    assert not ax.get_title(loc="left")


def test_an_explosion_does_not_flatten_the_rest():
    losses = descent()
    losses[:50] += 1e6
    losses[600] = -1e9
    ax = plots.plot_loss(fitted(losses))
    low, high = ax.get_ylim()
    late = np.ptp(losses[700:])
    assert late < high - low < 12 * late
    outside = ((losses < low) | (losses > high)).sum()
    assert ax.get_title(loc="left") == f"{outside} steps lie outside, the furthest at -1e+09"


def test_a_flat_curve_shows_a_nat_at_most():
    losses = 3.0 + 1e-4 * np.random.default_rng(0).normal(size=500)
    losses[:5] += [40, 30, 20, 10, 0.5]
    low, high = plots.plot_loss(fitted(losses)).get_ylim()
    assert 0.9 < high - low < 2.5


@pytest.mark.parametrize("exact", [-2.0, -9.0])
def test_the_exact_value_is_in_the_picture(exact):
    low, high = plots.plot_loss(fitted(descent()), exact=exact).get_ylim()
    assert low < -exact < high
    assert low < 3.0 < high


def test_skipped_steps_are_marked():
    losses = descent()
    losses[[99, 499]] = NAN
    losses[700:715] = NAN
    lines = labelled(plots.plot_loss(fitted(losses)))
    np.testing.assert_array_equal(
        lines["17 steps skipped"].get_xdata(), [100, 500, *range(701, 716)]
    )
    assert np.isnan(lines["loss of a step, median"].get_ydata()).sum() == 1


@pytest.mark.parametrize(
    ("status", "words"), [("max_steps", "all steps taken"), ("interrupted", "interrupted")]
)
def test_why_it_stopped(status, words):
    assert f"stopped at step 30: {words}" in labelled(
        plots.plot_loss(fitted(descent(30), status=status))
    )


def test_fits_without_steps_or_without_an_elbo():
    plots.plot_loss(fitted([], status="interrupted"), exact=-2.0)
    ax = plots.plot_loss(fitted(descent(30), elbo=-math.inf, elbo_se=NAN))
    assert not [label for label in labelled(ax) if "state kept" in label]
    for losses in ([], [NAN, NAN]):
        with pytest.raises(NonFiniteError, match=r"^plot_loss: expected a loss that is finite"):
            plots.plot_loss(fitted(losses, elbo=NAN, elbo_se=NAN))


def test_fit_to_data():
    result = MleResult(
        losses=descent(40),
        validation=np.array([8.0, 7.0, 6.5, 6.0]),
        nll=6.0,
        status="max_epochs",
        reason="",
        epochs=4,
        steps=40,
        skipped_steps=0,
        seconds=1.0,
        lr=0.1,
        state="best",
        engine="eager",
    )
    ax = plots.plot_loss(result)
    lines = labelled(ax)
    np.testing.assert_array_equal(
        lines["held-out rows"].get_xydata(), np.c_[[10, 20, 30, 40], result.validation]
    )
    assert "state kept, best: 6.000" in lines
    assert "stopped at step 40: all epochs taken" in lines
    assert ax.get_ylabel() == "negative log-likelihood of a row (nats)"


# Weights.


def pareto(k, num=4000):
    uniform = np.random.default_rng(0).uniform(size=num)
    return np.log(np.expm1(-k * np.log(uniform)) / k)


@pytest.mark.parametrize(
    ("k", "words"), [(0.2, "good, below 0.5"), (0.6, "usable, below"), (1.0, "bad, above 0.7")]
)
def test_weights_and_their_tail(k, words):
    log_weights = pareto(k)
    ax = plots.plot_k_hat(log_weights + 1000.0)
    assert ax.get_title().startswith(f"k-hat {pareto_k(log_weights):.2f}: {words}")
    lines = labelled(ax)
    weights = np.sort(np.exp(log_weights))[::-1] / np.exp(log_weights).mean()
    np.testing.assert_allclose(lines["draws"].get_xdata(), weights[:2000], rtol=1e-9)
    np.testing.assert_allclose(lines["draws"].get_ydata(), (np.arange(2000) + 0.5) / 4000)
    tail = lines["Pareto tail fitted to 190 of 4,000"]
    shares, start = tail.get_ydata(), weights[190]
    # The closed form of the tail beyond a threshold; its scale is fitted, too.
    excess = tail.get_xdata() - start
    ratio = excess / ((shares * 4000 / 190) ** -pareto_k(log_weights) - 1)
    used = np.isfinite(ratio)
    assert used.sum() > 180
    np.testing.assert_allclose(ratio[used], ratio[100], rtol=1e-6)


def test_tails_of_the_thresholds():
    lines = labelled(plots.plot_k_hat(pareto(0.6)))
    draws = lines["draws"].get_xdata()[:191]
    for k in (0.5, 0.7):
        weights = lines[f"Pareto tail, k = {k}"].get_xdata()
        assert weights[-1] == pytest.approx(draws[-1])
        assert np.median(weights) == pytest.approx(np.median(draws[:-1]), rel=0.01)
        median = np.median(draws[:-1]) - draws[-1]
        tail = stats.genpareto(k, loc=draws[-1], scale=median / stats.genpareto(k).median())
        shares = (np.arange(190) + 0.5) / 189.5
        np.testing.assert_allclose(weights, tail.isf(shares), rtol=1e-9)


def test_a_logarithmic_axis_only_where_weights_differ():
    assert plots.plot_k_hat(pareto(0.6)).get_xscale() == "log"
    assert plots.plot_k_hat(1e-3 * pareto(0.6)).get_xscale() == "linear"


def test_weights_over_hundreds_of_orders_of_magnitude():
    log_weights = 300.0 * np.random.default_rng(0).normal(size=2000)
    ax = plots.plot_k_hat(torch.as_tensor(log_weights))
    ax.figure.canvas.draw()
    assert "bad" in ax.get_title()


@pytest.mark.parametrize("weights", [np.zeros(4000), np.arange(10.0), np.ones(1)])
def test_shapes_that_are_not_known(weights):
    """FAULTS 88."""
    ax = plots.plot_k_hat(weights)
    assert ax.get_title() == "k-hat not known: too few draws, or ties"
    assert list(labelled(ax)) == ["draws"]
    ax.figure.canvas.draw()


def test_weights_of_zero_count_as_draws():
    log_weights = pareto(0.3)
    log_weights[:3000] = -np.inf
    draws = labelled(plots.plot_k_hat(log_weights))["draws"]
    assert draws.get_ydata()[0] == pytest.approx(0.5 / 4000)


def test_bars_of_several():
    bounded = np.log(np.random.default_rng(0).uniform(size=4000))
    named = {"good": pareto(0.2), "bad": pareto(1.0), "few": np.zeros(3), "bounded": bounded}
    ax = plots.plot_k_hat(named)
    widths = [bar.get_width() for bar in ax.patches]
    assert widths == pytest.approx(
        [pareto_k(named["good"]), pareto_k(named["bad"]), 0.0, pareto_k(named["bounded"])]
    )
    assert [label.get_text() for label in ax.get_yticklabels()] == list(named)
    assert [text.get_text() for text in ax.texts][2] == "not known"
    assert [bool(bar.get_hatch()) for bar in ax.patches] == [False, True, False, False]
    assert [line.get_xdata()[0] for line in ax.lines] == [0.5, 0.7, 0.0]


# Calibration.


def stairs(ax):
    """Return the band, the expected counts, and the counts."""
    band, expected, counts, outline = (patch.get_data() for patch in ax.patches)
    np.testing.assert_array_equal(counts.values, outline.values)
    return band, expected, counts


@pytest.mark.parametrize(("num_draws", "bins"), [(99, 20), (100, 20), (4, 5), (62, 9), (999, 20)])
def test_ranks_are_counted(num_draws, bins):
    ranks = np.random.default_rng(0).integers(0, num_draws + 1, 400)
    band, expected, counts = stairs(plots.plot_ranks(ranks, num_draws=num_draws))
    assert len(counts.values) == bins if num_draws != 62 else 11 <= len(counts.values) <= 20
    assert (counts.edges[0], counts.edges[-1]) == (-0.5, num_draws + 0.5)
    of_each = np.array([(ranks == rank).sum() for rank in range(num_draws + 1)])
    inside = np.arange(num_draws + 1)[:, None]
    inside = (inside > counts.edges[:-1]) & (inside < counts.edges[1:])
    np.testing.assert_array_equal(counts.values, of_each @ inside)
    shares = inside.sum(0) / (num_draws + 1)
    np.testing.assert_allclose(expected.values, 400 * shares)
    np.testing.assert_array_equal(band.baseline, stats.binom(400, shares).ppf(0.005))
    np.testing.assert_array_equal(band.values, stats.binom(400, shares).ppf(0.995))


def test_few_simulations_make_few_bins():
    assert len(stairs(plots.plot_ranks([1, 2, 3], num_draws=99))[2].values) == 1
    assert len(stairs(plots.plot_vsbc(np.linspace(0, 1, 50)))[2].values) == 5


@pytest.mark.parametrize("count", [1, 7, 1000])
def test_binomial_band(count):
    shares = np.array([0.01, 0.05, 0.5, 1.0])
    low, high = binomial_band(count, shares)
    np.testing.assert_array_equal(low, stats.binom(count, shares).ppf(0.005))
    np.testing.assert_array_equal(high, stats.binom(count, shares).ppf(0.995))


def test_a_panel_for_each_coordinate():
    ranks = np.random.default_rng(0).integers(0, 100, (200, 2, 2))
    axes = plots.plot_ranks({"mu": ranks[:, 0, 0], "theta": ranks}, num_draws=99)
    titles = [ax.get_title() for ax in axes.flat]
    names = ["mu", "theta[0, 0]", "theta[0, 1]", "theta[1, 0]", "theta[1, 1]"]
    assert titles == [*names, ""]
    assert axes.shape == (2, 3)
    assert not axes[-1, -1].axison
    expected = np.histogram(ranks[:, 1, 0], stairs(axes[1, 0])[2].edges)[0]
    np.testing.assert_array_equal(stairs(axes[1, 0])[2].values, expected)


def test_probabilities_are_counted():
    shares = np.random.default_rng(0).beta(0.5, 0.5, size=300)
    ax = plots.plot_vsbc(shares)
    counts = stairs(ax)[2]
    np.testing.assert_array_equal(counts.values, np.histogram(shares, 20, (0, 1))[0])
    assert ax.get_title().startswith("symmetric (p = ")
    ax = plots.plot_vsbc({"mu": np.sqrt(shares)})[0, 0]
    assert ax.get_title() == "mu\nasymmetric (p < 0.001)"


@pytest.mark.parametrize("shape", [0.5, 1.0, 3.0])
def test_symmetry_is_found_asymmetric_as_often_as_its_level_says(shape):
    """Whatever the width, as long as it is symmetric."""
    rng = np.random.default_rng(0)
    p_values = [symmetry_p_value(rng.beta(shape, shape, size=60)) for _ in range(1000)]
    for level in (0.05, 0.2, 0.5):
        share = np.mean(np.array(p_values) <= level)
        assert level - 0.1 * level - 0.05 < share < level + 3 * math.sqrt(level / 1000)


def test_symmetry_of_mirror_images_and_of_a_shift():
    shares = np.random.default_rng(0).uniform(size=50)
    assert symmetry_p_value(np.append(shares, 1 - shares)) == 1.0
    assert symmetry_p_value(np.full(9, 0.5)) == 1.0
    # All signs are equal: two of 2 ** 9 walks go as far.
    assert symmetry_p_value(np.linspace(0.6, 0.9, 9)) == pytest.approx(2 / 2**9)
    assert symmetry_p_value(1 - np.linspace(0.6, 0.9, 9)) == pytest.approx(2 / 2**9)
