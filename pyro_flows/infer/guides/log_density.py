"""A model's joint density as a function of one unconstrained vector."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.guides import AutoContinuous
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to
from torch.utils._pytree import tree_map

from pyro_flows.errors import FlowError
from pyro_flows.infer.engine.memory import peak_memory
from pyro_flows.infer.vmap import densities_agree, vmapped

logger = logging.getLogger("pyro_flows")


class LogDensity:
    r"""The log-density of a model's latents and data, over the unconstrained space of a guide.

    .. math:: z \mapsto \log p(T(z), y) + \log |\det \partial T / \partial z|

    Subsampled plates keep one subsample for all calls, so that the function is deterministic.

    Args:
        model: The model.
        guide: A guide for it, whose prototype is set up.
        args: The model's arguments.
        kwargs: The model's keyword arguments.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: AutoContinuous,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._model, self._guide, self._args, self._kwargs = model, guide, args, kwargs
        self._vmaps: bool | None = None
        self._peak_memory: int | None = None

    @property
    def input_dim(self) -> int:
        """Number of coordinates."""
        return self._guide.latent_dim

    def __call__(self, z: Tensor, *, seed: int = 0) -> Tensor:
        """Return the log-density at ``z``, of shape ``(input_dim,)``, as a scalar.

        Args:
            z: The unconstrained vector.
            seed: Fixes whatever the model draws besides its latents.
        """
        trace, ladj = self._run(z, seed)
        return trace.log_prob_sum() + ladj

    @torch.no_grad()
    def at_many(self, points: Tensor) -> Tensor:
        """Return the log-density at several points, of shape ``(N,)``; by vmap where it is right.

        Args:
            points: Of shape ``(N, input_dim)``.
        """
        return self._at_many(points)

    def values_and_grads(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-density at several points, of shape ``(N,)``, and its gradients.

        Args:
            points: Of shape ``(N, input_dim)``.
        """
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            values = self._at_many(points)
            (grads,) = torch.autograd.grad(values.sum(), points)
        return values.detach(), grads

    def _at_many(self, points: Tensor) -> Tensor:
        if self.vmaps(points):
            return vmapped(self, len(points), points, shared=True, muted=True)
        return torch.stack([self(z) for z in points])

    def vmaps(self, points: Tensor) -> bool:
        """Say whether vmap gives what single points do; tried once, at the first of some points.

        Args:
            points: Of shape ``(N, input_dim)``.
        """
        if self._vmaps is None:
            with torch.no_grad():
                self._vmaps = self._check_vmap(points[:2])
        return self._vmaps

    def _check_vmap(self, points: Tensor) -> bool:
        try:
            ours = vmapped(self, len(points), points, shared=True, muted=True)
        except FlowError:
            raise
        except Exception as error:  # whatever a model may raise under vmap
            logger.info(
                "start: runs the model once for each draw, since %s", str(error).partition("\n")[0]
            )
            return False
        # In float32, as vmap may promote a product of dtypes where a single draw does not.
        theirs = torch.stack([self(z) for z in points])
        return densities_agree(ours.float(), theirs.float())

    def _run(self, z: Tensor, seed: int) -> tuple[poutine.Trace, Tensor]:
        values, ladj = {}, z.new_zeros(())
        for site, unconstrained in self._guide._unpack_latent(z):
            transform = biject_to(site["fn"].support)
            values[site["name"]] = value = transform(unconstrained)
            ladj = ladj + transform.log_abs_det_jacobian(unconstrained, value).sum()
        model = poutine.condition(self._model, data=values)
        with poutine.block(), pyro.validation_enabled(False), _random_state(seed):
            trace = poutine.trace(model).get_trace(*self._args, **self._kwargs)
            trace.compute_log_prob()
        return trace, ladj

    def elements(self, z: Tensor) -> int:
        """Return the number of entries of the largest site's log-density at ``z``."""
        with torch.no_grad():
            trace, _ = self._run(z, seed=0)
        sites: list[Any] = [site for site in trace.nodes.values() if site["type"] == "sample"]
        return max(site["log_prob"].numel() for site in sites)

    def peak_memory(self, z: Tensor) -> int:
        """Return the most bytes that the log-density and its gradient hold at once.

        Args:
            z: Where to measure, the first time.
        """
        if self._peak_memory is None:
            self._peak_memory = peak_memory(lambda: self.value_and_grad(z))
        return self._peak_memory

    def describe_non_finite(self, z: Tensor) -> str:
        """Name the sites whose log-density is not finite at ``z``, with their values' range."""
        with torch.no_grad():
            trace, _ = self._run(z, seed=0)
        return describe_non_finite(trace) or "an infinite log-determinant of the constraints"

    def hides_latents(self, z: Tensor) -> bool:
        """Say whether the density depends on draws of the model besides ``z`` and subsamples."""
        with torch.no_grad():
            traces = [self._run(z, seed)[0] for seed in (0, 1)]
        subsampled = any(site_is_subsample(site) for site in traces[0].nodes.values())
        first, second = (trace.log_prob_sum() for trace in traces)
        return not subsampled and bool(first != second)

    def precise(self, z: Tensor) -> tuple["LogDensity", torch.dtype]:
        """Return the log-density in float64, and that dtype, where the model computes with it.

        Where data of another dtype meet the latents in a matrix product, the model is called with
        its arguments in float64. Where neither works, the log-density and the dtype stay.

        Args:
            z: An unconstrained vector.
        """
        try:
            with torch.no_grad():
                value = self(z.double())
        except FlowError:
            raise
        except (RuntimeError, TypeError, ValueError):
            # Any other error will be met again.
            return self._in_double(z) or (self, z.dtype)
        return self, torch.float64 if value.dtype == torch.float64 else z.dtype

    def _in_double(self, z: Tensor) -> tuple["LogDensity", torch.dtype] | None:
        try:
            args, kwargs = tree_map(_to_double, (self._args, self._kwargs))
            density = LogDensity(self._model, self._guide, args, kwargs)
            with torch.no_grad():
                value = density(z.double())
        # Whatever a model may say to data of another dtype.
        except Exception as error:
            logger.info("start: searches in %s, since %s", z.dtype, error)
            return None
        return (density, torch.float64) if value.dtype == torch.float64 else None

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-density at ``z`` and its gradient, of shape ``(input_dim,)``."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value = self(z)
            (grad,) = torch.autograd.grad(value, z)
        return value.detach(), grad

    def hessian(self, z: Tensor) -> Tensor:
        """Return the Hessian at ``z``, of shape ``(input_dim, input_dim)``."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            (grad,) = torch.autograd.grad(self(z), z, create_graph=True)
            eye = torch.eye(self.input_dim).to(z)
            try:
                (hessian,) = torch.autograd.grad(
                    grad, z, eye, is_grads_batched=True, retain_graph=True
                )
            except RuntimeError:
                # An operator of the model has no batched derivative.
                rows = [torch.autograd.grad(grad, z, row, retain_graph=True)[0] for row in eye]
                hessian = torch.stack(rows)
        return 0.5 * (hessian + hessian.T)

    def hessian_diagonal(self, z: Tensor, *, num_probes: int = 64) -> Tensor:
        """Estimate the diagonal of the Hessian at ``z`` by Rademacher probes.

        Reference:
            Bekas, Kokiopoulou & Saad (2007), *An estimator for the diagonal of a matrix*.
        """
        generator = torch.Generator().manual_seed(0)
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            (grad,) = torch.autograd.grad(self(z), z, create_graph=True)
            total = torch.zeros_like(z)
            for _ in range(num_probes):
                sign = torch.randint(0, 2, z.shape, generator=generator).to(z) * 2 - 1
                (product,) = torch.autograd.grad(grad, z, sign, retain_graph=True)
                total = total + sign * product
        return total / num_probes


def _to_double(value: Any) -> Any:
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.double() if floating else value


@contextmanager
def _random_state(seed: int) -> Iterator[None]:
    """Run from a fixed random state, without ``torch.manual_seed``, which is slow."""
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(_state_of(seed))
        yield


@cache
def _state_of(seed: int) -> Tensor:
    return torch.Generator().manual_seed(seed).get_state()


def describe_non_finite(trace: poutine.Trace) -> str:
    """Name the sites of a trace whose log-density is not finite, with their values' range."""
    words = [
        f"log-density {float(site['log_prob_sum']):g} at the site {name!r}"
        + _range_of(site["value"])
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not bool(torch.isfinite(site["log_prob_sum"]))
    ]
    return "; ".join(words)


def _range_of(value: Any) -> str:
    if not isinstance(value, Tensor) or value.numel() == 0:
        return ""
    return f" (values from {float(value.min()):.4g} to {float(value.max()):.4g})"
