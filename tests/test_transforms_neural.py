"""Neural autoregressive flows: the mixture of sigmoids, far beyond where sigmoids round to one."""

import contracts
import pytest
import torch
import zoo
from torch.distributions import Categorical, MixtureSameFamily, Normal

from pyro_flows.distributions import Flow
from pyro_flows.transforms import DeepSigmoid, Elementwise, Inverse

DTYPES = [torch.float32, torch.float64]
SCALES = [0.4, 1.0, 3.0]


def _case(scale, *, num_units=8, count=500, dtype=torch.float64, spread=3.0):
    """Return a map, points of one row, and parameters for each."""
    univariate = DeepSigmoid(num_units)
    params = zoo.points(univariate.num_params, count, dtype=dtype, scale=scale, seed=2)
    return univariate, zoo.points(count, dtype=dtype, scale=spread), params


@pytest.mark.parametrize("num_units", [1, 2, 5, 8])
@pytest.mark.parametrize("scale", SCALES)
def test_map_is_that_of_the_paper_and_the_remainder(scale, num_units):
    """By the formulae as they stand, where they do not overflow (float64)."""
    univariate, x, params = _case(scale, num_units=num_units, spread=1.0)
    a, b, w, rest = params.split([num_units] * 3 + [1])
    a, rest = torch.exp(3 * torch.tanh(a / 3)), torch.exp(3 * torch.tanh(rest[0] / 3))
    w = torch.softmax(10 * torch.tanh(w / 10), 0)
    shifts = torch.linspace(-3, 3, num_units)[:, None] if num_units > 1 else torch.zeros(1, 1)
    h = torch.logit((w * torch.sigmoid(a * x + b + shifts)).sum(0))
    h_0 = torch.logit(torch.sigmoid(x + shifts).mean(0))
    want = 0.99 * (h + rest * (x - h_0)) + 0.01 * x
    got, _ = univariate.forward_and_ladj(x, params)
    keep = h.abs() < 15
    assert keep.double().mean() > 0.8
    assert torch.allclose(got[keep], want[keep], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_units", [1, 2, 8])
def test_starts_at_the_identity_to_rounding(num_units, dtype):
    """FAULTS 34: at any magnitude; a slope is one as well."""
    univariate = DeepSigmoid(num_units)
    x = torch.cat([zoo.points(100, dtype=dtype), torch.tensor([1e5, -1e30, 1e30], dtype=dtype)])
    y, ladj = univariate.forward_and_ladj(x, x.new_zeros(univariate.num_params, len(x)))
    eps = torch.finfo(dtype).eps
    assert torch.allclose(y, x, rtol=16 * eps, atol=16 * eps)
    assert ladj.abs().max() < 16 * eps


def test_units_differ_at_the_start():
    """Equal gradients would keep the units equal for ever, under any optimiser."""
    univariate = DeepSigmoid(4)
    params = torch.zeros(univariate.num_params, 1, requires_grad=True)
    y, ladj = univariate.forward_and_ladj(torch.tensor([0.7]), params)
    for kind in torch.autograd.grad(y.sum() + 0.3 * ladj.sum(), params)[0][:-1, 0].split(4):
        assert (kind.sort().values.diff() > 1e-3).all()


@pytest.mark.parametrize("scale", SCALES)
def test_log_slope_is_autodiffs(scale):
    """FAULTS 33: at points of any magnitude."""
    univariate, x, params = _case(scale)
    x = torch.cat([x[:300], x[300:400] * 1e3, x[400:].sign() * 1e30]).requires_grad_()
    y, ladj = univariate.forward_and_ladj(x, params)
    slope = torch.autograd.grad(y.sum(), x)[0]
    contracts.close(ladj.detach(), slope.log(), "log-slope", inputs=x.detach(), slack=10)


@pytest.mark.parametrize("scale", SCALES)
def test_slope_has_a_floor(scale):
    """FAULTS 28: a hundredth, even between two units that are far apart."""
    univariate, _, params = _case(scale)
    params[8:16] = 100 * params[8:16].sign()
    x = torch.linspace(-300, 300, 500)[:, None].double()
    _, ladj = univariate.forward_and_ladj(x.expand(-1, 500), params)
    assert ladj.exp().min() >= 0.01 * (1 - 1e-9)
    assert ladj.exp().min() < 0.02 or scale == 3.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", [0.0, 1.0, 1e2, 1e6, 1e30])
def test_every_target_has_its_root(size, scale, dtype):
    """FAULTS 15, 28: no box around the origin beyond which nothing is reached."""
    univariate, y, params = _case(scale, dtype=dtype)
    y = y.sign() * size
    x = univariate.inverse(y, params)
    value, ladj = univariate.forward_and_ladj(x, params)
    error = (value - y).abs() / (1 + y.abs() + x.abs() * ladj.exp())
    assert error.max() <= 64 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.0, *SCALES])
def test_bracket_holds_the_root(scale, dtype):
    """FAULTS 28: to rounding."""
    univariate, x, params = _case(scale, dtype=dtype)
    for size in (1.0, 1e4, 1e30):
        y, _ = univariate.forward_and_ladj(x * size, params)
        low, high = univariate._bracket(y, univariate._units(params))
        slack = 1e3 * torch.finfo(dtype).eps * (1 + (x * size).abs())
        assert (low - slack <= x * size).all()
        assert (x * size <= high + slack).all()


@pytest.mark.parametrize("raw", [1e8, -1e8, 1e30, -1e30])
def test_any_raw_value_leaves_the_map_finite(raw):
    """FAULTS 22: in one unit, in all of them, and of mixed signs."""
    univariate, x, params = _case(1.0, dtype=torch.float32, count=50)
    x = x.requires_grad_()
    for rows in (slice(0, 1), slice(8, 9), slice(16, 17), slice(0, 25), slice(0, 25, 2)):
        wild = params.clone()
        wild[rows] = raw
        wild.requires_grad_()
        y, ladj = univariate.forward_and_ladj(x, wild)
        for result in (y, ladj, *torch.autograd.grad(y.sum() + ladj.sum(), [x, wild])):
            contracts.finite(result, f"result for the rows {rows}")
        contracts.finite(univariate.inverse(y.detach(), wild.detach()), f"inverse at {rows}")


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_transform_at_large_weights(scale):
    """FAULTS 33: both directions and triangularity, where rows are well conditioned."""
    transform = zoo.build("neural_autoregressive", 4, scale=scale)
    x = zoo.points(50, 4)
    matrix = contracts.jacobian(transform.forward_and_ladj, x, None)
    x = x[torch.linalg.cond(matrix) < 1e6]
    assert len(x) > 25
    contracts.round_trip(transform, x, None)
    contracts.ladj_is_slogdet(transform, x, None)
    contracts.autoregressive(transform, x, None)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("name", ["neural_autoregressive", "polynomial_autoregressive"])
def test_density_stays_normalised_through_training(name, d, backwards):
    """FAULTS 32: before, and after twenty steps towards two clusters, either direction."""
    transform = zoo.ZOO[name](d, 0).double()
    flow = Flow(Inverse(transform) if backwards else transform)
    tolerance, nodes = (1e-4, 4001) if d == 1 else (2e-3, 301)
    contracts.density_integrates_to_one(flow, nodes=nodes, tolerance=tolerance)
    centres = torch.tensor([-1.5, 1.5])[torch.randint(2, (500, 1))]
    losses = _losses(flow, (centres + 0.4 * torch.randn(500, d)).double(), steps=20)
    assert losses[-1] < losses[0] - 0.05
    contracts.density_integrates_to_one(flow, nodes=nodes, tolerance=tolerance)


def test_three_modes_are_learnt():
    """Where units that start alike end at a loss that is higher by 0.28."""
    modes = Normal(torch.tensor([-2.0, 0.0, 1.5]), torch.tensor([0.3, 0.2, 0.4]))
    target = MixtureSameFamily(Categorical(torch.ones(3)), modes)
    data = target.sample((2000, 1))
    losses = _losses(Flow(Inverse(Elementwise(DeepSigmoid(), 1))), data, steps=400)
    assert losses[-1] < -target.log_prob(data).mean() + 0.03


def _losses(flow, data, *, steps):
    optimiser = torch.optim.Adam(flow.parameters(), lr=3e-2)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = -flow.log_prob(data).mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses
