"""Models written for one draw run by vmap: the same densities and gradients as in a loop."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import ready, regression_data, single_draw_regression_model
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import pyro_flows as pf
from pyro_flows.infer import Particles, store

X, Y = regression_data()
ROWS, DIM = X.shape
SERIES = torch.sin(torch.arange(12.0))
TIMES = torch.linspace(0, 5, 15)
POINTS = torch.randn(20, 3, generator=torch.Generator().manual_seed(3))


def coefficients(dtype=torch.float32):
    return pyro.sample("beta", dist.Normal(torch.zeros(DIM, dtype=dtype), 1.0).to_event(1))


def regression():
    single_draw_regression_model(X, Y)


def in_float64():
    mean = X.double() @ coefficients(torch.float64)
    with pyro.plate("rows", ROWS):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=Y.double())


def latent_covariance():
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    covariance = scale * torch.eye(3) + weights.diag()
    z = pyro.sample("z", dist.MultivariateNormal(torch.zeros(3), covariance))
    pyro.sample("y", dist.Normal(z @ weights, 1.0), obs=torch.tensor(0.5))


def correlations():
    scales = pyro.sample("scales", dist.LogNormal(torch.zeros(3), 1.0).to_event(1))
    factor = pyro.sample("factor", dist.LKJCholesky(3, torch.tensor(2.0)))
    with pyro.plate("rows", len(POINTS)):
        prior = dist.MultivariateNormal(torch.zeros(3), scale_tril=scales.diag() @ factor)
        pyro.sample("y", prior, obs=POINTS)


def gaussian_process():
    length = pyro.sample("length", dist.LogNormal(0.0, 0.5))
    noise = pyro.sample("noise", dist.LogNormal(-1.0, 0.5))
    kernel = torch.exp(-0.5 * ((TIMES[:, None] - TIMES) / length) ** 2)
    tril = torch.linalg.cholesky(kernel + noise**2 * torch.eye(len(TIMES)))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(15), scale_tril=tril), obs=TIMES.sin())


def time_series():
    decay = pyro.sample("decay", dist.Beta(2.0, 2.0))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    states = [torch.zeros(())]
    for t in pyro.markov(range(len(SERIES))):
        states.append(pyro.sample(f"h{t}", dist.Normal(decay * states[-1], scale)))
    with pyro.plate("times", len(SERIES)):
        pyro.sample("y", dist.Normal(torch.stack(states[1:]), 0.5), obs=SERIES)


def mixture():
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    means = pyro.sample("means", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    parts = [weights[k].log() + dist.Normal(means[k], 1.0).log_prob(Y) for k in range(2)]
    pyro.factor("mixed", torch.stack(parts).logsumexp(0).sum())


def masked_and_scaled():
    mean = X @ coefficients()
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with poutine.scale(scale=scale), poutine.mask(mask=Y > 0), pyro.plate("rows", ROWS):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=Y)


def nested_plates():
    mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("outer", 3, dim=-2):
        a = pyro.sample("a", dist.Normal(mean[0] + mean[1], 1.0))
        with pyro.plate("inner", 4, dim=-1):
            b = pyro.sample("b", dist.Normal(a, 1.0))
            pyro.sample("y", dist.Normal(b, 1.0), obs=torch.ones(3, 4))


def sequential_plate():
    beta = coefficients()
    for row in pyro.plate("rows", 5):
        pyro.sample(f"y{row}", dist.Normal(X[row] @ beta, 1.0), obs=Y[row])


def scalar_and_single_entry():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(torch.zeros(1), 1.0).to_event(1))
    with pyro.plate("one", 1):
        c = pyro.sample("c", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(torch.ones(5, 1) @ b + a + c, 1.0).to_event(1), obs=torch.ones(5))


def latents_in_the_data():
    mean = pyro.deterministic("mean", X @ coefficients())
    pyro.sample("noise", dist.Normal(torch.zeros(ROWS), 1.0).to_event(1), obs=Y - mean)


def without_a_batching_rule():
    pyro.factor("f", torch.special.log_ndtr(X @ coefficients()).sum())


def with_a_parameter():
    scale = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
    mean = X @ coefficients()
    with pyro.plate("rows", ROWS):
        pyro.sample("y", dist.Normal(mean, scale), obs=Y)


class Network(PyroModule):
    """A layer with latent weights, on one with weights to train."""

    def __init__(self):
        super().__init__()
        self.first = PyroModule[nn.Linear](DIM, 3)
        self.last = PyroModule[nn.Linear](3, 1)
        self.last.weight = PyroSample(dist.Normal(torch.zeros(1, 3), 1.0).to_event(2))

    def forward(self):
        mean = self.last(self.first(X).tanh()).squeeze(-1)
        with pyro.plate("rows", ROWS):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=Y)


MODELS = [
    regression,
    in_float64,
    latent_covariance,
    correlations,
    gaussian_process,
    time_series,
    mixture,
    masked_and_scaled,
    nested_plates,
    sequential_plate,
    scalar_and_single_entry,
    latents_in_the_data,
    without_a_batching_rule,
    with_a_parameter,
    Network,
]


def particles_of(model, guide=None):
    guide = ready(model, start="prior") if guide is None else guide
    return Particles(model, guide, (), {})


def run(particles, vmap, num=5):
    """Return scores of draws from one random state, and the gradient by every parameter."""
    particles.broadcast = particles.broadcast._replace(vmap=vmap)
    torch.manual_seed(0)
    scores = particles.score(num)
    parameters = [
        parameter
        for part in (particles.model, particles.guide)
        if isinstance(part, nn.Module)
        for parameter in part.parameters()
    ]
    parameters += [value.unconstrained() for value in pyro.get_param_store().values()]
    unique = {id(parameter): parameter for parameter in parameters if parameter.requires_grad}
    return scores, torch.autograd.grad(
        scores.surrogate.mean(), list(unique.values()), allow_unused=True, materialize_grads=True
    )


@pytest.fixture(autouse=True)
def _own_store():
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_vmap_gives_the_densities_and_the_gradient_of_a_loop(model):
    torch.manual_seed(0)
    model = model() if isinstance(model, type) else model
    particles = particles_of(model)
    assert particles.broadcast.how == "vmap"
    vmapped, gradient = run(particles, vmap=True)
    looped, expected = run(particles, vmap=False)
    for ours, theirs in zip(vmapped, looped, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert any(bool(theirs.any()) for theirs in expected)
    for ours, theirs in zip(gradient, expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-4 * (1 + theirs.abs().max())


def subsampled(seen=None):
    beta = coefficients()
    with pyro.plate("rows", ROWS, subsample_size=7) as index:
        if seen is not None:
            seen.append(index)
        pyro.sample("y", dist.Normal(X[index] @ beta, 1.0), obs=Y[index])


def at_a_point(value):
    """Return a guide that puts all its mass on one value of ``beta``."""
    return lambda *args: pyro.sample("beta", dist.Delta(value, event_dim=1))


def test_models_own_subsample_is_shared_by_all_particles_fresh_and_scaled():
    beta = torch.full((DIM,), 0.1)
    particles = particles_of(subsampled, at_a_point(beta))
    assert particles.broadcast.how == "vmap"
    torch.manual_seed(0)
    estimates = torch.stack([particles.score(3).log_p for _ in range(2000)])
    assert (estimates == estimates[:, :1]).all()
    assert len(set(estimates[:, 0].tolist())) > 1000
    prior = dist.Normal(0.0, 1.0).log_prob(beta).sum()
    every = dist.Normal(X @ beta, 1.0).log_prob(Y).sum() + prior
    error = estimates[:, 0].std() / len(estimates) ** 0.5
    assert (estimates[:, 0].mean() - every).abs() < 4 * error


@pytest.mark.parametrize("vmap", [True, False])
def test_subsample_of_the_guides_plates_is_fresh_in_every_run(vmap):
    seen = []

    def plates():
        return pyro.plate("rows", ROWS, subsample_size=7)

    def model():
        subsampled(seen)

    particles = particles_of(model, ready(model, start="prior", create_plates=plates))
    assert particles.broadcast.how == "vmap"
    particles.broadcast = particles.broadcast._replace(vmap=vmap)
    seen.clear()
    for _ in range(3):
        particles.score(2)
    rows = [tuple(index.tolist()) for index in seen]
    assert len(rows) == (3 if vmap else 6)
    assert len(set(rows)) == 3


def test_dropout_is_drawn_once_for_all_particles():
    def model():
        pyro.factor("f", nn.functional.dropout(X @ coefficients(), 0.5).sum())

    particles = particles_of(model, at_a_point(torch.ones(DIM)))
    assert particles.broadcast.how == "vmap"
    first, second = particles.score(4).log_p, particles.score(4).log_p
    assert (first == first[0]).all()
    assert first[0] != second[0]


class Plain(dist.Normal):
    """A normal that leaves the gradient to the score function."""

    has_rsample = False


class Path(dist.Normal):
    """A normal that takes the path gradient."""

    def score_parts(self, x, *args, **kwargs):
        fixed = dist.Normal(self.loc.detach(), self.scale)
        return dist.score_parts.ScoreParts(self.log_prob(x), 0, fixed.log_prob(x))


@pytest.mark.parametrize("normal", [dist.Normal, Path, Plain])
def test_guide_that_does_not_broadcast_runs_by_vmap_with_its_model(normal):
    sd = 2.0

    def guide():
        loc = pyro.param("loc", torch.tensor([0.5, -0.5]))
        first = pyro.sample("first", dist.Delta(torch.eye(2) @ loc, event_dim=1))
        assert first.dim() == 1
        pyro.sample("z", normal(loc[0], sd))

    def model():
        pyro.sample("first", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("z", dist.Normal(0.0, 1.0))

    particles = particles_of(model, guide)
    assert particles.broadcast.how == "vmap"
    assert particles.vectorized
    assert "the guide fails under a particle plate (AssertionError" in particles.broadcast.reason
    torch.manual_seed(0)
    scores = particles.score(6)
    loc, leaf = pyro.param("loc").detach(), pyro.param("loc").unconstrained()
    zero, prior = torch.tensor(0.0), dist.Normal(0.0, 1.0)
    # The density of a normal tells the distance to its mean; the sign is left open.
    eps = (-2 * (scores.log_q - dist.Normal(0.0, sd).log_prob(zero))).sqrt()
    eps = eps.detach() * torch.tensor([[1.0], [-1.0]])
    z = loc[0] + sd * eps
    log_p = prior.log_prob(z) + prior.log_prob(loc).sum()
    sign = (log_p - scores.log_p).abs().argmin(0)
    eps, z = eps[sign, range(6)], z[sign, range(6)]
    assert len(set(z.tolist())) == 6
    expected = {
        dist.Normal: -z,
        Path: -z + eps / sd,
        Plain: (scores.log_p - scores.log_q).detach() * eps / sd,
    }[normal]
    for k in range(6):
        (grad,) = torch.autograd.grad(scores.surrogate[k], leaf, retain_graph=True)
        assert float(grad[0]) == pytest.approx(float(expected[k] - loc[0]), abs=1e-3)
        assert float(grad[1]) == pytest.approx(-float(loc[1]))


@pytest.mark.parametrize("autoguide", [AutoNormal, AutoDelta])
def test_pyros_own_guides_draw_for_vmap(autoguide):
    guide = autoguide(regression)
    guide()
    particles = particles_of(regression, guide)
    assert particles.broadcast.how == "vmap"
    vmapped, gradient = run(particles, vmap=True)
    looped, expected = run(particles, vmap=False)
    torch.testing.assert_close(vmapped.log_p, looped.log_p)
    for ours, theirs in zip(gradient, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_operator_without_a_batching_rule_is_muted_and_no_other():
    assert particles_of(without_a_batching_rule).mutes_vmap
    assert not particles_of(regression).mutes_vmap


class Step(nn.Module):
    """The negative surrogate, as a function of the guide's parameters alone."""

    def __init__(self, model, guide):
        super().__init__()
        self.guide = guide
        self._particles = Particles(model, guide, (), {})

    def forward(self):
        return -self._particles.score(8).surrogate.mean()


@pytest.mark.parametrize("model", [regression, latent_covariance, time_series, subsampled])
def test_traced_step_is_one_graph_and_gives_the_same_numbers(model):
    guide = ready(model, start="prior")
    step = Step(model, guide)
    assert step._particles.broadcast.how == "vmap"
    named = {name: p.detach().clone() for name, p in step.named_parameters()}
    sizes = [value.numel() for value in named.values()]

    def gradient(flat):
        parts = zip(named.items(), flat.split(sizes), strict=True)
        parameters = {name: part.view(value.shape) for (name, value), part in parts}
        loss = torch.func.functional_call(step, parameters, ())
        return loss.detach(), *torch.autograd.grad(loss, flat)

    flat = torch.cat([value.reshape(-1) for value in named.values()]).requires_grad_()
    with store.unused(), pyro.validation_enabled(False):
        traced = make_fx(gradient)(flat)
        torch.manual_seed(7)
        eager = gradient(flat)
    assert all(node.op != "call_module" for node in traced.graph.nodes)
    torch.manual_seed(7)
    for ours, theirs in zip(traced(flat), eager, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert not torch.equal(traced(flat)[0], eager[0])


def test_fit_of_a_model_for_one_draw_is_vectorized_and_says_nothing(caplog):
    guide = pf.AutoFlow(regression, flow="planar", start="prior")
    with caplog.at_level("WARNING", logger="pyro_flows"):
        result = pf.fit(regression, guide, steps=3, particles=4, seed=0, progress=False)
    assert result.vectorized
    assert "one particle at a time" not in repr(result)
    assert not caplog.records
