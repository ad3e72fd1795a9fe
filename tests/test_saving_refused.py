"""Files of guides that are refused: damaged, foreign, hostile, or of another guide."""

import math
import time

import faults
import pyro
import pyro.distributions as dist
import pytest
import torch
from fits import affine
from models import normal_data, normal_model, ready, regression_data, regression_model

import pyro_flows as pf
from pyro_flows.checkpoint import read_checkpoint, write_checkpoint
from pyro_flows.errors import CheckpointError
from pyro_flows.infer.saving import load, save


def model():
    scale = pyro.sample("scale", dist.Gamma(3.0, 2.0))
    pyro.sample("simplex", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("rows", 2):
        pyro.sample("effect", dist.Normal(0.0, scale))


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "guide.flow"
    guide = ready(model, start="prior")
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    save(guide, path)
    return path


def rewritten(path, change, kind="guide"):
    """Change a file in a way that its hash does not tell of."""
    found = read_checkpoint(path, kind=kind)
    tensors, record = dict(found.tensors), dict(found.record)
    change(tensors, record)
    write_checkpoint(path, tensors, record, kind=kind)


def assert_refused(path, words, **options):
    with pytest.raises(CheckpointError, match=words) as caught:
        load(path, **{"model": model, "args": (), **options})
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("part", range(8))
def test_damaged_file(part, saved):
    """FAULTS 68."""
    faults.flip_bit(saved, part * saved.stat().st_size // 8 + 3, part)
    assert_refused(saved, "^read_checkpoint: expected .*; got")


def test_truncated_and_foreign_files_and_places_that_are_none(saved, tmp_path):
    """FAULTS 68, 71, 79, 80, 83."""
    marker = tmp_path / "marker"
    saved.write_bytes(saved.read_bytes()[:-1])
    assert_refused(saved, "bytes where its header tells of")
    faults.pickle_bomb(saved, marker)
    assert_refused(saved, "expected a checkpoint of pyro_flows in")
    assert not marker.exists()
    torch.save({"weights": torch.ones(2)}, saved)
    assert_refused(saved, r"never loaded.*torch\.load\(\.\.\., weights_only=True\)")
    write_checkpoint(saved, {}, {}, kind="run")
    assert_refused(saved, "kind 'guide' in .*; got one of kind 'run'")
    assert_refused(tmp_path / "..", "a directory or a device")
    assert_refused(tmp_path / "none", "no file of this name")


def test_a_link_is_replaced_and_its_target_is_left_alone(saved, tmp_path):
    """FAULTS 83."""
    before, link = saved.read_bytes(), tmp_path / "link"
    link.symlink_to(saved)
    save(ready(model, flow="planar", start="prior"), link)
    assert saved.read_bytes() == before
    with pytest.raises(CheckpointError, match="expected to write the file"):
        save(ready(model, flow="planar", start="prior"), tmp_path)


ALLOWED = ["os.system", "builtins.eval", "register", "", "../realnvp", 3, None, ["maf"], {}]


@pytest.mark.parametrize("name", ALLOWED, ids=str)
def test_recipes_come_from_the_list_and_nothing_is_built_before(name, saved, monkeypatch):
    """FAULTS 81."""
    rewritten(saved, lambda t, r: r["recipe"].update(name=name))
    monkeypatch.setattr("pyro_flows.infer.saving.read.assemble", lambda *_: pytest.fail("built"))
    assert_refused(saved, "name to be one of .*'realnvp'.* got .*Register that recipe first")


@pytest.mark.parametrize(
    "recipe", ["os.system", ["realnvp", {}], {"name": "maf"}, {"options": {}}]
)
def test_recipe_that_is_no_record(recipe, saved):
    """FAULTS 81."""
    rewritten(saved, lambda t, r: r.update(recipe=recipe))
    assert_refused(saved, "a record that a guide can be built by")


def test_recipe_that_is_registered_no_more(saved):
    """FAULTS 71: naming those that are."""
    rewritten(saved, lambda t, r: r["recipe"].update(name="deep", options={}))
    assert_refused(saved, r"name to be one of .*; got 'deep'\.")
    load(saved, model=model, args=(), flow="realnvp")


OPTIONS = {
    "not one of its": ({"command": "rm"}, "options of 'realnvp' among .*; got 'command': 'rm'"),
    "nested": ({"hidden_dims": [[8]]}, "got 'hidden_dims'"),
    "a dictionary": ({"hidden_dims": {"a": 1}}, "got 'hidden_dims'"),
    "an infinity": ({"num_transforms": math.inf}, "got 'num_transforms': inf"),
    "negative": ({"num_transforms": -1}, "num_transforms to be an integer >= 1"),
    "of another kind": ({"activation": 7}, "activation"),
    "with a context": ({"context_dim": 2}, "a flow without a context"),
    "other sizes": ({"hidden_dims": [9, 9]}, "other shapes or dtypes: 'transform"),
    "another number": ({"num_transforms": 3}, "unexpected: 'transform"),
    "another activation": ({"activation": "tanh"}, "the same sizes with draws that differ by"),
    "too many to name": ({"hidden_dims": [1] * 5000}, "got 'hidden_dims'"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_are_not_those_of_the_file(case, saved):
    """FAULTS 71, 81."""
    options, words = OPTIONS[case]
    rewritten(saved, lambda t, r: r["recipe"]["options"].update(options))
    assert_refused(saved, words)


BOMBS = {
    "layers": {"num_transforms": 10**6},
    "more layers than memory": {"num_transforms": 10**15},
    "wide layers": {"hidden_dims": [10**6, 10**6]},
    "a wide layer": {"hidden_dims": [10**7]},
}
SCRIPT = """
import json, resource, sys, pyro, pyro.distributions as dist
from pyro_flows import CheckpointError
from pyro_flows.infer.saving import load
def model():
    pyro.sample("z", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        load(path, model=model, args=())
    except CheckpointError as error:
        print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_options_far_above_what_the_file_holds_take_no_memory(tmp_path):
    """FAULTS 82."""
    guide = ready(
        lambda: pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1)), flow="iaf"
    )
    paths = [tmp_path / name for name in BOMBS]
    for path, options in zip(paths, BOMBS.values(), strict=True):
        save(guide, path)
        rewritten(path, lambda t, r, options=options: r["recipe"]["options"].update(options))
    began = time.monotonic()
    *refusals, megabytes = faults.run_script(SCRIPT, *paths).strip().splitlines()
    assert len(refusals) == len(BOMBS)
    assert all("of a flow of" in words or "numbers up to" in words for words in refusals)
    assert int(megabytes) < 400
    assert time.monotonic() - began < 60


UNFIT = {
    "no recipe": lambda t, r: r.pop("recipe"),
    "no sites": lambda t, r: r.pop("sites"),
    "a site of negative size": lambda t, r: r["sites"][0].update(unconstrained_shape=[-3]),
    "a site of half a size": lambda t, r: r["sites"][0].update(shape=[0.5]),
    "a site without a name": lambda t, r: r["sites"][0].pop("name"),
    "a site of 1e15 numbers": lambda t, r: r["sites"][0].update(unconstrained_shape=[10**15]),
    "parents that are no names": lambda t, r: r.update(parents={"effect": [1]}),
    "parents that have no parents": lambda t, r: r.update(parents={"effect": ["scale"]}),
    "no parents": lambda t, r: r.pop("parents"),
    "another dtype": lambda t, r: r.update(dtype="float64"),
    "no dtype": lambda t, r: r.update(dtype="object"),
    "no gradient": lambda t, r: r.pop("gradient"),
    "another gradient": lambda t, r: r.update(gradient="none"),
    "no draws": lambda t, r: t.pop("probe/eps"),
    "draws of another size": lambda t, r: t.update({"probe/draws": torch.ones(2)}),
    "a weight less": lambda t, r: t.pop(next(n for n in t if n.startswith("weights/"))),
    "a weight more": lambda t, r: t.update({"weights/x": torch.ones(2)}),
    "other weights": lambda t, r: [w.mul_(1.1) for n, w in t.items() if n.endswith("bias")],
}


@pytest.mark.parametrize("change", UNFIT.values(), ids=UNFIT)
def test_record_of_another_making(change, saved):
    """FAULTS 71: whatever a later release may write, or leave out."""
    rewritten(saved, change)
    assert_refused(saved, "^(load|check_matches): expected ")


def other(*, scale=None, name="simplex", rows=2, size=3, swap=False, dtype=torch.float32):
    def model():
        pyro.sample("scale", scale or dist.Gamma(torch.tensor(3.0, dtype=dtype), 2.0))
        if not swap:
            pyro.sample(name, dist.Dirichlet(torch.ones(size, dtype=dtype)))
        with pyro.plate("rows", rows):
            pyro.sample("effect", dist.Normal(torch.zeros((), dtype=dtype), 1.0))
        if swap:
            pyro.sample(name, dist.Dirichlet(torch.ones(size, dtype=dtype)))

    return model


OTHERS = {
    "a name": ({"name": "weights"}, r"'simplex' of shape \(3,\).* the model has 'weights' of"),
    "an order": ({"swap": True}, "'scale'.*, 'simplex'.* the model has 'scale'.*, 'effect'"),
    "a plate": ({"rows": 3}, r"'effect' of shape \(2,\) .*'effect' of shape \(3,\)"),
    "a size": ({"size": 4}, r"\(3,\) by \(2,\) in Simplex\(\) .*\(4,\) by \(3,\)"),
    "a support": (
        {"scale": dist.Uniform(0.0, 2.0)},
        r"lower_bound=0\) where .*Interval\(lower_bound=0, upper_bound=2\)",
    ),
    "a dtype": ({"dtype": torch.float64}, "tensors of float32 where the model has .*float64"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_model_of_other_latents_is_refused_and_the_right_one_can_follow(case, saved):
    """FAULTS 71: naming both sides, at once or at the first call."""
    options, words = OTHERS[case]
    assert_refused(saved, words, model=other(**options))
    lazy = load(saved, model=other(**options))
    for _ in range(2):
        with pytest.raises(CheckpointError, match=words):
            lazy()
        assert lazy.prototype_trace is None
    assert not list(pyro.get_param_store())


def test_data_of_another_size_are_refused_and_the_right_ones_can_follow(tmp_path):
    """FAULTS 71."""
    x, y = regression_data()
    guide = ready(regression_model, x, y, start="prior")
    save(guide, tmp_path / "guide")
    loaded = load(tmp_path / "guide", model=regression_model)
    with pytest.raises(
        CheckpointError, match=r"shape \(4,\).* the model has 'beta' of shape \(3,"
    ):
        loaded.initialise(x[:, :3], y)
    loaded.initialise(x[:9], y[:9])
    assert torch.equal(loaded.median()["beta"], guide.median()["beta"])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite(value, tmp_path):
    """FAULTS 73: unless they are asked for, on both ways."""
    y = normal_data()
    guide = ready(normal_model, y, start="prior", flow="planar")
    with torch.no_grad():
        next(guide.parameters()).fill_(value)
    path = tmp_path / "guide"
    with pytest.raises(pf.NonFiniteError, match=r"save: expected finite weights.*'weights/transf"):
        save(guide, path)
    assert not path.exists()
    save(guide, path, allow_non_finite=True)
    assert_refused(path, "NaN or infinite entries", model=normal_model, args=(y,))
    loaded = load(path, model=normal_model, args=(y,), allow_non_finite=True)
    for ours, theirs in zip(guide.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(ours.isfinite(), theirs.isfinite())


def test_what_cannot_be_saved_or_loaded(saved, tmp_path):
    path = tmp_path / "new"
    with pytest.raises(pf.DomainError, match="expected the guide to be set up"):
        save(pf.AutoFlow(model), path)
    with pytest.raises(
        pf.DomainError, match="expected an AutoFlow, an AutoPlateFlow or a Flow; got"
    ):
        save(pyro.infer.autoguide.AutoNormal(model), path)
    with pytest.raises(pf.DomainError, match="expected a model, to load its guide, or a recipe"):
        load(saved)
    with pytest.raises(CheckpointError, match=r"kind 'flow' in .*; got one of kind 'guide'"):
        load(saved, flow="maf")
    save(ready(model, flow=affine, start="prior"), path)
    with pytest.raises(CheckpointError, match="the same sizes with log-densities that"):
        load(path, model=model, args=(), flow=shifted)


def shifted(input_dim):
    base = dist.Normal(torch.full((input_dim,), 0.1), 1.0).to_event(1)
    return pf.Flow(pf.transforms.ElementwiseAffine(input_dim), base=base)


@pytest.mark.parametrize(
    "record", [{}, {"input_dim": 10**12, "dtype": "float32"}, {"input_dim": 3}]
)
def test_flow_of_another_making(record, tmp_path):
    """FAULTS 71, 82."""
    path = tmp_path / "flow"
    save(pf.flows.maf(3), path)
    rewritten(path, lambda t, r: (r.clear(), r.update(record)), kind="flow")
    assert_refused(path, "^load: expected", model=None, args=None, flow="maf")
