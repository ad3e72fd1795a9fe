"""Bad tables: gaps, constants, outliers, repeats, contexts, and columns at predict time."""

import logging
import math

import numpy as np
import pytest
import torch

import pyro_flows as pf
from pyro_flows.density import FlowDensity
from pyro_flows.density.preparation import location_and_scale, scaling
from pyro_flows.density.repeats import num_different

RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 2)) * [3.0, 20.0] + [100.0, -7.0]


def affine(input_dim, *, context_dim=0):
    return pf.Flow(pf.transforms.LowerTriangularAffine(input_dim, context_dim=context_dim))


def fast(**options):
    return FlowDensity(affine, **{"epochs": 1, "engine": "eager", "random_state": 0, **options})


def with_gaps(rows=X):
    rows = rows.copy()
    rows[:3, 1], rows[5, 0], rows[3, 1] = np.nan, np.inf, -np.inf
    return rows


@pytest.fixture
def warned(caplog):
    """Return the warnings so far."""
    caplog.set_level(logging.WARNING, logger="pyro_flows")
    return lambda: [record.getMessage() for record in caplog.records]


def test_gaps_are_counted_for_each_column_of_rows_and_context():
    """FAULTS 56."""
    words = r"float32; got 1 in column 0, 4 in column 1, 2 in column 0 of the context, of 400 rows"
    context = RNG.normal(size=(400, 1))
    context[7:9] = np.nan
    for error in (pf.NonFiniteError, ValueError):
        with pytest.raises(error, match=words):
            fast().fit(with_gaps(), context=context)


def test_rows_with_gaps_are_dropped_with_their_contexts(warned):
    """FAULTS 56: what is left is fitted as if the others had never been."""
    context = RNG.normal(size=(400, 1))
    gaps = context.copy()
    gaps[7:9] = np.nan
    density = fast(drop_missing=True).fit(with_gaps(), context=gaps)
    assert warned()[0].startswith("FlowDensity: dropped 7 of 400 rows")
    kept = np.setdiff1d(np.arange(400), [0, 1, 2, 3, 5, 7, 8])
    same = fast().fit(X[kept], context=context[kept])
    ours, theirs = (each.score_samples(X, context=context) for each in (density, same))
    np.testing.assert_array_equal(ours, theirs)


def test_table_of_gaps_alone_is_refused_also_where_they_are_to_be_dropped():
    """FAULTS 56."""
    with pytest.raises(pf.DomainError, match="a row without NaN and infinities"):
        fast(drop_missing=True).fit(np.full((5, 2), np.nan))


@pytest.mark.parametrize("gap", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("drop", [True, False])
def test_row_with_a_gap_has_no_density(gap, drop):
    """FAULTS 56: never a finite number, and never one row less than was asked for."""
    density = fast(drop_missing=drop).fit(X, context=X[:, :1])
    rows = X[:4].copy()
    rows[2, 1] = gap
    with pytest.raises(pf.NonFiniteError, match="1 in column 1, of 4 rows"):
        density.score_samples(rows, context=X[:4, :1])
    with pytest.raises(pf.NonFiniteError, match="1 in column 0 of the context"):
        density.score(X[:4], context=rows[:, 1:])
    with pytest.raises(pf.NonFiniteError, match="1 in column 0"):
        density.sample(context=rows[:, 1:])


def test_number_too_large_for_the_dtype_is_told_of_with_it():
    """FAULTS 56, 58."""
    rows = X.copy()
    rows[3, 0] = 1e300
    with pytest.raises(pf.NonFiniteError, match="in float32; got 1 in column 0"):
        fast().fit(rows)
    density = fast(dtype="float64", standardise="robust").fit(rows)
    assert math.isfinite(density.score(X))


@pytest.mark.parametrize("constant", [0.0, 3.5, -1e6])
def test_constant_columns_are_named(constant):
    """FAULTS 57."""
    rows = np.insert(X, [1, 2], constant, axis=1)
    with pytest.raises(pf.DomainError, match="constant ones: 1, 3"):
        fast().fit(rows)


def test_column_that_is_constant_in_the_dtype_alone_is_named_with_it():
    """FAULTS 57: seconds since 1970 within a minute are one number in float32."""
    rows = np.c_[1.7e9 + RNG.uniform(0, 50, 400), X]
    with pytest.raises(pf.DomainError, match="in float32; got constant ones: 0"):
        fast().fit(rows)
    assert math.isfinite(fast(dtype="float64").fit(rows).score(rows))


def test_columns_that_are_far_from_zero_are_warned_of(warned):
    """FAULTS 58."""
    rows = np.c_[X, 1e5 + RNG.normal(size=400)]
    fast().fit(rows)
    assert any("columns 2 lie so far from zero that float32" in words for words in warned())


def test_outliers_that_merge_rows_are_warned_of_and_quartiles_keep_rows_apart(warned):
    """FAULTS 58: in the middle half of lognormal rows of sd 10."""
    rows = np.exp(10 * np.random.default_rng(1).normal(size=(2000, 1)))
    fast().fit(rows)
    assert any("scaled by outliers, 1800 different rows become" in words for words in warned())
    table = torch.tensor(rows, dtype=torch.float32)
    middle = table[(table > table.quantile(0.25)) & (table < table.quantile(0.75))][:, None]
    different = [
        num_different([scaling("test", way, table, 2000).inv(middle).detach()])
        for way in ("sd", "robust")
    ]
    assert different[0] < 100
    assert different[1] > 990


@pytest.mark.parametrize("standardise", ["sd", "robust", "whiten", "none"])
def test_density_of_the_data_as_they_are_integrates_to_one(standardise):
    """FAULTS 59: in one dimension and in two, far from zero and from unit scale."""
    options = {"standardise": standardise, "epochs": 3, "random_state": 0}
    line = RNG.normal(5.0, 0.02, size=(500, 1))
    density = FlowDensity("nsf", **options).fit(line)
    # Without a scale, three epochs leave a density that is as wide as the base's.
    ends = (-40.0, 40.0) if standardise == "none" else (4.0, 6.0)
    grid, step = np.linspace(*ends, 20_001, retstep=True)
    total = np.exp(density.score_samples(grid.reshape(-1, 1))).sum() * step
    assert total == pytest.approx(1.0, abs=2e-3)
    if standardise == "none":
        return
    plane = RNG.normal(size=(500, 2)) @ np.array([[20.0, 0.01], [0.0, 0.02]]) + [300.0, 1.0]
    density = FlowDensity("realnvp", **options).fit(plane)
    x, y = np.linspace(100, 500, 401), np.linspace(0.7, 1.3, 301)
    cells = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    total = np.exp(density.score_samples(cells)).sum() * (x[1] - x[0]) * (y[1] - y[0])
    assert total == pytest.approx(1.0, abs=5e-3)


@pytest.mark.parametrize("num", [3, 100, 200_000])
def test_location_and_scale_are_those_of_a_sort_and_of_moments(num):
    """FAULTS 59: in pieces, and in double precision far from zero."""
    wide = np.random.default_rng(2).normal(size=(num, 3)) * [1.0, 5.0, 1e-2] + [0.0, 1e3, -1.0]
    data = torch.tensor(wide, dtype=torch.float32)
    exact = data.double().numpy()
    loc, scale = location_and_scale("sd", data)
    np.testing.assert_allclose(loc, exact.mean(0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(scale, exact.std(0, ddof=1), rtol=1e-9)
    loc, scale = location_and_scale("robust", data)
    np.testing.assert_allclose(loc, np.median(exact, 0))
    spread = np.subtract(*np.quantile(exact, [0.75, 0.25], axis=0))
    np.testing.assert_allclose(scale, spread / 1.349)


def test_integers_and_repeats_are_warned_of_and_the_fit_stays_finite(warned):
    """FAULTS 60: held-out rows that are copies do not make it run away."""
    rows = np.repeat(RNG.integers(0, 5, size=(30, 2)), 12, axis=0).astype(float)
    density = FlowDensity("realnvp", epochs=40, random_state=0).fit(rows)
    words = warned()
    assert any("columns 0, 1 hold integers" in line for line in words)
    assert any("rows repeat others" in line for line in words)
    assert math.isfinite(density.score(rows))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_different_rows_are_counted_as_a_sort_counts_them(dtype):
    """FAULTS 60."""
    generator = torch.Generator().manual_seed(0)
    small = torch.randint(-2, 3, (5000, 4), generator=generator).to(dtype)
    assert num_different(small.split(700)) == len(small.unique(dim=0))
    wide = torch.randn(50_000, 3, generator=generator).to(dtype)
    assert num_different([wide]) == 50_000
    assert num_different([wide, wide[:, [1, 0, 2]], wide]) == 100_000
    zeros = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [1.0, 0.0]], dtype=dtype)
    assert num_different([zeros]) == 2


@pytest.mark.parametrize("num", [2, 3, 7])
def test_fewer_rows_than_a_batch_are_fitted_where_two_are_left_to_train_on(num):
    """FAULTS 61."""
    if num == 2:
        with pytest.raises(pf.DomainError, match="at least two rows to train on; got 1 sample"):
            fast().fit(X[:num])
        return
    density = fast(epochs=3).fit(X[:num])
    assert density.result_.steps == 3
    assert math.isfinite(density.score(X[:num]))


@pytest.mark.parametrize("share", [0.0, 1.0, 0, 1, -0.1, 1.5, math.nan, None, "0.1", True])
def test_share_that_holds_out_nothing_or_all_is_refused(share):
    """FAULTS 61."""
    with pytest.raises(pf.DomainError, match="validation to be a share above 0 and below 1"):
        fast(validation=share).fit(X)


@pytest.mark.parametrize("share", [1e-9, 0.999999])
def test_share_near_its_ends_leaves_rows_on_both_sides(share):
    """FAULTS 61."""
    if share < 0.5:
        assert math.isfinite(fast(validation=share).fit(X).result_.nll)
    else:
        with pytest.raises(pf.DomainError, match="at least two rows to train on"):
            fast(validation=share).fit(X)


def test_contexts_are_standardised_by_the_rows_that_are_trained_on():
    """FAULTS 59: far from zero and from unit scale, they serve as well as near."""
    context = np.random.default_rng(3).uniform(-1, 1, size=(1500, 1))
    rows = 5 * context + 0.2 * np.random.default_rng(4).normal(size=(1500, 2))
    options = {"epochs": 20, "lr": 5e-3, "random_state": 0, "validation": 0.5}
    near = FlowDensity("realnvp", **options).fit(rows, context=context)
    far = FlowDensity("realnvp", **options).fit(rows, context=1e3 + 1e2 * context)
    ours, theirs = far.score(rows, context=1e3 + 1e2 * context), near.score(rows, context=context)
    assert ours == pytest.approx(theirs, abs=0.05)
    loc, scale = near.flow_.context_loc, near.flow_.context_scale
    assert 1e-4 < abs(float(loc) - context.mean()) < 0.1
    assert float(scale) == pytest.approx(context.std(), rel=0.1)
    given = near.flow_.condition(torch.tensor(context[:5], dtype=torch.float32))
    scores = given.log_prob(torch.tensor(rows[:5], dtype=torch.float32)).detach()
    np.testing.assert_allclose(scores, near.score_samples(rows[:5], context[:5]), rtol=1e-5)
    raw = FlowDensity("realnvp", standardise="none", **{**options, "epochs": 1})
    raw.fit(rows, context=context)
    assert (float(raw.flow_.context_loc), float(raw.flow_.context_scale)) == (0.0, 1.0)


def test_constant_columns_of_a_context_are_named_and_harmless(warned):
    """FAULTS 57."""
    context = np.c_[X[:, :1], np.full(400, 7.0)]
    density = fast().fit(X, context=context)
    assert any("columns 1 of the context are constant" in words for words in warned())
    assert math.isfinite(density.score(X, context=context))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda d: d.score(X[:, :1], X[:, :1]), pf.ShapeError, "X of 2 columns.*; got 1"),
        (lambda d: d.score(np.c_[X, X], X[:, :1]), pf.ShapeError, "X of 2 columns.*; got 4"),
        (
            lambda d: d.score(X),
            pf.ShapeError,
            "a context of 1 columns, as it was fitted; got none",
        ),
        (lambda d: d.score(X, context=X), pf.ShapeError, "context of 1 columns.*; got 2"),
        (lambda d: d.score(X, context=X[:9, :1]), pf.ShapeError, "400 rows"),
        (
            lambda d: d.sample(3),
            pf.ShapeError,
            "a context of 1 columns, as it was fitted; got none",
        ),
        (lambda d: d.sample(3, context=X[:3]), pf.ShapeError, "context of 1 columns.*; got 2"),
        (lambda d: d.sample(3, context=X[:2, :1]), pf.ShapeError, "of 3 rows, .*; got 2"),
        (lambda d: d.sample(0, context=X[:2, :1]), pf.DomainError, "n_samples"),
        (lambda d: d.sample(2, X[:2, :1], random_state="x"), pf.DomainError, "random_state"),
        (lambda d: d.fit(X).score(X, context=X), pf.ShapeError, "no context, .* of 2 columns"),
        (lambda d: d.fit(X).sample(3, context=X), pf.ShapeError, "no context, .* of 2 columns"),
    ],
)
def test_other_columns_or_contexts_than_those_of_the_fit_are_refused(call, error, words):
    with pytest.raises(error, match=words):
        call(fast().fit(X, context=X[:, :1]))


def test_draws_are_as_many_as_contexts_or_as_asked_for():
    density = fast().fit(X, context=X[:, :1])
    assert density.sample(context=X[:7, :1]).shape == (7, 2)
    assert density.sample(5, context=X[:1, :1]).shape == (5, 2)
    assert fast().fit(X).sample().shape == (1, 2)
