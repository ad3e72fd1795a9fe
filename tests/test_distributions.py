"""The flow as a distribution and as a module."""

import copy
import pickle

import contracts
import pyro.distributions as dist
import pytest
import torch
import zoo

from pyro_flows.distributions import DistributionModule, Flow, StandardNormal
from pyro_flows.transforms import AffineCoupling, Compose, LowerTriangularAffine, Permute, Planar

DTYPES = [torch.float32, torch.float64]
# The batch of the context (if any), the batch that is expanded to (if any), and the sample shape.
BATCHES = [(None, None, ()), (None, None, (4,)), (None, (3,), (2, 4)), (None, (1, 3), ())]
CONTEXT_BATCHES = [((), None, (4,)), ((3,), None, (4,)), ((3,), (2, 3), ()), ((), (5,), (2,))]


def _flow(name="compose_everything", d=3, c=0, *, dtype=torch.float64, seed=0):
    return Flow(zoo.build(name, d, c, dtype=dtype, seed=seed))


def _conditioned(flow, *batch, dtype=torch.float64):
    context = zoo.context_for(flow.transform, *batch, dtype=dtype)
    return flow if context is None else flow.condition(context)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("name", zoo.ZOO)
def test_draws_come_with_their_log_density(name, d, dtype):
    """FAULTS 27: the density of a draw is the same both ways."""
    flow = _flow(name, d, dtype=dtype)
    x, log_prob = flow.rsample_with_log_prob((50,))
    contracts.close(flow.log_prob(x), log_prob, "log-density", inputs=x, slack=5)


@pytest.mark.parametrize(("context_batch", "expanded", "sample_shape"), BATCHES + CONTEXT_BATCHES)
def test_shapes(context_batch, expanded, sample_shape):
    """FAULTS 3."""
    flow = _flow(c=0 if context_batch is None else 2)
    flow = _conditioned(flow, *(context_batch or ()))
    batch = context_batch or ()
    assert (flow.batch_shape, flow.event_shape, flow.event_dim) == (batch, (3,), 1)
    if expanded is not None:
        flow, batch = flow.expand(expanded), expanded
    assert flow.batch_shape == batch
    x, log_prob = flow.rsample_with_log_prob(sample_shape)
    assert x.shape == flow.shape(torch.Size(sample_shape)) == (*sample_shape, *batch, 3)
    assert log_prob.shape == flow.log_prob(x).shape == (*sample_shape, *batch)
    contracts.close(flow.log_prob(x), log_prob, "log-density", inputs=x)
    assert flow.log_prob(torch.zeros(3).double()).shape == batch


def test_context_broadcasts_like_a_loop():
    """FAULTS 3."""
    flow, x = _flow(c=2), zoo.points(4, 5, 3)
    context = zoo.points(5, 2)
    got = flow.condition(context).log_prob(x)
    want = torch.stack([flow.condition(context[k]).log_prob(x[:, k]) for k in range(5)], 1)
    contracts.close(got, want, "log-density", inputs=x)


def test_expanded_rows_are_independent_draws():
    x = _flow().expand((4,)).sample()
    assert len({tuple(row) for row in x.tolist()}) == 4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gaussian_flow_is_the_multivariate_normal(dtype):
    """An exact reference: sampling moments, and the density."""
    tril = torch.tensor([[2.0, 0.0, 0.0], [0.5, 1.0, 0.0], [-1.0, 0.3, 0.5]], dtype=dtype)
    loc = torch.tensor([1.0, -2.0, 3.0], dtype=dtype)
    flow = Flow(LowerTriangularAffine(3, loc=loc, scale_tril=tril))
    want = dist.MultivariateNormal(loc, scale_tril=tril)
    x = want.sample((200,))
    contracts.close(flow.log_prob(x).detach(), want.log_prob(x), "log-density", inputs=x)
    draws = flow.sample((20_000,))
    assert torch.allclose(draws.mean(0), loc, atol=0.08)
    assert torch.allclose(draws.T.cov(), tril @ tril.T, atol=0.15)


def test_standard_normal_is_torchs():
    x, want = zoo.points(7, 4, 3), dist.Normal(0.0, 1.0).expand([3]).to_event(1)
    contracts.close(StandardNormal(3).log_prob(x), want.log_prob(x), "log-density", inputs=x)
    five = StandardNormal(3).expand((5,))
    assert five.sample((2,)).shape == (2, 5, 3)
    assert five.log_prob(torch.zeros(3)).shape == (5,)


@pytest.mark.parametrize("default", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtype_follows_the_module(dtype, default):
    """FAULTS 8: the base as well, whether the flow or its transform was converted."""
    torch.set_default_dtype(default)
    transform = Compose([Permute.reversal(3), AffineCoupling(3)])
    for flow in (Flow(copy.deepcopy(transform)).to(dtype), Flow(transform.to(dtype))):
        x, log_prob = flow.rsample_with_log_prob((4,))
        assert (x.dtype, log_prob.dtype, flow.log_prob(x).dtype) == (dtype,) * 3


def test_sampling_has_gradients_and_sample_has_none():
    flow = _flow()
    x, log_prob = flow.rsample_with_log_prob((10,))
    (x.sin().sum() + log_prob.sum()).backward()
    assert all(parameter.grad.any() for parameter in flow.parameters())
    assert not flow.sample((10,)).requires_grad


def test_flow_is_a_module():
    """FAULTS 9, 43: its parameters are its transform's; they train, move and freeze together."""
    flow = _flow()
    assert {key for key, _ in flow.named_parameters()} == {
        f"transform.{key}" for key, _ in flow.transform.named_parameters()
    }
    holder = torch.nn.Sequential(flow)
    assert len(list(holder.parameters())) == len(list(flow.parameters()))
    flow.requires_grad_(False)
    assert not flow.rsample((2,)).requires_grad
    contracts.tensors_are_state(flow)


def test_expansions_share_parameters():
    flow = _flow(c=2)
    derived = flow.condition(zoo.points(4, 2)), flow.expand((4,)), flow.with_draw_kept()
    for other in derived:
        assert all(a is b for a, b in zip(flow.parameters(), other.parameters(), strict=True))
    assert flow.batch_shape == ()


def test_copies_after_use_are_equal_and_hold_no_data():
    """FAULTS 37, 38: kept draws included."""
    flow = _flow().with_draw_kept()
    x = flow.rsample((4,))
    flow.log_prob(x).sum().backward()
    flow.log_prob(torch.full_like(x, contracts.SENTINEL))
    contracts.holds_no_data(flow)
    for clone in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow)), contracts.reload(flow)):
        contracts.close(clone.log_prob(x), flow.path_log_prob(x), "log-density", inputs=x)


def test_copy_of_a_kept_draw_leaves_the_draw_behind():
    """FAULTS 38."""
    flow = _flow().with_draw_kept()
    draw = flow.transform.forward_and_ladj
    flow.transform.forward_and_ladj = lambda x, c: (
        draw(x, c)[0] * 0 + contracts.SENTINEL,
        draw(x, c)[1],
    )
    flow.rsample((4,))
    del flow.transform.forward_and_ladj
    contracts.holds_no_data(flow)


def test_state_dict_carries_the_density():
    """FAULTS 39."""
    x, flow, other = zoo.points(5, 3), _flow(), _flow(seed=7)
    assert not torch.equal(other.log_prob(x), flow.log_prob(x))
    other.load_state_dict(flow.state_dict())
    assert torch.equal(other.log_prob(x), flow.log_prob(x))


@pytest.mark.parametrize("fault", [torch.nan, torch.inf])
def test_faulty_value_is_not_given_a_number(fault):
    """FAULTS 16, 17."""
    log_prob = _flow().log_prob(torch.tensor([[0.0, fault, 0.0], [0.0, 0.0, 0.0]]).double())
    assert not log_prob[0].isfinite()
    assert log_prob[1].isfinite()


# Other bases.


class _Trained(DistributionModule):
    """A base with a parameter of its own."""

    def __init__(self, input_dim):
        super().__init__(input_dim)
        self.loc = torch.nn.Parameter(torch.ones(input_dim))

    def rsample(self, sample_shape=torch.Size()):
        return self.loc + torch.randn(self.shape(torch.Size(sample_shape)))

    def log_prob(self, value):
        return dist.Normal(self.loc, 1.0).to_event(1).log_prob(value).expand(value.shape[:-1])


BASES = {
    "student": lambda: dist.StudentT(5.0, torch.zeros(2), torch.ones(2)).to_event(1),
    "multivariate": lambda: dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
    "torch": lambda: torch.distributions.Independent(
        torch.distributions.Normal(torch.zeros(2), torch.ones(2)), 1
    ),
    "flow": lambda: Flow(Planar(2)),
    "trained": lambda: _Trained(2),
}


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_other_bases(base):
    """FAULTS 14: any reparameterised distribution over real vectors."""
    transform = zoo.build("affine_coupling", 2, dtype=torch.float32)
    flow, base = Flow(transform, base=base()), base()
    if isinstance(flow.base_dist, torch.nn.Module):
        base.load_state_dict(flow.base_dist.state_dict())
    x, log_prob = flow.expand((5,)).rsample_with_log_prob((20,))
    assert x.shape == (20, 5, 2)
    contracts.close(flow.log_prob(x), log_prob, "log-density", inputs=x)
    eps, ladj = transform.inverse_and_ladj(x)
    contracts.close(flow.log_prob(x), base.log_prob(eps) + ladj, "log-density", inputs=x)


def test_base_that_is_a_module_is_trained_and_saved():
    flow = Flow(Planar(2), base=_Trained(2))
    assert "base_dist.loc" in flow.state_dict()
    flow.log_prob(torch.zeros(4, 2)).sum().backward()
    assert flow.base_dist.loc.grad.any()


# The draw that is kept, and the path gradient.


def _count_inverses(flow, monkeypatch):
    calls, inverse = [], type(flow.transform).inverse_and_ladj
    monkeypatch.setattr(
        type(flow.transform),
        "inverse_and_ladj",
        lambda self, *args: calls.append(args) or inverse(self, *args),
    )
    return calls


def test_kept_draw_is_scored_for_free(monkeypatch):
    flow = _flow().with_draw_kept()
    calls = _count_inverses(flow, monkeypatch)
    x, log_prob = flow.rsample_with_log_prob((4,))
    assert flow.log_prob(x) is log_prob
    assert not calls
    contracts.close(flow.log_prob(x.clone()), log_prob, "log-density of an equal value", inputs=x)
    older, _ = x, flow.rsample((4,))
    contracts.close(flow.log_prob(older), log_prob, "log-density of an older draw", inputs=x)
    assert len(calls) == 2


def test_plain_flow_keeps_no_draw():
    """FAULTS 36: a flow that lives on is scored afresh after its parameters have moved."""
    flow = _flow()
    x, before = flow.rsample_with_log_prob((4,))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.data.add_(0.1)
    assert not torch.equal(flow.log_prob(x), before)
    assert flow.with_draw_kept() is not flow.with_draw_kept()


@pytest.mark.parametrize("derive", [copy.copy, copy.deepcopy, lambda flow: flow.expand(())])
def test_kept_draw_stays_with_its_object(derive):
    """FAULTS 38."""
    flow = _flow().with_draw_kept()
    x, log_prob = flow.rsample_with_log_prob((4,))
    assert derive(flow).log_prob(x) is not log_prob


def test_draw_made_without_a_graph_is_scored_with_one():
    """FAULTS 36: ``sample`` then ``log_prob`` must give the parameters their gradient."""
    flow = _flow().with_draw_kept()
    x = flow.sample((4,))
    flow.log_prob(x).sum().backward()
    assert all(parameter.grad is not None for parameter in flow.parameters())


def test_path_log_prob_is_the_log_density_of_the_value_alone():
    """FAULTS 43: parameters come back as they were, even when the evaluation fails."""
    flow, x = _flow(c=2), contracts.leaf(zoo.points(4, 3))
    context = contracts.leaf(zoo.points(4, 2))
    flow = flow.condition(context)
    before = dict(flow.named_parameters())
    path, plain = flow.path_log_prob(x), flow.log_prob(x)
    assert torch.equal(path, plain)
    leaves = [x, context, *flow.parameters()]
    got = torch.autograd.grad(path.sum(), leaves, allow_unused=True)
    assert torch.equal(got[0], torch.autograd.grad(plain.sum(), x)[0])
    assert all(gradient is None for gradient in got[1:])
    with pytest.raises(ValueError, match="expected"):
        flow.path_log_prob(zoo.points(4, 2))
    after = dict(flow.named_parameters())
    assert all(after[key] is before[key] and after[key].requires_grad for key in before)


@pytest.mark.parametrize("name", zoo.learnable(zoo.KINDS))
def test_path_gradient_is_the_chain_rule(name):
    """(d log q / d x) (d x / d theta), each by itself."""
    flow = _flow(name)
    x = flow.rsample((6,))
    still = contracts.leaf(x)
    pull = torch.autograd.grad(flow.log_prob(still).sum(), still)[0]
    parameters = list(flow.parameters())
    want = torch.autograd.grad(x, parameters, pull, retain_graph=True)
    got = torch.autograd.grad(flow.path_log_prob(x).sum(), parameters)
    for a, b in zip(got, want, strict=True):
        contracts.close(a, b, "path gradient")


def test_path_gradient_vanishes_at_the_target():
    """Sticking the landing: exactly zero for every draw, where q equals p."""
    flow = _flow()
    target = copy.deepcopy(flow).requires_grad_(False)
    x = flow.rsample((20,))
    loss = (flow.path_log_prob(x) - target.log_prob(x)).sum()
    gradients = torch.autograd.grad(loss, list(flow.parameters()))
    assert all(not gradient.any() for gradient in gradients)


def test_path_gradient_is_unbiased():
    """Its mean over draws is that of the total gradient, within the Monte-Carlo error."""
    flow, target = _flow("affine_coupling", 2), StandardNormal(2)
    parameters, gaps = list(flow.parameters()), []
    for _ in range(200):
        x, log_prob = flow.rsample_with_log_prob((50,))
        total = (log_prob - target.log_prob(x)).mean()
        path = (flow.path_log_prob(x) - target.log_prob(x)).mean()
        pairs = (
            torch.autograd.grad(loss, parameters, retain_graph=True) for loss in (total, path)
        )
        gaps.append(torch.cat([(a - b).flatten() for a, b in zip(*pairs, strict=True)]))
    gaps = torch.stack(gaps)
    z = gaps.mean(0) / (gaps.std(0) / len(gaps) ** 0.5)
    assert gaps.abs().max() > 1e-3
    assert z.abs().max() < 4.5
    assert z.square().mean() < 2


def test_score_parts_choose_the_gradient():
    flow = _flow()
    kept, total = flow.with_draw_kept(), flow.with_draw_kept(path_gradient=False)
    for own, same in ((kept, False), (total, True)):
        x, log_prob = own.rsample_with_log_prob((4,))
        parts = own.score_parts(x)
        assert parts.log_prob is log_prob
        assert (parts.entropy_term is log_prob) == same
        contracts.close(parts.entropy_term, log_prob, "entropy term", inputs=x)
        foreign = own.score_parts(x.detach())
        assert foreign.entropy_term is foreign.log_prob
