"""Transforms and flows inside Pyro: its own distributions, autoguides, plates and ELBOs."""

import contracts
import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo
from pyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO
from pyro.infer.autoguide import AutoNormal, AutoNormalizingFlow

from pyro_flows import flows
from pyro_flows.distributions import Flow
from pyro_flows.transforms import Planar

D = 3
CONDITIONAL = zoo.names(2, zoo.KINDS)


def _normal(*batch):
    zeros = torch.zeros(*batch, D, dtype=torch.float64)
    return dist.Normal(zeros, torch.ones_like(zeros)).to_event(1)


@pytest.mark.parametrize("name", zoo.KINDS)
def test_alone_in_a_transformed_distribution(name):
    transform = zoo.build(name, D)
    flow = dist.TransformedDistribution(_normal(), [transform])
    assert (flow.batch_shape, flow.event_shape) == ((), (D,))
    x = flow.sample((4,))
    contracts.close(flow.log_prob(x), Flow(transform).log_prob(x), "log-density", inputs=x)
    five = flow.expand((5,))
    assert (five.sample((4,)).shape, five.log_prob(x[:, None]).shape) == ((4, 5, D), (4, 5))


@pytest.mark.parametrize("batch", [(), (10,), (2, 10)])
@pytest.mark.parametrize("name", CONDITIONAL)
def test_conditioned_transform_reports_the_batch_of_its_context(name, batch):
    """FAULTS 3: or the distribution scores and expands wrongly outside of a plate."""
    transform = zoo.build(name, D, 2)
    context = zoo.points(*batch, 2)
    flow = dist.TransformedDistribution(_normal(), [transform.condition(context)])
    assert (flow.batch_shape, flow.event_shape) == (batch, (D,))
    x = flow.sample((4,))
    assert x.shape == (4, *batch, D)
    want = Flow(transform).condition(context).log_prob(x)
    contracts.close(flow.log_prob(x), want, "log-density", inputs=x)
    wide = flow.expand((7, *batch))
    assert wide.batch_shape == (7, *batch)
    assert wide.log_prob(wide.sample()).shape == (7, *batch)


@pytest.mark.parametrize("name", CONDITIONAL)
def test_alone_in_a_conditional_transformed_distribution(name):
    """With a transform beside it that takes no context, and two contexts one after the other."""
    transform, plain = zoo.build(name, D, 2), zoo.build("permute_random", D)
    flow = dist.ConditionalTransformedDistribution(_normal(), [plain, transform])
    for batch in ((), (5,)):
        context = zoo.points(*batch, 2, seed=len(batch))
        given = flow.condition(context)
        x = given.sample((4,))
        assert x.shape == (4, *batch, D)
        want = Flow([plain, transform]).condition(context).log_prob(x)
        contracts.close(given.log_prob(x), want, "log-density", inputs=x)


@pytest.mark.parametrize("name", zoo.KINDS)
def test_inverse_view(name):
    """Torch's ``inv`` of a transform, in a composition of torch's own."""
    transform, x = zoo.build(name, D), zoo.points(4, D)
    both = torch.distributions.transforms.ComposeTransform([transform, transform.inv])
    contracts.close(both(x).detach(), x, "transform, then its inverse", inputs=x)
    ladj = both.log_abs_det_jacobian(x, both(x)).detach()
    contracts.close(ladj, torch.zeros_like(ladj), "ladj", inputs=x)
    assert transform.inv.inv is transform
    assert transform.with_cache(1) is transform


def _correlated():
    with pyro.plate("rows", 2):
        pyro.sample("a", dist.Normal(1.0, 0.5))
    b = pyro.sample("b", dist.LogNormal(0.0, 1.0))
    pyro.sample("x", dist.Normal(b, 0.3), obs=torch.tensor(2.0))


@pytest.mark.parametrize("name", zoo.learnable(zoo.KINDS))
def test_pyros_own_flow_guide_trains_it(name):
    guide = AutoNormalizingFlow(_correlated, lambda d: zoo.ZOO[name](d, 0))
    # The continuous row moves by a tenth of what its network says.
    optim = pyro.optim.Adam({"lr": 0.2 if name == "continuous" else 0.02})
    svi = SVI(_correlated, guide, optim, Trace_ELBO(8, vectorize_particles=True))
    losses = torch.tensor([svi.step() for _ in range(60)])
    assert losses[-20:].mean() < losses[:10].mean() - 0.1


def _prior_model(flow, data):
    pyro.module("prior", flow)
    with pyro.plate("groups", 4):
        z = pyro.sample("z", flow)
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(data), dim=-2):
        pyro.sample("x", dist.Normal(z, scale[..., None]).to_event(1), obs=data)


def test_flow_as_a_prior_under_an_autoguide():
    """Inside a plate, its parameters learned with the guide's."""
    data = 1.0 + torch.randn(20, 4, 2)
    flow = zoo.randomise(flows.realnvp(2, num_transforms=2, hidden_dims=(8,)), scale=0.1)
    guide = AutoNormal(lambda: _prior_model(flow, data))
    optim = pyro.optim.Adam({"lr": 0.05})
    svi = SVI(lambda: _prior_model(flow, data), guide, optim, Trace_ELBO())
    before = [parameter.detach().clone() for parameter in flow.parameters()]
    losses = torch.tensor([svi.step() for _ in range(150)])
    assert losses[-20:].mean() < losses[:10].mean()
    moved = [not torch.equal(a, b) for a, b in zip(before, flow.parameters(), strict=True)]
    assert all(moved)
    assert guide.median()["z"].shape == (4, 2)


@pytest.mark.parametrize("c", [0, 2])
def test_flow_at_an_observed_site(c):
    """The trace scores it by the plate, with Pyro's validation on."""
    flow = Flow(zoo.build("affine_coupling", D, c))
    given = flow if c == 0 else flow.condition(zoo.points(6, c))
    data = zoo.points(6, D)

    def model():
        with pyro.plate("data", 6):
            pyro.sample("x", given, obs=data)

    trace = pyro.poutine.trace(model).get_trace()
    want = given.log_prob(data).sum()
    assert torch.allclose(trace.log_prob_sum(), want)
    scaled = pyro.poutine.trace(pyro.poutine.scale(model, scale=3.0)).get_trace()
    assert torch.allclose(scaled.log_prob_sum(), 3 * want)


def test_flow_in_pyros_wrappers():
    flow, x = Flow(zoo.build("affine_coupling", D)).expand((4,)), zoo.points(4, D)
    log_prob = flow.log_prob(x)
    assert torch.equal(flow.to_event(1).log_prob(x), log_prob.sum())
    mask = torch.tensor([True, False, True, True])
    assert torch.equal(flow.mask(mask).log_prob(x), torch.where(mask, log_prob, 0.0))
    assert flow.support.event_dim == 1
    assert flow.support.check(x).all()


class _OneSite:
    """A model and a guide whose only site is a flow, the guide's equal to the model's."""

    def __init__(self, batch):
        self.batch = batch
        self.flow = Flow(zoo.build("compose_everything", 2))
        self.target = Flow(zoo.build("compose_everything", 2)).requires_grad_(False)

    def model(self):
        with pyro.plate("rows", self.batch):
            pyro.sample("x", self.target)

    def guide(self, *, path_gradient=True):
        pyro.module("flow", self.flow)
        with pyro.plate("rows", self.batch):
            pyro.sample("x", self.flow.with_draw_kept(path_gradient=path_gradient))


@pytest.mark.parametrize("vectorised", [False, True])
def test_elbo_takes_the_path_gradient(vectorised):
    """Zero, to rounding, where the guide is the posterior; the total gradient is not."""
    case = _OneSite(5)
    elbo = Trace_ELBO(4, vectorize_particles=vectorised, max_plate_nesting=1)
    for path_gradient in (True, False):
        case.flow.zero_grad()
        loss = elbo.differentiable_loss(
            case.model, lambda path=path_gradient: case.guide(path_gradient=path)
        )
        assert abs(loss.item()) < 1e-8
        loss.backward()
        moves = [parameter.grad.abs().max() for parameter in case.flow.parameters()]
        assert max(moves) < 1e-12 if path_gradient else max(moves) > 1e-3


def test_tracegraph_elbo_takes_the_path_gradient():
    case = _OneSite(5)
    TraceGraph_ELBO().loss_and_grads(case.model, case.guide)
    assert all(parameter.grad.abs().max() < 1e-12 for parameter in case.flow.parameters())


def test_flow_is_trained_by_maximum_likelihood():
    """FAULTS 36: by Pyro's own loop, on the same tensor in every step."""
    data = torch.stack([torch.randn(200), torch.randn(200) * 0.3 + 2], -1)
    flow = Flow([Planar(2), Planar(2)])

    def model():
        pyro.module("flow", flow)
        with pyro.plate("data", len(data)):
            pyro.sample("x", flow, obs=data)

    svi = SVI(model, lambda: None, pyro.optim.ClippedAdam({"lr": 0.02}), Trace_ELBO())
    losses = [svi.step() for _ in range(100)]
    assert losses[-1] < losses[0] - 20
    assert losses[-1] == pytest.approx(-flow.log_prob(data).sum().item(), rel=0.05)
