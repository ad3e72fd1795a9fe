"""Integers and the noise between them: bounds against exact probabilities, and what is refused."""

import math

import numpy as np
import pytest
import torch
import zoo

import pyro_flows as pf
from pyro_flows.density import Dequantised, UniformNoise, VariationalNoise, fit_mle
from pyro_flows.errors import DomainError, ShapeError
from pyro_flows.nn import ConvNet
from pyro_flows.transforms import ElementwiseAffine

NORMAL = torch.distributions.Normal(0.5, 1.0)


def _normal(d=2, *, loc=0.5, **options):
    """Return the integers below draws of N(0.5, 1)."""
    loc = torch.full((d,), loc, dtype=torch.float64)
    return Dequantised(pf.Flow(ElementwiseAffine(d, loc=loc).double()), **options)


def _exact(x):
    return (NORMAL.cdf(x + 1.0) - NORMAL.cdf(x)).log().sum(-1)


@pytest.mark.parametrize("noise", [None, VariationalNoise(4).double()])
def test_bound_is_below_the_probability_and_tightens_to_it(noise):
    """FAULTS 60: of integers, a probability is reported, and not a density without bound."""
    torch.manual_seed(0)
    density = _normal(noise=noise)
    x = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)).double()
    with torch.no_grad():
        many = x.expand(2000, *x.shape)
        bounds = density.log_prob(many)
        tight = bounds.logsumexp(0) - math.log(2000)
        of_few = density.tighter_log_prob(x, 10)
    assert (bounds.mean(0) < _exact(x) + 0.01).all()
    assert (bounds.mean(0) < of_few.mean()).any()
    torch.testing.assert_close(tight, _exact(x), atol=0.1, rtol=0)


def test_draws_are_integers_with_those_probabilities():
    torch.manual_seed(0)
    draws = _normal(1).sample((20_000,))
    assert torch.equal(draws, draws.floor())
    for value in (-1.0, 0.0, 1.0):
        share = (draws == value).double().mean()
        want = _exact(torch.tensor([[value]])).exp()
        assert share == pytest.approx(float(want), abs=0.015)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("with_network", [False, True])
def test_density_of_learnt_noise_is_that_of_a_change_of_variables(dtype, with_network):
    network = ConvNet((1, 2, 3), 2, hidden_channels=4) if with_network else None
    noise = zoo.randomise(VariationalNoise(5, network=network).to(dtype), scale=0.5)
    x = torch.randint(0, 5, (7, 6), generator=torch.Generator().manual_seed(0)).to(dtype)
    u, log_density = noise(x)
    wide = u.double().detach()
    logit = torch.logit(wide)
    # The logit is normal, with the location and the scale that solve for its draws.
    table = noise.loc[x.long()], noise.log_scale[x.long()]
    if with_network:
        by_network = network(x * 0.5 - 1.0).unflatten(-1, (2, 6))
        table = table[0] + by_network[:, 0], table[1] + by_network[:, 1]
    scale = (3 * torch.tanh(table[1] / 3)).exp()
    of_logit = torch.distributions.Normal(table[0].double(), scale.double()).log_prob(logit)
    want = (of_logit - wide.log() - torch.log1p(-wide)).sum(-1)
    # Near its ends, a float32 in (0, 1) has few digits left for a logit.
    atol = 0.1 if dtype is torch.float32 else 1e-8
    torch.testing.assert_close(log_density.double(), want, rtol=1e-6, atol=atol)
    assert u.dtype is dtype
    assert ((u > 0) & (u < 1)).all()


def test_learnt_noise_integrates_to_one():
    noise = zoo.randomise(VariationalNoise(2).double(), scale=0.7)
    torch.manual_seed(0)
    with torch.no_grad():
        u, log_density = noise(torch.ones(40_000, 1, dtype=torch.float64))
    # The mean of 1 / r(u) over draws of r is the length of [0, 1).
    assert float((-log_density).exp().mean()) == pytest.approx(1.0, abs=0.05)
    assert float(u.mean()) != pytest.approx(0.5, abs=0.01)


def test_learnt_noise_gives_a_higher_bound_than_uniform_noise():
    """Of a value that is certain: log 1 = 0 is in reach of narrow noise alone."""
    data, scores = torch.zeros(512, 4), {}
    for name, noise in {"uniform": UniformNoise(), "learnt": VariationalNoise(2)}.items():
        torch.manual_seed(0)
        density = Dequantised(pf.Flow(ElementwiseAffine(4)), noise=noise)
        fit_mle(density, data, epochs=150, lr=0.05, validation=None, seed=0, progress=False)
        with torch.no_grad():
            scores[name] = float(density.log_prob(data).mean()) / 4
    # Of a uniform variable, a normal one keeps the moments and loses this much.
    loss = 0.5 * math.log(2 * math.pi * math.e / 12)
    assert scores["uniform"] == pytest.approx(-loss, abs=0.03)
    assert -0.05 < scores["learnt"] < 0.005


def test_columns_that_are_no_integers_take_no_noise():
    density = _normal(2, columns=torch.tensor([True, False]))
    x = torch.tensor([[1.0, 0.3], [2.0, -0.7]], dtype=torch.float64)
    values, log_noise = density.dequantise(x)
    assert torch.equal(values[:, 1], x[:, 1])
    assert not torch.equal(values[:, 0], x[:, 0])
    assert not log_noise.any()
    draws = density.sample((50,))
    assert torch.equal(draws[:, 0], draws[:, 0].floor())
    assert not torch.equal(draws[:, 1], draws[:, 1].floor())


def test_noise_is_fresh_at_each_step_and_each_score():
    density, x = _normal(), torch.zeros(5, 2, dtype=torch.float64)
    assert not torch.equal(density.log_prob(x), density.log_prob(x))
    torch.manual_seed(0)
    first = density.log_prob(x)
    torch.manual_seed(0)
    assert torch.equal(first, density.log_prob(x))


@pytest.mark.parametrize("engine", ["eager", "traced"])
def test_fit_finds_a_poisson_by_its_context(engine):
    """Rates that depend on a context; the exact entropy is a bound."""
    rng = np.random.default_rng(0)
    context = rng.integers(0, 2, size=(3000, 1))
    counts = rng.poisson(np.where(context, 12.0, 3.0))
    scale = ElementwiseAffine(1, loc=torch.tensor([7.0]), scale=torch.tensor([5.0]))
    flow = pf.Flow([pf.flows.nsf(1, context_dim=1).transform, scale])
    density = Dequantised(flow, noise=VariationalNoise(40))
    data, given = (torch.tensor(x, dtype=torch.float32) for x in (counts, context))
    result = fit_mle(
        density,
        data,
        context=given,
        epochs=12,
        lr=0.02,
        engine=engine,
        seed=0,
        progress=False,
    )
    entropy = _poisson_entropy(3.0) / 2 + _poisson_entropy(12.0) / 2
    assert entropy - 0.08 < result.nll < entropy + 0.25
    assert result.engine == engine
    draws = density.condition(torch.ones(4000, 1)).sample()
    assert float(draws.mean()) == pytest.approx(12.0, abs=0.6)


def _poisson_entropy(rate):
    k = torch.arange(200, dtype=torch.float64)
    log_prob = torch.distributions.Poisson(torch.tensor(rate, dtype=torch.float64)).log_prob(k)
    return -float((log_prob.exp() * log_prob).sum())


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([[0.0, 4.0]], r"^fit_mle: expected integers from 0 to 3; got \[4.0, "),
        ([[0.0, -1.0]], r"integers from 0 to 3; got \[-1.0, "),
        ([[0.5, 1.0]], r"got \[0.5, "),
    ],
)
def test_rows_that_the_noise_does_not_know_are_refused(rows, words):
    """FAULTS 60."""
    density = _normal(noise=VariationalNoise(4).double())
    rows = torch.tensor(rows, dtype=torch.float64).expand(8, 2)
    with pytest.raises(DomainError, match=words):
        fit_mle(density, rows, epochs=1, progress=False)


def test_row_that_is_no_integer_has_no_probability():
    x = np.random.default_rng(0).integers(0, 5, size=(64, 2)).astype(float)
    density = pf.density.FlowDensity("realnvp", dequantise=True, epochs=1).fit(x)
    with pytest.raises(DomainError, match=r"expected integers; got \[0.5, 0.5\]"):
        density.score_samples(x[:1] * 0 + 0.5)


def test_expansion_and_context_share_the_parameters():
    density = Dequantised(pf.flows.realnvp(2, context_dim=1))
    given = density.condition(torch.zeros(5, 1))
    assert given.batch_shape == (5,)
    assert given.log_prob(torch.zeros(5, 2)).shape == (5,)
    assert given.sample((3,)).shape == (3, 5, 2)
    assert {id(p) for p in given.parameters()} == {id(p) for p in density.parameters()}
    assert _normal().expand((4,)).sample().shape == (4, 2)


FLOW = pf.Flow(ElementwiseAffine(2))
BAD = [
    (lambda: Dequantised(ElementwiseAffine(2)), DomainError, "^Dequantised: expected a Flow"),
    (lambda: Dequantised(FLOW, noise=torch.rand), DomainError, r"noise to be a torch\.nn\.Module"),
    (lambda: Dequantised(FLOW, columns=[True]), DomainError, "columns to be a tensor of booleans"),
    (
        lambda: Dequantised(FLOW, columns=torch.ones(3, dtype=torch.bool)),
        ShapeError,
        r"columns of shape \(2,\), with uniform noise",
    ),
    (lambda: Dequantised(FLOW).log_prob(torch.zeros(5, 3)), ShapeError, "^Dequantised: .*value"),
    (lambda: Dequantised(FLOW).tighter_log_prob(torch.zeros(2), 0), DomainError, "num_draws"),
    (lambda: VariationalNoise(1), DomainError, "^VariationalNoise: expected num_values .*; got 1"),
    (lambda: VariationalNoise(4, network=len), DomainError, "network to be a torch"),
    (
        lambda: fit_mle(FLOW.transform, torch.zeros(5, 2)),
        DomainError,
        "^fit_mle: expected a Flow, or a Dequantised one",
    ),
]


@pytest.mark.parametrize(("call", "error", "words"), BAD)
def test_bad_arguments(call, error, words):
    """FAULTS 5, 11."""
    with pytest.raises(error, match=words):
        call()
