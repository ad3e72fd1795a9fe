"""Steps of a fit, for the tests of the engine."""

from contextlib import ExitStack, contextmanager

import pyro
import torch
from pyro import poutine

from pyro_flows.infer import Particles, store
from pyro_flows.infer.engine import FlatParameters, Loss, StepFunction
from pyro_flows.infer.engine.runner import Runner
from pyro_flows.infer.training.objective import VariationalLoss
from pyro_flows.infer.training.trainable import trainable

NUM = 4


@contextmanager
def as_in_a_fit():
    """Run as the steps of a fit do: without validation, and with the guide's own parameters."""
    with store.unused(), pyro.validation_enabled(False), poutine.block():
        yield


def step_of(
    model, guide, *args, num=NUM, num_importance=1, squared=False, clip_norm=10.0, **kwargs
):
    """Return the step of a fit, and what it is called with."""
    with store.unused():
        scorer = Particles(model, guide, args, kwargs)
        assert scorer.vectorized
        of_guide, of_model = trainable(model, guide, args, kwargs)
    flat = FlatParameters({**of_guide, **of_model})
    objective = VariationalLoss(scorer, num, num_importance=num_importance, squared=squared)
    return StepFunction(objective, flat, [list(of_guide), list(of_model)], clip_norm), (
        args,
        kwargs,
    )


def plain_step(function, *parameters, clip_norm=None):
    """Return a step whose loss is ``function(*arguments)``, of parameters that it closes over."""

    def objective(batch):
        value = function(*batch[0], **batch[1])
        return Loss(value, (value,))

    flat = FlatParameters({f"p{k}": parameter for k, parameter in enumerate(parameters)})
    return StepFunction(objective, flat, [list(flat.parameters)], clip_norm)


def shake(flat, scale=0.1):
    """Move the parameters at random."""
    with torch.no_grad():
        for tensor in flat.tensors:
            tensor.add_(scale * torch.randn_like(tensor))


def moved(flat, grads):
    """Return an optimiser's function that takes a step along gradients."""
    optimizer = torch.optim.Adam(flat.tensors, lr=0.02)
    for tensor, grad in zip(flat.tensors, grads, strict=True):
        tensor.grad = grad.clone()
    optimizer.step()


def assert_same_numbers(ours, theirs, tolerance):
    """Compare what two steps return: loss, norm, and gradients."""
    ours, theirs = list(ours), list(theirs)
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        assert mine.dtype == other.dtype
        assert other.isfinite().all()
        scale = 1 + float(other.abs().max()) if other.numel() else 1.0
        torch.testing.assert_close(mine, other, rtol=0.0, atol=tolerance * scale)


def assert_runs_as_the_step_does(step, batch, *, tolerance=None, updates=3, native=False):
    """Compare a recorded step with the eager one, at several random states and parameters."""
    wide = all(tensor.dtype == torch.float64 for tensor in step.flat.tensors)
    tolerance = tolerance or (1e-11 if wide else 2e-5)
    with ExitStack() as stack:
        stack.enter_context(as_in_a_fit())
        shake(step.flat)
        with torch.random.fork_rng(devices=[]):
            runner = Runner(step, batch)
            if native:
                runner.compile_now()
        assert (runner.native is not None) == native
        for seed in range(updates):
            torch.manual_seed(seed)
            theirs = step(batch)
            state = torch.get_rng_state()
            torch.manual_seed(seed)
            ours = runner(batch)
            assert_same_numbers(ours, theirs, tolerance)
            assert torch.equal(torch.get_rng_state(), state), "other random numbers are drawn"
            moved(step.flat, theirs[2:])
    return runner
