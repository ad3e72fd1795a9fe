"""Fits on each rung: the same run, fresh random numbers, and a guide that works as before."""

import copy
import logging

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from faults import run_script
from models import (
    Decoder,
    decoder_data,
    normal_data,
    normal_model,
    normal_posterior,
    regression_data,
    regression_model,
    single_draw_regression_model,
    subsampled_model,
)
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, autoguide
from steps import as_in_a_fit, assert_runs_as_the_step_does, step_of

import pyro_flows as pf
from pyro_flows.errors import DomainError
from pyro_flows.infer.engine import ladder

Y = normal_data()


@pytest.fixture
def eagerly_recorded(monkeypatch):
    """Let short runs be recorded as long ones are."""
    monkeypatch.setattr(ladder, "_LEAST_STEPS", 1)


def one_planar(input_dim):
    return pf.flows.planar(input_dim, num_transforms=1)


def guide_of(model):
    return pf.AutoFlow(model, flow=one_planar, start="prior")


def run(model, *args, engine="traced", guide=None, **options):
    pyro.clear_param_store()
    torch.manual_seed(0)
    guide = guide_of(model) if guide is None else guide(model)
    options = {"steps": 30, "particles": 8, "seed": 0, "lr": 0.02, **options}
    options |= {"stop_early": False, "progress": False}
    return guide, pf.fit(model, guide, *args, engine=engine, **options)


def with_dropout(x, y):
    beta = pyro.sample("beta", dist.Normal(x.new_zeros(x.shape[-1]), 3.0).to_event(1))
    with pyro.plate("rows", len(y)):
        kept = torch.nn.functional.dropout(x, 0.3)
        pyro.sample("y", dist.Normal((kept * beta).sum(-1), 5.0), obs=y)


RUNS = {
    "normal": (normal_model, (Y,), {}),
    "chunks": (normal_model, (Y,), {"particle_chunk": 2}),
    "importance": (normal_model, (Y,), {"num_importance": 4}),
    "total": (normal_model, (Y,), {"gradient": "total"}),
    "regression": (regression_model, regression_data(), {}),
    "vmap": (single_draw_regression_model, regression_data(), {}),
    "subsampled": (subsampled_model, (Y,), {}),
    "dropout": (with_dropout, regression_data(), {}),
    "one particle": (normal_model, (Y,), {"particles": 1}),
    "float64": (normal_model, (Y.double(),), {}),
    "AutoNormal": (regression_model, regression_data(), {"guide": autoguide.AutoNormal}),
    "AutoDelta": (regression_model, regression_data(), {"guide": autoguide.AutoDelta}),
    "batches": (normal_model, (), {"batches": [Y[:5], Y[5:], Y[:5] + 1, Y]}),
}


@pytest.mark.parametrize("name", RUNS)
def test_traced_run_is_the_eager_one_step_by_step(name):
    """FAULTS 74."""
    model, args, options = RUNS[name]
    _, eager = run(model, *args, engine="eager", **options)
    _, traced = run(model, *args, engine="traced", **options)
    assert (eager.engine, traced.engine) == ("eager", "traced")
    np.testing.assert_allclose(traced.losses, eager.losses, rtol=2e-4)
    assert traced.elbo == pytest.approx(eager.elbo, rel=1e-3)
    assert len(set(traced.losses)) == 30


def test_own_networks_are_trained_alike():
    losses = []
    for engine in ("eager", "traced"):
        torch.manual_seed(0)
        model = Decoder()
        result = pf.fit(
            model,
            model.guide,
            engine=engine,
            batches=[decoder_data()[:6], decoder_data()[6:]],
            steps=30,
            particles=4,
            seed=0,
            progress=False,
        )
        assert result.engine == engine
        losses.append(result.losses)
        pyro.clear_param_store()
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-4)


def test_same_seed_gives_the_same_traced_run_bit_for_bit():
    """FAULTS 74."""
    (first, one), (second, other) = run(normal_model, Y), run(normal_model, Y)
    assert (one.losses == other.losses).all()
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert (run(normal_model, Y, seed=1)[1].losses != one.losses).any()


def test_unseeded_runs_draw_on_the_global_state_alike():
    ends = []
    for engine in ("eager", "traced"):
        run(normal_model, Y, engine=engine, seed=None)
        ends.append(torch.get_rng_state())
    assert torch.equal(*ends)


def test_subsample_of_a_traced_step_is_drawn_anew_in_each_call():
    y = normal_data(num=40)
    at = torch.tensor(1.0)

    def guide(y):
        shift = pyro.param("shift", torch.tensor(0.0))
        pyro.sample("mu", dist.Delta(at + shift))

    step, batch = step_of(subsampled_model, guide, y)
    runner = assert_runs_as_the_step_does(step, batch, updates=1)
    step.flat.assign([torch.zeros(1)])
    with as_in_a_fit():
        losses = torch.stack([runner(batch)[0] for _ in range(2000)])
    every = dist.Normal(at, 1.0).log_prob(y).sum() + dist.Normal(0.0, 3.0).log_prob(at)
    assert len(set(losses.tolist())) > 1900
    error = float(losses.std()) / len(losses) ** 0.5
    assert abs(float(losses.mean() + every)) < 4 * error


@pytest.mark.usefixtures("eagerly_recorded")
def test_more_than_eight_shapes_give_the_eager_run_and_one_line(caplog):
    batches = [Y[:n] for n in range(1, 11)]
    with caplog.at_level(logging.WARNING, logger="pyro_flows"):
        _, result = run(normal_model, batches=batches, engine="auto")
    (record,) = caplog.records
    assert "runs eager steps, not traced ones" in record.getMessage()
    _, eager = run(normal_model, batches=batches, engine="eager")
    assert result.engine == "eager"
    np.testing.assert_allclose(result.losses, eager.losses, rtol=2e-4)


def with_a_branch(y):
    """Reads its data, as no graph can, but runs on a plate."""
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    sd = 1.0 if y.max() > 0 else 2.0
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, sd), obs=y)


def with_an_item(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu + 0 * y.sum().item(), 1.0), obs=y)


def with_a_sequential_plate(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    for row in pyro.plate("rows", len(y)):
        pyro.sample(f"y{row}", dist.Normal(mu, 1.0), obs=y[row])


@pytest.mark.usefixtures("eagerly_recorded")
@pytest.mark.parametrize("model", [with_a_branch, with_an_item])
def test_auto_falls_back_with_one_line_and_reaches_the_posterior(model, caplog):
    with caplog.at_level(logging.WARNING, logger="pyro_flows"):
        guide, result = run(model, Y, engine="auto", steps=400, lr=0.05, particles=16)
    assert result.engine == "eager"
    (record,) = caplog.records
    assert "runs eager steps, not traced ones" in record.getMessage()
    mean, sd, evidence = normal_posterior(Y)
    assert result.elbo == pytest.approx(evidence, abs=0.05)
    assert abs(float(guide.median()["mu"]) - mean) < 0.2 * sd
    with pytest.raises(DomainError, match="expected a step that can be recorded"):
        run(model, Y, engine="traced", steps=2)


@pytest.mark.usefixtures("eagerly_recorded")
def test_sequential_plate_runs(caplog):
    """Recorded or not, it gives the eager run."""
    with caplog.at_level(logging.WARNING, logger="pyro_flows"):
        _, auto = run(with_a_sequential_plate, Y[:3], engine="auto")
    assert len(caplog.records) == (auto.engine == "eager")
    _, eager = run(with_a_sequential_plate, Y[:3], engine="eager")
    np.testing.assert_allclose(auto.losses, eager.losses, rtol=2e-4)


def in_a_loop(y):
    """Depends on one draw's value in Python, so it runs particle by particle."""
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    mean = mu if mu > 0 else 2 * mu
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@pytest.mark.usefixtures("eagerly_recorded")
def test_model_that_runs_particle_by_particle_is_not_recorded(caplog):
    with caplog.at_level(logging.WARNING, logger="pyro_flows"):
        _, result = run(in_a_loop, Y, engine="auto", steps=3)
    assert result.engine == "eager"
    lines = [record.getMessage() for record in caplog.records]
    assert sum("not traced ones" in line for line in lines) == 1
    with pytest.raises(DomainError, match="once for each particle"):
        run(in_a_loop, Y, engine="traced", steps=3)


@pytest.mark.usefixtures("eagerly_recorded")
@pytest.mark.parametrize("engine", ["auto", "eager", "traced", "compiled"])
def test_invalid_distribution_is_refused_on_every_rung(engine):
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, -1.0), obs=y)

    guide = autoguide.AutoNormal(model)
    with pyro.validation_enabled(False):
        guide(Y)
    with pyro.validation_enabled(True), pytest.raises(DomainError, match="scale"):
        pf.fit(model, guide, Y, steps=3, particles=2, engine=engine, progress=False)


def validates():
    try:
        dist.Normal(0.0, -1.0)
    except ValueError:
        return True
    return False


@pytest.mark.parametrize("engine", ["eager", "traced"])
@pytest.mark.parametrize("enabled", [True, False])
def test_validation_is_as_before_after_a_fit(engine, enabled):
    """FAULTS 44."""
    with pyro.validation_enabled(enabled):
        run(normal_model, Y, engine=engine, steps=2)
        assert validates() == enabled
        with pytest.raises(DomainError):
            run(in_a_loop, Y, engine="traced", steps=2)
        assert validates() == enabled


def test_unknown_rung_is_refused():
    with pytest.raises(DomainError, match="expected engine to be one of 'auto'"):
        run(normal_model, Y, engine="jitted")


def test_guide_works_as_before_after_a_traced_fit():
    guide, result = run(normal_model, Y, steps=60)
    assert result.engine == "traced"
    twin = copy.deepcopy(guide)
    for ours, theirs in zip(twin.parameters(), guide.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() != theirs.data_ptr()
    draws = Predictive(normal_model, guide=guide, num_samples=7)(Y)["mu"]
    assert draws.shape[0] == 7
    before = [parameter.detach().clone() for parameter in guide.parameters()]
    svi = SVI(normal_model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO(num_particles=4))
    for _ in range(3):
        svi.step(Y)
    changed = [
        not torch.equal(parameter.detach(), old)
        for parameter, old in zip(guide.parameters(), before, strict=True)
    ]
    assert any(changed)
    again = pf.fit(normal_model, guide, Y, steps=5, particles=4, engine="traced", progress=False)
    assert again.engine == "traced"
    assert all(bool(p.isfinite().all()) for p in twin.parameters())
    guide.load_state_dict(twin.state_dict())
    trace = poutine.trace(guide).get_trace(Y)
    assert bool(trace.nodes["mu"]["value"].isfinite().all())


def test_twin_made_within_a_fit_is_apart_from_it():
    kept = []
    guide = guide_of(normal_model)

    def keep(info):
        if info.step == 3:
            kept.append(copy.deepcopy(guide))
            kept.append({name: v.clone() for name, v in guide.state_dict().items()})

    options = {"steps": 10, "particles": 4, "lr": 0.1, "seed": 0, "progress": False}
    pf.fit(normal_model, guide, Y, engine="traced", callbacks=[keep], **options)
    twin, state = kept
    for name, value in twin.state_dict().items():
        assert torch.equal(value, state[name])
    assert any(not torch.equal(v, state[name]) for name, v in guide.state_dict().items())


def test_torchs_compiler_is_not_imported():
    """It takes more than a second, for which a run that compiles nothing would wait."""
    script = """
import sys
import pyro_flows as pf
from models import normal_data, normal_model
guide = pf.AutoFlow(normal_model)
result = pf.fit(normal_model, guide, normal_data(), steps=2, engine="traced", progress=False)
print(result.engine, "torch._dynamo" in sys.modules)
"""
    assert run_script(script).split() == ["traced", "False"]
