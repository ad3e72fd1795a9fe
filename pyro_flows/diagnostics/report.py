"""What weighted draws say of a guide, in numbers and in words."""

from dataclasses import dataclass, field

import numpy as np

# Shifts of a site below this, in posterior sds, are of no concern, nor are those within the noise.
_LITTLE_SHIFT, _LITTLE_LOG_SD, _NOISE_LEVELS = 0.1, 0.1, 4.0
_NEARLY_ALL, _LEAST_DRAWS = 0.95, 100
_MOST_SITES = 5


def nearly_equal(ess: float, num_draws: int) -> bool:
    """Say whether weights are all but equal, so that the shape of their tail does no harm.

    Args:
        ess: Effective number of draws.
        num_draws: Number of draws; few cannot tell.
    """
    return ess > _NEARLY_ALL * num_draws and num_draws >= _LEAST_DRAWS


@dataclass(frozen=True)
class SiteCheck:
    """How the importance weights move one coordinate of a latent.

    Attributes:
        site: Name of the latent.
        index: The coordinate within the site; empty for a scalar.
        shift: Weighted mean minus plain mean, in weighted sds.
        log_sd_ratio: Logarithm of the weighted sd over the plain one: above zero where the guide
            is too narrow.
        noise: How large a shift of a right guide is, with these weights: one standard deviation.
    """

    site: str
    index: tuple[int, ...]
    shift: float
    log_sd_ratio: float
    noise: float

    @property
    def label(self) -> str:
        """The name with its index, as ``theta[2]``."""
        return self.site + (f"[{', '.join(map(str, self.index))}]" if self.index else "")

    @property
    def moves(self) -> bool:
        """Whether the weights move it by more than a little, and by more than noise."""
        noise = _NOISE_LEVELS * self.noise
        return abs(self.shift) > max(_LITTLE_SHIFT, noise) or abs(self.log_sd_ratio) > max(
            _LITTLE_LOG_SD, noise
        )


@dataclass(frozen=True)
class Report:
    """What :func:`~pyro_flows.diagnose` found.

    Attributes:
        num_draws: Number of draws of the guide.
        log_weights: Their log importance weights, of shape ``(num_draws,)``.
        k_hat: Pareto shape of the largest weights; NaN where it is not known.
        k_hat_threshold: What k-hat has to be below, for this number of draws.
        ess: Effective number of draws.
        elbo: The evidence lower bound, in nats.
        elbo_se: Its Monte-Carlo standard error.
        num_importance: Draws of one importance-weighted bound.
        iw_elbo: The importance-weighted bound, in nats, which is at least the ELBO.
        iw_elbo_se: Its Monte-Carlo standard error.
        log_evidence: Estimate of the log evidence by all weights, in nats.
        log_evidence_se: Its Monte-Carlo standard error; means little where k-hat is large.
        sites: Every coordinate of every latent, the one that moves most first.
        zero_weights: Number of draws outside the support of the posterior.
    """

    num_draws: int
    log_weights: np.ndarray = field(repr=False)
    k_hat: float
    k_hat_threshold: float
    ess: float
    elbo: float
    elbo_se: float
    num_importance: int
    iw_elbo: float
    iw_elbo_se: float
    log_evidence: float
    log_evidence_se: float
    sites: tuple[SiteCheck, ...]
    zero_weights: int

    @property
    def is_reliable(self) -> bool:
        """Whether there are draws enough, without too many ties, to know k-hat."""
        return not np.isnan(self.k_hat) or self._weights_are_equal

    @property
    def verdict(self) -> str:
        """``"good"``, ``"weigh"``: good after resampling; ``"bad"``, or ``"unreliable"``."""
        if not self.is_reliable:
            return "unreliable"
        # Weights that are all but equal do no harm, whatever the shape of what is left.
        if self.k_hat >= self.k_hat_threshold and not self._weights_are_equal:
            return "bad"
        return "weigh" if self._moved else "good"

    @property
    def advice(self) -> str:
        """The next step, in words."""
        if self.verdict == "unreliable":
            return "Pass a larger num_draws: so few, or so many that are the same, tell nothing."
        if self.verdict == "good":
            far = ", but not for the far tails" if self.k_hat >= self.k_hat_threshold else ""
            return f"Use the draws as they are{far}."
        if self.verdict == "weigh":
            return "Take pf.resample(...) for the draws; with the weights they are right."
        return self._remedy()

    @property
    def _weights_are_equal(self) -> bool:
        return nearly_equal(self.ess, self.num_draws)

    @property
    def _moved(self) -> list[SiteCheck]:
        return [check for check in self.sites if check.moves]

    def _remedy(self) -> str:
        narrow = [check for check in self.sites if check.moves and check.log_sd_ratio > 0]
        neutra = "or finish with pf.neutra(...), whose draws are exact in the limit"
        if self.k_hat < 1.0 and not self._moved:
            return (
                "The bulk of the posterior is right, its tails are not: train on with "
                f"num_importance=16, {neutra}."
            )
        if narrow:
            return (
                f"The guide is too narrow at {narrow[0].label}: try AutoFlow, another flow "
                f'(flow="nsf"), tails (TailTransform), {neutra}.'
            )
        return f'Try more steps, another flow (flow="nsf", "iaf") or more particles, {neutra}.'

    def __repr__(self) -> str:
        k_hat = "not known" if np.isnan(self.k_hat) else f"{self.k_hat:.2f}"
        k_hat += f" (below {self.k_hat_threshold:.2f} is good)"
        share = 100 * self.ess / self.num_draws
        zero = f", {self.zero_weights} outside the support" if self.zero_weights else ""
        lines = [
            f"Report: {self.verdict}. {self.advice}",
            f"  draws         {self.num_draws}; {self.ess:.0f} count ({share:.0f} %){zero}",
            f"  k-hat         {k_hat}",
            f"  ELBO          {self.elbo:.3f} +- {self.elbo_se:.3f}",
            f"  IW-ELBO       {self.iw_elbo:.3f} +- {self.iw_elbo_se:.3f}, "
            f"of {self.num_importance} draws each",
            f"  log evidence  {self.log_evidence:.3f} +- {self.log_evidence_se:.3f}",
            "  what the weights move most: shift in sds, log sd ratio",
        ]
        width = max(len(check.label) for check in self.sites[:_MOST_SITES])
        for check in self.sites[:_MOST_SITES]:
            mark = "  <-" if check.moves else ""
            lines.append(
                f"    {check.label:<{width}}  {check.shift:+.3f}  {check.log_sd_ratio:+.3f}{mark}"
            )
        return "\n".join(lines)
