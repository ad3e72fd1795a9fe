r"""Monotone rational-quadratic splines of an interval, with their derivatives.

In a bin of width :math:`w`, height :math:`h` and mean slope :math:`s = h / w`, with the slopes
:math:`d_0, d_1` at its knots, the position :math:`\theta` is mapped to

.. math:: \eta = \frac{\theta a}{q}, \quad
    \frac{\mathrm{d} y}{\mathrm{d} x} = \frac{s^2 p}{q^2}, \quad
    a = s \theta + d_0 \varphi, \quad b = s \varphi + d_1 \theta, \quad
    p = \varphi a + \theta b, \quad q = s + e \theta \varphi

with :math:`\varphi = 1 - \theta` and :math:`e = d_0 + d_1 - 2 s` (Durkan, Bekasov, Murray &
Papamakarios 2019, equations 4-5); no rounding cancels in them. The gradients are written out,
since autograd would keep every intermediate tensor. Where gradients are themselves differentiated,
the bin is found again by operations that have derivatives.

A bin is chosen by sums over all bins, with weights of zero and one: unlike the use of an index,
this is vectorised, is fused where it is compiled, and is a product in the gradient.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional

# The parameter of a slope is cut off here, where the slope is at its limit and exp is finite.
_LARGEST = 60.0


@dataclass(frozen=True)
class Knots:
    """What a spline keeps to.

    Args:
        count_bins: Number of bins, ``B``.
        bound: The interval is ``[-bound, bound]``.
        min_bin_size: Least width and height of a bin, as a part of the interval.
        min_slope: Least slope at a knot; the largest is its inverse.
        periodic: Whether the interval is a circle, at whose seam the slope is free; else it is
            one, and the spline goes on as the identity.
    """

    count_bins: int
    bound: float
    min_bin_size: float
    min_slope: float
    periodic: bool


class _Bin(NamedTuple):
    """The bins that points are in; widths come before heights, on the axis of two."""

    exps: Tensor  # (*, 2, B, n): the exponentials of the logits,
    total: Tensor  # (*, 2, n): their sum over all bins,
    before: Tensor  # (*, 2, n): over the bins before,
    within: Tensor  # (*, 2, n): and in the bin.
    past: Tensor  # (*, B + 1, n): one for every knot before the point, zero for the others.
    corner: Tensor  # (*, 2, n): where the bin begins; the interval is [0, 1].
    size: Tensor  # (*, 2, n): w and h.
    growth: Tensor  # (*, 2, n): exp(r), for the parameters r of the slopes at both knots.


class _Place(NamedTuple):
    """Where points are in their bins: the terms of the formulas, each of shape ``(*, n)``."""

    theta: Tensor
    phi: Tensor
    s: Tensor
    a: Tensor
    b: Tensor
    e: Tensor
    p: Tensor
    q: Tensor
    slope: Tensor


def _to_unit(x: Tensor, knots: Knots) -> Tensor:
    return (x * (0.5 / knots.bound) + 0.5).clamp(0, 1)


def _weights(past: Tensor, periodic: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights that choose a bin, and the parameters of the slopes at its two knots."""
    here = past[..., :-1, :] - past[..., 1:, :]
    if periodic:
        return here, here, here.roll(1, -2)
    return here, here[..., 1:, :], here[..., :-1, :]


def _choose(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum(-2)


def _find(t: Tensor, params: Tensor, knots: Knots, axis: int) -> _Bin:
    """Find the bins that hold ``t``, a coordinate on the axis of x (0) or of y (1)."""
    bins, least = knots.count_bins, knots.min_bin_size
    rest = 1 - bins * least
    logits = params[..., : 2 * bins, :].unflatten(-2, (2, bins))
    exps = (logits - logits.detach().amax(-2, keepdim=True)).exp()
    total = exps.sum(-2)
    past = _past(
        t.detach(), exps.detach().select(-3, axis), total.detach().select(-2, axis), knots
    )
    here, left, right = _weights(past, knots.periodic)
    before = _choose(exps, past[..., None, 1:, :])
    within = _choose(exps, here[..., None, :, :])
    ratio = rest / total
    passed = past[..., None, 1:, :].sum(-2)
    corner, size = before * ratio + passed * least, within * ratio + least
    slopes = params[..., 2 * bins :, :].clamp(-_LARGEST, _LARGEST)
    growth = torch.stack([_choose(slopes, left), _choose(slopes, right)], -2).exp()
    return _Bin(exps, total, before, within, past, corner, size, growth)


def _past(t: Tensor, exps: Tensor, total: Tensor, knots: Knots) -> Tensor:
    """Return one for every knot at or before ``t``, and zero for the others."""
    least = knots.min_bin_size / (1 - knots.count_bins * knots.min_bin_size)
    steps = exps + (total * least)[..., None, :]
    ends = list(accumulate(steps.unbind(-2)))
    # The first knot is always passed, and the last one never, since t <= 1.
    stretched = functional.pad(torch.stack(ends, -2), (0, 0, 1, 0), value=-1.0)
    # Not a comparison: torch is slow at turning truth values into numbers.
    return torch.sign((t * ends[-1])[..., None, :] - stretched).clamp(min=0)


def _shape(found: _Bin, knots: Knots) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``s``, and the slopes ``d0`` and ``d1``, which are one where a parameter is zero."""
    least = knots.min_slope
    d0, d1 = ((found.growth + least) / (1 + least * found.growth)).unbind(-2)
    width, height = found.size.unbind(-2)
    return height / width, d0, d1


def _terms(theta: Tensor, phi: Tensor, s: Tensor, d0: Tensor, d1: Tensor) -> _Place:
    a = torch.addcmul(d0 * phi, s, theta)
    b = torch.addcmul(d1 * theta, s, phi)
    e = d0 + d1 - 2 * s
    p = torch.addcmul(phi * a, theta, b)
    q = torch.addcmul(s, e, theta * phi)
    ratio = s / q
    return _Place(theta, phi, s, a, b, e, p, q, ratio * ratio * p)


def _place(t: Tensor, found: _Bin, knots: Knots) -> _Place:
    """Find the places of ``t`` on the axis of x."""
    s, d0, d1 = _shape(found, knots)
    theta = ((t - found.corner.select(-2, 0)) / found.size.select(-2, 0)).clamp(0, 1)
    return _terms(theta, 1 - theta, s, d0, d1)


def _place_back(t: Tensor, found: _Bin, knots: Knots) -> _Place:
    r"""Find the places of ``t`` on the axis of y, without cancellation or roots of negatives.

    With :math:`m = d_0 (1 - \eta) - d_1 \eta` and :math:`r^2 = m^2 + 4 s^2 \eta (1 - \eta)`,
    equations 6-8 become

    .. math:: \theta = \frac{2 s \eta}{2 s \eta + m + r}, \qquad
        m + r = \frac{4 s^2 \eta (1 - \eta)}{r - m}

    where the second is for :math:`m < 0`.
    """
    s, d0, d1 = _shape(found, knots)
    eta = ((t - found.corner.select(-2, 1)) / found.size.select(-2, 1)).clamp(0, 1)
    other = 1 - eta
    m = d0 * other - d1 * eta
    part = 2 * s * eta
    product = 2 * s * other * part
    larger = torch.addcmul(product, m, m).sqrt() + m.abs()
    rest = torch.where(m < 0, product / larger, larger)
    whole = part + rest
    return _terms(part / whole, rest / whole, s, d0, d1)


def _gradients(
    found: _Bin, place: _Place, knots: Knots, by: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """Return the gradient of the parameters, given those of x, of y (at a fixed x) and ladj."""
    (by_x, by_y, by_ladj), (theta, phi, s, a, b, _, p, q, _) = by, place
    width, height = found.size.unbind(-2)
    both, left, right = theta * phi, phi * a, theta * b
    by_p, by_q = by_ladj / p, -2 * by_ladj / q
    by_eta = by_y * height * both / (q * q)
    shared = by_q * both
    by_d0 = torch.addcmul(shared, phi, torch.addcmul(by_eta * b, by_p, phi))
    by_d1 = torch.addcmul(shared, theta, torch.addcmul(by_p * theta, by_eta, a, value=-1))
    by_s = by_eta * (right - left) + 2 * (by_ladj / s + by_p * both - shared) + by_q
    by_height = by_s / width
    by_width = torch.addcmul(by_x * theta, by_height, s)
    by_height = torch.addcmul(by_height, by_y, theta * a / q)
    by_corner = torch.stack([-by_x, by_y], -2)
    by_size = torch.stack([-by_width, by_height], -2)
    by_slopes = torch.stack([by_d0, by_d1], -2)
    return torch.cat(
        [_of_logits(found, knots, by_corner, by_size), _of_slopes(found, knots, by_slopes)], -2
    )


def _of_logits(found: _Bin, knots: Knots, by_corner: Tensor, by_size: Tensor) -> Tensor:
    """Return the gradient of the logits, of shape ``(*, 2 B, n)``."""
    ratio = (1 - knots.count_bins * knots.min_bin_size) / found.total
    by_before, by_within = by_corner * ratio, by_size * ratio
    by_total = torch.addcmul(by_before * found.before, by_within, found.within) / -found.total
    before = found.past[..., None, 1:, :]
    here = found.past[..., None, :-1, :] - before
    by_exps = torch.addcmul(by_total[..., None, :], by_before[..., None, :], before)
    by_exps = torch.addcmul(by_exps, by_within[..., None, :], here)
    return (by_exps * found.exps).flatten(-3, -2)


def _of_slopes(found: _Bin, knots: Knots, by_slopes: Tensor) -> Tensor:
    """Return the gradient of the parameters of the slopes."""
    least = knots.min_slope
    stretch = 1 + least * found.growth
    by_params = by_slopes * ((1 - least**2) * found.growth / stretch / stretch)
    by_left, by_right = by_params[..., None, :].unbind(-3)
    _, left, right = _weights(found.past, knots.periodic)
    return torch.addcmul(by_left * left, by_right, right)


def _curvature(place: _Place) -> Tensor:
    """Return the derivative of the log-slope for ``theta``."""
    theta, phi, _, a, b, e, p, q, _ = place
    return 2 * ((b - a) / p - (phi - theta) * e / q)


def _evaluate(x: Tensor, params: Tensor, knots: Knots, inverse: bool) -> tuple[Tensor, ...]:
    """Return value and ladj, and what their gradients need."""
    t = _to_unit(x, knots)
    found = _find(t, params, knots, int(inverse))
    if inverse:
        place = _place_back(t, found, knots)
        into, share, ladj = 0, place.theta, -place.slope.log()
    else:
        place = _place(t, found, knots)
        into, share, ladj = 1, place.theta * place.a / place.q, place.slope.log()
    value = torch.addcmul(found.corner.select(-2, into), found.size.select(-2, into), share)
    # In the tails zero, but not in place of a NaN; added to x, it is the identity there.
    inside = _inside(x, knots)
    value = x + (value - t) * (inside * (2 * knots.bound))
    return value, ladj * inside, inside, *found, *place


class _Spline(torch.autograd.Function):
    """Both directions of a spline; all but the first two outputs are for the backward pass."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, params: Tensor, knots: Knots, inverse: bool) -> tuple[Tensor, ...]:
        return _evaluate(x, params, knots, inverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, params, ctx.knots, ctx.inverse = inputs
        y, _, inside, *rest = output
        ctx.save_for_backward(x, params, y, inside, *rest)
        ctx.mark_non_differentiable(inside, *rest)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any, by_value: Tensor | None, by_ladj: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        x, params, _, _, *rest = ctx.saved_tensors
        by_value = torch.zeros_like(x) if by_value is None else by_value
        by_ladj = torch.zeros_like(x) if by_ladj is None else by_ladj
        # What is saved has no derivatives.
        at = _again(ctx) if torch.is_grad_enabled() else (_Bin(*rest[:8]), _Place(*rest[8:]))
        by_x, by_params = _pull_back(ctx, *at, by_value, by_ladj)
        return by_x.sum_to_size(x.shape), by_params.sum_to_size(params.shape), None, None


def _again(ctx: Any) -> tuple[_Bin, _Place]:
    """Find bins and places once more, by operations with derivatives."""
    x, params, y, *_ = ctx.saved_tensors
    t = _to_unit(y if ctx.inverse else x, ctx.knots)
    found = _find(t, params, ctx.knots, 0)
    return found, _place(t, found, ctx.knots)


def _pull_back(
    ctx: Any, found: _Bin, place: _Place, by_value: Tensor, by_ladj: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the point and of the parameters, given those of both outputs."""
    knots, inside = ctx.knots, ctx.saved_tensors[3]
    by_unit, by_ladj = by_value * (inside * (2 * knots.bound)), by_ladj * inside
    by_t = by_ladj * _curvature(place) / found.size.select(-2, 0)
    if ctx.inverse:
        # By the implicit function theorem.
        by_t = (by_unit - by_t) / place.slope
        by = -by_unit, -by_t, -by_ladj
    else:
        by_t = by_t + by_unit * place.slope
        by = by_t, by_unit, by_ladj
    by_x = by_value + (by_t - by_unit) * (0.5 / knots.bound)
    return by_x, _gradients(found, place, knots, by)


def _inside(x: Tensor, knots: Knots) -> Tensor:
    if knots.periodic:
        return torch.ones_like(x)
    return (x.abs() < knots.bound).to(x.dtype)


class SplineTangent(NamedTuple):
    """The derivatives of a spline where it was evaluated, for use without a graph."""

    found: _Bin
    place: _Place
    inside: Tensor
    knots: Knots
    dtype: torch.dtype  # That of what the caller computes with.

    def push(self, score: Tensor) -> tuple[Tensor, Tensor]:
        """Return the score of ``y``, given that of ``x``, and the parameters' share."""
        by_t = self._ladj_by_t()
        score = (score - by_t * (0.5 / self.knots.bound)) / self._slope()
        return score.to(self.dtype), self._share(score, by_t)

    def pull(self, score: Tensor) -> tuple[Tensor, Tensor]:
        """Return the score of ``x``, given that of ``y``, and the parameters' share."""
        by_t = self._ladj_by_t()
        by_x = score * self._slope() + by_t * (0.5 / self.knots.bound)
        return by_x.to(self.dtype), self._share(score, by_t)

    def slope_and_pull(self) -> tuple[Tensor, Tensor]:
        """Return the derivatives for ``x`` and for the parameters."""
        by_y = self.inside * (2 * self.knots.bound)
        by = by_y * self.place.slope, by_y, torch.zeros_like(by_y)
        pull = _gradients(self.found, self.place, self.knots, by)
        return self._slope().to(self.dtype), pull.to(self.dtype)

    def _slope(self) -> Tensor:
        return 1 + self.inside * (self.place.slope - 1)

    def _ladj_by_t(self) -> Tensor:
        return self.inside * _curvature(self.place) / self.found.size.select(-2, 0)

    def _share(self, by_value: Tensor, by_t: Tensor) -> Tensor:
        by_y = by_value * (self.inside * (2 * self.knots.bound))
        by = by_t + by_y * self.place.slope, by_y, self.inside
        return _gradients(self.found, self.place, self.knots, by).to(self.dtype)


def _run(
    x: Tensor, params: Tensor, knots: Knots, inverse: bool
) -> tuple[Tensor, Tensor, SplineTangent]:
    # Within forward-mode differentiation, torch would take a second derivative of a custom
    # function for zero; but the operations have all of them.
    is_forward_mode = getattr(forward_ad, "_current_level", -1) >= 0
    run = _evaluate if is_forward_mode else _Spline.apply
    value, ladj, inside, *rest = run(x, params, knots, inverse)
    tangent = SplineTangent(_Bin(*rest[:8]), _Place(*rest[8:]), inside, knots, x.dtype)
    return value, ladj, tangent


def spline(x: Tensor, params: Tensor, knots: Knots) -> tuple[Tensor, Tensor, SplineTangent]:
    """Return the spline's value, its log-slope and its derivatives at ``x``.

    Args:
        x: Of shape ``(*, n)``; within the interval, if the spline is periodic.
        params: Of shape ``(*, K, n)``: the logits of the widths and those of the heights, ``B``
            each, and the slopes at the ``B - 1`` inner knots, or at all ``B`` knots of a circle.
        knots: The options.
    """
    return _run(x, params, knots, False)


def spline_inverse(
    y: Tensor, params: Tensor, knots: Knots
) -> tuple[Tensor, Tensor, SplineTangent]:
    """Return the ``x`` that :func:`spline` maps to ``y``, minus its log-slope and derivatives.

    Args:
        y: Of shape ``(*, n)``; within the interval, if the spline is periodic.
        params: Of shape ``(*, K, n)``, as for :func:`spline`.
        knots: The options.
    """
    return _run(y, params, knots, True)
