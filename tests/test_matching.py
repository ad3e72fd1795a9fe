"""Flow matching: against closed forms, on every rung, in files, and where it cannot be."""

import math

import numpy as np
import pytest
import torch
from fits import same

import pyro_flows as pf
from pyro_flows.density import Dequantised, FlowDensity, fit_matching, fit_mle
from pyro_flows.density.paths import Matching
from pyro_flows.density.toy import TwoMoons
from pyro_flows.distributions import GaussianMixture
from pyro_flows.nn import Field, TimeNet
from pyro_flows.transforms import Compose, Continuous, ElementwiseAffine

QUIET = {"progress": False, "seed": 0}


def gaussian(num=4000, dtype=torch.float32):
    """Rows of mean 3 and 0, and sd 0.5 and 2."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(num, 2, generator=generator) * torch.tensor([0.5, 2.0])
    return (rows + torch.tensor([3.0, 0.0])).to(dtype)


def entropy(*sds):
    return sum(0.5 * math.log(2 * math.pi * math.e * sd**2) for sd in sds)


def velocity(t, z, mean, sd):
    """Return E[z1 - z0 | z_t = z] for independent z0 ~ N(0, 1) and z1 ~ N(mean, sd^2)."""
    slope = (t * sd**2 - (1 - t)) / ((1 - t) ** 2 + (t * sd) ** 2)
    return mean + slope * (z - t * mean)


class OfGaussian(Field):
    """The field that is best for independent pairs of N(0, 1) and N(mean, sd^2)."""

    def __init__(self, mean, sd):
        super().__init__(1)
        self.mean, self.sd = (torch.nn.Parameter(torch.tensor(x).double()) for x in (mean, sd))

    def forward(self, t, z, context=None):
        """Return the velocity."""
        return velocity(t[..., None], z, self.mean, self.sd)


def test_field_of_independent_pairs_is_the_conditional_mean():
    """And it moves N(0, 1) to N(mean, sd^2): it is fitted, and its parameters are those."""
    flow = pf.Flow(Continuous(OfGaussian(0.0, 1.0), num_steps=20))
    rows = gaussian(dtype=torch.float64)[:, :1]
    result = fit_matching(
        flow, rows, pairing="independent", epochs=40, lr=0.1, validation=None, **QUIET
    )
    field = flow.transform.field
    assert field.mean.item() == pytest.approx(rows.mean().item(), abs=0.03)
    assert field.sd.item() == pytest.approx(rows.std().item(), abs=0.03)
    assert result.nll == pytest.approx(entropy(0.5), abs=0.02)
    assert -flow.log_prob(rows).mean().item() == pytest.approx(result.nll, abs=1e-3)
    drawn = flow.sample((20_000,))
    assert drawn.mean().item() == pytest.approx(3.0, abs=0.05)
    assert drawn.std().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("pairing", "dtype"), [("optimal", torch.float32), ("independent", torch.float64)]
)
def test_gaussian_is_fitted(pairing, dtype):
    torch.manual_seed(0)
    rows, flow = gaussian(dtype=dtype), pf.flows.cnf(2, hidden_dims=(32, 32)).to(dtype)
    result = fit_matching(flow, rows, pairing=pairing, epochs=60, lr=1e-2, **QUIET)
    exact = (
        -torch.distributions.Normal(torch.tensor([3.0, 0.0]), torch.tensor([0.5, 2.0]))
        .log_prob(gaussian(20_000))
        .sum(-1)
        .mean()
        .item()
    )
    flow.eval()
    assert -flow.log_prob(gaussian(20_000).to(dtype)).mean().item() == pytest.approx(
        exact, abs=0.03
    )
    assert result.objective == "matching loss"
    assert result.status == "max_epochs"


def paths(flow, rows, pairing=None, seed=0):
    torch.manual_seed(seed)
    return Matching(flow, pairing).prepared(*rows)


def test_loss_is_the_squared_distance_to_the_straight_path():
    """Time 0 is at the base, time 1 at the data, where the transform has them."""
    seen = []

    class Seen(Field):
        def forward(self, t, z, context=None):
            seen.append((t, z))
            return torch.ones_like(z)

    objective = Matching(pf.Flow(Continuous(Seen(2))), None)
    starts, ends = torch.zeros(2, 2), torch.tensor([[4.0, 1.0], [2.0, 0.0]])
    loss = objective.losses(torch.tensor([0.25, 1.0]), starts, ends)
    torch.testing.assert_close(loss, torch.tensor([9.0, 2.0]))
    torch.testing.assert_close(seen[0][1], torch.tensor([[1.0, 0.25], [2.0, 0.0]]))


def test_times_are_spread_evenly():
    times = paths(pf.flows.cnf(2), [gaussian(100)])[0]
    torch.testing.assert_close(
        (100 * times.sort().values).floor(), torch.arange(100.0), atol=0, rtol=0
    )
    assert not torch.equal(times, times.sort().values)


def test_optimal_pairs_of_numbers_are_in_order():
    """Within each group of 64; and it only permutes: the base's draws stay what they are."""
    flow, rows = pf.flows.cnf(1), gaussian(150)[:, :1]
    _, starts, ends = paths(flow, [rows])
    _, unpaired, _ = paths(flow, [rows], "independent")
    assert torch.equal(ends, rows)
    for group in (slice(0, 64), slice(64, 128), slice(128, 150)):
        order = ends[group, 0].argsort()
        assert (starts[group, 0][order].diff() > 0).all()
        assert torch.equal(starts[group].sort(0).values, unpaired[group].sort(0).values)
    assert not torch.equal(starts, unpaired)


def test_starts_come_from_the_base():
    base = GaussianMixture(2, num_components=2)
    with torch.no_grad():
        base.locs.copy_(torch.tensor([[100.0, 0.0], [300.0, 0.0]]))
    starts = paths(pf.Flow(Continuous(TimeNet(2)), base=base), [gaussian(1000)])[1]
    assert ((starts[:, 0] > 250).float().mean() - 0.5).abs() < 0.1


def wrapped():
    """Return a flow whose continuous part stands between two others, in a chain in a chain."""
    before = ElementwiseAffine(2, loc=torch.zeros(2), scale=torch.tensor([2.0, 1.0]))
    after = ElementwiseAffine(2, loc=torch.tensor([3.0, 0.0]), scale=torch.tensor([0.5, 2.0]))
    return pf.Flow([before, Compose([Continuous(TimeNet(2, hidden_dims=(16, 16))), after])])


def test_parts_around_stay_and_rows_are_pulled_back_through_them():
    torch.manual_seed(0)
    flow, rows = wrapped(), gaussian()
    (before, inner), kept = flow.transform.parts, dict(flow.state_dict())
    _, starts, ends = paths(flow, [rows], "independent")
    torch.manual_seed(0)
    torch.testing.assert_close(starts, before(torch.randn(len(rows), 2)))
    torch.testing.assert_close(ends, inner.parts[1].inv(rows))
    kept = {name: tensor.clone() for name, tensor in flow.state_dict().items()}
    fit_matching(flow, rows, epochs=40, lr=1e-2, weight_decay=0.1, **QUIET)
    for name, tensor in flow.state_dict().items():
        assert torch.equal(tensor, kept[name]) == (".field." not in name or "frequ" in name), name
    assert -flow.log_prob(rows).mean().item() == pytest.approx(entropy(0.5, 2.0), abs=0.05)


def test_context_is_learnt():
    torch.manual_seed(0)
    context = torch.rand(4000, 1) * 2 - 1
    rows = 2 * context + 0.5 * torch.randn(4000, 1)
    flow = pf.flows.cnf(1, context_dim=1)
    result = fit_matching(flow, rows, context=context, epochs=100, **QUIET)
    assert result.nll == pytest.approx(entropy(0.5), abs=0.07)
    fixed = flow.condition(torch.tensor([0.8])).sample((4000,))
    assert fixed.mean().item() == pytest.approx(1.6, abs=0.1)


def test_held_out_losses_are_of_the_same_paths():
    torch.manual_seed(0)
    still = fit_matching(pf.flows.cnf(2), gaussian(500), lr=1e-12, epochs=3, **QUIET).validation
    np.testing.assert_allclose(still, still[0], rtol=1e-6)
    assert len(set(fit_matching(pf.flows.cnf(2), gaussian(500), epochs=3, **QUIET).validation)) > 1


def test_without_held_out_rows_the_likelihood_is_that_of_the_training_rows():
    torch.manual_seed(0)
    flow, rows = pf.flows.cnf(2), gaussian(300)
    result = fit_matching(flow, rows, epochs=5, validation=None, **QUIET)
    assert result.nll == pytest.approx(-flow.log_prob(rows).mean().item(), rel=1e-5)
    assert result.validation.size == 0


def test_rungs_give_the_same_steps():
    results = []
    for engine in ("eager", "traced"):
        torch.manual_seed(0)
        flow = pf.flows.cnf(2)
        results.append(fit_matching(flow, gaussian(600), epochs=5, engine=engine, **QUIET))
    np.testing.assert_allclose(results[0].losses, results[1].losses, rtol=1e-4)
    assert [result.engine for result in results] == ["eager", "traced"]


@pytest.mark.parametrize("pairing", ["optimal", "independent"])
def test_resumed_run_is_the_same(tmp_path, pairing):
    def run(**options):
        torch.manual_seed(0)
        flow = pf.flows.cnf(2)
        options = {"epochs": 4, "batch_size": 50, "pairing": pairing, **QUIET, **options}
        result = fit_matching(flow, gaussian(300), **options)
        return result, flow

    whole = run()
    path = tmp_path / "run"
    run(checkpoint=path, callbacks=[lambda info: info.step == 7])
    rest = run(checkpoint=path, resume=True)
    np.testing.assert_array_equal(whole[0].losses, rest[0].losses)
    np.testing.assert_array_equal(whole[0].validation, rest[0].validation)
    assert same(list(whole[1].parameters()), list(rest[1].parameters()))
    with pytest.raises(pf.CheckpointError, match="of kind 'maximum-likelihood run'"):
        fit_mle(pf.flows.cnf(2), gaussian(300), checkpoint=path, resume=True, **QUIET)


def test_integers_with_noise():
    torch.manual_seed(0)
    rows = torch.poisson(torch.full((2000, 1), 20.0))
    part = ElementwiseAffine(1, loc=rows.mean(0), scale=rows.std(0)).requires_grad_(False)
    flow = Dequantised(pf.Flow([Continuous(TimeNet(1, hidden_dims=(32, 32))), part]))
    result = fit_matching(flow, rows, epochs=60, lr=1e-2, **QUIET)
    exact = -torch.distributions.Poisson(20.0).log_prob(rows).mean().item()
    assert result.nll == pytest.approx(exact, abs=0.1)


def test_estimator_has_it_as_an_option():
    density = FlowDensity("cnf", objective="matching", epochs=30, lr=1e-2, random_state=0)
    rows = gaussian(2000).numpy()
    assert density.fit(rows).score(rows) == pytest.approx(-entropy(0.5, 2.0), abs=0.1)
    assert density.result_.objective == "matching loss"
    with pytest.raises(pf.DomainError, match="objective to be one of 'likelihood', 'matching'"):
        FlowDensity("cnf", objective="guess").fit(rows)
    with pytest.raises(pf.DomainError, match="fit_matching: expected a flow with one Continuous"):
        FlowDensity("nsf", objective="matching").fit(rows)


CALLS = {
    "no continuous transform": (
        lambda rows: fit_matching(pf.flows.realnvp(2, num_transforms=2), rows),
        "one Continuous transform in its chain; got 0 of them among",
    ),
    "two": (lambda rows: fit_matching(pf.flows.cnf(2, num_transforms=2), rows), "got 2 of them"),
    "no flow": (lambda rows: fit_matching("cnf", rows), "fit_matching: expected a Flow"),
    "pairing": (lambda rows: fit_matching(pf.flows.cnf(2), rows, pairing="best"), "one of 'opt"),
    "pairing that a context forbids": (
        lambda rows: fit_matching(
            pf.flows.cnf(2, context_dim=1), rows, context=rows[:, :1], pairing="optimal"
        ),
        "pairing='independent', for a flow with a context",
    ),
    "frozen field": (
        lambda rows: fit_matching(pf.flows.cnf(2).requires_grad_(False), rows),
        "fit_matching: expected a flow with parameters to train",
    ),
    "option": (lambda rows: fit_matching(pf.flows.cnf(2), rows, lr=-1), "fit_matching: expected"),
}


@pytest.mark.parametrize(("call", "words"), CALLS.values(), ids=CALLS)
def test_bad_input_is_refused(call, words):
    """FAULTS 56."""
    with pytest.raises(pf.DomainError, match=words):
        call(gaussian(50))


def test_rows_with_a_nan_are_refused():
    """FAULTS 56."""
    rows = gaussian(50)
    rows[3, 1] = math.nan
    with pytest.raises(pf.NonFiniteError, match="fit_matching: expected data without NaN"):
        fit_matching(pf.flows.cnf(2), rows)


@pytest.mark.slow
def test_two_moons():
    torch.manual_seed(0)
    toy = TwoMoons()
    rows, fresh = toy.seeded(3000, seed=0), toy.seeded(10_000, seed=1)
    mean, sd = rows.mean(0), rows.std(0)
    flow = pf.flows.cnf(2, hidden_dims=(64, 64, 64), activation="silu")
    fit_matching(flow, (rows - mean) / sd, epochs=800, lr=1e-2, pairing="independent", **QUIET)
    floor = -(toy.log_prob(fresh.double()).mean() + sd.log().sum()).item()
    with torch.no_grad():
        assert -flow.eval().log_prob((fresh - mean) / sd).mean().item() < floor + 0.06
