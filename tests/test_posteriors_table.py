"""The table of posteriors: its distances, its contestants, and its count of targets."""

import csv

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from benchmarks.posteriors import contestants
from benchmarks.posteriors.measures import errors
from benchmarks.posteriors.report import Row, write


def columns(seed, loc=0.0, scale=1.0):
    draws = loc + scale * np.random.default_rng(seed).standard_normal((10_000, 2))
    return {"x[1]": draws[:, 0], "x[2]": 3.0 * draws[:, 1]}


def test_exact_draws_are_at_the_floor():
    found = errors(columns(0), columns(1))
    assert found.worst_mean < 0.05
    assert found.worst_sd < 0.04
    assert found.sd_floor < 0.04
    assert 0.7 < found.wasserstein < 1.4


@pytest.mark.parametrize(
    ("loc", "scale", "mean", "sd"), [(0.5, 1.0, 0.5, 0.0), (0.0, 2.0, 0.0, np.log(2.0))]
)
def test_wrong_draws_are_as_far_as_they_are(loc, scale, mean, sd):
    found = errors(columns(0, loc, scale), columns(1))
    assert found.worst_mean == pytest.approx(mean, abs=0.06)
    assert found.worst_sd == pytest.approx(sd, abs=0.04)
    assert found.wasserstein > 10.0


def test_draws_that_are_not_finite_are_infinitely_far():
    draws = columns(0)
    draws["x[1]"][3] = np.nan
    assert errors(draws, columns(1)) == (np.inf,) * 5


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr(contestants, "STEPS", 500)
    monkeypatch.setattr(contestants, "NUM_DRAWS", 1000)


def independent(y):
    with pyro.plate("two", 2):
        x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)


@pytest.mark.parametrize("name", list(contestants.PYROS))
def test_pyros_guides_are_weighed_by_their_own_density(name, few_steps):
    """A posterior that each of them can meet: the weights are then the evidence."""
    y = torch.tensor([1.0, -0.5])
    fit = contestants.fit_pyros(independent, (y,), 0, contestants.PYROS[name])
    evidence = float(dist.Normal(0.0, 2.0**0.5).log_prob(y).sum())
    assert fit.elbo == pytest.approx(evidence, abs=0.05)
    assert fit.ess > 0.9
    torch.testing.assert_close(fit.draws["x"].mean(0), y / 2, atol=0.2, rtol=0.0)


def failing(y):
    pyro.sample("z", dist.Normal(0.0, 1.0))
    raise ZeroDivisionError


def test_a_crash_is_a_row_of_its_own(few_steps):
    fit = contestants.fit_pyros(failing, (torch.ones(()),), 0, contestants.PYROS["AutoNormal"])
    assert fit.status == "crashed: ZeroDivisionError"
    assert not fit.draws


def row(posterior, **figures):
    good = dict.fromkeys(Row._fields[3:-1], 0.01)
    return Row(posterior, "ours", 0, **{**good, **figures}, status="converged")


def test_targets_are_counted_by_posterior_over_all_seeds(tmp_path, capsys):
    rows = [row(f"p{k}") for k in range(18)]
    assert write(rows, None, tmp_path / "table.csv") == 0
    with (tmp_path / "table.csv").open() as file:
        assert len(list(csv.reader(file))) == 19
    capsys.readouterr()
    assert write([*rows, row("p3", worst_mean=0.4)], tmp_path / "table.md", None) == 1
    printed = capsys.readouterr().out
    assert "| mean error <= 0.3 | 17 | 18 | p3 |" in printed
    assert (tmp_path / "table.md").read_text() == printed


def test_equal_weights_meet_the_target_of_k_hat(capsys):
    rows = [row(f"p{k}", k_hat=np.nan, ess=1.0 if k else 0.5) for k in range(18)]
    write(rows, None, None)
    assert "| k-hat < 0.7 | 17 | 17 | p0 |" in capsys.readouterr().out
