"""What a calibration returns: ranks, and what they say of the fits."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from pyro_flows import _checks
from pyro_flows.diagnostics.calibration.scores import score
from pyro_flows.diagnostics.calibration.uniformity import symmetry, uniformity
from pyro_flows.errors import DomainError

_WHO = "Calibration"
_LEVEL = 0.01
_HEAVY = 0.7
_LEAST_IN_BIN = 5
_MOST_ROWS = 30


@dataclass(frozen=True)
class Failure:
    """A simulation that has no ranks.

    Attributes:
        index: Its number.
        reason: The error, in words.
    """

    index: int
    reason: str


@dataclass(frozen=True)
class Quantity:
    """What the ranks of one scalar say of the fits.

    Attributes:
        site: The name of its site.
        index: Its place within the site; empty for a scalar.
        bias: How far the guide's draws lie above where they should, in posterior sds; exact where
            posterior and guide are normal.
        width: The guide's sd over the right one; likewise.
        uniformity: p-value of the ranks being uniform.
        symmetry: p-value of there being no bias.
        fault: What is wrong, in words; empty where nothing is seen.
    """

    site: str
    index: tuple[int, ...]
    bias: float
    width: float
    uniformity: float
    symmetry: float
    fault: str

    @property
    def label(self) -> str:
        """The name with its index, as ``theta[2]``."""
        return self.site + (f"[{', '.join(map(str, self.index))}]" if self.index else "")

    @property
    def p_value(self) -> float:
        """The smaller of the two p-values, doubled."""
        return min(1.0, 2 * min(self.uniformity, self.symmetry))


@dataclass(frozen=True, eq=False)
class Calibration:
    r"""Ranks of true values among draws of the guides that were fitted to their simulated data.

    .. math:: r_i = \#\{s: \theta_i^{(s)} < \theta_i^*\}, \quad
        p_i = P(\theta_i < \theta_i^*) \approx r_i / S

    Where fits are right, ranks are uniform. Many at both ends: the guide is too narrow; many in
    the middle: too wide; more at one end: biased. ``print`` shows it all as a table.

    Attributes:
        ranks: The ranks by site, each in ``0 ... num_draws``, of shape ``(N,)`` + the site's
            shape, of the ``N`` simulations that were fitted.
        num_draws: Number of draws ``S`` of each guide.
        num_simulations: Number of simulations, the failed ones among them.
        failures: The failed ones.
        constant: By site, which entries never vary, so that their ranks are drawn by lot alone.
        k_hats: k-hat of each fit, of shape ``(N,)``; NaN where it is not known.
        seconds: Duration.

    Reference:
        Talts, Betancourt, Simpson, Vehtari & Gelman (2018), *Validating Bayesian inference
        algorithms with simulation-based calibration*; Yao, Vehtari, Simpson & Gelman (2018), *Yes,
        but did it work?*

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> draws, truth = rng.standard_normal((999, 200, 2)), rng.standard_normal((200, 2))
        >>> draws[..., 1] = 0.5 + 0.5 * draws[..., 1]
        >>> ranks = (draws < truth).sum(0)
        >>> print(Calibration({"mu": ranks}, num_draws=999, num_simulations=200))
        Calibration: not right: mu[1] too narrow and biased upward
          200 simulations fitted in 0.0 s, 999 draws of each
          quantity  bias/sd  width  uniformity  symmetry  fault
          mu[0]        0.08   1.01        0.53      0.57
          mu[1]        0.53   0.52     < 1e-06   < 1e-06  too narrow and biased upward
    """

    ranks: Mapping[str, np.ndarray] = field(repr=False)
    num_draws: int
    num_simulations: int
    failures: tuple[Failure, ...] = ()
    constant: Mapping[str, np.ndarray] = field(default_factory=dict)
    k_hats: np.ndarray = field(default_factory=lambda: np.empty(0))
    seconds: float = 0.0

    @property
    def probabilities(self) -> dict[str, np.ndarray]:
        """The share of draws below the true value, shaped as the ranks."""
        return {name: ranks / self.num_draws for name, ranks in self.ranks.items()}

    @property
    def num_fitted(self) -> int:
        """Number of simulations that did not fail."""
        return self.num_simulations - len(self.failures)

    def histogram(self, bins: int = 20) -> dict[str, np.ndarray]:
        """Return how many ranks fall into each of some equal bins.

        Args:
            bins: Number of bins, a divisor of ``num_draws + 1``.

        Returns:
            For each site, counts of shape ``(bins,)`` + the site's shape.

        Raises:
            DomainError: The bins would hold different shares of the possible ranks, or less than
                five ranks are expected in each.
        """
        bins = _checks.check_count(_WHO, "bins", bins, least=2)
        possible = self.num_draws + 1
        if possible % bins:
            raise _checks.refusal(
                DomainError,
                _WHO,
                expected=f"bins to divide the {possible} possible ranks",
                got=f"{bins}",
                advice=f"Pass bins={_divisor(possible, bins)}, or calibrate with "
                f"num_draws={math.ceil(possible / bins) * bins - 1}.",
            )
        if self.num_fitted < _LEAST_IN_BIN * bins:
            raise _checks.refusal(
                DomainError,
                _WHO,
                expected=f"at least {_LEAST_IN_BIN * bins} fitted simulations for {bins} bins",
                got=f"{self.num_fitted}",
                advice="Ask for fewer bins, or calibrate with more simulations.",
            )
        size = possible // bins
        return {
            name: np.stack([(ranks // size == k).sum(0) for k in range(bins)])
            for name, ranks in self.ranks.items()
        }

    def summary(self, level: float = _LEVEL) -> tuple[Quantity, ...]:
        """Return what the ranks of each scalar say; those that never vary are left out.

        Args:
            level: Probability that anything at all is called wrong where every fit is right.
        """
        if not 0 < _checks.check_positive(_WHO, "level", level) < 1:
            raise _checks.refusal(
                DomainError, _WHO, expected="level between 0 and 1", got=f"{level!r}"
            )
        scalars = list(self._scalars())
        if not scalars:
            return ()
        columns = np.stack([ranks for *_, ranks in scalars], axis=1)
        tests = zip(
            uniformity(columns, self.num_draws), symmetry(columns, self.num_draws), strict=True
        )
        quantities = []
        for (site, index, ranks), (uniform, symmetric) in zip(scalars, tests, strict=True):
            bias, width, fault = score(ranks, self.num_draws)
            found = Quantity(site, index, bias, width, float(uniform), float(symmetric), "")
            wrong = found.p_value < level / len(scalars)
            quantities.append(replace(found, fault=fault) if wrong else found)
        return tuple(quantities)

    @property
    def verdict(self) -> str:
        """What is wrong, in a line."""
        return self._verdict(self.summary())

    def _verdict(self, quantities: tuple[Quantity, ...]) -> str:
        wrong = sorted((q for q in quantities if q.fault), key=lambda q: q.p_value)
        of_failed = f"; {len(self.failures)} simulations could not be fitted"
        rest = of_failed if self.failures else ""
        if not quantities:
            return f"nothing to judge by{rest}"
        if not wrong:
            return f"no fault seen in {_counted(len(quantities), 'quantity', 'quantities')}{rest}"
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        return "not right: " + ", ".join(f"{q.label} {q.fault}" for q in wrong[:3]) + more + rest

    def _scalars(self) -> Iterator[tuple[str, tuple[int, ...], np.ndarray]]:
        for site, ranks in self.ranks.items():
            constant = self.constant.get(site, np.zeros(ranks.shape[1:], bool))
            for index in np.ndindex(*ranks.shape[1:]):
                if not constant[index]:
                    yield site, index, ranks[(slice(None), *index)]

    def __repr__(self) -> str:
        quantities = self.summary()
        lines = [
            f"Calibration: {self._verdict(quantities)}",
            f"  {self.num_fitted} simulations fitted in {self.seconds:.1f} s, {self.num_draws} "
            "draws of each",
            *self._failed(),
            *self._heavy(),
        ]
        return "\n".join([*lines, *_table(quantities)])

    def _failed(self) -> Iterator[str]:
        if not self.failures:
            return
        yield f"  {len(self.failures)} of {self.num_simulations} failed:"
        kinds = Counter(failure.reason.partition(":")[0] for failure in self.failures)
        for kind, count in kinds.most_common():
            first = next(f for f in self.failures if f.reason.partition(":")[0] == kind)
            yield f"    {count} as no. {first.index}: {first.reason}"

    def _heavy(self) -> Iterator[str]:
        heavy = int((self.k_hats > _HEAVY).sum())
        if heavy:
            yield f"  k-hat above {_HEAVY} in {heavy} of {self.num_fitted} fits"


def _table(quantities: tuple[Quantity, ...]) -> Iterator[str]:
    if not quantities:
        return
    shown = set(sorted(quantities, key=lambda q: q.p_value)[:_MOST_ROWS])
    longest = max(len("quantity"), *(len(q.label) for q in shown))
    yield f"  {'quantity':{longest}}  bias/sd  width  uniformity  symmetry  fault"
    for q in quantities:
        if q in shown:
            row = (
                f"  {q.label:{longest}}  {q.bias:7.2f}  {q.width:5.2f}  {_p(q.uniformity):>10}  "
                f"{_p(q.symmetry):>8}  {q.fault}"
            )
            yield row.rstrip()
    if len(quantities) > len(shown):
        yield f"  and {len(quantities) - len(shown)} with larger p-values"


def _p(p_value: float) -> str:
    if p_value < 1e-6:
        return "< 1e-06"
    return f"{p_value:.1e}" if p_value < 1e-3 else f"{p_value:.2g}"


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _divisor(number: int, wanted: int) -> int:
    """Return the divisor of a number that is nearest to another."""
    return min((k for k in range(2, number + 1) if number % k == 0), key=lambda k: abs(k - wanted))
