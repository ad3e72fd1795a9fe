"""Our steps and fits; run by the benchmark, in a process of its own."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import pyro
import torch
from _step_models import Problem, problem
from _step_worker import Curve, Steps, Stopwatch, kept_after, serve
from pyro_step import PYRO, elbo_of, one_thread

import pyro_flows as pf
from pyro_flows.infer import store
from pyro_flows.infer.particles import Particles
from pyro_flows.infer.training.batches import Batches
from pyro_flows.infer.training.options import FitOptions
from pyro_flows.infer.training.run import Run

STEPS = 10**9  # more than are taken, so that the schedule stays in its middle


def iaf(input_dim: int) -> pf.Flow:
    """Return a flow of the peers' architecture."""
    return pf.flows.iaf(input_dim, num_transforms=3, hidden_dims=(input_dim, input_dim))


FLOWS = {"iaf": iaf, "default": "realnvp"}


def prepare(model: str, particles: int, way: str) -> Steps:
    """Make steps ready.

    The way is named by the flow, the gradient, the rung, and ``step``, for an evaluation and the
    optimiser's update alone, or ``loop``, for all that a fit does in a step.
    """
    flow, gradient, rung, what = way.split()
    of = problem(PYRO, model)
    torch.manual_seed(0)
    guide = pf.AutoFlow(of.model, FLOWS[flow], gradient=gradient)
    guide.initialise(*of.args)
    run = a_run(of, guide, particles, rung)
    step = bare_step(run) if what == "step" else partial(run.loop._take, (of.args, {}))

    def steps(count: int) -> None:
        for _ in range(count):
            step()

    return steps


def a_run(of: Problem, guide: pf.AutoFlow, particles: int, rung: str) -> Run:
    """Return a run as ``fit`` makes it."""
    options = FitOptions(
        steps=STEPS, particles=particles, lr=1e-4, engine=rung, stop_early=False, progress=False
    )
    return Run(Particles(of.model, guide, of.args, {}), Batches(of.args, {}, None), options)


def bare_step(run: Run) -> Callable[[], None]:
    """Return a function that takes one step, as the loop does, and leaves out all else."""
    engine, optimizer, batch = run.loop.engine, run.loop.optimizer, run._batches.first

    def step() -> None:
        loss, norm = (float(value) for value in engine(batch))
        if math.isfinite(loss) and math.isfinite(norm):
            optimizer.step()

    return step


def fit(
    model: str, particles: int, *, seed: int, steps: int = 2000, stop_early: bool = True
) -> Curve:
    """Fit with the defaults, by the ELBO alone, and return it by time.

    The last is that of the state handed back.
    """
    of = problem(PYRO, model)
    due = set(kept_after(steps))
    watch = Stopwatch()
    guide = pf.AutoFlow(of.model)

    def keep() -> None:
        watch.keep([parameter.detach().clone() for parameter in guide.parameters()])

    def callback(info: pf.infer.StepInfo) -> None:
        if info.step in due:
            keep()

    pf.fit(
        of.model,
        guide,
        *of.args,
        steps=steps,
        particles=particles,
        stop_early=stop_early,
        refine=False,
        seed=seed,
        callbacks=[callback],
        progress=False,
    )
    keep()
    return watch.curve(partial(elbo_of, of, guide))


if __name__ == "__main__":
    one_thread()
    with ExitStack() as stack:
        stack.enter_context(store.unused())
        serve({"pyro": pyro.__version__, "torch": torch.__version__}, prepare, fit)
