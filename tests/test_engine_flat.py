"""Parameters laid out in flat tensors: views of them, under their names, and back."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import normal_data, normal_model, ready
from pyro.infer import SVI, Trace_ELBO
from steps import plain_step
from torch import nn

import pyro_flows as pf
from pyro_flows.infer import store
from pyro_flows.infer.engine import FlatParameters
from pyro_flows.infer.training.trainable import trainable


def one_planar(input_dim):
    return pf.flows.planar(input_dim, num_transforms=1)


def parameters():
    wide = torch.arange(12.0, dtype=torch.float64).reshape(3, 4)
    return {
        "matrix": nn.Parameter(torch.arange(6.0).reshape(2, 3)),
        "scalar": nn.Parameter(torch.tensor(7.0)),
        "turned": nn.Parameter(wide.t()),
        "empty": nn.Parameter(torch.empty(0, 3)),
        "double scalar": nn.Parameter(torch.tensor(8.0, dtype=torch.float64)),
    }


def test_values_shapes_and_names_stay_and_each_dtype_has_its_tensor():
    named = parameters()
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    flat = FlatParameters(named)
    assert {tensor.dtype: tensor.numel() for tensor in flat.tensors} == {
        torch.float32: 7,
        torch.float64: 13,
    }
    assert set(flat.parameters) == set(named)
    for name, parameter in named.items():
        assert flat.parameters[name] is parameter
        assert parameter.is_leaf
        assert parameter.requires_grad
        assert torch.equal(parameter.detach(), before[name])
        assert parameter.dtype == before[name].dtype


def test_parameters_are_views_and_gradients_are_laid_out_alike():
    named = parameters()
    flat = FlatParameters(named)
    with torch.no_grad():
        for tensor in flat.tensors:
            tensor.fill_(2.0)
    assert all(bool((parameter == 2).all()) for parameter in named.values())
    with torch.no_grad():
        named["turned"][1, 0] = 5.0
    assert sum(int((tensor == 5).sum()) for tensor in flat.tensors) == 1
    for tensor, grad in zip(flat.tensors, flat.grads, strict=True):
        assert tensor.grad is grad
        assert grad.shape == tensor.shape
        assert not grad.any()


def test_split_and_flatten_undo_each_other():
    named = parameters()
    flat = FlatParameters(named)
    values = {name: torch.randn_like(parameter) for name, parameter in named.items()}
    laid_out = flat.flatten(values)
    again = {name: view for part in flat.split(laid_out) for name, view in part.items()}
    assert list(again) == list(flat.parameters)
    for name, value in values.items():
        assert torch.equal(again[name], value)
    flat.assign(laid_out)
    for name, parameter in named.items():
        assert torch.equal(parameter.detach(), values[name])


def test_copy_is_apart_and_assign_goes_back():
    named = parameters()
    flat = FlatParameters(named)
    kept = flat.copy()
    before = named["matrix"].detach().clone()
    with torch.no_grad():
        for tensor in flat.tensors:
            tensor.zero_()
    assert kept[0].any()
    flat.assign(kept)
    assert torch.equal(named["matrix"].detach(), before)


def test_release_gives_each_a_memory_of_its_own():
    named = parameters()
    flat = FlatParameters(named)
    with torch.no_grad():
        flat.tensors[0].add_(1.0)
    values = {name: parameter.detach().clone() for name, parameter in named.items()}
    flat.release()
    with torch.no_grad():
        for tensor in flat.tensors:
            tensor.zero_()
    for name, parameter in named.items():
        assert torch.equal(parameter.detach(), values[name])
        size = parameter.numel() * parameter.element_size()
        assert parameter.untyped_storage().nbytes() == size


def test_gradient_of_a_parameter_that_the_loss_lacks_is_zero():
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    step = plain_step(lambda: (3 * used).sum(), used, unused)  # noqa: PLW0108
    _, norm, grad = step(((), {}))
    assert grad.tolist() == [3, 3, 0, 0, 0]
    assert float(norm) == pytest.approx(18**0.5)


def test_tied_parameters_are_trained_as_one():
    class Tied(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.first = pyro.nn.PyroModule[nn.Linear](1, 1)
            self.second = pyro.nn.PyroModule[nn.Linear](1, 1)
            self.second.weight = self.first.weight

        def forward(self, y):
            mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
            with pyro.plate("data", len(y)):
                mean = self.second(self.first(torch.ones(len(y), 1)))[:, 0]
                pyro.sample("y", dist.Normal(mu + mean, 1.0), obs=y)

    y, model = normal_data(), Tied()
    guide = ready(model, y, flow=one_planar, start="prior")
    with store.unused():
        _, of_model = trainable(model, guide, (y,), {})
    assert sum(parameter.numel() for parameter in of_model.values()) == 3
    pf.fit(model, guide, y, steps=5, particles=4, seed=0, progress=False)
    assert model.second.weight is model.first.weight


def constrained(y):
    sd = pyro.param("sd", torch.tensor(0.5), constraint=dist.constraints.positive)
    shares = pyro.param("shares", torch.ones(3) / 3, constraint=dist.constraints.simplex)
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, sd * (1 + shares[0])), obs=y)


@pytest.mark.parametrize("engine", ["eager", "traced"])
def test_parameters_of_pyros_store_are_trained_under_their_constraints(engine):
    y = normal_data()
    guide = pf.AutoFlow(constrained, flow=one_planar, start="prior")
    pf.fit(
        constrained,
        guide,
        y,
        steps=60,
        particles=8,
        lr=0.05,
        engine=engine,
        seed=0,
        progress=False,
    )
    sd, shares = pyro.param("sd"), pyro.param("shares").detach()
    assert float(sd.detach()) > 0.55
    assert float(shares.sum()) == pytest.approx(1.0)
    assert shares[0] > 0.34
    leaf = sd.unconstrained()
    assert leaf.untyped_storage().nbytes() == leaf.element_size()


def test_parameters_are_released_after_a_fit_that_fails():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    def stop(info):
        raise RuntimeError("stop")

    y = normal_data()
    guide = ready(model, y, flow=one_planar, start="prior")
    with pytest.raises(RuntimeError, match="stop"):
        pf.fit(model, guide, y, steps=5, particles=4, callbacks=[stop], seed=0, progress=False)
    for parameter in guide.parameters():
        size = parameter.numel() * parameter.element_size()
        assert parameter.untyped_storage().nbytes() == size
    SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO()).step(y)
    assert pf.fit(normal_model, guide, y, steps=2, particles=2, progress=False).steps == 2
