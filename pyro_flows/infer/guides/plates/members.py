"""What the members of a plate have of their own, and the distribution of their latents."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor, nn

from pyro_flows.distributions import Flow
from pyro_flows.infer.guides.plates.layout import Block
from pyro_flows.transforms.base import parameters_held

# Above this many coordinates of a member their scale is diagonal, and above so many numbers what
# they follow reaches them by the flow alone.
FULL_RANK_LIMIT, SLOPE_LIMIT = 16, 256
_LONGEST_EMBEDDING = 32


class Given(NamedTuple):
    """What the latents of some members are given; all tensors broadcast over the members' axes.

    Attributes:
        context: The flow's, of shape ``(*, C)``.
        shift: Of a draw of the flow, of shape ``(*, L)``.
        log_scale: Likewise.
        loc: Where the members lie, of shape ``(*, L)``.
        scale: Standard deviations of shape ``(*, L)``, or factors of shape ``(*, L, L)``.
        full: Whether the scale is of factors.
    """

    context: Tensor
    shift: Tensor
    log_scale: Tensor
    loc: Tensor
    scale: Tensor
    full: bool

    @property
    def batch_shape(self) -> torch.Size:
        """The common shape of the members' axes."""
        return torch.broadcast_shapes(*(tensor.shape[:-1] for tensor in self[:4]))

    @property
    def ladj(self) -> Tensor:
        """The log-determinant of the affine map."""
        diagonal = self.scale.diagonal(dim1=-2, dim2=-1) if self.full else self.scale
        return (self.log_scale + diagonal.log()).sum(-1)

    def scaled(self, vector: Tensor) -> Tensor:
        """Multiply vectors, of shape ``(*, L)``, by the scale."""
        if self.full:
            return (self.scale * vector[..., None, :]).sum(-1)
        return self.scale * vector

    def unscaled(self, vector: Tensor) -> Tensor:
        """Divide vectors, of shape ``(*, L)``, by the scale."""
        if self.full:
            return torch.linalg.solve_triangular(self.scale, vector[..., None], upper=False)[
                ..., 0
            ]
        return vector / self.scale


class MemberStart(NamedTuple):
    """Where the latents of a plate's members begin.

    Attributes:
        loc: Of shape ``(*sizes, L)``.
        scale: Of shape ``(*sizes, L, L)``, lower-triangular; its diagonal alone may count.
        slope: How ``loc`` follows, in units of ``scale``, of shape ``(*sizes, L, P)``.
        whitened: As for :class:`~pyro_flows.infer.Start`.
    """

    loc: Tensor
    scale: Tensor
    slope: Tensor
    whitened: bool


class Members(nn.Module):
    r"""An affine map of each member, which follows other latents, and an embedding.

    .. math:: z_n = \mu_n + L_n (e^{s_n} \odot x + m_n + B_n p)

    for a draw :math:`x` of the flow that all members share, and what they follow, :math:`p`. The
    location and the scale :math:`\mu_n, L_n` are fixed; :math:`s_n, m_n` start at zero.

    Args:
        start: Where they begin; without members' axes for one map of all.
        embeds: Whether members have embeddings, which begin as where the members lie.
    """

    loc: Tensor
    scale: Tensor
    pooled_loc: Tensor
    pooled_scale: Tensor

    def __init__(self, start: MemberStart, *, embeds: bool) -> None:
        super().__init__()
        size, follows = start.slope.shape[-2:]
        self.sizes = start.loc.shape[:-1]
        diagonal = start.scale.diagonal(dim1=-2, dim2=-1)
        self._full = full = 1 < size <= FULL_RANK_LIMIT
        scale = start.scale if full else diagonal
        log_scale, slope = torch.zeros_like(start.loc), start.slope
        if not start.whitened:
            log_scale, slope = diagonal.log(), start.scale @ slope
            scale = torch.ones_like(diagonal)
            scale = scale.diag_embed() if full else scale
        self.register_buffer("loc", start.loc.clone())
        self.register_buffer("scale", scale.clone())
        self.shift = nn.Parameter(torch.zeros_like(start.loc))
        self.log_scale = nn.Parameter(log_scale.clone())
        self.slope = None
        if 0 < size * follows <= SLOPE_LIMIT:
            self.slope = nn.Parameter(slope.clone())
        pooled_loc, pooled_scale = pooled(start.loc, start.scale)
        self.register_buffer("pooled_loc", pooled_loc)
        self.register_buffer("pooled_scale", pooled_scale)
        self.embedding = nn.Parameter(_embedding(start.loc, diagonal)) if embeds else None

    def standardised(self, z: Tensor) -> Tensor:
        """Return the members' latents relative to where all of them lie."""
        return (z - self.pooled_loc) / self.pooled_scale

    def given(
        self,
        block: Block,
        indices: Sequence[Tensor | None],
        follows: Tensor | None,
        feature: Tensor | None,
        *,
        held: bool = False,
    ) -> Given:
        """Return what the latents of some members are given.

        Args:
            block: The latents.
            indices: The members of each plate; none for all.
            follows: What they follow, of shape ``(*, P)``.
            feature: What an encoder says of them, of shape ``(*, C)``.
            held: Whether everything but ``follows`` has no gradient.
        """
        if held:
            feature = None if feature is None else feature.detach()

        def rows(table: Tensor) -> Tensor:
            table = table.detach() if held else table
            if not self.sizes:
                return table
            for axis, index in enumerate(indices):
                if index is not None:
                    table = table.index_select(axis, index.to(table.device))
            return block.spread(table)

        shift = rows(self.shift)
        if self.slope is not None and follows is not None:
            shift = shift + (rows(self.slope) * follows[..., None, :]).sum(-1)
        own = None if self.embedding is None else rows(self.embedding)
        context = joined([part for part in (follows, own, feature) if part is not None])
        return Given(
            context,
            shift,
            rows(self.log_scale),
            rows(self.loc),
            rows(self.scale),
            full=self._full,
        )


def embedding_dim_of(input_dim: int) -> int:
    """Return the length of the embedding of a member of so many coordinates."""
    return min(2 * input_dim, _LONGEST_EMBEDDING)


def pooled(loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation, of shape ``(L,)``, over draws of all members."""
    variance = scale.square().sum(-1)
    locs, variances = (x.reshape(-1, loc.shape[-1]) for x in (loc, variance))
    mean = locs.mean(0)
    return mean, (variances + (locs - mean).square()).mean(0).sqrt()


def _embedding(loc: Tensor, diagonal: Tensor) -> Tensor:
    """Return where members lie, and how widely, in units of how these vary between members."""
    features = torch.cat([loc, diagonal.log()], -1)
    rows = features.reshape(-1, features.shape[-1])
    spread = rows.std(0, correction=0)
    varies = spread > 1e-3
    standard = (features - rows.mean(0)) / torch.where(varies, spread, 1.0)
    return torch.where(varies, standard, 0.0)[..., : embedding_dim_of(loc.shape[-1])].clone()


def joined(parts: list[Tensor]) -> Tensor:
    """Join tensors on their last axes; the others broadcast."""
    batch = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(batch + part.shape[-1:]) for part in parts], -1)


class MemberDistribution(TorchDistribution):
    """The latents of some members, given what they follow; it lives for one evaluation.

    Its own draw is scored for free, and has the path gradient, which here reaches what the members
    follow as well: with the members' own part of the context held, the gradient of the ELBO
    vanishes where the guide meets the posterior.

    Args:
        flow: The flow, which takes a context.
        given: What the latents are given.
        held: The same, of which only what the members follow has a gradient; none for the total
            gradient.
        batch_shape: The members' axes and those of particles; those of ``given`` if not given.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 - as torch has it
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        flow: Flow,
        given: Given,
        held: Given | None,
        batch_shape: torch.Size | None = None,
    ) -> None:
        self._flow, self._given, self._held = flow, given, held
        # A draw, the flow's draw with shift and scale, and the log-density.
        self._draw: tuple[Tensor, Tensor, Tensor] | None = None
        batch_shape = given.batch_shape if batch_shape is None else batch_shape
        super().__init__(batch_shape, flow.event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "MemberDistribution":
        """Return the same distribution for a larger batch.

        Args:
            batch_shape: The shape of the batch.
            _instance: Not used.
        """
        return MemberDistribution(self._flow, self._given, self._held, torch.Size(batch_shape))

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Draw latents of shape ``sample_shape + batch_shape + (L,)``.

        Args:
            sample_shape: Leading axes.
        """
        given = self._given
        flow = self._flow.condition(given.context).expand(self.batch_shape)
        x, log_prob = flow.rsample_with_log_prob(torch.Size(sample_shape))
        whitened = x * given.log_scale.exp() + given.shift
        z = given.loc + given.scaled(whitened)
        log_prob = log_prob - given.ladj
        self._draw = z, whitened, log_prob
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of latents.

        Args:
            value: Of shape ``(*, L)``.
        """
        if self._is_own(value):
            return cast(Any, self._draw)[2]
        whitened = self._given.unscaled(value - self._given.loc)
        log_prob = self._log_prob(whitened, self._given)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    def _is_own(self, value: Tensor) -> bool:
        if self._draw is None or value is not self._draw[0]:
            return False
        # A draw made under no_grad has no gradient to give where one is wanted.
        return self._draw[2].requires_grad or not torch.is_grad_enabled()

    def _log_prob(self, whitened: Tensor, given: Given) -> Tensor:
        x = (whitened - given.shift) * torch.exp(-given.log_scale)
        inner = self._flow.condition(given.context).log_prob(x)
        return inner - given.ladj

    def score_parts(self, x: Tensor, *args: Any, **kwargs: Any) -> ScoreParts:
        """Return the parts of an ELBO's gradient; the path gradient for its own draw.

        Args:
            x: Of shape ``(*, L)``.
            *args: As Pyro passes them on.
            **kwargs: As Pyro passes them on.
        """
        log_prob = entropy_term = self.log_prob(x)
        if self._held is not None and self._is_own(x) and torch.is_grad_enabled():
            _, whitened, _ = cast(Any, self._draw)
            with parameters_held(self._flow):
                entropy_term = self._log_prob(whitened, self._held)
        return ScoreParts(log_prob, 0, entropy_term)  # type: ignore[arg-type]
