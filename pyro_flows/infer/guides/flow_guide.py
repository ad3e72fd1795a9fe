"""What guides of flows share: how they are set up, registered, summarised and copied."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.guides import AutoGuide
from torch import Tensor, nn

from pyro_flows import _checks
from pyro_flows.errors import DomainError
from pyro_flows.infer import store
from pyro_flows.infer.guides.start import STARTS, StartFn

# For medians and quantiles: fewer draws where there are many latents.
_QUANTILE_DRAWS, _LEAST_QUANTILE_DRAWS, _QUANTILE_NUMBERS = 4000, 400, 1_000_000


def num_fixed_draws(num_latents: int) -> int:
    """Return the number of draws for medians and quantiles."""
    return min(_QUANTILE_DRAWS, max(_LEAST_QUANTILE_DRAWS, _QUANTILE_NUMBERS // num_latents))


_Guide = TypeVar("_Guide", bound="FlowGuide")


class FlowGuide(AutoGuide):
    """A guide that is set up once, by its first call, and whose parameters belong to modules.

    A subclass writes ``_build``, which makes the modules, and ``_fixed_draws``.

    Attributes:
        gradient: ``"path"`` or ``"total"``.
        latent_dim: Number of coordinates that are drawn together.
    """

    gradient: str
    latent_dim: int
    # Of the module that holds all parameters.
    _attribute = "flow"
    _bare_model: Any
    _start_fn: StartFn

    @property
    def _who(self) -> str:
        return type(self).__name__

    def _may_subsample(self, plate: str) -> bool:
        """Whether latents may stand in a subsample of a plate."""
        return False

    def _check_model(self, model: Any) -> None:
        if not callable(model):
            raise _checks.refusal(
                DomainError, self._who, expected="a model to call", got=_checks.describe(model)
            )

    def _own(self, model: Callable[..., Any], start: str | StartFn, gradient: str) -> None:
        """Keep what is not Pyro's to keep."""
        # In a tuple, so that it does not become a submodule; Pyro's own copy draws initial values.
        self._bare_model = (model,)
        if not callable(start):
            start = STARTS[_checks.check_choice(self._who, "start", start, tuple(STARTS))]
        self._start_fn = start
        self.gradient = _checks.check_choice(self._who, "gradient", gradient, ("path", "total"))

    def initialise(self, *args: Any, **kwargs: Any) -> None:
        """Set the guide up for the model's arguments, if it is not yet.

        Args:
            *args: The model's arguments.
            **kwargs: The model's keyword arguments.
        """
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
            self._create_plates(*args, **kwargs)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        if self._bare_model is None:
            raise _checks.refusal(
                DomainError,
                self._who,
                expected="a guide that was set up before it was pickled",
                got="one without its model",
                advice="Pickle it after guide.initialise(*args), or build it anew.",
            )
        try:
            # Validation would word a NaN in Pyro's terms, and without the site.
            with poutine.block(), pyro.validation_enabled(False):
                super()._setup_prototype(*args, **kwargs)
                self._build(args, kwargs)
        except BaseException as error:
            # A half-built guide must not look like a finished one to the next call.
            self.prototype_trace = None
            if getattr(self, "latent_dim", None) == 0 and isinstance(error, RuntimeError):
                raise _checks.refusal(
                    DomainError,
                    self._who,
                    expected="a model with at least one latent",
                    got="none",
                    advice="Add a pyro.sample site without obs, or use an empty guide.",
                ) from None
            raise

    def _build(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Make the modules, once the prototype is there."""
        raise NotImplementedError

    def _fixed_draws(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        """Return the same draws of each site in each call, on the first axis."""
        raise NotImplementedError

    def _ready(self) -> nn.Module:
        """Return the module that holds all parameters, once Pyro knows these."""
        attribute = self._attribute
        module: Any = self._modules.get(attribute)
        if module is None:
            raise _checks.refusal(
                DomainError,
                self._who,
                expected="the guide to be set up",
                got="a guide that has not run yet",
                advice="Call guide.initialise(*args) with the model's arguments.",
            )
        frozen = not any(parameter.requires_grad for parameter in module.parameters())
        if frozen or not self._pyro_context.active or not store.is_used():
            return module
        store.claim(self, attribute, module)
        # Reading the attribute is what makes the parameters known to Pyro.
        return getattr(self, attribute)

    def check_ready(self) -> None:
        """Refuse a guide that is not set up.

        Raises:
            DomainError: It is not.
        """
        self._ready()

    @torch.no_grad()
    def quantiles(
        self, quantiles: Sequence[float] | Tensor, *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Return posterior quantiles of each latent, from fixed draws.

        Args:
            quantiles: Levels between 0 and 1.
            *args: The model's arguments; an ``AutoFlow`` that is set up needs none.
            **kwargs: The model's keyword arguments.

        Returns:
            For each site a tensor of shape ``(len(quantiles),)`` + the site's shape.
        """
        self.initialise(*args, **kwargs)
        levels = torch.as_tensor(quantiles)
        if levels.dim() != 1 or bool(((levels < 0) | (levels > 1)).any()):
            raise _checks.refusal(
                DomainError,
                self._who,
                expected="a sequence of levels between 0 and 1",
                got=f"{quantiles!r}",
            )
        return {
            name: torch.quantile(values, levels.to(values), dim=0)
            for name, values in self._fixed_draws(args, kwargs).items()
        }

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Return the posterior median of each latent, from fixed draws.

        Args:
            *args: The model's arguments; an ``AutoFlow`` that is set up needs none.
            **kwargs: The model's keyword arguments.
        """
        return {name: value[0] for name, value in self.quantiles([0.5], *args, **kwargs).items()}

    def __deepcopy__(self: _Guide, memo: dict[int, Any]) -> _Guide:
        # Through the state, which leaves the model behind; a copy in this process can keep it.
        new: _Guide = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        new._model, new._bare_model = self._model, self._bare_model
        return new

    def __getstate__(self) -> dict[str, Any]:
        # Pyro's version empties the live guide, and its parameters carry weak references.
        model, master = self._model, self.master
        for parameter in self.parameters():
            parameter.__dict__.pop("unconstrained", None)
        try:
            return {**super().__getstate__(), "_bare_model": None}
        finally:
            self._model, self.master = model, master
