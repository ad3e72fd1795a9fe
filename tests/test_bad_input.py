"""Bad input to guides, the fit and the result: each gets a typed error that says what to do."""

import re

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from models import normal_data, normal_model

import pyro_flows as pf

NAN = float("nan")


def discrete():
    pyro.sample("k", dist.Poisson(3.0))


def empty():
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))


def subsampled():
    with pyro.plate("rows", 100, subsample_size=10):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def sequential():
    for k in pyro.plate("rows", 3):
        pyro.sample(f"z_{k}", dist.Normal(0.0, 1.0))


def on_a_sphere():
    pyro.sample("direction", dist.ProjectedNormal(torch.tensor([1.0, 0.0])))


def nan_data():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 3):
        pyro.sample("y", dist.Normal(a, 1.0), obs=torch.tensor([1.0, NAN, 2.0]))


def nan_model():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.factor("penalty", a * NAN)


def impossible_model():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.factor("penalty", a - torch.inf)


def masked_latent():
    mask = torch.tensor([True, False])
    pyro.sample("y", dist.Normal(torch.zeros(2), 1.0), obs=torch.zeros(2), obs_mask=mask)


def array_data():
    pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(torch.zeros(2), 1.0).to_event(1), obs=np.zeros(2))


MODELS = [
    (masked_latent, pf.DomainError, ["'y_unobserved'", "mask", "missing rows"]),
    (array_data, pf.DomainError, ["'y'", "ndarray", "torch.as_tensor"]),
    (discrete, pf.DomainError, ["'k'", "Poisson", "hide=['k']", "TraceEnum_ELBO"]),
    (empty, pf.DomainError, ["at least one latent", "pyro.sample"]),
    (subsampled, pf.DomainError, ["'rows'", "'z'", "10 of 100", "AutoPlateFlow"]),
    (sequential, pf.DomainError, ["'rows'", "'z_0'", "loop", "with pyro.plate"]),
    (on_a_sphere, pf.DomainError, ["'direction'", "ProjectedNormal", "Reparam"]),
    (nan_data, pf.NonFiniteError, ["'y'", "1 NaN among 3", "mask"]),
    (nan_model, pf.NonFiniteError, ["'penalty'", "nan", "init_loc_fn"]),
    (impossible_model, pf.NonFiniteError, ["'penalty'", "-inf", "init_loc_fn"]),
]


@pytest.mark.parametrize(
    ("model", "error", "words"), MODELS, ids=lambda case: getattr(case, "__name__", "")
)
@pytest.mark.parametrize("start", ["auto", "prior"])
def test_impossible_model_is_refused(model, error, words, start):
    """FAULTS 50, 52, 53, 56."""
    guide = pf.AutoFlow(model, start=start)
    for _ in range(2):  # a refused guide stays refused
        with pytest.raises(error) as caught:
            guide.initialise()
        for word in ["AutoFlow", "expected", "got", *words]:
            assert word in str(caught.value)
    with pytest.raises(error):
        pf.fit(model, pf.AutoFlow(model), steps=1, progress=False)


ARGUMENTS = [
    ({"flow": "realnpv"}, ["'realnvp'", "'realnpv'"]),
    ({"flow": 3}, ["name or a function", "3"]),
    ({"start": "mode"}, ["'laplace'", "'mode'"]),
    ({"gradient": "stl"}, ["'path'", "'stl'"]),
]


@pytest.mark.parametrize(("options", "words"), ARGUMENTS)
def test_bad_guide_argument_is_refused_at_once(options, words):
    with pytest.raises(pf.DomainError) as caught:
        pf.AutoFlow(normal_model, **options)
    for word in words:
        assert word in str(caught.value)


def test_something_that_is_no_model_is_refused():
    with pytest.raises(pf.DomainError, match="a model to call"):
        pf.AutoFlow("model")


RECIPES = [
    (lambda d: pf.flows.realnvp(d + 1), pf.ShapeError, "Flow over 1 coordinates"),
    (pf.transforms.Planar, pf.ShapeError, "Flow over 1 coordinates"),
    (lambda d: pf.flows.maf(d, context_dim=2), pf.ShapeError, "context_dim=2"),
    (lambda d: pf.flows.iaf(d, num_transforms=0), pf.DomainError, "num_transforms"),
]


@pytest.mark.parametrize(("recipe", "error", "words"), RECIPES)
def test_recipe_that_does_not_fit_is_refused(recipe, error, words):
    """FAULTS 5."""
    with pytest.raises(error, match=words):
        pf.AutoFlow(normal_model, recipe).initialise(normal_data())


FIT_OPTIONS = [
    ("steps", 0),
    ("steps", -3),
    ("steps", 2.5),
    ("particles", 0),
    ("lr", 0.0),
    ("lr", -1e-3),
    ("lr", NAN),
    ("clip_norm", 0.0),
    ("seed", -1),
]


@pytest.mark.parametrize(("name", "value"), FIT_OPTIONS)
def test_bad_fit_option_is_refused(name, value):
    """FAULTS 64."""
    options = {"steps": 1, "progress": False, name: value}
    with pytest.raises(pf.DomainError, match=f"fit: expected {name}"):
        pf.fit(normal_model, pf.AutoFlow(normal_model), normal_data(), **options)


def test_nan_in_the_data_of_a_later_fit_is_refused():
    """FAULTS 56."""
    y = normal_data()
    guide = pf.AutoFlow(normal_model)
    guide.initialise(y)
    y[3] = NAN
    with pytest.raises(pf.NonFiniteError, match=r"fit: .*'y'.*1 NaN among 20"):
        pf.fit(normal_model, guide, y, steps=1, progress=False)


def test_nothing_to_train_is_refused():
    def guide():
        pyro.sample("a", dist.Normal(0.0, 1.0))

    def model():
        pyro.sample("a", dist.Normal(0.0, 1.0))

    with pytest.raises(pf.DomainError, match="parameters to train"):
        pf.fit(model, guide, steps=1, progress=False)
    frozen = pf.AutoFlow(model)
    frozen.initialise()
    with pytest.raises(pf.DomainError, match="requires_grad_"):
        pf.fit(model, frozen.requires_grad_(False), steps=1, progress=False)


def test_guide_that_was_not_set_up_says_so():
    guide = pf.AutoFlow(normal_model)
    for method in (guide.get_transform, guide.get_base_dist, guide.get_posterior):
        with pytest.raises(pf.DomainError, match=re.escape("guide.initialise(*args)")):
            method()


@pytest.mark.parametrize("levels", [[-0.1], [1.5], [[0.1]], 0.5])
def test_bad_quantile_levels_are_refused(levels):
    with pytest.raises(pf.DomainError, match="between 0 and 1"):
        pf.AutoFlow(normal_model).quantiles(levels, normal_data())


def test_data_that_changed_their_size_are_refused_by_pyro_or_us():
    """FAULTS 54."""

    def model(y):
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    guide = pf.AutoFlow(model)
    guide.initialise(normal_data(5))
    with pytest.raises(pf.DomainError, match="rows"):
        pf.fit(model, guide, normal_data(6), steps=1, progress=False)
