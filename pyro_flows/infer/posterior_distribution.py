"""A fitted posterior as a distribution: the prior of further data."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import pyro
import torch
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.constraints import Constraint

from pyro_flows import _checks
from pyro_flows.distributions import DistributionModule, Flow
from pyro_flows.errors import DomainError, ShapeError
from pyro_flows.infer.frozen import OnPart, hold, is_smooth, mapped_support
from pyro_flows.transforms import FlowTransform
from pyro_flows.transforms.base import any_float

Shape = torch.Size | list[int] | tuple[int, ...]

# Of what a value may differ after a way to the unconstrained space and back, in float32's ulps.
_ULPS = 1e4


class Latent(NamedTuple):
    """A latent of a posterior.

    Attributes:
        name: Its site's name.
        shape: Of its value, plates first.
        unconstrained_shape: Of its coordinates in the unconstrained space.
        event_dim: Number of axes of ``shape`` that are no plates.
        support: Where its value lies.
    """

    name: str
    shape: torch.Size
    unconstrained_shape: torch.Size
    event_dim: int
    support: Constraint


class PosteriorDistribution(DistributionModule):
    r"""The joint posterior of named latents, with all parameters held fixed.

    .. math:: z \sim q, \qquad \theta = T(z), \qquad
        \log p(\theta) = \log q(z) - \log |\det \partial T / \partial z|

    :meth:`pyro_flows.AutoFlow.as_distribution` makes it. In a model of further data,
    :meth:`latents` samples all latents at one site, in the coordinates of the flow's base, in
    which the prior is simple. As a distribution, it is one over the vector :math:`z` of the
    unconstrained coordinates, and :meth:`sites` tells the latents' values from it.

    Args:
        flow: The distribution of the unconstrained vector; it is copied.
        latents: The latents in their order. In place of one, there may be the distribution that
            was the prior of several, and whether their coordinates are those of its base.

    Raises:
        DomainError: Two latents have one name.

    Example:
        >>> import pyro, torch, pyro.distributions as dist, pyro_flows as pf
        >>> def likelihood(mu, y):
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> def first(y):
        ...     likelihood(pyro.sample("mu", dist.Normal(0.0, 10.0)), y)
        >>> def second(y):
        ...     likelihood(prior.latents("before")["mu"], y)
        >>> guide = pf.AutoFlow(first)
        >>> guide.initialise(torch.full((50,), 3.0))
        >>> prior = guide.as_distribution()
        >>> guide = pf.AutoFlow(second)
        >>> guide.initialise(torch.full((50,), 5.0))
        >>> draws = guide.as_distribution().sample_sites((4000,))
        >>> round(draws["mu"].mean().item(), 1)
        4.0
    """

    def __init__(
        self, flow: Flow, latents: Sequence["Latent | tuple[PosteriorDistribution, bool]"]
    ) -> None:
        super().__init__(flow.input_dim)
        transforms: list[FlowTransform] = [flow.transform]
        self._latents: list[Latent] = []
        for latent in latents:
            if isinstance(latent, Latent):
                self._latents.append(latent)
                continue
            before, from_base = latent
            if from_base:
                transform = before.flow.transform
                transforms.append(OnPart(transform, sum(self._sizes), self.input_dim))
            self._latents += before._latents
        names = [latent.name for latent in self._latents]
        if len(set(names)) < len(names):
            raise _checks.refusal(
                DomainError,
                self._name,
                expected="latents of different names",
                got=f"{names}",
                advice="Rename the latent that stands beside a prior which has one of its name.",
            )
        joint = flow if len(transforms) == 1 else Flow(transforms, base=flow.base_dist)
        self.flow: Flow = copy.deepcopy(joint)
        hold(self.flow)
        self._map_supports(lambda tensor: tensor.detach().clone())
        self._starts_from_base = is_smooth(self.flow)
        # By dtype: the search for a start may ask a float32 prior for float64.
        self._twins: dict[torch.dtype, Flow] = {}

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether the flow's base has it."""
        return self.flow.has_rsample

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """The shape of each latent's value, by name."""
        return {latent.name: latent.shape for latent in self._latents}

    @property
    def supports(self) -> dict[str, Constraint]:
        """Where each latent's value lies, by name."""
        return {latent.name: latent.support for latent in self._latents}

    @property
    def _sizes(self) -> list[int]:
        return [latent.unconstrained_shape.numel() for latent in self._latents]

    def rsample(self, sample_shape: Shape = torch.Size()) -> Tensor:
        """Draw unconstrained vectors, ``sample_shape + batch_shape + (input_dim,)``."""
        return self.flow.expand(self.batch_shape).rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of unconstrained vectors.

        Args:
            value: Of shape ``(*, input_dim)``.

        Raises:
            DomainError: ``value`` is not a real floating-point tensor.
            ShapeError: A shape is wrong.
        """
        _checks.check_points(self._name, "value", value, self.input_dim)
        return self._flow_for(value).expand(self.batch_shape).log_prob(value)

    def _flow_for(self, value: Tensor) -> Flow:
        """Return the flow in the dtype of a value."""
        own = any_float(self.flow)
        if own is None or own.dtype == value.dtype:
            return self.flow
        if value.dtype not in self._twins:
            self._twins[value.dtype] = copy.deepcopy(self.flow).to(value.dtype)
        return self._twins[value.dtype]

    def sites(self, value: Tensor) -> dict[str, Tensor]:
        """Return the latents' values at unconstrained vectors.

        Args:
            value: Of shape ``(*, input_dim)``.

        Returns:
            For each latent a tensor of shape ``(*)`` + the latent's shape.

        Raises:
            DomainError: ``value`` is not a real floating-point tensor.
            ShapeError: ``value`` has another size.
        """
        _checks.check_points(self._name, "value", value, self.input_dim)
        chunks = value.split(self._sizes, -1)
        return {
            latent.name: biject_to(latent.support)(
                chunk.reshape(value.shape[:-1] + latent.unconstrained_shape)
            )
            for latent, chunk in zip(self._latents, chunks, strict=True)
        }

    def sample_sites(self, sample_shape: Shape = torch.Size()) -> dict[str, Tensor]:
        """Draw the latents' values, by name, without gradients.

        Args:
            sample_shape: Leading axes of each value.
        """
        with torch.no_grad():
            return self.sites(self.rsample(sample_shape))

    def log_prob_sites(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return the joint log-density of the latents' values.

        Where a value has fewer coordinates than entries, as on a simplex or a Cholesky factor of
        correlations, the density is one of the entries that torch's ``biject_to`` leaves free:
        for a simplex all but the last one, for such a factor those below the diagonal.

        Args:
            values: For each latent a tensor of shape ``(*)`` + the latent's shape.

        Raises:
            DomainError: A latent is missing or not known, or a value lies outside its support.
            ShapeError: A shape is wrong.
        """
        z, ladj = self._joint(values)
        return self.log_prob(z) - ladj

    def coordinates(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return the unconstrained vectors at the latents' values: what :meth:`sites` undoes.

        Args:
            values: For each latent a tensor of shape ``(*)`` + the latent's shape.

        Raises:
            DomainError: A latent is missing or not known, or a value lies outside its support.
            ShapeError: A shape is wrong.
        """
        return self._joint(values)[0]

    def _joint(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | float]:
        """Return unconstrained vectors, and the ladj of the way back."""
        if set(values) != set(self.shapes):
            raise _checks.refusal(
                DomainError,
                self._name,
                expected=f"values of {sorted(self.shapes)}",
                got=f"{sorted(values)}",
                advice="Pass one tensor for each latent.",
            )
        parts = [self._unconstrained(latent, values[latent.name]) for latent in self._latents]
        batches = {
            latent.name: z.shape[:-1] for latent, (z, _) in zip(self._latents, parts, strict=True)
        }
        batch = _checks.check_broadcast(self._name, **batches)
        z = torch.cat([z.expand(*batch, z.shape[-1]) for z, _ in parts], -1)
        return z, sum(ladj for _, ladj in parts)

    def _unconstrained(self, latent: Latent, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return a value's coordinates, of shape ``(*, d)``, and the ladj of the way back."""
        _checks.check_real(self._name, latent.name, value)
        batch = value.shape[: value.dim() - len(latent.shape)]
        if value.shape != batch + latent.shape:
            raise _checks.refusal(
                ShapeError,
                self._name,
                expected=f"{latent.name!r} of shape (*, {', '.join(map(str, latent.shape))})",
                got=_checks.describe(value),
            )
        transform = biject_to(latent.support)
        z = transform.inv(value)
        back = transform(z)
        tolerance = _ULPS * torch.finfo(value.dtype).eps
        if not torch.allclose(back, value, rtol=tolerance, atol=tolerance, equal_nan=True):
            raise _checks.refusal(
                DomainError,
                self._name,
                expected=f"{latent.name!r} within {latent.support}",
                got=f"values from {float(value.min()):.6g} to {float(value.max()):.6g}",
                advice="Outside of it, the density is zero.",
            )
        ladj = transform.log_abs_det_jacobian(z, back)
        return z.reshape(*batch, -1), ladj.reshape(*batch, -1).sum(-1)

    def latents(self, name: str) -> dict[str, Tensor]:
        """Sample all latents at one site of a model, and record each by its own name.

        The site is a vector in the coordinates of the flow's base, as a rule standard normal, or,
        for a flow whose fast direction is scoring, in the unconstrained space. The latents are
        deterministic sites, of which a guide of the model tells by ``guide.as_distribution()``.

        Args:
            name: Of the site.

        Returns:
            For each latent its value; axes of plates around the call, such as particles, stand
            before the latent's shape or on axes of its plates.

        Raises:
            ShapeError: A plate around the call has the axis of a plate in the latent's shape.
        """
        if self._starts_from_base:
            eps = pyro.sample(name, _Coordinates(self))
            value = _through(self._flow_for(eps).transform, eps)
        else:
            value = pyro.sample(name, self)
        sites, batch = self.sites(value), value.shape[:-1]
        for latent in self._latents:
            site = sites[latent.name]
            pyro.deterministic(latent.name, site, event_dim=len(latent.shape))
            sites[latent.name] = self._aligned(latent, site, batch)
        return sites

    def _aligned(self, latent: Latent, value: Tensor, batch: torch.Size) -> Tensor:
        """Let axes of size one, which plates around leave, coincide with the latent's plates."""
        event = (1,) * latent.event_dim
        try:
            return value.reshape(torch.broadcast_shapes(batch + event, latent.shape))
        except RuntimeError:
            raise _checks.refusal(
                ShapeError,
                self._name,
                expected=f"plates whose axes are free in {latent.name!r} of shape "
                f"{tuple(latent.shape)}",
                got=f"plates of shape {tuple(batch)} around .latents(...)",
                advice="Call it outside of them, or give them dim=... further to the left.",
            ) from None

    def extra_repr(self) -> str:
        """Name the latents with their shapes."""
        return ", ".join(f"{name}: {tuple(shape)}" for name, shape in self.shapes.items())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # Bounds of supports can be tensors, and move along.
        self._map_supports(fn)
        self._twins = {}
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._twins = {}
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_twins": {}}

    def _map_supports(self, fn: Callable[[Tensor], Tensor]) -> None:
        self._latents = [
            latent._replace(support=mapped_support(latent.support, fn)) for latent in self._latents
        ]


class _Coordinates(DistributionModule):
    """The base of a posterior's flow, which knows what it is the base of."""

    def __init__(self, posterior: PosteriorDistribution) -> None:
        super().__init__(posterior.input_dim)
        # In a tuple, so that it does not become a submodule.
        self.posterior = (posterior,)
        self.base_dist = posterior.flow.base_dist

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.base_dist.has_rsample

    def rsample(self, sample_shape: Shape = torch.Size()) -> Tensor:
        return self.base_dist.expand(self.batch_shape).rsample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        base = self.posterior[0]._flow_for(value).base_dist
        return base.expand(self.batch_shape).log_prob(value)


def latents_of(guide: Any) -> list[Latent | tuple[PosteriorDistribution, bool]]:
    """Return the latents of a guide, or what was the prior of several, in their order.

    Args:
        guide: An ``AutoContinuous`` guide that is set up.

    Raises:
        DomainError: A prior of several stands in a plate.
    """
    found: list[Latent | tuple[PosteriorDistribution, bool]] = []
    for name, site in guide.prototype_trace.iter_stochastic_nodes():
        fn, shape = site["fn"], site["value"].shape
        if isinstance(fn, (PosteriorDistribution, _Coordinates)):
            from_base = isinstance(fn, _Coordinates)
            if fn.batch_shape:
                raise _checks.refusal(
                    DomainError,
                    "as_distribution",
                    expected=f"the prior {name!r} outside of all plates",
                    got=f"plates of shape {tuple(fn.batch_shape)} around it",
                    advice="Draw from the guide itself.",
                )
            found.append((cast(Any, fn).posterior[0] if from_base else fn, from_base))
        else:
            sizes = guide._unconstrained_shapes[name]
            found.append(Latent(name, shape, sizes, fn.event_dim, fn.support))
    return found


def _through(transform: FlowTransform, eps: Tensor) -> Tensor:
    # Rows of a matrix, which linear layers would make of them one by one.
    rows = eps.reshape(-1, eps.shape[-1]) if eps.dim() > 2 else eps
    return transform(rows).reshape(eps.shape)
