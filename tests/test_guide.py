"""AutoFlow in Pyro: every place where Pyro takes an autoguide."""

import copy
import io
import pickle
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo
from models import (
    constrained_model,
    draws_of,
    normal_data,
    normal_model,
    normal_posterior,
    regression_data,
    regression_model,
    regression_posterior,
)
from pyro import poutine
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    JitTrace_ELBO,
    Predictive,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    infer_discrete,
)
from pyro.infer.autoguide import AutoGuideList, AutoNormal, AutoNormalizingFlow
from pyro.infer.reparam import NeuTraReparam

import pyro_flows as pf

RECIPES = sorted(zoo.RECIPES)


def adam(lr=1e-3):
    return pyro.optim.Adam({"lr": lr})


@pytest.mark.parametrize("flow", RECIPES)
def test_start_is_the_laplace_posterior_of_a_gaussian_model(flow):
    x, y = regression_data()
    guide = pf.AutoFlow(regression_model, flow)
    guide.initialise(x, y)
    mean, covariance, evidence = regression_posterior(x, y)
    draws = draws_of(guide, 20_000, x, y, nesting=1)["beta"].double()
    sd = covariance.diagonal().sqrt()
    assert ((draws.mean(0) - mean) / sd).abs().max() < 0.04
    assert (draws.std(0) / sd).log().abs().max() < 0.03
    elbo = -Trace_ELBO(500, vectorize_particles=True, max_plate_nesting=1).loss(
        regression_model, guide, x, y
    )
    assert elbo == pytest.approx(evidence, abs=5e-3)


@pytest.mark.parametrize("flow", RECIPES)
def test_one_dimensional_posterior_works_with_every_recipe(flow):
    """FAULTS 4."""
    y = normal_data()
    guide = pf.AutoFlow(normal_model, lambda d: pf.flows.find(flow)(d, num_transforms=3))
    result = pf.fit(normal_model, guide, y, steps=40, particles=32, seed=0, progress=False)
    mean, sd, evidence = normal_posterior(y)
    assert result.elbo == pytest.approx(evidence, abs=5e-3)
    draws = draws_of(guide, 20_000, y, nesting=1)["mu"]
    assert abs(draws.mean() - mean) < 0.04 * sd
    assert abs(torch.log(draws.std() / sd)) < 0.03


def test_user_recipes_by_name_by_function_and_by_registry():
    y = normal_data()
    pf.flows.register("narrow_iaf", lambda d: pf.flows.iaf(d, hidden_dims=(8,)))
    for flow in ("narrow_iaf", pf.flows.maf, lambda d: pf.flows.nice(d, num_transforms=2)):
        guide = pf.AutoFlow(normal_model, flow)
        guide.initialise(y)
        assert guide.get_posterior().event_shape == (1,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_guide_follows_the_dtype_of_the_model(dtype, default):
    """FAULTS 8."""
    torch.set_default_dtype(default)
    try:
        x, y = regression_data(dtype=dtype)
        guide = pf.AutoFlow(regression_model, "iaf")
        pf.fit(regression_model, guide, x, y, steps=3, particles=4, seed=0, progress=False)
        assert guide(x, y)["beta"].dtype == dtype
        assert all(p.dtype == dtype for p in guide.parameters())
        assert guide.median()["beta"].dtype == dtype
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("start", ["auto", "laplace", "prior"])
def test_constrained_supports_and_nested_plates(start):
    guide = pf.AutoFlow(constrained_model, start=start)
    result = pf.fit(constrained_model, guide, steps=30, particles=16, seed=0, progress=False)
    assert result.vectorized
    with torch.no_grad():
        draws = guide()
    assert draws["simplex"].sum(-1) == pytest.approx(1, abs=1e-5)
    assert draws["real"].shape == (2, 3)
    assert guide.median()["correlation"].shape == (3, 3)
    assert guide.quantiles([0.1, 0.5, 0.9])["positive"].shape == (3, 2, 1)


def test_median_and_quantiles_are_deterministic_and_right():
    """FAULTS 92."""
    y = normal_data()
    mean, sd, _ = normal_posterior(y)
    guide = pf.AutoFlow(normal_model)
    quantiles = guide.quantiles([0.05, 0.5, 0.95], y)["mu"]
    expected = torch.distributions.Normal(mean, sd).icdf(torch.tensor([0.05, 0.5, 0.95]))
    assert torch.allclose(quantiles, expected, atol=0.05 * sd)
    assert torch.equal(quantiles[1], guide.median(y)["mu"])


@pytest.mark.parametrize(
    "elbo",
    [
        Trace_ELBO(),
        Trace_ELBO(8, vectorize_particles=True),
        TraceMeanField_ELBO(4, vectorize_particles=True),
        TraceGraph_ELBO(),
        RenyiELBO(num_particles=4),
        ReweightedWakeSleep(num_particles=4),
    ],
    ids=lambda elbo: type(elbo).__name__,
)
def test_svi_trains_the_guide_under_every_elbo(elbo):
    y = normal_data(mean=6.0)
    guide = pf.AutoFlow(normal_model, "realnvp", start="prior")
    svi = SVI(normal_model, guide, adam(5e-2), elbo)
    for _ in range(120):
        svi.step(y)
    mean, sd, _ = normal_posterior(y)
    assert abs(guide.median()["mu"] - mean) < 3 * sd


@pytest.mark.parametrize("flow", RECIPES)
def test_jit_elbo_runs_and_agrees_with_eager(flow):
    y = normal_data()
    guide = pf.AutoFlow(normal_model, lambda d: pf.flows.find(flow)(d, num_transforms=2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        svi = SVI(normal_model, guide, adam(), JitTrace_ELBO(200, vectorize_particles=True))
        losses = [svi.step(y) for _ in range(3)]
    assert losses[-1] == pytest.approx(-normal_posterior(y)[2], abs=0.05)


def test_mean_field_elbo_counts_the_constraints():
    """Pyro's, of a Delta, leaves out the log-determinants."""
    guide = pf.AutoFlow(constrained_model)
    guide.initialise()
    losses = [
        elbo(300, vectorize_particles=True, max_plate_nesting=2).loss(constrained_model, guide)
        for elbo in (Trace_ELBO, TraceMeanField_ELBO)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=0.5)


def test_elbo_module_trains():
    y = normal_data(mean=6.0)
    guide = pf.AutoFlow(normal_model, start="prior")
    guide.initialise(y)
    loss_fn = Trace_ELBO(8, vectorize_particles=True)(normal_model, guide)
    optimizer = torch.optim.Adam(loss_fn.parameters(), 5e-2)
    for _ in range(100):
        optimizer.zero_grad()
        loss_fn(y).backward()
        optimizer.step()
    mean, sd, _ = normal_posterior(y)
    assert abs(guide.median()["mu"] - mean) < 3 * sd


def test_path_gradient_vanishes_at_the_posterior_and_the_total_gradient_does_not():
    def model():
        pyro.sample("z", dist.Normal(torch.zeros(5), 1.0).to_event(1))

    norms = {}
    for gradient in ("path", "total"):
        pyro.clear_param_store()
        guide = pf.AutoFlow(
            model, gradient=gradient, start=lambda density, inits: unit_start(inits[0])
        )
        guide.initialise()
        Trace_ELBO(8, vectorize_particles=True)(model, guide)().backward()
        norms[gradient] = max(p.grad.abs().max() for p in guide.parameters() if p.grad is not None)
    assert norms["path"] < 1e-6
    assert norms["total"] > 1e-2


def unit_start(z):
    return pf.infer.Start(torch.zeros_like(z), torch.ones_like(z), "the test")


def test_predictive_in_both_modes():
    y = normal_data()
    guide = pf.AutoFlow(normal_model)
    guide(y)
    for parallel in (False, True):
        draws = Predictive(normal_model, guide=guide, num_samples=7, parallel=parallel)(y)
        assert draws["y"].shape == (7, len(y))


def test_guide_list_combines_guides():
    def model():
        pyro.sample("a", dist.Normal(1.0, 1.0))
        pyro.sample("b", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    guide = AutoGuideList(model)
    guide.append(pf.AutoFlow(poutine.block(model, expose=["a"])))
    guide.append(pf.AutoFlow(poutine.block(model, expose=["b"]), "iaf"))
    svi = SVI(model, guide, adam(), Trace_ELBO())
    for _ in range(3):
        svi.step()
    assert guide.median()["a"] == pytest.approx(1.0, abs=0.1)
    assert guide.quantiles([0.2, 0.8])["b"].shape == (2, 3)


def test_neutra_samples_in_the_space_of_the_flow():
    y = normal_data()
    guide = pf.AutoFlow(normal_model)
    guide.initialise(y)
    guide.requires_grad_(False)
    neutra = NeuTraReparam(guide)
    mcmc = MCMC(NUTS(neutra.reparam(normal_model)), 300, 50, disable_progbar=True)
    pyro.set_rng_seed(0)
    mcmc.run(y)
    draws = neutra.transform_sample(mcmc.get_samples()["mu_shared_latent"])["mu"]
    mean, sd, _ = normal_posterior(y)
    assert abs(draws.mean() - mean) < 0.35 * sd
    assert guide(y)["mu"].isfinite()


def test_enumerated_latents_are_left_to_trace_enum_and_infer_discrete():
    def model(x):
        low = pyro.sample("low", dist.Normal(0.0, 5.0))
        high = pyro.sample("high", dist.Normal(0.0, 5.0))
        with pyro.plate("data", len(x)):
            which = pyro.sample("which", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(low + (high - low) * which, 1.0), obs=x)

    x = torch.cat([normal_data(mean=-4.0), normal_data(mean=4.0)])
    guide = pf.AutoFlow(poutine.block(model, hide=["which"]))
    clipped = pyro.optim.ClippedAdam({"lr": 1e-2, "clip_norm": 10.0})
    svi = SVI(model, guide, clipped, TraceEnum_ELBO(max_plate_nesting=1))
    losses = [svi.step(x) for _ in range(150)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    guide_trace = poutine.trace(guide).get_trace(x)
    assigned = infer_discrete(poutine.replay(model, trace=guide_trace), first_available_dim=-2)
    which = poutine.trace(assigned).get_trace(x).nodes["which"]["value"]
    assert len(set(which[:20].tolist())) == len(set(which[20:].tolist())) == 1


@pytest.mark.parametrize("flow", [lambda d: pf.flows.iaf(d).transform, pf.transforms.Planar])
def test_transforms_work_in_pyros_own_flow_guide(flow):
    x, y = regression_data()
    svi = SVI(
        regression_model, AutoNormalizingFlow(regression_model, flow), adam(1e-2), Trace_ELBO()
    )
    losses = [svi.step(x, y) for _ in range(150)]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_flow_is_a_prior_under_any_guide():
    flow = pf.flows.realnvp(3)

    def model():
        with pyro.plate("members", 4):
            z = pyro.sample("z", flow)
            pyro.sample("x", dist.Normal(z.sum(-1), 0.1), obs=torch.ones(4))

    for guide in (AutoNormal(model), pf.AutoFlow(model)):
        svi = SVI(model, guide, adam(1e-2), Trace_ELBO())
        losses = [svi.step() for _ in range(40)]
        assert all(loss == loss for loss in losses)  # noqa: PLR0124  (not NaN)
        assert guide()["z"].shape == (4, 3)


def test_copy_and_pickle_leave_the_live_guide_alone():
    """FAULTS 37, 38."""
    y = normal_data()
    guide = pf.AutoFlow(normal_model)
    svi = SVI(normal_model, guide, adam(), Trace_ELBO())
    svi.step(y)
    z = torch.randn(5, 1)
    expected = guide.get_posterior().log_prob(z)
    stored = io.BytesIO()
    torch.save(guide, stored)
    stored.seek(0)
    twins = [
        copy.deepcopy(guide),
        pickle.loads(pickle.dumps(guide)),
        torch.load(stored, weights_only=False),
    ]
    assert guide.model is not None
    for twin in twins:
        assert torch.equal(twin.get_posterior().log_prob(z), expected)
        SVI(normal_model, twin, adam(0.1), Trace_ELBO()).step(y)
        assert not torch.equal(twin.get_posterior().log_prob(z), expected)
    assert torch.equal(guide.get_posterior().log_prob(z), expected)
    svi.step(y)
    assert not torch.equal(guide.get_posterior().log_prob(z), expected)


def test_state_dict_moves_a_fitted_guide_to_a_fresh_one():
    """FAULTS 40."""
    x, y = regression_data()
    guide = pf.AutoFlow(regression_model)
    pf.fit(regression_model, guide, x, y, steps=5, particles=8, seed=0, progress=False)
    fresh = pf.AutoFlow(regression_model, start="prior")
    fresh.initialise(x, y)
    fresh.load_state_dict(guide.state_dict())
    z = torch.randn(6, 4)
    assert torch.equal(fresh.get_posterior().log_prob(z), guide.get_posterior().log_prob(z))


def test_deterministic_sites_and_model_arguments_pass_through():
    def model(scale, *, shift=0.0):
        a = pyro.sample("a", dist.Normal(shift, scale))
        pyro.deterministic("twice", 2 * a)

    guide = pf.AutoFlow(model)
    guide.initialise(2.0, shift=5.0)
    assert set(guide(2.0, shift=5.0)) == {"a"}
    assert guide.median()["a"] == pytest.approx(5.0, abs=0.1)


def test_copy_before_set_up_keeps_the_model():
    y = normal_data()
    twin = copy.deepcopy(pf.AutoFlow(normal_model))
    pf.fit(normal_model, twin, y, steps=2, particles=2, progress=False)
    bare = pickle.loads(pickle.dumps(pf.AutoFlow(normal_model)))
    with pytest.raises(pf.DomainError, match="before it was pickled"):
        bare.initialise(y)


def test_improper_priors_start_at_the_origin():
    x, y = regression_data(dtype=torch.float64)

    def flat():
        beta = pyro.sample("beta", dist.ImproperUniform(dist.constraints.real_vector, (), (4,)))
        sigma = pyro.sample("sigma", dist.ImproperUniform(dist.constraints.positive, (), ()))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal((x * beta).sum(-1), sigma), obs=y)

    guide = pf.AutoFlow(flat)
    result = pf.fit(flat, guide, steps=100, particles=32, seed=0, progress=False)
    assert result.vectorized
    expected = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    covariance = torch.linalg.inv(x.T @ x)
    error = (guide.median()["beta"] - expected) / covariance.diagonal().sqrt()
    assert error.abs().max() < 0.1


def test_quantiles_of_a_flow_whose_base_is_not_symmetric():
    y = normal_data()
    base = dist.Gumbel(torch.zeros(1), torch.ones(1)).to_event(1)
    guide = pf.AutoFlow(
        normal_model, lambda d: pf.Flow([pf.transforms.ElementwiseAffine(d)], base=base)
    )
    quantiles = guide.quantiles([0.05, 0.5, 0.95], y)["mu"]
    draws = draws_of(guide, 40_000, y, nesting=1)["mu"][:, 0]
    expected = torch.quantile(draws, torch.tensor([0.05, 0.5, 0.95]))
    assert (quantiles - expected).abs().max() < 0.1 * draws.std()


def test_splines_of_a_guide_reach_arms_that_are_far_in_units_of_the_start():
    """The Gaussian of the highest ELBO is narrow in a bend: with a box of 5, 0.2 nats are lost."""

    def banana():
        x = pyro.sample("x", dist.Normal(0.0, 1.5))
        pyro.sample("y", dist.Normal(0.5 * x.square(), 0.3))

    guide = pf.AutoFlow(banana, flow="nsf")
    options = {"particles": 128, "refine": False, "seed": 0, "progress": False}
    result = pf.fit(banana, guide, steps=600, **options)
    assert result.elbo > -0.06
    assert guide.as_distribution().sample_sites((20_000,))["x"].std() > 1.3
