"""Flows on each base: supports, training, path gradients, Pyro's sites and guides."""

import copy
import pickle

import bases
import contracts
import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from torch.distributions import MixtureSameFamily

import pyro_flows as pf
from pyro_flows import flows
from pyro_flows.distributions import Box, Flow, GaussianMixture, StandardNormal, StudentT
from pyro_flows.errors import DomainError
from pyro_flows.infer import AutoFlow
from pyro_flows.transforms import AffineCoupling, ElementwiseAffine, FlowTransform, Planar

EVERY_UNBOUNDED = pytest.mark.parametrize("name", bases.UNBOUNDED)


class _Turn(FlowTransform):
    """Turn each coordinate, an angle, by a trained amount."""

    def __init__(self, input_dim, low=-2.0, high=2.0):
        super().__init__(input_dim)
        self.low, self.high = low, high
        self.shift = torch.nn.Parameter(torch.full((input_dim,), 0.5))
        box = constraints.independent(constraints.interval(low, high), 1)
        self.domain = self.codomain = box

    def _turned(self, x, shift):
        width = self.high - self.low
        return self.low + (x + shift - self.low) % width, x.new_zeros(x.shape[:-1])

    def _forward_and_ladj(self, x, context):
        return self._turned(x, self.shift)

    def _inverse_and_ladj(self, y, context):
        return self._turned(y, -self.shift)


def _flow(name, d=2, *, dtype=torch.float64):
    return Flow(
        zoo.build("affine_coupling", d, dtype=dtype), base=bases.build(name, d, dtype=dtype)
    )


def _without_rsample():
    parts = dist.Normal(torch.tensor([[-2.0, 0.0], [2.0, 1.0]]), 1.0).to_event(1)
    return MixtureSameFamily(torch.distributions.Categorical(torch.ones(2)), parts)


# The support of the base is the domain of the transform.


@pytest.mark.parametrize(
    "base",
    [
        lambda: Box(2, low=-2.0, high=2.0),
        lambda: Box(2, low=torch.full((2,), -2.0), high=2.0).double(),
        lambda: dist.Uniform(-2.0, 2.0).expand([2]).to_event(1),
    ],
)
def test_box_for_a_transform_of_that_box(base):
    """FAULTS 14: its draws, its density and its support are those of the box."""
    base = base()
    flow = Flow(_Turn(2), base=base)
    assert flow.support.event_dim == 1
    if getattr(base, "low", torch.zeros(1)).dtype == torch.float32:
        x, log_prob = flow.expand((3,)).rsample_with_log_prob((50,))
        assert flow.support.check(x).all()
        contracts.close(flow.log_prob(x), log_prob, "log-density", inputs=x)


@pytest.mark.parametrize(
    ("transform", "base"),
    [
        (lambda: Planar(2), lambda: Box(2)),
        (lambda: Planar(2), lambda: dist.Uniform(0.0, 1.0).expand([2]).to_event(1)),
        (lambda: Planar(2), lambda: dist.Bernoulli(0.5).expand([2]).to_event(1)),
        (lambda: Planar(2), lambda: dist.OneHotCategorical(torch.ones(2))),
        (lambda: _Turn(2), lambda: StudentT(2)),
        (lambda: _Turn(2), lambda: Box(2, low=-2.0, high=2.001)),
        (lambda: _Turn(2), lambda: Box(2, low=-2.0, high=torch.tensor([2.0, 3.0]))),
        (lambda: _Turn(2), lambda: dist.Exponential(1.0).expand([2]).to_event(1)),
    ],
)
def test_other_supports_are_refused(transform, base):
    """FAULTS 14: discrete or bounded support, or other bounds, at construction."""
    with pytest.raises(DomainError, match=r"^Flow: expected a base whose support is the domain"):
        Flow(transform(), base=base())


def test_flow_of_real_vectors_keeps_their_support():
    assert Flow(Planar(2)).support is constraints.real_vector
    with pytest.raises(DomainError, match="a base whose support is the domain"):
        Flow(_Turn(2))


def test_flow_on_a_box_is_a_site_for_pyro():
    flow = Flow(_Turn(2), base=Box(2, low=-2.0, high=2.0))

    def model():
        with pyro.plate("rows", 5):
            return pyro.sample("angle", flow)

    guide = pyro.infer.autoguide.AutoNormal(model)
    loss = Trace_ELBO().differentiable_loss(model, guide)
    assert loss.isfinite()
    assert guide.median()["angle"].shape == (5, 2)


# A base without rsample.


def test_base_without_rsample_serves_densities_and_samples():
    flow = Flow(AffineCoupling(2), base=_without_rsample())
    assert not flow.has_rsample
    x = flow.expand((5,)).sample((4,))
    assert x.shape == (4, 5, 2)
    flow.log_prob(x).sum().backward()
    assert all(parameter.grad is not None for parameter in flow.parameters())
    for use in (flow.rsample, flow.rsample_with_log_prob, flow.with_draw_kept):
        with pytest.raises(DomainError, match=r"^Flow: expected a base with rsample.*Use a base"):
            use()


def test_base_without_rsample_in_autoflow():
    guide = AutoFlow(_heavy_tailed, flow=lambda d: Flow(flows.realnvp(d).transform, _wide(d)))
    with pytest.raises(DomainError, match=r"expected a base with rsample.*MixtureSameFamily"):
        pf.fit(_heavy_tailed, guide, steps=2, progress=False)


def _wide(d):
    parts = dist.Normal(torch.zeros(2, d), torch.tensor([[1.0], [3.0]])).to_event(1)
    return MixtureSameFamily(torch.distributions.Categorical(torch.ones(2)), parts)


def test_base_without_rsample_takes_the_score_function_of_an_elbo():
    """At a guide's own site: the gradient of Pyro's ELBO is then unbiased, if noisy."""
    flow = Flow(ElementwiseAffine(2), base=_wide(2))
    target = Flow(ElementwiseAffine(2), base=_wide(2)).requires_grad_(False)
    parts = flow.score_parts(flow.sample((3,)))
    assert torch.equal(parts.score_function, parts.log_prob)
    assert parts.entropy_term == 0
    with torch.no_grad():
        flow.transform.loc.fill_(0.5)

    def guide():
        pyro.module("flow", flow)
        pyro.sample("x", flow)

    svi = SVI(
        lambda: pyro.sample("x", target),
        guide,
        pyro.optim.Adam({"lr": 0.02}),
        Trace_ELBO(64, vectorize_particles=True, max_plate_nesting=0),
    )
    for _ in range(200):
        svi.step()
    assert flow.transform.loc.abs().max() < 0.25


# Flows on the bases.


@EVERY_UNBOUNDED
def test_trained_by_maximum_likelihood(name):
    """Fifty steps; every parameter of the base learns as well."""
    flow, data = Flow(AffineCoupling(2), base=bases.BASES[name](2)), _skewed(200)
    optimiser = torch.optim.Adam(flow.parameters(), lr=2e-2)
    losses = []
    for _ in range(50):
        optimiser.zero_grad()
        loss = -flow.log_prob(data).mean()
        loss.backward()
        losses.append(loss.item())
        for key, parameter in flow.base_dist.named_parameters():
            assert parameter.grad.any(), key
        optimiser.step()
    assert losses[-1] < losses[0] - 0.1


def _skewed(num):
    z = torch.randn(num, 2, generator=torch.Generator().manual_seed(0))
    return torch.stack([z[:, 0], 1 + 0.5 * z[:, 1] + z[:, 0].square()], -1)


@EVERY_UNBOUNDED
def test_draws_come_with_their_log_density(name):
    """FAULTS 27; with a kept draw, and after copies."""
    flow = _flow(name)
    x, log_prob = flow.expand((3,)).rsample_with_log_prob((20,))
    contracts.close(flow.log_prob(x), log_prob, "log-density", inputs=x, slack=5)
    for clone in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow)), contracts.reload(flow)):
        assert torch.equal(clone.log_prob(x), flow.log_prob(x))
    contracts.tensors_are_state(flow)


@EVERY_UNBOUNDED
def test_path_gradient_holds_the_base_fixed(name):
    """It is the chain rule for the base's parameters too, and vanishes at the target."""
    flow = _flow(name)
    target = copy.deepcopy(flow).requires_grad_(False)
    x, parameters = flow.rsample((6,)), list(flow.parameters())
    still = contracts.leaf(x)
    pull = torch.autograd.grad(flow.log_prob(still).sum(), still)[0]
    want = torch.autograd.grad(x, parameters, pull, retain_graph=True)
    got = torch.autograd.grad(flow.path_log_prob(x).sum(), parameters, retain_graph=True)
    for a, b in zip(got, want, strict=True):
        contracts.close(a, b, "path gradient")
    loss = (flow.path_log_prob(x) - target.log_prob(x)).sum()
    assert all(not g.any() for g in torch.autograd.grad(loss, parameters))
    assert all(parameter.requires_grad for parameter in flow.base_dist.parameters())


# In Pyro.


@EVERY_UNBOUNDED
def test_at_a_site_in_a_plate(name):
    """As it is, expanded, and with its plate as an event; the base's parameters are trained."""
    flow = Flow(AffineCoupling(2), base=bases.BASES[name](2))
    data = torch.randn(30, 4, 2) + 1

    def model(how):
        pyro.module("flow", flow)
        with pyro.plate("groups", 4):
            z = pyro.sample("z", flow if how == "plain" else flow.expand([4]))
        event = pyro.sample("event", flow.expand([3]).to_event(1))
        assert (z.shape[-2:], event.shape[-2:]) == ((4, 2), (3, 2))
        with pyro.plate("data", 30, dim=-2):
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=data)

    before = copy.deepcopy(flow.base_dist)
    for how in ("plain", "expanded"):
        pyro.clear_param_store()
        guide = pyro.infer.autoguide.AutoNormal(model)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
        losses = torch.tensor([svi.step(how) for _ in range(40)])
        assert losses[-10:].mean() < losses[:10].mean()
    for old, new in zip(before.parameters(), flow.base_dist.parameters(), strict=True):
        assert not torch.equal(old, new)


def _heavy_tailed():
    x = pyro.sample("x", dist.StudentT(2.5))
    pyro.sample("y", dist.StudentT(2.5, 0.5 * x, 1.0))


def _fitted(base, *, steps=300):
    guide = AutoFlow(
        _heavy_tailed, flow=lambda d: Flow(flows.realnvp(d, num_transforms=2).transform, base(d))
    )
    result = pf.fit(
        _heavy_tailed, guide, steps=steps, particles=64, lr=2e-2, seed=0, progress=False
    )
    return guide, result


def test_autoflow_on_a_heavy_tailed_model():
    """The evidence is one; a Student-t base finds it and the tails, a normal one does not."""
    guide, result = _fitted(StudentT)
    _, normal = _fitted(StandardNormal)
    assert abs(result.elbo) < 3e-3
    assert normal.elbo < -0.015
    df = guide.flow.base_dist.df
    assert torch.allclose(df, torch.tensor(2.5), atol=0.1), f"they began at 5 and are {df}"
    assert result.ess > 0.99 > normal.ess
    median = guide.median()
    assert abs(median["x"]) < 0.2
    assert abs(median["y"]) < 0.2


def test_autoflow_with_a_mixture():
    """Trained by the draws' own gradient for weights, locations and scales; by SVI as well."""
    guide, result = _fitted(lambda d: GaussianMixture(d, 3))
    assert result.elbo > -0.2
    svi = SVI(_heavy_tailed, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    before = copy.deepcopy(guide.flow.base_dist)
    svi.step()
    for old, new in zip(before.parameters(), guide.flow.base_dist.parameters(), strict=True):
        assert not torch.equal(old, new)


def test_autoflow_refuses_a_bounded_flow():
    """FAULTS 14: unconstrained latents are no angles."""
    guide = AutoFlow(_heavy_tailed, flow=lambda d: Flow(_Turn(d), base=Box(d, low=-2.0, high=2.0)))
    words = r"expected a part over .* after _Turn; got .* over .*Real"
    with pytest.raises(DomainError, match=words):
        guide.initialise()
