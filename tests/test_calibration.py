"""Calibration end to end: simulations, fits, ranks; what fails is counted."""

import math
import random
import signal
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from models import PRIOR_SD, normal_model, regression_model
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch.distributions import constraints

import pyro_flows as pf
from pyro_flows.diagnostics.calibration.calibrate import calibrate
from pyro_flows.diagnostics.calibration.trial import Trial
from pyro_flows.errors import DomainError

# The rate at which a right guide is called wrong, with seeds that are fixed.
LEVEL = 1e-3
# A fit that is quick rather than good.
QUICK = {"steps": 3, "particles": 2048}


def run(model, make_guide, *args, **options):
    """Calibrate in silence; by default few simulations of a guide that needs no fit."""
    defaults = {"num_simulations": 20, "num_draws": 99, "fit_options": None, "progress": False}
    return calibrate(model, make_guide, *args, **{**defaults, **options})


def exact_normal(model):
    """The posterior of ``normal_model``, for the simulated data."""
    y = model.data["y"]
    variance = 1 / (1 / PRIOR_SD**2 + len(y))
    return lambda *_: pyro.sample("mu", dist.Normal(variance * y.sum(), variance**0.5))


def separate_model(y):
    """mu ~ N(0, 1) and y ~ N(mu, 1), entry by entry."""
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(4), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(mu, 1.0).to_event(1), obs=y)


def test_right_narrow_wide_and_shifted_guides_are_told_apart():
    def make_guide(model):
        mean, sd = model.data["y"] / 2, 0.5**0.5
        sds = sd * torch.tensor([1.0, 0.4, 2.5, 1.0])
        shifted = mean + sd * torch.tensor([0.0, 0.0, 0.0, 0.8])
        return lambda *_: pyro.sample("mu", dist.Normal(shifted, sds).to_event(1))

    found = run(separate_model, make_guide, torch.zeros(4), num_simulations=100, num_draws=999)
    faults = [quantity.fault for quantity in found.summary(LEVEL)]
    assert faults == ["", "too narrow", "too wide", "biased upward"]
    assert found.ranks["mu"].shape == (100, 4)
    assert not found.failures
    assert np.isnan(found.k_hats).all()
    widths, biases = zip(*((q.width, q.bias) for q in found.summary()), strict=True)
    assert widths == pytest.approx((1, 0.4, 2.5, 1), rel=4 / 200**0.5)
    assert biases == pytest.approx((0, 0, 0, 0.8), abs=4 * 2.5 / 100**0.5)


def nested_model(counts, rolls):
    """Poisson rates in nested plates, a simplex, and what follows from both."""
    with pyro.plate("outer", 2, dim=-2), pyro.plate("inner", 3, dim=-1):
        rate = pyro.sample("rate", dist.Gamma(3.0, 1.0))
        pyro.sample("counts", dist.Poisson(rate), obs=counts)
    with pyro.plate("dice", 2, dim=-2):
        faces = pyro.sample("faces", dist.Dirichlet(torch.ones(3)))
        pyro.sample("rolls", dist.Multinomial(10, faces), obs=rolls)
    pyro.deterministic("total/rate", rate.sum((-1, -2)))


def exact_nested(model):
    counts, rolls = model.data["counts"], model.data["rolls"]

    def guide(*_):
        with pyro.plate("outer", 2, dim=-2), pyro.plate("inner", 3, dim=-1):
            pyro.sample("rate", dist.Gamma(3.0 + counts, 2.0))
        with pyro.plate("dice", 2, dim=-2):
            pyro.sample("faces", dist.Dirichlet(1.0 + rolls))

    return guide


def test_plates_simplices_and_deterministic_sites():
    data = torch.zeros(2, 3), torch.zeros(2, 1, 3)
    found = run(nested_model, exact_nested, *data, num_simulations=60)
    shapes = {name: ranks.shape for name, ranks in found.ranks.items()}
    assert shapes == {"rate": (60, 2, 3), "faces": (60, 2, 3), "total/rate": (60,)}
    assert not any(quantity.fault for quantity in found.summary(LEVEL))
    labels = [quantity.label for quantity in found.summary()]
    assert labels[5:7] == ["rate[1, 2]", "faces[0, 0]"]


def discrete_model(y):
    side = pyro.sample("side", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
    pyro.sample("y", dist.Normal(side.double(), 1.0), obs=y)


def exact_discrete(model):
    prior = torch.tensor([0.2, 0.5, 0.3]).double().log()
    logits = prior + dist.Normal(torch.arange(3.0).double(), 1.0).log_prob(model.data["y"])
    return lambda *_: pyro.sample("side", dist.Categorical(logits=logits))


def test_ties_are_broken_by_lot():
    """FAULTS 91: of a discrete latent."""
    found = run(discrete_model, exact_discrete, torch.tensor(0.0).double(), num_simulations=60)
    (side,) = found.summary(LEVEL)
    assert not side.fault
    # Without the lot, the lowest class would have rank 0 whatever the draws are.
    assert (found.ranks["side"] == 0).mean() < 0.1


def failing_model(y):
    """``normal_model``, which fails in a twentieth of its runs, and goes NaN in another."""
    luck = pyro.sample("luck", dist.Uniform(0.0, 1.0))
    if bool((luck < 0.05).any()):
        raise ValueError("no root")
    mu = pyro.sample("mu", dist.Normal(0.0, PRIOR_SD))
    centre = torch.where(luck < 0.1, math.nan, mu)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(centre, 1.0, validate_args=False), obs=y)


def exact_failing(model):
    normal = exact_normal(model)

    def guide(*_):
        pyro.sample("luck", dist.Uniform(0.1, 1.0))
        normal()

    return guide


def test_failures_are_counted_and_shown():
    """FAULTS 90: the model raises, or simulates NaN."""
    found = run(failing_model, exact_failing, torch.zeros(5), num_simulations=60)
    reasons = [failure.reason for failure in found.failures]
    kinds = {reason.partition(":")[0] for reason in reasons}
    assert kinds == {"ValueError", "NonFiniteError"}
    assert 2 <= len(reasons) <= 15
    assert found.num_simulations == 60
    assert found.num_fitted == len(found.ranks["mu"]) == 60 - len(reasons)
    assert f"{len(reasons)} of 60 failed:" in repr(found)
    assert "ValueError: no root" in repr(found)
    assert "without NaN at the site 'y'; got 5 NaN among 5 values" in repr(found)
    assert f"{len(reasons)} simulations could not be fitted" in found.verdict
    assert not any(quantity.fault for quantity in found.summary(LEVEL))


def test_failed_fits_and_draws_are_counted():
    """FAULTS 90: a recipe that fails, and one whose draws are NaN."""

    def make_guide(model):
        first = model.data["y"][0]
        if first > 3:
            raise RuntimeError("no guide")
        mean = torch.where(first < -3, math.nan, first)
        return lambda *_: pyro.sample("mu", dist.Normal(mean, 1.0, validate_args=False))

    found = run(normal_model, make_guide, torch.zeros(5), num_simulations=40)
    reasons = " ".join(failure.reason for failure in found.failures)
    assert "RuntimeError: no guide" in reasons
    assert "NaN" in reasons
    assert 0 < len(found.failures) < 40
    assert [f.index for f in found.failures] == sorted({f.index for f in found.failures})


def test_nothing_but_failures_is_an_error():
    """FAULTS 90."""

    def model(y):
        pyro.sample("mu", dist.Normal(0.0, 1.0))
        raise ValueError("never runs")

    with pytest.raises(DomainError, match=r"20 that failed, the first with ValueError: never"):
        run(model, exact_normal, torch.zeros(5))


@pytest.mark.parametrize("when", ["simulation", "fit"])
def test_ctrl_c_ends_it(when):
    """Though a fit by itself would end with what it has."""
    handler, calls = signal.getsignal(signal.SIGINT), []

    def interrupt(*_):
        calls.append(when)
        signal.raise_signal(signal.SIGINT)

    def model(y):
        normal_model(y)
        if when == "simulation":
            interrupt()

    options = {**QUICK, "callbacks": [interrupt]}
    with pytest.raises(KeyboardInterrupt):
        run(model, AutoNormal, torch.zeros(5), fit_options=options)
    assert len(calls) == 1
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_callback_may_end_fits():
    options = {**QUICK, "callbacks": [lambda info: True]}
    assert not run(normal_model, AutoNormal, torch.zeros(5), fit_options=options).failures


def test_same_seed_same_ranks_and_nothing_else_moves():
    pyro.param("AutoNormal.locs.mu", torch.tensor(5.0))
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    threads = torch.get_num_threads()
    first, again = (
        run(normal_model, AutoNormal, torch.zeros(5), fit_options=QUICK) for _ in range(2)
    )
    np.testing.assert_array_equal(first.ranks["mu"], again.ranks["mu"])
    assert np.isfinite(first.k_hats).all()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert random.getstate() == before[2]
    assert torch.get_num_threads() == threads
    assert dict(pyro.get_param_store()) == {"AutoNormal.locs.mu": torch.tensor(5.0)}


def test_simulations_depend_on_the_seed_and_their_number_alone():
    few, many = (
        run(normal_model, exact_normal, torch.zeros(5), num_simulations=n) for n in (20, 25)
    )
    np.testing.assert_array_equal(few.ranks["mu"], many.ranks["mu"][:20])
    other = run(normal_model, exact_normal, torch.zeros(5), seed=1)
    assert (few.ranks["mu"] != other.ranks["mu"]).any()


@pytest.mark.slow
def test_jobs_make_no_difference():
    pytest.importorskip("joblib")
    alone, shared = (run(normal_model, exact_normal, torch.zeros(5), jobs=jobs) for jobs in (1, 2))
    np.testing.assert_array_equal(alone.ranks["mu"], shared.ranks["mu"])


def test_jobs_without_joblib_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "joblib", None)
    with pytest.raises(DomainError, match=r"joblib, for jobs=2; got no such package. Call pip"):
        run(normal_model, exact_normal, torch.zeros(5), jobs=2)


def test_default_dtype_goes_along():
    """To other processes, whose own is another."""
    seen = []

    def make_guide(model):
        seen.append(torch.get_default_dtype())
        return exact_normal(model)

    torch.set_default_dtype(torch.float64)
    trial = Trial(normal_model, make_guide, (torch.zeros(5),), {}, (), 99, None, 0)
    torch.set_default_dtype(torch.float32)
    trial(0)
    assert seen == [torch.float64]
    assert torch.get_default_dtype() == torch.float32


def test_double_precision():
    dtypes = set()

    def make_guide(model):
        dtypes.add(model.data["y"].dtype)
        return AutoNormal(model)

    found = run(normal_model, make_guide, torch.zeros(5).double(), fit_options=QUICK)
    assert not found.failures
    assert dtypes == {torch.float64}


def test_data_are_drawn_in_the_place_of_those_that_are_given():
    """Also without a plate, and under a mask; what else is read of them stays."""
    seen = []

    def model(y, mask):
        mu = pyro.sample("mu", dist.Normal(y.mean(), 1.0))
        with poutine.mask(mask=mask):
            pyro.sample("y", dist.Normal(mu, 0.01), obs=y)

    def make_guide(model):
        seen.append(model.data["y"])
        return lambda y, mask: pyro.sample("mu", dist.Normal(y.mean(), 1.0))

    run(model, make_guide, torch.full((6,), 50.0), torch.arange(6) < 3)
    assert len(seen) == 20
    assert all(y.shape == (6,) and 40 < y.mean() < 60 and y.std() < 0.1 for y in seen)
    assert len({float(y[0]) for y in seen}) == 20


def test_sites_that_are_free_can_be_named_as_data():
    def model(y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, PRIOR_SD))
        with pyro.plate("data", 5):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    named = run(model, exact_normal, observed=["y"])
    np.testing.assert_array_equal(
        named.ranks["mu"], run(model, exact_normal, torch.zeros(5)).ranks["mu"]
    )


class Learned(pyro.nn.PyroModule):
    """``normal_model`` with parameters for a module's scale and for a place in the store."""

    def __init__(self):
        super().__init__()
        self.sd = pyro.nn.PyroParam(torch.tensor(0.5), constraints.positive)

    def forward(self, y):
        place = pyro.param("place", torch.tensor(0.0))
        mu = pyro.sample("mu", dist.Normal(0.0, PRIOR_SD))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu + place, 0.001 * self.sd), obs=y)


def test_parameters_of_the_model_stay():
    pyro.param("place", torch.tensor(100.0))
    model, seen = Learned(), []

    def make_guide(model):
        seen.append(model.data["y"])
        return AutoNormal(model)

    assert not run(model, make_guide, torch.zeros(5), fit_options=QUICK).failures
    assert all(y.mean() > 80 and y.std() < 0.01 for y in seen)
    assert model.sd.item() == pytest.approx(0.5)
    assert set(pyro.get_param_store()) <= {"place", "sd"}
    assert pyro.param("place").item() == 100


def test_constant_entries_say_nothing():
    def model(y):
        factor = pyro.sample("factor", dist.LKJCholesky(2, torch.tensor(1.0)))
        pyro.sample("y", dist.Normal(factor[..., 1, 0], 100.0), obs=y)

    prior = lambda model: lambda *_: pyro.sample("factor", dist.LKJCholesky(2, torch.tensor(1.0)))  # noqa: E731
    found = run(model, prior, torch.tensor(0.0))
    assert [q.label for q in found.summary()] == ["factor[1, 0]", "factor[1, 1]"]


@pytest.mark.slow
def test_fitted_flows_are_right():
    """On a regression with nearly collinear columns."""
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    x[:, 1] += 2 * x[:, 0]
    options = {"steps": 100, "particles": 64}
    found = run(
        regression_model, pf.AutoFlow, x, torch.zeros(20), num_simulations=25, fit_options=options
    )
    assert not found.failures
    assert not any(quantity.fault for quantity in found.summary(LEVEL))


def _with_factor(y):
    normal_model(y)
    pyro.factor("more", y.sum())


def _subsampled(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 5, subsample_size=2) as index:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y[index])


REFUSED = {
    "few simulations": ({"num_simulations": 19}, r"num_simulations to be an integer >= 20"),
    "few draws": ({"num_draws": 98}, r"num_draws to be an integer >= 99"),
    "no seed": ({"seed": None}, r"seed to be an integer >= 0"),
    "no jobs": ({"jobs": 0}, r"jobs to be an integer >= 1"),
    "a guide": ({"make_guide": pf.AutoFlow(normal_model)}, r"got a guide \(AutoFlow\)"),
    "data first": ({"make_guide": torch.zeros(5)}, r"make_guide to be a function"),
    "no model": ({"model": None}, r"a model to call"),
    "options": ({"fit_options": {"step": 5}}, r"fit_options among .*; got 'step'"),
    "bad option": ({"fit_options": {"steps": 0}}, r"fit: expected steps"),
    "fit's seed": ({"fit_options": {"seed": 5}}, r"got 'seed'"),
    "a file": ({"fit_options": {"checkpoint": "x"}}, r"got 'checkpoint'"),
    "misplaced": ({"steps": 5}, r"got steps among the model's arguments. Pass fit_options"),
    "no guide": ({"make_guide": lambda model: None}, r"make_guide to return a guide"),
    "factor": ({"model": _with_factor}, r"the factor 'more'"),
    "subsample": ({"model": _subsampled}, r"a subsample of 2 of 5 in the plate 'data'"),
    "unknown": ({"observed": ["z"]}, r"sites that the model draws: mu, y; got 'z'"),
    "data alone": ({"observed": ["mu"]}, r"at least one latent; got data alone"),
    "no data": ({"model": lambda y: pyro.sample("mu", dist.Normal(0.0, 1.0))}, r"observed sites"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    options, message = REFUSED[case]
    given = {"model": normal_model, "make_guide": exact_normal, **options}
    with pytest.raises(DomainError, match=message):
        run(given.pop("model"), given.pop("make_guide"), torch.zeros(5), **given)
