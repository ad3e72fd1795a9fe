"""NUTS in the space of a flow."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.guides import AutoContinuous
from pyro.infer.mcmc import NUTS
from torch import Tensor
from torch.distributions import biject_to
from tqdm.auto import tqdm

from pyro_flows import _checks
from pyro_flows.errors import DomainError
from pyro_flows.infer import store
from pyro_flows.infer.engine import RUNGS
from pyro_flows.infer.guides.latents import constrained_sites
from pyro_flows.infer.guides.log_density import LogDensity
from pyro_flows.infer.mcmc.checks import check_functions, run_once
from pyro_flows.infer.mcmc.freezing import frozen
from pyro_flows.infer.mcmc.potential import Potential
from pyro_flows.infer.posterior_draws import PosteriorDraws
from pyro_flows.infer.random import seeded
from pyro_flows.infer.threads import threads_for
from pyro_flows.infer.tracer import Tracer
from pyro_flows.transforms.continuous import exact_traces

logger = logging.getLogger("pyro_flows")

_WHO = "neutra"
_POINT = "point"
# About how often a transition in a flow's space evaluates the gradient.
_EVALUATIONS = 8


class _Chain(NamedTuple):
    """What one chain gave; below, S is its number of draws.

    Attributes:
        points: Its draws in the base space, of shape ``(S, D)``.
        energies: Their potential energies, of shape ``(S,)``.
        num_steps: How often each draw took the gradient, of shape ``(S,)``.
        diverging: Whether the trajectory to each draw diverged, of shape ``(S,)``.
        step_size: The step size after the warmup.
        acceptance: The mean acceptance probability over the draws.
    """

    points: Tensor
    energies: Tensor
    num_steps: Tensor
    diverging: Tensor
    step_size: float
    acceptance: float


def neutra(
    model: Callable[..., Any],
    guide: AutoContinuous,
    *args: Any,
    num_draws: int = 1000,
    warmup: int = 300,
    num_chains: int = 4,
    seed: int | None = None,
    progress: bool = True,
    max_tree_depth: int = 10,
    target_accept: float = 0.8,
    engine: str = "auto",
    **kwargs: Any,
) -> PosteriorDraws:
    r"""Draw from the posterior by Pyro's NUTS, in the space where a fitted flow begins.

    .. math:: U(\epsilon) = -\log p(T(f(\epsilon)), y)
        - \log |\det \partial\, (T \circ f) / \partial \epsilon|, \qquad \theta = T(f(\epsilon))

    Where the flow is close to the posterior, its base space shows NUTS an almost standard normal,
    whatever the posterior's shape; what the flow has wrong costs time, and no longer a bias. The
    chains run one after the other, from draws of the base.

    Args:
        model: The model.
        guide: A fitted :class:`~pyro_flows.AutoFlow`, or a guide of Pyro's that has
            ``get_transform``, such as ``AutoMultivariateNormal``. It is frozen meanwhile.
        *args: Arguments of the model.
        num_draws: Number of draws of each chain.
        warmup: Number of draws of each chain that adapt step size and mass matrix, and are
            dropped.
        num_chains: Number of chains.
        seed: Seeds the run, which then leaves the global random state alone.
        progress: Whether to show a progress bar.
        max_tree_depth: Largest depth of the tree: a draw takes at most ``2**max_tree_depth``
            gradients.
        target_accept: The acceptance probability that the step size is adapted to.
        engine: ``"eager"``, ``"traced"`` or ``"compiled"``: how the energy and its gradient are
            evaluated; ``"auto"`` compiles where enough draws are asked for to repay it.
        **kwargs: Keyword arguments of the model.

    Returns:
        The draws, with stats ``"log_p"``, the model's joint log-density, ``"diverging"``,
        ``"n_steps"``, the number of gradients, and ``"step_size"``. ``to_arviz`` takes them.

    Raises:
        DomainError: An argument is not possible, the guide never ran or has no transform, the
            model is subsampled or random beyond its latents.
        NonFiniteError: No draw of the base has a finite density.

    Reference:
        Hoffman, Sountsov, Dillon, Langmore, Tran & Vasudevan (2019), *NeuTra-lizing bad geometry
        in Hamiltonian Monte Carlo using neural transport*.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_flows.infer import AutoFlow
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> y = torch.ones(25)
        >>> guide = AutoFlow(model, flow="planar")
        >>> guide.initialise(y)
        >>> draws = neutra(
        ...     model, guide, y, num_draws=50, warmup=20, num_chains=1, seed=0, progress=False
        ... )
        >>> draws.sites["mu"].shape
        torch.Size([1, 50])
    """
    num_draws = _checks.check_count(_WHO, "num_draws", num_draws)
    num_chains = _checks.check_count(_WHO, "num_chains", num_chains)
    warmup = _checks.check_count(_WHO, "warmup", warmup, least=0)
    options = {
        "max_tree_depth": _checks.check_count(_WHO, "max_tree_depth", max_tree_depth),
        "target_accept_prob": _check_probability("target_accept", target_accept),
    }
    _checks.check_choice(_WHO, "engine", engine, RUNGS)
    _check_guide(model, guide)
    each = warmup + num_draws
    # Outer handlers must not see the random numbers of NUTS.
    with store.unused(), seeded(_WHO, seed), frozen(guide), exact_traces(), poutine.block():
        tracer = run_once(Tracer, _WHO, model, guide, args, kwargs=kwargs)
        with threads_for(elements=tracer.elements, products=0), pyro.validation_enabled(False):
            potential = Potential(_WHO, LogDensity(model, guide, args, kwargs), guide)
            starts = [potential.start() for _ in range(num_chains)]
            potential.take_rung(engine, _EVALUATIONS * num_chains * each)
            with tqdm(
                total=num_chains * each, desc=_WHO, unit="draw", disable=not progress
            ) as bar:
                chains = [
                    _run(NUTS(potential_fn=potential, **options), start, warmup, num_draws, bar)
                    for start in starts
                ]
            draws = _collected(guide, potential, chains)
    _warn(chains, max_tree_depth)
    return draws


def _run(kernel: NUTS, start: Tensor, warmup: int, num_draws: int, bar: "tqdm[None]") -> _Chain:
    potential, kernel.initial_params = kernel.potential_fn, {_POINT: start}
    kernel.setup(warmup)
    params = kernel.initial_params
    points, num_steps = [], []
    energies: list[Any] = []
    for draw in range(warmup + num_draws):
        before = potential.calls
        params = kernel.sample(params)
        bar.update()
        if draw >= warmup:
            points.append(params[_POINT])
            energies.append(kernel._potential_energy_last)
            num_steps.append(potential.calls - before)
    diverging = torch.zeros(num_draws, dtype=torch.bool)
    diverging[kernel.diagnostics()["divergences"]] = True
    return _Chain(
        torch.stack(points),
        torch.stack(energies),
        torch.tensor(num_steps),
        diverging,
        kernel.step_size,
        float(kernel.logging()["acc. prob"]),
    )


def _collected(
    guide: AutoContinuous, potential: Potential, chains: list[_Chain]
) -> PosteriorDraws:
    num_chains, num_draws = len(chains), len(chains[0].num_steps)
    z, ladj = potential.pushed(torch.cat([chain.points for chain in chains]))
    log_p = -torch.cat([chain.energies for chain in chains]) - ladj - _log_jacobian(guide, z)
    sites = constrained_sites(guide, z)
    step_sizes = torch.tensor([chain.step_size for chain in chains])
    return PosteriorDraws(
        {name: x.reshape(num_chains, num_draws, *x.shape[1:]) for name, x in sites.items()},
        {
            "log_p": log_p.reshape(num_chains, num_draws),
            "diverging": torch.stack([chain.diverging for chain in chains]),
            "n_steps": torch.stack([chain.num_steps for chain in chains]),
            "step_size": step_sizes[:, None].expand(num_chains, num_draws),
        },
        _origin(guide, chains),
    )


def _log_jacobian(guide: AutoContinuous, z: Tensor) -> Tensor:
    """Return the log-determinant of the constraints at points ``(N, D)``, of shape ``(N,)``."""
    total, position = z.new_zeros(len(z)), 0
    prototype: Any = guide.prototype_trace
    for name, site in prototype.iter_stochastic_nodes():
        shape = guide._unconstrained_shapes[name]
        chunk = z[:, position : position + shape.numel()].reshape(-1, *shape)
        transform = biject_to(site["fn"].support)
        ladj = transform.log_abs_det_jacobian(chunk, transform(chunk))
        total = total + ladj.reshape(len(z), -1).sum(-1)
        position += shape.numel()
    return total


def _origin(guide: AutoContinuous, chains: list[_Chain]) -> str:
    acceptance, step_size, num_steps = (
        sum(values) / len(chains)
        for values in (
            [chain.acceptance for chain in chains],
            [chain.step_size for chain in chains],
            [float(chain.num_steps.double().mean()) for chain in chains],
        )
    )
    return (
        f"NeuTra: NUTS in the space of {type(guide).__name__}, {len(chains)} chains; acceptance "
        f"probability {acceptance:.2f}, step size {step_size:.2g}, {num_steps:.1f} gradients a "
        f"draw, {_divergences(chains)} divergences"
    )


def _divergences(chains: list[_Chain]) -> int:
    return sum(int(chain.diverging.sum()) for chain in chains)


def _warn(chains: list[_Chain], max_tree_depth: int) -> None:
    total = sum(len(chain.num_steps) for chain in chains)
    diverging = _divergences(chains)
    if diverging:
        logger.warning(
            "%s: %d of %d draws ended a diverging trajectory; fit the guide for longer or take a "
            "more flexible flow, or raise target_accept",
            _WHO,
            diverging,
            total,
        )
    longest = 2**max_tree_depth - 1
    cut = sum(int((chain.num_steps >= longest).sum()) for chain in chains)
    if cut:
        logger.warning(
            "%s: %d of %d draws met max_tree_depth=%d, so the chains move slowly; fit the guide "
            "for longer or take a more flexible flow",
            _WHO,
            cut,
            total,
            max_tree_depth,
        )


def _check_guide(model: Any, guide: Any) -> None:
    check_functions(_WHO, model, guide)
    if not isinstance(guide, AutoContinuous):
        raise _checks.refusal(
            DomainError,
            _WHO,
            expected="a guide with a transform from a base of its own",
            got=_checks.describe(guide),
            advice="Use an AutoFlow; any guide serves pf.independence_metropolis.",
        )


def _check_probability(name: str, value: Any) -> float:
    probability = _checks.check_positive(_WHO, name, value)
    if probability >= 1:
        raise _checks.refusal(
            DomainError, _WHO, expected=f"{name} below 1", got=f"{value!r}", advice="Take 0.8."
        )
    return probability
