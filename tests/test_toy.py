"""Toy densities: draws and densities are of one and the same distribution."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

import pyro_flows as pf
from pyro_flows.density import toy

EVERY = pytest.mark.parametrize("make", toy.TOYS.values(), ids=toy.TOYS)


@EVERY
def test_density_integrates_to_one(make):
    density = make()
    edge = torch.linspace(-density.reach, density.reach, 161, dtype=torch.float64)
    middle = (edge[1:] + edge[:-1]) / 2
    mass = density.log_prob(torch.cartesian_prod(middle, middle)).exp().sum()
    assert float(mass * (edge[1] - edge[0]) ** 2) == pytest.approx(1.0, abs=1e-4)


@EVERY
def test_entropy_is_that_of_the_draws(make):
    density = make()
    log_density = density.log_prob(density.seeded(4000, seed=1).double())
    error = float(log_density.std()) / math.sqrt(4000)
    assert float(density.entropy()) == pytest.approx(
        -float(log_density.mean()), abs=5 * error + 1e-9
    )


@EVERY
def test_draws_fill_cells_as_the_density_says(make):
    density = make()
    draws = density.seeded(4000, seed=2).double()
    edges = torch.linspace(-density.reach, density.reach, 9, dtype=torch.float64)
    counts, _, _ = np.histogram2d(*draws.T.numpy(), bins=[edges.numpy()] * 2)
    steps = 20
    fine = torch.linspace(-density.reach, density.reach, 8 * steps + 1, dtype=torch.float64)
    middle = (fine[1:] + fine[:-1]) / 2
    cells = density.log_prob(torch.cartesian_prod(middle, middle)).exp()
    cells = cells.reshape(8, steps, 8, steps).sum((1, 3)) * (fine[1] - fine[0]) ** 2
    expected = cells.numpy() * 4000
    enough = expected > 5
    statistic = ((counts - expected)[enough] ** 2 / expected[enough]).sum()
    assert stats.chi2.sf(statistic, enough.sum() - 1) > 1e-4


@EVERY
def test_shapes_dtypes_and_seeds(make):
    density = make()
    assert density.sample().shape == (2,)
    assert density.sample((3, 4)).shape == (3, 4, 2)
    for dtype in (torch.float32, torch.float64):
        points = density.seeded(10, seed=0).to(dtype)
        scores = density.log_prob(points.reshape(2, 5, 2))
        assert scores.shape == (2, 5)
        assert scores.dtype == dtype
    before = torch.get_rng_state()
    assert torch.equal(density.seeded(5, seed=3), density.seeded(5, seed=3))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "call",
    [
        lambda: toy.TwoMoons(noise=0.0),
        lambda: toy.Rings(count=0),
        lambda: toy.Spirals(turns=-1.0),
        lambda: toy.EightGaussians(scale=float("nan")),
        lambda: toy.Pinwheel(bend=float("inf")),
        lambda: toy.TwoMoons().seeded(0, seed=0),
        lambda: toy.TwoMoons().log_prob(torch.zeros(3)),
    ],
)
def test_impossible_arguments_are_refused(call):
    with pytest.raises(pf.FlowError, match="expected"):
        call()
