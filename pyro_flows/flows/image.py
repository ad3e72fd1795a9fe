"""Recipes for images: flows from a base to pixels, which are numbers from 0 to ``num_values``."""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyro_flows import _checks
from pyro_flows.distributions import Flow, StandardLogistic
from pyro_flows.flows._options import log_scale_bound
from pyro_flows.nn import ConvNet, DenseNet
from pyro_flows.transforms import (
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    Compose,
    ElementwiseAffine,
    FlowTransform,
    Inverse,
    InvertibleConv1x1,
    MultiScale,
    Sigmoid,
    Squeeze,
)

_ImageShape = tuple[int, int, int]
_SCALING_RATE = 16.0


class _Scaling(ElementwiseAffine):
    """An element-wise affine map whose parameters go far in few steps.

    Adam moves each entry by its step size at most, and the scale of what couplings cannot predict
    has far to fall: a thousand steps at 1e-3 are one unit of a log-scale.
    """

    def _loc_and_log_scale(self, context: Tensor | None) -> tuple[Tensor, Tensor]:
        loc, log_scale = super()._loc_and_log_scale(context)
        return _SCALING_RATE * loc, _SCALING_RATE * log_scale


class _BySpread(nn.Module):
    """A network that sees each coordinate in proportion to its spread in the data.

    An ``ActNorm`` makes the noise of a pixel that is always black as large as the strokes of
    another. Networks that see them alike learn the noise by heart.
    """

    seen: Tensor

    def __init__(self, net: DenseNet, norm: ActNorm, seen: Tensor) -> None:
        super().__init__()
        self.net = net
        # In a tuple, so that the flow keeps the norm where it is, and not here as well.
        self._norm = (norm,)
        self.register_buffer("seen", seen)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the parameters of a coupling."""
        spread = self._norm[0].transform.fixed_scale[self.seen]
        return cast(Tensor, self.net(x * (spread / spread.square().mean().sqrt()), context))


def _start_deep(net: DenseNet) -> None:
    """Draw the weights so that signals keep their size through relu layers (He et al., 2015)."""
    for layer in (net.from_input, net.from_context, *net.layers[:-1]):
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")


def nice_image(
    image_shape: Sequence[int],
    *,
    num_transforms: int = 4,
    hidden_dims: Sequence[int] = (1000,) * 5,
    context_dim: int = 0,
    activation: str = "relu",
    num_values: int = 256,
) -> Flow:
    """Build NICE for images: additive couplings of odd and even pixels, and a logistic base.

    Args:
        image_shape: ``(C, H, W)``; points are flat, of ``C * H * W`` coordinates.
        num_transforms: Number of couplings.
        hidden_dims: Widths of the conditioners' hidden layers.
        context_dim: Number of entries of the context, such as a one-hot class; zero for none.
        activation: Name of the conditioners' activation.
        num_values: Number of values of a pixel; images lie between 0 and ``num_values``.

    Raises:
        DomainError: A size or the activation is not possible.

    Reference:
        Dinh, Krueger & Bengio (2015), *NICE: Non-linear independent components estimation*,
        section 5.1.

    Example:
        >>> nice_image((1, 4, 4), hidden_dims=(32,)).sample((10,)).shape
        torch.Size([10, 16])
    """
    who = "nice_image"
    input_dim = math.prod(_checks.check_image_shape(who, image_shape))
    num_values = _checks.check_count(who, "num_values", num_values, least=2)
    num_transforms = _checks.check_count(who, "num_transforms", num_transforms)
    # A pixel that is always black has its noise alone, a thousandth of another's spread. Of what
    # an ActNorm standardises, additive couplings are the same functions, found in fewer steps.
    norm = ActNorm(input_dim)
    odd = torch.arange(input_dim) % 2 == 1

    def coupling(mask: Tensor) -> AdditiveCoupling:
        seen, moved = mask.nonzero().flatten(), int((~mask).sum())
        net = DenseNet(
            len(seen),
            moved,
            hidden_dims=hidden_dims,
            context_dim=context_dim,
            activation=activation,
        )
        _start_deep(net)
        conditioner = _BySpread(net, norm, seen)
        return AdditiveCoupling(
            input_dim, mask=mask, conditioner=conditioner, context_dim=context_dim
        )

    couplings = [coupling(odd if k % 2 else ~odd) for k in range(num_transforms)]
    pixels = ElementwiseAffine(input_dim, scale=torch.full((input_dim,), float(num_values)))
    pixels.requires_grad_(False)
    parts = [_Scaling(input_dim), *couplings, norm, pixels]
    return Flow(parts, base=StandardLogistic(input_dim))


def realnvp_image(
    image_shape: Sequence[int],
    *,
    num_scales: int = 2,
    hidden_channels: int = 64,
    num_blocks: int = 2,
    context_dim: int = 0,
    activation: str = "silu",
    num_values: int = 256,
    margin: float = 0.002,
) -> Flow:
    """Build a RealNVP for images: couplings of checkerboards and channels, at several scales.

    Each scale has three couplings of alternating checkerboards, a squeeze, and three of
    alternating channels, after which half of the coordinates stop; the last scale has four of
    checkerboards. Each is followed by an ``ActNorm``, in the place of batch normalisation.

    Args:
        image_shape: ``(C, H, W)``; points are flat, of ``C * H * W`` coordinates.
        num_scales: Number of scales; height and width are halved between them.
        hidden_channels: Channels of the conditioners, which double at each scale.
        num_blocks: Number of their residual blocks.
        context_dim: Number of entries of the context, such as a one-hot class; zero for none.
        activation: Name of the conditioners' activation.
        num_values: Number of values of a pixel; images lie between 0 and ``num_values``.
        margin: That of the logit; see :class:`~pyro_flows.transforms.Sigmoid`.

    Raises:
        DomainError: A size or the activation is not possible.
        ShapeError: Height or width cannot be halved that often.

    Reference:
        Dinh, Sohl-Dickstein & Bengio (2017), *Density estimation using Real NVP*, sections 3.4 to
        3.7 and 4.1.

    Example:
        >>> realnvp_image((1, 4, 4), hidden_channels=8).sample((10,)).shape
        torch.Size([10, 16])
    """
    who = "realnvp_image"
    shape = _checks.check_image_shape(who, image_shape)
    num_scales = _checks.check_count(who, "num_scales", num_scales)
    num_values = _checks.check_count(who, "num_values", num_values, least=2)
    options: dict[str, Any] = {
        "num_blocks": num_blocks,
        "context_dim": context_dim,
        "activation": activation,
        "bound": log_scale_bound(2.0, 6 * num_scales + 4),
    }
    levels: list[FlowTransform] = []
    for scale in range(num_scales):
        options["hidden_channels"] = hidden_channels * 2**scale
        last = scale == num_scales - 1
        levels.append(
            Compose(_alternating(_checkerboard(shape), shape, 4 if last else 3, options))
        )
        if not last:
            squeeze = Squeeze(shape)
            shape = squeeze.output_shape
            channels = _alternating(_first_channels(shape), shape, 3, options)
            levels.append(Compose([*channels, Inverse(squeeze)]))
            shape = (shape[0] // 2, *shape[1:])
    return _image_flow(levels, context_dim=context_dim, num_values=num_values, margin=margin)


def glow(
    image_shape: Sequence[int],
    *,
    num_scales: int = 2,
    num_steps: int = 8,
    hidden_channels: int = 64,
    num_blocks: int = 1,
    context_dim: int = 0,
    activation: str = "silu",
    num_values: int = 256,
    margin: float = 0.002,
) -> Flow:
    """Build a Glow: steps of an ActNorm, a 1x1 convolution and a coupling, at several scales.

    At each scale the image is squeezed, goes through the steps, and half of its channels stop,
    with a location and a scale that the other half predicts. The 1x1 convolutions are written by
    their LU factors and start at rotations.

    Args:
        image_shape: ``(C, H, W)``; points are flat, of ``C * H * W`` coordinates.
        num_scales: Number of scales; height and width are halved at each.
        num_steps: Number of steps of a scale.
        hidden_channels: Channels of the conditioners.
        num_blocks: Number of their residual blocks.
        context_dim: Number of entries of the context, such as a one-hot class; zero for none.
        activation: Name of the conditioners' activation.
        num_values: Number of values of a pixel; images lie between 0 and ``num_values``.
        margin: That of the logit; see :class:`~pyro_flows.transforms.Sigmoid`.

    Raises:
        DomainError: A size or the activation is not possible.
        ShapeError: Height or width cannot be halved that often.

    Reference:
        Kingma & Dhariwal (2018), *Glow: Generative flow with invertible 1x1 convolutions*.

    Example:
        >>> glow((1, 4, 4), num_steps=2, hidden_channels=8).sample((10,)).shape
        torch.Size([10, 16])
    """
    who = "glow"
    shape = _checks.check_image_shape(who, image_shape)
    num_scales = _checks.check_count(who, "num_scales", num_scales)
    num_values = _checks.check_count(who, "num_values", num_values, least=2)
    num_steps = _checks.check_count(who, "num_steps", num_steps)
    options: dict[str, Any] = {
        "hidden_channels": hidden_channels,
        "num_blocks": num_blocks,
        "context_dim": context_dim,
        "activation": activation,
        "bound": log_scale_bound(2.0, num_scales * (num_steps + 1)),
    }
    levels: list[FlowTransform] = []
    for scale in range(num_scales):
        squeeze = Squeeze(shape)
        shape = squeeze.output_shape
        parts = [part for _ in range(num_steps) for part in _step(shape, options)]
        if scale < num_scales - 1:
            parts.insert(0, _coupling(_first_channels(shape), shape, options))
        levels.append(Compose([*parts, Inverse(squeeze)]))
        shape = (shape[0] // 2, *shape[1:])
    return _image_flow(levels, context_dim=context_dim, num_values=num_values, margin=margin)


def _step(shape: _ImageShape, options: dict[str, Any]) -> list[FlowTransform]:
    """Return a step of Glow, from the base to the data: the reverse of the paper's order."""
    # Inverted, so that data take one product with the matrix, and draws two triangular solves.
    conv = Inverse(InvertibleConv1x1(shape, start="rotation"))
    norm = ActNorm(math.prod(shape), image_shape=shape)
    return [_coupling(_first_channels(shape), shape, options), conv, norm]


def _alternating(
    mask: Tensor, shape: _ImageShape, count: int, options: dict[str, Any]
) -> list[FlowTransform]:
    """Return couplings of a mask and its complement in turn, each with an ActNorm."""
    parts: list[FlowTransform] = []
    for k in range(count):
        keep = ~mask if k % 2 else mask
        parts += [
            _coupling(keep, shape, options),
            ActNorm(math.prod(shape), image_shape=shape),
        ]
    return parts


def _coupling(mask: Tensor, shape: _ImageShape, options: dict[str, Any]) -> AffineCoupling:
    net = {name: value for name, value in options.items() if name != "bound"}
    return AffineCoupling(
        math.prod(shape),
        mask=mask.flatten(),
        conditioner=ConvNet(shape, 2, mask=mask, **net),
        context_dim=net["context_dim"],
        log_scale_bound=options["bound"],
    )


def _checkerboard(shape: _ImageShape) -> Tensor:
    channels, height, width = shape
    rows, columns = torch.arange(height).view(-1, 1), torch.arange(width)
    return ((rows + columns) % 2 == 0).expand(channels, height, width)


def _first_channels(shape: _ImageShape) -> Tensor:
    return (torch.arange(shape[0]) < shape[0] // 2).view(-1, 1, 1).expand(shape)


def _image_flow(
    levels: list[FlowTransform], *, context_dim: int, num_values: int, margin: float
) -> Flow:
    """Return the flow of some levels, given from the data to the base, over pixels."""
    input_dim = levels[0].input_dim
    prior = ElementwiseAffine(input_dim, context_dim=context_dim, hidden_dims=())
    pixels = Sigmoid(input_dim, high=float(num_values), margin=margin)
    return Flow([prior, MultiScale(levels[::-1]), pixels])
