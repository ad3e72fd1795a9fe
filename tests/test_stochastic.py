"""Estimated traces never stand for exact ones, and solves that fail are steps that are skipped."""

import logging
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from fields import Times

import pyro_flows as pf
from pyro_flows.density import fit_mle
from pyro_flows.infer import independence_metropolis, neutra
from pyro_flows.infer.particles import Particles
from pyro_flows.infer.training.outcome import evaluate
from pyro_flows.nn import Field, TimeNet
from pyro_flows.transforms import Compose, Continuous, ElementwiseAffine, Inverse
from pyro_flows.transforms.continuous import exact_traces

QUIET = {"progress": False, "seed": 0}
DIM = 5


def model():
    pyro.sample("x", dist.Normal(torch.zeros(DIM), 1.0).to_event(1))


def deep(trace="auto"):
    """Return a transform whose exact trace is not cheap."""
    return Continuous(TimeNet(DIM, hidden_dims=(4, 4, 4)), num_steps=2, trace=trace)


def ready(trace):
    torch.manual_seed(0)
    guide = pf.AutoFlow(model, flow=lambda d: pf.Flow(deep(trace)))
    guide.initialise()
    with torch.no_grad():
        for parameter in guide.flow.transform.parts[0].parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return guide


def test_flow_is_stochastic_if_a_part_is():
    """FAULTS 31."""
    plain = ElementwiseAffine(DIM)
    assert not pf.Flow(plain).stochastic
    for parts in ([deep()], [plain, Inverse(deep())], [Compose([plain, Compose([deep()])])]):
        flow = pf.Flow(parts)
        assert flow.stochastic
        assert flow.transform.stochastic
        assert flow.expand((3,)).stochastic
        assert not flow.eval().stochastic
    assert pf.Flow([deep("hutchinson"), plain]).eval().stochastic
    assert not pf.Flow(deep("exact")).stochastic


def test_exact_traces_can_be_asked_for_in_training():
    """FAULTS 31."""
    transform, x = deep(), torch.randn(4, DIM)
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.add_(torch.randn_like(parameter))
    wanted = transform.eval().forward_and_ladj(x)[1]
    for trace in ("auto", "hutchinson"):
        transform.train().trace = trace
        with exact_traces():
            assert not transform.stochastic
            torch.testing.assert_close(transform.forward_and_ladj(x)[1], wanted)
        assert transform.stochastic
        assert not torch.allclose(transform.forward_and_ladj(x)[1], wanted)


def outcome(scorer):
    torch.manual_seed(1)
    return evaluate(scorer, 64, draws=500)


REPORTS = {
    "diagnose": lambda guide: pf.diagnose(model, guide, num_draws=500, seed=1).log_weights,
    "resample": lambda guide: pf.resample(model, guide, num_draws=100).stats["log_q"],
    "to_arviz": lambda guide: (
        pf.to_arviz(model, guide, num_draws=10, seed=0)["sample_stats"]["log_q"].values
    ),
    "neutra": lambda guide: neutra(
        model, guide, num_draws=3, warmup=2, num_chains=1, **QUIET
    ).sites["x"],
    "independence_metropolis": lambda guide: independence_metropolis(
        model, guide, num_draws=9, seed=0
    ).stats["log_q"],
    "fit": lambda guide: outcome(Particles(model, guide, (), {})),
}


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("trace", ["auto", "hutchinson"])
def test_reports_use_exact_densities(name, trace):
    """FAULTS 31: in training mode, and by request, the guide's own are estimates."""
    found = []
    for each in (trace, "exact"):
        guide = ready(each)
        found.append(np.asarray(REPORTS[name](guide)))
        assert guide.flow.stochastic == (each != "exact")
    got, want = found
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_estimates_do_not_keep_particles_from_the_plate():
    """FAULTS 31: a comparison of two estimates would find them different."""
    result = pf.fit(model, ready("hutchinson"), steps=20, particles=32, **QUIET)
    assert result.vectorized
    assert math.isfinite(result.elbo)


# Solves that fail within a step.

pytest.importorskip("torchdiffeq", reason="needs torchdiffeq")


def rows():
    return torch.randn(200, 2, generator=torch.Generator().manual_seed(0))


class Moody(Field):
    """A field that is NaN in some of its solves."""

    def __init__(self, bad):
        super().__init__(2)
        self.rate, self.bad, self.solves = torch.nn.Parameter(torch.tensor(0.1)), bad, 0

    def dynamics(self, context=None, noise=None):
        """Return what maps a time and points to the velocity and the trace."""
        self.solves += 1
        rate = self.rate * (math.nan if self.solves in self.bad else 1.0)
        return lambda t, z: (z * rate, 2 * rate.expand(z.shape[:-1]))


def test_step_whose_solve_fails_is_skipped(caplog):
    """FAULTS 29, 62."""
    flow = pf.Flow(Continuous(Moody({3, 7}), solver="dopri5"))
    with caplog.at_level(logging.WARNING, logger="pyro_flows"):
        result = fit_mle(
            flow, rows(), epochs=5, batch_size=100, validation=None, engine="eager", **QUIET
        )
    assert np.isnan(result.losses).nonzero()[0].tolist() == [2, 6]
    assert result.skipped_steps == 2
    assert "fit_mle: skipped step 2, for Continuous: expected finite velocities" in caplog.text


def test_held_out_rows_whose_solve_fails_have_no_score(caplog):
    """FAULTS 62: and the run goes on."""
    # One step an epoch, and a solve for the held-out rows after each.
    flow = pf.Flow(Continuous(Moody({4}), solver="dopri5"))
    options = {"epochs": 5, "validation": 0.2, "engine": "eager", **QUIET}
    result = fit_mle(flow, rows(), **options)
    assert np.isinf(result.validation).tolist() == [False, True, False, False, False]
    assert math.isfinite(result.nll)
    assert "held-out rows have no score: Continuous" in caplog.text


HOPELESS = {
    "NaN field": (Times(lambda t, z: z * math.nan), pf.NonFiniteError, {}),
    "stiff field": (Times(lambda t, z: -1e6 * (z - t)), pf.NotConvergedError, {"max_steps": 30}),
    "budget of one": (Times(lambda t, z: z.sin()), pf.NotConvergedError, {"max_steps": 1}),
}


@pytest.mark.parametrize(("field", "error", "options"), HOPELESS.values(), ids=HOPELESS)
@pytest.mark.parametrize("by", ["fit", "fit_mle"])
def test_first_step_whose_solve_fails_ends_the_fit(by, field, error, options):
    """FAULTS 29, 30: with the solve's own error, and the parameters as they were."""
    field.scale = torch.nn.Parameter(torch.ones(2))
    flow = pf.Flow([Continuous(field, solver="dopri5", **options)])
    guide = pf.AutoFlow(plane, flow=lambda d: flow, start="prior")
    calls = {
        "fit": lambda: pf.fit(plane, guide, steps=100, particles=8, **QUIET),
        "fit_mle": lambda: fit_mle(flow, rows(), epochs=100, validation=None, **QUIET),
    }
    with pytest.raises(error, match=r"^Continuous: expected"):
        calls[by]()
    assert torch.equal(field.scale, torch.ones(2))


def plane():
    pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def test_fit_whose_solves_fail_from_some_step_on_ends_with_the_best_state(caplog):
    """FAULTS 30, 62: after five in a row it begins anew, and then has enough."""
    field = Moody(set(range(11, 1000)))
    flow = pf.Flow(Continuous(field, solver="dopri5"))
    options = {"epochs": 100, "validation": None, "engine": "eager", **QUIET}
    with pytest.raises(pf.NonFiniteError, match=r"^Continuous: expected finite velocities"):
        fit_mle(flow, rows(), **options)
    assert field.solves == 10 + 5 + 1
    assert "5 steps in a row were not finite; goes on from the best state" in caplog.text
    assert field.rate.isfinite()
