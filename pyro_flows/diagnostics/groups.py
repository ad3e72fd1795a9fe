"""The groups of ArviZ, filled from draws."""

import logging
from collections.abc import Iterator

import numpy as np
import torch

from pyro_flows import _checks
from pyro_flows.diagnostics import arrays
from pyro_flows.diagnostics.draws import Batch, Draws
from pyro_flows.diagnostics.layout import Layout
from pyro_flows.errors import DomainError

logger = logging.getLogger("pyro_flows")

Groups = dict[str, dict[str, np.ndarray]]

_CHECKED_DRAWS = 3
# Of the order of a processor's cache.
_NUMBERS_AT_ONCE = 2**18


class Reader:
    """Read draws into the arrays of ArviZ's groups.

    Args:
        draws: The draws.
        layout: The layout of the model.
        predictive: Whether to fill the group ``posterior_predictive``.
        log_likelihood: Whether to fill the group ``log_likelihood``.
    """

    def __init__(
        self, draws: Draws, layout: Layout, *, predictive: bool, log_likelihood: bool
    ) -> None:
        self._draws, self._layout = draws, layout
        self._predictive, self._log_likelihood = predictive, log_likelihood

    def read(self, num_draws: int, chunk_size: int | None) -> Groups:
        """Return the groups, each array with the axes chain and draw in front.

        Args:
            num_draws: Number of draws.
            chunk_size: Largest number of draws to hold at once; by default, as many as make a
                quarter of a million numbers.

        Raises:
            DomainError: The model has other sites in some draws than in others.
            NonFiniteError: A latent, a predicted value or a log-likelihood is NaN.
        """
        self._settle()
        groups: Groups = {}
        start = 0
        for num in _chunks(num_draws, chunk_size or self._default_chunk()):
            for batch in self._draws.batches(num, predictive=self._predictive):
                _fill(groups, self._read_batch(batch), start, num_draws)
                start += batch.num
        self._report_nan(groups)
        return groups

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
            with torch.random.fork_rng(devices=[]):
                plated, looped = self._draws.both_ways(_CHECKED_DRAWS, predictive=self._predictive)
            agree = _agree(self._read_batch(plated), [self._read_batch(one) for one in looped])
        except (RuntimeError, ValueError, IndexError, AssertionError):
            # What is wrong with the model itself comes up again in the loop.
            agree = False
        if not agree:
            logger.info("to_arviz: the model does not broadcast over draws; runs once for each")
            self._draws.vectorized = False

    def _default_chunk(self) -> int:
        numbers = sum(site.shape.numel() for site in self._layout.sites.values())
        return max(1, _NUMBERS_AT_ONCE // max(numbers, 1))

    def _read_batch(self, batch: Batch) -> Groups:
        if batch.sites.keys() != self._draws.sites.keys():
            raise _different_sites(set(batch.sites) ^ set(self._draws.sites))
        stats = {"lp": batch.log_p, "log_p": batch.log_p, "log_q": batch.log_q}
        groups: Groups = {
            "posterior": {},
            "sample_stats": {name: arrays.to_numpy(value) for name, value in stats.items()},
            "log_likelihood": {},
            "posterior_predictive": {},
        }
        for name, layout in self._layout.sites.items():
            site, label, num = batch.sites[name], layout.label, batch.num
            if layout.kind != "data":
                if layout.kind == "latent":
                    arrays.check_no_nan("draws", site["value"], name)
                groups["posterior"][label] = arrays.values(site["value"], layout, num)
                continue
            if self._log_likelihood:
                groups["log_likelihood"][label] = arrays.log_likelihood(site, layout, num)
            if self._predictive:
                value = batch.predicted[name]["value"]
                arrays.check_no_nan("predictive draws", value, name)
                groups["posterior_predictive"][label] = arrays.values(value, layout, num)
        return groups

    def _report_nan(self, groups: Groups) -> None:
        """Warn of NaN where they may be meant: in deterministic sites and in the densities."""
        for group in ("posterior", "sample_stats"):
            for label, array in groups[group].items():
                count = int(np.isnan(array).sum())
                if count:
                    logger.warning("to_arviz: %d NaN in %s[%r]", count, group, label)


def _chunks(total: int, size: int) -> Iterator[int]:
    for start in range(0, total, size):
        yield min(size, total - start)


def _fill(groups: Groups, batch: Groups, start: int, num_draws: int) -> None:
    for group, rows in batch.items():
        whole = groups.setdefault(group, {})
        for label, array in rows.items():
            if label not in whole:
                whole[label] = np.empty((1, num_draws, *array.shape[1:]), array.dtype)
            whole[label][0, start : start + len(array)] = array


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


def _different_sites(names: set[str]) -> Exception:
    return _checks.refusal(
        DomainError,
        "to_arviz",
        expected="the same sites of the model in every draw",
        got=f"{', '.join(map(repr, sorted(names)))} in some of them",
        advice="Let the model run through every site whatever its latents are.",
    )
