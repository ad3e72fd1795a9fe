"""The conditioners: what depends on what, and the inverse that walks block by block."""

import contracts
import pytest
import torch
import zoo
from torch import nn

from pyro_flows.nn import DenseNet, MaskedNet
from pyro_flows.nn.activations import ACTIVATIONS
from pyro_flows.nn.opaque import opaque
from pyro_flows.transforms import Affine

AFFINE = Affine(log_scale_bound=1.0)
DTYPES = [torch.float32, torch.float64]
# Numbers of coordinates about the sizes at which a walk may change its blocks, and uneven layers.
WALKS = [
    pytest.param(d, hidden, c, id=f"D{d}-H{'x'.join(map(str, hidden))}-C{c}")
    for d in (1, 2, 3, 7, 8, 9, 16, 17, 33)
    for hidden in ((), (40,), (33, 50), (64, 35, 37))
    for c in (0, 3)
]


def _masked(d, hidden, c, *, dtype=torch.float64, activation="silu", num_params=2):
    net = MaskedNet(d, num_params, hidden_dims=hidden, context_dim=c, activation=activation)
    return zoo.randomise(net.to(dtype), scale=0.3)


def _context(c, *batch, dtype=torch.float64):
    return zoo.points(*batch, c, dtype=dtype, seed=4) if c else None


@pytest.mark.parametrize("num_params", [1, 2, 5])
@pytest.mark.parametrize("hidden", [(), (5,), (9, 6), (16, 5, 7)])
@pytest.mark.parametrize("c", [0, 3])
def test_masked_net_depends_on_all_coordinates_before_and_on_no_other(hidden, c, num_params):
    d = 5 if hidden else 4
    net, context = _masked(d, hidden, c, num_params=num_params), _context(c)
    rows = torch.func.jacrev(lambda x: net(x, context))(zoo.points(d))
    depends = rows.ne(0).any(0)
    assert torch.equal(depends, torch.ones(d, d, dtype=torch.bool).tril(-1))


@pytest.mark.parametrize("d", [1, 2, 6])
def test_masked_net_lets_every_parameter_see_the_context(d):
    net = _masked(d, (12, 9), 3)
    rows = torch.func.jacrev(lambda c: net(zoo.points(d), c))(_context(3))
    assert rows.ne(0).all()


def _by_passes(net, y, context):
    """Solve coordinate by coordinate, by one full pass for each: slow and plain."""
    batch = torch.broadcast_shapes(y.shape[:-1], () if context is None else context.shape[:-1])
    x = torch.zeros(*batch, y.shape[-1], dtype=y.dtype)
    for i in range(y.shape[-1]):
        params = net(x, context)[..., i : i + 1]
        x_i, _ = AFFINE.inverse_and_ladj(y[..., i : i + 1], params)
        x = torch.cat([x[..., :i], x_i, x[..., i + 1 :]], -1)
    return x


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("d", "hidden", "c"), WALKS)
def test_solve_is_the_loop_of_full_passes(d, hidden, c, dtype):
    net = _masked(d, hidden, c, dtype=dtype)
    y, context = zoo.points(6, d, dtype=dtype), _context(c, 6, dtype=dtype)
    with torch.no_grad():
        x, ladj, _ = net.solve(y, context, AFFINE)
        contracts.close(x, _by_passes(net, y, context), "solution", inputs=y)
        want = -AFFINE.forward_and_ladj(x, net(x, context))[1]
        contracts.close(ladj, want, "ladj at the solution", inputs=y)
    again = net.solve(y, context, AFFINE)
    contracts.close(again[0], x, "solution with a gradient", inputs=y)
    contracts.close(again[1], ladj, "ladj with a gradient", inputs=y)


@pytest.mark.parametrize(
    ("batch", "context_batch"),
    [((), ()), ((), (4,)), ((3, 4), (4,)), ((3, 1), (1, 4)), ((0,), ())],
)
def test_solve_broadcasts(batch, context_batch):
    """FAULTS 3, 6."""
    net = _masked(9, (16,), 3)
    y, context = zoo.points(*batch, 9), _context(3, *context_batch)
    x, *_ = net.solve(y, context, AFFINE)
    with torch.no_grad():
        contracts.close(x, _by_passes(net, y, context), "solution")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("d", "hidden"), [(9, (12, 11)), (17, (40,)), (4, ())])
@pytest.mark.parametrize("c", [0, 3])
def test_implicit_gradient_is_that_of_the_unrolled_loop(d, hidden, c, activation):
    """FAULTS 33: for targets, contexts and weights, beyond one block of the walk."""
    net = _masked(d, hidden, c, activation=activation)
    y, context = contracts.leaf(zoo.points(5, d)), contracts.leaf(_context(c, 5))
    implicit, *_ = net.solve(y, context, AFFINE)
    unrolled = _by_passes(net, y, context)
    leaves = [tensor for tensor in (y, context, *net.parameters()) if tensor is not None]
    got, want = (torch.autograd.grad(value.sin().sum(), leaves) for value in (implicit, unrolled))
    for a, b in zip(got, want, strict=True):
        contracts.close(a, b, "gradient")


def test_solve_keeps_rows_apart():
    """FAULTS 16: a NaN in one row stays there."""
    net, y = _masked(9, (16, 12), 0), zoo.points(6, 9)
    want, *_ = net.solve(y, None, AFFINE)
    y[2, 4] = torch.nan
    got, *_ = net.solve(y, None, AFFINE)
    assert torch.equal(got[[0, 1, 3, 4, 5]], want[[0, 1, 3, 4, 5]])
    assert torch.equal(got[2, :4], want[2, :4])
    assert got[2, 4:].isnan().all()


def test_forbidden_weights_do_not_matter():
    """FAULTS 21: not even where they are infinite; and they get no gradient."""
    net, x = _masked(5, (8, 8), 0), zoo.points(4, 5)
    want = net(x)
    with torch.no_grad():
        for layer in net.layers:
            layer.weight[~layer.mask] = torch.inf
    assert torch.equal(net(x), want)
    (1e200 * net(1e200 * x)).sum().backward()
    for layer in net.layers:
        assert torch.equal(
            layer.weight.grad[~layer.mask], torch.zeros(int((~layer.mask).sum())).double()
        )


@pytest.mark.parametrize("d", [0, 3])
@pytest.mark.parametrize("c", [0, 2])
@pytest.mark.parametrize("hidden", [(), (7,), (7, 5)])
def test_dense_net_starts_at_zero_and_broadcasts(d, c, hidden):
    net = DenseNet(d, 4, hidden_dims=hidden, context_dim=c).double()
    x, context = zoo.points(6, 5, d) if d else None, _context(c, 5)
    shape = (6, 5, 4) if d else (5, 4) if c else (4,)
    got = net(x, context).expand(shape)
    assert torch.equal(got, torch.zeros(shape, dtype=torch.float64))
    got = zoo.randomise(net)(x, context)
    if d or c:
        alone = net(None if x is None else x[2, 1], None if context is None else context[1])
        contracts.close(got[(2, 1) if d else 1], alone, "one row")
    for name, parameter in net.named_parameters():
        net.zero_grad()
        net(x, context).sum().backward()
        assert parameter.grad.any(), name


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slopes_are_derivatives(name):
    """FAULTS 24: also far out; at a kink, autograd's choice."""
    activation = ACTIVATIONS[name]
    special = torch.tensor(
        [0.0, 1e-30, -1e-30, 20.0, -20.0, 100.0, -100.0, 1e4, -1e4, 1e30, -1e30]
    )
    a = contracts.leaf(torch.cat([special.double(), torch.linspace(-6, 6, 400).double()]))
    want = torch.autograd.grad(activation.function(a).sum(), a)[0]
    contracts.close(activation.slope(a.detach()), want, "slope", inputs=a.detach())


def test_networks_share_no_module():
    """One activation object among all flows would be converted for all of them at once."""
    nets = [MaskedNet(3, 2), MaskedNet(3, 2), DenseNet(3, 2), DenseNet(3, 2)]
    modules = [module for net in nets for module in net.modules()]
    assert len(set(map(id, modules))) == len(modules)
    assert all(isinstance(module, nn.Module) for module in modules)


def test_opaque_kernels_map_over_rows_and_weights():
    """FAULTS 35: a kernel that writes in place, under vmap over either argument or both."""

    def kernel(rows, weight):
        out = torch.empty_like(rows)
        for i in range(rows.shape[-1]):
            out[..., i] = rows[..., i] * weight[i]
        return out

    rows, weights = zoo.points(4, 5, 3), zoo.points(4, 3)

    def run(row, weight):
        return opaque(kernel, [row], [weight])

    for dims, row, weight, want in (
        ((0, None), rows, weights[0], rows * weights[0]),
        ((None, 0), rows[0], weights, rows[0] * weights[:, None]),
        ((0, 0), rows, weights, rows * weights[:, None]),
        ((1, None), rows, weights[0], (rows * weights[0]).transpose(0, 1)),
    ):
        got = torch.func.vmap(run, in_dims=dims)(row, weight)
        assert torch.equal(got, want)
