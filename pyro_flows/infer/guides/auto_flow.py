"""A guide that is a flow over all latents of a model."""

import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast

import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.infer.autoguide.guides import AutoContinuous
from pyro.infer.autoguide.initialization import init_to_median
from torch import Tensor
from torch.distributions import biject_to

from pyro_flows import _checks, flows
from pyro_flows.distributions import Flow, StandardNormal
from pyro_flows.errors import NonFiniteError
from pyro_flows.flows.registry import find_for_guide
from pyro_flows.infer.guides.assembly import Structure, assemble
from pyro_flows.infer.guides.flow_guide import FlowGuide, num_fixed_draws
from pyro_flows.infer.guides.gaussian import Start
from pyro_flows.infer.guides.hierarchy import Parents, prior_parents
from pyro_flows.infer.guides.latents import constrained_sites
from pyro_flows.infer.guides.log_density import LogDensity
from pyro_flows.infer.guides.model_check import ModelCheck
from pyro_flows.infer.guides.posterior_graph import Graph, posterior_graph
from pyro_flows.infer.guides.sites import at_its_site
from pyro_flows.infer.guides.start import StartFn
from pyro_flows.infer.posterior_distribution import PosteriorDistribution, latents_of
from pyro_flows.infer.random import seeded
from pyro_flows.infer.threads import threads_for
from pyro_flows.transforms import FlowTransform

logger = logging.getLogger("pyro_flows")

_LEAST_INITS, _MORE_INITS, _MORE_INITS_NUMBERS = 2, 6, 250
_MOST_INITS = 10
# What is followed, and the flow where none is given.
_DEFAULTS = {"prior": "realnvp", "posterior": "elementwise"}


class SavedGuide(Protocol):
    """What a file holds of a guide, until the guide is set up."""

    def flow_for(self, guide: AutoContinuous) -> Flow:
        """Return the flow, if the guide's latents are those of the file."""
        ...


class AutoFlow(FlowGuide, AutoContinuous):
    r"""Approximate the posterior of a model by a flow over all its latents.

    .. math:: \epsilon \sim p_0, \quad z = \mu + L\, A(f(\epsilon)), \quad \theta = T(z)

    A flow :math:`f` stands inside an affine map that starts as a Gaussian fit to the posterior, in
    the unconstrained space. The flow starts next to the identity, so training begins at that
    Gaussian. Between the two, latents follow those that their priors depend on, by couplings that
    are linear in these. With ``follow="posterior"``, each latent follows the earlier ones that it
    depends on given the data, and the Gaussian has their correlations alone: then there is nothing
    of :math:`D \times D` entries, where the model has no such dependence.

    The guide is set up by its first call, or by :meth:`initialise`, and works with Pyro's ``SVI``,
    all its ELBOs, ``Predictive``, ``AutoGuideList`` and ``NeuTraReparam``. Gradients of the ELBO
    are path gradients, which vanish where the guide meets the posterior.

    Args:
        model: A Pyro model whose latents are continuous.
        flow: Name of a recipe (:mod:`pyro_flows.flows`), or a function from the number of latents
            to a :class:`~pyro_flows.Flow`; if not given, ``"realnvp"``, or ``"elementwise"`` where
            the posterior is followed. ``"nsf"`` has a ``bound`` of 15 and 16 bins here, as what
            lies beyond the bound, in units of the start, is out of reach.
        follow: ``"prior"`` or ``"posterior"``: which dependences between latents the flow follows
            by itself.
        start: ``"auto"``: the best Gaussian that natural gradients find, from modes and from the
            points where searches begin; ``"laplace"``: the inverse Hessian at a mode;
            ``"prior"``: the best of those points; a function ``(log_density, inits) -> Start``
            brings another.
        init_loc_fn: Pyro's per-site initialisation, where the search for a mode begins; if not
            given, at the prior's median, at the origin of the unconstrained space and near it.
        create_plates: As for Pyro's guides, returns the plates that ``model`` subsamples.
        gradient: ``"path"`` or ``"total"``.

    Raises:
        DomainError: An argument is not possible. On setting up: a latent is discrete or stands in
            a subsampled plate (for which there is :class:`~pyro_flows.AutoPlateFlow`) or in a
            sequential one, there is no latent, or the data hold a NaN.
        ShapeError: On setting up: the recipe returns a flow of another size.

    Reference:
        Rezende & Mohamed (2015), *Variational inference with normalizing flows*; Roeder, Wu &
        Duvenaud (2017), *Sticking the landing*; Agrawal, Sheldon & Domke (2020), *Advances in
        black-box VI*.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> guide = AutoFlow(model)
        >>> guide.initialise(torch.full((100,), 3.0))
        >>> round(guide.median()["mu"].item(), 2)
        3.0
    """

    def __init__(
        self,
        model: Callable[..., Any],
        flow: str | flows.Recipe | None = None,
        *,
        follow: str = "prior",
        start: str | StartFn = "auto",
        init_loc_fn: Callable[..., Tensor] | None = None,
        create_plates: Callable[..., Any] | None = None,
        gradient: str = "path",
    ) -> None:
        self._check_model(model)
        checked = ModelCheck(self._who, may_subsample=self._may_subsample)(model)
        super().__init__(checked, init_loc_fn=or_origin(init_loc_fn or init_to_median))
        self._own(model, start, gradient)
        self.create_plates = create_plates
        self._searches_widely = init_loc_fn is None
        self.follow = _checks.check_choice(self._who, "follow", follow, tuple(_DEFAULTS))
        self.recipe = find_for_guide(flow or _DEFAULTS[self.follow])
        self.parents: Parents = {}
        self.graph: Graph | None = None
        self.origin = ""
        # Of a file, until the model's arguments are there to compare its latents with.
        self._saved: SavedGuide | None = None

    def _build(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.flow = self._first_flow(args, kwargs)

    def _first_flow(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Flow:
        """Return the flow of a file, where this guide is of one, or one that is yet to train."""
        if self._saved is not None:
            flow, self._saved = self._saved.flow_for(self), None
            return flow
        logger.info("%s: looks for a start", self._who)
        trace: Any = self.prototype_trace
        shapes = self._unconstrained_shapes
        model = self._bare_model[0]
        if self.follow == "posterior":
            self.graph = posterior_graph(self._who, model, trace, shapes, (args, kwargs))
        else:
            self.parents = prior_parents(model, trace, args, kwargs)
        start = self._find_start(args, kwargs)
        self.origin = start.origin
        structure = Structure(shapes, self.parents, self.graph)
        return assemble(self._who, self.recipe, structure, start)

    def _find_start(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Start:
        density = LogDensity(self._bare_model[0], self, args, kwargs)
        with threads_for(elements=density.elements(self._init_loc()), products=0):
            start = self._start_fn(density, self._finite_inits(density, args, kwargs))
        logger.info("%s: starts from %s", self._who, start.origin)
        return start

    def _finite_inits(
        self, density: LogDensity, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[Tensor]:
        """Return points at which the density is finite, the first of ``init_loc_fn`` if it is."""
        inits = [self._init_loc()]
        for _ in range(_MOST_INITS - 1):
            trace = poutine.trace(self.model).get_trace(*args, **kwargs)
            parts = [
                biject_to(site["fn"].support).inv(trace.nodes[name]["value"]).reshape(-1)
                for name, site in self._latent_sites()
            ]
            inits.append(torch.cat(parts).detach())
        if self._searches_widely:
            # The median of a vague prior can be anywhere; most latents are made to be of order 1.
            origin = torch.zeros_like(inits[0])
            near = [origin, *(torch.randn_like(origin) for _ in inits[1:])]
            inits = [z for pair in zip(inits, near, strict=True) for z in pair]
        different = list({tuple(z.tolist()): z for z in inits}.values())
        finite = [z for z in different if bool(density(z).isfinite())]
        if not finite:
            raise _checks.refusal(
                NonFiniteError,
                self._who,
                expected=f"a finite log-density at one of {len(different)} points of init_loc_fn",
                got=density.describe_non_finite(inits[0]),
                advice="Check the model there, or pass an init_loc_fn inside the support.",
            )
        # The more searches, the fewer modes are missed; each takes a Hessian a step.
        return finite[: _LEAST_INITS + min(_MORE_INITS, _MORE_INITS_NUMBERS // self.latent_dim)]

    def _latent_sites(self) -> Iterator[tuple[str, Any]]:
        prototype: Any = self.prototype_trace
        yield from prototype.iter_stochastic_nodes()

    def _ready_flow(self) -> Flow:
        return cast(Flow, self._ready())

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw all latents, each at a site of its name.

        Args:
            *args: The model's arguments.
            **kwargs: The model's keyword arguments.
        """
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        latent = self.sample_latent(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        return {
            site["name"]: at_its_site(site, unconstrained, plates)
            for site, unconstrained in self._unpack_latent(latent)
        }

    def get_base_dist(self) -> TorchDistribution:
        """Return the flow's base distribution."""
        return self._ready_flow().base_dist

    def get_transform(self, *args: Any, **kwargs: Any) -> FlowTransform:
        """Return the transform from the base to the unconstrained latents.

        Args:
            *args: Not used.
            **kwargs: Not used.
        """
        return self._ready_flow().transform

    def get_posterior(self, *args: Any, **kwargs: Any) -> Flow:
        """Return the distribution of the unconstrained latents, fresh for one evaluation.

        Args:
            *args: Not used.
            **kwargs: Not used.
        """
        return self._ready_flow().with_draw_kept(path_gradient=self.gradient == "path")

    def _fixed_draws(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        flow, num = self._ready_flow(), num_fixed_draws(self.latent_dim)
        with seeded(self._who, 0):
            eps = flow.base_dist.expand((num,)).sample()
        if isinstance(flow.base_dist, StandardNormal):
            # Antithetic draws and the centre make the median of a Gaussian exact.
            half = eps[: num // 2]
            eps = torch.cat([half, -half, torch.zeros_like(half[:1])])
        return constrained_sites(self, flow.transform(eps))

    def as_distribution(self) -> PosteriorDistribution:
        """Return the posterior as a distribution, to be the prior of further data.

        It stays as it is when the guide is trained on.

        Raises:
            DomainError: The guide is not set up.

        Example:
            >>> import pyro, torch, pyro.distributions as dist
            >>> def model():
            ...     pyro.sample("scale", dist.Gamma(9.0, 3.0))
            >>> guide = AutoFlow(model, flow="planar")
            >>> guide.initialise()
            >>> guide.as_distribution().sample_sites((5,))["scale"].shape
            torch.Size([5])
        """
        return PosteriorDistribution(self._ready_flow(), latents_of(self))


def or_origin(init_loc_fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Begin at the origin of the unconstrained space where a prior has no draws to begin from.

    Args:
        init_loc_fn: A per-site initialisation of Pyro's.
    """

    @functools.wraps(init_loc_fn)
    def init(site: Any = None) -> Any:
        if site is None:
            return init
        try:
            return init_loc_fn(site)
        except NotImplementedError:
            transform = biject_to(site["fn"].support)
            return transform(torch.zeros(transform.inverse_shape(site["fn"].shape())))

    return init
