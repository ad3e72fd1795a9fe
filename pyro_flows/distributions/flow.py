"""The flow: a base distribution, transforms, and a context, as one Pyro distribution."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor, nn

from pyro_flows import _checks
from pyro_flows.distributions.base import DistributionModule, Shape
from pyro_flows.distributions.normal import StandardNormal
from pyro_flows.errors import DomainError, ShapeError
from pyro_flows.transforms import Compose, FlowTransform
from pyro_flows.transforms.base import Root, any_float, full_precision
from pyro_flows.transforms.domains import same_constraint


class _Draw(NamedTuple):
    """A draw, its log-density, and what spares an inverse its search for where it came from."""

    value: Tensor
    log_prob: Tensor
    root: Root


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
        self.transform._check(eps, self._context)
        with full_precision(eps):
            x, ladj, root = self.transform._forward_and_root(eps, self._context)
        log_prob = self.base_dist.log_prob(eps) - ladj
        if self._keeps_draw:
            self._draw = _Draw(x, log_prob, root)
        return x, log_prob

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
        fresh, draw = self.expand(self.batch_shape), self._draw
        if self._context is not None:
            fresh._context = self._context.detach()
        with _detached_parameters(self):
            if draw is None or value is not draw.value:
                return fresh.log_prob(value)
            # Its own draw came from a known point: no inverse has to search for it.
            with full_precision(value):
                back = self.transform._inverse_from_root(value, fresh._context, draw.root)
            return fresh._pulled_back(*back)

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


@contextmanager
def _detached_parameters(module: nn.Module) -> Iterator[None]:
    """Let a module compute with detached aliases of its parameters.

    ``torch.func.functional_call`` would do, but refuses to run under ``torch.jit.trace``.
    """
    owners = [
        (owner, name, parameter)
        for owner in module.modules()
        for name, parameter in owner._parameters.items()
        if parameter is not None
    ]
    try:
        for owner, name, parameter in owners:
            owner._parameters[name] = parameter.detach()  # type: ignore[assignment]
        yield
    finally:
        for owner, name, parameter in owners:
            owner._parameters[name] = parameter
