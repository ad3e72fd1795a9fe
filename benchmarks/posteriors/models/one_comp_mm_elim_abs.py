"""A drug's concentration after a dose: absorbed at first order, eliminated at a limited rate."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import stats
from scipy.integrate import solve_ivp

from benchmarks.posteriors.models._quadrature import graded, quadrature
from benchmarks.posteriors.posterior import Posterior, tensors

ITERATIONS = 3
# Both for parameters far from the data: a step must not make a concentration negative, and
# float32 ends at exp(88).
LEAST, LARGEST_EXPONENT = 1e-6, 80.0


def model(concentrations, dose, volume, nodes, integrals):
    unit = dose.new_tensor(1.0)
    k_a = pyro.sample("k_a", dist.HalfCauchy(unit))
    K_m = pyro.sample("K_m", dist.HalfCauchy(unit))
    V_m = pyro.sample("V_m", dist.HalfCauchy(unit))
    sigma = pyro.sample("sigma", dist.HalfCauchy(unit))
    k_a, K_m, V_m, sigma = (value.unsqueeze(-1) for value in (k_a, K_m, V_m, sigma))
    c = solution((k_a, K_m, V_m), dose, volume, nodes, integrals)
    pyro.sample("concentrations", dist.LogNormal(c.log(), sigma).to_event(1), obs=concentrations)


def solution(parameters, dose, volume, nodes, integrals):
    r"""Solve ``dC/dt = a(t) - w C / (K + C)`` by Newton's method for functions.

    The equation is linear where the elimination is replaced by its tangent at the last solution,

    .. math:: C_{n+1}' = a - w \frac{C_n^2}{(K + C_n)^2} - \lambda C_{n+1},
        \quad \lambda = \frac{w K}{(K + C_n)^2},

    and is then solved by the integrating factor :math:`\exp \int \lambda`. All times are found at
    once, which a solver that steps in time takes thousands of operators for.

    Reference:
        Bellman & Kalaba (1965), *Quasilinearization and nonlinear boundary-value problems*.
    """
    k_a, K_m, V_m = parameters
    to_nodes, to_times = integrals.tensor_split([len(nodes)], -1)
    decay = torch.exp(-k_a * nodes)
    c, absorbed, rate = dose / volume * (1 - decay), dose / volume * k_a * decay, V_m / volume
    for iteration in range(ITERATIONS):
        inverse = (K_m + c).reciprocal()
        slope = rate * K_m * inverse.square()
        growth = (slope @ to_nodes).clamp(max=LARGEST_EXPONENT).exp()
        source = growth * (absorbed - rate * (c * inverse).square())
        if iteration < ITERATIONS - 1:
            c = (source @ to_nodes / growth).clamp(min=LEAST)
    growth = (slope @ to_times).clamp(max=LARGEST_EXPONENT).exp()
    return (source @ to_times / growth).clamp(min=LEAST)


def data(raw):
    edges = graded(raw["t0"], raw["times"])
    grid = (torch.from_numpy(array) for array in quadrature(edges, raw["times"]))
    return *tensors(raw, "C_hat", "D", "V"), *grid


def log_density(sites, raw):
    sigma = sites["sigma"]
    solutions = [
        scipy_solution(*draw, raw)
        for draw in zip(*map(sites.get, ("k_a", "K_m", "V_m")), strict=True)
    ]
    likelihood = stats.lognorm.logpdf(raw["C_hat"], sigma[:, None], scale=np.array(solutions))
    priors = (stats.halfcauchy.logpdf(sites[name]) for name in ("k_a", "K_m", "V_m", "sigma"))
    return sum(priors) + likelihood.sum(-1)


def scipy_solution(k_a, K_m, V_m, raw):
    def rate(t, c):
        return np.exp(-k_a * t) * raw["D"] * k_a / raw["V"] - V_m / raw["V"] * c / (K_m + c)

    times = raw["times"]
    span, options = (raw["t0"], times[-1]), {"method": "LSODA", "rtol": 1e-11, "atol": 1e-13}
    return solve_ivp(rate, span, [0.0], t_eval=times, **options).y[0]


POSTERIOR = Posterior("one_comp_mm_elim_abs-one_comp_mm_elim_abs", model, data, log_density)
