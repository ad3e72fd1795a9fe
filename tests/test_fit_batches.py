"""Fits on mini-batches: what the ELBO is of, and which batches choose the state."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import normal_model
from plates import NUM, rows_data, rows_model, rows_posterior
from torch.utils.data import DataLoader, TensorDataset

import pyro_flows as pf
from pyro_flows.infer.training import outcome

Y = rows_data()


def on_batch(y, members):
    """The rows' model, of some rows and their numbers; each batch stands for all rows."""
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 3.0))
    with pyro.plate("rows", NUM, subsample=members):
        theta = pyro.sample("theta", dist.Normal(mu, 0.9))
        pyro.sample("y", dist.Normal(theta, 0.5), obs=y)


def loader(size=20, **options):
    return DataLoader(TensorDataset(Y, torch.arange(NUM)), batch_size=size, **options)


def test_data_loader_trains_the_members_of_each_batch_and_reports_the_whole_elbo():
    """FAULTS 53: members keep their latents, whichever batch brings them."""
    guide = pf.AutoPlateFlow(on_batch)
    batches = loader(shuffle=True, generator=torch.Generator().manual_seed(0))
    result = pf.fit(
        on_batch, guide, batches=batches, steps=600, particles=16, lr=0.01, seed=0, progress=False
    )
    evidence = rows_posterior(Y)[2]
    assert result.subsampled
    assert math.isnan(result.k_hat)
    assert result.elbo == pytest.approx(evidence, abs=0.5 + 4 * result.elbo_se)
    report = pf.diagnose(on_batch, guide, Y, torch.arange(NUM), num_draws=2000, seed=0)
    assert report.elbo == pytest.approx(evidence, abs=0.3)
    means, sds, _ = rows_posterior(Y)
    median = guide.median(Y, torch.arange(NUM))["theta"]
    assert ((median - means["theta"]) / sds["theta"]).abs().max() < 0.3


def counted(batches, seen):
    class Counted(list):
        def __iter__(self):
            for k, batch in enumerate(list.__iter__(self)):
                seen.append(k)
                yield batch

    return Counted(batches)


def test_elbo_is_the_mean_over_a_pass_with_as_many_draws_as_a_step_takes(monkeypatch):
    """Not 10,000 draws of one batch: those of others are other posteriors."""
    members = torch.arange(NUM).split(6)
    batches = [(Y[rows], rows) for rows in members]
    guide = pf.AutoPlateFlow(on_batch)
    guide.initialise(Y, torch.arange(NUM))
    numbers, score = [], outcome._parts
    monkeypatch.setattr(
        outcome,
        "_parts",
        lambda *args: (numbers.append(len(part)) or part for part in score(*args)),
    )
    result = pf.fit(
        on_batch, guide, batches=batches, steps=2, lr=1e-6, particles=32, seed=0, progress=False
    )
    # The start is the posterior, so each batch gives its share of the evidence, all together it.
    assert result.elbo == pytest.approx(rows_posterior(Y)[2], abs=6 * result.elbo_se)
    assert set(numbers) == {32}
    # As many of three states as of one report, of ten batches each.
    assert len(numbers) in (20, 30, 40)


def test_no_more_than_some_batches_are_scored():
    seen = []
    batches = counted([(torch.full((1,), 0.1),)] * 500, seen)
    guide = pf.AutoFlow(normal_model, "planar", start="prior")
    pf.fit(normal_model, guide, batches=batches, steps=3, particles=4, seed=0, progress=False)
    # Those to choose by, those to report, and one to see that there are more.
    assert seen.count(250) == 0
    assert seen.count(150) == 1
    assert seen.count(50) == 1
    assert seen.count(30) == 2


def test_subsamples_of_the_model_count_in_the_standard_error():
    """All draws of a call share one subsample, so they do not count as many."""
    guide = pf.AutoPlateFlow(rows_model)
    guide.initialise(Y)
    result = pf.fit(
        rows_model, guide, Y, 6, steps=2, lr=1e-6, particles=64, seed=0, progress=False
    )
    error = result.elbo - rows_posterior(Y)[2]
    assert abs(error) < 4 * result.elbo_se
    assert result.elbo_se > 0.2


def test_one_draw_a_batch_has_an_error_of_the_batches():
    parts = torch.tensor([[float(k), math.nan] for k in range(5)])
    elbo, error = outcome._mean_bound(parts)
    assert elbo == 2.0
    assert error == pytest.approx(math.sqrt(2.5 / 5))
    assert outcome._mean_bound(parts, is_whole=True)[1] == pytest.approx(error)
    whole = torch.tensor([[float(k), 1.0] for k in range(5)])
    assert outcome._mean_bound(whole, is_whole=True)[1] == pytest.approx(1 / math.sqrt(5))
