"""Density estimators of tables, each at its best: ours, and those of the torch libraries.

Each is trained on standardised rows for some seconds of its thread's own time, with the best state
on the validation rows kept. Ours is trained by ``fit_mle``; the peers' loop, which they leave
to their users, is the one of here: fused Adam, half a cosine of the step size over the time.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyro_flows.density import MleResult, fit_mle
from pyro_flows.distributions import Flow, StudentT
from pyro_flows.transforms import Inverse, LULinear, Permute, SplineAutoregressive

HIDDEN = 128
BATCH = 256
CLIP = 5.0
STEPS_TO_TIME = 200
MOST_EPOCHS = 100_000
AT_ONCE = 4096
# Of ours, what differs from the defaults: two settings, as the peers have two step sizes.
OURS = [{"activation": "silu", "lr": 5e-3}, {"activation": "relu", "lr": 1e-2}]
# Divided by the number of rows, the decay of weights: few rows are easily learnt by heart.
DECAY = 1000.0


class Rows(NamedTuple):
    """The three parts of a table."""

    train: Tensor
    validation: Tensor
    test: Tensor


class Outcome(NamedTuple):
    """Mean log-likelihoods in nats a row, and how many steps were taken."""

    validation: float
    test: float
    steps: int
    seconds: float


class Scored(nn.Module):
    """A flow of some library's, as a module that scores."""

    def __init__(self, flow: nn.Module, log_prob: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.flow, self._log_prob = flow, log_prob

    def forward(self, x: Tensor) -> Tensor:
        """Return the log-density of each row."""
        return self._log_prob(self.flow, x)


def in_zuko(dim: int, bins: int) -> Scored:
    """Return Zuko's neural spline flow."""
    import zuko

    flow = zuko.flows.NSF(dim, transforms=3, hidden_features=(HIDDEN, HIDDEN), bins=bins)
    return Scored(flow, lambda flow, x: flow().log_prob(x))


def in_nflows(dim: int, bins: int) -> Scored:
    """Return the autoregressive spline flow of the NSF paper, by its authors' library."""
    from nflows import distributions, flows, transforms

    parts = []
    for _ in range(3):
        parts += [
            transforms.RandomPermutation(dim),
            transforms.LULinear(dim, identity_init=True),
            transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
                dim, HIDDEN, num_bins=bins, tails="linear", tail_bound=5.0, num_blocks=2
            ),
        ]
    base = distributions.StandardNormal([dim])
    flow = flows.Flow(transforms.CompositeTransform(parts), base)
    return Scored(flow, lambda flow, x: flow.log_prob(x))


def in_normflows(dim: int, bins: int) -> Scored:
    """Return normflows' autoregressive spline flow, as in its examples."""
    import normflows as nf

    parts = []
    for _ in range(3):
        parts += [
            nf.flows.AutoregressiveRationalQuadraticSpline(dim, 2, HIDDEN, bins, tail_bound=5),
            nf.flows.LULinearPermute(dim),
        ]
    flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(dim, trainable=False), parts)
    return Scored(flow, lambda flow, x: flow.log_prob(x))


PEERS = {"zuko": in_zuko, "nflows": in_nflows, "normflows": in_normflows}


def fit_peer(
    library: str, rows: Rows, *, budget: float, lr: float, bins: int, seed: int
) -> Outcome:
    """Train a library's flow for some seconds of the thread's time."""
    torch.manual_seed(seed)
    model = PEERS[library](rows.train.shape[1], bins)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    best, kept, steps = math.inf, None, 0
    began = time.thread_time()
    for _ in range(MOST_EPOCHS):
        order = torch.randperm(len(rows.train)).split(BATCH)
        for chosen in order[:-1] if len(order) > 1 else order:
            used = (time.thread_time() - began) / budget
            optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * min(used, 1.0)))
            optimizer.zero_grad(set_to_none=True)
            (-model(rows.train[chosen]).mean()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            steps += 1
            if used >= 1.0:
                break
        nll = -mean_score(model, rows.validation)
        if nll < best:
            best = nll
            kept = {name: value.clone() for name, value in model.state_dict().items()}
        if time.thread_time() - began >= budget:
            break
    seconds = time.thread_time() - began
    model.load_state_dict(kept)
    return Outcome(-best, mean_score(model, rows.test), steps, seconds)


def our_flow(dim: int, activation: str) -> Flow:
    """Return our autoregressive spline flow, whose base has heavy tails."""
    parts = []
    for _ in range(3):
        spline = SplineAutoregressive(
            dim, count_bins=16, hidden_dims=(64, 64), activation=activation
        )
        parts += [Inverse(spline), LULinear(dim), Permute.reversal(dim)]
    return Flow(parts[:-2], base=StudentT(dim))


def fit_ours(rows: Rows, budget: float, seed: int, *, activation: str, lr: float) -> Outcome:
    """Fit our spline flow, with as many epochs as the time allows; traced, as on one core."""
    options = {"lr": lr, "weight_decay": DECAY / len(rows.train)}
    make = partial(our_flow, rows.train.shape[1], activation)
    result, seconds, flow = fit_within(budget, fit_mle, make, rows, seed, **options)
    flow.eval()
    return Outcome(-result.nll, mean_score(flow.log_prob, rows.test), result.steps, seconds)


def fit_within(
    budget: float,
    train: Callable[..., MleResult],
    make: Callable[[], Flow],
    rows: Rows,
    seed: int,
    **options: float,
) -> tuple[MleResult, float, Flow]:
    """Train a flow with as many epochs as the budget allows; return it, and the seconds."""

    def fit(epochs: int) -> tuple[MleResult, float, Flow]:
        torch.manual_seed(seed)
        flow, began = make(), time.thread_time()
        result = train(
            flow,
            rows.train,
            validation=rows.validation,
            epochs=epochs,
            engine="traced",
            seed=seed,
            progress=False,
            patience=None,
            **options,
        )
        return result, time.thread_time() - began, flow

    # Of three short fits, two tell what an epoch takes, and what does not depend on their number.
    more = 1 + -(-STEPS_TO_TIME * BATCH // len(rows.train))
    fit(1)  # which loads what recording needs
    once, longer = fit(1)[1], fit(1 + more)[1]
    each = (longer - once) / more
    # Times vary on a busy machine, and ours must not have more than its share.
    epochs = max(1, int((0.9 * budget - (once - each)) / each))
    return fit(min(epochs, MOST_EPOCHS))


@torch.no_grad()
def mean_score(log_prob: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Return the mean log-density; minus infinity where it is not a number."""
    if isinstance(log_prob, nn.Module):
        log_prob.eval()
    mean = float(torch.cat([log_prob(chunk).double() for chunk in x.split(AT_ONCE)]).mean())
    if isinstance(log_prob, nn.Module):
        log_prob.train()
    return -math.inf if math.isnan(mean) else mean


def gaussian(rows: Rows) -> Outcome:
    """Fit a Gaussian with a full covariance."""
    began = time.thread_time()
    data = rows.train.double()
    normal = torch.distributions.MultivariateNormal(data.mean(0), data.T.cov())
    validation, test = (mean_score(normal.log_prob, x.double()) for x in rows[1:])
    return Outcome(validation, test, 0, time.thread_time() - began)


def kernels(rows: Rows) -> Outcome:
    """Fit Gaussian kernels, whose width the validation rows choose."""
    began = time.thread_time()
    widths = [0.05 * 1.25**k for k in range(14)]
    scores = {width: kernel_score(rows.train, rows.validation, width) for width in widths}
    width = max(scores, key=lambda width: scores[width])
    test = kernel_score(rows.train, rows.test, width)
    return Outcome(scores[width], test, 0, time.thread_time() - began)


def kernel_score(centres: Tensor, x: Tensor, width: float) -> float:
    """Return the mean log-density of rows under kernels of a width."""
    count, dim = centres.shape
    constant = math.log(count) + dim * math.log(width * math.sqrt(2 * math.pi))

    def log_prob(chunk: Tensor) -> Tensor:
        squares = torch.cdist(chunk, centres).square() / (2 * width**2)
        return (-squares).logsumexp(-1) - constant

    return float(torch.cat([log_prob(chunk) for chunk in x.split(256)]).double().mean())
