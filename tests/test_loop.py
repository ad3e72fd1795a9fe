"""The loop of a fit: what a bad step, an interrupt or a change of the data does to it."""

import itertools
import logging
import math
import re
import signal

import faults
import pyro
import pyro.distributions as dist
import pytest
import torch
from fits import Watched, fit, guide_for, have_their_own_memory, parameters, same
from models import normal_data, normal_model
from pyro.infer.autoguide import init_to_value

import pyro_flows as pf
from pyro_flows.checkpoint import read_checkpoint
from pyro_flows.infer.training.averaging import BestState
from pyro_flows.infer.training.schedule import Schedule

RUNGS = pytest.mark.parametrize("engine", ["eager", "traced"])
FAULTS = {
    "nan": ("factor", math.nan, r"nan at the site 'bad'"),
    "inf": ("factor", math.inf, r"inf at the site 'bad'"),
    "-inf": ("factor", -math.inf, r"-inf at the site 'bad'"),
    "data": ("site", math.nan, r"nan at the site 'y' \(values from nan to nan\)"),
    "gradient": ("gradient", 0.0, r"a gradient that is not finite at 'guide\.flow\.\S*loc'"),
}


def fit_faulty(at, where, value=math.nan, *, steps, guide=None, **options):
    """Fit with faults at some steps; return guide, watcher and result."""
    model, batches = faults.nan_model(at, where, value)
    good = faults.nan_model((), where)[1]
    guide = guide or guide_for(model, *good[0])
    batches += good * (steps - len(batches))
    watched = Watched(guide)
    options = {**watched.options, "stop_early": False, **options}
    return guide, watched, fit(model, guide, steps=steps, batches=batches, **options)


def test_gradients_that_are_all_bad_are_not_all_listed(caplog):
    """FAULTS 47: a flow has hundreds."""
    model, batches = faults.nan_model({1}, "gradient")
    guide = guide_for(model, *batches[0], flow="realnvp")
    fit(model, guide, steps=3, batches=[*batches, batches[0]])
    (warning,) = warnings_of(caplog)
    assert re.search(r"not finite at ('[\w.]+', ){2}'[\w.]+' and \d+ more$", warning)


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@RUNGS
@pytest.mark.parametrize("fault", FAULTS)
def test_bad_step_changes_nothing_and_is_reported_once(fault, engine, caplog):
    """FAULTS 45, 46, 47, 49: parameters, moments and step count stay as they are, bit for bit."""
    where, value, words = FAULTS[fault]
    guide, watched, result = fit_faulty({4, 7}, where, value, steps=10, engine=engine)
    assert result.engine == engine
    changed = [not same(a, b) for a, b in itertools.pairwise(watched.states)]
    assert [step for step, moved in enumerate(changed, 1) if not moved] == [4, 7]
    assert torch.tensor(result.losses).isnan().nonzero().flatten().tolist() == [4, 7]
    assert result.skipped_steps == 2
    (warning,) = warnings_of(caplog)
    assert re.search(rf"^fit: skipped step 4, for .*{words}", warning)
    assert all(parameter.isfinite().all() for parameter in guide.parameters())
    assert have_their_own_memory(guide)


@pytest.mark.parametrize("fault", ["nan", "gradient"])
def test_bad_step_is_told_to_callbacks_as_it_was(fault):
    where, value, _ = FAULTS[fault]
    _, watched, _ = fit_faulty({2}, where, value, steps=4)
    info = watched.infos[2]
    assert math.isnan(info.loss) == (fault == "nan")
    assert not math.isfinite(info.loss + info.norm)


@RUNGS
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_fit_that_never_is_finite_ends_with_the_parameters_it_began_with(value, engine):
    """FAULTS 48, 49."""
    model, (good,) = faults.nan_model((), "factor")
    guide = guide_for(model, *good)
    before = parameters(guide)
    words = (
        r"^fit: expected a finite loss and gradient; got 50 steps in a row without, from step 0 "
        rf"on; log-density {value} at the site 'bad'.* The last good parameters are in place\."
    )
    bad = [(torch.tensor(value), good[1])]
    with pyro.validation_enabled(False), pytest.raises(pf.errors.NonFiniteError, match=words):
        fit(model, guide, steps=80, batches=bad, engine=engine)
    assert same(parameters(guide), before)
    assert have_their_own_memory(guide)


def test_first_batch_that_is_not_a_number_is_refused_before_any_step():
    """FAULTS 48, 49."""
    for where, words in (("factor", r"(?s)got the error .*nan"), ("site", "1 NaN among 1 values")):
        model, (good,) = faults.nan_model((), where)
        bad = [(torch.tensor(math.nan), good[1])]
        with pytest.raises(pf.errors.FlowError, match=words):
            fit(model, guide_for(model, *good), batches=bad)


def test_fit_that_stays_bad_after_some_steps_ends_with_the_last_good_parameters():
    """FAULTS 48."""
    model, batches = faults.nan_model(range(3, 150), "site")
    guide = guide_for(model, *batches[0])
    watched = Watched(guide)
    with pytest.raises(pf.errors.NonFiniteError, match=r"from step 53 on; .*'y'"):
        fit(model, guide, steps=150, batches=batches, **watched.options)
    # The second step moved to where the third began, which was finite.
    num = len(parameters(guide))
    assert same(parameters(guide), watched.states[1][:num])


def test_short_fit_need_not_fail_fifty_times():
    """FAULTS 48: a run of 10 steps that were all skipped is no fit."""
    with pytest.raises(pf.errors.NonFiniteError, match="10 steps in a row without"):
        fit_faulty(range(10), "gradient", steps=10)


def test_run_is_rolled_back_to_its_best_state_with_a_tenth_of_the_step_size_twice_at_most(caplog):
    """FAULTS 48."""
    model, batches = faults.nan_model({*range(60, 110), *range(120, 170)}, "factor")
    guide = guide_for(model, *batches[0])
    watched, num = Watched(guide), len(parameters(guide))
    options = {"steps": 200, "stop_early": False, "batches": batches + [batches[0]] * 200}
    result = fit(model, guide, **options, **watched.options)
    assert (result.restarts, result.skipped_steps, result.status) == (2, 100, "max_steps")
    # The moments are forgotten, and the step before the first bad one is undone: where it led to
    # was never found to be good.
    best = BestState()
    for step in range(1, 111):
        losses = result.losses[:step].tolist()
        best.update(losses, watched.states[min(step, 60) - 2])
    assert best.step == 75
    assert same(watched.states[109], best.tensors()[:num])
    assert same(watched.states[109], watched.states[58][:num])
    assert not same(watched.states[109], watched.states[59][:num])
    shrunk = [info.lr / (0.01 * Schedule(200).factor(k)) for k, info in enumerate(watched.infos)]
    assert shrunk[:110] == pytest.approx([1.0] * 110)
    assert shrunk[110:170] == pytest.approx([0.1] * 60)
    assert shrunk[170:] == pytest.approx([0.01] * 30)
    assert sum("goes on from the best state" in text for text in warnings_of(caplog)) == 2


def test_third_roll_back_is_an_error():
    """FAULTS 48."""
    bad = {k for start in (10, 70, 130) for k in range(start, start + 50)}
    with pytest.raises(pf.errors.NonFiniteError, match="from step 130 on"):
        fit_faulty(bad, "factor", steps=300)


def test_first_roll_back_goes_to_the_best_state():
    """FAULTS 48, 62: which is the one of the lowest losses, however many of others are NaN."""
    ruin = {"scheduler": lambda o: torch.optim.lr_scheduler.LambdaLR(o, _ruinous_at_30)}
    model, batches = faults.nan_model(range(40, 90), "factor")
    guide = guide_for(model, *batches[0])
    watched = Watched(guide)
    options = {**watched.options, **ruin, "steps": 91, "batches": [*batches, batches[0]]}
    result = fit(model, guide, **options)
    num = len(parameters(guide))
    assert same(watched.states[89], watched.states[23][:num])
    assert watched.infos[90].lr == pytest.approx(0.001)
    assert result.restarts == 1


def _ruinous_at_30(step):
    return 1000.0 if 30 <= step < 40 else 1.0


def test_best_state_is_handed_back_whatever_came_after_it():
    """FAULTS 62: a third of the losses are NaN, the second among them."""
    ruin = {"scheduler": lambda o: torch.optim.lr_scheduler.LambdaLR(o, _ruinous_at_30)}
    bad = set(range(1, 30, 3))
    guide, watched, result = fit_faulty(bad, "factor", steps=35, **ruin)
    assert result.state == "best"
    assert same(parameters(guide), watched.states[23][: len(parameters(guide))])


def narrow(mean):
    def model():
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        pyro.factor("support", torch.where(z > 3.0, 0.0, -torch.inf))

    return model


def test_start_outside_of_the_support_is_drawn_again_or_refused():
    """FAULTS 50: one draw in seven of the first prior is inside, and none of the second."""
    model = narrow(2.0)
    guide = pf.AutoFlow(model, start="prior", init_loc_fn=pyro.infer.autoguide.init_to_sample)
    result = fit(model, guide, particles=4, lr=1e-4)
    assert result.status == "max_steps"
    assert guide.median()["z"] > 3.0
    guide = pf.AutoFlow(narrow(-90.0), start="prior")
    with pytest.raises(pf.errors.NonFiniteError, match="-inf at the site 'support'"):
        fit(narrow(-90.0), guide)


def test_clipping_is_of_the_norm_over_all_parameters():
    """FAULTS 51: all are scaled by one factor, so that the direction stays."""

    def moved(clip_norm):
        y = normal_data()
        far = init_to_value(values={"mu": torch.tensor(-10.0)})
        guide = guide_for(normal_model, y, init_loc_fn=far)
        before = parameters(guide)
        options = {
            "optimizer": lambda tensors: torch.optim.SGD(tensors, lr=1e-3),
            "scheduler": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda _: 1.0),
        }
        infos = []
        fit(
            normal_model,
            guide,
            y,
            steps=1,
            clip_norm=clip_norm,
            callbacks=[infos.append],
            **options,
        )
        pairs = zip(parameters(guide), before, strict=True)
        return torch.cat([(a - b).flatten() / 1e-3 for a, b in pairs]), infos[0].norm

    whole, norm = moved(1e6)
    clipped, same_norm = moved(2.0)
    assert norm == same_norm == pytest.approx(float(whole.norm()), rel=1e-3)
    assert norm > 20.0
    assert (whole != 0).sum() > 2
    torch.testing.assert_close(clipped, whole * (2.0 / norm), rtol=1e-2, atol=1e-3)


@RUNGS
def test_data_may_change_their_size_from_step_to_step(engine):
    """FAULTS 54: where no latent depends on it."""
    y = normal_data()
    batches = [y, y[:7], y[:1], y]
    losses = {
        rung: fit(normal_model, guide_for(normal_model, y), batches=batches, engine=rung).losses
        for rung in ("eager", engine)
    }
    torch.testing.assert_close(*map(torch.tensor, (losses["eager"], losses[engine])))


def local_model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


@RUNGS
@pytest.mark.parametrize("size", [1, 7])
def test_latents_of_another_size_than_the_data_are_refused(size, engine):
    """FAULTS 54: also where they would broadcast, within a run and from one to the next."""
    y = normal_data()
    guide = guide_for(local_model, y[:5])
    words = "^fit: expected .*; got .*Where the guide was set up for data of other sizes"
    with pytest.raises(pf.errors.DomainError, match=words):
        fit(local_model, guide, batches=[y[:5], y[:size]], engine=engine)
    assert have_their_own_memory(guide)
    before = parameters(guide)
    with pytest.raises(pf.errors.DomainError, match=r"(?s)^fit: expected .*data of other sizes"):
        fit(local_model, guide, y[:size], engine=engine)
    assert same(parameters(guide), before)


def test_latent_that_appears_in_a_later_batch_is_refused():
    """FAULTS 54."""

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        if len(y) > 5:
            mu = mu + pyro.sample("more", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    y = normal_data()
    with pytest.raises(pf.errors.DomainError, match="none at 'more'"):
        fit(model, guide_for(model, y[:5]), batches=[y[:5], y[:7]])


def test_latents_at_the_edge_of_their_support_survive_in_float32():
    """FAULTS 55: draws of these priors round to 0 and to 1."""

    def model():
        pyro.sample("interval", dist.Beta(0.1, 0.1))
        pyro.sample("simplex", dist.Dirichlet(torch.full((3,), 0.01)))
        pyro.sample("correlation", dist.LKJCholesky(3, torch.tensor(0.5)))

    guide = pf.AutoFlow(model, lambda dim: pf.flows.realnvp(dim, num_transforms=2))
    result = fit(model, guide, steps=60)
    # A gradient can overflow there, which a step or two in ten is lost by.
    assert result.skipped_steps <= 12
    assert math.isfinite(result.elbo)
    with torch.no_grad():
        assert all(value.isfinite().all() for value in guide().values())


def interrupt(info):
    if info.step == 30:
        raise KeyboardInterrupt


@pytest.mark.parametrize("how", ["raised", "signal"])
def test_interrupt_returns_the_best_so_far(how):
    """FAULTS 63."""
    y = normal_data()
    guide = guide_for(normal_model, y)
    callback = interrupt if how == "raised" else faults.signal_at(30, signal.SIGINT)
    result = fit(normal_model, guide, y, steps=1000, callbacks=[callback], engine="eager")
    assert (result.status, result.steps) == ("interrupted", 30)
    assert result.reason == "by the user, after 30 of 1000 steps"
    assert result.state in ("last", "best")
    assert math.isfinite(result.elbo)
    assert have_their_own_memory(guide)


def test_interrupt_within_a_step_undoes_it(tmp_path):
    """FAULTS 63, 69: the random numbers of the step are drawn again by a run that goes on."""

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        if armed:
            raise KeyboardInterrupt
        return z

    armed, seen = [], []
    guide = guide_for(model)

    def callback(info):
        seen.append((torch.get_rng_state(), parameters(guide)))
        armed.extend([True] * (info.step == 3))

    options = {"engine": "eager", "callbacks": [callback], "checkpoint": tmp_path / "run.ckpt"}
    result = fit(model, guide, **options)
    assert (result.status, result.steps, result.state) == ("interrupted", 3, "last")
    state, kept = seen[-1]
    found = read_checkpoint(tmp_path / "run.ckpt", kind="run")
    assert torch.equal(found.tensors["random/cpu"], state)
    assert same(parameters(guide), kept)


def test_interrupt_of_the_evaluation_leaves_the_last_state(monkeypatch):
    """FAULTS 63: not one that was only being tried."""
    y = normal_data()
    guide = guide_for(normal_model, y)
    watched = Watched(guide)

    def interrupted(scores):
        raise KeyboardInterrupt

    monkeypatch.setattr(pf.infer.training.outcome, "choose", interrupted)
    result = fit(normal_model, guide, y, **watched.options)
    assert (result.status, result.state, result.steps) == ("interrupted", "last", 20)
    assert same(parameters(guide), watched.states[-1][: len(parameters(guide))])
