"""Transforms that leave some coordinates alone, so that a flow may let them stop on the way."""

from collections.abc import Iterable

import torch
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.errors import DomainError, ShapeError
from pyro_flows.transforms.base import FlowTransform, Push, Run
from pyro_flows.transforms.compose import Compose, as_transforms, check_real, check_transform


class Partial(FlowTransform):
    r"""Apply a transform to the first coordinates, and keep the others.

    .. math:: y_{:d} = f(x_{:d}), \qquad y_{d:} = x_{d:}

    Args:
        transform: The transform :math:`f`, of :math:`d` coordinates.
        input_dim: Number of all coordinates, at least :math:`d`.

    Raises:
        DomainError: ``transform`` is not a :class:`FlowTransform` of real vectors, or
            ``input_dim`` is not a positive integer.
        ShapeError: ``input_dim`` is less than that of ``transform``.

    Example:
        >>> import torch
        >>> from pyro_flows.transforms import Permute
        >>> Partial(Permute.reversal(2), 4)(torch.arange(4.0)).tolist()
        [1.0, 0.0, 2.0, 3.0]
    """

    def __init__(self, transform: FlowTransform, input_dim: int) -> None:
        check_transform(type(self).__name__, transform)
        check_real(type(self).__name__, transform)
        super().__init__(input_dim, context_dim=transform.context_dim)
        if self.input_dim < transform.input_dim:
            raise _checks.refusal(
                ShapeError,
                self._name,
                expected=f"an input_dim of at least {transform.input_dim}, that of the transform",
                got=f"{input_dim}",
            )
        self.transform = transform
        self.inverse_kind = transform.inverse_kind  # type: ignore[misc]

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the coordinates that the transform moves, and the others."""
        moved = self.transform.input_dim
        return x[..., :moved], x[..., moved:]

    @staticmethod
    def join(moved: Tensor, kept: Tensor) -> Tensor:
        """Put them together again; a context may have given the moved ones more batch axes."""
        return torch.cat([moved, kept.expand(*moved.shape[:-1], -1)], -1)

    def _forward_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._forward_and_push(x, context)[:2]

    def _inverse_and_ladj(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._inverse_and_push(y, context)[:2]

    def _forward_and_push(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Push]:
        return self._run(self.transform._forward_and_push, x, context)

    def _inverse_and_push(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Push]:
        return self._run(self.transform._inverse_and_push, y, context)

    def _run(self, run: Run, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Push]:
        moved, kept = self.split(x)
        moved, ladj, push = run(moved, context)

        def push_moved(score: Tensor) -> Tensor:
            by_moved, by_kept = self.split(score)
            return self.join(push(by_moved), by_kept)

        return self.join(moved, kept), ladj, push_moved


class MultiScale(Compose):
    r"""Chain levels of growing size: each maps the coordinates so far, and some new ones.

    A flow maps from the base to the data, so the levels are given in that order: the first acts on
    the first :math:`d_1` coordinates of the base, the second on the first :math:`d_2 \ge d_1`, and
    the last on all of them. Seen from the data, in the inverse direction, the last level acts
    first, on all coordinates, and all but the first :math:`d_{n-1}` of its results stop there:
    they go to the base as they are.

    In an image in C-order the first coordinates are the first channels. A level of the usual
    architecture is ``Compose([..., Inverse(Squeeze(image_shape))])``, whose steps see the squeezed
    image, and the level before it has half of its coordinates.

    Args:
        levels: Transforms, of the same or a growing ``input_dim``.

    Raises:
        DomainError: There are no levels, or one is not a :class:`FlowTransform`.
        ShapeError: A level is smaller than the one before, or the levels differ in a
            ``context_dim`` above zero.

    Reference:
        Dinh, Sohl-Dickstein & Bengio (2017), *Density estimation using Real NVP*, section 3.6;
        Kingma & Dhariwal (2018), *Glow: Generative flow with invertible 1x1 convolutions*,
        figure 2b.

    Example:
        >>> import torch
        >>> from pyro_flows.transforms import AffineCoupling
        >>> transform = MultiScale([AffineCoupling(2), AffineCoupling(4), AffineCoupling(8)])
        >>> y, ladj = transform.forward_and_ladj(torch.randn(10, 8))
        >>> y.shape, ladj.shape
        (torch.Size([10, 8]), torch.Size([10]))
    """

    def __init__(self, levels: Iterable[FlowTransform]) -> None:
        who = type(self).__name__
        levels = as_transforms(who, levels)
        if not levels:
            raise _checks.refusal(
                DomainError, who, expected="at least one level", got="an empty list"
            )
        for level in levels:
            check_transform(who, level)
        sizes = [level.input_dim for level in levels]
        if sizes != sorted(sizes):
            raise _checks.refusal(
                ShapeError,
                who,
                expected="levels of a growing input_dim",
                got=f"{sizes}",
                advice="Order them from the base to the data.",
            )
        whole = sizes[-1]
        super().__init__(
            level if level.input_dim == whole else Partial(level, whole) for level in levels
        )
