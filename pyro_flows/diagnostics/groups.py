"""The groups of ArviZ, filled from draws."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from pyro.distributions import ImproperUniform

from pyro_flows import _checks
from pyro_flows.diagnostics import arrays
from pyro_flows.diagnostics.draws import Batch, Draws
from pyro_flows.diagnostics.layout import Layout
from pyro_flows.errors import DomainError
from pyro_flows.infer.random import aside
from pyro_flows.infer.tracer import Site

logger = logging.getLogger("pyro_flows")

Groups = dict[str, dict[str, np.ndarray]]

_CHECKED_DRAWS = 3
# Of the order of a processor's cache.
_NUMBERS_AT_ONCE = 2**18
# What may be NaN, as a deterministic site that is a logarithm, is reported only.
_REPORTED = ("posterior", "sample_stats", "log_prior", "prior", "prior_predictive")


class Wanted(NamedTuple):
    """Which groups to fill.

    Attributes:
        predictive: Whether to fill ``posterior_predictive``.
        log_likelihood: Whether to fill ``log_likelihood``.
        log_prior: Whether to fill ``log_prior``.
    """

    predictive: bool
    log_likelihood: bool
    log_prior: bool


@dataclass
class Table:
    """Arrays that are filled row by row.

    Args:
        chains: Number of chains.
        draws: Number of draws of each.
    """

    chains: int
    draws: int
    _groups: Groups = field(default_factory=dict)

    def fill(self, start: int, batch: Groups) -> int:
        """Fill in some rows, and return the position after them.

        Args:
            start: The first row, counted over all chains.
            batch: Arrays with the rows on the first axis.
        """
        num = 0
        for group, rows in batch.items():
            whole = self._groups.setdefault(group, {})
            for label, array in rows.items():
                if label not in whole:
                    total = self.chains * self.draws
                    whole[label] = np.empty((total, *array.shape[1:]), array.dtype)
                num = len(array)
                whole[label][start : start + num] = array
        return start + num

    def groups(self) -> Groups:
        """Return the arrays with the axes chain and draw in front."""
        return {
            group: {
                label: array.reshape(self.chains, self.draws, *array.shape[1:])
                for label, array in rows.items()
            }
            for group, rows in self._groups.items()
        }


class Reader:
    """Read draws into the arrays of ArviZ's groups.

    Args:
        draws: The draws.
        layout: The layout of the model.
        wanted: The groups to fill.
        chunk_size: Largest number of draws to hold at once; by default, as many as make a quarter
            of a million numbers.
    """

    def __init__(
        self, draws: Draws, layout: Layout, wanted: Wanted, chunk_size: int | None
    ) -> None:
        self._draws, self._layout, self._wanted = draws, layout, wanted
        numbers = sum(site.shape.numel() for site in layout.sites.values())
        self._chunk_size = chunk_size or max(1, _NUMBERS_AT_ONCE // max(numbers, 1))
        self._settle()

    def read(self, table: Table, start: int, num_draws: int) -> int:
        """Read draws, and return the position after them in the table.

        Args:
            table: What to fill.
            start: The first row to fill.
            num_draws: Number of draws.

        Raises:
            DomainError: The model has other sites in some draws than in others.
            NonFiniteError: A latent, a predicted value or a log-likelihood is NaN.
        """
        done = 0
        for num in _chunks(num_draws, self._chunk_size):
            for batch in self._draws.batches(done, num, predictive=self._wanted.predictive):
                start = table.fill(start, self._read_batch(batch))
                done += batch.num
        return start

    def read_prior(self, table: Table) -> None:
        """Run the model forward and fill the groups ``prior`` and ``prior_predictive``.

        Args:
            table: What to fill.

        Raises:
            DomainError: The model has a latent that cannot be drawn, or other sites in some draws.
        """
        start = 0
        for num in _chunks(table.draws, self._chunk_size):
            try:
                for size, sites in self._draws.forward(num):
                    start = table.fill(start, self._read_forward(sites, size))
            except NotImplementedError as error:
                raise self._no_prior(error) from error

    def observed(self) -> dict[str, np.ndarray]:
        """Return the observed data."""
        return {
            layout.label: arrays.observed(self._draws.sites[layout.name], layout)
            for layout in self._layout.sites.values()
            if layout.kind == "data"
        }

    def _settle(self) -> None:
        """Loop over the draws where a site, if not the density as a whole, comes out otherwise."""
        if not self._draws.vectorized:
            return
        try:
            # So that a seed means the same draws either way.
            with aside():
                plated, looped = self._draws.both_ways(
                    _CHECKED_DRAWS, predictive=self._wanted.predictive
                )
            agree = _agree(self._read_batch(plated), [self._read_batch(one) for one in looped])
        except (RuntimeError, ValueError, IndexError, AssertionError):
            # What is wrong with the model itself comes up again in the loop.
            agree = False
        if not agree:
            logger.info("to_arviz: the model does not broadcast over draws; runs once for each")
            self._draws.vectorized = False

    def _read_batch(self, batch: Batch) -> Groups:
        self._check_sites(batch.sites)
        groups: Groups = {
            "posterior": {},
            "sample_stats": _stats(batch),
            "log_likelihood": {},
            "log_prior": {},
            "posterior_predictive": {},
        }
        for name, layout in self._layout.sites.items():
            site, label, num = batch.sites[name], layout.label, batch.num
            if layout.kind == "data":
                self._read_data(groups, batch, name)
                continue
            if layout.kind == "latent":
                arrays.check_no_nan("draws", site["value"], name)
                if self._wanted.log_prior and name not in self._draws.discrete:
                    groups["log_prior"][label] = arrays.log_prior(site, layout, num)
            groups["posterior"][label] = arrays.values(site["value"], layout, num)
        return groups

    def _read_data(self, groups: Groups, batch: Batch, name: str) -> None:
        layout, num = self._layout.sites[name], batch.num
        if self._wanted.log_likelihood:
            marginal = None if batch.marginal is None else batch.marginal.log_likelihood(name)
            density = arrays.log_likelihood(batch.sites[name], layout, num, marginal)
            groups["log_likelihood"][layout.label] = density
        if self._wanted.predictive:
            value = batch.predicted[name]["value"]
            arrays.check_no_nan("predictive draws", value, name)
            groups["posterior_predictive"][layout.label] = arrays.values(value, layout, num)

    def _read_forward(self, sites: dict[str, Site], num: int) -> Groups:
        self._check_sites(sites)
        groups: Groups = {"prior": {}, "prior_predictive": {}}
        for name, layout in self._layout.sites.items():
            group = "prior_predictive" if layout.kind == "data" else "prior"
            groups[group][layout.label] = arrays.values(sites[name]["value"], layout, num)
        return groups

    def _no_prior(self, error: NotImplementedError) -> Exception:
        sites = self._draws.sites.items()
        flat = [repr(name) for name, site in sites if isinstance(site["fn"], ImproperUniform)]
        found = f"at {', '.join(flat)}: " if flat else ""
        return _checks.refusal(
            DomainError,
            "to_arviz",
            expected="priors that can be drawn from",
            got=found + str(error).partition("\n")[0],
            advice="Leave out prior=..., or give the latents priors that are proper.",
        )

    def _check_sites(self, sites: dict[str, Site]) -> None:
        if sites.keys() != self._draws.sites.keys():
            names = set(sites) ^ set(self._draws.sites)
            raise _checks.refusal(
                DomainError,
                "to_arviz",
                expected="the same sites of the model in every draw",
                got=f"{', '.join(map(repr, sorted(names)))} in some of them",
                advice="Let the model run through every site whatever its latents are.",
            )


def report_nan(groups: Groups) -> None:
    """Warn of NaN where they may be meant: in deterministic sites and in the densities.

    Args:
        groups: The groups, filled.
    """
    for group in _REPORTED:
        for label, array in groups.get(group, {}).items():
            count = int(np.isnan(array).sum())
            if count:
                logger.warning("to_arviz: %d NaN in %s[%r]", count, group, label)


def _stats(batch: Batch) -> dict[str, np.ndarray]:
    stats = {"lp": batch.log_p, "log_p": batch.log_p, "log_q": batch.log_q}
    return {
        name: arrays.to_numpy(value).reshape(batch.num)
        for name, value in stats.items()
        if value is not None
    }


def _chunks(total: int, size: int) -> Iterator[int]:
    for start in range(0, total, size):
        yield min(size, total - start)


def _agree(plated: Groups, looped: list[Groups]) -> bool:
    """Whether all that is not drawn afresh is the same both ways."""
    return all(
        _close(array, np.concatenate([one[group][label] for one in looped]))
        for group, rows in plated.items()
        if group != "posterior_predictive"
        for label, array in rows.items()
    )


def _close(ours: np.ndarray, theirs: np.ndarray) -> bool:
    if not np.issubdtype(ours.dtype, np.floating):
        return bool(np.array_equal(ours, theirs))
    finite = np.abs(ours[np.isfinite(ours)])
    tolerance = np.finfo(ours.dtype).eps ** 0.5 * (1 + finite.max(initial=0.0))
    return bool(np.allclose(ours, theirs, rtol=0.0, atol=tolerance, equal_nan=True))
