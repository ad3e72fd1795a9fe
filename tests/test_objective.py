"""What a fit minimises: values and gradients, against closed forms and independent estimates."""

import copy
import itertools
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from fits import affine, fit, guide_for
from models import PRIOR_SD, normal_data, normal_model, normal_posterior

import pyro_flows as pf
from pyro_flows.infer.engine import Engine, FlatParameters, StepFunction
from pyro_flows.infer.particles import Particles
from pyro_flows.infer.training.adam import FlatAdam
from pyro_flows.infer.training.objective import VariationalLoss
from pyro_flows.infer.training.trainable import trainable

RUNGS = pytest.mark.parametrize("engine", ["eager", "traced"])
# Of a standard error: exceeded by chance once in 2e4 numbers.
Z = 4.0
LOG_SD = 0.2


def learning_model(y):
    """y_i ~ N(mu, sd), mu ~ N(0, 3), with the parameter log_sd of the model's own."""
    log_sd = pyro.param("log_sd", lambda: torch.tensor(LOG_SD))
    mu = pyro.sample("mu", dist.Normal(0.0, PRIOR_SD))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, log_sd.exp()), obs=y)


def gaussian(y, loc, scale, **options):
    """Return a guide that is a Gaussian, its affine maps set as they are asked for."""
    guide = pf.AutoFlow(learning_model, affine, start="prior", **options)
    guide.initialise(y)
    inner, outer = guide.flow.transform.parts
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.zero_()
        outer.loc += loc - outer(torch.zeros(1, 1))[0, 0]
        ones = torch.ones(1, 1)
        outer.log_scale += math.log(scale) - (outer(ones) - outer(0 * ones)).log()[0, 0]
        inner.loc += 0.1
    return guide


def step_of(guide, y, particles, num_importance, *, clip_norm=None, **options):
    scorer = Particles(learning_model, guide, (y,), {})
    of_guide, of_model = trainable(learning_model, guide, (y,), {})
    flat = FlatParameters({**of_guide, **of_model})
    loss = VariationalLoss(scorer, particles, num_importance=num_importance, **options)
    step = StepFunction(loss, flat, [list(of_guide), list(of_model)], clip_norm)
    return step, flat


def reference(guide, y, draws, num_importance):
    """Return the loss and all of its gradient by autodiff of the bound itself, and log_sd's."""
    flow, log_sd = guide.flow, torch.tensor(LOG_SD, requires_grad=True)
    eps = torch.randn(draws * num_importance, 1)
    z, ladj = flow.transform.forward_and_ladj(eps)
    log_q = flow.base_dist.log_prob(eps) - ladj
    log_p = dist.Normal(0.0, PRIOR_SD).log_prob(z[:, 0])
    log_p = log_p + dist.Normal(z, log_sd.exp()).log_prob(y).sum(-1)
    log_w = (log_p - log_q).reshape(draws, num_importance)
    loss = math.log(num_importance) - log_w.logsumexp(-1).mean()
    leaves = [*guide.parameters(), log_sd]
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [
        loss.detach(),
        *(torch.zeros_like(p) if g is None else g for p, g in zip(leaves, grads, strict=True)),
    ]


def estimates(repeats, function):
    """Return the means of repeated numbers, and their standard errors."""
    rows = torch.stack(
        [torch.cat([part.flatten() for part in function()]) for _ in range(repeats)]
    )
    rows = rows.detach().double()
    return rows.mean(0), rows.std(0) / repeats**0.5


@pytest.mark.parametrize("num_importance", [1, 5])
@pytest.mark.parametrize("kind", ["total", "path"])
def test_value_and_gradients_are_those_of_the_bound(num_importance, kind):
    """FAULTS 65: those of guide and model, of the ELBO and of the importance-weighted bound."""
    y = normal_data()
    guide = gaussian(y, 1.4, 0.5, gradient=kind)
    theirs, their_error = estimates(40, partial(reference, guide, y, 4000, num_importance))
    step, flat = step_of(guide, y, 200, num_importance, squared=kind == "path")

    def ours():
        loss, _, *grads = step(((y,), {}))
        named = {name: value for part in flat.split(grads) for name, value in part.items()}
        names = [f"guide.{name}" for name, _ in guide.named_parameters()]
        return [loss, *(named[name] for name in names), named["model.store.log_sd"]]

    mean, error = estimates(400, ours)
    assert len(mean) == len(theirs) >= 6
    distance = (mean - theirs).abs() / (error.square() + their_error.square() + 1e-12).sqrt()
    assert distance.max() < Z, (mean, theirs, distance)
    # The test has power: the errors are small beside the gradients.
    assert (their_error < 0.05 * theirs.abs() + 0.05).all()
    assert (theirs[1:].abs() > 0.1).sum() >= 4


@pytest.mark.parametrize("squared", [False, True])
def test_weight_of_the_elbo_adds_its_gradient_to_that_of_the_bound(squared):
    """On the same draws, to rounding."""
    y = normal_data()
    guide = gaussian(y, 1.4, 0.5, gradient="path" if squared else "total")
    found = []
    for num_importance, options in ((1, {}), (4, {}), (4, {"elbo_weight": 0.25})):
        torch.manual_seed(0)
        step, flat = step_of(guide, y, 64, num_importance, squared=squared, **options)
        loss, _, *grads = step(((y,), {}))
        found.append(torch.cat([loss.reshape(1), *grads]))
        flat.release()
    of_elbo, of_bound, of_both = found
    torch.testing.assert_close(of_both, of_bound + 0.25 * of_elbo, rtol=1e-4, atol=1e-4)
    assert (of_elbo - of_bound).abs().max() > 0.1


def test_bound_is_between_the_elbo_and_the_evidence():
    """FAULTS 65: and nearer to the evidence for more draws under one logarithm."""
    y = normal_data()
    mean, sd, evidence = normal_posterior(y)
    guide = guide_for(normal_model, y)
    with torch.no_grad():
        guide.flow.transform.parts[1].loc += mean + sd - guide.median()["mu"]
        scorer = Particles(normal_model, guide, (y,), {})
        values = []
        for num_importance in (1, 4, 16):
            loss = VariationalLoss(scorer, 1600, num_importance=num_importance)
            (lost,), (error,) = estimates(20, lambda loss=loss: [loss(((y,), {})).value])
            values.append((-lost, error))
    for (lower, one), (higher, other) in itertools.pairwise(values):
        assert lower + Z * (one + other) < higher
    assert values[-1][0] < evidence + Z * values[-1][1]


def variances(guide, y, **options):
    step, flat = step_of(guide, y, 20, 5, **options)
    num = sum(parameter.numel() for parameter in guide.parameters())
    rows = [torch.cat(step(((y,), {}))[2:])[:num] for _ in range(200)]
    flat.release()
    return torch.stack(rows).var(0).sum()


def test_doubly_reparametrised_gradient_has_less_variance_near_the_optimum():
    y = normal_data()
    variance = 1 / (1 / PRIOR_SD**2 + len(y) * math.exp(-2 * LOG_SD))
    mean = float(y.sum()) * math.exp(-2 * LOG_SD) * variance
    near = [1.02 * mean, 1.02 * variance**0.5]
    total = variances(gaussian(y, *near, gradient="total"), y, squared=False)
    dreg = variances(gaussian(y, *near), y, squared=True)
    assert dreg < 0.05 * total
    exact = gaussian(y, mean, variance**0.5)
    # All weights are the same there, but for rounding.
    assert variances(exact, y, squared=True) < 1e-3 * total


@RUNGS
def test_with_one_draw_under_the_logarithm_dreg_is_the_path_gradient(engine):
    y = normal_data()
    losses = [
        fit(normal_model, guide_for(normal_model, y), y, gradient=kind, engine=engine).losses
        for kind in ("dreg", "path", None)
    ]
    assert (losses[0] == losses[1]).all()
    assert (losses[0] == losses[2]).all()


@pytest.mark.parametrize("num_importance", [1, 4])
def test_gradient_overrides_that_of_the_guide_for_the_run(num_importance):
    """The guide's own choice counts where none is made, also for the weighted bound."""
    y = normal_data()

    def losses(own, asked):
        guide = guide_for(normal_model, y, gradient=own)
        options = {"num_importance": num_importance, "gradient": asked}
        found = fit(normal_model, guide, y, **options).losses
        assert guide.gradient == own
        return found.tolist()

    total, dreg = losses("total", None), losses("path", None)
    assert losses("path", "total") == losses("total", "total") == total
    assert losses("total", "dreg") == losses("path", "dreg") == dreg
    assert total != dreg


def test_guide_has_its_own_gradient_back_after_a_failure():
    y = normal_data()
    guide = guide_for(normal_model, y)

    def fail(info):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(normal_model, guide, y, gradient="total", callbacks=[fail])
    assert guide.gradient == "path"


@RUNGS
@pytest.mark.parametrize("num_importance", [1, 4])
def test_chunks_of_particles_give_the_same_gradient(num_importance, engine):
    """From the same noise: 16 numbers and more come out of the generator in one order."""
    y = normal_data()
    guide = guide_for(learning_model, y)
    found = []
    for chunk, clip_norm in ((64, 3.0), (16, None)):
        step, flat = step_of(guide, y, chunk, num_importance, squared=True, clip_norm=clip_norm)
        run = Engine("fit", step, engine, 1, chunks=64 // chunk, clip_norm=3.0)
        run(((y,), {}))
        torch.manual_seed(0)
        loss, norm = run(((y,), {}))
        assert run.rung == engine
        found.append([loss, norm, *(tensor.grad.clone() for tensor in flat.tensors)])
        flat.release()
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-4)
    assert found[0][1] > 3.0
    assert float(found[1][2].norm()) == pytest.approx(3.0)


def test_fit_in_chunks_is_the_fit_at_once():
    y = normal_data()
    options = {"particles": 64, "steps": 30}
    whole = fit(normal_model, guide_for(normal_model, y), y, **options)
    parts = fit(normal_model, guide_for(normal_model, y), y, particle_chunk=16, **options)
    torch.testing.assert_close(*map(torch.tensor, (whole.losses, parts.losses)), rtol=1e-3, atol=0)


def test_weighted_bound_needs_reparametrised_draws():
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide():
        loc = pyro.param("loc", torch.tensor(0.5))
        pyro.sample("z", dist.Normal(loc, 1.0).has_rsample_(False))

    words = "a guide of reparametrised draws, for num_importance above 1; got none at 'z'"
    with pytest.raises(pf.errors.DomainError, match=words):
        fit(model, guide, num_importance=2)
    assert fit(model, guide, lr=0.1, steps=40).steps == 40


def minimised(optimizer_of, steps, state=None, start=1.0):
    """Step on a quadratic function with noise; return the path, and the optimiser."""
    x = torch.full((5,), start)
    optimizer = optimizer_of([x])
    if state is not None:
        optimizer.load_state_dict(copy.deepcopy(state))
    generator, path = torch.Generator().manual_seed(0), []
    for step in range(steps):
        x.grad = 2 * x + torch.randn(5, generator=generator) * torch.logspace(-6, 3, 5)
        optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        optimizer.step()
        path.append(x.clone())
    return torch.stack(path), optimizer


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_flat_adam_is_adam(decay):
    """Over 50 steps, and its state is one of torch's, in either direction."""
    ours, theirs = (
        partial(optimizer, lr=0.1, weight_decay=decay)
        for optimizer in (FlatAdam, torch.optim.AdamW)
    )
    (path, optimizer), (wanted, original) = minimised(ours, 50), minimised(theirs, 50)
    torch.testing.assert_close(path, wanted, rtol=1e-5, atol=1e-6)
    states = [one.state_dict() for one in (optimizer, original)]
    assert states[0]["state"][0].keys() == states[1]["state"][0].keys()
    assert float(states[0]["state"][0]["step"]) == 50
    goes_on, _ = minimised(theirs, 20, states[0], start=0.3)
    went_on, _ = minimised(theirs, 20, states[1], start=0.3)
    torch.testing.assert_close(goes_on, went_on, rtol=1e-5, atol=1e-6)
    came_on, _ = minimised(ours, 20, states[1], start=0.3)
    torch.testing.assert_close(came_on, went_on, rtol=1e-5, atol=1e-6)
