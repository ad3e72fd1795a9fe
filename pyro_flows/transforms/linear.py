"""Linear transforms of full rank, by their factors: LU, QR, and orthogonal alone."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_flows import _checks
from pyro_flows.errors import DomainError
from pyro_flows.nn.orthogonal import householder_matrix
from pyro_flows.numerics import solve_rows, widen, zero_ladj
from pyro_flows.transforms.affine import MovedAffine
from pyro_flows.transforms.base import Push, PushingTransform


def _unit_triangle(raw: Tensor, *, upper: bool) -> Tensor:
    """Return a triangle of ``raw``, with ones on the diagonal."""
    eye = torch.eye(raw.shape[-1], dtype=raw.dtype, device=raw.device)
    return (raw.triu(1) if upper else raw.tril(-1)) + eye


class _Factored(MovedAffine):
    """A map ``y = A U (g * x) + m``: ``U`` unit upper-triangular, ``A`` written by a subclass.

    Forwards, the factors are multiplied first, as there are more points than coordinates.

    The factor ``A`` keeps volumes, so that the log-determinant is that of the scales ``g`` alone.
    """

    upper: Tensor
    signs: Tensor

    def __init__(self, input_dim: int, *, context_dim: int, hidden_dims: Sequence[int]) -> None:
        super().__init__(input_dim, context_dim=context_dim)
        self._own_moves(torch.zeros(self.input_dim), hidden_dims)
        self._own_triangle("upper")
        self.register_buffer("signs", torch.ones(self.input_dim))

    def _own_triangle(self, name: str) -> None:
        triangle = torch.zeros(self.input_dim, self.input_dim)
        # With one coordinate there is nothing off the diagonal to learn.
        if self.input_dim > 1:
            self.register_parameter(name, nn.Parameter(triangle))
        else:
            self.register_buffer(name, triangle)

    def _apply_factor(self, matrix: Tensor) -> Tensor:
        """Return ``A`` times a matrix."""
        raise NotImplementedError

    def _undo_factor(self, rows: Tensor) -> Tensor:
        """Return the inverse of ``A`` times each row."""
        raise NotImplementedError

    def _undo_transposed(self, rows: Tensor) -> Tensor:
        """Return the inverse of the transposed ``A`` times each row."""
        raise NotImplementedError

    def _forward_and_push(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Push]:
        loc, log_scale = self._loc_and_log_scale(context)
        scale = self.signs * log_scale.exp()
        upper = _unit_triangle(self.upper, upper=True)
        if scale.dim() == 1:
            y = functional.linear(x, self._apply_factor(upper * scale), loc)
        else:
            y = functional.linear(x * scale, self._apply_factor(upper)) + loc

        def push(score: Tensor) -> Tensor:
            return self._undo_transposed(solve_rows(upper.T, score / scale))

        return y, widen(log_scale).sum(-1).expand(y.shape[:-1]), push

    def _inverse_and_ladj(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        loc, log_scale = self._loc_and_log_scale(context)
        upper = _unit_triangle(self.upper, upper=True)
        scaled = solve_rows(upper, self._undo_factor(y - loc), upper=True)
        x = scaled * (self.signs * torch.exp(-log_scale))
        return x, -widen(log_scale).sum(-1).expand(x.shape[:-1])


class LULinear(_Factored):
    r"""Map the coordinates by an invertible matrix, written by its LU factors, and shift them.

    .. math:: y = P L U x + m, \qquad \log |\det J| = \sum_i s_i, \qquad |U_{ii}| = e^{s_i}

    :math:`P` is a fixed permutation, :math:`L` unit lower-triangular, and :math:`U`
    upper-triangular. Its diagonal cannot vanish, and the inverse is two triangular solves. The
    start is the permutation, or a given matrix, which then fixes :math:`P` and the signs of the
    diagonal. With a context, a network adds to :math:`m` and :math:`s`.

    Args:
        input_dim: Number of coordinates.
        permutation: :math:`\pi` of :math:`(P x)_i = x_{\pi(i)}`, each of ``0 ... D-1`` once; the
            identity if not given.
        matrix: The matrix :math:`P L U` to start at, of shape ``(input_dim, input_dim)``, instead
            of a permutation.
        context_dim: Number of entries of the context; zero for none.
        hidden_dims: Widths of the hidden layers of the context's network.

    Raises:
        DomainError: A size is not possible, ``permutation`` is no permutation, ``matrix`` is
            singular or not finite, or both are given.
        ShapeError: ``matrix`` has the wrong shape.

    Reference:
        Kingma & Dhariwal (2018), *Glow: Generative flow with invertible 1x1 convolutions*,
        equations 10-11.

    Example:
        >>> import torch
        >>> transform = LULinear(2, matrix=torch.tensor([[0.0, 1.0], [4.0, 2.0]]))
        >>> transform(torch.ones(2)).tolist()
        [1.0, 6.0]
    """

    lower: Tensor
    permutation: Tensor
    inverse_permutation: Tensor

    def __init__(
        self,
        input_dim: int,
        *,
        permutation: Sequence[int] | Tensor | None = None,
        matrix: Tensor | None = None,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__(input_dim, context_dim=context_dim, hidden_dims=hidden_dims)
        self._own_triangle("lower")
        order = self._as_order(permutation)
        if matrix is not None:
            if permutation is not None:
                raise _checks.refusal(
                    DomainError,
                    self._name,
                    expected="a permutation or a matrix",
                    got="both",
                    advice="Leave the permutation out: the matrix brings its own.",
                )
            order = self._start_at(matrix)
        self.register_buffer("permutation", order)
        self.register_buffer("inverse_permutation", order.argsort())

    def _as_order(self, permutation: Sequence[int] | Tensor | None) -> Tensor:
        if permutation is None:
            return torch.arange(self.input_dim)
        size = self.input_dim
        return torch.tensor(_checks.check_permutation(self._name, permutation, size=size))

    def _start_at(self, matrix: Tensor) -> Tensor:
        """Take the factors of ``matrix``; return the order of its permutation."""
        size = (self.input_dim, self.input_dim)
        matrix = _checks.check_buffer(self._name, "matrix", matrix, size)
        swap, lower, upper = torch.linalg.lu(matrix.double())
        diagonal = upper.diagonal()
        least, most = diagonal.abs().aminmax()
        if not least > self.input_dim * torch.finfo(matrix.dtype).eps * most:
            raise _checks.refusal(
                DomainError,
                self._name,
                expected="matrix to be invertible",
                got=f"pivots between {float(least):.3g} and {float(most):.3g}",
                advice="Leave it out to start at the identity.",
            )
        self.to(matrix)
        with torch.no_grad():
            self.log_scale.copy_(diagonal.abs().log())
            self.signs.copy_(diagonal.sign())
            self.upper.copy_((upper / diagonal).triu(1))
            self.lower.copy_(lower.tril(-1))
        return swap.argmax(-1)

    def _apply_factor(self, matrix: Tensor) -> Tensor:
        product = torch.addmm(matrix, self.lower.tril(-1), matrix)
        return product.index_select(0, self.permutation)

    def _undo_factor(self, rows: Tensor) -> Tensor:
        rows = rows.index_select(-1, self.inverse_permutation)
        return solve_rows(_unit_triangle(self.lower, upper=False), rows)

    def _undo_transposed(self, rows: Tensor) -> Tensor:
        rows = solve_rows(_unit_triangle(self.lower, upper=False).T, rows, upper=True)
        return rows.index_select(-1, self.permutation)


class _Reflections(nn.Module):
    """A product of Householder reflections, whose vectors start in equal pairs."""

    vectors: Tensor

    def __init__(self, who: str, input_dim: int, num_reflections: int | None) -> None:
        super().__init__()
        if num_reflections is None:
            num_reflections = input_dim - input_dim % 2
        else:
            _checks.check_count(who, "num_reflections", num_reflections)
        # Two equal reflections cancel, and yet their gradients differ: they are opposite.
        pairs = torch.randn((num_reflections + 1) // 2, input_dim)
        vectors = pairs.repeat_interleave(2, 0)[:num_reflections]
        # A line has no rotations, and so nothing to learn.
        if input_dim > 1:
            self.vectors = nn.Parameter(vectors)
        else:
            self.register_buffer("vectors", vectors)

    def forward(self) -> Tensor:
        """Return the matrix, of shape ``(input_dim, input_dim)``."""
        return householder_matrix(self.vectors)


class QRLinear(_Factored):
    r"""Map the coordinates by an invertible matrix, written by its QR factors, and shift them.

    .. math:: y = Q R x + m, \qquad \log |\det J| = \sum_i s_i, \qquad R_{ii} = e^{s_i}

    :math:`Q` is a product of Householder reflections, :math:`R` upper-triangular with a positive
    diagonal. The condition of the map is that of :math:`R` alone. The reflections start in pairs
    that cancel, so that the map starts at the identity. With a context, a network adds to
    :math:`m` and :math:`s`.

    Args:
        input_dim: Number of coordinates.
        num_reflections: Number of reflections; if not given, ``input_dim``, or one less if that
            is odd, which reaches every rotation. With an odd number, the start is a reflection.
        context_dim: Number of entries of the context; zero for none.
        hidden_dims: Widths of the hidden layers of the context's network.

    Raises:
        DomainError: A size is not a positive integer.

    Reference:
        Hoogeboom, van den Berg & Welling (2019), *Emerging convolutions for generative normalizing
        flows*; Tomczak & Welling (2016), *Improving variational auto-encoders using Householder
        flow*.

    Example:
        >>> import torch
        >>> transform = QRLinear(3)
        >>> y, ladj = transform.forward_and_ladj(torch.ones(5, 3))
        >>> torch.allclose(y, torch.ones(5, 3), atol=1e-5), ladj.tolist()
        (True, [0.0, 0.0, 0.0, 0.0, 0.0])
    """

    def __init__(
        self,
        input_dim: int,
        *,
        num_reflections: int | None = None,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__(input_dim, context_dim=context_dim, hidden_dims=hidden_dims)
        self.rotation = _Reflections(self._name, self.input_dim, num_reflections)

    def _apply_factor(self, matrix: Tensor) -> Tensor:
        return self.rotation() @ matrix

    def _undo_factor(self, rows: Tensor) -> Tensor:
        return rows @ self.rotation()

    def _undo_transposed(self, rows: Tensor) -> Tensor:
        return functional.linear(rows, self.rotation())


class Orthogonal(PushingTransform):
    r"""Rotate the coordinates, by a product of Householder reflections.

    .. math:: y = H_1 H_2 \cdots H_K x, \qquad H_k = I - 2 \frac{v_k v_k^\top}{\|v_k\|^2}, \qquad
        \log |\det J| = 0

    The reflections start in pairs that cancel, so that the map starts at the identity. With one
    coordinate there are no rotations, and the map stays the identity.

    Args:
        input_dim: Number of coordinates.
        num_reflections: :math:`K`; if not given, ``input_dim``, or one less if that is odd, which
            reaches every rotation. With an odd number, the start is a reflection.

    Raises:
        DomainError: A size is not a positive integer.

    Reference:
        Tomczak & Welling (2016), *Improving variational auto-encoders using Householder flow*.

    Example:
        >>> import torch
        >>> transform = Orthogonal(3, num_reflections=1)
        >>> transform(torch.tensor([3.0, 0.0, 4.0])).norm()
        tensor(5.0000, grad_fn=<...>)
    """

    def __init__(self, input_dim: int, *, num_reflections: int | None = None) -> None:
        super().__init__(input_dim)
        self.rotation = _Reflections(self._name, self.input_dim, num_reflections)

    def _forward_and_push(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Push]:
        rotation = self.rotation()
        y = functional.linear(x, rotation)
        return y, zero_ladj(x), lambda score: functional.linear(score, rotation)

    def _inverse_and_ladj(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return y @ self.rotation(), zero_ladj(y)
