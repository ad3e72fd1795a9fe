"""A guide of a continuous flow, by the default options, against what the posterior is."""

import numpy as np
import pytest

import pyro_flows as pf
from benchmarks.posteriors.measures import errors
from benchmarks.posteriors.models import banana
from benchmarks.posteriors.posterior import load, spread
from benchmarks.posteriors.posteriordb import default_root


@pytest.mark.slow
def test_defaults_meet_the_banana():
    posterior = banana.POSTERIOR
    raw, reference = load(posterior, default_root())
    args = tuple(values.float() for values in posterior.data(raw))
    guide = pf.AutoFlow(posterior.model, flow="cnf")
    result = pf.fit(posterior.model, guide, *args, seed=0, progress=False)
    draws = guide.as_distribution().sample_sites((20_000,))
    values = {name: np.asarray(draw.double()) for name, draw in draws.items()}
    found = errors(spread(values), reference)
    assert found.worst_mean <= 0.1
    assert found.worst_sd <= 0.15
    assert result.k_hat < 0.7
