"""How a guide draws a latent whose unconstrained value is known."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
from pyro import poutine
from pyro.distributions import Distribution
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import biject_to, register_kl


class Placed(dist.Delta):
    """A value with the log-density that it brings along.

    Pyro's Kullback-Leibler divergence of a ``Delta`` leaves that out, and with it the
    log-determinants of constraints from ``TraceMeanField_ELBO``.
    """


def _kl(p: Placed, q: Any) -> Tensor:
    return p.log_density - q.log_prob(p.v)


register_kl(Placed, Distribution)(_kl)


def at_its_site(site: Any, unconstrained: Tensor, plates: Mapping[str, Any]) -> Tensor:
    """Let a latent's value be drawn at its site, in the plates of the site; return the value.

    Args:
        site: The site in the model.
        unconstrained: The value in the unconstrained space.
        plates: The guide's plates, by name.
    """
    transform, event_dim = biject_to(site["fn"].support), site["fn"].event_dim
    value = transform(unconstrained)
    log_density: Any = 0.0
    if poutine.get_mask() is not False:
        log_density = transform.inv.log_abs_det_jacobian(value, unconstrained)
        log_density = sum_rightmost(log_density, log_density.dim() - value.dim() + event_dim)
    with ExitStack() as stack:
        for frame in site["cond_indep_stack"]:
            stack.enter_context(plates[frame.name])
        placed = Placed(value, log_density=log_density, event_dim=event_dim)
        return pyro.sample(site["name"], placed)
