"""Guides and flows in files: what is loaded is what was saved."""

import copy
import hashlib
import os
import pickle
from functools import partial

import faults
import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo
from fits import affine
from models import (
    constrained_model,
    hierarchical_model,
    normal_data,
    ready,
    regression_data,
    regression_model,
)
from pyro.infer import SVI, Predictive, Trace_ELBO

import pyro_flows as pf
from pyro_flows.checkpoint import read_checkpoint
from pyro_flows.infer.saving import load, save

RECIPES = sorted(zoo.RECIPES)


def bent(model, *args, **options):
    """Return a guide that is set up, its weights away from where they start."""
    guide = ready(model, *args, **{"start": "prior", **options})
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return guide


def assert_same(one, other, *args):
    """Compare draws from a seed, their sites, the density, and medians, bit for bit."""
    for guide in (one, other):
        guide._drawn = []
        for seed in range(3):
            pyro.set_rng_seed(seed)
            guide._drawn += list(guide(*args).items())
    for (name, value), (same_name, same_value) in zip(one._drawn, other._drawn, strict=True):
        assert name == same_name
        assert torch.equal(value, same_value)
    z = one.get_posterior().sample((20,))
    assert torch.equal(one.get_posterior().log_prob(z), other.get_posterior().log_prob(z))
    assert all(torch.equal(other.median()[name], value) for name, value in one.median().items())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "guide.flow"


@pytest.mark.parametrize("flow", RECIPES)
def test_every_recipe_and_support_comes_back_bit_for_bit(flow, path):
    """FAULTS 39: masks and permutations come from the file."""
    guide = bent(constrained_model, flow=flow)
    save(guide, path)
    pyro.set_rng_seed(17)
    loaded = load(path, model=constrained_model, args=())
    assert_same(guide, loaded)
    assert (loaded.origin, loaded.gradient) == (guide.origin, "path")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_both_dtypes_and_a_guide_that_is_set_up_by_its_first_call(dtype, default, path):
    """FAULTS 8."""
    x, y = regression_data(dtype=dtype)
    guide = bent(regression_model, x, y, flow="iaf", gradient="total")
    save(guide, path)
    torch.set_default_dtype(default)
    loaded = load(path, model=regression_model)
    with pytest.raises(pf.DomainError, match="to be set up"):
        loaded.get_posterior()
    assert loaded(x, y)["beta"].dtype == dtype
    assert_same(guide, loaded, x, y)
    assert loaded.gradient == "total"


@pytest.mark.parametrize("twin", [lambda guide: guide, copy.deepcopy], ids=["as is", "copied"])
def test_fit_goes_on_from_the_loaded_weights(twin, path):
    x, y = regression_data()
    guide = bent(regression_model, x, y, flow=partial(pf.flows.maf, num_transforms=1))
    save(guide, path)
    loaded = twin(load(path, model=regression_model))
    options = {"particles": 32, "seed": 0, "progress": False, "refine": False}
    options["engine"] = "eager"
    pf.fit(regression_model, loaded, x, y, steps=1, lr=1e-9, **options)
    for ours, theirs in zip(guide.parameters(), loaded.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
    result = pf.fit(regression_model, loaded, x, y, steps=60, lr=0.01, **options)
    assert result.elbo > -result.losses[0] + 1


def test_svi_trains_a_loaded_guide_beside_the_saved_one(path):
    """FAULTS 41: both are in Pyro's store, under names of their own."""
    x, y = regression_data()
    guide = bent(regression_model, x, y)
    elbo, adam = Trace_ELBO(8, vectorize_particles=True), pyro.optim.Adam({"lr": 0.1})
    SVI(regression_model, guide, adam, elbo).step(x, y)
    save(guide, path)
    kept = copy.deepcopy(guide.state_dict())
    loaded = load(path, model=regression_model)
    SVI(regression_model, loaded, adam, elbo).step(x, y)
    assert all(torch.equal(kept[name], value) for name, value in guide.state_dict().items())
    moved = [not torch.equal(kept[name], value) for name, value in loaded.named_parameters()]
    assert len(moved) > 10
    assert all(moved)
    draws = Predictive(regression_model, guide=loaded, num_samples=3)(x, y)
    assert draws["y"].shape == (3, len(y))


def test_options_registered_recipes_and_functions(path):
    y = normal_data(12).reshape(4, 3)
    pf.flows.register("saved_narrow", lambda d, width=8: pf.flows.iaf(d, hidden_dims=(width,)))
    for flow in (
        partial(pf.flows.planar, num_transforms=3),
        partial(pf.flows.nsf, hidden_dims=(16, 8), kind="coupling", bound=3),
        partial(pf.flows.bnaf, hidden_factors=(4,)),
        "saved_narrow",
        pf.flows.maf,
    ):
        guide = bent(hierarchical_model, y, flow=flow)
        save(guide, path)
        loaded = load(path, model=hierarchical_model, args=(y,))
        assert_same(guide, loaded, y)
        save(loaded, path.with_name("again"))
        assert path.with_name("again").read_bytes() == path.read_bytes()


def test_function_is_brought_again(path):
    guide = bent(constrained_model, flow=affine)
    save(guide, path)
    with pytest.raises(pf.CheckpointError, match=r"expected flow=.*'affine'.*flow=make_flow"):
        load(path, model=constrained_model, args=())
    assert_same(guide, load(path, model=constrained_model, args=(), flow=affine))


def test_couplings_of_the_hierarchy_are_the_saved_ones(path):
    """A later model may hide what depends on what; its latents are the same."""
    y = normal_data(12).reshape(4, 3)

    def flat(y):
        pyro.sample("mean", dist.Normal(0.0, 5.0))
        pyro.sample("spread", dist.HalfNormal(5.0))
        with pyro.plate("schools", y.shape[0], dim=-2):
            pyro.sample("effect", dist.Normal(0.0, 1.0).expand([y.shape[0], 1]))

    guide = bent(hierarchical_model, y)
    assert len(guide.flow.transform.parts) > len(
        ready(flat, y, start="prior").flow.transform.parts
    )
    save(guide, path)
    loaded = load(path, model=flat, args=(y,))
    assert_same(guide, loaded, y)
    assert loaded.parents == guide.parents
    assert guide.parents["effect"] == {"mean", "spread"}


NAMES = [
    "a/b",
    "ünï ☃ \U0001f600",
    "n" * 10_000,
    'quote " \\',
    "line\nbreak",
    "__metadata__",
    "\ud800",
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name[:12]))
def test_odd_names_of_sites_come_back(name, path):
    """FAULTS 84."""

    def model():
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        pyro.sample(name, dist.Normal(0.0, scale))

    guide = bent(model, flow=affine)
    save(guide, path)
    loaded = load(path, model=model, args=(), flow=affine)
    assert_same(guide, loaded)
    assert loaded.parents[name] == {"scale"}


def test_nothing_global_changes(path):
    """FAULTS 44."""
    guide = bent(constrained_model)
    before = torch.get_rng_state()
    save(guide, path)
    load(path, model=constrained_model, args=()).median()
    assert torch.equal(torch.get_rng_state(), before)
    assert not list(pyro.get_param_store())


def test_file_holds_no_data_and_a_lazy_guide_pickles(path):
    """FAULTS 38."""
    x, y = regression_data()
    guide = bent(regression_model, x, y)
    guide(x, y)
    save(guide, path)
    data = path.read_bytes()
    assert not [v for v in (x, y) if v.numpy().tobytes()[:32] in data]
    loaded = load(path, model=regression_model)
    assert pickle.loads(pickle.dumps(loaded)).prototype_trace is None
    loaded.initialise(x, y)
    bare = pickle.loads(pickle.dumps(loaded))
    z = torch.randn(5, 4)
    assert torch.equal(bare.get_posterior().log_prob(z), guide.get_posterior().log_prob(z))


SCRIPT = """
import sys, hashlib, torch, pyro
from models import hierarchical_model, normal_data
from pyro_flows.infer.saving import load
y = normal_data(12).reshape(4, 3)
guide = load(sys.argv[1], model=hierarchical_model, args=(y,))
pyro.set_rng_seed(5)
print(hashlib.sha256(guide.get_posterior().sample((9,)).numpy().tobytes()).hexdigest())
"""


def test_another_process_draws_the_same(path):
    """FAULTS 74."""
    y = normal_data(12).reshape(4, 3)
    guide = bent(hierarchical_model, y)
    save(guide, path)
    pyro.set_rng_seed(5)
    ours = hashlib.sha256(guide.get_posterior().sample((9,)).numpy().tobytes()).hexdigest()
    assert faults.run_script(SCRIPT, path).strip() == ours


def bounded(low):
    pyro.sample("u", dist.Uniform(low, low + 2).to_event(1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_guide_of_a_gpu_loads_on_the_cpu_and_back(path):
    """FAULTS 72."""
    guide = bent(bounded, torch.ones(3, device="cuda"))
    save(guide, path)
    on_cpu = load(path, model=bounded, args=(torch.ones(3),))
    assert {p.device.type for p in on_cpu.parameters()} == {"cpu"}
    assert torch.allclose(on_cpu.median()["u"], guide.median()["u"].cpu(), atol=1e-4)
    on_gpu = load(path, model=bounded, args=(torch.ones(3, device="cuda"),))
    assert {p.device.type for p in on_gpu.parameters()} == {"cuda"}
    posterior = on_gpu.as_distribution()
    assert posterior.to("cpu").sample_sites((5,))["u"].device.type == "cpu"


def test_file_names_no_device(path):
    """FAULTS 72: neither do tensors that bound a support."""
    guide = bent(bounded, torch.ones(3))
    save(guide, path)
    assert "device" not in str(read_checkpoint(path, kind="guide").record)
    assert all(
        t.device.type == "cpu" for t in read_checkpoint(path, kind="guide").tensors.values()
    )
    assert_same(guide, load(path, model=bounded, args=(torch.ones(3),)), torch.ones(3))


@pytest.mark.parametrize("flow", RECIPES)
def test_flows_come_back(flow, path):
    built = pf.flows.find(flow)(3).double()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    save(built, path)
    loaded = load(path, flow=flow)
    x = built.sample((6,))
    assert torch.equal(loaded.log_prob(x), built.log_prob(x))


FULL = """
import sys, faults, torch
from models import constrained_model, ready
from pyro_flows import CheckpointError
from pyro_flows.infer.saving import save
guide = ready(constrained_model, start="prior")
faults.full_disk(5000)
try:
    save(guide, sys.argv[1])
except CheckpointError as error:
    print(error)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX limits")
def test_full_disk_leaves_the_former_guide(path):
    """FAULTS 67."""
    guide = bent(constrained_model)
    save(guide, path)
    assert "expected to write the file" in faults.run_script(FULL, path)
    assert os.listdir(path.parent) == [path.name]
    assert_same(guide, load(path, model=constrained_model, args=()))


def test_name_that_made_a_guide_loads_it(tmp_path):
    """A guide's splines by name are others than a density's."""
    args = (torch.randn(8, 2),)
    guide = pf.AutoFlow(hierarchical_model, "nsf", start="prior")
    guide.initialise(*args)
    save(guide, tmp_path / "guide")
    loaded = load(tmp_path / "guide", model=hierarchical_model, args=args, flow="nsf")
    assert all(map(torch.equal, loaded.parameters(), guide.parameters()))
