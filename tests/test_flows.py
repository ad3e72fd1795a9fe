"""The recipes."""

from itertools import pairwise

import contracts
import pytest
import torch
import zoo

from pyro_flows import flows
from pyro_flows.distributions import Flow
from pyro_flows.nn import DenseNet, MaskedNet
from pyro_flows.nn.block import BlockNet

RECIPES = pytest.mark.parametrize("name", zoo.RECIPES)
SIZES = [pytest.param(d, c, id=f"D{d}-C{c}") for d in (1, 2, 5) for c in (0, 2)]


def _case(name, d, c, *, dtype=torch.float64, scale=0.15, count=5):
    flow = zoo.randomise(zoo.RECIPES[name](d, c).to(dtype), scale=scale)
    return (
        flow.transform,
        zoo.points(count, d, dtype=dtype),
        zoo.context_for(flow.transform, count),
    )


def _given(flow):
    """Fix a context, where the flow takes one."""
    context = zoo.context_for(flow.transform, dtype=torch.float32)
    return flow if context is None else flow.condition(context)


@RECIPES
@pytest.mark.parametrize(("d", "c"), SIZES)
def test_round_trip_and_ladj(name, d, c):
    """FAULTS 4, 33."""
    case = _case(name, d, c)
    contracts.round_trip(*case)
    contracts.inverse_ladj_negates(*case)
    contracts.ladj_is_slogdet(*case)


@RECIPES
@pytest.mark.parametrize(("d", "c"), SIZES)
def test_starts_at_identity(name, d, c):
    """FAULTS 34."""
    flow = zoo.RECIPES[name](d, c)
    context = zoo.context_for(flow.transform, 50, dtype=torch.float32)
    x = zoo.points(50, d, dtype=torch.float32)
    contracts.starts_at_identity(flow.transform, x, context)


@RECIPES
@pytest.mark.parametrize(("d", "c"), SIZES)
def test_every_parameter_learns(name, d, c):
    contracts.every_parameter_learns(*_case(name, d, c, count=20))


@RECIPES
@pytest.mark.parametrize("d", [1, 3])
def test_huge_points_stay_finite_at_the_start(name, d):
    """FAULTS 15: in float32, from 1e2 to 1e30.

    Where a log-scale is not saturated, a weight's gradient is a point times a hidden unit, which
    grows with the point: from 1e19 on, it is itself beyond float32.
    """
    transform = zoo.RECIPES[name](d, 0).transform
    for exponent in range(2, 31, 4):
        x = zoo.points(20, d, dtype=torch.float32).sign() * 10.0**exponent
        contracts.finite_at(transform, x, None, parameters=exponent < 19)
        contracts.relative_round_trip(transform, x, None)


@RECIPES
@pytest.mark.parametrize("c", [0, 2])
@pytest.mark.parametrize("d", [1, 2])
def test_density_integrates_to_one_before_and_after_training(name, d, c):
    """FAULTS 32: quadrature in one and two dimensions."""
    flow = zoo.RECIPES[name](d, c)
    data = 0.5 * torch.randn(200, d).cumsum(-1) + 1
    nodes = 4001 if d == 1 else 201
    contracts.density_integrates_to_one(_given(flow), nodes=nodes, tolerance=2e-3)
    optimiser = torch.optim.Adam(flow.parameters(), lr=1e-3)
    for _ in range(20):
        optimiser.zero_grad()
        (-_given(flow).log_prob(data).mean()).backward()
        optimiser.step()
    contracts.density_integrates_to_one(_given(flow), nodes=nodes, tolerance=2e-3)


@pytest.mark.parametrize(("name", "d"), [*((name, 2) for name in zoo.RECIPES), ("planar", 1)])
def test_learns_a_density(name, d):
    """FAULTS 27: scored on fresh draws, against the start and a Gaussian; the same both ways."""
    torch.manual_seed(1)
    # Four neural transforms follow 400 points too closely; one field does what four would.
    options = {"naf": {"num_transforms": 2}, "cnf": {"num_steps": 6}}
    flow = getattr(flows, name)(d, **options.get(name, {"num_transforms": 4}))
    noise = torch.randn(2, 400, d)
    data, fresh = noise + 0.8 * noise.flip(-1).cos().cumsum(-1).square()
    optimiser = torch.optim.Adam(flow.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1, (100 - step) / 30))
    gaussian = torch.distributions.MultivariateNormal(data.mean(0), data.T.cov().view(d, d))
    # The outermost points show how a flow goes on beyond the data, not what it learnt of them.
    scores = gaussian.log_prob(fresh)
    fresh = fresh[scores > scores.quantile(0.02)]
    before = flow.log_prob(fresh).mean().item()
    for _ in range(100):
        optimiser.zero_grad()
        (-flow.log_prob(data).mean()).backward()
        optimiser.step()
        schedule.step()
    after = flow.log_prob(fresh).mean().item()
    assert after > before + 0.1
    # Additive couplings keep volumes, and four balls reach no ellipse: a Gaussian may beat both.
    if name not in ("nice", "radial"):
        assert after > gaussian.log_prob(fresh).mean().item() - 0.02
    x, log_prob = flow.rsample_with_log_prob((1000,))
    contracts.close(flow.log_prob(x), log_prob, "density of a draw", inputs=x, slack=10)


@RECIPES
@pytest.mark.parametrize("d", [1, 4])
def test_masks_and_permutations_do_not_depend_on_the_global_generator(name, d):
    """FAULTS 75: nor on the order in which flows are built."""
    torch.manual_seed(0)
    one = zoo.RECIPES[name](d, 0)
    torch.manual_seed(1)
    other = zoo.RECIPES[name](d, 0)
    for (key, a), (_, b) in zip(one.named_buffers(), other.named_buffers(), strict=True):
        assert torch.equal(a, b), key


@RECIPES
def test_options_are_honoured(name):
    def count(**options):
        return sum(p.numel() for p in getattr(flows, name)(4, **options).parameters())

    assert count(num_transforms=2) < count(num_transforms=4)
    assert count(num_transforms=1) > 0
    assert count(context_dim=3, hidden_dims=()) < count(context_dim=3, hidden_dims=(9,))
    assert count(context_dim=3, hidden_dims=(9,)) < count(context_dim=3)


@pytest.mark.parametrize("d", [2, 3, 4, 6])
def test_no_two_couplings_in_a_row_keep_the_same_coordinates(d):
    kept = [part.order[: part.num_kept].tolist() for part in flows.realnvp(d).transform.parts]
    assert all(one != other for one, other in pairwise(kept))


@pytest.mark.parametrize("d", [2, 3, 8])
@pytest.mark.parametrize("recipe", [flows.realnvp, flows.nice])
def test_couplings_move_every_coordinate(recipe, d):
    """Two in a row are enough: the second moves what the first keeps."""
    first, second, *_ = recipe(d).transform.parts
    kept = [set(part.order[: part.num_kept].tolist()) for part in (first, second)]
    assert kept[0] | kept[1] == set(range(d))
    assert not kept[0] & kept[1]


@RECIPES
def test_one_dimension_ignores_no_option(name):
    """FAULTS 4: what cannot act there is still checked, and what can, acts."""
    recipe = getattr(flows, name)
    assert recipe(1, num_transforms=3, context_dim=2, hidden_dims=(7,)).context_dim == 2
    widths = {
        parameter.shape[0]
        for key, parameter in recipe(1, context_dim=2, hidden_dims=(7,)).named_parameters()
        if "from_context" in key
    }
    assert widths == {7}


@RECIPES
def test_recipes_are_found_by_name(name):
    recipe = flows.find(name)
    assert recipe is getattr(flows, name) is flows.find(recipe)
    assert isinstance(recipe(2), Flow)


def test_registered_recipe_is_found_and_can_be_replaced(monkeypatch):
    monkeypatch.setattr(flows.registry, "_RECIPES", dict(flows.registry._RECIPES))
    flows.register("mine", flows.iaf)
    assert flows.find("mine") is flows.iaf
    flows.register("mine", flows.maf)
    assert flows.find("mine") is flows.maf


@pytest.mark.parametrize("recipe", [flows.iaf, flows.maf])
@pytest.mark.parametrize("num_transforms", [1, 2, 3, 4])
def test_autoregressive_recipes_start_at_the_identity_for_any_number(recipe, num_transforms):
    """FAULTS 34: reversals between the transforms do not add up to one."""
    flow = recipe(3, num_transforms=num_transforms)
    contracts.starts_at_identity(flow.transform, zoo.points(20, 3, dtype=torch.float32), None)


@pytest.mark.parametrize("recipe", [flows.realnvp, flows.iaf, flows.maf])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_hundred_transforms_at_their_limits_stay_finite(recipe, sign):
    """FAULTS 22, 23: the log-scales are bounded together, in float32."""
    flow = recipe(3, num_transforms=100, hidden_dims=(8,))
    with torch.no_grad():
        for module in flow.modules():
            if isinstance(module, (DenseNet, MaskedNet)):
                _, scales = module.layers[-1].bias.chunk(2)
                scales.fill_(sign * 1e8)
        eps = torch.randn(50, 3)
        x, ladj = flow.transform.forward_and_ladj(eps)
        back, back_ladj = flow.transform.inverse_and_ladj(x)
    assert x.isfinite().all()
    assert ladj.abs().max() > 50
    assert torch.allclose(ladj, -back_ladj)
    assert torch.allclose(back, eps, rtol=1e-3, atol=1e-3)


@RECIPES
@pytest.mark.parametrize("size", [0.3, 30.0, 1e4])
def test_a_hundred_transforms_of_any_shape_stay_finite(name, size):
    """FAULTS 23: in float32, whatever numbers the maps of the coordinates are given."""
    flow = zoo.randomise(getattr(flows, name)(3, num_transforms=100, hidden_dims=(8,)), scale=0.3)
    with torch.no_grad():
        for module in flow.modules():
            if isinstance(module, (DenseNet, MaskedNet)) and module.layers:
                module.layers[-1].weight.zero_()
                module.layers[-1].bias.mul_(size)
            elif isinstance(module, DenseNet):
                module.bias.mul_(size)
    eps = torch.randn(50, 3)
    x, ladj = flow.transform.forward_and_ladj(eps)
    contracts.finite(x, "draws", inputs=eps)
    contracts.finite(ladj, "ladj", inputs=eps)


@pytest.mark.parametrize("name", ["bnaf", "iaf", "naf", "nsf", "sospf"])
def test_path_gradient_of_its_own_draw_takes_no_search(name, monkeypatch):
    """A guide would pay for it in every step."""
    flow = Flow(_case(name, 3, 0)[0]).with_draw_kept()
    x, log_prob = flow.rsample_with_log_prob((5,))
    want = flow.expand(()).path_log_prob(x)
    for net in (MaskedNet, BlockNet):
        monkeypatch.setattr(net, "_search", lambda *args: pytest.fail("searched"))
    got = flow.path_log_prob(x)
    contracts.close(got, want, "path log-density", inputs=x)
    contracts.close(got, log_prob, "log-density of the draw", inputs=x)
