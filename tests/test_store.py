"""Pyro's parameter store: no guide trains another's tensors, and a saved store is found again."""

import gc

import pyro
import pytest
import torch
from models import (
    normal_data,
    normal_model,
    regression_data,
    regression_model,
    regression_posterior,
)
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal

import pyro_flows as pf


def train(guide, model, *args, steps=60):
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO(8, vectorize_particles=True))
    return [svi.step(*args) for _ in range(steps)]


def test_second_guide_in_one_process_trains():
    """FAULTS 41; Pyro's own second flow guide silently does not train."""
    x, y = regression_data()
    _, _, evidence = regression_posterior(x, y)
    guides = [pf.AutoFlow(regression_model, start="prior") for _ in range(2)]
    for guide in guides:
        losses = train(guide, regression_model, x, y, steps=100)
        # The loss is minus the evidence at best.
        assert losses[-1] + evidence < 0.2 * (losses[0] + evidence)
    names = {name.split(".")[0] for name in pyro.get_param_store()}
    assert names == {"AutoFlow", "AutoFlow_1"}
    first, second = (dict(guide.named_parameters()) for guide in guides)
    assert all(first[name] is not second[name] for name in first)


def test_guides_of_different_models_share_a_process():
    """FAULTS 41."""
    x, y = regression_data()
    train(pf.AutoFlow(regression_model), regression_model, x, y, steps=2)
    losses = train(pf.AutoFlow(normal_model), normal_model, normal_data(), steps=2)
    assert all(torch.tensor(losses).isfinite())


@pytest.mark.parametrize("loaded", ["before the guide is built", "after it has run"])
def test_saved_store_is_adopted(tmp_path, loaded):
    x, y = regression_data()
    guide = pf.AutoFlow(regression_model)
    train(guide, regression_model, x, y, steps=5)
    path = str(tmp_path / "params")
    pyro.get_param_store().save(path)
    pyro.clear_param_store()

    fresh = pf.AutoFlow(regression_model, start="prior")
    if loaded == "after it has run":
        fresh(x, y)
        pyro.clear_param_store()
    pyro.get_param_store().load(path)
    fresh(x, y)
    z = torch.randn(6, 4)
    assert torch.equal(fresh.get_posterior().log_prob(z), guide.get_posterior().log_prob(z))
    before = fresh.get_posterior().log_prob(z)
    train(fresh, regression_model, x, y, steps=1)
    assert not torch.equal(fresh.get_posterior().log_prob(z), before)


def test_saved_store_of_another_model_is_refused(tmp_path):
    """FAULTS 71."""
    x, y = regression_data()
    train(pf.AutoFlow(regression_model), regression_model, x, y, steps=1)
    path = str(tmp_path / "params")
    pyro.get_param_store().save(path)
    pyro.clear_param_store()
    pyro.get_param_store().load(path)
    with pytest.raises(pf.CheckpointError, match="clear_param_store"):
        pf.AutoFlow(normal_model)(normal_data())


def test_cleared_store_is_filled_again():
    y = normal_data()
    guide = pf.AutoFlow(normal_model)
    train(guide, normal_model, y, steps=2)
    pyro.clear_param_store()
    before = [p.detach().clone() for p in guide.parameters()]
    train(guide, normal_model, y, steps=2)
    assert any(not torch.equal(a, b) for a, b in zip(before, guide.parameters(), strict=True))


def test_fit_leaves_the_store_alone_and_works_with_module_local_parameters():
    y = normal_data()
    pf.fit(normal_model, pf.AutoFlow(normal_model), y, steps=3, particles=4, progress=False)
    assert len(pyro.get_param_store()) == 0
    with pyro.settings.context(module_local_params=True):
        guide = pf.AutoFlow(normal_model)
        result = pf.fit(normal_model, guide, y, steps=3, particles=4, progress=False)
    assert result.steps == 3


def test_module_local_parameters_keep_guides_of_pyro_apart():
    """Parameters with and without a constraint: a multivariate normal's scales and its mean."""
    x, y = regression_data()
    *_, evidence = regression_posterior(x, y)
    with pyro.settings.context(module_local_params=True):
        guides = [AutoMultivariateNormal(regression_model) for _ in range(2)]
        options = {"lr": 0.02, "seed": 0, "progress": False}
        fits = [
            pf.fit(regression_model, guide, x, y, steps=steps, **options)
            for guide, steps in zip(guides, (1000, 10), strict=True)
        ]
        elbos = [pf.diagnose(regression_model, guide, x, y).elbo for guide in guides]
    assert fits[0].elbo == pytest.approx(evidence, abs=0.05)
    assert elbos == pytest.approx([fit.elbo for fit in fits], abs=1.0)
    assert elbos[1] < elbos[0] - 10.0


def test_name_of_a_guide_that_is_gone_is_free_again():
    """A notebook's cell that runs again does not fill the store, nor save the oldest guide."""
    y = normal_data()
    for _ in range(3):
        guide = pf.AutoFlow(normal_model)
        train(guide, normal_model, y, steps=1)
        number = len(pyro.get_param_store())
        del guide
        gc.collect()
    guide = pf.AutoFlow(normal_model)
    train(guide, normal_model, y, steps=1)
    assert len(pyro.get_param_store()) == number
    assert {name.split(".")[0] for name in pyro.get_param_store()} == {"AutoFlow"}
