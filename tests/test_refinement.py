"""Importance-weighted steps at the end of a fit whose weights have a heavy tail."""

import dataclasses
import math
import statistics
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from fits import fit, guide_for, parameters, same
from models import normal_data, normal_model

import pyro_flows as pf
from pyro_flows.errors import NonFiniteError
from pyro_flows.infer.importance import pareto_k
from pyro_flows.infer.training import refinement
from pyro_flows.infer.training.options import FitOptions
from pyro_flows.infer.training.outcome import Outcome

LONG = {"steps": 1000, "lr": 0.02, "seed": 1}


HEAVY = dist.MultivariateStudentT(4.0, torch.zeros(3), torch.eye(3))


def heavy():
    """Of heavier tails than those of a flow that starts at a Gaussian."""
    pyro.sample("x", HEAVY)


def small_realnvp(input_dim):
    return pf.flows.realnvp(input_dim, num_transforms=4, hidden_dims=(16,))


def guide(flow=small_realnvp):
    return guide_for(heavy, flow=flow)


@pytest.fixture(scope="module")
def plain():
    """A fit without a refinement, and its guide."""
    unrefined = guide()
    return fit(heavy, unrefined, refine=False, **LONG), unrefined


def test_refinement_lowers_k_hat_and_loses_hardly_any_elbo(plain, caplog):
    caplog.set_level("INFO", "pyro_flows")
    before, unrefined = plain
    refined = guide()
    after = fit(heavy, refined, **LONG)
    assert before.k_hat > 0.5
    assert after.state == "refined"
    assert after.k_hat < before.k_hat
    assert after.elbo > before.elbo - 0.05
    assert after.ess > 0.9 * before.ess
    assert (after.losses == before.losses).all()
    assert not same(parameters(refined), parameters(unrefined))
    assert "took k-hat from" in caplog.text


def test_refined_guide_has_lighter_weights_on_fresh_draws(plain):
    """On ten times as many as the fit looked at."""

    @torch.no_grad()
    def k_hat(one):
        torch.manual_seed(3)
        flow = one.get_posterior()
        z = flow.sample((100_000,))
        parts = (HEAVY.log_prob(z) - flow.log_prob(z)).split(10_000)
        return statistics.mean(pareto_k(part) for part in parts)

    refined = guide()
    fit(heavy, refined, **LONG)
    assert k_hat(refined) < k_hat(plain[1]) - 0.1


OPTIONS = FitOptions(steps=500)


def scorer(gradient="path", **changes):
    return SimpleNamespace(
        **{"vectorized": True, "guide": SimpleNamespace(gradient=gradient), **changes}
    )


def outcome(elbo=0.0, ess=0.5, k_hat=0.9):
    return Outcome(elbo, 0.0, ess, k_hat)


@pytest.mark.parametrize(
    "options",
    [
        {"refine": False},
        {"steps": 499},
        {"num_importance": 2},
        {"particles": 255},
        {"particle_chunk": 1},
        {"batches": []},
        {"optimizer": torch.optim.Adam},
        {"scheduler": torch.optim.lr_scheduler.ConstantLR},
    ],
)
def test_refinement_is_not_due_with_options_of_ones_own(options):
    assert refinement.is_due(OPTIONS, scorer(), outcome())
    assert not refinement.is_due(dataclasses.replace(OPTIONS, **options), scorer(), outcome())


@pytest.mark.parametrize(
    ("of_scorer", "found"),
    [
        (scorer(gradient="total"), outcome()),
        (scorer(guide=None), outcome()),
        (scorer(vectorized=False), outcome()),
        (scorer(), outcome(k_hat=0.5)),
        (scorer(), outcome(k_hat=math.nan)),
        (scorer(), outcome(ess=0.99995)),
    ],
)
def test_refinement_is_due_for_path_gradients_and_a_heavy_tail(of_scorer, found):
    assert not refinement.is_due(OPTIONS, of_scorer, found)


def test_fit_that_was_interrupted_is_not_refined(monkeypatch):
    monkeypatch.setattr(refinement, "is_due", None)
    stop = [lambda info: info.step == 10]
    assert fit(heavy, guide(), callbacks=stop).status == "interrupted"


def test_fit_with_equal_weights_is_not_refined(monkeypatch):
    """A Gaussian of a Gaussian: k-hat tells of rounding."""
    monkeypatch.setattr(refinement, "refine", None)
    y = normal_data()
    assert fit(normal_model, guide_for(normal_model, y), y, **LONG).ess > 1 - 1e-4


def refined(monkeypatch, *rounds, stopped=None):
    """Refine with rounds whose outcomes are given; return what is said, and the state."""
    states, after = iter(range(1, 9)), iter(rounds)
    flat = SimpleNamespace(value=0)
    flat.copy = lambda: flat.value
    flat.assign = lambda value: setattr(flat, "value", value)

    def steps(loop, *rest):
        flat.assign(next(states))
        if stopped is not None:
            raise stopped
        return next(after)

    monkeypatch.setattr(refinement, "_refined", steps)
    monkeypatch.setattr(refinement, "evaluate", lambda scorer, chunk, *, draws: outcome())
    found = refinement.refine(lambda: SimpleNamespace(flat=flat), None, OPTIONS, None)
    return found, flat.value


@pytest.mark.parametrize(
    "worse", [outcome(k_hat=0.95), outcome(ess=0.4, k_hat=0.3), outcome(elbo=-0.06, k_hat=0.3)]
)
def test_state_stays_where_the_refined_one_is_no_better(worse, monkeypatch):
    assert refined(monkeypatch, worse) == (None, 0)


def test_rounds_go_on_while_they_help_and_three_at_most(monkeypatch):
    falling = [outcome(k_hat=k_hat) for k_hat in (0.8, 0.7, 0.6, 0.55)]
    assert refined(monkeypatch, *falling) == (falling[2], 3)
    assert refined(monkeypatch, falling[1], falling[0]) == (falling[1], 1)
    assert refined(monkeypatch, outcome(k_hat=0.4), *falling) == (outcome(k_hat=0.4), 1)
    # What is lost counts from the fit on, not from the round before.
    losing = [outcome(elbo=-0.04, k_hat=0.8), outcome(elbo=-0.06, k_hat=0.6)]
    assert refined(monkeypatch, *losing) == (losing[0], 1)


@pytest.mark.parametrize("stopped", [KeyboardInterrupt(), NonFiniteError("no gradient")])
def test_state_stays_where_the_steps_are_cut_short(stopped, monkeypatch):
    assert refined(monkeypatch, stopped=stopped) == (None, 0)
