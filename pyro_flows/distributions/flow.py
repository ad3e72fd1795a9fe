"""The flow: a base distribution, transforms, and a context, as one Pyro distribution."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.distributions.base import DistributionModule, Shape, score_of
from pyro_flows.distributions.normal import StandardNormal
from pyro_flows.distributions.path import at_draw
from pyro_flows.errors import DomainError, ShapeError
from pyro_flows.transforms import Compose, FlowTransform
from pyro_flows.transforms.base import Push, any_float, full_precision, parameters_held
from pyro_flows.transforms.domains import same_constraint


class _Draw(NamedTuple):
    """A draw, its log-density, and what computes the score there, where it may be asked for."""

    value: Tensor
    log_prob: Tensor
    score: Callable[[], Tensor] | None


class Flow(DistributionModule):
    r"""Push a base distribution through transforms.

    .. math:: x = f(\epsilon, c), \quad \epsilon \sim p_0, \qquad
        \log q(x \mid c) = \log p_0(\epsilon) - \log |\det \partial f / \partial \epsilon|

    A flow is a Pyro distribution and a module at once: it stands at a sample site, as a prior or
    in a guide, and its parameters are trained, moved and saved like any module's. A flow that
    takes a context is used through :meth:`condition`.

    Args:
        transforms: One transform, or several of which the first acts first.
        base: A distribution over vectors of ``input_dim`` entries, without batch axes, whose
            support is the transform's domain; the standard normal if not given. To be trained or
            moved by ``.to()``, it must be a module. A base without ``rsample`` makes a flow
            without ``rsample``, to fit to data or to sample from.

    Raises:
        DomainError: A transform is not a :class:`~pyro_flows.transforms.FlowTransform`, or the
            base's support is not the transform's domain.
        ShapeError: The base has batch axes or another event shape.

    Example:
        >>> import torch
        >>> from pyro_flows.transforms import AffineCoupling, Permute
        >>> flow = Flow([AffineCoupling(3), Permute.reversal(3), AffineCoupling(3)])
        >>> x, log_prob = flow.rsample_with_log_prob((100,))
        >>> torch.allclose(flow.log_prob(x), log_prob, atol=1e-5)
        True
    """

    def __init__(
        self,
        transforms: FlowTransform | Iterable[FlowTransform],
        base: TorchDistribution | None = None,
    ) -> None:
        transform = transforms if isinstance(transforms, FlowTransform) else Compose(transforms)
        super().__init__(transform.input_dim)
        self.transform = transform
        self.base_dist = self._default_base(transform) if base is None else base
        self._check_base(self.base_dist)
        self._context: Tensor | None = None
        self._keeps_draw, self._path_gradient = False, False
        self._draw: _Draw | None = None

    @staticmethod
    def _default_base(transform: FlowTransform) -> StandardNormal:
        base, own = StandardNormal(transform.input_dim), any_float(transform)
        return base if own is None else base.to(own)

    def _check_base(self, base: TorchDistribution) -> None:
        if not isinstance(base, torch.distributions.Distribution):
            raise _checks.refusal(
                DomainError,
                "Flow",
                expected="base to be a distribution",
                got=_checks.describe(base),
            )
        if base.batch_shape or base.event_shape != self.event_shape:
            raise _checks.refusal(
                ShapeError,
                "Flow",
                expected=f"a base of batch shape () and event shape {tuple(self.event_shape)}",
                got=f"batch shape {tuple(base.batch_shape)} and event shape "
                f"{tuple(base.event_shape)}",
                advice="Use .to_event(1) to turn batch axes into an event.",
            )
        if not same_constraint(base.support, self.transform.domain):
            raise _checks.refusal(
                DomainError,
                "Flow",
                expected=f"a base whose support is the domain {self.transform.domain}",
                got=f"the support {base.support}",
                advice="Real vectors take a StandardNormal, a StudentT or a GaussianMixture, "
                "for example, and an interval of each coordinate takes a Box.",
            )

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> Any:
        """The transform's codomain."""
        return self.transform.codomain

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether draws have gradients for the parameters: whether the base's do."""
        return self.base_dist.has_rsample

    @property
    def stochastic(self) -> bool:
        """Whether log-densities are estimates, in the present mode: random numbers.

        They are where a :class:`~pyro_flows.transforms.Continuous` estimates its trace. Reports
        such as :func:`~pyro_flows.diagnose` use exact ones in any mode.
        """
        return self.transform.stochastic

    @property
    def context_dim(self) -> int:
        """Number of entries of the context; zero for none."""
        return self.transform.context_dim

    def condition(self, context: Tensor) -> "Flow":
        """Return the distribution given a context; it shares the parameters of this one.

        Args:
            context: Of shape ``(*, context_dim)``; its batch axes become batch axes of the
                distribution.

        Raises:
            ShapeError: The context has the wrong size, or the flow takes none.
        """
        _checks.check_context("Flow", context, self.context_dim)
        batch = _checks.check_broadcast("Flow", context=context.shape[:-1], flow=self.batch_shape)
        new = self.expand(batch)
        new._context = context
        return new

    def expand(self, batch_shape: Shape, _instance: DistributionModule | None = None) -> "Flow":
        """Return a flow of the given batch shape that shares the parameters of this one.

        Args:
            batch_shape: One that the present batch shape expands to.

        Raises:
            ShapeError: The present batch shape does not expand to it.
        """
        new: Any = super().expand(batch_shape)
        new._draw = None
        return cast(Flow, new)

    def with_draw_kept(self, *, path_gradient: bool = True) -> "Flow":
        """Return a fresh flow that scores its own last draw for free.

        For a flow that lives for one evaluation, such as a guide's: the kept log-density would be
        stale once the parameters move.

        Args:
            path_gradient: Whether an ELBO takes the path gradient of a kept draw.

        Raises:
            DomainError: The base has no ``rsample``.
        """
        self._check_rsample()
        new = self.expand(self.batch_shape)
        new._keeps_draw, new._path_gradient = True, path_gradient
        return new

    def _check_rsample(self) -> None:
        if not self.has_rsample:
            raise _checks.refusal(
                DomainError,
                "Flow",
                expected="a base with rsample, for draws that have gradients",
                got=f"{type(self.base_dist).__name__} with has_rsample=False",
                advice="Use a base that has it, as all of pyro_flows.distributions do; this one "
                "serves .sample() and .log_prob().",
            )

    def rsample(self, sample_shape: Shape = torch.Size()) -> Tensor:
        """Draw a sample of shape ``sample_shape + batch_shape + (input_dim,)``.

        Raises:
            DomainError: Gradients are enabled and the base has no ``rsample``.
        """
        return self.rsample_with_log_prob(sample_shape)[0]

    def rsample_with_log_prob(self, sample_shape: Shape = torch.Size()) -> tuple[Tensor, Tensor]:
        """Draw a sample together with its log-density, in one pass.

        Args:
            sample_shape: Leading axes of the sample.

        Returns:
            The sample of shape ``sample_shape + batch_shape + (input_dim,)``, and its log-density
            of shape ``sample_shape + batch_shape``.

        Raises:
            DomainError: Gradients are enabled and the base has no ``rsample``.
            ShapeError: The flow takes a context and none was fixed.
        """
        _checks.check_context("Flow", self._context, self.context_dim)
        if torch.is_grad_enabled():
            self._check_rsample()
        base = self.base_dist.expand(self.batch_shape)
        draw = base.rsample if self.has_rsample else base.sample
        eps = draw(torch.Size(sample_shape))
        shape = eps.shape
        if self._context is None and eps.dim() > 2:
            # Rows of a matrix, which linear layers would make of them one by one.
            eps = eps.reshape(-1, self.input_dim)
        self.transform._check(eps, self._context)
        with full_precision(eps):
            x, ladj, push = self.transform._forward_and_push(eps, self._context)
        log_prob = self.base_dist.log_prob(eps) - ladj
        if eps.shape != shape:
            x, log_prob = x.reshape(shape), log_prob.reshape(shape[:-1])
        if self._keeps_draw:
            score = partial(self._score, eps, push, shape) if self._can_push() else None
            self._draw = _Draw(x, log_prob, score)
        return x, log_prob

    def _can_push(self) -> bool:
        # What torch.jit.trace records is run with a graph throughout, no_grad or not.
        tracing = torch.jit.is_tracing()  # type: ignore[attr-defined]
        return self._path_gradient and torch.is_grad_enabled() and not tracing

    @torch.no_grad()
    def _score(self, eps: Tensor, push: Push, shape: torch.Size) -> Tensor:
        """Return the gradient of the log-density at a draw, all parameters held."""
        with full_precision(eps):
            return push(score_of(self.base_dist, eps)).reshape(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of ``value``.

        Args:
            value: Of shape ``(*, input_dim)``; its batch axes broadcast with the batch shape.

        Raises:
            DomainError: ``value`` is not a real floating-point tensor.
            ShapeError: A shape is wrong, or the flow takes a context and none was fixed.
        """
        kept = self._kept_log_prob(value)
        if kept is not None:
            return kept
        _checks.check_points("Flow", "value", value, self.input_dim)
        _checks.check_context("Flow", self._context, self.context_dim)
        _checks.check_broadcast("Flow", value=value.shape[:-1], flow=self.batch_shape)
        return self._pulled_back(*self.transform.inverse_and_ladj(value, self._context))

    def _pulled_back(self, eps: Tensor, ladj: Tensor) -> Tensor:
        log_prob = self.base_dist.log_prob(eps) + ladj
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    def _kept_log_prob(self, value: Tensor) -> Tensor | None:
        """Return what is kept for ``value``, if it is the last draw."""
        if self._draw is None or value is not self._draw.value:
            return None
        log_prob = self._draw.log_prob
        # A draw made under no_grad has no gradient to give where one is wanted.
        return log_prob if log_prob.requires_grad or not torch.is_grad_enabled() else None

    def path_log_prob(self, value: Tensor) -> Tensor:
        r"""Return the log-density as a function of ``value`` alone: every parameter is held fixed.

        Its gradient for a draw :math:`x = f_\theta(\epsilon)` is the path gradient
        :math:`(\partial \log q / \partial x)\, (\partial x / \partial \theta)`, which drops the
        score term, whose mean is zero. Only the parameters of modules can be held; a base that is
        no module must have none.

        Args:
            value: Of shape ``(*, input_dim)``.

        Reference:
            Roeder, Wu & Duvenaud (2017), *Sticking the landing*, equation 8.
        """
        draw = self._draw
        if draw is not None and value is draw.value and draw.score is not None:
            return at_draw(value, draw.log_prob, draw.score())
        fresh = self.expand(self.batch_shape)
        if self._context is not None:
            fresh._context = self._context.detach()
        with parameters_held(self):
            return fresh.log_prob(value)

    def __getstate__(self) -> dict[str, Any]:
        # A draw belongs to the evaluation that made it, not into a copy or a file.
        return {**self.__dict__, "_draw": None}

    def score_parts(self, x: Tensor, *args: Any, **kwargs: Any) -> ScoreParts:
        """Return the parts of an ELBO's gradient; the path gradient for a kept draw.

        Args:
            x: Of shape ``(*, input_dim)``.
            *args: As Pyro passes them on.
            **kwargs: As Pyro passes them on.
        """
        if not self.has_rsample:
            return super().score_parts(x, *args, **kwargs)
        log_prob = self.log_prob(x)
        own = self._kept_log_prob(x) is not None
        entropy_term = self.path_log_prob(x) if own and self._path_gradient else log_prob
        return ScoreParts(log_prob, 0, entropy_term)  # type: ignore[arg-type]
