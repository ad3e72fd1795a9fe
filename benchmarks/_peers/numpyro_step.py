"""The steps and fits of NumPyro's flow guide; run by the benchmark, in a process of its own."""

from _step_worker import Curve, Steps, Stopwatch, kept_after, restrict_to_cores, serve

restrict_to_cores()  # before the library counts them

from collections.abc import Callable  # noqa: E402
from typing import Any  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpyro  # noqa: E402
from _step_models import Language, Problem, problem  # noqa: E402
from jax import lax, random  # noqa: E402
from numpyro import distributions as dist  # noqa: E402
from numpyro.infer import SVI, Trace_ELBO  # noqa: E402
from numpyro.infer.autoguide import AutoIAFNormal  # noqa: E402

NUMPYRO = Language(numpyro, dist, jnp.asarray)
DRAWS, DRAWS_AT_ONCE = 10_000, 1000
LOOP = 200


def inference(of: Problem, particles: int, lr: float) -> SVI:
    """Return what takes the steps; skip connections (none) and ELUs are its defaults."""
    guide = AutoIAFNormal(of.model, num_flows=3, hidden_dims=[of.dim, of.dim])
    loss = Trace_ELBO(num_particles=particles)
    return SVI(of.model, guide, numpyro.optim.Adam(lr), loss)


def looped(svi: SVI, args: tuple[Any, ...]) -> Callable[[Any, int], Any]:
    """Return a function that takes any number of steps in native code, with the data in it."""
    return jax.jit(
        lambda state, count: lax.fori_loop(
            0, count, lambda _, carried: svi.update(carried, *args)[0], state
        )
    )


def prepare(model: str, particles: int, way: str) -> Steps:
    """Make steps ready: ``"loop"`` in native code, 200 at a time, or a ``"call"`` for each."""
    of = problem(NUMPYRO, model)
    svi = inference(of, particles, lr=1e-4)
    state = svi.init(random.PRNGKey(0), *of.args)
    loop, update = looped(svi, of.args), jax.jit(svi.update)

    def by_loop(count: int) -> None:
        for taken in range(0, count, LOOP):
            jax.block_until_ready(loop(state, min(LOOP, count - taken)))

    def by_call(count: int) -> None:
        moving = state
        for _ in range(count):
            moving, _ = update(moving, *of.args)
        jax.block_until_ready(moving)

    return {"loop": by_loop, "call": by_call}[way]


def fit(model: str, particles: int, *, steps: int, lr: float, seed: int) -> Curve:
    """Fit by constant steps of Adam's, and return the ELBO by time."""
    of = problem(NUMPYRO, model)
    watch = Stopwatch()
    svi = inference(of, particles, lr)
    state = svi.init(random.PRNGKey(seed), *of.args)
    loop, taken = looped(svi, of.args), 0
    for after in kept_after(steps):
        state = jax.block_until_ready(loop(state, after - taken))
        taken = after
        watch.keep(svi.get_params(state))
    scorer = Trace_ELBO(num_particles=DRAWS_AT_ONCE)

    @jax.jit
    def loss(key: Any, params: Any) -> Any:
        return scorer.loss(key, params, of.model, svi.guide, *of.args)

    keys = random.split(random.PRNGKey(1), DRAWS // DRAWS_AT_ONCE)
    return watch.curve(lambda params: -sum(float(loss(key, params)) for key in keys) / len(keys))


if __name__ == "__main__":
    serve({"numpyro": numpyro.__version__, "jax": jax.__version__}, prepare, fit)
