"""The Student-t base, for heavy tails."""

import math

import torch
from torch import Tensor, nn

from pyro_flows import _checks
from pyro_flows.distributions.base import BaseDistribution, per_coordinate
from pyro_flows.errors import DomainError
from pyro_flows.numerics import soft_bound, widen

# Below it, there is no mean; and draws leave the range of float32.
_LEAST_DF = 1.0
# Largest change of log(df - 1); a start at 5 goes up to 12,000, which no tail tells from infinity.
_LOG_DF_BOUND = 8.0


class StudentT(BaseDistribution):
    r"""Independent Student-t coordinates, whose degrees of freedom are trained.

    .. math:: \log p(x) = \sum_i \log \frac{\Gamma(\frac{\nu_i + 1}{2})}
        {\Gamma(\frac{\nu_i}{2}) \sqrt{\pi \nu_i}}
        - \frac{\nu_i + 1}{2} \log\Bigl(1 + \frac{x_i^2}{\nu_i}\Bigr)

    A Lipschitz transform, such as an affine coupling with bounded scales, keeps the tails of its
    base: a target with tails heavier than Gaussian needs a base that has them. Location and scale
    are the standard ones; transforms move them. The degrees of freedom are
    :math:`\nu = 1 + (\nu_0 - 1) e^{8 \tanh(a / 8)}`, so that a mean exists; the parameter
    :math:`a` (``raw_df``) starts at zero.

    The log-density and its gradients are finite for any finite ``x``.

    Args:
        input_dim: Number of coordinates.
        df: :math:`\nu_0 > 1`, where the degrees of freedom start: a number, or a tensor of shape
            ``(input_dim,)``.

    Raises:
        DomainError: ``input_dim`` is not a positive integer, or ``df`` is not above one.
        ShapeError: ``df`` has the wrong shape.

    Reference:
        Jaini, Kobyzev, Yu & Brubaker (2020), *Tails of Lipschitz triangular flows*; Alexanderson
        & Henter (2020), *Robust model training and generalisation with Studentising flows*.

    Example:
        >>> import torch
        >>> base = StudentT(2, df=4.0)
        >>> base.df.tolist()
        [4.0, 4.0]
        >>> base.log_prob(torch.full((2,), 1e30)).isfinite()
        tensor(True)
    """

    start_df: Tensor

    def __init__(self, input_dim: int, df: float | Tensor = 5.0) -> None:
        super().__init__(input_dim)
        (start,) = per_coordinate(self._name, self.input_dim, df=df)
        if not bool((start > _LEAST_DF).all()):
            raise _checks.refusal(
                DomainError,
                self._name,
                expected=f"every df to be > {_LEAST_DF:g}",
                got=f"{start.tolist()}",
                advice="Start at df=5, for example; training moves it.",
            )
        self.register_buffer("start_df", start)
        self.raw_df = nn.Parameter(torch.zeros_like(start))

    @property
    def df(self) -> Tensor:
        """The degrees of freedom, of shape ``(input_dim,)``."""
        growth = torch.exp(soft_bound(widen(self.raw_df), _LOG_DF_BOUND))
        return _LEAST_DF + (widen(self.start_df) - _LEAST_DF) * growth

    def _draw(self, shape: torch.Size) -> Tensor:
        half = 0.5 * self.df.expand(shape)
        # What torch's Gamma draws by; the rest of it writes in place, which vmap does not batch.
        mixing = torch._standard_gamma(half)
        draws = torch.randn_like(half) * torch.rsqrt(mixing / half)
        return draws.to(self.raw_df.dtype)

    def _log_density(self, value: Tensor) -> Tensor:
        df = self.df
        tail = _log1p_square(widen(value) * df.rsqrt())
        return (_log_constant(df) - 0.5 * (df + 1) * tail).sum(-1)


def _log_constant(df: Tensor) -> Tensor:
    # In float64, as the two log-gammas cancel: in float32 nothing is left at df = 10,000.
    half = 0.5 * df.double()
    ratio = torch.lgamma(half + 0.5) - torch.lgamma(half)
    return (ratio - 0.5 * torch.log(2 * math.pi * half)).to(df.dtype)


def _log1p_square(x: Tensor) -> Tensor:
    r"""Return :math:`\log(1 + x^2)`, which stays finite where the square does not.

    .. math:: \log(1 + x^2) = 2 \log \max(r, 1) + \log(1 + \min(r, 1/r)^2), \qquad r = |x|
    """
    r = x.abs()
    # By where and not by clamp, whose gradient at r = 1 would count twice.
    large = torch.where(r > 1, r, 1)
    small = torch.where(r > 1, 1 / large, r)
    return 2 * large.log() + torch.log1p(small.square())
