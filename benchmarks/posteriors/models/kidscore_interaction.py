"""Children's scores by the mother's IQ, her schooling, and both (Gelman & Hill 2007)."""

import numpy as np
import pyro
import pyro.distributions as dist
from pyro.distributions import constraints
from scipy import stats

from benchmarks.posteriors.models._regression import log_likelihood
from benchmarks.posteriors.posterior import Posterior, tensors


def model(kid_score, mom_hs, mom_iq):
    beta = pyro.sample("beta", dist.ImproperUniform(constraints.real_vector, (), (4,)))
    sigma = pyro.sample("sigma", dist.HalfCauchy(kid_score.new_tensor(2.5)))
    b1, b2, b3, b4 = beta.unbind(-1)
    with pyro.plate("child", len(kid_score)):
        mean = b1 + b2 * mom_hs + b3 * mom_iq + b4 * (mom_hs * mom_iq)
        pyro.sample("kid_score", dist.Normal(mean, sigma), obs=kid_score)


def data(raw):
    return tensors(raw, "kid_score", "mom_hs", "mom_iq")


def log_density(sites, raw):
    mom_hs, mom_iq = np.array(raw["mom_hs"]), np.array(raw["mom_iq"])
    prior = stats.halfcauchy.logpdf(sites["sigma"], scale=2.5)
    return prior + log_likelihood(raw["kid_score"], (1, mom_hs, mom_iq, mom_hs * mom_iq), sites)


POSTERIOR = Posterior("kidiq-kidscore_interaction", model, data, log_density)
