"""Every kind of field: what it computes, and what continuous flows promise with it."""

import contracts
import pytest
import torch
import zoo
from fields import KINDS, net

from pyro_flows import flows
from pyro_flows.distributions import Flow
from pyro_flows.errors import DomainError
from pyro_flows.nn import Field, GatedNet, PotentialNet
from pyro_flows.transforms import Continuous

pytest.importorskip("torchdiffeq", reason="needs torchdiffeq")

EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
EVERY_CONTEXT = pytest.mark.parametrize("c", [0, 2])
EVERY_DEPTH = pytest.mark.parametrize("hidden_dims", [(5,), (6, 5), (4, 5, 6)])
SOLVERS = [{"num_steps": 100}, {"solver": "dopri5", "tolerance": 1e-9}]
EVERY_SOLVER = pytest.mark.parametrize("options", SOLVERS, ids=["rk4", "dopri5"])
T = torch.tensor(0.3).double()


def jacobian(field, z, context):
    rows = torch.func.jacrev(lambda z, c: field(T, z, c))
    return torch.func.vmap(rows, (0, None if context is None else 0))(z, context)


@EVERY_KIND
@EVERY_CONTEXT
@EVERY_DEPTH
def test_trace_and_norm_are_autodiffs(kind, c, hidden_dims):
    field, z = net(c=c, kind=kind, hidden_dims=hidden_dims), zoo.points(7, 3)
    context, noise = zoo.context_for(field, 7), zoo.points(7, 3, seed=5)
    full = jacobian(field, z, context)
    along = (full @ noise[..., None])[..., 0]
    trace, norm = full.diagonal(dim1=-2, dim2=-1).sum(-1), full.square().sum((-1, -2))
    estimates = (along * noise).sum(-1), along.square().sum(-1)
    contracts.close(field.dynamics(context)(T, z)[1], trace, "trace")
    contracts.close(field.dynamics(context, noise)(T, z)[1], estimates[0], "estimate")
    for given, exact_trace, want in [
        (None, True, (trace, norm)),
        (noise, True, (trace, estimates[1])),
        (noise, False, estimates),
    ]:
        for its in (type(field), Field):
            run = its.dynamics_and_norm(field, context, given, exact_trace=exact_trace)
            velocity, *got = run(T, z)
            contracts.close(velocity, field(T, z, context), "velocity")
            for mine, theirs in zip(got, want, strict=True):
                contracts.close(mine, theirs, "trace or norm")


@EVERY_KIND
def test_times_contexts_and_points_broadcast(kind):
    field = net(c=2, kind=kind)
    t, z, context = torch.rand(4, 1).double(), zoo.points(5, 3), zoo.points(4, 1, 2)
    got = field(t, z, context)
    assert got.shape == (4, 5, 3)
    one = field(t[1, 0], z[2], context[1, 0])
    contracts.close(got[1, 2], one, "one point")
    velocity, trace = field.dynamics(context)(T, z.expand(4, 5, 3).contiguous())
    assert (velocity.shape, trace.shape) == ((4, 5, 3), (4, 5))


@EVERY_KIND
@EVERY_CONTEXT
def test_time_and_context_matter(kind, c):
    field, z, context = net(c=c, kind=kind), zoo.points(5, 3), zoo.context_for(net(c=c), 5)
    here = field(T, z, context)
    assert (field(T + 0.2, z, context) - here).abs().min() > 1e-5
    if c:
        assert (field(T, z, context + 0.2) - here).abs().min() > 1e-5


def test_gates_and_shifts_are_those_of_the_formula():
    field = net(2, kind="gated", hidden_dims=(4,), num_frequencies=1)
    z, given = zoo.points(5, 2), torch.tensor([0.3, 0.3 * torch.pi, 0.0]).double()
    features = torch.stack([given[0], given[1].sin(), given[1].cos()])
    gate, shift = (field.gates.weight @ features + field.gates.bias).chunk(2)
    inner = z @ field.net.from_input.weight.T + field.net.bias
    hidden = torch.tanh(inner * torch.sigmoid(gate) + shift)
    want = hidden @ field.net.layers[0].weight.T + field.net.layers[0].bias
    contracts.close(field(T, z), want, "velocity")


@EVERY_CONTEXT
def test_field_of_a_potential_is_its_gradient_without_curl(c):
    field, z = net(c=c, kind="potential"), contracts.leaf(zoo.points(5, 3))
    context = zoo.context_for(field, 5)
    (want,) = torch.autograd.grad(field.potential(T, z, context).sum(), z)
    contracts.close(field(T, z, context), want, "gradient")
    full = jacobian(field, z.detach(), context)
    contracts.close(full, full.mT, "symmetry")
    assert full.abs().min() > 1e-6


@EVERY_KIND
def test_cheap_traces_are_those_of_two_hidden_layers(kind):
    deep = net(kind=kind, hidden_dims=(4, 4, 4))
    assert net(kind=kind).cheap_trace == (kind != "potential")
    assert not deep.cheap_trace


# As a part of a flow.


@EVERY_KIND
@EVERY_CONTEXT
@EVERY_SOLVER
def test_round_trip_and_ladj(kind, c, options):
    transform, x = Continuous(net(c=c, kind=kind), **options), zoo.points(2, 3)
    context = zoo.context_for(transform, 2)
    contracts.round_trip(transform, x, context)
    contracts.inverse_ladj_negates(transform, x, context)
    reference = Continuous(transform.field, **SOLVERS[0])
    for name, direction in contracts.directions(reference):
        want = torch.linalg.slogdet(contracts.jacobian(direction, x, context))[1]
        got = getattr(transform, f"{name}_and_ladj")(x, context)[1]
        contracts.close(got, want, f"{name} ladj", inputs=x)


@EVERY_KIND
def test_batches(kind):
    """FAULTS 3, 16."""
    transform = Continuous(net(c=2, kind=kind), num_steps=3)
    contracts.batch_is_loop(transform, zoo.points(2, 1, 3), zoo.points(2, 2))
    contracts.empty_batch(transform, zoo.points(2))
    x = zoo.points(5, 3)
    x[0, 1] = torch.nan
    contracts.faulty_row_stays_alone(transform, x, zoo.points(5, 2))


@EVERY_KIND
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_starts_at_the_identity_and_every_parameter_learns(kind, dtype):
    """FAULTS 34."""
    transform = Continuous(KINDS[kind](3, context_dim=2, hidden_dims=(8, 6)), num_steps=3)
    transform, x, context = transform.to(dtype), zoo.points(9, 3).to(dtype), zoo.points(9, 2)
    y, ladj = transform.forward_and_ladj(x, context.to(dtype))
    assert y.dtype == ladj.dtype == dtype
    assert torch.equal(x, y)
    assert not ladj.any()
    zoo.randomise(transform, scale=0.3)
    contracts.every_parameter_learns(transform, x, context.to(dtype))


@EVERY_KIND
@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
@pytest.mark.parametrize("activation", ["tanh", "silu", "elu", "leaky_relu", "relu"])
def test_every_activation_trains(kind, trace, activation):
    """FAULTS 34: the trace is made of slopes, and its gradient of theirs."""
    if kind == "potential" and activation not in ("tanh", "silu"):
        with pytest.raises(DomainError, match="activation to be one of 'tanh', 'silu'"):
            net(kind=kind, activation=activation)
        return
    field, x = net(kind=kind, activation=activation), zoo.points(9, 3)
    contracts.every_parameter_learns(Continuous(field, num_steps=2, trace=trace), x, None)


@EVERY_KIND
@EVERY_SOLVER
def test_gradients(kind, options):
    """FAULTS 33: against differences, and by the adjoint."""
    transform, x = Continuous(net(2, kind=kind), **options), zoo.points(2, 2)
    parameters = list(transform.parameters())
    directions = [zoo.points(*p.shape, seed=7) for p in parameters]

    def value(transform, step=0.0):
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.add_(step * direction)
        y, ladj = transform.forward_and_ladj(x)
        return y.sin().sum() + ladj.square().sum()

    gradients = torch.autograd.grad(value(transform), parameters)
    adjoint = Continuous(transform.field, adjoint=True, **options)
    again = torch.autograd.grad(value(adjoint), parameters)
    for one, other in zip(gradients, again, strict=True):
        contracts.close(other, one, "adjoint", slack=3)
    got = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    difference = (value(transform, 1e-4) - value(transform, -2e-4)) / 2e-4
    assert abs(got - difference) < 1e-4 * abs(got)


@EVERY_KIND
def test_copies_traces_and_maps(kind):
    """FAULTS 35, 39."""
    transform, x = Continuous(net(2, kind=kind, hidden_dims=(4,)), num_steps=2), zoo.points(3, 2)
    contracts.copies_are_equal(transform, x, None)
    contracts.trace_is_eager(transform, x, zoo.points(3, 2, seed=9), None)
    contracts.vmap_is_batch(transform, x, None)


@EVERY_KIND
def test_density_integrates_to_one(kind):
    """FAULTS 32."""
    flow = Flow(Continuous(net(1, kind=kind), num_steps=40))
    contracts.density_integrates_to_one(flow, nodes=2001, tolerance=1e-4)


@EVERY_KIND
def test_recipe_takes_the_field_by_its_name(kind):
    flow = flows.cnf(3, field=kind, context_dim=1, hidden_dims=(7,))
    assert type(flow.transform.parts[0].field) is KINDS[kind]
    with pytest.raises(DomainError, match="field to be one of 'time', 'gated', 'potential'"):
        flows.cnf(3, field="free")


def test_bad_sizes_are_refused():
    with pytest.raises(DomainError, match="GatedNet: expected at least one hidden layer"):
        GatedNet(2, hidden_dims=())
    with pytest.raises(DomainError, match="PotentialNet: expected at least one hidden layer"):
        PotentialNet(2, hidden_dims=())
    with pytest.raises(DomainError, match="num_frequencies to be an integer >= 0"):
        PotentialNet(2, num_frequencies=-1)
