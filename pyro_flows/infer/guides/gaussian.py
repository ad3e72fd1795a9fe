"""Gaussians over the unconstrained space: their ELBO, and how they climb it."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_flows.errors import FlowError
from pyro_flows.infer.guides.log_density import LogDensity
from pyro_flows.numerics import LOG_SQRT_TAU

_ELBO_DRAWS = 32
_CHECKED_DRAWS, _CHECKED_AT_ONCE = 1024, 128
_LEAST_DRAWS = 64
# What the evaluations of one chunk of draws hold at once.
_CHUNK_BYTES = 400_000_000
_RATE, _LEAST_RATE, _GAVE_UP = 0.3, 0.1, 1e-3
# A standard deviation at most doubles in a step.
_LEAST_GROWTH = 0.25
_WINDOW = 10
_LEAST_GAIN = 0.02  # nats, as those below
_LITTLE, _LITTLE_BY_LATENT = 0.5, 0.05


class Start(NamedTuple):
    """A Gaussian to start from.

    Attributes:
        loc: Mean, of shape ``(D,)``.
        scale: Cholesky factor of the covariance, of shape ``(D, D)``, or standard deviations,
            ``(D,)``.
        origin: Where it came from, in words.
        whitened: Whether training moves relative to ``scale``, which then has to be of the
            posterior's size; else it moves in absolute units.
    """

    loc: Tensor
    scale: Tensor
    origin: str
    whitened: bool = True

    def to(self, like: Tensor | torch.dtype) -> "Start":
        """Return it in another dtype, or that and the device of a tensor."""
        return self._replace(loc=self.loc.to(like), scale=self.scale.to(like))


def draws_of(start: Start, num: int) -> tuple[Tensor, Tensor]:
    """Return fixed draws, of shape ``(num, D)``, and the log-density of the Gaussian there."""
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(num // 2, start.loc.shape[0], generator=generator).to(start.loc)
    return _spread(torch.cat([half, -half]), start.loc, start.scale)


def _spread(eps: Tensor, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return standard normal draws made those of a Gaussian, and its log-density there."""
    full = scale.dim() == 2
    log_scale = (scale.diagonal() if full else scale).log().sum()
    log_q = -0.5 * eps.square().sum(-1) - log_scale - loc.shape[0] * LOG_SQRT_TAU
    return loc + (eps @ scale.T if full else eps * scale), log_q


@torch.no_grad()
def gaussian_elbo(density: LogDensity, start: Start) -> float:
    """Estimate the ELBO of a Gaussian, on fixed draws; minus infinity if it is not finite."""
    draws, log_q = draws_of(start, _ELBO_DRAWS)
    # With log q at the draws, and not its mean, the estimate has no variance where q is exact.
    elbo = float((density.at_many(draws) - log_q).mean())
    return elbo if math.isfinite(elbo) else -math.inf


def checked_elbo(density: LogDensity, start: Start) -> float:
    """Estimate the ELBO on many draws; minus infinity where a value or a gradient is not finite.

    A draw in a thousand without a gradient would spoil each fourth step of training.
    """
    draws, log_q = draws_of(start, _CHECKED_DRAWS)
    values, grads = zip(*map(density.values_and_grads, draws.split(_CHECKED_AT_ONCE)), strict=True)
    if not bool(torch.cat(grads).isfinite().all()):
        return -math.inf
    elbo = float((torch.cat(values) - log_q).mean())
    return elbo if math.isfinite(elbo) else -math.inf


class ClimbingGaussian:
    r"""A Gaussian in the unconstrained space that natural gradients move uphill in the ELBO.

    With draws :math:`z = \mu + L \epsilon` and scores :math:`g`, the expected curvature in units
    of :math:`L` is :math:`A = -E[\epsilon\, (L^\top g)^\top]`, by Stein's identity; at the
    best Gaussian it is the identity, and the mean score is zero. A step is

    .. math:: \Sigma^{-1} \leftarrow L^{-\top} (I + \rho\, (A - I)) L^{-1}, \qquad
        \mu \leftarrow \mu + \rho\, \Sigma\, E[g]

    with the eigenvalues of the bracket kept positive. Draws come in pairs of opposites and with a
    unit covariance, so that all is exact where the density is Gaussian.

    Args:
        density: The log-density.
        start: What it begins with; a diagonal covariance stays diagonal.
        generator: Makes the draws.

    Reference:
        Khan & Rue (2023), *The Bayesian learning rule*, section 4; Lin, Schmidt & Khan (2020),
        *Handling the positive-definite constraint in the Bayesian learning rule*.
    """

    def __init__(self, density: LogDensity, start: Start, generator: torch.Generator) -> None:
        self._density, self._start, self._generator = density, start, generator
        self._loc, self._scale = start.loc.double(), start.scale.double()
        self._first = self._loc
        size = start.loc.shape[0]
        full = start.scale.dim() == 2
        self._num = max(_LEAST_DRAWS, 2 * (size + 1)) if full else 2 * _LEAST_DRAWS
        self._chunk = max(1, _CHUNK_BYTES // max(1, density.peak_memory(start.loc)))
        self._rate, self._radius = _RATE, math.sqrt(size)
        self._best = -math.inf, self._loc, self._scale, 0.0
        self._elbos: list[float] = []
        self._done = False

    @property
    def elbo(self) -> float:
        """The ELBO over the last few steps."""
        recent = self._elbos[-3:]
        return sum(recent) / len(recent) if recent else -math.inf

    @property
    def is_steady(self) -> bool:
        """Whether the ELBO has hardly changed, and not fallen in any step."""
        elbos, little = self._elbos or [math.nan], max(_LITTLE, _LITTLE_BY_LATENT * len(self._loc))
        return self._rate == _RATE and abs(elbos[-1] - elbos[0]) < little

    def result(self) -> Start | None:
        """Return where it stands; none if it never had a finite ELBO."""
        if not self._elbos:
            return None
        origin = f"a Gaussian with an ELBO of {self.elbo:.5g}, fitted from {self._start.origin}"
        whitened = self._start.whitened or self._loc is not self._first
        return Start(self._loc, self._scale, origin, whitened).to(self._start.loc)

    def climb(self, steps: int) -> None:
        """Take steps until the ELBO rises no more.

        Args:
            steps: The most to take.
        """
        for _ in range(steps):
            if self._done:
                break
            eps = self._draws()
            points, log_q = _spread(eps, self._loc, self._scale)
            log_p, grad = self._evaluate(points)
            if not self._accepts(log_p - log_q):
                continue
            if self._scale.dim() == 2:
                self._move(eps, grad @ self._scale)
            else:
                self._move_diagonally(eps, grad * self._scale)
            self._settle()

    def _draws(self) -> Tensor:
        num, size = self._num // 2, self._loc.shape[0]
        half = torch.randn(num, size, generator=self._generator, dtype=torch.float64)
        if num > size:
            factor = torch.linalg.cholesky(half.T @ half / num)
            half = torch.linalg.solve_triangular(factor, half.T, upper=False).T
        half = half.to(self._loc.device)
        return torch.cat([half, -half])

    def _evaluate(self, points: Tensor) -> tuple[Tensor, Tensor]:
        chunks = points.to(self._start.loc).split(self._chunk)
        try:
            values, grads = zip(*map(self._density.values_and_grads, chunks), strict=True)
        except FlowError:
            raise
        except (RuntimeError, ValueError):
            # A model that raises where draws went far, as a Cholesky factor does.
            return torch.full_like(points[:, 0], math.nan), torch.full_like(points, math.nan)
        log_p, grad = torch.cat(values).double(), torch.cat(grads).double()
        return torch.where(grad.isfinite().all(-1), log_p, math.nan), grad

    def _accepts(self, log_weights: Tensor) -> bool:
        """Note the ELBO; where it fell, go back to the best Gaussian and move by less."""
        elbo = float(log_weights.mean())
        error = float(log_weights.std() / math.sqrt(len(log_weights)))
        best, loc, scale, error_then = self._best
        # Weights that vary more than before are no excuse for a lower ELBO.
        noise = error_then + min(error, error_then + _LITTLE)
        if math.isfinite(elbo + error) and elbo > best - 1.0 - 4.0 * noise:
            if elbo > best + 2.0 * noise:
                self._radius *= 2.0
            if elbo > best:
                self._best = elbo, self._loc, self._scale, error
            self._elbos.append(elbo)
            return True
        self._loc, self._scale = loc, scale
        self._rate, self._radius = self._rate / 2.0, self._radius / 2.0
        self._done = best == -math.inf or self._rate < _GAVE_UP
        return False

    def _move(self, eps: Tensor, slope: Tensor) -> None:
        curvature = -(eps.T @ slope) / len(eps)
        values, vectors = torch.linalg.eigh(0.5 * (curvature + curvature.T))
        growth = self._growth(values)
        step = (vectors.T @ slope.mean(0)) / growth
        self._loc = self._loc + self._scale @ (vectors @ self._limited(step))
        _, factor = torch.linalg.qr((self._scale @ vectors * growth.rsqrt()).T)
        self._scale = factor.T * factor.diagonal().sign()

    def _move_diagonally(self, eps: Tensor, slope: Tensor) -> None:
        growth = self._growth(-(eps * slope).mean(0))
        self._loc = self._loc + self._scale * self._limited(slope.mean(0) / growth)
        self._scale = self._scale * growth.rsqrt()

    def _growth(self, curvature: Tensor) -> Tensor:
        return (1.0 + self._rate * (curvature - 1.0)).clamp(min=_LEAST_GROWTH)

    def _limited(self, step: Tensor) -> Tensor:
        """Keep a step, in units of the scale, within the radius in which steps went well."""
        return step * self._rate / max(1.0, float(step.norm()) / self._radius)

    def _settle(self) -> None:
        """Move by less where the ELBO rises no more, and be done where that does not help."""
        count = len(self._elbos)
        if count < 2 * _WINDOW or count % _WINDOW:
            return
        before, after = self._elbos[-2 * _WINDOW : -_WINDOW], self._elbos[-_WINDOW:]
        if sum(after) - sum(before) < _WINDOW * max(_LEAST_GAIN, self._best[-1]):
            self._done = self._rate <= _LEAST_RATE
            self._rate /= 2.0
