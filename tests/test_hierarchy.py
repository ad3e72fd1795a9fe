"""Latents that other latents' priors depend on, and the couplings that follow them."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from fits import affine, fit
from models import hierarchical_model
from pyro import poutine

import pyro_flows as pf
from pyro_flows.infer.guides.hierarchy import hierarchical_couplings, prior_parents
from pyro_flows.transforms import AffineCoupling


def nested_model(y):
    """Scales over groups over members, some of them in between."""
    top = pyro.sample("top", dist.HalfNormal(1.0))
    scale = pyro.sample("scale", dist.HalfCauchy(top))
    apart = pyro.sample("apart", dist.Normal(0.0, 1.0))
    with pyro.plate("groups", 3):
        group = pyro.sample("group", dist.Normal(0.0, scale))
    offset = pyro.deterministic("offset", group + 1.0)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(offset.sum() + apart, 1.0), obs=y)


def untraceable_model(y):
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    # What tensors note is lost, as an array of numpy's is.
    mu = pyro.sample("mu", dist.Normal(0.0, scale.detach().item()))
    pyro.sample("y", dist.Normal(mu, 1.0).expand([len(y)]).to_event(1), obs=y)


def failing_model(y):
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    if type(scale) is not torch.Tensor:
        raise TypeError("a tensor, please")
    pyro.sample("y", dist.Normal(0.0, scale).expand([len(y)]).to_event(1), obs=y)


def parents_in(model, *args):
    return prior_parents(model, poutine.trace(model).get_trace(*args), args, {})


def test_parents_are_the_latents_that_a_prior_is_given():
    """Over deterministic sites too; neither those of data, nor parents of parents."""
    assert parents_in(nested_model, torch.zeros(4)) == {
        "top": frozenset(),
        "scale": {"top"},
        "apart": frozenset(),
        "group": {"scale"},
    }


@pytest.mark.parametrize("model", [untraceable_model, failing_model])
def test_guide_does_without_what_a_model_does_not_show(model):
    guide = pf.AutoFlow(model, affine)
    guide.initialise(torch.ones(4))
    assert not any(isinstance(part, AffineCoupling) for part in guide.flow.transform.parts)


def test_looking_for_parents_leaves_the_random_state_alone():
    y = torch.zeros(4)
    trace = poutine.trace(nested_model).get_trace(y)
    before = torch.get_rng_state()
    prior_parents(nested_model, trace, (y,), {})
    assert torch.equal(before, torch.get_rng_state())


def test_couplings_keep_all_parents_and_then_those_without_parents():
    parents = {"a": frozenset(), "b": frozenset("a"), "c": frozenset("ab"), "d": frozenset()}
    sizes = {"a": 1, "b": 2, "c": 3, "d": 1}
    kept = [
        coupling.order[: coupling.num_kept].tolist()
        for coupling in hierarchical_couplings(parents, sizes)
    ]
    assert kept == [[0, 1, 2], [0]]


@pytest.mark.parametrize(
    "parents", [{}, {"a": frozenset(), "b": frozenset()}, {"a": frozenset("b"), "b": frozenset()}]
)
def test_couplings_are_no_more_than_are_needed(parents):
    number = sum(map(bool, parents.values()))
    assert len(hierarchical_couplings(parents, {"a": 2, "b": 2})) == number


def test_couplings_start_next_to_the_identity():
    (coupling,) = hierarchical_couplings({"a": frozenset(), "b": frozenset("a")}, {"a": 1, "b": 1})
    x = torch.randn(100, 2)
    assert (coupling(x) - x).abs().max() < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_guide_of_a_funnel_is_nearly_exact_by_its_coupling_alone(dtype):
    """Around it there are but affine maps; a Gaussian is off by more than a nat."""

    def funnel(zero):
        v = pyro.sample("v", dist.Normal(zero, 2.0))
        pyro.sample("x", dist.Normal(zero.expand(4), (0.5 * v).exp().unsqueeze(-1)).to_event(1))

    zero = torch.zeros((), dtype=dtype)
    guide = pf.AutoFlow(funnel, affine)
    result = fit(funnel, guide, zero, steps=1500, lr=0.02)
    assert isinstance(guide.flow.transform.parts[1], AffineCoupling)
    assert result.elbo == pytest.approx(0.0, abs=0.03)
    weight = guide.flow.transform.parts[1].conditioner
    assert {parameter.dtype for parameter in weight.parameters()} == {dtype}


def test_guide_with_couplings_fits_a_new_one_of_the_same_model():
    y = torch.randn(8, 2)
    guides = [pf.AutoFlow(hierarchical_model, affine) for _ in range(2)]
    for guide in guides:
        guide.initialise(y)
    fit(hierarchical_model, guides[0], y)
    guides[1].load_state_dict(guides[0].state_dict())
    assert all(map(torch.equal, guides[0].parameters(), guides[1].parameters()))
