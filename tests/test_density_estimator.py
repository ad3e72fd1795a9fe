"""FlowDensity: densities of the data as they are, scikit-learn's conventions, and bad tables."""

import logging
import math

import numpy as np
import pytest
import torch

import pyro_flows as pf
from pyro_flows.density import FlowDensity

FAST = {"epochs": 30, "random_state": 0, "lr": 5e-3}
RNG = np.random.default_rng(0)
FACTOR = np.array([[3.0, 0.0], [20.0, 5.0]])
X = RNG.normal(size=(1500, 2)) @ FACTOR.T + [100.0, -7.0]


def affine(input_dim, *, context_dim=0):
    return pf.Flow(pf.transforms.LowerTriangularAffine(input_dim))


@pytest.mark.parametrize("standardise", ["sd", "robust", "whiten"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_density_is_that_of_the_data_as_they_are(standardise, dtype):
    """FAULTS 59: the Jacobian of the standardisation is in it."""
    options = {"epochs": 80, "lr": 0.03, "random_state": 0}
    density = FlowDensity(affine, standardise=standardise, dtype=dtype, **options).fit(X)
    exact = torch.distributions.MultivariateNormal(
        torch.tensor([100.0, -7.0]).double(), scale_tril=torch.tensor(FACTOR)
    )
    theirs = exact.log_prob(torch.tensor(X)).numpy()
    # The logarithms of the Jacobian are 2.7 nats and more.
    assert np.abs(density.score_samples(X) - theirs).mean() < 0.1
    assert density.score(X) == pytest.approx(theirs.mean(), abs=0.02)


def test_standardisation_is_of_the_rows_that_are_trained_on():
    """FAULTS 59."""
    density = FlowDensity(affine, validation=0.5, epochs=1, random_state=0).fit(X)
    loc = density.flow_.transform.parts[-1].fixed_loc.numpy()
    distances = np.abs(loc - X.mean(0)) / (X.std(0) / math.sqrt(len(X)))
    assert (distances > 1e-2).any()
    assert (distances < 5).all()


def test_draws_are_of_the_fitted_density():
    density = FlowDensity("realnvp", **FAST).fit(X)
    draws = density.sample(20_000, random_state=1)
    assert draws.shape == (20_000, 2)
    np.testing.assert_allclose(draws.mean(0), X.mean(0), atol=0.15 * X.std(0).max())
    np.testing.assert_allclose(np.cov(draws.T), np.cov(X.T), rtol=0.15)
    np.testing.assert_array_equal(draws, density.sample(20_000, random_state=1))


def test_context_shifts_the_density():
    context = RNG.uniform(-1, 1, size=(1500, 1))
    rows = 5 * context + 0.2 * RNG.normal(size=(1500, 2))
    density = FlowDensity("realnvp", **FAST).fit(rows, context=context)
    means = [
        density.sample(2000, context=np.full((2000, 1), c), random_state=0).mean()
        for c in (-0.5, 0.5)
    ]
    np.testing.assert_allclose(means, [-2.5, 2.5], atol=0.3)
    assert density.score_samples(rows, context=context).shape == (1500,)


def test_a_named_flow_scores_in_one_pass():
    density = FlowDensity("maf", epochs=1, random_state=0).fit(X[:300])
    named = FlowDensity("nsf", epochs=1, random_state=0).fit(X[:300])
    passed = FlowDensity(pf.flows.nsf, epochs=1, random_state=0).fit(X[:300])
    kinds = [type(fit.flow_.transform.parts[0]) for fit in (density, named, passed)]
    assert kinds == [pf.transforms.Inverse, pf.transforms.Inverse, pf.transforms.Compose]


def test_several_starts_keep_the_best():
    one = FlowDensity("realnvp", epochs=5, random_state=0).fit(X)
    best = FlowDensity("realnvp", epochs=5, random_state=0, num_starts=3).fit(X)
    assert best.result_.nll <= one.result_.nll


def test_seed_means_the_same_fit_and_the_random_state_stays():
    before = torch.get_rng_state()
    scores = [FlowDensity("realnvp", epochs=3, random_state=4).fit(X).score(X) for _ in range(2)]
    assert scores[0] == scores[1]
    assert torch.equal(before, torch.get_rng_state())


def test_works_with_scikit_learn():
    base = pytest.importorskip("sklearn.base")
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    density = FlowDensity(affine, epochs=2, random_state=0)
    copy = base.clone(density)
    assert copy is not density
    assert copy.get_params() == density.get_params()
    search = GridSearchCV(density, {"lr": [1e-3, 5e-2]}, cv=2).fit(X)
    assert search.best_params_["lr"] in (1e-3, 5e-2)
    pipeline = make_pipeline(StandardScaler(), FlowDensity(affine, epochs=2, random_state=0))
    assert math.isfinite(pipeline.fit(X).score(X))


def test_integers_are_warned_of_and_dequantised(caplog):
    """FAULTS 60."""
    counts = RNG.poisson(30.0, size=(800, 2)).astype(float)
    with caplog.at_level(logging.WARNING, logger="pyro_flows"):
        FlowDensity(affine, epochs=1, random_state=0).fit(counts)
    assert any("columns 0, 1 hold integers" in r.getMessage() for r in caplog.records)
    caplog.clear()
    density = FlowDensity(affine, dequantise=True, **FAST)
    with caplog.at_level(logging.WARNING, logger="pyro_flows"):
        density.fit(counts)
    assert not caplog.records
    # At most the entropy of the discrete counts, of which it is a bound.
    shares = np.unique(counts[:, 0], return_counts=True)[1] / len(counts)
    entropy = -2 * np.sum(shares * np.log(shares))
    assert -entropy - 0.5 < density.score(counts) < -entropy + 0.1
    assert (density.sample(10) % 1 == 0).all()


def test_repeated_rows_are_warned_of(caplog):
    """FAULTS 60."""
    with caplog.at_level(logging.WARNING, logger="pyro_flows"):
        FlowDensity(affine, epochs=1, random_state=0, validation=0.01).fit(np.repeat(X, 12, 0))
    assert any("rows repeat others" in record.getMessage() for record in caplog.records)


def test_outliers_that_merge_rows_are_warned_of(caplog):
    """FAULTS 58."""
    rows = np.exp(10 * RNG.normal(size=(2000, 2)))
    with caplog.at_level(logging.WARNING, logger="pyro_flows"):
        FlowDensity(affine, epochs=1, random_state=0).fit(rows)
    assert any("scaled by outliers" in record.getMessage() for record in caplog.records)


def missing():
    rows = X.copy()
    rows[:3, 1], rows[5, 0] = np.nan, np.inf
    return rows


def test_rows_with_missing_values_are_dropped_when_asked(caplog):
    """FAULTS 56."""
    with caplog.at_level(logging.WARNING, logger="pyro_flows"):
        density = FlowDensity(affine, epochs=1, drop_missing=True, random_state=0).fit(missing())
    assert "dropped 4 of 1500 rows" in caplog.records[0].getMessage()
    assert math.isfinite(density.score(X))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda d: d.fit(missing()), pf.NonFiniteError, "1 in column 0, 3 in column 1, of 1500"),
        (lambda d: d.fit(X[:, 0]), pf.DomainError, r"reshape\(-1, 1\)"),
        (lambda d: d.fit([["a", "b"]]), pf.DomainError, "table of real numbers"),
        (lambda d: d.fit(X[:1]), pf.DomainError, "at least two rows"),
        (lambda d: d.fit(X[:0]), pf.DomainError, "at least one row"),
        (lambda d: d.fit(X * [1, 0]), pf.DomainError, "constant ones: 1"),
        (lambda d: d.fit(X, context=X[:5]), pf.ShapeError, "1500 rows"),
        (lambda d: d.score(X), pf.DomainError, "fit"),
        (lambda d: d.fit(X).score(X[:, :1]), pf.ShapeError, "2 columns"),
        (lambda d: d.set_params(depth=3), pf.DomainError, "depth"),
        (lambda d: d.set_params(standardise="max").fit(X), pf.DomainError, "standardise"),
        (lambda d: d.set_params(validation=1.0).fit(X), pf.DomainError, "share"),
        (lambda d: d.set_params(flow="glow9").fit(X), pf.DomainError, "glow9"),
        (lambda d: d.set_params(dtype="float16").fit(X), pf.DomainError, "dtype"),
        (lambda d: d.set_params(num_starts=0).fit(X), pf.DomainError, "num_starts"),
    ],
)
def test_bad_tables_and_arguments_are_refused(call, error, words):
    """FAULTS 56, 57, 61."""
    with pytest.raises(error, match=words):
        call(FlowDensity(affine, epochs=1, random_state=0))
