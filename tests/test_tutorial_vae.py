"""The VAE of the tutorial: against probabilistic PCA's closed form, and on data of no file."""

import copy
import subprocess
import sys
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

import pyro_flows as pf
from tutorials import vae as tutorial

SCRIPT = Path(tutorial.__file__)
MNIST = SCRIPT.parents[2] / "shared" / "mnist"
needs_mnist = pytest.mark.skipif(not MNIST.exists(), reason="no ../shared/mnist")
NOISE_SD = 0.5
# Columns that are far from orthogonal, so that the posterior's coordinates depend on one another.
LOADINGS = torch.tensor([[1.0, 0.9], [0.8, 1.0], [-0.5, -0.2], [0.3, 0.6]])


def linear_vae(recipe):
    """Return probabilistic PCA: x = W z + noise, of which the encoder alone is learnt."""
    return tutorial.VAE(
        encoder=nn.Linear(4, 8),
        decoder=lambda z: z @ LOADINGS.T,
        posterior=tutorial.posterior_flow(2, 8, recipe),
        prior=pf.distributions.StandardNormal(2),
        likelihood=lambda loc: dist.Normal(loc, NOISE_SD).to_event(1),
    )


def linear_data(num=1000):
    z = torch.randn(num, 2)
    return z @ LOADINGS.T + NOISE_SD * torch.randn(num, 4)


def exact(x):
    """Return the mean log evidence, and what an independent Gaussian posterior must lose of it."""
    covariance = LOADINGS @ LOADINGS.T + NOISE_SD**2 * torch.eye(4)
    evidence = torch.distributions.MultivariateNormal(torch.zeros(4), covariance).log_prob(x)
    precision = torch.eye(2) + LOADINGS.T @ LOADINGS / NOISE_SD**2
    loss = 0.5 * (precision.diagonal().log().sum() - precision.logdet())
    return evidence.mean().item(), loss.item()


def trained_linear(recipe, epochs):
    x = linear_data()
    vae = linear_vae(recipe)
    tutorial.train(vae, x.split(100), epochs, lr=0.02)
    elbo, weighted = tutorial.bounds(vae, x, num=50, at_once=1000)
    return x, elbo.mean().item(), weighted.mean().item()


def test_gaussian_posterior_loses_what_the_closed_form_says():
    x, elbo, weighted = trained_linear(None, epochs=80)
    evidence, loss = exact(x)
    assert loss > 0.3
    assert elbo == pytest.approx(evidence - loss, abs=0.03)
    assert elbo + 0.2 < weighted < evidence + 0.02


@pytest.mark.parametrize("name", ["iaf", pytest.param("sylvester", marks=pytest.mark.slow)])
def test_flow_posterior_reaches_the_evidence(name):
    x, elbo, weighted = trained_linear(tutorial.POSTERIORS[name], epochs=40)
    evidence, _ = exact(x)
    assert elbo == pytest.approx(evidence, abs=0.05)
    assert elbo <= weighted <= evidence + 0.02


def plane_vae(prior, scale=0.1):
    """Return a VAE of points of the plane, which are their latents but for noise."""
    return tutorial.VAE(
        encoder=nn.Linear(2, 8),
        decoder=nn.Identity(),
        posterior=tutorial.posterior_flow(2, 8, pf.flows.iaf),
        prior=prior,
        likelihood=lambda loc: dist.Normal(loc, scale).to_event(1),
    )


@pytest.mark.slow
def test_flow_prior_learns_what_a_gaussian_cannot():
    """Two clusters, of which N(0, 1) knows nothing; their entropy is the best ELBO there is."""
    signs = torch.randint(2, (1000, 1)) * 2.0 - 1.0
    x = 1.5 * signs * torch.ones(2) + 0.3 * torch.randn(1000, 2)
    elbos = []
    for prior in (pf.distributions.StandardNormal(2), pf.flows.realnvp(2, num_transforms=4)):
        vae = plane_vae(prior)
        tutorial.train(vae, x.split(200), epochs=50, lr=0.01)
        elbo, weighted = tutorial.bounds(vae, x, num=20, at_once=1000)
        assert elbo.mean() <= weighted.mean()
        elbos.append(elbo.mean().item())
    mixture = torch.distributions.Normal(1.5 * torch.tensor([[-1.0], [1.0]])[:, None], 0.3)
    best = (mixture.log_prob(x).sum(-1).logsumexp(0) - torch.tensor(2.0).log()).mean().item()
    assert elbos[0] + 1.0 < elbos[1] < best + 0.1
    assert elbos[1] > best - 0.3


@pytest.mark.parametrize("name", tutorial.POSTERIORS)
def test_gradients_reach_encoder_flow_decoder_and_prior(name):
    grey = torch.rand(256, 16)
    vae = tutorial.digits_vae(grey, tutorial.POSTERIORS[name], flow_prior=True)
    before = copy.deepcopy(vae.state_dict())
    # The layers before one that starts at zero get theirs from the second step on.
    tutorial.train(vae, tutorial.Batches(grey), epochs=1)
    vae.zero_grad()
    Trace_ELBO().differentiable_loss(vae.model, vae.guide, grey.bernoulli()).backward()
    for part, parameter in vae.named_parameters():
        assert parameter.grad is not None, part
        assert parameter.grad.isfinite().all(), part
        assert parameter.grad.abs().max() > 0, part
        assert not torch.equal(parameter, before[part]), part


def test_bound_of_one_draw_is_the_elbo_and_more_draws_raise_it():
    vae = tutorial.digits_vae(torch.full((1, 16), 0.5), pf.flows.iaf)
    # Draws that matter to the pixels.
    vae.decoder[-1].weight.data *= 30
    x = torch.rand(200, 16).bernoulli()
    torch.testing.assert_close(*tutorial.bounds(vae, x, num=1))
    means = [tutorial.bounds(vae, x, num=num)[1].mean().item() for num in (1, 10, 100)]
    assert means[0] < means[1] < means[2]


def test_training_twice_starts_afresh():
    """Modules of the same names, one after the other: the first keeps what it has learnt."""
    grey = torch.rand(128, 16)
    first = tutorial.digits_vae(grey)
    tutorial.train(first, tutorial.Batches(grey), epochs=1)
    kept = copy.deepcopy(first.state_dict())
    tutorial.train(tutorial.digits_vae(grey, pf.flows.iaf), tutorial.Batches(grey), epochs=1)
    torch.testing.assert_close(first.state_dict(), kept, rtol=0, atol=0)


def test_batches_are_binary_and_in_a_new_order():
    grey = torch.linspace(0, 1, 10)[:, None].round() * torch.ones(10, 3)
    batches = tutorial.Batches(grey, size=4)
    passes = [torch.cat(list(batches)) for _ in range(5)]
    assert all(rows.shape == (8, 3) and ((rows == 0) | (rows == 1)).all() for rows in passes)
    assert any(not torch.equal(rows, passes[0]) for rows in passes)


def test_missing_and_wrong_files_are_told_of(tmp_path):
    with pytest.raises(SystemExit, match=r"t10k-images-idx3-ubyte.gz in .*Pass its folder"):
        tutorial.main(["--data", str(tmp_path), "--out", str(tmp_path / "out")])
    (tmp_path / tutorial.FILE).write_bytes(bytes(40))
    with pytest.raises(SystemExit, match="IDX format"):
        tutorial.main(["--data", str(tmp_path), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@needs_mnist
@pytest.mark.slow
def test_flows_gain_on_digits(tmp_path):
    command = [sys.executable, SCRIPT, "--data", MNIST, "--out", tmp_path]
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, cwd=SCRIPT.parents[1]
    )
    assert done.returncode == 0, done.stdout + done.stderr
    names = {"vae_draws.png", "vae_reconstructions.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert "The flow prior gains" in done.stdout
