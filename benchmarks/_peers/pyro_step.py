"""The steps and fits of Pyro's flow guides; run by the benchmark, in a process of its own."""

from collections.abc import Callable
from functools import partial

import pyro
import torch
from _step_models import Language, Problem, problem
from _step_worker import Curve, Steps, Stopwatch, kept_after, restrict_to_cores, serve
from pyro import distributions as dist
from pyro.distributions import transforms
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoIAFNormal, AutoNormalizingFlow
from torch import Tensor

PYRO = Language(pyro, dist, torch.as_tensor)
DRAWS, DRAWS_AT_ONCE = 10_000, 1000
PLATES = 1  # within each other, in all models


def couplings(input_dim: int) -> transforms.ComposeTransformModule:
    """Return three affine couplings with the halves swapped between them."""
    swap = torch.arange(input_dim).flip(0)
    build = partial(transforms.affine_coupling, input_dim, [input_dim, input_dim])
    parts = [build(), transforms.Permute(swap), build(), transforms.Permute(swap), build()]
    return transforms.ComposeTransformModule(parts)


def guide_of(kind: str, of: Problem) -> AutoNormalizingFlow:
    """Return a guide: ``"iaf"`` or ``"coupling"``."""
    if kind == "iaf":
        return AutoIAFNormal(of.model, hidden_dim=[of.dim, of.dim], num_transforms=3)
    return AutoNormalizingFlow(of.model, couplings)


def prepare(model: str, particles: int, way: str) -> Steps:
    """Make steps ready: a guide's name, and ``svi`` or ``torch`` for whose optimiser steps it."""
    kind, how = way.split()
    of = problem(PYRO, model)
    torch.manual_seed(0)
    step = stepper(of, guide_of(kind, of), particles, how, lr=1e-4)

    def steps(count: int) -> None:
        for _ in range(count):
            step()

    return steps


def stepper(
    of: Problem, guide: AutoNormalizingFlow, particles: int, how: str, lr: float
) -> Callable[[], float]:
    """Return a function that takes one step."""
    pyro.clear_param_store()
    loss = Trace_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=PLATES)
    if how == "svi":
        svi = SVI(of.model, guide, pyro.optim.Adam({"lr": lr}), loss)
        return lambda: svi.step(*of.args)
    elbo = loss(of.model, guide)
    elbo(*of.args)  # which builds the parameters
    optimizer = torch.optim.Adam(guide.parameters(), lr=lr)

    def step() -> float:
        optimizer.zero_grad()
        value = elbo(*of.args)
        value.backward()
        optimizer.step()
        return value.item()

    return step


def fit(model: str, particles: int, *, steps: int, lr: float, seed: int) -> Curve:
    """Fit by ``SVI`` with constant steps of Adam's, and return the ELBO by time."""
    of = problem(PYRO, model)
    watch = Stopwatch()
    torch.manual_seed(seed)
    guide = guide_of("iaf", of)
    step, taken = stepper(of, guide, particles, "svi", lr), 0
    for after in kept_after(steps):
        for _ in range(taken, after):
            step()
        taken = after
        watch.keep([parameter.detach().clone() for parameter in guide.parameters()])
    return watch.curve(partial(elbo_of, of, guide))


@torch.no_grad()
def elbo_of(of: Problem, guide: torch.nn.Module, state: list[Tensor]) -> float:
    """Return the ELBO of a guide in a state, on fresh draws that are the same for all states."""
    for parameter, value in zip(guide.parameters(), state, strict=True):
        parameter.copy_(value)
    torch.manual_seed(1)
    loss = Trace_ELBO(
        num_particles=DRAWS_AT_ONCE, vectorize_particles=True, max_plate_nesting=PLATES
    ).loss
    rounds = DRAWS // DRAWS_AT_ONCE
    return -sum(loss(of.model, guide, *of.args) for _ in range(rounds)) / rounds


def one_thread() -> None:
    """Run as fast as these libraries can on one thread: without their checks."""
    restrict_to_cores()
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    torch.distributions.Distribution.set_default_validate_args(False)


if __name__ == "__main__":
    one_thread()
    serve({"pyro": pyro.__version__, "torch": torch.__version__}, prepare, fit)
