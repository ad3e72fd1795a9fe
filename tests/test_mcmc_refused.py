"""Bad input to NUTS in a flow's space and to Metropolis-Hastings with a guide."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from chains import hidden_latent, with_dropout
from models import normal_data, normal_model, ready, subsampled_model
from pyro.infer.autoguide import (
    AutoDelta,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoNormal,
)

import pyro_flows as pf
from pyro_flows.infer.mcmc import independence_metropolis, neutra

Y = normal_data()
BOTH = pytest.mark.parametrize("run", [neutra, independence_metropolis])


@functools.cache
def fitted():
    return ready(normal_model, Y, flow="planar")


def pyros(kind):
    guide = kind(normal_model)
    guide(Y)
    return guide


def impossible(y):
    normal_model(y)
    pyro.factor("never", torch.tensor(-torch.inf))


@BOTH
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_draws": 0}, "num_draws to be an integer >= 1; got 0"),
        ({"num_draws": 2.5}, "num_draws to be an integer >= 1; got 2.5"),
        ({"num_chains": 0}, "num_chains to be an integer >= 1; got 0"),
        ({"warmup": -1}, "warmup to be an integer >= "),
        ({"seed": -1}, "seed to be an integer >= 0; got -1"),
    ],
)
def test_options(run, options, message):
    with pytest.raises(pf.DomainError, match=message):
        run(normal_model, fitted(), Y, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tree_depth": 0}, "max_tree_depth to be an integer >= 1; got 0"),
        ({"target_accept": 0.0}, "target_accept to be a finite number > 0; got 0.0"),
        ({"target_accept": 1.0}, "target_accept below 1; got 1.0"),
        ({"target_accept": "high"}, "target_accept to be a finite number > 0; got 'high'"),
        ({"engine": "fast"}, "engine to be one of 'auto', 'eager'"),
    ],
)
def test_options_of_neutra(options, message):
    with pytest.raises(pf.DomainError, match=message):
        neutra(normal_model, fitted(), Y, progress=False, **options)


@BOTH
def test_what_cannot_be_called(run):
    with pytest.raises(pf.DomainError, match="expected a model to call; got 3"):
        run(3, fitted(), Y)
    with pytest.raises(pf.DomainError, match="expected a guide to call; got None"):
        run(normal_model, None, Y)


@BOTH
@pytest.mark.parametrize("kind", [pf.AutoFlow, AutoNormal])
def test_guide_that_never_ran(run, kind):
    with pytest.raises(pf.DomainError, match=rf"a fitted guide; got {kind.__name__}, which"):
        run(normal_model, kind(normal_model), Y)


@pytest.mark.parametrize(
    "guide",
    [
        lambda y: pyro.sample("mu", dist.Normal(0.0, 1.0)),
        pyros(AutoNormal),
        pyros(AutoLowRankMultivariateNormal),
        pyros(AutoLaplaceApproximation),
    ],
    ids=["function", "AutoNormal", "AutoLowRank", "AutoLaplace"],
)
def test_guide_without_a_transform(guide):
    with pytest.raises(pf.DomainError, match="neutra: expected a guide with a transform"):
        neutra(normal_model, guide, Y, progress=False)


@BOTH
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (subsampled_model, "a model that sees all of its data; got one whose plates are"),
        (with_dropout, "depends on its latents and data alone"),
        (hidden_latent, "a guide that draws every latent .* 'shift'"),
    ],
    ids=["subsampled", "random", "hidden"],
)
def test_model_whose_density_is_no_function_of_the_latents(run, model, message):
    with pytest.raises(pf.DomainError, match=message):
        run(model, fitted(), Y)


@pytest.mark.parametrize("kind", [AutoDelta, AutoLaplaceApproximation])
def test_guide_of_a_point(kind):
    with pytest.raises(pf.DomainError, match="differ at each site; got the same at 'mu'"):
        independence_metropolis(normal_model, pyros(kind), Y)


@BOTH
def test_data_with_a_nan(run):
    """FAULTS 56."""
    with pytest.raises(pf.NonFiniteError, match="got 1 NaN among 3 values"):
        run(normal_model, fitted(), torch.tensor([1.0, torch.nan, 2.0]))


@BOTH
def test_density_of_zero_everywhere(run):
    with pytest.raises(pf.NonFiniteError, match="Fit the guide to this model and these data"):
        run(impossible, fitted(), Y)
