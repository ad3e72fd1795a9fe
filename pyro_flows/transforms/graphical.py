"""Transforms whose coordinates follow those that a graph gives them, and no others."""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_flows import _checks
from pyro_flows.errors import DomainError
from pyro_flows.numerics import regression, soft_bound, widen
from pyro_flows.transforms.base import FlowTransform


class Node(NamedTuple):
    """Coordinates that move together, once for each of ``N`` members alike.

    Attributes:
        own: The coordinates of each member, of shape ``(N, M)``, integers.
        parents: Those of earlier nodes that each member follows, of shape ``(N, P)``, integers.
    """

    own: Tensor
    parents: Tensor


class GraphicalAutoregressive(FlowTransform):
    r"""Affine maps whose scales and shifts follow the parents in a directed graph.

    .. math:: y_n = m(y_{\mathrm{pa}(n)}) + e^{s(y_{\mathrm{pa}(n)})} \odot L_n\, x_n,
        \qquad \log |\det J| = \sum_n \mathbf{1}^\top s + \sum_n \log |\det L_n|

    The members of a node are moved at once, and do not see one another; :math:`L_n` is
    lower-triangular; :math:`m` and :math:`s` are linear in the parents, with a layer of softplus
    units beside, and zero at the start. Time and memory grow with the number of edges, and no
    faster. The inverse computes all nodes from ``y``; the forward direction goes from parents to
    children. Where the graph is that of a posterior, scales and effects below them are centred or
    non-centred by what :math:`s` learns.

    Args:
        nodes: The nodes, parents before children; every coordinate belongs to one.
        num_hidden: Number of hidden units of each member.
        log_scale_bound: Largest :math:`|s_i|`; approached smoothly.
        dense_limit: Members of more coordinates have a diagonal :math:`L_n`.

    Raises:
        DomainError: A coordinate is in no node or in two, or a parent is not of an earlier node.

    Reference:
        Wehenkel & Louppe (2021), *Graphical normalizing flows*, equation 8; Webb et al. (2018),
        *Faithful inversion of generative models for effective amortized inference*.

    Example:
        A scale, and two effects that follow it:

        >>> import torch
        >>> nothing = torch.zeros(1, 0, dtype=torch.long)
        >>> scale = Node(torch.tensor([[0]]), nothing)
        >>> effects = Node(torch.tensor([[1], [2]]), torch.tensor([[0], [0]]))
        >>> transform = GraphicalAutoregressive([scale, effects])
        >>> transform(torch.tensor([1.0, 2.0, 3.0])).tolist()
        [1.0, 2.0, 3.0]
    """

    order: Tensor
    places: Tensor

    def __init__(
        self,
        nodes: Sequence[Node],
        *,
        num_hidden: int = 16,
        log_scale_bound: float = 3.0,
        dense_limit: int = 500,
    ) -> None:
        who = type(self).__name__
        _checks.check_count(who, "num_hidden", num_hidden, least=0)
        bound = _checks.check_positive(who, "log_scale_bound", log_scale_bound)
        order = [i for node in nodes for i in node.own.flatten().tolist()]
        _checks.check_permutation(who, order)
        super().__init__(len(order))
        self.register_buffer("order", torch.tensor(order))
        self.register_buffer("places", self.order.argsort())
        earlier: set[int] = set()
        for number, node in enumerate(nodes):
            _check_parents(who, node, number, earlier)
            earlier.update(node.own.flatten().tolist())
        self.parts = nn.ModuleList(
            _Members(node, self.places[node.parents], (num_hidden, dense_limit), bound)
            for node in nodes
        )

    def start_from(self, scale_tril: Tensor) -> None:
        r"""Let the transform make :math:`N(0, I)` the Gaussian of a covariance, as far as it can.

        Each member gets its regression on its parents, which is all of the Gaussian where the
        graph has all of its dependencies.

        Args:
            scale_tril: Cholesky factor of the covariance, of shape ``(D, D)``.
        """
        covariance = scale_tril.double() @ scale_tril.double().T
        ordered = covariance[self.order][:, self.order]
        stop = 0
        for part in self._parts:
            own = torch.arange(stop, stop + part.size).reshape(part.shape)
            stop += part.size
            part.start_from(*regression(ordered, own, part.parents_of_each))

    @property
    def _parts(self) -> list["_Members"]:
        return [cast(_Members, part) for part in self.parts]

    def _forward_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        xs = x.index_select(-1, self.order).split([part.size for part in self._parts], -1)
        y, ladjs = x[..., :0], []
        for part, own in zip(self._parts, xs, strict=True):
            moved, ladj = part.forward_and_ladj(own, y)
            y = torch.cat([y, moved], -1)
            ladjs.append(ladj)
        return y.index_select(-1, self.places), torch.stack(ladjs).sum(0)

    def _inverse_and_ladj(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        ordered = y.index_select(-1, self.order)
        ys = ordered.split([part.size for part in self._parts], -1)
        pairs = zip(self._parts, ys, strict=True)
        xs, ladjs = zip(*(part.inverse_and_ladj(own, ordered) for part, own in pairs), strict=True)
        return torch.cat(xs, -1).index_select(-1, self.places), torch.stack(ladjs).sum(0)

    def extra_repr(self) -> str:
        """Name the sizes in the module's representation."""
        return f"{super().extra_repr()}, nodes={len(self.parts)}"


def _check_parents(who: str, node: Node, number: int, earlier: set[int]) -> None:
    late = set(node.parents.flatten().tolist()) - earlier
    if late or len(node.parents) != len(node.own):
        raise _checks.refusal(
            DomainError,
            who,
            expected=f"node {number} to have, for each of its {len(node.own)} members, parents in "
            "the nodes before it",
            got=f"parents {sorted(late)} of others" if late else f"{len(node.parents)} rows",
            advice="Put the nodes in an order in which parents come first.",
        )


class _Members(nn.Module):
    """The members of a node, by what they follow among the coordinates before them."""

    parents: Tensor

    def __init__(
        self, node: Node, parents: Tensor, sizes: tuple[int, int], log_scale_bound: float
    ) -> None:
        super().__init__()
        num_hidden, dense_limit = sizes
        self.shape, self.log_scale_bound = node.own.shape, log_scale_bound
        count, length = self.shape
        # Parents that all members share are looked up once.
        is_shared = bool((parents == parents[:1]).all())
        self.register_buffer("parents", parents[0] if is_shared else parents)
        self.log_diagonal = nn.Parameter(torch.zeros(count, length))
        self.below: nn.Parameter | None = None
        if 1 < length <= dense_limit:
            self.below = nn.Parameter(torch.zeros(count, length, length))
        follows = parents.shape[1]
        self.slope = self.inward = self.bias = self.outward = None
        if follows:
            self.slope = nn.Parameter(torch.zeros(count, follows, 2 * length))
        if follows and num_hidden:
            inward = torch.randn(count, follows, num_hidden) / follows**0.5
            self.inward = nn.Parameter(inward)
            self.bias = nn.Parameter(torch.zeros(count, num_hidden))
            self.outward = nn.Parameter(torch.zeros(count, num_hidden, 2 * length))

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return self.shape.numel()

    @property
    def parents_of_each(self) -> Tensor:
        """The parents of each member, of shape ``(N, P)``."""
        return self.parents.expand(self.shape[0], -1)

    @torch.no_grad()
    def start_from(self, slope: Tensor, scale_tril: Tensor) -> None:
        diagonal = scale_tril.diagonal(dim1=-2, dim2=-1)
        if self.below is None:
            diagonal = scale_tril.square().sum(-1).sqrt()
        else:
            self.below.copy_(scale_tril.tril(-1))
        self.log_diagonal.copy_(diagonal.log())
        if self.slope is not None:
            self.slope[..., : self.shape[1]].copy_(slope.mT)

    def _moves(self, before: Tensor) -> tuple[Tensor | float, Tensor | None]:
        """Return shift and log-scale, each of shape ``(*, N, M)``."""
        if self.slope is None:
            return 0.0, None
        picked = before.index_select(-1, self.parents.flatten())
        equation = "...p,npk->...nk"
        if self.parents.dim() == 2:
            picked = picked.unflatten(-1, self.parents.shape)
            equation = "...np,npk->...nk"
        params = torch.einsum(equation, picked, self.slope)
        if self.inward is not None and self.bias is not None:
            # An effect's log-scale is that of its prior at one end and the data's at the other:
            # softplus units bend from one line to another.
            bent = softplus(torch.einsum(equation, picked, self.inward) + self.bias)
            params = params + torch.einsum("...nh,nhk->...nk", bent, self.outward)
        shift, raw = params.chunk(2, -1)
        return shift, soft_bound(raw, self.log_scale_bound)

    def _ladj(self, log_scale: Tensor | None, like: Tensor) -> Tensor:
        ladj = widen(self.log_diagonal).sum().expand(like.shape[:-1])
        return ladj if log_scale is None else ladj + widen(log_scale).sum((-2, -1))

    def _mixed(self, x: Tensor) -> Tensor:
        scaled = self.log_diagonal.exp() * x
        if self.below is None:
            return scaled
        return scaled + torch.einsum("nij,...nj->...ni", self.below.tril(-1), x)

    def _unmixed(self, y: Tensor) -> Tensor:
        if self.below is None:
            return torch.exp(-self.log_diagonal) * y
        factor = self.below.tril(-1) + self.log_diagonal.exp().diag_embed()
        solved = torch.linalg.solve_triangular(widen(factor), widen(y[..., None]), upper=False)
        return solved[..., 0].to(y.dtype)

    def forward_and_ladj(self, own: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._moves(before)
        y = self._mixed(own.unflatten(-1, self.shape))
        if log_scale is not None:
            y = shift + log_scale.exp() * y
        return y.flatten(-2), self._ladj(log_scale, own)

    def inverse_and_ladj(self, own: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._moves(before)
        y = own.unflatten(-1, self.shape)
        if log_scale is not None:
            y = (y - shift) * torch.exp(-log_scale)
        return self._unmixed(y).flatten(-2), -self._ladj(log_scale, own)
