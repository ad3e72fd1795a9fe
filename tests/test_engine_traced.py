"""A recorded step gives what the step itself gives: loss, norm, gradient and random numbers."""

import pyro
import pyro.distributions as dist
import pytest
import test_particles_vmap
import torch
from models import (
    Decoder,
    constrained_model,
    correlated_model,
    decoder_data,
    hidden_markov_model,
    hierarchical_model,
    normal_data,
    normal_model,
    ready,
    regression_data,
    regression_model,
    scaled_model,
    single_draw_regression_model,
    subsampled_model,
)
from pyro import poutine
from pyro.infer import autoguide
from steps import as_in_a_fit, assert_runs_as_the_step_does, plain_step, step_of
from zoo import RECIPES

import pyro_flows as pf
from pyro_flows.flows import registry


def one_planar(input_dim):
    return pf.flows.planar(input_dim, num_transforms=1)


SMALL = {"flow": one_planar, "start": "prior"}


@pytest.mark.parametrize(
    ("dtype", "gradient"), [(torch.float32, "path"), (torch.float64, "total")], ids=str
)
@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_every_recipe(recipe, dtype, gradient):
    x, y = regression_data(num=10, dim=3, dtype=dtype)
    guide = ready(
        regression_model,
        x,
        y,
        flow=lambda d: RECIPES[recipe](d, 0),
        start="prior",
        gradient=gradient,
    )
    step, batch = step_of(regression_model, guide, x, y)
    assert_runs_as_the_step_does(step, batch)


def test_no_recipe_is_left_out():
    assert set(RECIPES) == set(registry._BUILT_IN)


def by_hand(y):
    loc = pyro.param("loc", y.new_zeros(()))
    scale = pyro.param("scale", y.new_ones(()), constraint=dist.constraints.positive)
    pyro.sample("mu", dist.Normal(loc, scale))


def by_hand_without_rsample_order(y):
    """The first draw depends on a parameter, so the second cannot be drawn ahead of it."""
    shape = pyro.param("shape", y.new_tensor(2.0), constraint=dist.constraints.positive)
    with pyro.plate("two", 2):
        pyro.sample("g", dist.Gamma(shape, 1.0))
    by_hand(y)


def with_gamma(y):
    with pyro.plate("two", 2):
        pyro.sample("g", dist.Gamma(y.new_tensor(2.0), 1.0))
    normal_model(y)


def two_guides(model):
    guide = autoguide.AutoGuideList(model)
    guide.append(autoguide.AutoNormal(poutine.block(model, hide=["scale"])))
    guide.append(autoguide.AutoDelta(poutine.block(model, expose=["scale"])))
    return guide


PYROS = {
    "AutoNormal": autoguide.AutoNormal,
    "AutoDiagonalNormal": autoguide.AutoDiagonalNormal,
    "AutoMultivariateNormal": autoguide.AutoMultivariateNormal,
    "AutoLowRankMultivariateNormal": autoguide.AutoLowRankMultivariateNormal,
    "AutoIAFNormal": lambda model: autoguide.AutoIAFNormal(model, hidden_dim=[8]),
    "AutoDelta": autoguide.AutoDelta,
    "AutoGuideList": two_guides,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", PYROS)
def test_pyros_guides(name, dtype):
    torch.set_default_dtype(dtype)
    x, y = regression_data(num=10, dim=3, dtype=dtype)
    guide = PYROS[name](scaled_model)
    guide(x, y)
    step, batch = step_of(scaled_model, guide, x, y)
    assert_runs_as_the_step_does(step, batch)


@pytest.mark.parametrize(
    ("model", "guide"),
    [(normal_model, by_hand), (with_gamma, by_hand_without_rsample_order)],
    ids=["normal", "gamma"],
)
def test_guides_by_hand(model, guide):
    step, batch = step_of(model, guide, normal_data())
    assert sum(tensor.numel() for tensor in step.flat.tensors) >= 2
    assert_runs_as_the_step_does(step, batch)


def test_scores_of_a_guide_without_reparametrised_draws():
    def guide(y):
        loc = pyro.param("loc", torch.tensor(0.5))
        pyro.sample("mu", dist.Normal(loc, 1.0).has_rsample_(False))

    step, batch = step_of(normal_model, guide, normal_data())
    assert_runs_as_the_step_does(step, batch)


MODELS = {
    "normal": (normal_model, (normal_data(),)),
    "regression": (regression_model, regression_data()),
    "one draw": (single_draw_regression_model, regression_data()),
    "constrained": (constrained_model, ()),
    "correlated": (correlated_model, ()),
    "hierarchical": (hierarchical_model, (torch.randn(5, 3),)),
    "scaled": (scaled_model, regression_data()),
    "subsampled": (subsampled_model, (normal_data(num=50),)),
    "hidden markov": (hidden_markov_model, (torch.sin(torch.arange(6.0)),)),
}


@pytest.mark.parametrize("gradient", ["path", "total"])
@pytest.mark.parametrize("name", MODELS)
def test_models(name, gradient):
    model, args = MODELS[name]
    guide = ready(model, *args, gradient=gradient, **SMALL)
    step, batch = step_of(model, guide, *args)
    assert_runs_as_the_step_does(step, batch)


@pytest.mark.parametrize("model", test_particles_vmap.MODELS, ids=lambda model: model.__name__)
def test_models_that_run_by_vmap(model):
    model = model() if isinstance(model, type) else model
    step, batch = step_of(model, ready(model, **SMALL))
    assert_runs_as_the_step_does(step, batch, tolerance=1e-4)


def test_module_with_weights_a_guide_of_its_own_and_dropout():
    model = Decoder()
    step, batch = step_of(model, model.guide, decoder_data())
    assert any("decoder" in name for name in step.flat.parameters)
    assert_runs_as_the_step_does(step, batch)


@pytest.mark.parametrize("squared", [True, False])
def test_importance_weighted_bound(squared):
    """Two surrogates, and the parameters of guide and model in two groups."""

    def model(x, y):
        with poutine.scale(scale=1.0):
            tilt = pyro.param("tilt", torch.tensor(0.5))
            regression_model(x * tilt, y)

    x, y = regression_data(num=10, dim=3)
    guide = ready(model, x, y, gradient="path" if squared else "total", **SMALL)
    step, batch = step_of(model, guide, x, y, num=6, num_importance=3, squared=squared)
    assert len(step.groups) == 2
    assert all(step.groups)
    assert_runs_as_the_step_does(step, batch)


@pytest.mark.parametrize("clip_norm", [None, 1e-2, 1e6])
def test_clipping(clip_norm):
    y = normal_data()
    step, batch = step_of(normal_model, ready(normal_model, y, **SMALL), y, clip_norm=clip_norm)
    runner = assert_runs_as_the_step_does(step, batch)
    with as_in_a_fit():
        _, norm, grad = runner(batch)
    expected = min(float(norm), clip_norm or float("inf"))
    assert float(grad.norm()) == pytest.approx(expected, rel=1e-4)


def test_keyword_arguments_numbers_and_nested_containers_as_arguments():
    def model(data, *, sd, name):
        assert name == "y"
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(data["y"][0])):
            pyro.sample(name, dist.Normal(mu, sd), obs=data["y"][0])

    arguments = ({"y": [normal_data()], "unused": torch.ones(2)},)
    options = {"sd": 2.0, "name": "y"}
    guide = pf.AutoFlow(model, **SMALL)
    guide.initialise(*arguments, **options)
    step, batch = step_of(model, guide, *arguments, **options)
    assert_runs_as_the_step_does(step, batch)


def test_numbers_are_fresh_in_every_call():
    y = normal_data()
    step, batch = step_of(normal_model, ready(normal_model, y, **SMALL), y)
    runner = assert_runs_as_the_step_does(step, batch)
    with as_in_a_fit():
        losses = {float(runner(batch)[0]) for _ in range(20)}
    assert len(losses) == 20


def test_writing_into_new_memory_stays_within_a_call():
    """What a model makes and changes in place begins anew in each call."""

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        count = torch.tensor(0.0)
        count += 1
        another = torch.scalar_tensor(0.0)
        another += 2
        table = torch.tensor([1.0, 2.0])
        table[0] = 5.0
        shift = count + table.sum()
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, shift), obs=y)

    y = normal_data()
    step, batch = step_of(model, ready(model, y, **SMALL), y)
    assert_runs_as_the_step_does(step, batch)


def test_two_numbers_made_alike_are_two():
    """Changing one in place leaves the other as it is."""
    w = torch.nn.Parameter(torch.tensor([0.3, -0.2]))

    def loss():
        one, other = torch.scalar_tensor(0.0), torch.scalar_tensor(0.0)
        one += 2
        return ((w + one).square() + (w - other).square()).sum()

    assert_runs_as_the_step_does(plain_step(loss, w), ((), {}))


def test_state_of_a_model_goes_on_as_it_does_in_eager_steps():
    """A batch norm's running mean, and a count that a model keeps as a tensor."""
    x, y = torch.randn(10, 2), torch.randn(10)

    class Model(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(2)

        def forward(self):
            mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
            with pyro.plate("data", 10):
                pyro.sample("y", dist.Normal(mu + self.norm(x).sum(-1), 1.0), obs=y)

    model = Model()
    step, batch = step_of(model, ready(model, **SMALL))
    runner = assert_runs_as_the_step_does(step, batch)
    with as_in_a_fit():
        before = int(model.norm.num_batches_tracked)
        step(batch)
        each = int(model.norm.num_batches_tracked) - before
        runner(batch)
    assert int(model.norm.num_batches_tracked) == before + 2 * each
    assert each > 0
