"""The Gaussian-mixture base, with the pathwise gradient of its draws."""

from typing import Any

import torch
from torch import Tensor, nn

from pyro_flows import _checks
from pyro_flows.distributions.base import BaseDistribution
from pyro_flows.numerics import LOG_SQRT_TAU, widen

# The spread of the locations at the start, of a mixture of unit variance.
_START_SPREAD = 0.6


class GaussianMixture(BaseDistribution):
    r"""A trained mixture of normal distributions with diagonal covariances.

    .. math:: p(x) = \sum_k \pi_k \prod_i e^{-s_{ki}} \phi(z_{ki}), \qquad
        z_k = e^{-s_k} \odot (x - m_k), \qquad \pi = \mathrm{softmax}(\ell)

    The parameters are :math:`\ell` (``logits``, which start at zero), :math:`m` (``locs``) and
    :math:`s` (``log_scales``). The locations start at random, scaled such that the mixture has
    mean zero and unit variance in each coordinate; equal ones would never part.

    Draws are reparameterised: each parameter moves a draw along a velocity field :math:`v` that
    solves the transport equation :math:`\partial p / \partial \theta + \nabla \cdot (p v) = 0`,
    so that gradients are unbiased for any number of components and coordinates. A location and a
    log-scale move a draw as their component would, times its responsibility for it. The weights
    move it by implicit reparameterisation, coordinate by coordinate given those before. The
    gradient has one derivative, not two. Its variance for the weights grows with the gaps between
    the components, as that of any pathwise gradient must: mass has to cross them.

    Args:
        input_dim: Number of coordinates.
        num_components: Number of components.

    Raises:
        DomainError: A size is not a positive integer.

    Reference:
        Graves (2016), *Stochastic backpropagation through mixture density distributions*;
        Figurnov, Mohamed & Mnih (2018), *Implicit reparameterization gradients*; Jankowiak &
        Obermeyer (2018), *Pathwise derivatives beyond the reparameterization trick*.

    Example:
        >>> import torch
        >>> base = GaussianMixture(2, num_components=4)
        >>> base.rsample((10,)).shape, base.log_prob(torch.zeros(10, 2)).shape
        (torch.Size([10, 2]), torch.Size([10]))
    """

    logits: Tensor

    def __init__(self, input_dim: int, num_components: int) -> None:
        super().__init__(input_dim)
        count = _checks.check_count(self._name, "num_components", num_components)
        locs, scale = torch.zeros(count, self.input_dim), 1.0
        if count > 1:
            draws = torch.randn(count, self.input_dim)
            deviations = draws - draws.mean(0)
            locs = _START_SPREAD * deviations / deviations.square().mean(0).sqrt()
            scale = (1 - _START_SPREAD**2) ** 0.5
        # One component has no weight to learn.
        if count > 1:
            self.logits = nn.Parameter(torch.zeros(count))
        else:
            self.register_buffer("logits", torch.zeros(count))
        self.locs = nn.Parameter(locs)
        self.log_scales = nn.Parameter(torch.full_like(locs, scale).log())

    @property
    def num_components(self) -> int:
        """Number of components."""
        return self.logits.shape[0]

    def _draw(self, shape: torch.Size) -> Tensor:
        with torch.no_grad():
            bounds = widen(self.logits).softmax(-1).cumsum(-1)[:-1]
            level = torch.rand(shape[:-1], dtype=bounds.dtype, device=bounds.device)
            which = (level[..., None] >= bounds).sum(-1)
            noise = torch.randn(shape, **self._kind)
            draws = self.locs[which] + self.log_scales[which].exp() * noise
        return _Reparameterised.apply(draws, self.logits, self.locs, self.log_scales)

    def _log_density(self, value: Tensor) -> Tensor:
        log_weights = widen(self.logits).log_softmax(-1)
        z, log_scales = _standardise(value, self.locs, self.log_scales)
        terms = log_weights + _log_normal(z, log_scales).sum(-1)
        # Where every square overflows, the gradient of logsumexp would be a NaN.
        far = (terms == -torch.inf).all(-1)
        near_terms = torch.where(far[..., None], 0.0, terms)
        return torch.where(far, terms.mean(-1), near_terms.logsumexp(-1))


def _standardise(value: Tensor, locs: Tensor, log_scales: Tensor) -> tuple[Tensor, Tensor]:
    """Return the points in each component's units, of shape ``(*, K, D)``, and the log-scales."""
    log_scales = widen(log_scales)
    return (widen(value)[..., None, :] - widen(locs)) * torch.exp(-log_scales), log_scales


def _log_normal(z: Tensor, log_scales: Tensor) -> Tensor:
    return -0.5 * z.square() - log_scales - LOG_SQRT_TAU


class _Reparameterised(torch.autograd.Function):
    """Draws of a mixture, as functions of its parameters."""

    generate_vmap_rule = True

    @staticmethod
    def forward(draws: Tensor, logits: Tensor, locs: Tensor, log_scales: Tensor) -> Tensor:
        return draws.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_Gradients.apply(cotangent, *ctx.saved_tensors)


class _Gradients(torch.autograd.Function):
    """The gradients of draws for the parameters; they refuse to be differentiated once more."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        cotangent: Tensor, draws: Tensor, logits: Tensor, locs: Tensor, log_scales: Tensor
    ) -> tuple[Tensor, ...]:
        pull = widen(cotangent).reshape(-1, cotangent.shape[-1])
        rows = widen(draws).reshape(-1, draws.shape[-1])
        wide = _pull_back(pull, rows, widen(logits), widen(locs), widen(log_scales))
        return tuple(gradient.to(logits.dtype) for gradient in wide)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        raise _checks.second_derivative(
            "GaussianMixture",
            of="draws",
            advice="Take second derivatives of the log-density, at detached points.",
        )


def _pull_back(
    pull: Tensor, rows: Tensor, logits: Tensor, locs: Tensor, log_scales: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients for the parameters, given those for draws of shape ``(N, D)``."""
    z, log_scales = _standardise(rows, locs, log_scales)
    log_normal = _log_normal(z, log_scales)
    log_weights = logits.log_softmax(-1)[:, None].expand_as(log_normal[..., :1])
    joint = torch.cat([log_weights, log_normal], -1).cumsum(-1)
    weights = joint[..., :-1].softmax(-2)
    reach = joint[..., -1:].softmax(-2) * pull[:, None]
    moves = _moves_by_weights(weights, z, log_normal)
    slopes = _finite(-z * torch.exp(-log_scales))
    spread = (reach * (rows[:, None] - locs)).sum(0)
    return _solve_transposed(pull, moves, slopes).sum(0), reach.sum(0), spread


def _moves_by_weights(weights: Tensor, z: Tensor, log_normal: Tensor) -> Tensor:
    r"""Return :math:`\partial x_i / \partial \ell_k` given the coordinates before ``i``.

    It is :math:`-w_{ki} (\Phi_{ki} - F_i) / f_i`, for the weights :math:`w` given those
    coordinates and the conditional distribution function :math:`F = \sum_k w_k \Phi_k` and its
    density :math:`f`; taken from the nearer tail, where it does not cancel.
    """
    below, above = torch.special.ndtr(z), torch.special.ndtr(-z)
    cdf, survival = ((weights * side).sum(-2, keepdim=True) for side in (below, above))
    excess = torch.where(cdf < 0.5, cdf - below, above - survival)
    density = (weights * log_normal.exp()).sum(-2, keepdim=True)
    return weights * excess / density.clamp(min=torch.finfo(density.dtype).tiny)


def _solve_transposed(pull: Tensor, moves: Tensor, slopes: Tensor) -> Tensor:
    r"""Return the gradients for the logits, of shape ``(N, K)``.

    A coordinate that moves also moves the weights given it, at the ``slopes``, and by them every
    coordinate after. The triangular system that says so has the rank of the components, so that
    its back-substitution needs no matrix.
    """
    total = torch.zeros_like(moves[..., 0])
    for i in reversed(range(pull.shape[-1])):
        own = pull[..., i] + (slopes[..., i] * total).sum(-1)
        total = total + own[..., None] * moves[..., i]
    return total


def _finite(x: Tensor) -> Tensor:
    limit = torch.finfo(x.dtype).max
    return x.clamp(-limit, limit)
