"""Children's scores by the mother's IQ and schooling, each less its mean (Gelman & Hill 2007)."""

import numpy as np
import pyro
import pyro.distributions as dist
from pyro.distributions import constraints

from benchmarks.posteriors.models._regression import log_likelihood
from benchmarks.posteriors.posterior import Posterior, tensors


def model(kid_score, c_hs, c_iq):
    beta = pyro.sample("beta", dist.ImproperUniform(constraints.real_vector, (), (4,)))
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    b1, b2, b3, b4 = beta.unbind(-1)
    with pyro.plate("child", len(kid_score)):
        mean = b1 + b2 * c_hs + b3 * c_iq + b4 * (c_hs * c_iq)
        pyro.sample("kid_score", dist.Normal(mean, sigma), obs=kid_score)


def data(raw):
    kid_score, mom_hs, mom_iq = tensors(raw, "kid_score", "mom_hs", "mom_iq")
    return kid_score, mom_hs - mom_hs.mean(), mom_iq - mom_iq.mean()


def log_density(sites, raw):
    c_hs, c_iq = (np.array(raw[name]) - np.mean(raw[name]) for name in ("mom_hs", "mom_iq"))
    return log_likelihood(raw["kid_score"], (1, c_hs, c_iq, c_hs * c_iq), sites)


POSTERIOR = Posterior("kidiq_with_mom_work-kidscore_interaction_c", model, data, log_density)
