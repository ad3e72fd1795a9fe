"""Files of runs that are refused, and leave everything as it was."""

import math

import faults
import pyro
import pyro.distributions as dist
import pytest
import torch
from fits import fit, guide_for, have_their_own_memory, same
from models import normal_data, normal_model
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset

import pyro_flows as pf
from pyro_flows.checkpoint import read_checkpoint, write_checkpoint
from pyro_flows.errors import CheckpointError


def stop_at(step):
    return lambda info: info.step == step


def sgd(tensors):
    return torch.optim.SGD(tensors, lr=1e-3, momentum=0.9)


def loader(y):
    return DataLoader(TensorDataset(y), batch_size=4)


@pytest.fixture
def saved(tmp_path):
    """Return the file of a run of 10 of 20 steps."""
    y = normal_data()
    options = {"checkpoint": tmp_path / "run", "callbacks": [stop_at(10)]}
    fit(normal_model, guide_for(normal_model, y), y, **options)
    return tmp_path / "run"


def assert_refused(path, words, model=normal_model, guide=None, args=None, **options):
    """Resume; nothing of the guide must have changed after the refusal."""
    args = (normal_data(),) if args is None else args
    guide = guide or guide_for(model, *args, seed=1)
    before = {name: tensor.clone() for name, tensor in guide.state_dict().items()}
    with pytest.raises(CheckpointError, match=words) as caught:
        fit(model, guide, *args, **{**options, "checkpoint": path, "resume": True})
    assert str(path) in str(caught.value)
    assert list(before) == list(guide.state_dict())
    assert same(list(before.values()), list(guide.state_dict().values()))
    assert have_their_own_memory(guide)
    assert (guide.training, guide.gradient) == (True, "path")


@pytest.mark.parametrize("part", range(8))
def test_damaged_file_is_refused(part, saved):
    """FAULTS 68."""
    size = saved.stat().st_size
    faults.flip_bit(saved, part * size // 8 + 3, part)
    assert_refused(saved, "^read_checkpoint: expected .*; got")


def test_truncated_file_and_a_foreign_one_are_refused(saved):
    """FAULTS 68, 71."""
    saved.write_bytes(saved.read_bytes()[:-1])
    assert_refused(saved, "bytes where its header tells of")
    write_checkpoint(saved, {"w": torch.ones(2)}, {}, kind="guide")
    assert_refused(saved, "kind 'run' in .*; got one of kind 'guide'")
    torch.save({}, saved)
    assert_refused(saved, "never loaded, since it can run code")


OTHER_OPTIONS = {
    "steps": (30, "steps=20 for 30"),
    "particles": (32, "particles=256 for 32, particle_chunk=256 for 32"),
    "particle_chunk": (8, "particle_chunk=256 for 8"),
    "lr": (0.02, r"lr=0\.01 for 0\.02"),
    "clip_norm": (1.0, r"clip_norm=10\.0 for 1\.0"),
    "num_importance": (2, "num_importance=1 for 2"),
    "gradient": ("total", "gradient=None for 'total'"),
    "stop_early": (False, "stop_early=True for False"),
    "scheduler": (lambda o: LambdaLR(o, lambda _: 1.0), "scheduler='none' for 'LambdaLR'"),
    "optimizer": (sgd, r"optimizer='FlatAdam\(\)' for 'SGD\(.*lr=0\.001,.* momentum=0\.9"),
}


@pytest.mark.parametrize("name", OTHER_OPTIONS)
def test_run_with_other_options_is_refused(name, saved):
    """FAULTS 71: with both values."""
    value, words = OTHER_OPTIONS[name]
    assert_refused(saved, rf"with the same options in .*; got .*{words}", **{name: value})


def renamed(y):
    mu = pyro.sample("nu", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def wider(y):
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu.sum(-1, keepdim=True), 1.0), obs=y)


def test_run_of_another_model_or_other_data_is_refused(saved):
    """FAULTS 71: even where all tensors would fit."""
    assert_refused(saved, r"shape of 'mu' in the guide=\[\] for None", renamed)
    assert_refused(saved, r"shape of 'mu' in the model=\[\] for \[2\]", wider)
    words = r"shape of 'y' in the model=\[20\] for \[7\]"
    assert_refused(saved, words, args=(normal_data()[:7],))


def test_run_of_another_guide_is_refused(saved):
    """FAULTS 71: missing and unexpected tensors are listed, and those of other sizes."""
    y, auto = normal_data(), pyro.infer.autoguide.AutoNormal(normal_model)
    auto(y)
    with pytest.raises(CheckpointError, match="guide='AutoFlow' for 'AutoNormal'"):
        fit(normal_model, auto, y, checkpoint=saved, resume=True)
    planar = guide_for(normal_model, y, flow="planar")
    words = r"missing: 'parameters/guide\.flow.*; unexpected: .*'parameters/guide\.flow"
    assert_refused(saved, words, guide=planar)


@pytest.mark.parametrize(("one", "other"), [("iaf", "maf"), ("maf", "nsf"), ("nsf", "realnvp")])
def test_run_of_another_recipe_is_refused(one, other, tmp_path):
    """FAULTS 71."""
    y, path = normal_data(), tmp_path / "run"
    options = {"steps": 1, "particles": 1}
    fit(wider, guide_for(wider, y, flow=one), y, checkpoint=path, **options)
    guide = guide_for(wider, y, flow=other)
    assert_refused(path, "the .* tensors to be restored in", wider, guide, **options)


def test_run_of_a_recipe_of_other_sizes_is_refused(tmp_path):
    """FAULTS 71."""
    y = normal_data()
    guides = [
        guide_for(normal_model, y, flow=lambda d, k=k: pf.flows.planar(d, num_transforms=k))
        for k in (1, 2)
    ]
    fit(normal_model, guides[0], y, checkpoint=tmp_path / "run")
    assert_refused(tmp_path / "run", "missing: 'parameters/guide", guide=guides[1])


def rewritten(path, change):
    """Change a run file's tensors or record in a way that its hash does not tell of."""
    found = read_checkpoint(path, kind="run")
    tensors, record = dict(found.tensors), dict(found.record)
    change(tensors, record)
    write_checkpoint(path, tensors, record, kind="run")


@pytest.mark.parametrize("prefix", ["parameters/", "best/", "good/", "optimizer/"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_run_that_is_not_finite_is_refused(prefix, value, tmp_path):
    """FAULTS 73."""
    y, path = normal_data(), tmp_path / "run"
    options = {"checkpoint": path, "steps": 30}
    fit(normal_model, guide_for(normal_model, y), y, **options)

    def change(tensors, record):
        name = next(name for name in tensors if name.startswith(prefix))
        tensors[name] = torch.full_like(tensors[name], value)

    rewritten(path, change)
    assert_refused(path, f"got NaN or infinite entries: . of . in '{prefix}", steps=30)


UNFIT = {
    "no random state": lambda t, r: r.pop("random"),
    "no loop": lambda t, r: r.pop("loop"),
    "no losses": lambda t, r: t.pop("losses"),
    "no options": lambda t, r: r.pop("options"),
    "no optimizer": lambda t, r: r.pop("optimizer"),
    "no moments": lambda t, r: [t.pop(n) for n in list(t) if n.startswith("optimizer/")],
    "no state kept": lambda t, r: t.pop("good/0"),
    "a state kept too small": lambda t, r: t.update({"good/0": t["good/0"][:2].clone()}),
    "a torch state of zeros": lambda t, r: t.update({"random/cpu": t["random/cpu"] * 0}),
    "another order": lambda t, r: r["order"].reverse(),
    "another schedule": lambda t, r: r["loop"]["schedule"].update(steps=-1),
}


@pytest.mark.parametrize("change", UNFIT.values(), ids=UNFIT)
def test_run_of_another_making_is_refused_and_nothing_is_taken_over(change, saved):
    """FAULTS 71: whatever a later release may write, or leave out."""
    rewritten(saved, change)
    assert_refused(saved, "^fit: expected a run")


def test_run_whose_batches_have_become_fewer_is_refused(tmp_path):
    """FAULTS 69, 71."""
    y = normal_data()
    options = {"checkpoint": tmp_path / "run", "callbacks": [stop_at(4)], "batches": loader(y)}
    fit(normal_model, guide_for(normal_model, y), **options)
    options |= {"batches": loader(y[:8]), "callbacks": [], "resume": True}
    with pytest.raises(CheckpointError, match="the batches of the saved run"):
        fit(normal_model, guide_for(normal_model, y), **options)
