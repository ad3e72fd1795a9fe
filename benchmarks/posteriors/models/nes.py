"""Party identification in the election study of 1980 (Gelman & Hill 2007)."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from benchmarks.posteriors.models._regression import linear, log_likelihood
from benchmarks.posteriors.posterior import Posterior, tensors


def model(partyid7, x):
    flat = dist.ImproperUniform(constraints.real_vector, (), x.shape[-1:])
    beta = pyro.sample("beta", flat)
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    with pyro.plate("person", len(partyid7)):
        pyro.sample("partyid7", dist.Normal(linear(x, beta), sigma), obs=partyid7)


def data(raw):
    party, ideology, race, age, *others = tensors(
        raw, "partyid7", "real_ideo", "race_adj", "age_discrete", "educ1", "gender", "income"
    )
    ages = [(age == group).to(age) for group in (2, 3, 4)]
    return party, torch.stack([torch.ones_like(age), ideology, race, *ages, *others], -1)


def log_density(sites, raw):
    ages = [np.array(raw["age_discrete"]) == group for group in (2, 3, 4)]
    before = [1, raw["real_ideo"], raw["race_adj"]]
    after = [raw["educ1"], raw["gender"], raw["income"]]
    return log_likelihood(raw["partyid7"], [*before, *ages, *after], sites)


POSTERIOR = Posterior("nes1980-nes", model, data, log_density)
