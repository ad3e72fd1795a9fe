"""Transforms made of other transforms."""

from collections.abc import Iterable
from functools import reduce
from itertools import pairwise
from typing import Any, cast

import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from pyro_flows import _checks
from pyro_flows.errors import DomainError, ShapeError
from pyro_flows.transforms.base import FlowTransform, Push, Run
from pyro_flows.transforms.domains import same_constraint


def check_transform(who: str, value: object) -> None:
    """Refuse anything but a :class:`FlowTransform`."""
    if not isinstance(value, FlowTransform):
        raise _checks.refusal(
            DomainError,
            who,
            expected="a FlowTransform",
            got=_checks.describe(value),
            advice="Subclass FlowTransform to bring a transform of your own.",
        )


def as_transforms(who: str, values: Iterable[FlowTransform]) -> list[FlowTransform]:
    """Return a sequence of transforms as a list."""
    if not isinstance(values, Iterable):
        raise _checks.refusal(
            DomainError,
            who,
            expected="a sequence of transforms",
            got=_checks.describe(values),
            advice="Put it into a list.",
        )
    return list(values)


def check_real(who: str, transform: FlowTransform) -> None:
    """Refuse a transform whose domain or codomain is less than all real vectors."""
    for where in (transform.domain, transform.codomain):
        if not same_constraint(where, constraints.real_vector):
            raise _checks.refusal(
                DomainError,
                who,
                expected="a transform of real vectors",
                got=f"{type(transform).__name__} over {where}",
                advice="Transform all coordinates of a bounded kind together.",
            )


class Compose(FlowTransform):
    r"""Chain transforms, the first one acting first: :math:`y = (f_n \circ \dots \circ f_1)(x)`.

    The context goes to every part that takes one; the parts that do agree on its size.

    Args:
        parts: Transforms of one ``input_dim``.

    Raises:
        DomainError: There are no parts, one is not a :class:`FlowTransform`, or one maps to where
            the next is not defined.
        ShapeError: The parts differ in ``input_dim``, or in a ``context_dim`` above zero.

    Example:
        >>> import torch
        >>> from pyro_flows.transforms import AffineCoupling, Compose, Permute
        >>> both = Compose([AffineCoupling(4), Permute.reversal(4)])
        >>> y, ladj = both.forward_and_ladj(torch.randn(10, 4))
        >>> y.shape, ladj.shape
        (torch.Size([10, 4]), torch.Size([10]))
    """

    def __init__(self, parts: Iterable[FlowTransform]) -> None:
        parts = as_transforms(type(self).__name__, parts)
        self._check_parts(parts)
        super().__init__(parts[0].input_dim, context_dim=max(part.context_dim for part in parts))
        self.parts = nn.ModuleList(parts)
        exact = all(part.inverse_kind == "exact" for part in parts)
        self.inverse_kind = "exact" if exact else "numerical"  # type: ignore[misc]

    @classmethod
    def _check_parts(cls, parts: list[FlowTransform]) -> None:
        who = cls.__name__
        if not parts:
            raise _checks.refusal(
                DomainError, who, expected="at least one transform", got="an empty list"
            )
        for part in parts:
            check_transform(who, part)
        for name in ("input_dim", "context_dim"):
            sizes = {getattr(part, name) for part in parts} - {0}
            if len(sizes) > 1:
                raise _checks.refusal(
                    ShapeError, who, expected=f"parts of one {name}", got=f"{sorted(sizes)}"
                )
        for before, after in pairwise(parts):
            if not same_constraint(before.codomain, after.domain):
                raise _checks.refusal(
                    DomainError,
                    who,
                    expected=f"a part over {before.codomain} after {type(before).__name__}",
                    got=f"{type(after).__name__} over {after.domain}",
                )

    @property
    def _ordered(self) -> list[FlowTransform]:
        return cast("list[FlowTransform]", list(self.parts))

    @property
    def domain(self) -> Any:  # type: ignore[override]
        """Where ``x`` lies."""
        return self._ordered[0].domain

    @property
    def codomain(self) -> Any:  # type: ignore[override]
        """Where ``y`` lies."""
        return self._ordered[-1].codomain

    def _forward_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._forward_and_push(x, context)[:2]

    def _inverse_and_ladj(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._inverse_and_push(y, context)[:2]

    def _forward_and_push(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Push]:
        return _chain([(part, part._forward_and_push) for part in self._ordered], x, context)

    def _inverse_and_push(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Push]:
        return _chain([(part, part._inverse_and_push) for part in self._ordered[::-1]], y, context)


def _chain(
    steps: list[tuple[FlowTransform, Run]], point: Tensor, context: Tensor | None
) -> tuple[Tensor, Tensor, Push]:
    """Run one direction of each transform after the other."""
    ladjs, pushes = [], []
    for part, run in steps:
        point, ladj, push = run(point, context if part.context_dim else None)
        ladjs.append(ladj)
        pushes.append(push)

    def push_all(score: Tensor) -> Tensor:
        for push in pushes:
            score = push(score)
        return score

    return point, reduce(torch.add, ladjs), push_all


class Inverse(FlowTransform):
    r"""Run a transform backwards: :math:`y = f^{-1}(x)`.

    Args:
        transform: The transform :math:`f`.

    Raises:
        DomainError: ``transform`` is not a :class:`FlowTransform`.

    Example:
        The masked autoregressive flow is the inverse autoregressive flow, run backwards:

        >>> import torch
        >>> from pyro_flows.transforms import AffineAutoregressive, Inverse
        >>> maf = Inverse(AffineAutoregressive(3))
        >>> maf.inv(torch.zeros(3))
        tensor([0., 0., 0.], grad_fn=<AddBackward0>)
    """

    def __init__(self, transform: FlowTransform) -> None:
        check_transform(type(self).__name__, transform)
        super().__init__(transform.input_dim, context_dim=transform.context_dim)
        self.transform = transform
        self.inverse_kind = transform.inverse_kind  # type: ignore[misc]

    @property
    def domain(self) -> Any:  # type: ignore[override]
        """Where ``x`` lies."""
        return self.transform.codomain

    @property
    def codomain(self) -> Any:  # type: ignore[override]
        """Where ``y`` lies."""
        return self.transform.domain

    def _forward_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.transform._inverse_and_ladj(x, context)

    def _inverse_and_ladj(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.transform._forward_and_ladj(y, context)

    def _forward_and_push(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Push]:
        return self.transform._inverse_and_push(x, context)

    def _inverse_and_push(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Push]:
        return self.transform._forward_and_push(y, context)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        r"""Return :math:`\log |\det \partial y / \partial x|`, from the transform's forward."""
        return -self.transform.log_abs_det_jacobian(y, x)
