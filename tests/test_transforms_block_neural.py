"""The block neural autoregressive transform: what the contracts of the zoo do not reach."""

import math

import contracts
import pytest
import torch
import zoo
from torch.utils.flop_counter import FlopCounterMode

from pyro_flows.distributions import Flow
from pyro_flows.errors import DomainError
from pyro_flows.transforms import BlockNeuralAutoregressive, Compose, Inverse, Permute

FACTORS = [(8, 8), (1,), (5,), (2, 1, 4)]


def _random(d, *, scale=1.0, dtype=torch.float64, seed=0, **options):
    transform = BlockNeuralAutoregressive(d, **options).to(dtype)
    return zoo.randomise(transform, scale=scale, seed=seed)


def _train(flow, data, *, steps, lr=1e-2):
    optimiser = torch.optim.Adam(flow.parameters(), lr=lr)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = -flow.log_prob(data()).mean()
        loss.backward()
        optimiser.step()
    return loss.item()


@pytest.mark.parametrize("c", [0, 2])
@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("factors", FACTORS)
def test_jacobian_at_large_weights(factors, d, c):
    """FAULTS 33: triangular, with autodiff's log-determinant, at a weight scale of two."""
    transform = _random(d, scale=2.0, hidden_factors=factors, context_dim=c)
    x, context = zoo.points(20, d), zoo.context_for(transform, 20)
    matrix = contracts.jacobian(transform.forward_and_ladj, x, context)
    assert torch.equal(matrix, matrix.tril())
    want = matrix.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    contracts.close(transform.forward_and_ladj(x, context)[1], want, "ladj", inputs=x)


def test_order_is_the_order_of_dependence():
    order = [2, 0, 3, 1]
    transform = _random(4, order=order, hidden_factors=(3, 3), log_scale_bound=3.0)
    x = zoo.points(6, 4)
    for _, direction in contracts.directions(transform):
        matrix = contracts.jacobian(direction, x, None)[:, order][:, :, order]
        assert torch.equal(matrix, matrix.tril())
        assert not torch.equal(matrix, matrix.triu())
    contracts.round_trip(transform, x, None)
    contracts.gradients_match_differences(transform, x, None)


@pytest.mark.parametrize("bound", [0.1, 6.0, 30.0])
def test_log_slopes_are_bounded_for_any_parameters(bound):
    """FAULTS 22, 23: the bound is that of the whole transform, and is nearly reached."""
    largest = 0.0
    for seed in range(20):
        transform = _random(3, scale=30.0, seed=seed, log_scale_bound=bound)
        x = torch.cat([zoo.points(200, 3), zoo.points(200, 3, scale=1e6)])
        log_slope = transform.conditioner(x)[1].detach()
        assert (log_slope.abs() <= bound * (1 + 1e-9)).all()
        largest = max(largest, float(log_slope.abs().max()))
    assert largest > 0.8 * bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [1e6, -1e6, 1e30, -1e30])
@pytest.mark.parametrize("scale", [0.4, 2.0])
def test_every_target_has_its_point(scale, size, dtype):
    """FAULTS 13, 15, 28: the map is onto; no inverse saturates, and none is looked up."""
    transform = _random(3, scale=scale, dtype=dtype)
    y = torch.cat([torch.full((1, 3), size), size * torch.eye(3)]).to(dtype)
    x, ladj = transform.inverse_and_ladj(y)
    contracts.finite(x, "inverse", inputs=y)
    contracts.finite(ladj, "inverse ladj", inputs=y)
    error = (transform(x) - y).abs().amax(-1) / y.abs().amax(-1)
    assert error.max() < 1e3 * torch.finfo(dtype).eps


@pytest.mark.parametrize("d", [1, 4])
def test_round_trip_in_float32(d):
    """Both ways; where a map is flat, a point is only known to the rounding of its target."""
    transform = _random(d, scale=0.4, dtype=torch.float32, log_scale_bound=6.0)
    x = zoo.points(2000, d, dtype=torch.float32)
    back = transform.inv(x)
    contracts.close(transform(back), x, "forward of inverse", inputs=x)
    y, _ = transform.forward_and_ladj(x)
    log_slope = transform.double().conditioner(x.double())[1]
    error = (transform.float().inv(y) - x).abs()
    assert (error <= 1e-5 + 1e-5 * torch.exp(-log_slope.amin(-1, keepdim=True))).all()


@pytest.mark.parametrize("c", [0, 2])
@pytest.mark.parametrize("d", [1, 3])
def test_gradients_of_a_bent_map_match_differences(d, c):
    """FAULTS 33: at the default sizes, in both directions."""
    transform = _random(d, scale=0.4, context_dim=c, hidden_dims=(8,), log_scale_bound=6.0)
    x = zoo.points(3, d, scale=0.7)
    contracts.gradients_match_differences(transform, x, zoo.context_for(transform, 3))


def test_second_derivatives_of_the_inverse_are_refused():
    """FAULTS 33."""
    transform, y = _random(3, log_scale_bound=3.0), zoo.points(3)
    with pytest.raises(DomainError, match="no more than the first derivative of its inverse"):
        torch.func.jacrev(torch.func.jacrev(transform._inverse))(y)
    torch.func.hessian(lambda x: transform(x).sum())(y)


@pytest.mark.parametrize("c", [0, 2])
@pytest.mark.parametrize("d", [1, 2])
def test_density_integrates_to_one_before_and_after_training(d, c):
    """FAULTS 32: as it starts, and after twenty steps; trained on data, and on its draws."""
    torch.manual_seed(0)
    transform = BlockNeuralAutoregressive(d, context_dim=c).double()
    flow = Flow(transform)
    context = torch.ones(c, dtype=torch.float64)
    conditioned = flow.condition(context) if c else flow
    nodes, tolerance = (4001, 1e-4) if d == 1 else (301, 2e-3)
    contracts.density_integrates_to_one(conditioned, nodes=nodes, tolerance=tolerance)
    before = -conditioned.log_prob(_two_humps(2000, d)).mean()
    optimiser = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for _ in range(20):
        optimiser.zero_grad()
        (-conditioned.log_prob(_two_humps(100, d)).mean()).backward()
        optimiser.step()
    contracts.density_integrates_to_one(conditioned, nodes=nodes, tolerance=tolerance)
    assert -conditioned.log_prob(_two_humps(2000, d)).mean() < before - 0.05


def _two_humps(count, d, *, dtype=torch.float64):
    side = torch.randint(2, (count, 1)).to(dtype) * 4 - 2
    return side + 0.5 * torch.randn(count, d, dtype=dtype)


def test_learns_two_humps_from_the_identity():
    """The bends leave the identity within some tens of steps, and saturate within hundreds."""
    transform = BlockNeuralAutoregressive(1)
    flow = Flow(Inverse(transform))
    loss = _train(flow, lambda: _two_humps(500, 1, dtype=torch.float32), steps=300)
    entropy = math.log(2) + 0.5 * math.log(2 * math.pi * math.e * 0.25)
    assert loss < entropy + 0.12


@pytest.mark.parametrize("scale", [None, 0.4])
def test_a_hundred_of_them_stay_finite(scale):
    """FAULTS 15, 23: the bound, shared by all, keeps any depth finite up to 1e30."""
    parts = []
    for seed in range(100):
        transform = BlockNeuralAutoregressive(2, hidden_factors=(4,), log_scale_bound=0.4)
        parts.append(transform if scale is None else zoo.randomise(transform, seed=seed))
    chain = Compose(parts)
    for size in (1.0, 1e6, 1e30):
        x = zoo.points(5, 2, dtype=torch.float32).clamp(-3, 3) * size / 3
        # At the start, the gradient for a weight between huge coordinates is their product.
        if scale or size < 1e15:
            contracts.finite_at(chain, x, None)
        y, ladj = chain.forward_and_ladj(x)
        contracts.finite(y, "value", inputs=x)
        assert ladj.abs().max() <= 2 * 40
        back = chain.inv(y)
        assert (back - x).abs().max() < 1e-3 * max(size, 1)


def test_starts_at_the_identity_and_leaves_it():
    """FAULTS 34: what has no gradient at the identity itself has one after the first step."""
    transform = BlockNeuralAutoregressive(3, context_dim=2)
    x, context = torch.randn(50, 3), torch.randn(50, 2)
    y, ladj = transform.forward_and_ladj(x, context)
    contracts.close(y, x, "identity")
    contracts.close(ladj, torch.zeros(50), "ladj at the identity")
    optimiser = torch.optim.Adam(transform.parameters(), lr=1e-3)
    for _ in range(2):
        optimiser.zero_grad()
        y, ladj = transform.forward_and_ladj(x, context)
        (y.square().sum(-1) - ladj).mean().backward()
        optimiser.step()
    for key, parameter in transform.named_parameters():
        # The context's network has its own zero start, and needs a step more.
        assert parameter.grad.any() or key.startswith("conditioner.conditioner"), key


def test_every_coordinate_sees_the_context():
    transform = _random(3, context_dim=2)
    context = zoo.points(2, scale=1.0)
    for jacobian in torch.func.jacrev(lambda c: transform.conditioner(zoo.points(3), c))(context):
        assert (jacobian != 0).all()


def test_inverse_costs_about_one_pass():
    """What others add to a block is computed once, whatever the root finder does."""
    transform = _random(64, scale=0.4, dtype=torch.float32, log_scale_bound=6.0)
    x = torch.randn(100, 64)
    counts = []
    for run in (transform.forward_and_ladj, transform.inverse_and_ladj):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            run(x)
        counts.append(counter.get_total_flops())
    assert counts[1] <= 1.5 * counts[0]


@pytest.mark.parametrize("name", ["bias", "bend", "sharpness"])
def test_nan_in_the_parameters_is_not_hidden(name):
    """FAULTS 16, 28: and the root finder ends."""
    transform = _random(2)
    with torch.no_grad():
        getattr(transform.conditioner, name).fill_(torch.nan)
    for _, direction in contracts.directions(transform):
        value, ladj = direction(torch.zeros(2, dtype=torch.float64))
        assert value.isnan().any()
        assert ladj.isnan()


@pytest.mark.parametrize("name", ["bias", "bend", "sharpness"])
@pytest.mark.parametrize("raw", [1e8, -1e8])
def test_survives_any_parameters(name, raw):
    """FAULTS 22: whatever an optimiser has done to them."""
    transform = _random(2, dtype=torch.float32)
    with torch.no_grad():
        getattr(transform.conditioner, name).fill_(raw)
    contracts.finite_at(transform, zoo.points(20, 2, dtype=torch.float32), None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hidden_factors": ()}, r"at least one entry in hidden_factors; got \(\)"),
        ({"hidden_factors": (8, 0)}, "each of hidden_factors to be an integer >= 1; got 0"),
        ({"hidden_factors": 8}, r"hidden_factors to be a sequence .* got 8 \(int\)"),
        ({"order": [0, 0, 1]}, r"a permutation: .* got \[0, 0, 1\]"),
        ({"order": [1, 0]}, r"each of 0 ... 2 once; got \[1, 0\]"),
        ({"log_scale_bound": 0}, "log_scale_bound .* > 0; got 0"),
        ({"log_scale_bound": math.inf}, "log_scale_bound .* > 0; got inf"),
    ],
)
def test_bad_arguments(options, words):
    """FAULTS 11."""
    with pytest.raises(DomainError, match=words):
        BlockNeuralAutoregressive(3, **options)


def test_chain_with_reversals_is_a_flow():
    """Alternating orders, as a recipe would have them, sample and score alike."""
    parts = [_random(3, scale=0.3, seed=s, log_scale_bound=3.0) for s in range(2)]
    flow = Flow([parts[0], Permute.reversal(3).double(), parts[1]])
    draws = flow.sample((200,))
    assert draws.dtype == torch.float64
    contracts.finite(flow.log_prob(draws), "log-density of draws")
