"""The models of the posterior benchmark: their densities, and their reference draws."""

import functools
from typing import NamedTuple

import arviz as az
import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch.distributions import biject_to

from benchmarks.posteriors.models import POSTERIORS, _quadrature, one_comp_mm_elim_abs
from benchmarks.posteriors.posterior import load
from benchmarks.posteriors.posteriordb import default_root

CHAINS, CHUNK = 10, 500
DRAWS = 20
# A differential equation is solved as well as a fit needs.
TOLERANCES = {one_comp_mm_elim_abs.POSTERIOR.name: 1e-6}
LARGEST_Z = 4.5


class Case(NamedTuple):
    """A posterior, its data in float64, and its reference draws by column and by site."""

    posterior: object
    raw: dict
    args: tuple
    columns: dict
    sites: dict

    def first(self, num=DRAWS):
        """Return some draws of the sites, from all chains."""
        total = len(next(iter(self.sites.values())))
        return {name: value[:: total // num][:num] for name, value in self.sites.items()}


@functools.cache
def case(name):
    posterior = POSTERIORS[name]
    if posterior.exact is None and not default_root().exists():
        pytest.skip("no posteriordb: set POSTERIORDB to the folder of a clone")
    raw, columns = load(posterior, default_root())
    return Case(posterior, raw, posterior.data(raw), columns, posterior.sites(columns, raw))


def tensors(sites, dtype=torch.float64):
    return {name: torch.tensor(value, dtype=dtype) for name, value in sites.items()}


def one(sites, index):
    return {name: value[index] for name, value in sites.items()}


def single_trace(this):
    """Return a trace of the model at one draw; its sites have neither particles nor latents."""
    values = tensors(one(this.sites, 0))
    return poutine.trace(poutine.condition(this.posterior.model, values)).get_trace(*this.args)


def nesting(trace):
    sites = trace.nodes.values()
    frames = [frame for site in sites for frame in site.get("cond_indep_stack", ())]
    return max((-frame.dim for frame in frames), default=0)


def log_density(this, sites, args=None):
    """Return the model's log-density at draws that are run at once, of shape ``(S,)``."""
    trace = single_trace(this)
    plates, num = nesting(trace), len(next(iter(sites.values())))
    values = {}
    for name, value in sites.items():
        event = trace.nodes[name]["fn"].event_dim
        absent = plates - (value.dim() - 1 - event)
        values[name] = value.reshape(num, *[1] * absent, *value.shape[1:])
    model = pyro.plate("draws", num, dim=-1 - plates)(this.posterior.model)
    trace = poutine.trace(poutine.condition(model, values))
    trace = trace.get_trace(*(this.args if args is None else args))
    trace.compute_log_prob()
    sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
    parts = [site["log_prob"] for site in sites if not site_is_subsample(site)]
    return sum(part.reshape(num, -1).sum(-1) for part in parts)


def assert_close(got, want, this):
    scale = TOLERANCES.get(this.posterior.name, 1e-8)
    np.testing.assert_allclose(got, want, rtol=scale, atol=scale)


def test_names_and_order():
    names = list(POSTERIORS)
    assert len(names) == 18
    assert names[0] == "eight_schools-eight_schools_noncentered"
    assert names[-2:] == ["funnel", "banana"]


@pytest.mark.parametrize("name", POSTERIORS)
def test_sites_give_the_columns_back(name):
    posterior, _, _, columns, sites = case(name)
    found = posterior.columns(tensors(sites))
    assert set(found) == set(columns)
    for column, values in columns.items():
        np.testing.assert_allclose(found[column], values, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", POSTERIORS)
def test_density_of_single_draws_is_that_of_numpy(name):
    this = case(name)
    draws = this.first()
    got = []
    for index in range(DRAWS):
        values = tensors(one(draws, index))
        trace = poutine.trace(poutine.condition(this.posterior.model, values))
        got.append(float(trace.get_trace(*this.args).log_prob_sum()))
    assert_close(got, this.posterior.log_density(draws, this.raw), this)


@pytest.mark.parametrize("name", POSTERIORS)
def test_density_of_many_draws_at_once_is_that_of_numpy(name):
    this = case(name)
    draws = this.first()
    got = log_density(this, tensors(draws))
    assert got.shape == (DRAWS,)
    assert_close(got, this.posterior.log_density(draws, this.raw), this)


@pytest.mark.parametrize("name", POSTERIORS)
def test_density_and_gradient_in_float32(name):
    this = case(name)
    draws = {k: x.requires_grad_() for k, x in tensors(this.first(), torch.float32).items()}
    got = log_density(this, draws, [x.float() for x in this.args])
    assert got.dtype == torch.float32
    np.testing.assert_allclose(
        got.detach(), this.posterior.log_density(this.first(), this.raw), rtol=1e-3, atol=1e-2
    )
    grads = torch.autograd.grad(got.sum(), draws.values())
    assert all(grad.isfinite().all() for grad in grads)


def test_concentrations_far_out_are_those_of_scipy():
    this = case(one_comp_mm_elim_abs.POSTERIOR.name)
    k_a, K_m, V_m = (this.sites[name] for name in ("k_a", "K_m", "V_m"))
    far = [x for values in (k_a, K_m, V_m / K_m) for x in np.argsort(values)[[0, 1, -2, -1]]]
    draws = np.stack([k_a, K_m, V_m])[:, far]
    want = [one_comp_mm_elim_abs.scipy_solution(*draw, this.raw) for draw in draws.T]
    got = one_comp_mm_elim_abs.solution(torch.tensor(draws)[..., None], *this.args[1:])
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_quadrature_integrates_polynomials():
    times = [1.0, 1.5, 4.0]
    nodes, integrals = _quadrature.quadrature(_quadrature.graded(0.5, times), times)
    ends = np.concatenate([nodes, times])
    np.testing.assert_allclose(nodes**3 @ integrals, (ends**4 - 0.5**4) / 4, atol=1e-12)


def scores(this, sites):
    """Return unconstrained draws and the log-density's gradient there, each ``(S, D)``."""
    trace = single_trace(this)
    z, values, ladj = {}, {}, 0.0
    for name, value in sites.items():
        fn = trace.nodes[name]["fn"]
        transform = biject_to(fn.support)
        z[name] = transform.inv(value).detach().requires_grad_()
        values[name] = transform(z[name])
        parts = transform.log_abs_det_jacobian(z[name], values[name])
        ladj = ladj + parts.reshape(len(value), -1).sum(-1)
    total = (log_density(this, values) + ladj).sum()
    grads = torch.autograd.grad(total, z.values())
    flat = [torch.cat([x.reshape(len(x), -1) for x in xs], -1) for xs in (z.values(), grads)]
    return [x.detach().numpy() for x in flat]


def z_scores(values):
    """Return the mean of each column in its standard errors, which count the correlation."""
    chains = values.reshape(CHAINS, -1, values.shape[-1])
    errors = [az.mcse(chains[..., k]) for k in range(chains.shape[-1])]
    return values.mean(0) / np.array(errors)


@pytest.mark.parametrize("name", POSTERIORS)
def test_reference_draws_are_of_the_model(name):
    this = case(name)
    sites = tensors(this.sites)
    chunks = zip(*(value.split(CHUNK) for value in sites.values()), strict=True)
    parts = [scores(this, dict(zip(sites, chunk, strict=True))) for chunk in chunks]
    z, grads = (np.concatenate(column) for column in zip(*parts, strict=True))
    # Stein: the score has mean zero, and its product with the draw mean minus one.
    assert np.abs(z_scores(grads)).max() < LARGEST_Z
    assert np.abs(z_scores((z - z.mean(0)) * grads + 1)).max() < LARGEST_Z
