"""Normalisation of the coordinates or the channels, started from data."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.errors import DomainError, NonFiniteError, ShapeError
from pyro_flows.transforms.affine import ElementwiseAffine
from pyro_flows.transforms.base import FlowTransform
from pyro_flows.transforms.compose import Compose, Inverse, check_transform
from pyro_flows.transforms.image import Pixelwise
from pyro_flows.transforms.multiscale import Partial

Direction = Literal["forward", "inverse"]
_OTHER: dict[Direction, Direction] = {"forward": "inverse", "inverse": "forward"}
# A message names no more columns than this.
_MOST_NAMED = 10


class ActNorm(Pixelwise):
    r"""Scale and shift each coordinate, or each channel of an image, as some data suggest.

    .. math:: y = \mu + \sigma \odot (e^{s} \odot x + m), \qquad
        \log |\det J| = H W \sum_i (\log \sigma_i + s_i)

    The location :math:`\mu` and the scale :math:`\sigma` are buffers, zero and one until
    :meth:`initialise` sets them; the parameters :math:`m, s` start at zero and move relative to
    them. Nothing but a call of :meth:`initialise` changes its state: the density of a point never
    depends on the others of its batch, as it does with batch normalisation.

    Args:
        input_dim: Number of coordinates.
        image_shape: ``(C, H, W)`` with ``C * H * W = input_dim``, for one scale a channel; one a
            coordinate if not given.

    Raises:
        DomainError: A size is not a positive integer.
        ShapeError: ``image_shape`` is not three sizes with the product ``input_dim``.

    Reference:
        Kingma & Dhariwal (2018), *Glow: Generative flow with invertible 1x1 convolutions*,
        section 3.1.

    Example:
        >>> import torch
        >>> transform = ActNorm(2)
        >>> transform.initialise(torch.tensor([[1.0, -10.0], [3.0, 10.0]]))
        >>> transform.inv(torch.tensor([1.0, 10.0])).tolist()
        [-1.0, 1.0]
    """

    transform: ElementwiseAffine
    initialised: Tensor

    def __init__(self, input_dim: int, *, image_shape: Sequence[int] | None = None) -> None:
        who = type(self).__name__
        input_dim = _checks.check_count(who, "input_dim", input_dim)
        shape = (input_dim, 1, 1)
        if image_shape is not None:
            shape = _checks.check_image_shape(who, image_shape)
        if math.prod(shape) != input_dim:
            raise _checks.refusal(
                ShapeError,
                who,
                expected=f"image_shape of {input_dim} entries, as input_dim says",
                got=f"{shape}, of {math.prod(shape)}",
            )
        super().__init__(ElementwiseAffine(shape[0]), shape)
        self.register_buffer("initialised", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def initialise(self, points: Tensor, *, direction: Direction = "inverse") -> None:
        r"""Set the location and the scale so that these points come out with mean 0 and sd 1.

        The parameters go back to zero, so that it may be called again.

        Args:
            points: At least two, of shape ``(*, input_dim)``; all batch axes count as one.
            direction: Which map is to normalise them. A flow maps from the base to the data, so
                that data come in at the ``"inverse"`` side.

        Raises:
            DomainError: There are fewer than two points, or a coordinate (a channel) does not
                vary, or by too little or too much for its dtype.
            NonFiniteError: A point is not finite.
            ShapeError: The points have the wrong shape.
        """
        _checks.check_choice(self._name, "direction", direction, tuple(_OTHER))
        self._check(points, None)
        mean, sd = self._moments(points)
        loc, scale = (mean, sd) if direction == "inverse" else (-mean / sd, 1 / sd)
        affine = self.transform
        like = affine.fixed_loc.dtype
        loc, scale = loc.to(like), scale.to(like)
        smallest = torch.finfo(like).tiny
        possible = loc.isfinite() & (scale >= smallest) & (scale <= 1 / smallest)
        if not bool(possible.all()):
            raise _checks.refusal(
                DomainError,
                self._name,
                expected="points that vary, within the range of their dtype",
                got=f"standard deviations {_first(sd[~possible])} in {self._columns(~possible)}",
                advice="Drop what is constant, or add noise to it.",
            )
        affine.fixed_loc.copy_(loc)
        affine.fixed_scale.copy_(scale)
        for parameter in affine.parameters():
            parameter.zero_()
        self.initialised.fill_(True)

    def _moments(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of each channel, in float64."""
        images = points.detach().reshape(-1, self.input_dim)
        if len(images) < 2:
            raise _checks.refusal(
                DomainError,
                self._name,
                expected="at least 2 points to start from",
                got=f"{len(images)}",
                advice="One has no spread. Pass a larger batch.",
            )
        values = self.to_pixels(images.double()).flatten(0, 1)
        faulty = ~values.isfinite()
        if bool(faulty.any()):
            raise _checks.refusal(
                NonFiniteError,
                self._name,
                expected="finite points to start from",
                got=f"a NaN or an infinity in {self._columns(faulty.any(0))}",
                advice="Drop or fill in these rows.",
            )
        # Relative to the largest, so that no square overflows.
        peak = values.abs().amax(0).clamp(min=torch.finfo(values.dtype).tiny)
        sd, mean = torch.std_mean(values / peak, 0, correction=0)
        # The mean of equal numbers may be off by rounding, and then they seem to vary.
        constant = values.amin(0) == values.amax(0)
        return mean * peak, torch.where(constant, 0.0, sd * peak)

    def _columns(self, which: Tensor) -> str:
        kind = "coordinates" if self.input_dim == self.image_shape[0] else "channels"
        return f"{kind} {_first(which.nonzero().flatten())}"


def _first(values: Tensor) -> str:
    listed = values[:_MOST_NAMED].tolist()
    shown = ", ".join(f"{v:.3g}" if isinstance(v, float) else f"{v}" for v in listed)
    return f"[{shown}, ...]" if len(values) > _MOST_NAMED else f"[{shown}]"


@torch.no_grad()
def initialise_from_data(
    transform: FlowTransform,
    points: Tensor,
    context: Tensor | None = None,
    *,
    direction: Direction = "inverse",
) -> None:
    """Initialise every :class:`ActNorm` inside a transform on the data, as they reach it.

    It looks into :class:`Compose` (and so :class:`MultiScale`), :class:`Inverse`,
    :class:`Partial` and :class:`Pixelwise`; what holds no ``ActNorm`` is left as it is.

    Args:
        transform: The whole transform of a flow.
        points: Data, at least two, of shape ``(*, input_dim)``.
        context: Of shape ``(*, context_dim)``; its batch axes broadcast with those of ``points``.
        direction: Which map of ``transform`` the data go through. A flow maps from the base to the
            data, so that data go through the ``"inverse"``.

    Raises:
        DomainError: There are fewer than two points, or what reaches an ``ActNorm`` does not vary.
        NonFiniteError: What reaches an ``ActNorm`` is not finite.
        ShapeError: The points or the context have the wrong shape.

    Example:
        >>> import torch
        >>> from pyro_flows.transforms import AffineCoupling, Compose
        >>> both = Compose([AffineCoupling(2), ActNorm(2)])
        >>> data = 5 + 3 * torch.randn(100, 2)
        >>> initialise_from_data(both, data)
        >>> torch.allclose(both.inv(data).mean(0), torch.zeros(2), atol=1e-4)
        True
    """
    _checks.check_choice("initialise_from_data", "direction", direction, tuple(_OTHER))
    check_transform("initialise_from_data", transform)
    transform._check(points, context)
    _pass(transform, points, context, direction)


def _pass(
    transform: FlowTransform, points: Tensor, context: Tensor | None, direction: Direction
) -> Tensor:
    """Send the data through a transform, initialising what is on the way."""
    context = context if transform.context_dim else None
    if isinstance(transform, Inverse):
        return _pass(transform.transform, points, context, _OTHER[direction])
    if isinstance(transform, Compose):
        parts = transform._ordered if direction == "forward" else reversed(transform._ordered)
        for part in parts:
            points = _pass(part, points, context, direction)
        return points
    if isinstance(transform, Partial):
        moved, kept = transform.split(points)
        return transform.join(_pass(transform.transform, moved, context, direction), kept)
    if isinstance(transform, ActNorm):
        transform.initialise(points, direction=direction)
    elif isinstance(transform, Pixelwise):
        pixels = None if context is None else context.unsqueeze(-2)
        moved = _pass(transform.transform, transform.to_pixels(points), pixels, direction)
        return moved.mT.flatten(-2)
    run = transform._forward_and_ladj if direction == "forward" else transform._inverse_and_ladj
    return run(points, context)[0]
