"""The promises that every transform makes, one function each.

Each takes a transform, points and a context; a failure shows the worst element and the input that
broke it.
"""

import copy
import io
import math
import pickle
import struct
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_flows.distributions import Flow
from pyro_flows.transforms import FlowTransform

Context = Tensor | None
Direction = Callable[[Tensor, Context], tuple[Tensor, Tensor]]
# Absolute and relative, for points of ordinary size.
TOLERANCES = {torch.float64: (1e-8, 1e-7), torch.float32: (1e-4, 1e-4)}
SENTINEL = 1234.567871  # A value that no parameter takes; searched for in saved bytes.


def directions(transform: FlowTransform) -> Iterator[tuple[str, Direction]]:
    """Yield both directions of a transform, with their names."""
    yield "forward", transform.forward_and_ladj
    yield "inverse", transform.inverse_and_ladj


def close(
    got: Tensor, want: Tensor, what: str, *, inputs: object = None, slack: float = 1
) -> None:
    """Two tensors agree in shape, dtype and, within the tolerance of the dtype, in value."""
    assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
    assert got.dtype == want.dtype, f"{what}: dtype {got.dtype}, expected {want.dtype}"
    if got.numel() == 0:
        return
    absolute, relative = (slack * tolerance for tolerance in TOLERANCES[want.dtype])
    same = (got == want) | (got.isnan() & want.isnan())
    excess = torch.where(same, -1.0, (got - want).abs() - absolute - relative * want.abs())
    excess = excess.nan_to_num(nan=torch.inf)
    worst = tuple(int(i) for i in torch.unravel_index(excess.argmax(), excess.shape))
    assert excess[worst] <= 0, (
        f"{what}: got {got[worst]}, expected {want[worst]} at {worst}; input {_row(inputs, worst)}"
    )


def finite(got: Tensor, what: str, *, inputs: object = None) -> None:
    """Every element is finite."""
    bad = (~got.isfinite()).nonzero()
    assert len(bad) == 0, (
        f"{what}: {got[tuple(bad[0])]} at {bad[0].tolist()}; input {_row(inputs, tuple(bad[0]))}"
    )


def _row(inputs: object, index: tuple[int, ...]) -> object:
    if isinstance(inputs, Tensor) and 0 < inputs.dim() <= len(index) + 1:
        return inputs[tuple(index)[: inputs.dim() - 1]].tolist()
    return inputs


# What a transform computes.


def round_trip(transform: FlowTransform, x: Tensor, context: Context) -> None:
    """The inverse undoes the forward map, and the forward map the inverse."""
    y, _ = transform.forward_and_ladj(x, context)
    close(transform.inverse_and_ladj(y, context)[0], x, "inverse of forward", inputs=x)
    back, _ = transform.inverse_and_ladj(x, context)
    close(transform.forward_and_ladj(back, context)[0], x, "forward of inverse", inputs=x)


def inverse_ladj_negates(transform: FlowTransform, x: Tensor, context: Context) -> None:
    """The log-determinant of the inverse is minus that of the forward map, at the same point."""
    y, ladj = transform.forward_and_ladj(x, context)
    close(transform.inverse_and_ladj(y, context)[1], -ladj, "inverse ladj", inputs=x)


def jacobian(direction: Direction, x: Tensor, context: Context) -> Tensor:
    """Return the Jacobian of one direction at each row of ``x``, by autodiff."""

    def value(row: Tensor, c: Context) -> Tensor:
        return direction(row, c)[0]

    in_dims = (0, None if context is None else 0)
    return torch.func.vmap(torch.func.jacrev(value), in_dims=in_dims)(x, context)


def ladj_is_slogdet(transform: FlowTransform, x: Tensor, context: Context) -> None:
    """The log-determinant is autodiff's, in both directions."""
    for name, direction in directions(transform):
        want = torch.linalg.slogdet(jacobian(direction, x, context))[1]
        close(direction(x, context)[1], want, f"{name} ladj", inputs=x)


def autoregressive(transform: FlowTransform, x: Tensor, context: Context) -> None:
    """The Jacobian is exactly zero above the diagonal, and positive on it."""
    for name, direction in directions(transform):
        matrix = jacobian(direction, x, context)
        assert torch.equal(matrix, matrix.tril()), f"{name}: not triangular, {matrix[0]}"
        assert (matrix.diagonal(dim1=-2, dim2=-1) > 0).all(), f"{name}: {matrix[0]}"


class Caller(nn.Module):
    """Runs one direction of a transform as a module's forward, for ``functional_call``."""

    def __init__(self, transform: FlowTransform, name: str) -> None:
        super().__init__()
        self.transform, self.name = transform, name

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Run the direction."""
        return getattr(self.transform, f"{self.name}_and_ladj")(x, context)


def gradients_match_differences(transform: FlowTransform, x: Tensor, context: Context) -> None:
    """Gradients for points, context and parameters are those of finite differences (float64)."""
    for name, _ in directions(transform):
        caller = Caller(transform, name)
        keys = [key for key, _ in caller.named_parameters()]

        def value(x: Tensor, context: Context, *values: Tensor) -> tuple[Tensor, ...]:
            given = dict(zip(keys, values, strict=True))  # noqa: B023
            return torch.func.functional_call(caller, given, (x, context))  # noqa: B023

        leaves = [leaf(tensor) for tensor in (x, context, *caller.parameters())]
        assert torch.autograd.gradcheck(value, leaves, fast_mode=True), name


def leaf(tensor: Tensor | None) -> Tensor | None:
    """Return a copy that collects a gradient."""
    return None if tensor is None else tensor.detach().clone().requires_grad_()


def starts_at_identity(transform: FlowTransform, x: Tensor, context: Context) -> None:
    """A new transform moves no point."""
    for name, direction in directions(transform):
        moved = (direction(x, context)[0] - x).abs().max()
        assert moved < 1e-3, f"{name} moves a point by {moved}"


def every_parameter_learns(transform: FlowTransform, x: Tensor, context: Context) -> None:
    """Every parameter gets a finite gradient that is not zero, in both directions."""
    for name, direction in directions(transform):
        transform.zero_grad()
        value, ladj = direction(x, context)
        (value.sin().sum() + ladj.square().sum()).backward()
        for key, parameter in transform.named_parameters():
            assert parameter.grad is not None, f"{name}: no gradient for {key}"
            finite(parameter.grad, f"{name}: gradient of {key}")
            assert parameter.grad.any(), f"{name}: the gradient of {key} is zero"


def density_integrates_to_one(flow: Flow, *, nodes: int, tolerance: float) -> None:
    """The density has mass one, by the trapezoidal rule over a box well around its draws."""
    draws = flow.sample((4000,))
    low, high = draws.amin(0), draws.amax(0)
    margin = 0.5 * (high - low)
    axes = [
        torch.linspace(float(a), float(b), nodes, dtype=draws.dtype)
        for a, b in zip(low - margin, high + margin, strict=True)
    ]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
    with torch.no_grad():
        density = flow.log_prob(grid).double().exp()
    mass = float(density.sum()) * math.prod(float(axis[1] - axis[0]) for axis in axes)
    assert abs(mass - 1) < tolerance, f"the mass is {mass}, over a box from {low} to {high}"


# Extremes.


def finite_at(
    transform: FlowTransform, x: Tensor, context: Context, *, parameters: bool = True
) -> None:
    """Values, log-determinants and gradients at huge points are finite."""
    for name, direction in directions(transform):
        start = leaf(x)
        transform.zero_grad()
        value, ladj = direction(start, context)
        finite(value, f"{name} value", inputs=x)
        finite(ladj, f"{name} ladj", inputs=x)
        (value.sum() + ladj.sum()).backward()
        finite(start.grad, f"{name} gradient of the points", inputs=x)
        for key, parameter in transform.named_parameters():
            if parameters:
                finite(parameter.grad, f"{name} gradient of {key}", inputs=x)


def relative_round_trip(transform: FlowTransform, x: Tensor, context: Context) -> None:
    """Points come back to within 1e-3 of their row's largest entry, at any magnitude."""
    y, _ = transform.forward_and_ladj(x, context)
    back, _ = transform.inverse_and_ladj(y, context)
    error = ((back - x).abs().amax(-1) / x.abs().amax(-1)).nan_to_num(nan=torch.inf)
    worst = int(error.argmax())
    assert error[worst] < 1e-3, f"relative error {error[worst]} for the input {x[worst].tolist()}"


def faulty_row_stays_alone(transform: FlowTransform, x: Tensor, context: Context) -> None:
    """Row 0 holds a NaN or an infinity: it gets no finite density and harms no other row."""
    clean = torch.where(x.isfinite(), x, 0.0)
    for name, direction in directions(transform):
        start = leaf(x)
        value, ladj = direction(start, context)
        want_value, want_ladj = direction(clean, context)
        close(value[1:], want_value[1:], f"{name} value of the other rows", inputs=x[1:])
        close(ladj[1:], want_ladj[1:], f"{name} ladj of the other rows", inputs=x[1:])
        assert not value[0].isfinite().all(), f"{name}: {x[0]} became {value[0]}"
        if x[0].isnan().any():
            assert value[0].isnan().any(), f"{name}: {x[0]} became {value[0]}"
        (value[1:].sum() + ladj[1:].sum()).backward()
        finite(start.grad[1:], f"{name} gradients of the other rows", inputs=x[1:])
    _faulty_density(Flow(transform), x, context)


def _faulty_density(flow: Flow, x: Tensor, context: Context) -> None:
    log_prob = (flow if context is None else flow.condition(context)).log_prob(x)
    finite(log_prob[1:], "log-density of the other rows", inputs=x[1:])
    if x[0].isnan().any():
        assert log_prob[0].isnan(), f"{x[0]} has the log-density {log_prob[0]}"
    assert not log_prob[0].isfinite(), f"{x[0]} has the log-density {log_prob[0]}"


# Shapes.


def batch_is_loop(transform: FlowTransform, x: Tensor, context: Context) -> None:
    """Points and contexts broadcast on their batch axes; the result is that of a loop."""
    batch = torch.broadcast_shapes(x.shape[:-1], () if context is None else context.shape[:-1])
    rows = x.expand(*batch, -1).reshape(-1, x.shape[-1])
    contexts = [None] * len(rows)
    if context is not None:
        contexts = context.expand(*batch, -1).reshape(-1, context.shape[-1])
    for name, direction in directions(transform):
        singles = [direction(row, c) for row, c in zip(rows, contexts, strict=True)]
        value, ladj = direction(x, context)
        want = torch.stack([single[0] for single in singles]).view(*batch, x.shape[-1])
        close(value, want, f"{name} value", inputs=x)
        close(ladj, torch.stack([s[1] for s in singles]).view(batch), f"{name} ladj", inputs=x)


def empty_batch(transform: FlowTransform, context: Context) -> None:
    """No points in, no points out."""
    x = torch.empty(0, transform.input_dim, dtype=torch.float64, requires_grad=True)
    for name, direction in directions(transform):
        value, ladj = direction(x, context)
        assert (value.shape, ladj.shape) == (x.shape, (0,)), name
        (value.sum() + ladj.sum()).backward()


def layout_does_not_matter(
    transform: FlowTransform, x: Tensor, odd: Tensor, context: Context
) -> None:
    """An odd layout of the values of ``x`` gives the same, and the input stays as it was."""
    before = odd.detach().clone()
    for name, direction in directions(transform):
        for got, want in zip(direction(odd, context), direction(x, context), strict=True):
            close(got, want, name, inputs=x)
        assert torch.equal(odd, before), f"{name} changed its input"


def dtype_is_kept(transform: FlowTransform, x: Tensor, context: Context) -> None:
    """The outputs have the dtype of the input."""
    for name, direction in directions(transform):
        assert {out.dtype for out in direction(x, context)} == {x.dtype}, name


# State.


def use(transform: FlowTransform, x: Tensor, context: Context) -> None:
    """Use a transform with gradients, in every way that could leave something behind."""
    for _, direction in directions(transform):
        value, ladj = direction(leaf(x), context)
        (value.sum() + ladj.sum()).backward()
    conditioned = transform.condition(context)
    y = conditioned(x)
    conditioned.inv(y), conditioned.log_abs_det_jacobian(x, y)


def same_map(got: FlowTransform, want: FlowTransform, x: Tensor, context: Context) -> None:
    """Two transforms give the same numbers, bit for bit."""
    for (name, left), (_, right) in zip(directions(got), directions(want), strict=True):
        for a, b in zip(left(x, context), right(x, context), strict=True):
            assert torch.equal(a, b), f"{name}: {a} is not {b}"


def copies_are_equal(transform: FlowTransform, x: Tensor, context: Context) -> None:
    """After use, every way to copy gives the same map; a deep copy shares no tensor."""
    use(transform, x, context)
    deep = copy.deepcopy(transform)
    for clone in (
        deep,
        copy.copy(transform),
        pickle.loads(pickle.dumps(transform)),
        reload(transform),
    ):
        same_map(clone, transform, x, context)
        assert clone.inv.inv is clone, "the inverse of a copy is that of the original"
    shared = {p.data_ptr() for p in deep.parameters()} & {
        p.data_ptr() for p in transform.parameters()
    }
    assert not shared


def saved_bytes(module: nn.Module) -> bytes:
    """Return what ``torch.save`` writes."""
    buffer = io.BytesIO()
    torch.save(module, buffer)
    return buffer.getvalue()


def reload(module: nn.Module) -> nn.Module:
    """Save a whole module and load it again."""
    return torch.load(io.BytesIO(saved_bytes(module)), weights_only=False)


def holds_no_data(module: nn.Module) -> None:
    """Nothing that a module has seen at the value ``SENTINEL`` is saved with it."""
    written = saved_bytes(module) + pickle.dumps(module)
    for code in ("<d", "<f"):
        assert struct.pack(code, SENTINEL) not in written, "a saved module holds its data"


def tensors_are_state(module: nn.Module) -> None:
    """No tensor hides in an attribute: ``.to()`` moves all of them."""
    for name, owner in module.to("meta").named_modules():
        hidden = {key: value for key, value in vars(owner).items() if _holds_tensor(value)}
        assert not hidden, f"{name or type(owner).__name__} holds {hidden}"
    for key, tensor in (*module.named_parameters(), *module.named_buffers()):
        assert tensor.is_meta, key


def _holds_tensor(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_holds_tensor(item) for item in value)
    return isinstance(value, Tensor)


# Engines.


def vmap_is_batch(transform: FlowTransform, x: Tensor, context: Context) -> None:
    """``vmap`` over points, and over points with contexts, gives what a batch gives."""
    for name, direction in directions(transform):
        in_dims = (0, None if context is None else 0)
        got = torch.func.vmap(direction, in_dims=in_dims)(x, context)
        for mapped, want in zip(got, direction(x, context), strict=True):
            close(mapped, want, f"{name} under vmap", inputs=x)


def trace_is_eager(transform: FlowTransform, x: Tensor, other: Tensor, context: Context) -> None:
    """A step traced by ``make_fx``, gradients and all, gives the eager numbers at other points."""
    for name, _ in directions(transform):
        step, parameters = _step(Caller(transform, name), context)
        traced = make_fx(step)(parameters, x)
        for got, want in zip(traced(parameters, other), step(parameters, other), strict=True):
            close(got, want, f"traced {name}", inputs=other)


def compiled_is_eager(
    transform: FlowTransform, x: Tensor, other: Tensor, context: Context
) -> None:
    """``torch.compile`` gives the eager numbers and gradients, at first and at other points."""
    for name, direction in directions(transform):
        compiled = torch.compile(direction, backend="aot_eager")
        for points in (x, other):
            got, want = (_with_gradients(f, points, context) for f in (compiled, direction))
            for a, b in zip(got, want, strict=True):
                close(a, b, f"compiled {name}", inputs=points)


def _with_gradients(direction: Direction, x: Tensor, context: Context) -> list[Tensor]:
    start = leaf(x)
    value, ladj = direction(start, context)
    return [value, ladj, *torch.autograd.grad(value.sin().sum() + ladj.sum(), start)]


def _step(
    caller: Caller, context: Context
) -> tuple[Callable[..., list[Tensor]], dict[str, Tensor]]:
    """Return a training step and the parameters it takes, as the traced engine will have it."""

    def step(parameters: dict[str, Tensor], x: Tensor) -> list[Tensor]:
        value, ladj = torch.func.functional_call(caller, parameters, (x, context))
        loss = value.sin().sum() + ladj.sum()
        grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        return [value, ladj, *(grad for grad in grads if grad is not None)]

    return step, {key: leaf(value) for key, value in caller.named_parameters()}
