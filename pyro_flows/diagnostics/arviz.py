"""From a guide to ArviZ."""

from collections.abc import Callable
from importlib import metadata
from typing import Any

import pyro
import torch

from pyro_flows import _checks
from pyro_flows.diagnostics.draws import Draws
from pyro_flows.diagnostics.groups import Groups, Reader
from pyro_flows.diagnostics.layout import Layout, layout_of
from pyro_flows.errors import DomainError
from pyro_flows.infer import store
from pyro_flows.infer.guides.auto_flow import AutoFlow
from pyro_flows.infer.importance import import_arviz
from pyro_flows.infer.random import seeded


def to_arviz(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_draws: int = 1000,
    predictive: bool = True,
    log_likelihood: bool = True,
    seed: int | None = None,
    chunk_size: int | None = None,
    **kwargs: Any,
) -> Any:
    """Draw from a guide and hand the draws to ArviZ, with what the model says about each.

    The groups, all of one chain:

    - ``posterior``: latents and deterministic sites;
    - ``sample_stats``: ``log_p``, the model's joint log-density, and ``log_q``, the guide's, so
      that ``log_p - log_q`` is the log-weight of the draw, and its mean the ELBO; ``lp`` is
      ``log_p`` under ArviZ's name;
    - ``log_likelihood``: of each observation, not scaled by subsampled plates;
    - ``posterior_predictive``: observed sites drawn afresh, given each draw;
    - ``observed_data``.

    Plates become dims with the indices of their members as coordinates; all draws see the same
    subsample. The other dims are named by the site, as in ``pyro.sample("beta", ...,
    infer={"event_dims": ["column"]})``, or by ArviZ. Observations that a mask hides are NaN in
    ``log_likelihood`` and ``observed_data``: drop them before ``az.loo``.

    A ``/`` in a name becomes a dot, since no file can hold it (the posterior's attribute
    ``renamed_sites`` has the old names), and a dim with the name of a site ends in ``_dim``.

    Args:
        model: The model.
        guide: An :class:`~pyro_flows.AutoFlow`, or any guide of Pyro's. One that never ran is set
            up first.
        *args: Arguments of the model.
        num_draws: Number of draws.
        predictive: Whether to draw the observed sites afresh.
        log_likelihood: Whether to keep the log-density of each observation.
        seed: Seeds the run, which then leaves the global random state alone.
        chunk_size: Largest number of draws to run at once, which bounds the memory; by default, as
            many as make a quarter of a million numbers. A model that does not broadcast over draws
            runs once for each.
        **kwargs: Keyword arguments of the model.

    Returns:
        An ``InferenceData`` under ArviZ 0.x, a ``DataTree`` from ArviZ 1 on.

    Raises:
        DomainError: An argument or a name is not possible; a latent is not in the guide; the
            model's sites differ from draw to draw.
        NonFiniteError: A latent, a predicted value or a log-likelihood is NaN.
        ShapeError: The shape of a site differs from draw to draw.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_flows.infer import AutoFlow
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("rows", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> idata = to_arviz(model, AutoFlow(model), torch.ones(10), num_draws=500, seed=0)
        >>> dict(idata["log_likelihood"]["y"].sizes)
        {'chain': 1, 'draw': 500, 'rows': 10}
        >>> round(float(idata["posterior"]["mu"].mean()), 1)
        1.0
    """
    _check_functions(model=model, guide=guide)
    num_draws = _checks.check_count("to_arviz", "num_draws", num_draws)
    if chunk_size is not None:
        chunk_size = _checks.check_count("to_arviz", "chunk_size", chunk_size)
    with store.unused(), seeded("to_arviz", seed), torch.no_grad():
        if isinstance(guide, AutoFlow):
            guide.initialise(*args, **kwargs)
        # A NaN is to be reported with its site, not by the distribution that it reaches first.
        with pyro.validation_enabled(False):
            draws = Draws(model, guide, args, kwargs)
            layout = layout_of(draws)
            reader = Reader(draws, layout, predictive=predictive, log_likelihood=log_likelihood)
            groups = {
                **reader.read(num_draws, chunk_size),
                "observed_data": reader.observed(),
            }
    filled = {group: arrays for group, arrays in groups.items() if arrays}
    return _from_dict(filled, layout, {**_attrs(guide), **layout.attrs()})


def _from_dict(groups: Groups, layout: Layout, attrs: dict[str, str]) -> Any:
    az = import_arviz()
    from_dict: Callable[..., Any] = az.from_dict
    named = {"dims": layout.dims(), "coords": layout.members}
    if int(az.__version__.split(".")[0]) >= 1:
        return from_dict(groups, attrs={"posterior": attrs}, **named)
    return from_dict(**groups, posterior_attrs=attrs, **named)


def _attrs(guide: Callable[..., Any]) -> dict[str, str]:
    try:
        version = metadata.version("pyro-flows")
    except metadata.PackageNotFoundError:
        version = "not installed"
    return {
        "inference_library": "pyro_flows",
        "inference_library_version": version,
        "guide": getattr(guide, "__name__", type(guide).__name__),
    }


def _check_functions(**functions: Any) -> None:
    for name, function in functions.items():
        if not callable(function):
            raise _checks.refusal(
                DomainError,
                "to_arviz",
                expected=f"a {name} to call",
                got=_checks.describe(function),
            )
