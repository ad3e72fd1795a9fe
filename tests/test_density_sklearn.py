"""FlowDensity within scikit-learn: its own checks of estimators, searches, pipelines, frames."""

import math
import pickle
import warnings

import numpy as np
import pytest
import torch

import pyro_flows as pf
from pyro_flows.density import FlowDensity

pytest.importorskip("sklearn", reason="needs scikit-learn")

from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

X = np.random.default_rng(0).normal(size=(300, 2)) @ np.array([[3.0, 20.0], [0.0, 5.0]]) + 100


def affine(input_dim, *, context_dim=0):
    return pf.Flow(pf.transforms.LowerTriangularAffine(input_dim))


FAST = {"flow": affine, "epochs": 2, "engine": "eager", "random_state": 0}


@pytest.fixture(scope="module")
def checks():
    """Return the results of scikit-learn's checks by name, none of which ends the others."""
    with warnings.catch_warnings():
        # It advises to inherit from its own base class, which would be a dependency.
        warnings.filterwarnings("ignore", message=".*does not inherit from `sklearn.base")
        results = check_estimator(FlowDensity(**FAST), on_skip=None, on_fail=None)
    return {result["check_name"]: result for result in results}


def test_every_check_of_scikit_learn_passes(checks):
    """None is expected to fail; those of the array API need a setting of SciPy's."""
    assert len(checks) > 35
    failed = {name: r["exception"] for name, r in checks.items() if r["status"] == "failed"}
    assert not failed
    skipped = {name for name, result in checks.items() if result["status"] == "skipped"}
    assert skipped <= {"check_array_api_input"}


@pytest.mark.parametrize("estimator", [FlowDensity(), FlowDensity("maf", lr=0.1, patience=None)])
def test_clone_is_another_estimator_of_the_same_arguments(estimator):
    copy = clone(estimator)
    assert copy is not estimator
    assert copy.get_params() == estimator.get_params()
    assert repr(copy) == repr(estimator)


def test_search_finds_the_better_argument():
    density = FlowDensity(**{**FAST, "epochs": 20})
    search = GridSearchCV(density, {"lr": [1e-6, 5e-2]}, cv=2, error_score="raise").fit(X * 0.1)
    scores = search.cv_results_["mean_test_score"]
    assert search.best_params_["lr"] == [1e-6, 5e-2][int(np.argmax(scores))]
    assert search.best_estimator_.n_features_in_ == 2
    assert math.isfinite(search.score(X * 0.1))


def test_cross_validation_scores_rows_that_were_left_out():
    scores = cross_val_score(FlowDensity(**FAST), X, cv=3, error_score="raise")
    halves = [X[100:], np.r_[X[:100], X[200:]], X[:200]]
    left_out = [X[:100], X[100:200], X[200:]]
    ours = [
        FlowDensity(**FAST).fit(half).score(rest)
        for half, rest in zip(halves, left_out, strict=True)
    ]
    np.testing.assert_array_equal(scores, ours)


def test_pipeline_scores_what_the_scaler_hands_on():
    pipeline = make_pipeline(StandardScaler(), FlowDensity(**FAST)).fit(X)
    scaled = StandardScaler().fit_transform(X)
    alone = FlowDensity(**FAST).fit(scaled)
    assert pipeline.score(X) == alone.score(scaled)
    np.testing.assert_array_equal(pipeline.score_samples(X), alone.score_samples(scaled))
    pipeline.set_params(flowdensity__epochs=3)
    assert pipeline[-1].epochs == 3


def test_estimator_that_is_not_fitted_raises_both_errors():
    for call in (lambda d: d.score(X), lambda d: d.sample(3), lambda d: d.score_samples(X)):
        for error in (NotFittedError, pf.DomainError):
            with pytest.raises(error, match="expected a fitted estimator"):
                call(FlowDensity())


def test_pickled_estimator_scores_and_draws_the_same():
    density = FlowDensity("realnvp", epochs=1, random_state=0).fit(X, context=X[:, :1])
    copy = pickle.loads(pickle.dumps(density))
    context = X[:5, :1]
    ours, theirs = (each.score_samples(X[:5], context) for each in (density, copy))
    np.testing.assert_array_equal(ours, theirs)
    draws = [each.sample(context=context, random_state=1) for each in (density, copy)]
    np.testing.assert_array_equal(*draws)


def test_random_state_may_be_a_generator():
    """The same generator gives the same fit, and then another one."""

    def fits(make):
        state = make(3)
        density = FlowDensity(**{**FAST, "random_state": state})
        return [density.fit(X).score_samples(X) for _ in range(2)]

    for make in (np.random.RandomState, np.random.default_rng):
        first, second = fits(make)
        again = fits(make)
        np.testing.assert_array_equal(first, again[0])
        np.testing.assert_array_equal(second, again[1])
        assert not np.array_equal(first, second)
    with pytest.raises(pf.DomainError, match="random_state to be an integer"):
        FlowDensity(**{**FAST, "random_state": -1}).fit(X)


def test_fit_changes_neither_arguments_nor_data():
    rows, context = X.copy(), X[:, :1].copy()
    density = FlowDensity(epochs=1, random_state=0, dtype="float64")
    before = density.get_params()
    assert density.fit(rows, context=context) is density
    assert density.get_params() == before
    np.testing.assert_array_equal(rows, X)
    np.testing.assert_array_equal(context, X[:, :1])


class Frame:
    """What a data frame is to an estimator: an array with names of its columns."""

    def __init__(self, values, columns):
        self.values, self.columns = values, columns

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype=dtype)


def test_names_of_a_frame_are_kept_and_compared():
    density = FlowDensity("realnvp", epochs=1, random_state=0)
    density.fit(Frame(X, ["wide", "high"]), context=Frame(X[:, :1], ["time"]))
    assert density.feature_names_in_.tolist() == ["wide", "high"]
    assert density.context_names_in_.tolist() == ["time"]
    context = X[:3, :1]
    score = density.score(Frame(X[:3], ["wide", "high"]), context=context)
    assert score == density.score(X[:3], context=context)
    with pytest.raises(pf.DomainError, match=r"'wide' as column 0; got 'high'.*feature_names_in_"):
        density.score(Frame(X[:3], ["high", "wide"]), context=context)
    with pytest.raises(pf.DomainError, match=r"columns of context .*'time' .*got 'hour'"):
        density.sample(3, context=Frame(context, ["hour"]))
    density.fit(X)
    assert not hasattr(density, "feature_names_in_")
    assert not hasattr(density, "context_names_in_")


KINDS = {
    "a list": X.tolist(),
    "float16": X.astype(np.float16),
    "int64": X.astype(np.int64),
    "big-endian": X.astype(">f8"),
    "long double": X.astype(np.longdouble),
    "objects": X.astype(object),
    "booleans": X > 100,
    "columns in memory order": np.asfortranarray(X),
    "rows backwards": X[::-1],
    "a tensor with a gradient": torch.tensor(X, requires_grad=True),
    "bfloat16": torch.tensor(X).bfloat16(),
}


@pytest.mark.parametrize("rows", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_of_any_kind_are_rows(rows, dtype):
    density = FlowDensity(**FAST, dtype=dtype).fit(X)
    scores = density.score_samples(rows)
    assert scores.dtype == np.float64
    plain = rows.tolist() if hasattr(rows, "tolist") else rows
    np.testing.assert_array_equal(scores, density.score_samples(plain))
    assert density.score_samples(rows[:1]).shape == (1,)


def test_rows_that_must_not_be_written_to_are_rows():
    rows = X.astype(np.float32)
    rows.flags.writeable = False
    assert math.isfinite(FlowDensity(**FAST).fit(rows).score(rows))
