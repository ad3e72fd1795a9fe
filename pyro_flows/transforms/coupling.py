"""Coupling transforms: some coordinates drive a map of the others."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from pyro_flows import _checks
from pyro_flows.errors import ShapeError
from pyro_flows.nn import DenseNet
from pyro_flows.numerics import expand_batch, linearise, widen
from pyro_flows.transforms.base import Push, parameters_held
from pyro_flows.transforms.univariate import (
    Affine,
    Shift,
    Univariate,
    UnivariateTransform,
)

Mask = Sequence[bool] | Tensor


class CouplingOptions(TypedDict, total=False):
    """What every coupling takes; see :class:`Coupling`."""

    mask: Mask | None
    conditioner: nn.Module | None
    hidden_dims: Sequence[int]
    context_dim: int
    activation: str


class Coupling(UnivariateTransform):
    r"""Map some coordinates with parameters that are functions of the others.

    .. math:: y_A = x_A, \quad y_j = f(x_j;\, p_j(x_A, c)) \text{ for } j \in B, \qquad
        \log |\det J| = \sum_{j \in B} \log f'(x_j;\, p_j)

    Both directions cost one pass of the conditioner.

    Args:
        univariate: The map :math:`f`.
        input_dim: Number of coordinates.
        mask: True for the coordinates :math:`A` to keep, of shape ``(input_dim,)``; the first half
            if not given. Where none is kept, the parameters depend on the context alone.
        conditioner: A network that is called with what is kept, of shape ``(*, |A|)`` (for angles
            their cosines and sines, of shape ``(*, 2 |A|)``), and the context, if there is one,
            and returns the parameters of shape ``(*, K |B|)``, the ones of a kind side by side.
            The identity is where they are zero. A fully connected one of the following sizes if
            not given.
        hidden_dims: Widths of the conditioner's hidden layers.
        context_dim: Number of entries of the context; zero for none.
        activation: Name of the conditioner's activation.

    Raises:
        DomainError: A size, the mask, the map or the activation is not possible.
        ShapeError: In use: the conditioner's output has the wrong size.

    Reference:
        Dinh, Krueger & Bengio (2015), *NICE: Non-linear independent components estimation*,
        section 3.2.

    Example:
        >>> import torch
        >>> from pyro_flows.transforms import Affine, Coupling
        >>> transform = Coupling(Affine(), 4, mask=[True, False, True, False])
        >>> transform(torch.zeros(10, 4)).shape
        torch.Size([10, 4])
    """

    order: Tensor
    inverse_order: Tensor

    def __init__(
        self,
        univariate: Univariate,
        input_dim: int,
        *,
        mask: Mask | None = None,
        conditioner: nn.Module | None = None,
        hidden_dims: Sequence[int] = (64, 64),
        context_dim: int = 0,
        activation: str = "silu",
    ) -> None:
        super().__init__(univariate, input_dim, context_dim=context_dim)
        keep = self._as_mask(mask)
        order = torch.cat([keep.nonzero().flatten(), (~keep).nonzero().flatten()])
        self.num_kept = int(keep.sum())
        self.register_buffer("order", order)
        self.register_buffer("inverse_order", order.argsort())
        self._note_order()
        if conditioner is None:
            conditioner = DenseNet(
                univariate.num_features * self.num_kept,
                univariate.num_params * (input_dim - self.num_kept),
                hidden_dims=hidden_dims,
                context_dim=context_dim,
                activation=activation,
            )
        self.conditioner = _checks.check_module(self._name, "conditioner", conditioner)

    def _as_mask(self, mask: Mask | None) -> Tensor:
        if mask is None:
            return torch.arange(self.input_dim) < self.input_dim // 2
        return torch.tensor(_checks.check_mask(self._name, mask, self.input_dim))

    def _params_and_pull(
        self, kept: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return the parameters, of shape ``(*, K, |B|)``, and what sends their share to ``A``."""
        seen = self.univariate.features(kept)
        if isinstance(self.conditioner, DenseNet):
            flat, pull = self.conditioner.forward_and_pull(seen, context)
        else:
            flat = self._condition(seen, context)
            pull = partial(self._pull_by_autodiff, seen, context)
        params = self._as_params(flat)

        def pull_back(by_params: Tensor) -> Tensor:
            by_seen = pull(by_params.flatten(-2))
            if seen is kept:
                return by_seen
            return linearise(lambda x: (self.univariate.features(x),), kept)[1](by_seen)[0]

        return params, pull_back

    def _condition(self, seen: Tensor, context: Tensor | None) -> Tensor:
        return self.conditioner(seen) if context is None else self.conditioner(seen, context)

    def _pull_by_autodiff(self, seen: Tensor, context: Tensor | None, by_flat: Tensor) -> Tensor:
        held = None if context is None else context.detach()
        with parameters_held(self.conditioner):
            return linearise(lambda x: (self._condition(x, held),), seen)[1](by_flat)[0]

    def _as_params(self, flat: Tensor) -> Tensor:
        sizes = self.univariate.num_params, self.input_dim - self.num_kept
        if not isinstance(flat, Tensor) or flat.shape[-1] != sizes[0] * sizes[1]:
            raise _checks.refusal(
                ShapeError,
                self._name,
                expected=f"{sizes[0]} parameters for each of {sizes[1]} coordinates, "
                f"of shape (*, {sizes[0] * sizes[1]}), from the conditioner",
                got=_checks.describe(flat),
            )
        return flat.unflatten(-1, sizes)

    def _forward_and_push(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Push]:
        kept, moved = self._split(x)
        params, pull = self._params_and_pull(kept, context)
        moved, ladj, tangent = self.univariate.forward_and_tangent(moved, params)

        def push(score: Tensor) -> Tensor:
            by_kept, by_moved = self._split(score)
            by_moved, by_params = tangent.push(by_moved)
            return self._join(by_kept - pull(by_params) if self.num_kept else by_kept, by_moved)

        return *self._joined(kept, moved, ladj), push

    def _inverse_and_push(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Push]:
        kept, moved = self._split(y)
        params, pull = self._params_and_pull(kept, context)
        moved, ladj, tangent = self.univariate.inverse_and_tangent(moved, params)

        def push(score: Tensor) -> Tensor:
            by_kept, by_moved = self._split(score)
            by_moved, by_params = tangent.pull(by_moved)
            return self._join(by_kept + pull(by_params) if self.num_kept else by_kept, by_moved)

        return *self._joined(kept, moved, ladj), push

    def _note_order(self) -> None:
        """Note whether the kept coordinates are the first or the last: slices are cheap."""
        first = list(range(self.input_dim))
        last = first[self.input_dim - self.num_kept :] + first[: self.input_dim - self.num_kept]
        order = self.order.tolist()
        self._keeps = "first" if order == first else "last" if order == last else "scattered"
        self._noted = id(self.order)

    @property
    def _kept(self) -> str:
        # A buffer that was put in its place, as torch.func.functional_call does, goes unnoted.
        return self._keeps if id(self.order) == self._noted else "scattered"

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._note_order()

    def _apply(self, *args: Any, **kwargs: Any) -> "Coupling":
        super()._apply(*args, **kwargs)
        self._noted = id(self.order)
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._noted = id(self.order)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        where, sizes = self._kept, (self.num_kept, self.input_dim - self.num_kept)
        if where == "scattered":
            x = x.index_select(-1, self.order)
        first, second = x.split(sizes[::-1] if where == "last" else sizes, -1)
        return (second, first) if where == "last" else (first, second)

    def _join(self, kept: Tensor, moved: Tensor) -> Tensor:
        where = self._kept
        if kept.shape[:-1] != moved.shape[:-1]:
            kept = kept.expand(*moved.shape[:-1], -1)
        joined = torch.cat([moved, kept] if where == "last" else [kept, moved], -1)
        return joined.index_select(-1, self.inverse_order) if where == "scattered" else joined

    def _joined(self, kept: Tensor, moved: Tensor, ladj: Tensor) -> tuple[Tensor, Tensor]:
        joined = self._join(kept, moved)
        return joined, expand_batch(widen(ladj).sum(-1), joined.shape[:-1])


class AffineCoupling(Coupling):
    r"""Scale and shift some coordinates by functions of the others.

    .. math:: y_A = x_A, \quad y_B = x_B \odot \exp(s(x_A, c)) + t(x_A, c), \qquad
        \log |\det J| = \sum s(x_A, c)

    Args:
        input_dim: Number of coordinates.
        log_scale_bound: Largest :math:`|s|`; approached smoothly.
        **options: Those of :class:`Coupling`.

    Raises:
        DomainError: A size, a bound, the mask or the activation is not possible.

    Reference:
        Dinh, Sohl-Dickstein & Bengio (2017), *Density estimation using Real NVP*, equations 4-8.

    Example:
        >>> import torch
        >>> transform = AffineCoupling(4, hidden_dims=(16,))
        >>> y, ladj = transform.forward_and_ladj(torch.randn(10, 4))
        >>> y.shape, ladj.shape
        (torch.Size([10, 4]), torch.Size([10]))
    """

    def __init__(
        self,
        input_dim: int,
        *,
        log_scale_bound: float = 2.0,
        **options: Unpack[CouplingOptions],
    ) -> None:
        super().__init__(Affine(log_scale_bound), input_dim, **options)


class AdditiveCoupling(Coupling):
    r"""Shift some coordinates by a function of the others; the volume is preserved.

    .. math:: y_A = x_A, \quad y_B = x_B + t(x_A, c), \qquad \log |\det J| = 0

    Args:
        input_dim: Number of coordinates.
        **options: Those of :class:`Coupling`.

    Raises:
        DomainError: A size, the mask or the activation is not possible.

    Reference:
        Dinh, Krueger & Bengio (2015), *NICE: Non-linear independent components estimation*,
        section 3.2.

    Example:
        >>> import torch
        >>> transform = AdditiveCoupling(4, hidden_dims=(16,))
        >>> transform.log_abs_det_jacobian(torch.ones(4), torch.ones(4))
        tensor(0.)
    """

    def __init__(self, input_dim: int, **options: Unpack[CouplingOptions]) -> None:
        super().__init__(Shift(), input_dim, **options)
