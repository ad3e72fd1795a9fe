"""Draws in the forms that hold them, as one column for each coordinate."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pyro_flows import _checks
from pyro_flows.diagnostics.plots._points import coordinates, to_array
from pyro_flows.errors import DomainError, ShapeError
from pyro_flows.infer.posterior_draws import PosteriorDraws

Columns = dict[str, np.ndarray]

_NAMES = "A coordinate of a site is named as 'theta[2]', that of a matrix as 'L[1, 0]'."


def read_columns(
    who: str, draws: Mapping[str, Any], sites: Sequence[str] | None
) -> tuple[list[str], dict[str, Columns]]:
    """Return the labels of the coordinates to draw, and their values.

    Args:
        who: Named in the message.
        draws: ``"draws"``, and perhaps ``"reference"``: mappings, ``PosteriorDraws`` or ArviZ's.
        sites: The names of sites and coordinates; those that all have if not given.

    Returns:
        The labels, without coordinates that are constant, and the columns of each by label.

    Raises:
        DomainError: A site or a coordinate is missing, or none is left.
        NonFiniteError: A draw is NaN or infinite.
        ShapeError: A site has two shapes, or two sites differ in their numbers of draws.
    """
    given = {kind: _sites(who, kind, each) for kind, each in draws.items()}
    wanted = _choose(who, given, sites)
    names = list(given["draws"])
    needed = list(dict.fromkeys(_site_of(name, names) for name in wanted))
    values = {kind: _values(who, kind, found, needed) for kind, found in given.items()}
    for site in needed:
        shapes = {kind: found[site].shape[1:] for kind, found in values.items()}
        if len(set(shapes.values())) > 1:
            raise _checks.refusal(
                ShapeError,
                who,
                expected=f"the site {site!r} with one shape",
                got=" and ".join(f"{shape} in the {kind}" for kind, shape in shapes.items()),
            )
    columns: dict[str, Columns] = {kind: {} for kind in values}
    for kind, found in values.items():
        for site in needed:
            columns[kind] |= coordinates(site, found[site])
    labels: list[str] = []
    for name in wanted:
        labels += _labels(who, name, values["draws"], columns["draws"])
    if not labels:
        raise _checks.refusal(
            DomainError,
            who,
            expected="a coordinate that varies, of a site that draws and reference have",
            got=" and ".join(
                f"{', '.join(map(repr, found)) or 'no site'} in the {kind}"
                for kind, found in given.items()
            ),
        )
    return list(dict.fromkeys(labels)), columns


def _sites(who: str, kind: str, draws: Any) -> dict[str, Any]:
    """Return what is given for each site, as it is."""
    if isinstance(draws, PosteriorDraws):
        return draws.flat()
    # ArviZ's data are mappings too, from groups.
    if not isinstance(draws, Mapping) or hasattr(draws, "data_vars") or hasattr(draws, "groups"):
        return _from_arviz(who, kind, draws)
    return {str(site): value for site, value in draws.items()}


def _values(
    who: str, kind: str, given: dict[str, Any], sites: Iterable[str]
) -> dict[str, np.ndarray]:
    """Return the values of some sites, of shape ``(N, *site shape)``."""
    values = {site: to_array(who, f"{kind} of {site!r}", given[site]) for site in sites}
    counts = {value.shape[:1] for value in values.values()}
    if len(counts) > 1 or () in counts:
        shapes = ", ".join(f"{site!r}: {value.shape}" for site, value in values.items())
        raise _checks.refusal(
            ShapeError,
            who,
            expected=f"{kind} with their number as the first axis of every site",
            got=shapes,
        )
    return values


def _from_arviz(who: str, kind: str, draws: Any) -> dict[str, np.ndarray]:
    posterior = draws
    if not getattr(draws, "data_vars", None):
        posterior = getattr(draws, "posterior", None)
    if posterior is None or not hasattr(posterior, "data_vars"):
        raise _checks.refusal(
            DomainError,
            who,
            expected=f"{kind} as a mapping, PosteriorDraws, or ArviZ's data with a posterior",
            got=f"{type(draws).__name__}",
            advice="Pass to_arviz(...), or a dictionary of arrays.",
        )
    values = {}
    for site in posterior.data_vars:
        array = posterior[site].transpose("chain", "draw", ...).values
        values[str(site)] = array.reshape(-1, *array.shape[2:])
    return values


def _choose(who: str, given: dict[str, dict[str, Any]], sites: Sequence[str] | None) -> list[str]:
    """Return the names of the sites that are asked for, or that all have; and check them."""
    every = list(given["draws"])
    common = [site for site in every if all(site in values for values in given.values())]
    if sites is None:
        return common
    wanted = [sites] if isinstance(sites, str) else list(sites)
    for name in wanted:
        site = _site_of(name, common)
        if site not in common:
            raise _checks.refusal(
                DomainError,
                who,
                expected=f"sites to be of {', '.join(map(repr, common))}",
                got=f"{name!r}" + (", which the reference lacks" if site in every else ""),
                advice=_NAMES,
            )
    return wanted


def _labels(who: str, name: str, values: dict[str, np.ndarray], columns: Columns) -> list[str]:
    """Return the labels of a site's coordinates that vary, or of the one that is named."""
    if name in values:
        labels = coordinates(name, values[name])
        return [label for label, column in labels.items() if np.ptp(column) > 0]
    if name not in columns:
        site = _site_of(name, list(values))
        raise _checks.refusal(
            DomainError,
            who,
            expected=f"a coordinate of the site {site!r}, of shape {values[site].shape[1:]}",
            got=f"{name!r}",
            advice=_NAMES,
        )
    return [name]


def _site_of(name: str, sites: Sequence[str]) -> str:
    """Return the site that a name of a site or of a coordinate means."""
    return name if name in sites else str(name).rsplit("[", 1)[0]
