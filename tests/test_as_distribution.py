"""Posteriors as distributions: exact where that is known, frozen, and priors of further data."""

import copy
import pickle
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo
from fits import affine
from models import (
    constrained_model,
    draws_of,
    normal_data,
    normal_model,
    normal_posterior,
    ready,
    regression_data,
    regression_model,
    regression_posterior,
)
from pyro.infer import SVI, Trace_ELBO
from torch.autograd.functional import jacobian

import pyro_flows as pf
from pyro_flows.infer.posterior_distribution import PosteriorDistribution

RECIPES = sorted(zoo.RECIPES)


def bent(model, *args, **options):
    guide = ready(model, *args, **{"start": "prior", **options})
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape).to(parameter))
    return guide


def continued(prior):
    """Return the regression of a further batch."""

    def model(x, y):
        beta = prior.latents("before")["beta"]
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal((x * beta).sum(-1), 1.0), obs=y)

    return model


@pytest.mark.parametrize("flow", RECIPES)
def test_two_batches_in_sequence_give_the_posterior_of_both(flow):
    x, y = regression_data()
    first = ready(regression_model, x[:20], y[:20], flow=flow)
    model = continued(first.as_distribution())
    second = ready(model, x[20:], y[20:], flow=flow)
    mean, covariance, _ = regression_posterior(x, y)
    draws = second.as_distribution().sample_sites((20_000,))["beta"].double()
    sd = covariance.diagonal().sqrt()
    assert ((draws.mean(0) - mean) / sd).abs().max() < 0.05
    assert (draws.std(0) / sd).log().abs().max() < 0.04
    within = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(within, (draws - mean).T, upper=False)
    assert torch.allclose(white.cov(), torch.eye(4).double(), atol=0.06)


def test_evidence_of_two_batches_adds_up_to_that_of_both():
    y = normal_data()
    first = ready(normal_model, y[:8])
    prior = first.as_distribution()

    def model(y):
        mu = prior.latents("before")["mu"]
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    second = ready(model, y[8:])
    elbo = Trace_ELBO(500, vectorize_particles=True, max_plate_nesting=1)
    elbos = -elbo.loss(normal_model, first, y[:8]), -elbo.loss(model, second, y[8:])
    assert sum(elbos) == pytest.approx(normal_posterior(y)[2], abs=0.01)


def gamma_model(y, prior=None):
    rate = (
        pyro.sample("rate", dist.Gamma(2.0, 1.0)) if prior is None else prior.latents("p")["rate"]
    )
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Poisson(rate), obs=y)


def test_three_batches_in_sequence_have_the_names_of_the_first():
    x, y = regression_data()
    guide = ready(regression_model, x[:14], y[:14], flow=affine)
    for k in (14, 27):
        model = continued(guide.as_distribution())
        guide = ready(model, x[k : k + 13], y[k : k + 13], flow=affine)
    mean, covariance, _ = regression_posterior(x, y)
    posterior = guide.as_distribution()
    assert posterior.shapes == {"beta": (4,)}
    z = posterior.sample((100,))
    exact = dist.MultivariateNormal(mean, covariance).log_prob(z.double())
    assert torch.allclose(posterior.log_prob(z).double(), exact, atol=0.02)


def test_two_batches_of_a_positive_site_give_the_gamma_posterior():
    y = torch.tensor([3.0, 5.0, 2.0, 4.0, 6.0, 1.0])
    flow = partial(pf.flows.planar, num_transforms=2)
    options = {"steps": 100, "particles": 32, "seed": 0, "progress": False, "refine": False}
    prior = None
    for batch in (y[:3], y[3:]):
        model = partial(gamma_model, prior=prior)
        guide = pf.AutoFlow(model, flow)
        pf.fit(model, guide, batch, engine="eager", **options)
        prior = guide.as_distribution()
    posterior = guide.as_distribution()
    assert posterior.shapes == {"rate": torch.Size([])}
    exact = dist.Gamma(2.0 + y.sum(), 1.0 + len(y))
    rates = exact.sample((4000,))
    log_ratio = exact.log_prob(rates) - posterior.log_prob_sites({"rate": rates})
    # The Kullback-Leibler divergence, which is zero where they are the same.
    assert log_ratio.mean() + 3 * log_ratio.std() / 4000**0.5 >= 0
    assert log_ratio.mean() < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_density_of_the_sites_is_that_of_the_guide_with_the_jacobian(dtype):
    """Supports of every kind, against autodiff."""

    def model():
        one = torch.ones((), dtype=dtype)
        pyro.sample("interval", dist.Beta(2.0 * one, 5.0))
        pyro.sample("ordered", dist.ImproperUniform(dist.constraints.ordered_vector, (), (3,)))
        with pyro.plate("outer", 2, dim=-2), pyro.plate("inner", 3, dim=-1):
            pyro.sample("positive", dist.Gamma(3.0 * one, 2.0))

    guide = bent(model, init_loc_fn=pyro.infer.autoguide.init_to_feasible)
    posterior = guide.as_distribution().to(dtype)
    z = posterior.sample((5,))
    sites = posterior.sites(z)
    assert sites["positive"].shape == (5, 2, 3)
    flat = lambda z: torch.cat([v.reshape(-1) for v in posterior.sites(z).values()])  # noqa: E731
    ladj = torch.stack([jacobian(flat, row).slogdet()[1] for row in z])
    found = posterior.log_prob_sites(sites)
    assert torch.allclose(found, guide.get_posterior().to(dtype).log_prob(z) - ladj, atol=1e-3)
    assert found.dtype == dtype


def test_simplexes_and_correlations_are_scored_by_their_free_entries():
    guide = bent(constrained_model)
    posterior = guide.as_distribution()
    assert posterior.shapes["correlation"] == (3, 3)
    assert str(posterior.supports["simplex"]) == "Simplex()"

    def free(z):
        sites = posterior.sites(z)
        below = sites["correlation"][torch.ones(3, 3).tril(-1).bool()]
        keys = ("interval", "positive", "real")
        kept = [sites[key].reshape(-1) for key in keys]
        return torch.cat([*kept, sites["simplex"][:-1], below])

    z = posterior.sample()
    ladj = jacobian(free, z).slogdet()[1]
    expected = posterior.log_prob(z) - ladj
    assert posterior.log_prob_sites(posterior.sites(z)) == pytest.approx(float(expected), abs=1e-3)


@pytest.mark.parametrize("flow", RECIPES)
def test_it_is_frozen_copied_and_pickled(flow):
    """FAULTS 37, 43."""
    x, y = regression_data()
    guide = bent(regression_model, x, y, flow=flow)
    posterior = guide.as_distribution()
    z = posterior.sample((5,))
    before = posterior.log_prob(z)
    assert torch.equal(before, guide.get_posterior().log_prob(z))
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(1.0)
    twins = [posterior, copy.deepcopy(posterior), pickle.loads(pickle.dumps(posterior))]
    for twin in twins:
        assert torch.equal(twin.log_prob(z), before)
        assert not list(twin.parameters())
        assert not twin.rsample().requires_grad
    assert torch.allclose(posterior.double().log_prob(z.double()).float(), before, atol=1e-3)
    guide.model(x, y)


def test_a_model_that_is_a_module_does_not_train_it():
    x, y = regression_data()
    posterior = ready(regression_model, x, y, start="prior").as_distribution()

    class Model(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.prior = posterior

        def forward(self, x, y):
            return continued(self.prior)(x, y)

    model = Model()
    guide = pf.AutoFlow(model, "planar", start="prior")
    kept = copy.deepcopy(posterior.state_dict())
    SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(x, y)
    assert all(name.startswith("AutoFlow") for name in pyro.get_param_store())
    assert all(torch.equal(kept[name], value) for name, value in posterior.state_dict().items())


@pytest.mark.parametrize("flow", [pf.flows.iaf, pf.flows.maf], ids=["iaf", "maf"])
@pytest.mark.parametrize("how", ["plate", "vmap"])
def test_all_ways_to_run_particles(how, flow):
    """For maf in the unconstrained space, as its way back is the fast one."""
    x, y = regression_data()
    small = partial(flow, num_transforms=2, hidden_dims=(6,))
    prior = ready(regression_model, x[:20], y[:20], flow=small, start="laplace").as_distribution()

    def single(x, y):
        beta = prior.latents("before")["beta"]
        assert beta.dim() == 1
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(x @ beta, 1.0), obs=y)

    model = {"plate": continued(prior), "vmap": single}[how]
    guide = ready(model, x[20:], y[20:], flow=affine, start="prior")
    assert pf.infer.Particles(model, guide, (x[20:], y[20:]), {}).broadcast.how == how
    options = {"steps": 3, "particles": 8, "seed": 0, "progress": False, "refine": False}
    losses = [
        pf.fit(model, copy.deepcopy(guide), x[20:], y[20:], engine=engine, **options).losses
        for engine in ("eager", "traced")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_further_latents_stand_beside_those_of_before():
    x, y = regression_data()
    prior = bent(regression_model, x[:20], y[:20]).as_distribution()

    def model(x, y):
        pyro.sample("left", dist.Normal(0.0, 1.0))
        beta = prior.latents("before")["beta"]
        scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal((x * beta).sum(-1), scale), obs=y)

    guide = bent(model, x, y)
    posterior = guide.as_distribution()
    assert list(posterior.shapes) == ["left", "beta", "scale"]
    values = guide.get_posterior().sample((7,))
    moved = torch.cat([values[:, :1], prior.flow.transform(values[:, 1:5]), values[:, 5:]], -1)
    ladj = prior.flow.transform.forward_and_ladj(values[:, 1:5])[1]
    expected = guide.get_posterior().log_prob(values) - ladj
    assert torch.allclose(posterior.log_prob(moved), expected, atol=1e-3)
    x_, ladj = posterior.flow.transform.inverse_and_ladj(moved)
    y_, back = posterior.flow.transform.forward_and_ladj(x_)
    assert torch.allclose(y_, moved, atol=1e-3)
    assert torch.allclose(back, -ladj, atol=1e-3)
    with pytest.raises(pf.DomainError, match="latents of different names"):
        PosteriorDistribution(guide.flow, [(prior, True), *pf_latents(guide)])


def pf_latents(guide):
    return [latent for latent in guide.as_distribution()._latents if latent.name != "scale"]


def test_sites_of_plates_meet_the_axes_of_particles():
    prior = bent(constrained_model).as_distribution()

    def model():
        sites = prior.latents("before")
        with pyro.plate("outer", 2, dim=-2):
            pyro.sample("a", dist.Normal(sites["positive"], 1.0), obs=torch.ones(2, 1))
            with pyro.plate("inner", 3, dim=-1):
                pyro.sample("b", dist.Normal(sites["real"], 1.0), obs=torch.ones(2, 3))
        pyro.sample("c", dist.Dirichlet(sites["simplex"]), obs=torch.ones(3) / 3)

    guide = ready(model, start="prior")
    assert pf.infer.Particles(model, guide, (), {}).broadcast.how == "plate"
    loss = Trace_ELBO(6, vectorize_particles=True).loss(model, guide)
    assert loss == loss  # noqa: PLR0124  (not NaN)
    draws = draws_of(guide, 6, nesting=2)
    assert draws["before"].shape == (6, prior.input_dim)
    with (
        pyro.plate("around", 4, dim=-1),
        pytest.raises(pf.ShapeError, match="whose axes are free"),
    ):
        prior.latents("before")


def test_as_a_plain_site_and_under_plates():
    """The distribution itself, over the unconstrained vector."""
    x, y = regression_data()
    prior = bent(regression_model, x[:20], y[:20]).as_distribution()

    def model(x, y):
        beta = prior.sites(pyro.sample("z", prior))["beta"]
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal((x * beta).sum(-1), 1.0), obs=y)

    guide = ready(model, x[20:], y[20:], start="prior")
    assert list(guide.as_distribution().shapes) == ["beta"]
    with pyro.plate("groups", 3):
        z = pyro.sample("z", prior)
    assert z.shape == (3, 4)
    assert prior.expand((2, 3)).log_prob(z).shape == (2, 3)
    assert prior.sample((5,)).shape == (5, 4)

    def grouped():
        with pyro.plate("groups", 3):
            prior.latents("before")

    with pytest.raises(pf.DomainError, match="outside of all plates"):
        ready(grouped, start="prior").as_distribution()


def test_bounds_of_supports_are_its_own_and_move_with_it():
    """FAULTS 9."""
    low = torch.ones(3, requires_grad=True)
    guide = bent(lambda: pyro.sample("u", dist.Uniform(low, low + 2).to_event(1)))
    posterior = guide.as_distribution()
    with torch.no_grad():
        low += 100
    draws = posterior.double().sample_sites((50,))["u"]
    assert draws.dtype == torch.float64
    assert bool(((draws > 1) & (draws < 3)).all())
    assert not draws.requires_grad


BAD = {
    "missing": (lambda v: v.pop("real"), pf.DomainError, "expected values of"),
    "unknown": (lambda v: v.update(x=torch.ones(1)), pf.DomainError, "expected values of"),
    "outside": (lambda v: v["positive"].neg_(), pf.DomainError, "'positive' within Greater"),
    "NaN": (lambda v: v["interval"].fill_(torch.nan), pf.DomainError, None),
    "no simplex": (lambda v: v["simplex"].mul_(1.1), pf.DomainError, "'simplex' within Simplex"),
    "a shape": (lambda v: v.update(real=torch.ones(3, 3)), pf.ShapeError, r"\(\*, 2, 3\)"),
    "batches": (lambda v: v.update(interval=torch.full((4,), 0.5)), pf.ShapeError, "broadcast"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_values(case):
    """FAULTS 16: a NaN is never a density of zero."""
    change, error, words = BAD[case]
    posterior = bent(constrained_model).as_distribution()
    values = posterior.sample_sites((5,))
    assert posterior.log_prob_sites(values).isfinite().all()
    change(values)
    if words is None:
        assert posterior.log_prob_sites(values).isnan().all()
    else:
        with pytest.raises(error, match=words):
            posterior.log_prob_sites(values)


def test_it_needs_a_guide_that_is_set_up():
    with pytest.raises(pf.DomainError, match="expected the guide to be set up"):
        pf.AutoFlow(normal_model).as_distribution()
