"""What a model must be for a flow over its latents; each refusal names the site."""

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to

from pyro_flows import _checks
from pyro_flows.errors import DomainError, NonFiniteError

Site = Any


class ModelCheck(Messenger):
    """Refuse, while a model runs, data with a NaN, and latents that a joint flow cannot represent.

    Args:
        who: Name of the guide or function, for the messages.
        latents: Whether to look at the latents as well.
        may_subsample: Says of which plates, by name, a subsample may hold latents.
    """

    def __init__(
        self,
        who: str,
        *,
        latents: bool = True,
        may_subsample: Callable[[str], bool] = lambda name: False,
    ) -> None:
        super().__init__()
        self._who, self._latents, self._may_subsample = who, latents, may_subsample
        self._seen: set[str] = set()

    def __enter__(self) -> Any:
        self._seen.clear()
        return super().__enter__()

    def _pyro_sample(self, msg: Site) -> None:
        if site_is_subsample(msg) or msg["infer"].get("_deterministic"):
            return
        if msg["is_observed"]:
            # Once: under vmap, data that depend on a latent must not be read.
            if msg["name"] not in self._seen:
                self._check_data(msg)
            self._seen.add(msg["name"])
        elif self._latents and msg["value"] is None:
            self._check_support(msg)
            self._check_mask(msg)
            self._check_plates(msg)

    def _check_data(self, site: Site) -> None:
        value = site["value"]
        if hasattr(value, "__array__") and not isinstance(value, Tensor):
            raise _checks.refusal(
                DomainError,
                self._who,
                expected=f"a tensor as data at the observed site {site['name']!r}",
                got=f"a {type(value).__name__}",
                advice="Pass torch.as_tensor(...).",
            )
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return
        count = int(value.isnan().sum())
        if count:
            raise _checks.refusal(
                NonFiniteError,
                self._who,
                expected=f"data without NaN at the observed site {site['name']!r}",
                got=f"{count} NaN among {value.numel()} values",
                advice="Drop those rows, or fill them with any valid value and mask them.",
            )

    def _check_support(self, site: Site) -> None:
        name, support = site["name"], site["fn"].support
        expected = f"a continuous latent that can be unconstrained at the site {name!r}"
        if support.is_discrete:
            raise _checks.refusal(
                DomainError,
                self._who,
                expected=expected,
                got=f"the discrete distribution {_kind(site['fn'])}",
                advice=f"Enumerate it: hide it from the guide, {self._who}(poutine.block(model, "
                f"hide=[{name!r}])), and train with TraceEnum_ELBO.",
            )
        try:
            biject_to(support)
        except NotImplementedError:
            raise _checks.refusal(
                DomainError,
                self._who,
                expected=expected,
                got=f"{_kind(site['fn'])} with the support {support}",
                advice="Reparameterise the site: pyro.infer.reparam.ProjectedNormalReparam for a "
                "sphere, LKJCholesky and scales for a covariance.",
            ) from None

    def _check_mask(self, site: Site) -> None:
        masks = [site["mask"], getattr(site["fn"], "_mask", None)]
        if any(isinstance(mask, Tensor) and not bool(mask.all()) for mask in masks):
            raise _checks.refusal(
                DomainError,
                self._who,
                expected=f"every entry of the latent {site['name']!r} to have a density",
                got="a mask that leaves some of them flat",
                advice="Mask the likelihood with pyro.poutine.mask instead; for missing data, "
                "sample the missing rows alone rather than use obs_mask.",
            )

    def _check_plates(self, site: Site) -> None:
        for frame in site["cond_indep_stack"]:
            if not frame.vectorized:
                raise _checks.refusal(
                    DomainError,
                    self._who,
                    expected=f"plates that are entered with `with` around the latent "
                    f"{site['name']!r}",
                    got=f"a loop over the plate {frame.name!r}",
                    advice=f"Write `with pyro.plate({frame.name!r}, ...):` around a vectorised "
                    "site, or loop over range(...) instead.",
                )
            is_whole = frame.full_size is None or frame.full_size == frame.size
            if not is_whole and not self._may_subsample(frame.name):
                raise _checks.refusal(
                    DomainError,
                    self._who,
                    expected=f"all members of the plate {frame.name!r} at the latent "
                    f"{site['name']!r}",
                    got=f"a subsample of {frame.size} of {frame.full_size}",
                    advice="A joint flow would reuse the same latents for whatever members are "
                    "drawn: take AutoPlateFlow, whose members have latents of their own.",
                )


def _kind(fn: TorchDistributionMixin) -> str:
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    return type(fn).__name__
