"""Transforms of images, which are flat vectors of ``C * H * W`` entries in C-order."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.errors import ShapeError
from pyro_flows.transforms.base import FlowTransform, Push, Run
from pyro_flows.transforms.compose import check_real, check_transform
from pyro_flows.transforms.linear import LULinear
from pyro_flows.transforms.permute import Permute


class Pixelwise(FlowTransform):
    r"""Apply one transform of the channels at every pixel of an image.

    .. math:: y_{:,h,w} = f(x_{:,h,w}), \qquad \log |\det J| = \sum_{h,w} \log |\det J_f|

    The context, if there is one, is that of the image: all of its pixels share it.

    Args:
        transform: The transform :math:`f` of ``C`` coordinates.
        image_shape: ``(C, H, W)``; points are flat, of ``C * H * W`` coordinates.

    Raises:
        DomainError: ``transform`` is not a :class:`FlowTransform` of real vectors, or a size is
            not possible.
        ShapeError: ``transform`` is not of ``C`` coordinates.

    Example:
        >>> import torch
        >>> from pyro_flows.transforms import Planar
        >>> transform = Pixelwise(Planar(3), (3, 8, 8))
        >>> transform(torch.randn(10, 3, 8, 8).flatten(1)).shape
        torch.Size([10, 192])
    """

    def __init__(self, transform: FlowTransform, image_shape: Sequence[int]) -> None:
        who = type(self).__name__
        check_transform(who, transform)
        check_real(who, transform)
        shape = _checks.check_image_shape(who, image_shape)
        if transform.input_dim != shape[0]:
            raise _checks.refusal(
                ShapeError,
                who,
                expected=f"a transform of the {shape[0]} channels of {shape}",
                got=f"input_dim={transform.input_dim}",
            )
        super().__init__(math.prod(shape), context_dim=transform.context_dim)
        self.image_shape = shape
        self.transform = transform
        self.inverse_kind = transform.inverse_kind  # type: ignore[misc]

    def to_pixels(self, x: Tensor) -> Tensor:
        """Return the pixels of flat images, of shape ``(*, H * W, C)``."""
        return x.unflatten(-1, (self.image_shape[0], -1)).mT

    def _forward_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._forward_and_push(x, context)[:2]

    def _inverse_and_ladj(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._inverse_and_push(y, context)[:2]

    def _forward_and_push(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Push]:
        return self._run(self.transform._forward_and_push, x, context)

    def _inverse_and_push(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Push]:
        return self._run(self.transform._inverse_and_push, y, context)

    def _run(self, run: Run, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Push]:
        context = None if context is None else context.unsqueeze(-2)
        pixels, ladj, push = run(self.to_pixels(x), context)

        def push_pixels(score: Tensor) -> Tensor:
            return push(self.to_pixels(score)).mT.flatten(-2)

        return pixels.mT.flatten(-2), ladj.sum(-1), push_pixels

    def extra_repr(self) -> str:
        """Name the sizes in the module's representation."""
        return f"image_shape={self.image_shape}"


class InvertibleConv1x1(Pixelwise):
    r"""Mix the channels of an image, by one invertible matrix at every pixel.

    .. math:: y_{:,h,w} = P L U x_{:,h,w} + m, \qquad \log |\det J| = H W \sum_i s_i

    The factors are those of :class:`LULinear`. With a context, a network adds to :math:`m` and
    :math:`s`.

    Args:
        image_shape: ``(C, H, W)``; points are flat, of ``C * H * W`` coordinates.
        start: ``"identity"``, or ``"rotation"``: a random one, as in the paper.
        context_dim: Number of entries of the context; zero for none.
        hidden_dims: Widths of the hidden layers of the context's network.

    Raises:
        DomainError: A size is not possible, or ``start`` is not known.
        ShapeError: ``image_shape`` is not three sizes.

    Reference:
        Kingma & Dhariwal (2018), *Glow: Generative flow with invertible 1x1 convolutions*,
        section 3.2 and equations 9-11.

    Example:
        >>> import torch
        >>> transform = InvertibleConv1x1((3, 8, 8), start="rotation")
        >>> y, ladj = transform.forward_and_ladj(torch.randn(10, 192))
        >>> torch.allclose(ladj, torch.zeros(10), atol=1e-4)
        True
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        *,
        start: str = "identity",
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
    ) -> None:
        who = type(self).__name__
        channels = _checks.check_image_shape(who, image_shape)[0]
        _checks.check_choice(who, "start", start, ("identity", "rotation"))
        linear = LULinear(
            channels,
            matrix=_random_rotation(channels) if start == "rotation" else None,
            context_dim=_checks.check_count(who, "context_dim", context_dim, least=0),
            hidden_dims=hidden_dims,
        )
        super().__init__(linear, image_shape)


def _random_rotation(input_dim: int) -> Tensor:
    """Return a rotation, uniformly distributed."""
    rotation, upper = torch.linalg.qr(torch.randn(input_dim, input_dim))
    rotation = rotation * upper.diagonal().sign()
    return torch.cat([rotation[:, :1] * torch.linalg.det(rotation).sign(), rotation[:, 1:]], -1)


class Squeeze(Permute):
    r"""Trade height and width for channels: each block of pixels becomes one pixel.

    .. math:: y_{c f^2 + i f + j,\, h,\, w} = x_{c,\, h f + i,\, w f + j}

    It is a permutation of the coordinates. A flow maps from the base to the data, where the image
    is in its own shape: in a flow, use ``Inverse(Squeeze(image_shape))``.

    Args:
        image_shape: ``(C, H, W)`` of ``x``.
        factor: :math:`f`, which divides the height and the width.

    Raises:
        DomainError: A size is not a positive integer.
        ShapeError: ``factor`` does not divide the height and the width.

    Reference:
        Dinh, Sohl-Dickstein & Bengio (2017), *Density estimation using Real NVP*, section 3.6.

    Example:
        >>> import torch
        >>> squeeze = Squeeze((1, 2, 4))
        >>> squeeze.output_shape
        (4, 1, 2)
        >>> squeeze(torch.arange(8.0)).view(squeeze.output_shape).tolist()
        [[[0.0, 2.0]], [[1.0, 3.0]], [[4.0, 6.0]], [[5.0, 7.0]]]
    """

    def __init__(self, image_shape: Sequence[int], *, factor: int = 2) -> None:
        who = type(self).__name__
        channels, height, width = shape = _checks.check_image_shape(who, image_shape)
        factor = _checks.check_count(who, "factor", factor)
        if height % factor or width % factor:
            raise _checks.refusal(
                ShapeError,
                who,
                expected=f"a height and a width that factor={factor} divides",
                got=f"{height} x {width}",
                advice="Pad or crop the image, or pass another factor.",
            )
        places = torch.arange(math.prod(shape)).view(
            channels, height // factor, factor, width // factor, factor
        )
        super().__init__(places.permute(0, 2, 4, 1, 3).flatten())
        self.image_shape, self.factor = shape, factor

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """The shape ``(C f^2, H / f, W / f)`` of ``y``."""
        channels, height, width = self.image_shape
        return channels * self.factor**2, height // self.factor, width // self.factor

    def extra_repr(self) -> str:
        """Name the sizes in the module's representation."""
        return f"image_shape={self.image_shape}, factor={self.factor}"
