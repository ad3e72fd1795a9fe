"""Maximum likelihood: against closed forms, on every rung, and where data or steps are bad."""

import logging
import math

import numpy as np
import pytest
import torch

import pyro_flows as pf
from pyro_flows.density import fit_mle
from pyro_flows.density.toy import TwoMoons
from pyro_flows.transforms import ActNorm, ElementwiseAffine, LowerTriangularAffine

QUIET = {"progress": False, "seed": 0}


def gaussian_data(num=2000, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    factor = torch.tensor([[2.0, 0.0], [1.0, 0.5]])
    return (torch.randn(num, 2, generator=generator) @ factor.T + 3.0).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gaussian_is_that_of_the_moments(dtype):
    data = gaussian_data(dtype=dtype)
    flow = pf.Flow(LowerTriangularAffine(2).to(dtype))
    options = {"epochs": 150, "lr": 0.05, "validation": None, "batch_size": 500}
    result = fit_mle(flow, data, **options, **QUIET)
    centred = data - data.mean(0)
    covariance = centred.T @ centred / len(data)
    exact = torch.distributions.MultivariateNormal(data.mean(0), covariance)
    theirs, ours = (each.log_prob(data).mean().item() for each in (exact, flow))
    assert ours == pytest.approx(theirs, abs=2e-3)
    assert result.nll == pytest.approx(-theirs, abs=0.02)
    assert result.state == "average"
    assert result.status == "max_epochs"
    assert result.steps == 150 * 4


def test_context_is_learnt():
    generator = torch.Generator().manual_seed(0)
    context = torch.rand(2000, 1, generator=generator) * 2 - 1
    data = 3 * context + 0.1 * torch.randn(2000, 1, generator=generator)
    data = torch.cat([data, torch.randn(2000, 1, generator=generator)], -1)
    flow = pf.flows.realnvp(2, num_transforms=4, context_dim=1)
    result = fit_mle(flow, data, context=context, epochs=60, lr=5e-3, **QUIET)
    entropy = 0.5 * math.log(2 * math.pi * math.e * 0.01) + 0.5 * math.log(2 * math.pi * math.e)
    assert result.nll == pytest.approx(entropy, abs=0.1)


def test_rungs_give_the_same_steps():
    data, results = TwoMoons().seeded(600, seed=0), []
    for engine in ("eager", "traced"):
        torch.manual_seed(0)
        flow = pf.flows.realnvp(2, num_transforms=2)
        results.append(fit_mle(flow, data, epochs=5, engine=engine, **QUIET))
    np.testing.assert_allclose(results[0].losses, results[1].losses, rtol=1e-4)
    np.testing.assert_allclose(results[0].validation, results[1].validation, rtol=1e-4)
    assert [result.engine for result in results] == ["eager", "traced"]


def test_best_state_on_held_out_rows_is_kept_and_patience_ends_the_fit():
    """A flow that can overfit forty rows."""
    data = gaussian_data(50)
    flow = pf.flows.realnvp(2, num_transforms=4)
    result = fit_mle(flow, data, epochs=400, lr=0.02, patience=20, validation=0.2, **QUIET)
    assert result.status == "converged"
    assert result.epochs < 400
    assert len(result.validation) == result.epochs
    assert result.nll <= result.validation.min() + 1e-6
    assert "in 20 epochs" in result.reason


def test_held_out_rows_may_be_given():
    data = gaussian_data()
    flow = pf.Flow(ElementwiseAffine(2))
    result = fit_mle(flow, data[:1500], validation=data[1500:], epochs=20, lr=0.05, **QUIET)
    assert result.nll == pytest.approx(-flow.log_prob(data[1500:]).mean().item(), abs=1e-4)


def test_actnorm_starts_from_the_data():
    data = gaussian_data()
    flow = pf.Flow([ElementwiseAffine(2), ActNorm(2)])
    fit_mle(flow, data, epochs=1, lr=1e-8, validation=None, **QUIET)
    torch.testing.assert_close(flow.transform.inv(data).mean(0), torch.zeros(2), atol=1e-2, rtol=0)


def test_first_validation_that_is_not_finite_does_not_lose_the_best_state():
    """FAULTS 62."""

    class Odd(pf.Flow):
        scored = 0

        def log_prob(self, value):
            score = super().log_prob(value)
            if not self.training:
                Odd.scored += 1
            return score * math.nan if Odd.scored == 1 and not self.training else score

    flow = Odd(ElementwiseAffine(2))
    result = fit_mle(flow, gaussian_data(), epochs=20, engine="eager", lr=0.05, **QUIET)
    assert math.isinf(result.validation[0])
    assert np.isfinite(result.validation[1:]).all()
    assert result.nll <= result.validation.min() + 1e-6


def test_part_that_is_in_eval_mode_stays_so():
    flow = pf.Flow([ElementwiseAffine(2), LowerTriangularAffine(2)])
    flow.transform.parts[0].eval()
    fit_mle(flow, gaussian_data(100), epochs=2, **QUIET)
    assert [part.training for part in flow.transform.parts] == [False, True]
    assert flow.training


def test_held_out_rows_that_are_never_finite_are_not_spoken_for_by_others():
    """FAULTS 62: a row far outside, whose density overflows."""
    flow = pf.Flow(ElementwiseAffine(2))
    far = torch.full((1, 2), 1e30)
    result = fit_mle(flow, gaussian_data(), validation=far, epochs=2, **QUIET)
    assert np.isinf(result.validation).all()
    assert math.isinf(result.nll)


def test_steps_that_are_not_finite_change_nothing_and_are_told_of(caplog):
    data = gaussian_data(600)

    class Bad(pf.Flow):
        calls = 0

        def log_prob(self, value):
            Bad.calls += 1
            return super().log_prob(value) * (math.nan if Bad.calls == 3 else 1.0)

    flow = Bad(ElementwiseAffine(2))
    with caplog.at_level(logging.WARNING, logger="pyro_flows"):
        result = fit_mle(flow, data, epochs=5, validation=None, engine="eager", **QUIET)
    assert result.skipped_steps == 1
    assert np.isnan(result.losses).sum() == 1
    assert caplog.records[0].getMessage().startswith("fit_mle: skipped step")


def test_fewer_rows_than_a_batch_are_one_batch():
    """FAULTS 61."""
    flow = pf.Flow(ElementwiseAffine(2))
    result = fit_mle(flow, gaussian_data(20), batch_size=256, epochs=3, **QUIET)
    assert result.steps == 3


def test_seed_means_the_same_run_and_leaves_the_random_state():
    data, results = gaussian_data(), []
    before = torch.get_rng_state()
    for _ in range(2):
        flow = pf.Flow(LowerTriangularAffine(2))
        results.append(fit_mle(flow, data, epochs=3, **QUIET).losses)
    np.testing.assert_array_equal(*results)
    assert torch.equal(before, torch.get_rng_state())


def test_callback_ends_the_run():
    flow = pf.Flow(ElementwiseAffine(2))
    stop = [lambda info: info.step == 4]
    result = fit_mle(flow, gaussian_data(), callbacks=stop, **QUIET)
    assert result.status == "interrupted"
    assert result.steps == 4


def nan_data():
    data = gaussian_data()
    data[:3, 1] = math.nan
    return data


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda f: fit_mle(f, nan_data()), pf.NonFiniteError, "3 in column 1"),
        (
            lambda f: fit_mle(f, nan_data().numpy()),
            pf.DomainError,
            "data to be a tensor; got a nd",
        ),
        (
            lambda f: fit_mle(f, gaussian_data(), context=[1.0]),
            pf.DomainError,
            "context to be a tensor; got a list",
        ),
        (lambda f: fit_mle(f, torch.zeros(0, 2)), pf.DomainError, "at least one row"),
        (lambda f: fit_mle(f, torch.zeros(1, 2)), pf.DomainError, "at least two rows"),
        (lambda f: fit_mle(f, torch.zeros(9, 3)), pf.ShapeError, "rows of 2 entries"),
        (lambda f: fit_mle(f, torch.zeros(9)), pf.DomainError, "table"),
        (lambda f: fit_mle(f, gaussian_data(), validation=0.0), pf.DomainError, "share above 0"),
        (lambda f: fit_mle(f, gaussian_data(), validation=1.0), pf.DomainError, "share above 0"),
        (
            lambda f: fit_mle(f, gaussian_data(), context=torch.zeros(9, 1)),
            pf.ShapeError,
            "2000 rows",
        ),
        (
            lambda f: fit_mle(f, gaussian_data(), context=torch.zeros(2000, 1)),
            pf.ShapeError,
            "context_dim is 0",
        ),
        (lambda f: fit_mle(f, gaussian_data(), epochs=0), pf.DomainError, "epochs"),
        (lambda f: fit_mle(f, gaussian_data(), lr=-1.0), pf.DomainError, "lr"),
        (lambda f: fit_mle(f, gaussian_data(), engine="fast"), pf.DomainError, "engine"),
        (lambda f: fit_mle("flow", gaussian_data()), pf.DomainError, "a Flow"),
        (
            lambda f: fit_mle(f.requires_grad_(False), gaussian_data()),
            pf.DomainError,
            "parameters to train",
        ),
    ],
)
def test_bad_input_is_refused(call, error, words):
    """FAULTS 56, 61."""
    with pytest.raises(error, match=words):
        call(pf.Flow(ElementwiseAffine(2)))
