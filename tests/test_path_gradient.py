"""The score at a flow's own draw, pushed along from transform to transform, is autodiff's."""

import copy
import math

import bases
import contracts
import pytest
import torch
import zoo
from pyro.distributions import Independent, Normal
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_flows import flows
from pyro_flows.distributions import Box, DiagonalNormal, Flow, StandardNormal
from pyro_flows.errors import DomainError
from pyro_flows.nn import DenseNet, adjoint, block_inverse
from pyro_flows.transforms import (
    Affine,
    AffineCoupling,
    Autoregressive,
    Coupling,
    FlowTransform,
    Inverse,
    SplineCoupling,
    Univariate,
)


class _OldStyle(torch.autograd.Function):
    """A function that torch.func refuses."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g


class _Own(FlowTransform):
    """A user's own transform: the two methods, no more; its log-determinant is a constant."""

    def __init__(self, input_dim):
        super().__init__(input_dim)
        self.shift = nn.Parameter(torch.zeros(input_dim))

    def _forward_and_ladj(self, x, context):
        return _OldStyle.apply(x) + self.shift, self._ladj(x)

    def _inverse_and_ladj(self, y, context):
        return _OldStyle.apply(y - self.shift) / 4, -self._ladj(y)

    def _ladj(self, x):
        return x.new_full(x.shape[:-1], self.input_dim * 2.0).log()


class _Scaled(Univariate):
    """A map whose network sees its coordinates in other units."""

    num_params = 1

    def features(self, x):
        return torch.sinh(x)

    def forward_and_ladj(self, x, params):
        scale = torch.tanh(params.squeeze(-2))
        return x * scale.exp(), scale


def _flow(transform, dtype=torch.float64):
    return Flow(transform, base=zoo.randomise(DiagonalNormal(transform.input_dim).to(dtype)))


def _given(flow, *batch):
    """Fix a context, where the flow takes one."""
    context = zoo.context_for(flow.transform, *batch)
    return flow if context is None else flow.condition(contracts.leaf(context))


def _leaves(flow):
    context = () if flow._context is None else (flow._context,)
    return [*context, *(p for p in flow.parameters() if p.requires_grad)]


def _expected(flow, x):
    """Return the score at ``x``, and its chain rule for all that moves ``x``, by autodiff."""
    still = contracts.leaf(x)
    score = torch.autograd.grad(flow.log_prob(still).sum(), still)[0]
    return score, torch.autograd.grad(
        x, _leaves(flow), score, retain_graph=True, allow_unused=True
    )


def check(flow, *shape, slack=1):
    """The path gradient at a kept draw is the chain rule, and its value the log-density."""
    torch.manual_seed(0)
    kept = flow.with_draw_kept()
    x, log_prob = kept.rsample_with_log_prob(shape or (6,))
    path = kept.path_log_prob(x)
    assert torch.equal(path, log_prob)
    score, want = _expected(flow, x)
    contracts.close(kept._draw.score(), score, "score", inputs=x, slack=slack)
    got = torch.autograd.grad(path.sum(), _leaves(flow), retain_graph=True, allow_unused=True)
    for a, b in zip(got, want, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            contracts.close(a, b, "path gradient", slack=10 * slack)


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize(("name", "c"), zoo.rows())
def test_score_of_a_draw_is_autodiffs(name, c, d):
    check(_given(_flow(zoo.build(name, d, c)), 1))


@pytest.mark.parametrize(("name", "c"), zoo.rows())
def test_score_along_the_way_back_is_autodiffs(name, c):
    check(_given(_flow(Inverse(zoo.build(name, 3, c))), 1))


@pytest.mark.parametrize("name", zoo.KINDS)
def test_score_in_single_precision(name):
    check(_flow(zoo.build(name, 3, dtype=torch.float32), torch.float32), slack=10)


@pytest.mark.parametrize("name", ["affine_coupling", "autoregressive_silu", "block_neural"])
def test_batch_axes_of_contexts_and_samples(name):
    check(_given(_flow(zoo.build(name, 3, 2)), 4, 1).expand((4, 2)), 5)
    check(_flow(zoo.build(name, 3)).expand((4, 2)), 5)
    check(_flow(zoo.build(name, 3)), 0)


@pytest.mark.parametrize("name", bases.UNBOUNDED)
def test_score_of_any_base(name):
    check(Flow(zoo.build("affine_coupling", 3), base=bases.build(name, 3)))


def test_score_of_a_base_that_is_no_module():
    base = Independent(Normal(torch.ones(3).double(), 2 * torch.ones(3).double()), 1)
    check(Flow(zoo.build("affine_coupling", 3), base=base))


def test_score_of_angles():
    transform = zoo.randomise(SplineCoupling(3, circular=True, hidden_dims=(8,)).double())
    check(Flow(transform, base=Box(3, low=-torch.pi, high=torch.pi).double()))


def test_transforms_of_ones_own():
    """Two methods, an old autograd function inside, a conditioner, other features."""
    net = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 4))
    for transform in (
        _Own(3),
        Inverse(_Own(3)),
        AffineCoupling(3, conditioner=net),
        Coupling(_Scaled(), 3, hidden_dims=(8,)),
    ):
        check(_flow(zoo.randomise(transform.double())))


def test_a_map_written_anew_has_its_own_derivatives():
    """A subclass of ours that overrides a map does not inherit the score of the old one."""

    class Cubed(AffineCoupling):
        def _forward_and_ladj(self, x, context):
            y, ladj = AffineCoupling._forward_and_push(self, x, context)[:2]
            return y**3, ladj + (3 * y.square()).log().sum(-1)

        def _inverse_and_ladj(self, y, context):
            root = y.sign() * y.abs() ** (1 / 3)
            x, ladj = AffineCoupling._inverse_and_push(self, root, context)[:2]
            return x, ladj - (3 * root.square()).log().sum(-1)

    class Twice(Affine):
        def forward_and_ladj(self, x, params):
            y, ladj = Affine().forward_and_ladj(x, params)
            return 2 * y, ladj + math.log(2)

        def inverse_and_ladj(self, y, params):
            x, ladj = Affine().inverse_and_ladj(y / 2, params)
            return x, ladj - math.log(2)

    for transform in (
        Cubed(3, hidden_dims=(8,)),
        Coupling(Twice(), 3, hidden_dims=(8,)),
        Autoregressive(Twice(), 3, hidden_dims=(8,)),
    ):
        check(_flow(zoo.randomise(transform.double())))


BLOCKWISE = [
    "autoregressive_deep",
    "autoregressive_linear",
    "spline_autoregressive",
    "block_neural",
]


@pytest.mark.parametrize("c", [0, 2])
@pytest.mark.parametrize("name", BLOCKWISE)
def test_blocks_solve_what_the_whole_jacobian_does(name, c, monkeypatch):
    """In the score, and in the inverse's own gradient."""
    for module in (adjoint, block_inverse):
        monkeypatch.setattr(module, "BLOCK", 2)
    check(_given(_flow(zoo.build(name, 5, c)), 1))
    check(_given(_flow(Inverse(zoo.build(name, 5, c))), 1))


@pytest.mark.parametrize("recipe", [flows.iaf, flows.bnaf])
@pytest.mark.parametrize("d", [adjoint.BLOCK, adjoint.BLOCK + 1])
def test_score_where_one_block_becomes_two(recipe, d):
    check(_flow(zoo.randomise(recipe(d, num_transforms=1).double(), scale=0.2).transform))


@pytest.mark.parametrize("name", zoo.RECIPES)
def test_vanishes_at_the_target(name):
    """Sticking the landing: to rounding, or a solver's steps, for every draw, where q equals p."""
    flow = zoo.randomise(zoo.RECIPES[name](3, 0).double(), scale=0.15)
    target = copy.deepcopy(flow).requires_grad_(False)
    kept = flow.with_draw_kept()
    x = kept.rsample((20,))
    gap = kept.path_log_prob(x) - target.log_prob(x)
    total = kept.log_prob(x) - target.log_prob(x)
    parameters = list(flow.parameters())
    path = torch.autograd.grad(gap.sum(), parameters, retain_graph=True)
    assert max(float(g.abs().max()) for g in path) < (1e-6 if name == "cnf" else 1e-9)
    assert max(float(g.abs().max()) for g in torch.autograd.grad(total.sum(), parameters)) > 1e-2


@pytest.mark.parametrize("recipe", [flows.realnvp, flows.nice])
def test_takes_no_second_pass_of_the_networks(recipe, monkeypatch):
    calls, run = [], DenseNet.forward_and_pull
    monkeypatch.setattr(
        DenseNet, "forward_and_pull", lambda net, *args: calls.append(net) or run(net, *args)
    )
    flow = recipe(4, num_transforms=3).with_draw_kept()
    x = flow.rsample((5,))
    flow.path_log_prob(x).sum().backward()
    assert len(calls) == 3


def test_is_kept_only_where_it_can_be_asked_for():
    """Without a graph, or with the total gradient, a draw keeps no network's stages alive."""
    flow = Flow(zoo.build("affine_coupling", 3)).with_draw_kept()
    with torch.no_grad():
        x = flow.rsample((4,))
    assert flow._draw.score is None
    contracts.close(flow.path_log_prob(x), flow.log_prob(x), "log-density", inputs=x)
    total = flow.with_draw_kept(path_gradient=False)
    x = total.rsample((4,))
    assert total._draw.score is None
    assert total.score_parts(x).entropy_term is total.log_prob(x)


def test_after_the_graph_was_freed():
    flow = Flow(zoo.build("compose_everything", 3)).with_draw_kept()
    x, log_prob = flow.rsample_with_log_prob((4,))
    log_prob.sum().backward()
    still = contracts.leaf(x)
    want = torch.autograd.grad(flow.log_prob(still).sum(), still)[0]
    contracts.close(flow._draw.score(), want, "score", inputs=x)


def test_second_derivative_is_refused():
    """FAULTS 33: it would be wrong, since the score is computed once."""
    flow = Flow(zoo.build("affine_coupling", 3)).with_draw_kept()
    x = flow.rsample((4,))
    parameters = list(flow.parameters())
    first = torch.autograd.grad(flow.path_log_prob(x).sum(), parameters, create_graph=True)
    with pytest.raises(DomainError, match="no more than the first derivative"):
        torch.autograd.grad(sum(g.sum() for g in first), parameters)


def test_an_infinite_draw_keeps_its_log_density():
    """FAULTS 15: nothing turns an infinity into a NaN."""
    flow = Flow(zoo.build("elementwise_affine", 2, dtype=torch.float32)).with_draw_kept()
    with torch.no_grad():
        flow.transform.log_scale.fill_(200.0)
    x, log_prob = flow.rsample_with_log_prob((4,))
    assert not x.isfinite().any()
    assert torch.equal(flow.path_log_prob(x), log_prob)


# Engines.

ENGINES = ["affine_coupling", "autoregressive_silu", "block_neural", "planar", "qr_linear", "own"]


def _engine_flow(name):
    return Flow(_Smooth(3).double() if name == "own" else zoo.build(name, 3))


class _Smooth(FlowTransform):
    """A user's own transform, of operations that every engine knows."""

    def __init__(self, input_dim):
        super().__init__(input_dim)
        self.slope = nn.Parameter(torch.tensor(0.5))

    def _forward_and_ladj(self, x, context):
        return torch.sinh(x) * self.slope.exp(), (x.cosh().log() + self.slope).sum(-1)

    def _inverse_and_ladj(self, y, context):
        x = torch.asinh(y * torch.exp(-self.slope))
        return x, -(x.cosh().log() + self.slope).sum(-1)


class _Fixed(StandardNormal):
    """A base whose draw is given."""

    eps = None

    def _draw(self, shape):
        return self.eps.expand(shape)


def _path_of(flow, eps):
    """Return a path log-density and the gradient of its sum for the slope of the draw's image."""
    base = _Fixed(3).double()
    base.eps = eps
    kept = Flow(flow.transform, base=base).with_draw_kept()
    x = kept.rsample(eps.shape[:-1])
    return kept.path_log_prob(x), kept._draw.score()


@pytest.mark.parametrize("name", ENGINES)
def test_vmap_over_particles(name):
    """FAULTS 35."""
    flow, eps = _engine_flow(name), zoo.points(4, 3)
    got = torch.func.vmap(lambda eps: _path_of(flow, eps))(eps)
    for mapped, want in zip(got, _path_of(flow, eps), strict=True):
        contracts.close(mapped, want, "under vmap")


@pytest.mark.parametrize("name", ENGINES)
def test_vmap_over_parameters(name):
    """FAULTS 35: as ``torch.func.stack_module_state`` makes them; gradients by torch.func."""
    flow, eps = _engine_flow(name), zoo.points(4, 3)
    members = [zoo.randomise(copy.deepcopy(flow.transform), seed=seed) for seed in range(3)]
    parameters, buffers = torch.func.stack_module_state(members)

    class Path(nn.Module):
        def __init__(self):
            super().__init__()
            self.transform = copy.deepcopy(flow.transform)

        def forward(self):
            return _path_of(Flow(self.transform), eps)[0].sum()

    path = Path()

    def gradient(parameters, buffers):
        def value(parameters):
            state = {f"transform.{key}": v for key, v in (parameters | buffers).items()}
            return torch.func.functional_call(path, state, ())

        return torch.func.grad(value)(parameters)

    got = torch.func.vmap(gradient)({k: p.detach() for k, p in parameters.items()}, buffers)
    for k, member in enumerate(members):
        loss = _path_of(Flow(member), eps)[0].sum()
        wanted = torch.autograd.grad(loss, list(member.parameters()))
        for (key, _), want in zip(member.named_parameters(), wanted, strict=True):
            contracts.close(got[key][k], want, key)


@pytest.mark.parametrize("name", ENGINES)
def test_traced_step_is_eager(name):
    """FAULTS 35: make_fx, gradients inside."""
    flow, eps = _engine_flow(name), zoo.points(4, 3)
    parameters = list(flow.parameters())

    def step(eps):
        path, _ = _path_of(flow, eps)
        return [path, *torch.autograd.grad(path.sum(), parameters)]

    traced = make_fx(step)(eps)
    other = zoo.points(4, 3, seed=9)
    for got, want in zip(traced(other), step(other), strict=True):
        contracts.close(got, want, "traced path gradient")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ENGINES)
def test_compiled_is_eager(name):
    """FAULTS 35: torch.compile."""
    torch._dynamo.reset()
    flow, eps = _engine_flow(name), zoo.points(4, 3)
    parameters = list(flow.parameters())

    def gradient(run):
        path, _ = run(flow, eps)
        return [path, *torch.autograd.grad(path.sum(), parameters)]

    compiled = gradient(torch.compile(_path_of, backend="aot_eager"))
    for got, want in zip(compiled, gradient(_path_of), strict=True):
        contracts.close(got, want, "compiled path gradient")
