"""Particles: all at once only where that is right, else in a loop; never silently wrong."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import (
    constrained_model,
    normal_data,
    normal_model,
    normal_posterior,
    ready,
    regression_data,
    regression_model,
    regression_posterior,
    single_draw_regression_model,
)
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal

import pyro_flows as pf
from pyro_flows.infer import Particles


def test_model_written_for_one_draw_gives_what_the_same_for_many_gives():
    x, y = regression_data()
    guide = ready(regression_model, x, y)
    estimates = {}
    for model, how in ((regression_model, "plate"), (single_draw_regression_model, "vmap")):
        particles = Particles(model, guide, (x, y), {})
        torch.manual_seed(0)
        estimates[model] = particles.score(6)
        assert particles.broadcast.how == how
        assert particles.vectorized
    plated, vmapped = estimates.values()
    assert torch.allclose(plated.log_p, vmapped.log_p, rtol=1e-4)
    assert torch.allclose(plated.log_q, vmapped.log_q, rtol=1e-4)
    gradients = [
        torch.autograd.grad(scores.surrogate.mean(), list(guide.parameters()), allow_unused=True)
        for scores in (plated, vmapped)
    ]
    for one, other in zip(*gradients, strict=True):
        assert (one is None and other is None) or torch.allclose(one, other, rtol=1e-2, atol=1e-2)


def test_model_that_broadcasts_wrongly_without_an_error_does_not_run_on_a_plate():
    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        # Under a particle plate this mixes the particles, and stays a scalar.
        pyro.factor("f", -z.reshape(-1)[:3].square().sum())

    particles = Particles(model, ready(model), (), {})
    assert particles.broadcast.guide
    assert not particles.broadcast.model
    log_p = particles.score(5).log_p
    assert len(set(log_p.tolist())) == 5


def test_guide_for_one_draw_that_reads_its_values_is_looped_with_its_model():
    def guide():
        loc = pyro.param("loc", torch.tensor([0.5, -0.5]))
        z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
        assert len(z.tolist()) == 2
        assert z.dim() == 1

    def model():
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    particles = Particles(model, guide, (), {})
    assert not particles.broadcast.guide
    assert particles.broadcast.how == "loop"
    scores = particles.score(2000)
    assert (scores.log_p - scores.log_q).mean().item() == pytest.approx(-0.25, abs=0.05)


def test_wrong_subsample_does_not_confuse_the_check():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(y), subsample_size=4) as index:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[index])

    y = normal_data()
    assert Particles(model, ready(model, y), (y,), {}).broadcast.how == "plate"


def test_plates_keep_their_axes():
    particles = Particles(constrained_model, ready(constrained_model), (), {})
    assert particles.broadcast.how == "plate"
    assert particles.nesting == 2
    guide_trace, model_trace = particles.traces(5)
    assert guide_trace.nodes["real"]["value"].shape == (5, 2, 3)
    assert model_trace.nodes["correlation"]["value"].shape == (5, 1, 1, 3, 3)


def test_elbo_of_an_exact_guide_is_the_evidence_for_every_draw():
    """FAULTS 65: the ELBO never exceeds the evidence; here it meets it without variance."""
    x, y = regression_data(dtype=torch.float64)
    mean, covariance, evidence = regression_posterior(x, y)

    def exact(density, inits):
        return pf.infer.Start(mean, torch.linalg.cholesky(covariance), "the closed form")

    guide = ready(regression_model, x, y, start=exact)
    scores = Particles(regression_model, guide, (x, y), {}).score(100)
    assert torch.allclose(scores.log_p - scores.log_q, torch.tensor(evidence).double(), atol=1e-8)


@pytest.mark.parametrize("autoguide", [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal])
def test_pyros_own_guides_can_be_fitted(autoguide):
    y = normal_data()
    pyro.clear_param_store()
    guide = autoguide(normal_model)
    result = pf.fit(
        normal_model, guide, y, steps=400, particles=16, lr=5e-2, seed=0, progress=False
    )
    assert result.elbo == pytest.approx(normal_posterior(y)[2], abs=0.02)
    pyro.clear_param_store()


def test_score_function_gradients_are_unbiased():
    """A guide without reparameterised draws trains as well."""
    pyro.clear_param_store()

    class Plain(dist.Normal):
        has_rsample = False

    def guide(y):
        loc = pyro.param("loc", torch.tensor(0.0))
        pyro.sample("mu", Plain(loc, 0.5))

    y = normal_data()
    pf.fit(normal_model, guide, y, steps=600, particles=128, lr=3e-2, seed=0, progress=False)
    assert pyro.param("loc").item() == pytest.approx(normal_posterior(y)[0], abs=0.1)
    pyro.clear_param_store()


def test_model_that_mixes_particles_within_rounding_of_the_sum_does_not_run_on_a_plate():
    """The sums of 20,000 log-densities agree to rounding; the entries do not."""
    y = torch.randn(20_000) + 1

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        mean = z.mean()  # over the particles as well
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    particles = Particles(model, ready(model), (), {})
    assert particles.broadcast.guide
    assert not particles.broadcast.model
    assert "'y'" in particles.broadcast.reason


@pytest.mark.parametrize("far", [2e3, 2e4])
def test_posterior_far_from_zero_runs_on_a_plate(far):
    """Rounding in a round trip of the guide is no sign that it mixes particles."""
    y = torch.randn(1000) + far

    def model():
        mean = pyro.sample("mean", dist.Normal(far, 100.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mean, scale), obs=y)

    assert Particles(model, ready(model), (), {}).broadcast.how == "plate"


def test_any_error_under_the_plate_and_by_vmap_means_a_loop_and_is_told(caplog):
    def model():
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample(
            "y", dist.Normal(torch.full((), float(mean.detach())), 1.0), obs=torch.tensor(1.0)
        )

    guide = ready(model, start="prior")
    assert not Particles(model, guide, (), {}).vectorized
    with caplog.at_level("WARNING", logger="pyro_flows"):
        result = pf.fit(model, guide, steps=2, particles=2, progress=False)
    assert "once for each particle" in caplog.text
    assert "fails under a particle plate" in caplog.text
    assert "fails under torch.func.vmap" in caplog.text
    assert "one particle at a time" in repr(result)


def enumerated():
    a = pyro.sample("a", dist.Normal(0.0, 5.0))
    with pyro.plate("rows", 4):
        which = pyro.sample("which", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(a * which, 1.0), obs=torch.ones(4))


def branching():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    if a.dim() == 0 and a > 0:
        pyro.sample("b", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(("model", "name"), [(enumerated, "which"), (branching, "b")])
def test_latent_that_the_guide_lacks_is_refused(model, name):
    """FAULTS 54: it would be drawn from its prior, without a word."""

    def guide():
        pyro.sample("a", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 10.0))

    with pytest.raises(pf.DomainError, match=f"'{name}'.*TraceEnum_ELBO"):
        pf.fit(model, guide, steps=1, particles=2, seed=1, progress=False)
