"""AutoPlateFlow among what Pyro has besides: lists of guides, enumeration, modules."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from plates import Encoder, rows_data, rows_model
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoGuideList, AutoNormal

import pyro_flows as pf

Y = rows_data(8)


def adam():
    return pyro.optim.Adam({"lr": 1e-2})


def test_guide_list_leaves_the_members_to_it():
    guide = AutoGuideList(rows_model)
    guide.append(AutoNormal(poutine.block(rows_model, hide=["theta"])))
    guide.append(pf.AutoPlateFlow(poutine.block(rows_model, hide=["mu"])))
    svi = SVI(rows_model, guide, adam(), Trace_ELBO())
    assert all(svi.step(Y) < 200 for _ in range(3))
    assert guide(Y)["theta"].shape == (8,)


def test_enumerated_latents_of_members_are_left_to_trace_enum():
    """With them summed over by hand, each draw has the same loss."""

    def latents(x):
        means = pyro.sample("means", dist.Normal(torch.tensor([-2.0, 2.0]), 1.0).to_event(1))
        return means, pyro.plate("data", len(x))

    def model(x):
        means, data = latents(x)
        with data:
            scale = pyro.sample("scale", dist.Gamma(5.0, 2.0))
            which = pyro.sample("which", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            mean = torch.where(which == 1, means[..., 1:2], means[..., 0:1])
            pyro.sample("x", dist.Normal(mean, scale), obs=x)

    def summed_model(x):
        means, data = latents(x)
        with data:
            scale = pyro.sample("scale", dist.Gamma(5.0, 2.0))
            parts = dist.Normal(means.expand(len(x), 2), scale[:, None])
            halves = dist.Categorical(torch.full((len(x), 2), 0.5))
            pyro.sample("x", dist.MixtureSameFamily(halves, parts), obs=x)

    guide = pf.AutoPlateFlow(poutine.block(model, hide=["which"]))
    guide.initialise(Y)
    for seed in range(5):
        pyro.set_rng_seed(seed)
        enumerated = TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, Y)
        pyro.set_rng_seed(seed)
        assert Trace_ELBO().loss(summed_model, guide, Y) == pytest.approx(enumerated, rel=1e-4)


def test_encoder_is_trained_with_the_guide():
    """Through the store and through the parameters of an ELBO module alike."""
    for way in ("svi", "module"):
        pyro.clear_param_store()
        encoder = Encoder()
        guide = pf.AutoPlateFlow(rows_model, encode=encoder, start="prior")
        guide.initialise(Y)
        before = [parameter.detach().clone() for parameter in encoder.parameters()]
        if way == "svi":
            svi = SVI(rows_model, guide, adam(), Trace_ELBO())
            for _ in range(3):
                svi.step(Y)
        else:
            loss = Trace_ELBO(4, vectorize_particles=True)(rows_model, guide)
            optimizer = torch.optim.Adam(loss.parameters(), 1e-2)
            for _ in range(3):
                optimizer.zero_grad()
                loss(Y).backward()
                optimizer.step()
        assert any((a != b).any() for a, b in zip(before, encoder.parameters(), strict=True))


def test_encoder_in_the_store_may_be_a_function():
    net = Encoder()

    def encode(rows, y):
        return pyro.module("net", net)(rows, y)

    guide = pf.AutoPlateFlow(rows_model, encode=encode)
    guide.initialise(Y)
    before = net.net[0].weight.detach().clone()
    pf.fit(rows_model, guide, Y, steps=3, particles=4, progress=False)
    assert (net.net[0].weight != before).any()
