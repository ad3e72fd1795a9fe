"""Other ways to run a transform: vmap, compilation, tracing; and what a direction costs."""

import contracts
import pytest
import torch
import zoo
from torch.utils.flop_counter import FlopCounterMode

from pyro_flows.errors import DomainError
from pyro_flows.transforms import AffineAutoregressive, Inverse

CASES = zoo.rows(zoo.KINDS)
CONDITIONAL = zoo.names(2, zoo.KINDS)


def _case(name, c, count=4):
    transform = zoo.build(name, 3, c)
    return transform, zoo.points(count, 3), zoo.context_for(transform, count)


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("name", zoo.ZOO)
def test_vmap_is_batch(name, d):
    """FAULTS 35."""
    contracts.vmap_is_batch(zoo.build(name, d), zoo.points(4, d), None)


@pytest.mark.parametrize("name", zoo.names(2))
def test_vmap_with_context_is_batch(name):
    """FAULTS 35."""
    contracts.vmap_is_batch(*_case(name, 2))


@pytest.mark.parametrize("name", zoo.learnable(zoo.KINDS))
def test_vmap_over_parameters_is_loop(name):
    """FAULTS 35: an ensemble of one shape, as ``torch.func.stack_module_state`` makes it."""
    members, x = [zoo.build(name, 3, seed=seed) for seed in range(3)], zoo.points(4, 3)
    parameters, buffers = torch.func.stack_module_state(members)
    for direction, _ in contracts.directions(members[0]):
        caller = contracts.Caller(members[0], direction)

        def run(parameters, buffers, caller=caller):
            state = {f"transform.{key}": v for key, v in (parameters | buffers).items()}
            return torch.func.functional_call(caller, state, (x,))

        got = torch.func.vmap(run)(parameters, buffers)
        want = zip(*(getattr(m, f"{direction}_and_ladj")(x) for m in members), strict=True)
        for mapped, looped in zip(got, want, strict=True):
            contracts.close(mapped, torch.stack(looped), f"{direction} under vmap")


# Their search, or solve, is unrolled over coordinates and steps: a minute of tracing.
UNROLLED = (
    "autoregressive_bend",
    "neural_autoregressive",
    "polynomial_autoregressive",
    "block_neural",
)


@pytest.mark.parametrize("name", zoo.names(0, zoo.KINDS))
def test_autocast_changes_nothing(name):
    """FAULTS 7: forward and inverse would not agree under it."""
    transform, x, _ = _case(name, 0)
    transform, x = transform.float(), x.float()
    for _, direction in contracts.directions(transform):
        want = direction(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = direction(x)
        for a, b in zip(got, want, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in UNROLLED else ())
        for name in CONDITIONAL
    ],
)
def test_traced_step_is_eager(name):
    """FAULTS 35: make_fx, gradients inside."""
    transform, x, context = _case(name, 2)
    contracts.trace_is_eager(transform, x, zoo.points(4, 3, seed=9), context)


@pytest.mark.slow
# Dynamo itself instantiates autograd.Function, and reads .grad of what is no leaf.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(("name", "c"), CASES)
def test_compiled_is_eager(name, c):
    """FAULTS 35: torch.compile."""
    torch._dynamo.reset()
    transform, x, context = _case(name, c)
    contracts.compiled_is_eager(transform, x, zoo.points(4, 3, seed=9), context)


def _is_implicit(name, direction):
    """Whether a direction is solved by a masked network's walk, whose gradient is implicit."""
    if name == "compose_everything":
        return True
    return ("autoregressive" in name or name == "block_neural") and direction == (
        "forward" if name.startswith("inverse") else "inverse"
    )


def _hessians(run, x):
    """Return the second derivatives of a function of both outputs: autodiff's, and differences."""

    def value(x):
        y, ladj = run(x, None)
        return y.sin().sum() + ladj

    gradient = torch.func.grad(value)
    step = 1e-5 * torch.eye(len(x), dtype=x.dtype)
    differences = [(gradient(x + h) - gradient(x - h)) / 2e-5 for h in step]
    return torch.autograd.functional.hessian(value, x), torch.stack(differences)


@pytest.mark.parametrize("name", zoo.learnable(zoo.KINDS))
def test_second_derivatives_are_right_or_refused(name):
    """FAULTS 33: an implicit gradient is right to first order; no wrong Hessian must come out."""
    transform, x = zoo.build(name, 3), zoo.points(3)
    for direction, run in contracts.directions(transform):
        if _is_implicit(name, direction):
            with pytest.raises(DomainError, match="no more than the first derivative"):
                _hessians(run, x)
        else:
            got, want = _hessians(run, x)
            assert torch.allclose(got, want, atol=1e-6), direction


def test_second_derivative_of_an_implicit_inverse_is_refused_by_torch_func_too():
    transform, y = zoo.build("autoregressive_silu", 3), zoo.points(3)
    with pytest.raises(DomainError, match="first derivative"):
        torch.func.jacrev(torch.func.jacrev(transform._inverse))(y)


def _flops(run, *args):
    counter = FlopCounterMode(display=False)
    with counter:
        run(*args)
    return counter.get_total_flops()


@pytest.mark.parametrize("context_dim", [0, 4])
@pytest.mark.parametrize("hidden_dims", [(), (128,), (128, 128), (200, 150, 100)])
def test_autoregressive_inverse_costs_about_one_pass(hidden_dims, context_dim):
    """The inverse is one walk over the blocks and one forward pass, not one pass a coordinate."""
    transform = AffineAutoregressive(64, hidden_dims=hidden_dims, context_dim=context_dim)
    x = torch.randn(100, 64)
    context = zoo.context_for(transform, 100, dtype=torch.float32)
    with torch.no_grad():
        forward = _flops(transform.forward_and_ladj, x, context)
        inverse = _flops(transform.inverse_and_ladj, x, context)
        sampling = _flops(Inverse(transform).forward_and_ladj, x, context)
    assert forward > 0
    assert inverse <= 2.5 * forward
    assert sampling == inverse


def test_autoregressive_inverse_and_its_gradient_cost_a_few_passes():
    """With the implicit gradient: a fixed number of passes, whatever the number of coordinates."""
    transform = AffineAutoregressive(64, hidden_dims=(128, 128))
    x = torch.randn(100, 64)

    def step(direction):
        value, ladj = direction(x)
        (value.sum() + ladj.sum()).backward()

    assert _flops(step, transform.inverse_and_ladj) <= 4 * _flops(step, transform.forward_and_ladj)
