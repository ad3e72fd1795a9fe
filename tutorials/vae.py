"""A variational autoencoder of digits, with flows for its prior and for its encoder's posterior.

    python tutorials/vae.py --data ../shared/mnist --out out

Trains three models, equal but for the flows, by Pyro's SVI: prior and posterior Gaussian; the
posterior a flow; and the prior a flow as well. Prints the ELBO and the importance-weighted bound
of held-out images, in nats, and writes draws and reconstructions. --data is a folder with MNIST's
t10k-images-idx3-ubyte, as it is or compressed (.gz). Pixels are drawn black or white by their
grey, as is usual where such bounds are compared. The exit status is 1 where a flow does not gain.
"""

import argparse
import gzip
import math
import sys
import time
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import nn

import pyro_flows as pf
from pyro_flows.transforms import ElementwiseAffine

FILE, MAGIC = "t10k-images-idx3-ubyte", 2051
HELD_OUT = 1000
LATENTS, CONTEXT, HIDDEN = 8, 64, 256
POSTERIORS = {"iaf": pf.flows.iaf, "sylvester": pf.flows.sylvester}
WARM_UP = 50


class VAE(nn.Module):
    """Draw z from a prior and x given what a decoder makes of z; infer z given an encoding of x.

    The prior is a distribution over z, the posterior a flow that takes a context, and the
    likelihood a function from the decoder's output to a distribution over x.
    """

    def __init__(self, encoder, decoder, posterior, prior, likelihood):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.posterior, self.prior = posterior, prior
        self.likelihood = likelihood

    def model(self, x):
        pyro.module("vae", self)
        # By the number of images, a loss is that of one, whatever the size of the batch.
        with pyro.plate("images", len(x)), poutine.scale(scale=1 / len(x)):
            z = pyro.sample("z", self.prior)
            pyro.sample("x", self.likelihood(self.decoder(z)), obs=x)

    def guide(self, x):
        pyro.module("vae", self)
        # A draw that is kept is scored for free, and has the path gradient.
        posterior = self.posterior.condition(self.encoder(x)).with_draw_kept()
        with pyro.plate("images", len(x)), poutine.scale(scale=1 / len(x)):
            pyro.sample("z", posterior)


def posterior_flow(latents, context, recipe=None):
    """Return a Gaussian whose means and scales the context gives, and a flow of it, if any."""
    gaussian = ElementwiseAffine(latents, context_dim=context, hidden_dims=())
    # Means that tell the images apart from the first step on: the zeros that it starts at let the
    # decoder learn to ignore z, which costs some 30 nats after five epochs.
    nn.init.orthogonal_(gaussian.conditioner.from_context.weight[:latents], gain=3.0)
    if recipe is None:
        return pf.Flow(gaussian)
    return pf.Flow([gaussian, recipe(latents, context_dim=context, hidden_dims=(64,)).transform])


def binary_pixels(logits):
    return dist.Bernoulli(logits=logits).to_event(1)


def network(*sizes):
    layers = [nn.Linear(*pair) for pair in pairwise(sizes)]
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.SiLU())))[:-1]


def digits_vae(grey, recipe=None, flow_prior=False):
    """Return a VAE of images like these, whose decoder starts at their mean."""
    pixels, normal = grey.shape[1], pf.distributions.StandardNormal(LATENTS)
    decoder = network(LATENTS, HIDDEN, HIDDEN, pixels)
    decoder[-1].bias.data = grey.mean(0).clamp(0.003, 0.997).logit()
    return VAE(
        encoder=network(pixels, HIDDEN, HIDDEN, CONTEXT),
        decoder=decoder,
        posterior=posterior_flow(LATENTS, CONTEXT, recipe),
        prior=pf.flows.realnvp(LATENTS, num_transforms=4) if flow_prior else normal,
        likelihood=binary_pixels,
    )


def train(vae, batches, epochs, lr=5e-3):
    """Train by SVI, with a warm-up and a linear decay, and return the losses."""
    steps = epochs * len(batches)
    optim = pyro.optim.LambdaLR(
        {
            "optimizer": torch.optim.Adam,
            "optim_args": {"lr": lr},
            "lr_lambda": lambda step: min((step + 1) / WARM_UP, 1 - step / steps),
        }
    )
    # Of an earlier model's training the store would keep parameters of the same names.
    pyro.clear_param_store()
    svi, losses = SVI(vae.model, vae.guide, optim, Trace_ELBO()), []
    for _ in range(epochs):
        for x in batches:
            losses.append(svi.step(x))
            optim.step()
    return losses


@torch.no_grad()
def bounds(vae, x, num=100, at_once=100):
    """Return the ELBO and the bound of ``num`` importance-weighted draws, of each row of x."""
    log_weights = torch.cat([_log_weights(vae, rows, num) for rows in x.split(at_once)], -1)
    return log_weights.mean(0), log_weights.logsumexp(0) - math.log(num)


def _log_weights(vae, x, num):
    with pyro.plate("draws", num, dim=-2):
        drawn = poutine.trace(vae.guide).get_trace(x)
        scored = poutine.trace(poutine.replay(vae.model, drawn)).get_trace(x)
    drawn.compute_log_prob()
    scored.compute_log_prob()
    log_p = scored.nodes["z"]["unscaled_log_prob"] + scored.nodes["x"]["unscaled_log_prob"]
    return log_p - drawn.nodes["z"]["unscaled_log_prob"]


class Batches:
    """Go through grey images in a new order at each pass, in batches of binary pixels."""

    def __init__(self, grey, size=64):
        self.grey, self.size = grey, size

    def __len__(self):
        return len(self.grey) // self.size

    def __iter__(self):
        order = torch.randperm(len(self.grey))
        for rows in order.split(self.size)[: len(self)]:
            yield self.grey[rows].bernoulli()


def read_images(folder):
    """Return MNIST's test images in [0, 1], of shape (10000, 784), and their height."""
    path = next((p for p in (folder / FILE, folder / f"{FILE}.gz") if p.exists()), None)
    if path is None:
        sys.exit(f"vae: expected {FILE}.gz in {folder}; got no such file. Pass its folder: --data")
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        raw = file.read()
    magic, count, height, width = np.frombuffer(raw[:16], ">i4")
    if magic != MAGIC or len(raw) != 16 + count * height * width:
        sys.exit(f"vae: expected images in the IDX format; got another file, {path}.")
    pixels = np.frombuffer(raw, np.uint8, offset=16).reshape(count, -1)
    return torch.from_numpy(pixels.astype(np.float32) / 255), int(height)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/mnist"))
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--posterior", choices=sorted(POSTERIORS), default="iaf")
    parser.add_argument("--quick", action="store_true", help="two epochs, as a trial")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    grey, height = read_images(options.data)
    options.out.mkdir(parents=True, exist_ok=True)
    pyro.set_rng_seed(options.seed)
    grey = grey[torch.randperm(len(grey))]
    train_rows, held_out = grey[HELD_OUT:], grey[:HELD_OUT].bernoulli()

    vaes, elbos = compare(options, Batches(train_rows), held_out)
    draw_pictures(vaes, held_out, height, options.out)
    print(f"Wrote vae_draws.png and vae_reconstructions.png to {options.out}/")
    return 0 if options.quick else verdict(elbos)


def compare(options, batches, held_out):
    """Train each model, print what it reaches, and return models and held-out ELBOs by name."""
    epochs, recipe = 2 if options.quick else options.epochs, POSTERIORS[options.posterior]
    contestants = {
        "Gaussian prior, Gaussian posterior": {},
        f"Gaussian prior, {options.posterior} posterior": {"recipe": recipe},
        f"flow prior, {options.posterior} posterior": {"recipe": recipe, "flow_prior": True},
    }
    vaes, elbos = {}, {}
    print(f"{'nats an image, held out':36}{'ELBO':>9}{'IW bound':>10}{'training':>10}{'s':>7}")
    for name, flows in contestants.items():
        pyro.set_rng_seed(options.seed)
        began, vae = time.perf_counter(), digits_vae(batches.grey, **flows)
        losses = train(vae, batches, epochs)
        seconds = time.perf_counter() - began
        elbo, weighted = bounds(vae.eval(), held_out)
        vaes[name], elbos[name] = vae, elbo
        last = -np.mean(losses[-len(batches) :])
        print(f"{name:36}{elbo.mean():9.2f}{weighted.mean():10.2f}{last:10.2f}{seconds:7.0f}")
    return vaes, elbos


def verdict(elbos):
    """Print what each flow gains, image by image, and return the exit status."""
    plain, with_posterior, with_both = elbos.values()
    good = True
    for word, gain in (
        ("posterior", with_posterior - plain),
        ("prior", with_both - with_posterior),
    ):
        mean, error = gain.mean().item(), (gain.std() / len(gain) ** 0.5).item()
        print(f"The flow {word} gains {mean:.2f} nats an image (standard error {error:.2f}).")
        good = good and mean > 0
    return 0 if good else 1


@torch.no_grad()
def draw_pictures(vaes, held_out, height, out):
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    width = held_out.shape[1] // height

    def images(vae, z):
        return vae.likelihood(vae.decoder(z)).mean.reshape(-1, height, width)

    first, *_, last = vaes
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.75), layout="constrained")
    for ax, name in zip(axes, (first, last), strict=True):
        pf.plots.plot_images(images(vaes[name], vaes[name].prior.sample((64,))), columns=8, ax=ax)
        ax.set_title(f"draws: {name}")
    figure.savefig(out / "vae_draws.png", dpi=150)

    shown, vae = held_out[:12], vaes[last]
    z = vae.posterior.condition(vae.encoder(shown)).sample()
    rows = torch.cat([shown.reshape(-1, height, width), images(vae, z)])
    figure, ax = plt.subplots(figsize=(9, 1.9), layout="constrained")
    pf.plots.plot_images(rows, columns=len(shown), ax=ax)
    ax.set_title("held-out digits, and their reconstructions")
    figure.savefig(out / "vae_reconstructions.png", dpi=150)
    plt.close("all")


if __name__ == "__main__":
    sys.exit(main())
