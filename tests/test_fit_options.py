"""The options of a fit: what they do, and what is refused."""

import copy
import dataclasses
import inspect
import logging
import math
import pickle
import re

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import safetensors.torch
import torch
from fits import Watched, fit, guide_for, have_their_own_memory, parameters, same
from models import normal_data, normal_model, normal_posterior
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

import pyro_flows as pf
from pyro_flows.infer.training.options import FitOptions
from pyro_flows.infer.training.schedule import Schedule

Y = normal_data()


def not_finite(name, kind=">"):
    return rf"{name} to be a finite number {kind} 0"


def generator():
    yield Y


# Option, value, what the message must say.
BAD = [
    *(("steps", value, "steps to be an integer >= 1") for value in (0, -3, 2.5, math.nan, True)),
    *(
        ("particles", value, "particles to be an integer >= 1")
        for value in (0, -1, 1.0, "8", None)
    ),
    *(("lr", value, not_finite("lr")) for value in (0.0, -1.0, math.nan, math.inf, [0.1])),
    ("lr", "fast", "lr to be one of 'search'; got 'fast'"),
    *(
        ("clip_norm", value, not_finite("clip_norm"))
        for value in (0, -1, math.nan, math.inf, None)
    ),
    *(("num_importance", value, "an integer >= 1") for value in (0, -2, 1.5, None)),
    ("num_importance", 3, "particles=256, particle_chunk=None, num_importance=3"),
    *(("particle_chunk", value, "an integer >= 1") for value in (0, -2, 1.5, "4")),
    ("particle_chunk", 5, "a multiple of particle_chunk, .*; got particles=256, particle_chunk=5"),
    *(("checkpoint_every", v, not_finite("checkpoint_every")) for v in (0, -1, math.nan, "often")),
    ("engine", "jit", "one of 'auto', 'eager', 'traced', 'compiled'; got 'jit'"),
    ("gradient", "score", "one of 'path', 'total', 'dreg'; got 'score'"),
    ("seed", -1, "seed to be an integer >= 0"),
    ("seed", 0.5, "seed to be an integer >= 0"),
    ("callbacks", print, "callbacks to be a list of functions"),
    ("callbacks", None, "callbacks to be a list of functions"),
    ("callbacks", (print for _ in range(2)), "callbacks to be a list of functions"),
    ("callbacks", [3], r"callbacks\[0\] to be a function; got 3"),
    ("checkpoint", 3, "checkpoint to be a path; got 3"),
    ("resume", True, "a path as checkpoint, to resume from; got none"),
    ("optimizer", "adam", "optimizer to be a function; got 'adam'"),
    ("optimizer", torch.optim.SGD([torch.ones(1)], lr=0.1), "optimizer to be a function"),
    ("optimizer", pyro.optim.Adam({"lr": 0.1}), "to return an optimiser of torch's; got None"),
    ("optimizer", lambda t: t, "to return an optimiser of torch's"),
    ("optimizer", lambda t: torch.optim.SGD([t[0].clone()], lr=0.1), "which would train nothing"),
    ("optimizer", torch.optim.LBFGS, "steps by one gradient; got LBFGS"),
    ("scheduler", 0.1, "scheduler to be a function; got 0.1"),
    ("scheduler", lambda o: o, "scheduler to return a scheduler of torch's"),
    ("batches", [Y], "got 1 arguments and batches of type list"),
]


@pytest.mark.parametrize(("name", "value", "words"), BAD)
def test_bad_option_is_refused(name, value, words):
    """FAULTS 64: with what was expected, and before anything is changed."""
    guide = guide_for(normal_model, Y)
    before = parameters(guide)
    with pytest.raises(pf.errors.DomainError, match=rf"(?s)^fit: expected .*{words}.*\.$"):
        fit(normal_model, guide, Y, **{name: value})
    assert same(parameters(guide), before)
    assert have_their_own_memory(guide)


BAD_TOGETHER = {
    "lr and optimizer": ({"lr": 0.1, "optimizer": torch.optim.Adam}, "got both"),
    "path and importance": (
        {"gradient": "path", "num_importance": 4},
        "unbiased gradient of the importance-weighted bound",
    ),
    "chunk and importance": ({"particle_chunk": 8, "num_importance": 16}, "num_importance=16"),
}


@pytest.mark.parametrize("case", BAD_TOGETHER)
def test_options_that_do_not_go_together_are_refused(case):
    """FAULTS 64."""
    options, words = BAD_TOGETHER[case]
    with pytest.raises(pf.errors.DomainError, match=rf"^fit: expected .*{words}"):
        pf.fit(
            normal_model, guide_for(normal_model, Y), Y, particles=16, progress=False, **options
        )


@pytest.mark.parametrize("batches", [3, generator(), iter([Y]), [], DataLoader([])])
def test_batches_that_cannot_be_iterated_over_and_over_are_refused(batches):
    """FAULTS 64: a generator would be at its end in the middle of the run."""
    with pytest.raises(pf.errors.DomainError, match=r"^fit: expected .*batches.*; got"):
        fit(normal_model, guide_for(normal_model, Y), batches=batches)


def test_batches_that_come_to_an_end_are_refused():
    """FAULTS 64."""

    class Once:
        passes = 0

        def __iter__(self):
            self.passes += 1
            return iter([Y] * (self.passes < 3))

    guide = guide_for(normal_model, Y)
    with pytest.raises(pf.errors.DomainError, match="at least one batch in each pass"):
        fit(normal_model, guide, batches=Once())
    assert have_their_own_memory(guide)


@pytest.mark.parametrize("path", ["", "missing/run", "."])
def test_file_that_cannot_be_written_is_refused_before_the_run(path, tmp_path, monkeypatch):
    """FAULTS 64: and not after it."""
    monkeypatch.chdir(tmp_path)
    steps = []
    with pytest.raises(pf.errors.CheckpointError, match=r"^fit: expected to be able to write"):
        fit(normal_model, guide_for(normal_model, Y), Y, checkpoint=path, callbacks=[steps.append])
    assert not steps


def test_guide_without_path_gradients_takes_the_total_one_alone():
    guide = pyro.infer.autoguide.AutoNormal(normal_model)
    assert fit(normal_model, guide, Y, gradient="total").steps == 20
    with pytest.raises(pf.errors.DomainError, match="a guide with path gradients"):
        fit(normal_model, guide, Y, gradient="dreg")


def test_rung_that_the_model_cannot_reach_is_refused():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        scale = 1.0 if float(mu.mean()) > -100.0 else 2.0
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, scale), obs=y)

    guide = guide_for(model, Y)
    with pytest.raises(pf.errors.DomainError, match="can be recorded, for engine='traced'; got"):
        fit(model, guide, Y, engine="traced")
    assert have_their_own_memory(guide)
    assert fit(model, guide, Y).engine == "eager"


def test_numbers_of_numpy_and_torch_are_numbers(tmp_path):
    """Also for the file of a run, which holds the options."""
    numbers = {"steps": np.int64(5), "particles": torch.tensor(8), "lr": np.float32(0.5)}
    numbers |= {"clip_norm": torch.tensor(1.0), "checkpoint": tmp_path / "run"}
    result = fit(normal_model, guide_for(normal_model, Y), Y, **numbers)
    assert (result.steps, result.lr) == (5, 0.5)


OPTIMIZERS = {
    "Adam": lambda t: torch.optim.Adam(t, lr=0.1),
    "AdamW": lambda t: torch.optim.AdamW(t, lr=0.1, weight_decay=1e-4),
    "SGD": lambda t: torch.optim.SGD(t, lr=1e-2, momentum=0.5),
    "RMSprop": lambda t: torch.optim.RMSprop(t, lr=0.05),
    "Adagrad": lambda t: torch.optim.Adagrad(t, lr=0.5),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("engine", ["eager", "traced"])
def test_any_optimiser_of_torch_reaches_the_posterior(name, engine):
    guide = guide_for(normal_model, Y)
    options = {"optimizer": OPTIMIZERS[name], "steps": 150, "engine": engine}
    result = fit(normal_model, guide, Y, **options)
    assert result.elbo == pytest.approx(normal_posterior(Y)[2], abs=0.1)


def test_scheduler_sets_the_step_sizes_and_the_fit_leaves_them_alone():
    guide, expected = guide_for(normal_model, Y), []

    def one_cycle(optimizer):
        return lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=20)

    watched = Watched(guide)
    fit(normal_model, guide, Y, scheduler=one_cycle, **watched.options)
    twin = torch.optim.SGD([torch.ones(1)], lr=0.1)
    scheduler = one_cycle(twin)
    for _ in range(20):
        expected.append(twin.param_groups[0]["lr"])
        twin.step()
        scheduler.step()
    assert [info.lr for info in watched.infos] == expected


def test_scheduler_that_looks_at_the_loss_is_told_of_it():
    """The learning rate is so small that no loss is the lowest for long."""
    guide = guide_for(normal_model, Y)
    watched = Watched(guide, lambda t: torch.optim.SGD(t, lr=1e-12))
    options = {"scheduler": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=3, eps=0.0)}
    fit(normal_model, guide, Y, **options, **watched.options)
    sizes = [info.lr for info in watched.infos]
    assert sizes[0] == 1e-12
    assert sizes[-1] < 1e-13


def test_callbacks_are_told_the_right_numbers():
    guide, told = guide_for(normal_model, Y), []

    def callback(info):
        told.append((info, parameters(guide)))

    result = fit(normal_model, guide, Y, steps=30, callbacks=[callback, lambda info: 1.0])
    assert [info.step for info, _ in told] == list(range(1, 31))
    assert {(info.steps, info.engine) for info, _ in told} == {(30, "eager")}
    assert [info.loss for info, _ in told] == result.losses.tolist()
    assert all(0 < info.norm < math.inf for info, _ in told)
    schedule = Schedule(30)
    assert [info.lr for info, _ in told] == [0.01 * schedule.factor(k) for k in range(30)]
    assert not same(told[0][1], told[1][1])


@pytest.mark.parametrize("answer", [True, np.bool_(True)])
def test_callback_that_returns_true_ends_the_run(answer):
    calls = []
    callbacks = [lambda info: answer if info.step == 7 else None, calls.append]
    result = fit(normal_model, guide_for(normal_model, Y), Y, callbacks=callbacks)
    assert (result.status, result.steps, len(calls)) == ("interrupted", 7, 7)
    assert result.reason == "by a callback, after 7 of 20 steps"


@pytest.mark.parametrize("answer", [None, False, 0, 1.0, "no", np.ones(3), torch.ones(2)])
def test_what_else_a_callback_returns_is_of_no_meaning(answer):
    result = fit(normal_model, guide_for(normal_model, Y), Y, callbacks=[lambda info: answer])
    assert result.steps == 20


@pytest.mark.parametrize("how", ["whole", "error", "interrupt"])
def test_guide_is_whole_after_a_fit(how, tmp_path):
    """Whatever ends it: names, memory, files, copies and pickles are as before."""

    def end(info):
        if info.step == 5 and how != "whole":
            raise {"error": ZeroDivisionError, "interrupt": KeyboardInterrupt}[how]

    guide = guide_for(normal_model, Y)
    names = list(guide.state_dict())
    kept = dict(guide.named_parameters())
    try:
        fit(normal_model, guide, Y, callbacks=[end])
    except ZeroDivisionError:
        assert how == "error"
    assert list(guide.state_dict()) == names
    assert all(kept[name] is parameter for name, parameter in guide.named_parameters())
    assert have_their_own_memory(guide)
    assert all(parameter.grad is None for parameter in guide.parameters())
    safetensors.torch.save_file(guide.state_dict(), tmp_path / "guide")
    for twin in (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))):
        assert same(parameters(twin), parameters(guide))
        assert have_their_own_memory(twin)
        with torch.no_grad():
            next(twin.parameters()).add_(1.0)
        assert not same(parameters(twin), parameters(guide))


def records(y):
    return DataLoader(TensorDataset(y, torch.arange(len(y))), batch_size=7)


def test_batches_are_taken_one_after_the_other_and_over_and_over():
    seen = []

    def model(y, index):
        seen.append(index.tolist())
        normal_model(y)

    guide = guide_for(normal_model, Y)
    for batches in (records(Y), [tuple(batch) for batch in records(Y)]):
        steps = []

        def mark(info, steps=steps):
            steps.append(seen[-1])

        fit(model, guide, steps=7, batches=batches, callbacks=[mark])
        assert [rows[0] for rows in steps] == [0, 7, 14, 0, 7, 14, 0]
        assert [len(rows) for rows in steps] == [7, 7, 6, 7, 7, 6, 7]


def test_keyword_arguments_go_with_each_batch():
    def model(y, *, scale):
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, scale), obs=y)

    guide = pf.AutoFlow(model, "planar")
    result = fit(model, guide, steps=3, batches=[Y[:5], Y[5:]], scale=torch.tensor(2.0))
    assert result.steps == 3


def test_progress_is_shown_where_it_is_wanted(capfd):
    fit(normal_model, guide_for(normal_model, Y), Y, progress=False)
    assert capfd.readouterr() == ("", "")
    fit(normal_model, guide_for(normal_model, Y), Y, steps=40, progress=True)
    out, shown = capfd.readouterr()
    assert out == ""
    assert re.search(r"fit: 100%.* 40/40 .*step/s, ELBO -\d+\.\d\d, eager", shown)


def test_search_for_the_step_size_is_said_and_used(caplog):
    caplog.set_level(logging.INFO, logger="pyro_flows")
    result = fit(normal_model, guide_for(normal_model, Y), Y, lr="search", steps=100)
    assert any(result.lr == pytest.approx(5e-3 * factor) for factor in (0.1, 0.3, 1.0, 3.0, 10.0))
    assert "step size" in caplog.text


def test_options_are_those_of_fit_with_its_defaults():
    signature = inspect.signature(pf.fit).parameters
    keywords = {
        name: parameter.default
        for name, parameter in signature.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name != "seed"
    }
    assert {field.name: field.default for field in dataclasses.fields(FitOptions)} == keywords
