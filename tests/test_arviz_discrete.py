"""to_arviz: discrete latents that were enumerated in the fit, against sums by hand."""

import logging

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conversion import dims_of
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal
from pyro.ops.indexing import Vindex
from scipy import stats
from scipy.special import logsumexp

import pyro_flows as pf
from pyro_flows.diagnostics import to_arviz
from pyro_flows.errors import DomainError

DATA = torch.tensor([-2.1, -1.7, -2.4, 0.2, 1.8, 2.5])


@config_enumerate
def mixture(y, subsample_size=None):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    means = pyro.sample("means", dist.Normal(torch.tensor([-1.0, 1.0]), 2.0).to_event(1))
    with pyro.plate("rows", len(y), subsample_size=subsample_size) as rows:
        z = pyro.sample("z", dist.Categorical(weights))
        mean = pyro.deterministic("mean", Vindex(means)[..., z])
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y[rows])


@config_enumerate
def single_draw_mixture(y):
    """The same, written for one draw."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    means = pyro.sample("means", dist.Normal(torch.tensor([-1.0, 1.0]), 2.0).to_event(1))
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Categorical(weights))
        mean = pyro.deterministic("mean", means[z])
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def continuous_guide(model):
    return pf.AutoFlow(poutine.block(model, expose=["weights", "means"]), start="prior")


def components(idata, y):
    """Return the joint density of each row and class, given the continuous latents."""
    weights, means = (idata["posterior"][name].values[0] for name in ("weights", "means"))
    density = stats.norm.logpdf(y.numpy()[None, :, None], means[:, None].astype(float), 1.0)
    return np.log(weights.astype(float))[:, None] + density


def log_prior(idata):
    """Return that of the means; the Dirichlet's is zero."""
    return stats.norm.logpdf(idata["posterior"]["means"].values[0], [-1.0, 1.0], 2.0).sum(-1)


@pytest.mark.parametrize("model", [mixture, single_draw_mixture])
def test_mixture_is_summed_over_its_classes(model, caplog):
    num = 300 if model is mixture else 30
    with caplog.at_level(logging.INFO, "pyro_flows"):
        guide = continuous_guide(model)
        idata = to_arviz(model, guide, DATA, num_draws=num, seed=0)
    joint = components(idata, DATA)
    ll = logsumexp(joint, -1)
    assert np.allclose(idata["log_likelihood"]["y"].values[0], ll, atol=1e-4)
    found = idata["sample_stats"]
    assert np.allclose(found["log_p"].values[0], ll.sum(-1) + log_prior(idata), atol=1e-4)
    assert set(idata["log_prior"].data_vars) == {"weights", "means"}
    assert dims_of(idata)["z"] == dims_of(idata)["mean"] == ("rows",)
    assert "weights" in found
    posterior = idata["posterior"]
    z, means = posterior["z"].values[0], posterior["means"].values[0]
    assert np.array_equal(posterior["mean"].values[0], np.take_along_axis(means, z, -1))
    if model is mixture:
        assert "does not broadcast" not in caplog.text


def test_classes_are_drawn_given_all_else():
    idata = to_arviz(mixture, continuous_guide(mixture), DATA, num_draws=4000, seed=1)
    joint = components(idata, DATA)
    probability = np.exp(joint - logsumexp(joint, -1, keepdims=True))[..., 1]
    z = idata["posterior"]["z"].values[0]
    error = np.sqrt((probability * (1 - probability)).mean(0) / 4000)
    assert np.all(np.abs((z - probability).mean(0)) < 5 * error + 1e-6)
    # Row by row, and not by some common draw.
    middle = np.abs(probability[:, 3] - 0.5) < 0.4
    residual = z - probability
    assert abs(np.corrcoef(residual[middle, 3], residual[middle, 4])[0, 1]) < 0.15


def test_new_data_have_new_classes():
    """Given weights and means, a new row does not know the class of the old one."""
    idata = to_arviz(mixture, continuous_guide(mixture), DATA, num_draws=4000, seed=2)
    weights, means = (idata["posterior"][name].values[0] for name in ("weights", "means"))
    new = idata["posterior_predictive"]["y"].values[0]
    expected = (weights * means).sum(-1)
    residual = new - expected[:, None]
    assert np.all(np.abs(residual.mean(0)) < 5 * residual.std(0) / np.sqrt(4000))


def test_subsample_of_a_mixture_is_scaled_in_the_joint_density_alone():
    guide = continuous_guide(mixture)
    guide.initialise(DATA)
    idata = to_arviz(mixture, guide, DATA, 3, num_draws=5, seed=0)
    rows = idata["posterior"]["rows"].values.tolist()
    ll = logsumexp(components(idata, DATA[rows]), -1)
    assert np.allclose(idata["log_likelihood"]["y"].values[0], ll, atol=1e-4)
    log_p = 2 * ll.sum(-1) + log_prior(idata)
    assert np.allclose(idata["sample_stats"]["log_p"].values[0], log_p, atol=1e-4)
    assert "weights" not in idata["sample_stats"]


def test_kept_draws_of_a_mixture():
    first = to_arviz(mixture, continuous_guide(mixture), DATA, num_draws=20, seed=0)
    names = ("weights", "means")
    values = {n: torch.from_numpy(first["posterior"][n].values.copy()) for n in names}
    again = to_arviz(mixture, pf.PosteriorDraws(values), DATA)
    for group in ("log_likelihood", "sample_stats"):
        name = "y" if group == "log_likelihood" else "log_p"
        assert np.allclose(again[group][name], first[group][name], atol=1e-4)


@config_enumerate
def hidden_chain(y):
    """Two hidden states, one after the other."""
    stay = pyro.sample("stay", dist.Beta(8.0, 2.0))
    state = pyro.sample("state_0", dist.Bernoulli(torch.tensor(0.5)))
    for t in pyro.markov(range(len(y))):
        if t:
            move = torch.where(state == 1.0, stay, 1 - stay)
            state = pyro.sample(f"state_{t}", dist.Bernoulli(move))
        pyro.sample(f"y_{t}", dist.Normal(2 * state - 1, 1.0), obs=y[t])


def chain_by_hand(stay, y):
    alpha = np.log(0.5) + stats.norm.logpdf(y[0], [-1, 1])
    moves = np.log([[stay, 1 - stay], [1 - stay, stay]])
    for value in y[1:]:
        alpha = logsumexp(alpha[:, None] + moves, axis=0) + stats.norm.logpdf(value, [-1, 1])
    return logsumexp(alpha)


def test_hidden_markov_chain_is_summed_over_and_has_no_separate_observations():
    y = torch.tensor([-1.0, -0.5, 0.8, 1.2])
    guide = AutoNormal(poutine.block(hidden_chain, expose=["stay"]))
    options = {"num_draws": 10, "seed": 0}
    idata = to_arviz(hidden_chain, guide, y, log_likelihood=False, **options)
    stay = idata["posterior"]["stay"].values[0]
    by_hand = [chain_by_hand(p, y.double().numpy()) for p in stay.astype(float)]
    log_p = by_hand + stats.beta.logpdf(stay, 8.0, 2.0)
    assert np.allclose(idata["sample_stats"]["log_p"].values[0], log_p, atol=1e-4)
    with pytest.raises(DomainError, match=r"(?s)one observation of the site 'y_0'; got 'y_1'"):
        to_arviz(hidden_chain, guide, y, **options)


def test_class_shared_by_a_plate_does_not_separate():
    @config_enumerate
    def model():
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        z = pyro.sample("z", dist.Bernoulli(p))
        with pyro.plate("n", 3):
            pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor([0.0, 0.5, 1.0]))

    guide = AutoNormal(poutine.block(model, expose=["p"]))
    with pytest.raises(DomainError, match=r"site 'y'; got 'z' in other plates.*log_likel"):
        to_arviz(model, guide, num_draws=4)
    idata = to_arviz(model, guide, num_draws=4, log_likelihood=False)
    p = idata["posterior"]["p"].values[0].astype(float)
    y = np.array([0.0, 0.5, 1.0])
    both = [np.log(q) + stats.norm.logpdf(y, m, 1).sum() for m, q in ((0, 1 - p), (1, p))]
    log_p = logsumexp(both, axis=0)
    assert np.allclose(idata["sample_stats"]["log_p"].values[0], log_p, atol=1e-4)


def test_discrete_latents_that_are_not_marked_or_are_no_scalars():
    def unmarked():
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        pyro.sample("z", dist.Bernoulli(p))

    @config_enumerate
    def vectors():
        p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
        pyro.sample("z", dist.OneHotCategorical(p))

    def guide():
        pyro.sample("p", dist.Beta(1.0, 1.0))

    def guide_of_vectors():
        pyro.sample("p", dist.Dirichlet(torch.ones(3)))

    with pytest.raises(DomainError, match=r"(?s)got none at 'z'.*enumerate"):
        to_arviz(unmarked, guide)
    with pytest.raises(DomainError, match=r"scalar values, .*'z'.*; got OneHotCategorical"):
        to_arviz(vectors, guide_of_vectors)


def test_mixture_fitted_by_pyros_svi():
    """As a user fits one: the classes hidden from the guide, and enumerated by the ELBO."""
    guide = continuous_guide(mixture)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    svi = SVI(mixture, guide, pyro.optim.Adam({"lr": 0.02}), elbo)
    for _ in range(10):
        svi.step(DATA)
    idata = to_arviz(mixture, guide, DATA, num_draws=500, seed=0)
    found = idata["sample_stats"]
    ours = float((found["log_p"] - found["log_q"]).mean())
    many = TraceEnum_ELBO(500, max_plate_nesting=1, vectorize_particles=True)
    spread = float((found["log_p"] - found["log_q"]).std())
    assert ours == pytest.approx(
        -many.loss(mixture, guide, DATA), abs=5 * spread * (2 / 500) ** 0.5
    )
