"""From a guide to ArviZ."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib import metadata
from typing import Any

import numpy as np
import pyro
import torch

from pyro_flows import _checks
from pyro_flows.diagnostics import names
from pyro_flows.diagnostics.chains import Chains, chains_of, check_callable
from pyro_flows.diagnostics.constants import constant_arrays
from pyro_flows.diagnostics.containers import container
from pyro_flows.diagnostics.groups import Groups, Reader, Table, Wanted, report_nan
from pyro_flows.diagnostics.layout import Layout, Naming, layout_of
from pyro_flows.errors import DomainError, NonFiniteError
from pyro_flows.infer import store
from pyro_flows.infer.importance import psis
from pyro_flows.infer.posterior_draws import PosteriorDraws
from pyro_flows.infer.random import seeded
from pyro_flows.transforms.continuous import exact_traces

logger = logging.getLogger("pyro_flows")

Guide = Callable[..., Any]

_PRIOR_DRAWS = 500


def to_arviz(
    model: Callable[..., Any],
    guide: Guide | Sequence[Guide] | PosteriorDraws,
    *args: Any,
    num_draws: int | None = None,
    predictive: bool = True,
    log_likelihood: bool = True,
    log_prior: bool = True,
    prior: bool | int = False,
    constant_data: Mapping[str, Any] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    seed: int | None = None,
    chunk_size: int | None = None,
    **kwargs: Any,
) -> Any:
    """Draw from a guide and hand the draws to ArviZ, with what the model says about each.

    The groups:

    - ``posterior``: latents and deterministic sites;
    - ``sample_stats``: ``log_p``, the model's joint log-density, and ``log_q``, the guide's, so
      that ``log_p - log_q`` is the log-weight of the draw, and its mean the ELBO; ``lp`` is
      ``log_p`` under ArviZ's name; ``weights``, the importance weights after Pareto smoothing,
      which sum to one in each chain, with the shapes ``pareto_k`` of their tails as an attribute;
    - ``log_likelihood``: of each observation, not scaled by subsampled plates;
    - ``log_prior``: of each latent, not scaled either; 0 where it is masked;
    - ``posterior_predictive``: observed sites drawn afresh, given each draw;
    - ``prior`` and ``prior_predictive``, on demand: the same from the model run forward, in which
      a ``pyro.factor`` has no part;
    - ``observed_data``, and ``constant_data`` if there is any.

    Plates become dims with the indices of their members as coordinates; all draws see the same
    subsample. The other dims are named by the site, as in ``pyro.sample("beta", ...,
    infer={"event_dims": ["column"]})``, or by ArviZ; ``dims`` and ``coords`` override all of
    these. Observations that a mask hides are NaN in ``log_likelihood`` and ``observed_data``: drop
    them before ``az.loo``.

    A discrete latent that the guide leaves out, marked ``infer={"enumerate": "parallel"}``, is
    summed over in ``log_p`` and ``log_likelihood``, drawn given all else for ``posterior``, drawn
    anew for ``posterior_predictive``, and has no part in ``log_prior``.

    A ``/`` in a name becomes a dot, since no file can hold it (the posterior's attribute
    ``renamed_sites`` has the old names), and a dim with the name of a site ends in ``_dim``.

    Args:
        model: The model.
        guide: An :class:`~pyro_flows.AutoFlow`, or any guide of Pyro's; one that never ran is set
            up first. A list of guides, such as restarts of one fit, gives a chain for each.
            :class:`~pyro_flows.PosteriorDraws` keep their chains and draws; ``sample_stats`` has
            their statistics, and no weights.
        *args: Arguments of the model.
        num_draws: Number of draws of each chain, 1000 by default; not with draws that are kept.
        predictive: Whether to draw the observed sites afresh.
        log_likelihood: Whether to keep the log-density of each observation.
        log_prior: Whether to keep that of each latent.
        prior: Whether to run the model forward, or how many times; ``True`` is 500.
        constant_data: Data that are no site, such as covariates, by name.
        dims: Names for the axes of a site or constant, chain and draw apart, by its name.
        coords: Names for the members of a dim, in order, by its name; of all members of a plate
            that is subsampled.
        seed: Seeds the run, which then leaves the global random state alone.
        chunk_size: Largest number of draws to run at once, which bounds the memory; by default, as
            many as make a quarter of a million numbers. A model that does not broadcast over draws
            runs once for each.
        **kwargs: Keyword arguments of the model.

    Returns:
        An ``InferenceData`` under ArviZ 0.x, a ``DataTree`` from ArviZ 1 on. There are no
        ``weights`` where the model is subsampled, or where a density is NaN.

    Raises:
        DomainError: An argument or a name is not possible; the latents of guide and model differ,
            or the guides' models; the model's sites differ from draw to draw; observations do not
            separate when discrete latents are summed over.
        NonFiniteError: A latent, a predicted value or a log-likelihood is NaN.
        ShapeError: The shape of a site differs from draw to draw, or from that in the guide.

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
    check_callable("model", model)
    if chunk_size is not None:
        chunk_size = _checks.check_count("to_arviz", "chunk_size", chunk_size)
    num_prior = _count_prior(prior)
    constants = constant_arrays(constant_data)
    naming = Naming(
        names.check_mapping("dims", dims), names.check_mapping("coords", coords), constants
    )
    wanted = Wanted(predictive, log_likelihood, log_prior)
    with ExitStack() as stack:
        stack.enter_context(store.unused())
        stack.enter_context(seeded("to_arviz", seed))
        stack.enter_context(torch.no_grad())
        stack.enter_context(exact_traces())
        # A NaN is to be reported with its site, not by the distribution that it reaches first.
        stack.enter_context(pyro.validation_enabled(False))
        chains = chains_of(model, guide, args, kwargs, num_draws)
        layout = _common_layout(chains, naming)
        readers = [Reader(draws, layout, wanted, chunk_size) for draws in chains.sources]
        groups = _read(readers, chains, num_prior)
    k_hats = _add_weights(groups["sample_stats"], chains)
    groups |= {
        "observed_data": readers[0].observed(),
        "constant_data": {layout.labels[name]: array for name, array in constants.items()},
    }
    filled = {group: arrays for group, arrays in groups.items() if arrays}
    attrs = {"posterior": {"guide": chains.origin, **layout.attrs()}, "sample_stats": k_hats}
    return container(filled, layout, attrs, _library())


def _count_prior(prior: bool | int) -> int:
    if isinstance(prior, bool):
        return _PRIOR_DRAWS if prior else 0
    return _checks.check_count("to_arviz", "prior", prior)


def _common_layout(chains: Chains, naming: Naming) -> Layout:
    layouts = [layout_of(draws, naming) for draws in chains.sources]
    for position, layout in enumerate(layouts):
        if layout.sites != layouts[0].sites:
            raise _checks.refusal(
                DomainError,
                "to_arviz",
                expected="guides that leave the model's sites and shapes as they are",
                got=f"other ones with guide {position} than with the first",
                advice="Convert them one by one.",
            )
    return layouts[0]


def _read(readers: list[Reader], chains: Chains, num_prior: int) -> Groups:
    table, start = Table(chains.num_chains, chains.num_draws), 0
    for reader in readers:
        start = reader.read(table, start, table.chains * table.draws // len(readers))
    groups = table.groups()
    # What is recorded comes second to what the model says of the draws now.
    groups["sample_stats"] = {**chains.stats, **groups["sample_stats"]}
    if num_prior:
        prior = Table(1, num_prior)
        readers[0].read_prior(prior)
        groups |= prior.groups()
    report_nan(groups)
    return groups


def _add_weights(stats: dict[str, np.ndarray], chains: Chains) -> dict[str, Any]:
    """Add the smoothed importance weights of draws from guides, and return their k-hats."""
    if chains.is_recorded or any(draws.is_subsampled for draws in chains.sources):
        return {}
    ratios = stats["log_p"].astype(np.float64) - stats["log_q"]
    try:
        smoothed = [psis(row) for row in ratios]
    except NonFiniteError as error:
        logger.warning("to_arviz: leaves out the importance weights. %s", error)
        return {}
    stats["weights"] = np.exp([log_weights for log_weights, _ in smoothed])
    return {"pareto_k": [k_hat for _, k_hat in smoothed]}


def _library() -> dict[str, Any]:
    try:
        version = metadata.version("pyro-flows")
    except metadata.PackageNotFoundError:
        version = "not installed"
    return {"inference_library": "pyro_flows", "inference_library_version": version}
