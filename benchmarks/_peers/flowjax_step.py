"""Steps and fits of flowjax by maximum likelihood; run by benchmarks, in an own process."""

from _step_worker import Curve, Steps, restrict_to_cores, serve

restrict_to_cores()  # before the library counts them

import math  # noqa: E402
import os  # noqa: E402
import time  # noqa: E402
from functools import partial  # noqa: E402
from importlib.metadata import version  # noqa: E402
from typing import Any  # noqa: E402

import equinox as eqx  # noqa: E402
import flowjax.flows as ff  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import paramax  # noqa: E402
from flowjax.bijections import RationalQuadraticSpline  # noqa: E402
from flowjax.distributions import Normal, Transformed  # noqa: E402
from flowjax.train.losses import MaximumLikelihoodLoss  # noqa: E402
from flowjax.train.train_utils import step as train_step  # noqa: E402
from jax import random  # noqa: E402

# Those of `_peers`, which imports torch.
WIDTH = int(os.environ.get("BENCH_WIDTH", "128"))
DEPTH, BOUND, COUNT_BINS, COUPLINGS, AUTOREGRESSIVE = 2, 5.0, 8, 6, 3
RATE, CLIP = 1e-4, 5.0
BATCHES = 8


def spline(bins: int) -> RationalQuadraticSpline:
    """Return a spline, whose ends are knots of its own."""
    return RationalQuadraticSpline(knots=bins - 1, interval=BOUND)


SPLINE = spline(COUNT_BINS)
NET = {"nn_width": WIDTH, "nn_depth": DEPTH}
FAMILIES = {
    "affine_coupling": partial(ff.coupling_flow, flow_layers=COUPLINGS),
    "spline_coupling": partial(ff.coupling_flow, flow_layers=COUPLINGS, transformer=SPLINE),
    "affine_autoregressive": partial(ff.masked_autoregressive_flow, flow_layers=AUTOREGRESSIVE),
    "spline_autoregressive": partial(
        ff.masked_autoregressive_flow, flow_layers=AUTOREGRESSIVE, transformer=SPLINE
    ),
}


def flow_of(family: str, dim: int, seed: int = 0, **options: Any) -> Transformed:
    """Return a flow that scores in one pass."""
    base = Normal(jnp.zeros(dim))
    return FAMILIES[family](random.key(seed), base_dist=base, **NET, **options)


def prepare(family: str, batch_size: int, way: str) -> Steps:
    """Make steps ready; the way is the library, the number of coordinates, and how."""
    flow = flow_of(family, int(way.split()[1]))
    params, static = eqx.partition(
        flow, eqx.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, paramax.NonTrainable)
    )
    optimizer = optax.adam(RATE)
    state: list[Any] = [params, optimizer.init(params)]
    data = random.normal(random.key(1), (BATCHES, batch_size, int(way.split()[1])))
    batches = [jax.block_until_ready(rows) for rows in data]
    key, loss = random.key(2), MaximumLikelihoodLoss()

    def steps(count: int) -> None:
        for taken in range(count):
            *state[:], value = train_step(
                state[0],
                static,
                batches[taken % BATCHES],
                optimizer=optimizer,
                opt_state=state[1],
                loss_fn=loss,
                key=key,
            )
            value.item()

    return steps


def fit(file: str, batch_size: int, *, budget: float, lr: float, bins: int, seed: int) -> Curve:
    """Fit the rows of a file for some seconds of the process's time, compiling left out.

    The best state on the validation rows is kept. Returns its mean log-likelihoods of validation
    and test rows, and how many steps were taken in how many seconds.
    """
    rows = {name: jnp.asarray(part) for name, part in np.load(file).items()}
    count, dim = rows["train"].shape
    flow = flow_of("spline_autoregressive", dim, seed, transformer=spline(bins))
    params, static = eqx.partition(
        flow, eqx.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, paramax.NonTrainable)
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(CLIP), optax.inject_hyperparams(optax.adam)(learning_rate=lr)
    )
    state, loss, key = optimizer.init(params), MaximumLikelihoodLoss(), random.key(seed)
    take = partial(train_step, optimizer=optimizer, loss_fn=loss, key=key)
    score = eqx.filter_jit(lambda params, x: eqx.combine(params, static).log_prob(x).mean())
    score(params, rows["validation"])
    state[1].hyperparams["learning_rate"] = jnp.asarray(lr)  # a number would be compiled in
    first = rows["train"][:batch_size]
    take(params, static, first, opt_state=take(params, static, first, opt_state=state)[1])
    generator, best, kept, steps = np.random.default_rng(seed), -math.inf, params, 0
    began = time.process_time()
    while (used := (time.process_time() - began) / budget) < 1.0:
        order = generator.permutation(count)
        for start in range(0, count - batch_size + 1, batch_size):
            used = min((time.process_time() - began) / budget, 1.0)
            rate = lr * 0.5 * (1 + math.cos(math.pi * used))
            state[1].hyperparams["learning_rate"] = jnp.asarray(rate)
            chosen = rows["train"][order[start : start + batch_size]]
            params, state, value = take(params, static, chosen, opt_state=state)
            value.block_until_ready()
            steps += 1
            if used >= 1.0:
                break
        validation = float(score(params, rows["validation"]))
        if validation > best:
            best, kept = validation, params
    seconds = time.process_time() - began
    return [(best, float(score(kept, rows["test"]))), (steps, seconds)]


if __name__ == "__main__":
    serve({"flowjax": version("flowjax"), "jax": jax.__version__}, prepare, fit)
