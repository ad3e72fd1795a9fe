"""The cost of moving points: against closed forms, in both fits, and where it cannot be had."""

import contracts
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo
from fields import Linear, matrix, net

import pyro_flows as pf
from pyro_flows.density import fit_mle
from pyro_flows.density.toy import TwoMoons
from pyro_flows.transforms import Continuous, ElementwiseAffine, TransportCost
from pyro_flows.transforms.continuous import billed

pytest.importorskip("torchdiffeq", reason="needs torchdiffeq")

SOLVERS = {
    "rk4": {"solver": "rk4", "num_steps": 60},
    "recomputed": {"solver": "rk4", "num_steps": 60, "adjoint": True},
    "dopri5": {"solver": "dopri5", "tolerance": 1e-9},
    "adjoint": {"solver": "dopri5", "tolerance": 1e-9, "adjoint": True},
}
EVERY_SOLVER = pytest.mark.parametrize("options", SOLVERS.values(), ids=SOLVERS)
KINETIC, JACOBIAN = TransportCost(1.0, 0.0), TransportCost(0.0, 1.0)
QUIET = {"progress": False, "seed": 0}


def cost_of(cost, transform, x, context=None, direction="forward"):
    with billed(cost, "test") as bill:
        value, ladj = getattr(transform, f"{direction}_and_ladj")(x, context)
    return value, ladj, bill.mean(1)


def exact_energy(a, x):
    """Return int_0^1 |A exp(A t) x|^2 dt, by Gauss-Legendre."""
    nodes, weights = (torch.from_numpy(each) for each in np.polynomial.legendre.leggauss(20))
    ways = [(x @ (a @ torch.matrix_exp(a * t)).T).square().sum() for t in (nodes + 1) / 2]
    return (torch.stack(ways) * weights).sum() / 2


@EVERY_SOLVER
@pytest.mark.parametrize("d", [3, 6])
def test_costs_of_a_linear_field(options, d):
    """Both ways; for more than four coordinates, the norm is an estimate, of the right mean."""
    a, x = matrix(d), zoo.points(5, d)
    transform = Continuous(Linear(a), trace="exact", **options)
    y, ladj, energy = cost_of(KINETIC, transform, x)
    contracts.close(energy, exact_energy(a, x), "energy")
    back, _, again = cost_of(KINETIC, transform, y, direction="inverse")
    contracts.close(again, energy, "energy on the way back")
    contracts.close(back, x, "points")
    contracts.close(ladj, a.trace().expand(5), "ladj")
    norm = cost_of(JACOBIAN, transform, x)[2]
    if d == 3:
        contracts.close(norm, 5 * a.square().sum(), "norm")
        both = cost_of(TransportCost(0.5, 2.0), transform, x)[2]
        contracts.close(both, 0.5 * energy + 2 * norm, "weighted sum")


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_estimated_norm_has_the_right_mean(noise, trace):
    torch.manual_seed(0)
    a = matrix(6)
    transform = Continuous(Linear(a), trace=trace, noise=noise, num_steps=2)
    got = cost_of(JACOBIAN, transform, torch.zeros(20_000, 6).double())[2] / 20_000
    assert got.item() == pytest.approx(a.square().sum().item(), rel=0.03)


@pytest.mark.parametrize("hidden_dims", [(), (5,), (6, 5), (4, 5, 6)])
@pytest.mark.parametrize("c", [0, 2])
def test_norm_of_a_network_is_autodiffs(hidden_dims, c):
    field = net(c=c, hidden_dims=hidden_dims)
    t, z, context = torch.tensor(0.3).double(), zoo.points(7, 3), zoo.context_for(field, 7)
    rows = torch.func.vmap(torch.func.jacrev(lambda z, c: field(t, z, c)), (0, 0 if c else None))
    jacobian, noise = rows(z, context), zoo.points(7, 3, seed=5)
    along = (jacobian @ noise[..., None])[..., 0]
    trace, norm = jacobian.diagonal(dim1=-2, dim2=-1).sum(-1), jacobian.square().sum((-1, -2))
    for given, exact_trace, want in [
        (None, True, (trace, norm)),
        (noise, True, (trace, along.square().sum(-1))),
        (noise, False, ((along * noise).sum(-1), along.square().sum(-1))),
    ]:
        for kind in (type(field), pf.nn.Field):
            run = kind.dynamics_and_norm(field, context, given, exact_trace=exact_trace)
            velocity, *got = run(t, z)
            contracts.close(velocity, field(t, z, context), "velocity")
            contracts.close(got[0], want[0], "trace")
            contracts.close(got[1], want[1], "norm")


@EVERY_SOLVER
def test_gradient_of_the_cost_matches_a_difference(options):
    a, x = contracts.leaf(matrix()), zoo.points(4, 3)
    cost = TransportCost(0.3, 0.7)

    def value(a):
        transform = Continuous(Linear(a.detach()), **options)
        total = cost_of(cost, transform, x)[2]
        return total, torch.autograd.grad(total, transform.field.matrix)[0]

    direction = zoo.points(3, 3, seed=8)
    got = (value(a)[1] * direction).sum()
    ahead, behind = (value(a + step * direction)[0] for step in (1e-4, -1e-4))
    assert got.item() == pytest.approx(((ahead - behind) / 2e-4).item(), rel=1e-4)


def test_steps_of_dopri5_do_not_depend_on_the_cost():
    transform, x = Continuous(net(), solver="dopri5"), zoo.points(4, 3)
    transform(x)
    before = transform.num_evaluations
    y, _, _ = cost_of(TransportCost(1e3, 1e3), transform, x)
    assert transform.num_evaluations == before
    contracts.close(y, transform(x), "points")


def test_only_solves_that_train_are_charged():
    transform, x = Continuous(net()), zoo.points(4, 3)
    with billed(KINETIC, "test") as bill:
        with torch.no_grad():
            transform(x)
        with pf.transforms.base.parameters_held(transform):
            transform(x.requires_grad_())
        with pytest.raises(pf.DomainError, match="test: expected a flow with a Continuous trans"):
            bill.mean(1)
        transform(x)
    assert bill.mean(1) > 0
    transform(x)
    assert len(bill._terms) == 1


# In the fits.


def moons():
    return TwoMoons().seeded(600, seed=0)


def fitted(penalty, **options):
    torch.manual_seed(0)
    flow = pf.flows.cnf(2, num_steps=4, hidden_dims=(16, 16))
    options = {"epochs": 30, "lr": 1e-2, "validation": None, **QUIET, **options}
    return flow, fit_mle(flow, moons(), penalty=penalty, **options)


def test_fit_mle_adds_it_to_the_gradient_alone():
    """The first loss is the same; then ways are shorter, and the fit is not quite as close."""
    free, found = fitted(None)
    bound, result = fitted(TransportCost(0.5, 0.5))
    assert result.losses[0] == pytest.approx(found.losses[0], rel=1e-6)
    energies = [
        cost_of(KINETIC, flow, moons(), None, "inverse")[2]
        for flow in (free.transform.parts[0], bound.transform.parts[0])
    ]
    assert energies[1] < 0.5 * energies[0]
    assert result.nll > found.nll


def test_step_of_fit_mle_is_that_of_loss_and_cost():
    """One step of plain gradient descent from a field that moves."""
    torch.manual_seed(0)
    flow, rows = pf.Flow(Continuous(Linear(torch.randn(2, 2)), num_steps=3)), moons()[:50]
    cost = TransportCost(0.3, 0.2)
    before = flow.transform.field.matrix.detach().clone()
    with billed(cost, "test") as bill:
        loss = -flow.log_prob(rows).mean()
    (want,) = torch.autograd.grad(loss + bill.mean(50), flow.transform.field.matrix)
    fit_mle(
        flow,
        rows,
        penalty=cost,
        validation=None,
        epochs=1,
        clip_norm=1e9,
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
        callbacks=[],
        **QUIET,
    )
    torch.testing.assert_close(before - flow.transform.field.matrix, want, rtol=1e-4, atol=1e-5)


def test_rungs_give_the_same_steps():
    results = [
        fitted(TransportCost(0.1, 0.1), epochs=4, engine=rung)[1] for rung in ("eager", "traced")
    ]
    np.testing.assert_allclose(results[0].losses, results[1].losses, rtol=1e-4)


def banana():
    x = pyro.sample("x", dist.Normal(0.0, 2.0))
    pyro.sample("y", dist.Normal(x**2 / 2, 1.0))


def energy_of(guide):
    torch.manual_seed(1)
    flow = guide.flow
    continuous = next(m for m in flow.modules() if isinstance(m, Continuous))
    eps = torch.randn(2000, 2)
    return cost_of(KINETIC, continuous, eps)[2].item() / 2000


def recipe(d):
    return pf.flows.cnf(d, num_steps=4, hidden_dims=(16, 16))


@pytest.mark.parametrize("options", [{}, {"num_importance": 4}, {"particle_chunk": 32}])
def test_fit_adds_it_to_the_gradient_alone(options):
    energies, losses = [], []
    for penalty in (None, TransportCost(0.3, 0.3)):
        torch.manual_seed(0)
        guide = pf.AutoFlow(banana, flow=recipe, start="prior")
        result = pf.fit(
            banana,
            guide,
            steps=150,
            particles=64,
            lr=1e-2,
            penalty=penalty,
            refine=False,
            stop_early=False,
            **QUIET,
            **options,
        )
        energies.append(energy_of(guide))
        losses.append(result.losses[0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert energies[1] < 0.7 * energies[0]


def test_cost_of_a_step_is_a_mean_over_particles():
    """However they run: on a plate, and one by one."""
    torch.manual_seed(0)
    guide = pf.AutoFlow(banana, flow=recipe, start="prior")
    guide.initialise()
    zoo.randomise(guide.flow.transform, scale=0.2)
    costs = []
    for rows in (2000, None):
        torch.manual_seed(0)
        with billed(TransportCost(1.0, 1.0), "test") as bill:
            posterior = guide.get_posterior()
            if rows:
                posterior.rsample((rows,))
            else:
                for _ in range(500):
                    posterior.rsample()
        costs.append(bill.mean(rows or 500).item())
    assert costs[1] == pytest.approx(costs[0], rel=0.2)


def test_refusals(tmp_path):
    with pytest.raises(pf.DomainError, match="fit_mle: expected a flow with a Continuous"):
        fit_mle(pf.flows.realnvp(2, num_transforms=2), moons(), penalty=TransportCost(), **QUIET)
    with pytest.raises(pf.DomainError, match="fit_mle: expected penalty to be a TransportCost"):
        fitted(0.1)
    with pytest.raises(pf.DomainError, match="fit: expected penalty to be a TransportCost"):
        pf.fit(banana, pf.AutoFlow(banana), penalty=0.1, **QUIET)
    with pytest.raises(pf.DomainError, match="fit: expected a flow with a Continuous"):
        pf.fit(banana, pf.AutoFlow(banana), penalty=TransportCost(), steps=5, **QUIET)
    with pytest.raises(pf.DomainError, match="kinetic to be a finite number >= 0"):
        TransportCost(-1.0)
    with pytest.raises(pf.DomainError, match="kinetic or jacobian above 0; got two zeros"):
        TransportCost(0.0, 0.0)
    saved = {"checkpoint": tmp_path / "run", "epochs": 2}
    fitted(TransportCost(), **saved)
    with pytest.raises(pf.CheckpointError, match="penalty"):
        fitted(None, resume=True, **saved)


def test_solves_within_vmap_are_refused():
    transform, x = Continuous(net()), zoo.points(4, 3)
    with (
        billed(KINETIC, "fit"),
        pytest.raises(pf.DomainError, match="fit: expected a flow that runs for all particles"),
    ):
        torch.func.vmap(transform)(x)


def test_elements_of_a_plain_affine_flow_do_not_cost():
    flow = pf.Flow([Continuous(net()), ElementwiseAffine(3).double()])
    x = zoo.points(4, 3)
    alone = cost_of(KINETIC, flow.transform.parts[0], x)[2]
    contracts.close(cost_of(KINETIC, flow.transform, x)[2], alone, "cost")
    assert alone > 0
