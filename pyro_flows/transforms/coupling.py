"""Coupling transforms: some coordinates drive a map of the others."""

from collections.abc import Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from pyro_flows import _checks
from pyro_flows.errors import DomainError, ShapeError
from pyro_flows.nn import DenseNet
from pyro_flows.numerics import widen
from pyro_flows.transforms.base import Root
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
        self.conditioner = self._check_conditioner(conditioner) or DenseNet(
            univariate.num_features * self.num_kept,
            univariate.num_params * (input_dim - self.num_kept),
            hidden_dims=hidden_dims,
            context_dim=context_dim,
            activation=activation,
        )

    def _as_mask(self, mask: Mask | None) -> Tensor:
        if mask is None:
            return torch.arange(self.input_dim) < self.input_dim // 2
        return torch.tensor(_checks.check_mask(self._name, mask, self.input_dim))

    def _check_conditioner(self, value: nn.Module | None) -> nn.Module | None:
        if value is None or isinstance(value, nn.Module):
            return value
        raise _checks.refusal(
            DomainError,
            self._name,
            expected="conditioner to be a torch.nn.Module",
            got=_checks.describe(value),
        )

    def _params(self, kept: Tensor, context: Tensor | None) -> Tensor:
        """Return the parameters, of shape ``(*, K, |B|)``."""
        seen = self.univariate.features(kept)
        flat = self.conditioner(seen) if context is None else self.conditioner(seen, context)
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

    def _forward_and_root(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Root]:
        kept, moved = self._split(x)
        params = self._params(kept, context)
        root = moved.detach() if self.inverse_kind == "numerical" else None
        return *self._join(kept, *self.univariate.forward_and_ladj(moved, params)), root

    def _inverse_from_root(
        self, y: Tensor, context: Tensor | None, root: Root
    ) -> tuple[Tensor, Tensor]:
        kept, moved = self._split(y)
        params = self._params(kept, context)
        return self._join(kept, *self.univariate.inverse_from_root(moved, params, root))

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
        kept = self._kept
        if kept == "last":
            moved, rest = x.tensor_split([self.input_dim - self.num_kept], -1)
            return rest, moved
        if kept == "scattered":
            x = x.index_select(-1, self.order)
        return x[..., : self.num_kept], x[..., self.num_kept :]

    def _join(self, kept: Tensor, moved: Tensor, ladj: Tensor) -> tuple[Tensor, Tensor]:
        where = self._kept
        kept = kept.expand(*moved.shape[:-1], -1)
        joined = torch.cat([moved, kept] if where == "last" else [kept, moved], -1)
        if where == "scattered":
            joined = joined.index_select(-1, self.inverse_order)
        return joined, widen(ladj).sum(-1).expand(joined.shape[:-1])


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
