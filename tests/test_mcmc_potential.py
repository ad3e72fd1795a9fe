"""The energy over a flow's space, against Pyro's own."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from fits import guide_for
from models import (
    correlated_model,
    normal_data,
    normal_model,
    ready,
    regression_data,
    regression_model,
)
from pyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal
from pyro.infer.mcmc.util import initialize_model
from pyro.infer.reparam import NeuTraReparam
from pyro.ops.integrator import potential_grad

import pyro_flows as pf
from pyro_flows.infer import LogDensity
from pyro_flows.infer.engine.runner import Runner
from pyro_flows.infer.mcmc.freezing import frozen
from pyro_flows.infer.mcmc.potential import Potential

POINTS = 0.5 * torch.randn(3, 40, generator=torch.Generator().manual_seed(0))


def flow_guide(model, *args):
    guide = ready(model, *args, start="prior", flow="nsf")
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return guide


def pyro_guide(kind):
    def guide(model, *args):
        made = kind(model)
        made(*args)
        return made

    return guide


GUIDES = {
    "AutoFlow": flow_guide,
    **{kind.__name__: pyro_guide(kind) for kind in (AutoIAFNormal, AutoMultivariateNormal)},
}


@pytest.mark.parametrize("engine", ["eager", "traced"])
@pytest.mark.parametrize("guide", GUIDES.values(), ids=GUIDES)
@pytest.mark.parametrize(
    ("model", "args"),
    [(correlated_model, ()), (regression_model, regression_data())],
    ids=["constrained", "regression"],
)
def test_energy_and_gradient_are_those_of_pyros_neutra(model, args, guide, engine):
    guide = guide(model, *args)
    with frozen(guide):
        ours = Potential("neutra", LogDensity(model, guide, args, {}), guide)
        ours.take_rung(engine, 0)
        _, theirs, _, _ = initialize_model(NeuTraReparam(guide).reparam(model), args)
        (name,) = (f"{next(iter(guide.prototype_trace.stochastic_nodes))}_shared_latent",)
        for row in POINTS:
            point = row[: guide.latent_dim].clone()
            our_grads, our_energy = potential_grad(ours, {"point": point.clone()})
            grads, energy = potential_grad(theirs, {name: point.clone()})
            torch.testing.assert_close(our_energy, energy, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(our_grads["point"], grads[name], rtol=1e-3, atol=1e-3)
    assert ours.calls == len(POINTS)


@pytest.mark.parametrize(
    ("engine", "evaluations", "rung"),
    [("auto", 100, "traced"), ("auto", 10**9, "compiled"), ("compiled", 0, "compiled")],
)
def test_native_code_where_it_pays(monkeypatch, engine, evaluations, rung):
    compiled = []

    def compile_now(runner):
        compiled.append(runner)

    monkeypatch.setattr(Runner, "compile_now", compile_now)
    y = normal_data()
    guide = guide_for(normal_model, y)
    with frozen(guide):
        potential = Potential("neutra", LogDensity(normal_model, guide, (y,), {}), guide)
        potential.take_rung(engine, evaluations)
    assert bool(compiled) == (rung == "compiled")


def branches(y):
    """A model whose path depends on a latent."""
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu if mu > -100 else 0 * mu, 1.0), obs=y)


def test_models_that_no_graph_holds_run_step_by_step(caplog):
    y = normal_data()
    guide = guide_for(normal_model, y)
    with frozen(guide):
        density = LogDensity(branches, guide, (y,), {})
        potential = Potential("neutra", density, guide)
        potential.take_rung("auto", 10**6)
        assert "neutra: runs eager steps" in caplog.text
        with pytest.raises(pf.DomainError, match="a density that can be recorded, for engine='tr"):
            potential.take_rung("traced", 10**6)


@pytest.mark.slow
def test_native_code_gives_the_same_draws_at_first():
    y = normal_data()
    guide = guide_for(normal_model, y)
    options = {"num_draws": 5, "warmup": 0, "num_chains": 1, "seed": 0, "progress": False}
    eager, compiled = (
        pf.infer.mcmc.neutra(normal_model, guide, y, engine=engine, **options).sites["mu"]
        for engine in ("eager", "compiled")
    )
    torch.testing.assert_close(eager, compiled, rtol=1e-3, atol=1e-3)
