"""Runs in a file, continued bit for bit."""

import logging
import random

import faults
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from fits import Watched, fit, guide_for, parameters, same
from models import normal_data, normal_model
from torch.optim.lr_scheduler import MultiStepLR, OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset

from pyro_flows.checkpoint import read_checkpoint


def subsampling_model(y):
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 3.0))
    with pyro.plate("data", len(y), subsample_size=5) as index:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y[index])


def learning_model(y):
    sd = pyro.param("sd", y.new_ones(()), constraint=dist.constraints.positive)
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 3.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, sd), obs=y)


class Centred(torch.nn.Module):
    """A model with a parameter and a buffer that counts its calls."""

    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.tensor(0.5))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, y):
        self.calls += 1
        mu = pyro.sample("mu", dist.Normal(self.shift, 3.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


class Shuffled:
    """Batches in an order that Python's and numpy's generators choose at each pass."""

    def __init__(self, y):
        self.y = y

    def __iter__(self):
        order = list(range(4))
        random.shuffle(order)
        np.random.shuffle(order)  # noqa: NPY002
        return (self.y[4 * k : 4 * k + 4] for k in order)


def sgd(tensors):
    return torch.optim.SGD(tensors, lr=1e-3, momentum=0.9)


def loader(y, **options):
    return DataLoader(TensorDataset(y), batch_size=4, **options)


def own_generator(y):
    return loader(y, shuffle=True, generator=torch.Generator().manual_seed(3))


# What differs from a plain fit: the model, the optimiser, or further options.
CASES = {
    "plain": {},
    "subsampled": {"model": subsampling_model},
    "a parameter in the store": {"model": learning_model},
    "a module": {"model": Centred},
    "momentum": {"make": sgd},
    "amsgrad": {"make": lambda t: torch.optim.Adam(t, lr=1e-2, amsgrad=True)},
    "one cycle": {"scheduler": lambda o: OneCycleLR(o, max_lr=0.1, total_steps=20)},
    "milestones": {"make": sgd, "scheduler": lambda o: MultiStepLR(o, [5, 12], gamma=0.5)},
    "on a plateau": {"scheduler": lambda o: ReduceLROnPlateau(o, patience=1)},
    "a list": {"batches": lambda y: [y[:7], y[7:14], y[:7]]},
    "a loader": {"batches": loader},
    "a shuffled loader": {"batches": lambda y: loader(y, shuffle=True)},
    "a loader with a generator": {"batches": own_generator},
    "shuffled otherwise": {"batches": Shuffled},
    "chunks": {"particle_chunk": 128},
    "importance": {"num_importance": 4},
}


def stop_at(step):
    return lambda info: info.step == step


def run(case, dtype=torch.float64, stop=None, **options):
    """Fit from the global random state; return all that a fit leaves behind."""
    case, y = dict(case), normal_data(dtype=dtype)
    model = case.pop("model", normal_model)
    model = model() if isinstance(model, type) else model
    pyro.clear_param_store()
    guide = guide_for(model, y)
    watched = Watched(guide, case.pop("make", None))
    batches = case.pop("batches", lambda y: None)(y)
    options |= {**case, **watched.options, "batches": batches, "stop_early": False, "seed": None}
    options["callbacks"] = [watched, *([] if stop is None else [stop_at(stop)])]
    result = fit(model, guide, *([y] if batches is None else []), **options)
    module = [*model.state_dict().values()] if isinstance(model, torch.nn.Module) else []
    return {
        "losses": result.losses.tolist(),
        "chosen": (result.state, result.elbo, result.k_hat, result.status),
        "parameters": [*parameters(guide), *map(torch.clone, module)],
        "store": {name: value.tolist() for name, value in pyro.get_param_store().items()},
        "last": watched.states[-1] if watched.states else watched.state(),
        "steps": [(info.step, info.lr, info.loss, info.norm) for info in watched.infos],
        "draws": (torch.rand(3).tolist(), np.random.rand(), random.random()),  # noqa: NPY002
    }


def seed_all(seed):
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


def in_two_parts(case, path, stop, **options):
    seed_all(5)
    run(case, stop=stop, checkpoint=path, **options)
    seed_all(99)
    return run(case, checkpoint=path, resume=True, **options)


def assert_equal_runs(whole, resumed, stop=0):
    for key in ("losses", "chosen", "store", "draws"):
        assert whole[key] == resumed[key], key
    assert whole["steps"][stop:] == resumed["steps"]
    for key in ("parameters", "last"):
        assert same(whole[key], resumed[key]), key


@pytest.mark.parametrize("case", CASES)
def test_run_in_two_parts_is_the_run_in_one(case, tmp_path):
    """FAULTS 69, 70: 20 steps are 10 and 10, bit for bit, whatever is drawn from where."""
    seed_all(5)
    whole = run(CASES[case])
    assert len(whole["losses"]) == 20
    assert_equal_runs(whole, in_two_parts(CASES[case], tmp_path / "run", 10), 10)


@pytest.mark.parametrize("case", ["plain", "subsampled", "a list"])
@pytest.mark.parametrize("engine", ["eager", "traced"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_run_in_two_parts_on_other_rungs_and_in_other_precision(case, engine, dtype, tmp_path):
    """FAULTS 69: interrupted within the decay, when the average has begun."""
    options = {"engine": engine, "dtype": dtype}
    seed_all(5)
    whole = run(CASES[case], **options)
    assert_equal_runs(whole, in_two_parts(CASES[case], tmp_path / "run", 17, **options), 17)


@pytest.mark.parametrize("stops", [(1, 2, 3), (5, 19, 20), (4, 8, 16)])
def test_run_in_many_parts(stops, tmp_path):
    """FAULTS 69: also where a part ends with a pass over the batches."""
    case, path = CASES["a shuffled loader"], tmp_path / "run"
    seed_all(5)
    whole = run(case)
    seed_all(5)
    for stop in stops:
        run(case, stop=stop, checkpoint=path, resume=True)
        seed_all(stop)
    assert_equal_runs(whole, run(case, checkpoint=path, resume=True), max(stops))


def test_run_with_skipped_steps_and_a_roll_back_in_two_parts(tmp_path):
    """FAULTS 48, 69."""
    model, batches = faults.nan_model({1, *range(30, 80)}, "factor")

    def run_model(**options):
        guide = guide_for(model, *batches[0])
        items = [*batches, *[batches[0]] * 20]
        result = fit(model, guide, steps=90, batches=items, stop_early=False, **options)
        return result, parameters(guide)

    whole, last = run_model()
    for stop in (40, 79, 81):
        path = tmp_path / str(stop)
        run_model(checkpoint=path, callbacks=[stop_at(stop)])
        resumed, parts = run_model(checkpoint=path, resume=True)
        assert np.array_equal(resumed.losses, whole.losses, equal_nan=True)
        assert (resumed.skipped_steps, resumed.restarts) == (51, 1)
        assert same(parts, last)


def test_finished_run_is_handed_back_at_once(tmp_path):
    """FAULTS 69."""
    case, path = CASES["plain"], tmp_path / "run"
    seed_all(5)
    whole = run(case, checkpoint=path)
    seed_all(99)
    again = run(case, checkpoint=path, resume=True)
    assert again["steps"] == []
    assert_equal_runs(whole, again, 20)


def test_without_a_file_a_run_begins_anew(tmp_path, caplog):
    """FAULTS 69."""
    caplog.set_level(logging.INFO, logger="pyro_flows")
    seed_all(5)
    whole = run(CASES["plain"])
    seed_all(5)
    assert_equal_runs(whole, run(CASES["plain"], checkpoint=tmp_path / "run", resume=True))
    assert "so the run begins anew" in caplog.text
    assert (tmp_path / "run").is_file()


def test_without_resume_a_file_is_replaced(tmp_path):
    for steps in (5, 6):
        run(CASES["plain"], steps=steps, checkpoint=tmp_path / "run")
        found = read_checkpoint(tmp_path / "run", kind="run", allow_non_finite=["losses"])
        assert len(found.tensors["losses"]) == steps


@pytest.mark.parametrize(("every", "saves"), [(1e-9, [0, 1, 2, 3]), (1e9, [0, 0, 0, 0])])
def test_run_is_saved_every_so_many_seconds(every, saves, tmp_path):
    path, seen = tmp_path / "run", []

    def look(info):
        found = path.exists() and read_checkpoint(path, kind="run").tensors["losses"]
        seen.append(0 if found is False else len(found))

    y = normal_data()
    options = {"checkpoint": path, "checkpoint_every": every, "callbacks": [look]}
    fit(normal_model, guide_for(normal_model, y), y, steps=4, **options)
    assert seen == saves
    assert len(read_checkpoint(path, kind="run").tensors["losses"]) == 4
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
