"""What a benchmark knows about a posterior, and how the names of its columns are read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.posteriors.posteriordb import raw_data, reference_draws, reference_name

Raw = dict[str, Any]
Arrays = dict[str, np.ndarray]

EXACT_DRAWS, EXACT_SEED = 10_000, 0


def gather(columns: Arrays, raw: Raw) -> Arrays:
    """Return sites from columns: ``beta[1]``, ``beta[2]``, ... are one vector ``beta``."""
    sizes: dict[str, int] = {}
    for name in columns:
        site = name.partition("[")[0]
        sizes[site] = sizes.get(site, 0) + 1
    return {
        site: columns[site]
        if site in columns
        else np.stack([columns[f"{site}[{i + 1}]"] for i in range(size)], -1)
        for site, size in sizes.items()
    }


def spread(sites: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return columns from scalar and vector sites: what :func:`gather` undoes."""
    columns = {}
    for name, value in sites.items():
        if value.ndim == 1:
            columns[name] = value
        else:
            columns.update({f"{name}[{i + 1}]": value[:, i] for i in range(value.shape[1])})
    return columns


class Posterior(NamedTuple):
    """A posterior: the model, its data, and what its reference draws are compared by.

    Below, S is a number of draws.

    Attributes:
        name: The name in posteriordb, or our own.
        model: The model, whose positional arguments are tensors.
        data: From the raw data to those arguments, in float64.
        log_density: From sites of shape ``(S, *event)`` and the raw data to the log-density of
            latents and data in the constrained space, of shape ``(S,)``; without torch.
        sites: From the columns of reference draws, each of shape ``(S,)``, and the raw data to
            sites of shape ``(S, *event)``.
        columns: From draws of the sites, of shape ``(S, *event)``, to the reference's columns.
        exact: Returns so many exact draws by column; none where the reference is posteriordb's.
    """

    name: str
    model: Callable[..., None]
    data: Callable[[Raw], tuple[Tensor, ...]]
    log_density: Callable[[Arrays, Raw], np.ndarray]
    sites: Callable[[Arrays, Raw], Arrays] = gather
    columns: Callable[[dict[str, Tensor]], dict[str, Tensor]] = spread
    exact: Callable[[int, np.random.Generator], Arrays] | None = None


def load(posterior: Posterior, folder: Path) -> tuple[Raw, Arrays]:
    """Return the raw data and the columns of the reference draws, chain after chain.

    Args:
        posterior: The posterior.
        folder: Laid out like a clone of posteriordb; not read where there are exact draws.
    """
    if posterior.exact is not None:
        return {}, posterior.exact(EXACT_DRAWS, np.random.default_rng(EXACT_SEED))
    reference = reference_draws(folder, reference_name(folder, posterior.name))
    return raw_data(folder, posterior.name), reference


def tensors(raw: Raw, *names: str) -> tuple[Tensor, ...]:
    """Return entries of the raw data in float64."""
    return tuple(torch.tensor(raw[name], dtype=torch.float64) for name in names)
