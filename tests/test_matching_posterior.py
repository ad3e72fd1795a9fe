"""Flow matching from draws of a posterior: the flow then scores and samples as a guide."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_flows as pf
from pyro_flows.density import fit_matching

COUNTS = torch.tensor([[0.0, 4.0], [1.0, 2.0], [0.0, 3.0]])
PRIOR = dist.Gamma(torch.tensor([2.0, 2.0]), torch.tensor(1.0))
EXACT = dist.Gamma(2.0 + COUNTS.sum(0), torch.tensor(4.0))


def model(counts):
    """Two rates, whose posteriors are Gamma: skew where they have no bounds."""
    rate = pyro.sample("rate", PRIOR.to_event(1))
    with pyro.plate("rows", len(counts)):
        pyro.sample("counts", dist.Poisson(rate).to_event(1), obs=counts)


def log_evidence():
    at = torch.ones(2)
    likelihood = dist.Poisson(at).log_prob(COUNTS).sum()
    return (PRIOR.log_prob(at).sum() + likelihood - EXACT.log_prob(at).sum()).item()


def resampled():
    """Return draws of a guide's, by importance weights."""
    guide = pf.AutoFlow(model)
    pf.fit(model, guide, COUNTS, steps=300, seed=0, progress=False)
    return pf.resample(model, guide, COUNTS, num_draws=4000).flat()


def exact():
    """Return draws as a Markov chain would in the end."""
    torch.manual_seed(0)
    return {"rate": EXACT.sample((4000,))}


@pytest.mark.parametrize("draws", [resampled, exact])
def test_flow_from_posterior_draws_scores_and_samples(draws):
    torch.manual_seed(0)
    values = draws()
    guide = pf.AutoFlow(model, flow="cnf")
    guide.initialise(COUNTS)
    z = guide.as_distribution().coordinates(values)
    torch.testing.assert_close(guide.as_distribution().sites(z)["rate"], values["rate"])
    fit_matching(guide.flow, z, epochs=60, pairing="independent", seed=0, progress=False)
    guide.flow.eval()
    report = pf.diagnose(model, guide, COUNTS, seed=0)
    assert report.ess > 0.95 * report.num_draws
    assert report.elbo == pytest.approx(log_evidence(), abs=0.03)
    rates = guide.as_distribution().sample_sites((20_000,))["rate"]
    assert ((rates.mean(0) - EXACT.mean) / EXACT.stddev).abs().max() < 0.06
    assert (rates.std(0) / EXACT.stddev - 1).abs().max() < 0.1
