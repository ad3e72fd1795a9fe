"""Three models, each written once for Pyro and for NumPyro, and one of any size.

Data are made with numpy alone, and no library is imported that a language brings.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

SCHOOLS_Y = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
SCHOOLS_SIGMA = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]
FEATURES, ROWS = 30, 500
GROUPS = 198


class Language(NamedTuple):
    """What Pyro and NumPyro name alike, and what their arrays need besides.

    Attributes:
        ppl: Has ``sample`` and ``plate``.
        dist: Has the distributions.
        array: Returns the language's array of a float32 array of numpy's.
    """

    ppl: Any
    dist: Any
    array: Callable[[np.ndarray], Any]


class Problem(NamedTuple):
    """A model, what it is called with, and its number of unconstrained coordinates."""

    model: Callable[..., None]
    args: tuple[Any, ...]
    dim: int


def eight_schools(language: Language) -> Problem:
    """Return the non-centred eight schools (Rubin 1981)."""
    ppl, dist, _ = language

    def model(y, sigma):
        mu = ppl.sample("mu", dist.Normal(0.0, 5.0))
        tau = ppl.sample("tau", dist.HalfCauchy(5.0))
        with ppl.plate("school", len(y)):
            z = ppl.sample("z", dist.Normal(0.0, 1.0))
            ppl.sample("y", dist.Normal(mu + tau * z, sigma), obs=y)

    return Problem(model, _arrays(language, SCHOOLS_Y, SCHOOLS_SIGMA), 2 + len(SCHOOLS_Y))


def logistic(language: Language) -> Problem:
    """Return a logistic regression with an intercept."""
    ppl, dist, _ = language
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, FEATURES))
    logits = 0.5 + x @ (rng.standard_normal(FEATURES) / FEATURES**0.5)
    y = rng.random(ROWS) < 1 / (1 + np.exp(-logits))

    def model(x, y):
        intercept = ppl.sample("intercept", dist.Normal(0.0, 2.0))
        with ppl.plate("feature", FEATURES):
            weights = ppl.sample("weights", dist.Normal(0.0, 1.0))
        with ppl.plate("row", ROWS):
            ppl.sample("y", dist.Bernoulli(logits=intercept + weights @ x.T), obs=y)

    return Problem(model, _arrays(language, x, y), 1 + FEATURES)


def hierarchical(language: Language) -> Problem:
    """Return measurements of groups, spread about a common mean."""
    ppl, dist, _ = language
    rng = np.random.default_rng(0)
    sigma = rng.uniform(0.3, 1.0, GROUPS)
    y = 1.0 + 0.5 * rng.standard_normal(GROUPS) + sigma * rng.standard_normal(GROUPS)

    def model(y, sigma):
        mu = ppl.sample("mu", dist.Normal(0.0, 2.0))
        tau = ppl.sample("tau", dist.HalfNormal(1.0))
        with ppl.plate("group", GROUPS):
            z = ppl.sample("z", dist.Normal(0.0, 1.0))
            ppl.sample("y", dist.Normal(mu + tau * z, sigma), obs=y)

    return Problem(model, _arrays(language, y, sigma), 2 + GROUPS)


def gaussian(language: Language, dim: int) -> Problem:
    """Return the means of ``dim`` normal numbers."""
    ppl, dist, _ = language

    def model(y):
        with ppl.plate("coordinate", dim):
            x = ppl.sample("x", dist.Normal(0.0, 1.0))
            ppl.sample("y", dist.Normal(x, 1.0), obs=y)

    return Problem(model, _arrays(language, np.random.default_rng(0).standard_normal(dim)), dim)


def _arrays(language: Language, *values: Any) -> tuple[Any, ...]:
    return tuple(language.array(np.asarray(value, dtype=np.float32)) for value in values)


MODELS = {"eight_schools": eight_schools, "logistic": logistic, "hierarchical": hierarchical}


def problem(language: Language, name: str) -> Problem:
    """Return a model by its name, or the Gaussian of so many dimensions by their number."""
    return gaussian(language, int(name)) if name.isdigit() else MODELS[name](language)
