"""Continuous flows: against closed forms and autodiff, and what happens where a solve fails."""

import copy
import math
import pickle

import contracts
import pytest
import torch
import zoo
from fields import Linear, Times, matrix, net

from pyro_flows import flows
from pyro_flows.distributions import Flow
from pyro_flows.nn import Field, TimeNet
from pyro_flows.transforms import Continuous

pytest.importorskip("torchdiffeq", reason="needs torchdiffeq")

# Both resolve what they solve to the tolerance of the contracts.
EXACT = {
    "rk4": {"solver": "rk4", "num_steps": 100},
    "dopri5": {"solver": "dopri5", "tolerance": 1e-9},
}
EVERY_SOLVER = pytest.mark.parametrize("options", EXACT.values(), ids=EXACT)


# The trace.


@pytest.mark.parametrize("hidden_dims", [(), (5,), (6, 5), (4, 5, 6), (4, 5, 6, 3)])
@pytest.mark.parametrize("c", [0, 2])
def test_trace_of_a_network_is_autodiffs(hidden_dims, c):
    field = net(c=c, hidden_dims=hidden_dims)
    t, z, context = torch.tensor(0.3).double(), zoo.points(7, 3), zoo.context_for(field, 7)
    velocity, trace = field.dynamics(context)(t, z)
    want = torch.func.vmap(torch.func.jacrev(lambda z, c: field(t, z, c)), (0, 0 if c else None))
    jacobian = want(z, context)
    contracts.close(trace, jacobian.diagonal(dim1=-2, dim2=-1).sum(-1), "trace")
    contracts.close(velocity, field(t, z, context), "velocity")
    for got, exact in zip(Field.dynamics(field, context)(t, z), (velocity, trace), strict=True):
        contracts.close(got, exact, "by products")


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
def test_mean_of_the_estimate_is_the_exact_trace(noise):
    torch.manual_seed(0)
    field, x = net(), zoo.points(3)
    want = Continuous(field, trace="exact").forward_and_ladj(x)[1]
    estimator = Continuous(field, trace="hutchinson", noise=noise)
    got = estimator.forward_and_ladj(x.expand(20_000, 3))[1]
    error = got.std() / len(got) ** 0.5
    assert error > 0
    assert (got.mean() - want).abs() < 3 * error


def test_estimate_takes_one_direction_for_a_solve():
    """Of a linear field, each velocity gives the same estimate: e' A e times the time."""
    field = Linear(matrix())
    torch.manual_seed(0)
    got = Continuous(field, trace="hutchinson", noise="gaussian").forward_and_ladj(
        zoo.points(5, 3)
    )
    torch.manual_seed(0)
    noise = torch.randn(5, 3, dtype=torch.float64)
    contracts.close(got[1], ((noise @ field.matrix) * noise).sum(-1), "estimate")


def test_stochastic_tells_whether_the_trace_is_estimated():
    """FAULTS 31."""
    wide, deep = Linear(matrix(5)), TimeNet(5, hidden_dims=(4, 4, 4))
    for field in (wide, deep):
        auto = Continuous(field)
        assert auto.stochastic
        assert not auto.eval().stochastic
    for field in (TimeNet(5), Linear(matrix(4))):
        assert not Continuous(field).stochastic
    assert not Continuous(wide, trace="exact").stochastic
    assert Continuous(TimeNet(2), trace="hutchinson").eval().stochastic


@pytest.mark.parametrize("training", [True, False])
def test_the_same_point_twice_has_two_densities_only_if_stochastic(training):
    """FAULTS 31."""
    transform = Continuous(Linear(matrix(5))).train(training)
    x = zoo.points(3, 5)
    first, second = (transform.forward_and_ladj(x)[1] for _ in range(2))
    assert transform.stochastic == (not torch.equal(first, second))


# The solution.


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_order_of_fixed_steps(solver, order):
    """On z' = 2 z cos(t), both the points and the log-determinant have a closed form."""
    field = Times(lambda t, z: 2 * z * torch.cos(t))
    x, steps = zoo.points(5, 2), (16, 32, 64)
    growth = 2 * math.sin(1)
    errors = []
    for num_steps in steps:
        transform = Continuous(field, solver=solver, num_steps=num_steps)
        y, ladj = transform.forward_and_ladj(x)
        errors.append([(y - x * math.exp(growth)).abs().max(), (ladj - 2 * growth).abs().max()])
    slopes = -torch.tensor(errors).log2().diff(dim=0)
    assert (slopes[:, 0] - order).abs().max() < 0.15
    # A left Riemann sum, the midpoint rule and Simpson's.
    assert (slopes[:, 1] - order).abs().max() < 0.15


@EVERY_SOLVER
def test_linear_field_is_a_matrix_exponential(options):
    a, x = matrix(), zoo.points(5, 3)
    transform = Continuous(Linear(a), **options)
    y, ladj = transform.forward_and_ladj(x)
    contracts.close(y, x @ torch.matrix_exp(a).T, "points")
    contracts.close(ladj, a.trace().expand(5), "ladj")
    back, inverse_ladj = transform.inverse_and_ladj(y)
    contracts.close(back, x, "inverse")
    contracts.close(inverse_ladj, -ladj, "inverse ladj")


@EVERY_SOLVER
@pytest.mark.parametrize("c", [0, 2])
def test_round_trip_and_ladj(options, c):
    """FAULTS 33."""
    transform, x = Continuous(net(c=c), **options), zoo.points(4, 3)
    context = zoo.context_for(transform, 4)
    contracts.round_trip(transform, x, context)
    contracts.inverse_ladj_negates(transform, x, context)
    reference = Continuous(transform.field, **EXACT["rk4"])
    for name, direction in contracts.directions(reference):
        want = torch.linalg.slogdet(contracts.jacobian(direction, x, context))[1]
        got = getattr(transform, f"{name}_and_ladj")(x, context)[1]
        contracts.close(got, want, f"{name} ladj", inputs=x)


@EVERY_SOLVER
def test_batch_axes_and_contexts(options):
    """FAULTS 3; the steps of dopri5 are those of the worst row, and so not quite a loop's."""
    transform = Continuous(net(c=2), **options)
    contracts.batch_is_loop(transform, zoo.points(2, 1, 3), zoo.points(2, 2))
    contracts.batch_is_loop(transform, zoo.points(3), zoo.points(2, 2))
    contracts.empty_batch(transform, zoo.points(2))


@EVERY_SOLVER
def test_starts_at_the_identity(options):
    """FAULTS 34."""
    transform, x = Continuous(TimeNet(3, context_dim=2).double(), **options), zoo.points(9, 3)
    y, ladj = transform.forward_and_ladj(x, zoo.points(9, 2))
    # The library's last value is interpolated, at the end of an interval.
    assert (x - y).abs().max() < 1e-14
    assert not ladj.any()


def test_counts_its_evaluations():
    transform, x = Continuous(net(), solver="midpoint", num_steps=5), zoo.points(4, 3)
    assert transform.num_evaluations == 0
    transform(x)
    assert transform.num_evaluations == 10
    counts = []
    for tolerance in (1e-3, 1e-9):
        transform = Continuous(transform.field, solver="dopri5", tolerance=tolerance)
        transform(x)
        counts.append(transform.num_evaluations)
    assert 7 <= counts[0] < counts[1]
    assert "num_evaluations" not in transform.state_dict()


# Gradients.


def _gradients(transform, x, context):
    leaves = [contracts.leaf(x), contracts.leaf(context), *transform.parameters()]
    value, ladj = transform.inverse_and_ladj(*leaves[:2])
    return torch.autograd.grad(value.sin().sum() + ladj.square().sum(), leaves)


@EVERY_SOLVER
def test_adjoint_is_backprop(options):
    field, x, context = net(c=2), zoo.points(4, 3), zoo.points(4, 2)
    want = _gradients(Continuous(field, **options), x, context)
    got = _gradients(Continuous(field, adjoint=True, **options), x, context)
    for a, b in zip(got, want, strict=True):
        contracts.close(a, b, "gradient", slack=3)


@EVERY_SOLVER
@pytest.mark.parametrize("adjoint", [False, True])
def test_gradients_of_a_field_with_foreign_parameters(options, adjoint):
    """FAULTS 33: ``functional_call`` has put the module's own back when gradients are computed."""
    transform = Continuous(Linear(matrix()), adjoint=adjoint, **options)
    caller, x = contracts.Caller(transform, "forward"), zoo.points(4, 3)
    given = contracts.leaf(0.5 * matrix())
    value, ladj = torch.func.functional_call(caller, {"transform.field.matrix": given}, (x,))
    (got,) = torch.autograd.grad(value.sum() + ladj.sum(), given)
    want = contracts.leaf(0.5 * matrix())
    (x @ torch.matrix_exp(want).T).sum().add(4 * want.trace()).backward()
    contracts.close(got, want.grad, "gradient")


@EVERY_SOLVER
def test_gradients_match_differences(options):
    """FAULTS 33: along a random direction of all parameters."""
    transform, x = Continuous(net(2), **options), zoo.points(2, 2)
    parameters = list(transform.parameters())
    directions = [zoo.points(*p.shape, seed=7) for p in parameters]

    def value(step):
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.add_(step * direction)
        y, ladj = transform.forward_and_ladj(x)
        return y.sin().sum() + ladj.square().sum()

    gradients = torch.autograd.grad(value(0.0), parameters)
    got = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    difference = (value(1e-4) - value(-2e-4)) / 2e-4
    assert abs(got - difference) < 1e-4 * abs(got)


@EVERY_SOLVER
def test_adjoint_saves_memory(options):
    def saved(adjoint):
        kept = []
        transform = Continuous(net(), adjoint=adjoint, **options)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()), id):
            transform.forward_and_ladj(zoo.points(50, 3))
        return sum(kept)

    assert saved(adjoint=True) < saved(adjoint=False) / 5


# State, engines and use.


@pytest.mark.parametrize("options", [{}, {"solver": "dopri5"}], ids=["rk4", "dopri5"])
def test_copies_are_equal(options):
    """FAULTS 39."""
    transform, x = Continuous(net(c=2), **options), zoo.points(4, 3)
    contracts.copies_are_equal(transform, x, zoo.points(4, 2))
    fresh = Continuous(TimeNet(3, context_dim=2, hidden_dims=(8, 6)).double(), **options)
    fresh.load_state_dict(transform.state_dict())
    contracts.same_map(fresh, transform, x, zoo.points(4, 2))
    contracts.tensors_are_state(pickle.loads(pickle.dumps(copy.deepcopy(transform))))


@pytest.mark.parametrize("trace", ["exact", "auto"])
@pytest.mark.parametrize("hidden_dims", [(4,), (3, 3, 3)])
def test_traced_step_is_eager(hidden_dims, trace):
    """FAULTS 35: two steps, of which a graph can be recorded."""
    transform = Continuous(net(2, hidden_dims=hidden_dims), num_steps=2, trace=trace)
    contracts.trace_is_eager(transform, zoo.points(3, 2), zoo.points(3, 2, seed=9), None)


def test_trace_by_products_is_recorded_and_mapped():
    """FAULTS 35."""
    transform, x = Continuous(Linear(matrix(2)), num_steps=2), zoo.points(3, 2)
    contracts.trace_is_eager(transform, x, zoo.points(3, 2, seed=9), None)
    contracts.vmap_is_batch(transform, x, None)


def test_recipe_passes_its_options_on():
    flow = flows.cnf(
        3, num_transforms=2, solver="euler", num_steps=5, trace="hutchinson", hidden_dims=(7,)
    )
    part = flow.transform.parts[1]
    assert (part.solver, part.num_steps, part.stochastic) == ("euler", 5, True)
    assert part.field.net.layers[0].in_features == 7
    tight = flows.cnf(3, solver="dopri5", tolerance=1e-3, max_steps=9, adjoint=True).transform
    part = tight if isinstance(tight, Continuous) else tight.parts[0]
    assert (part.tolerance, part.max_steps, part.adjoint) == (1e-3, 9, True)


def test_density_by_dopri5_integrates_to_one():
    """FAULTS 32."""
    flow = Flow(Continuous(net(1), solver="dopri5"))
    contracts.density_integrates_to_one(flow, nodes=2001, tolerance=1e-4)
