"""A model's own simulations: latents and data from the prior, and the model given such data."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.diagnostics.draws import Site, _Forget, is_data, is_deterministic
from pyro_flows.errors import DomainError, NonFiniteError

Fn = Callable[..., Any]
_WHO = "calibrate"


class SimulatedModel:
    """A model that sees simulated data, whatever data its arguments hold.

    Args:
        model: The model.
        data: Values of its observed sites, by name.
    """

    def __init__(self, model: Fn, data: dict[str, Tensor]) -> None:
        self.model, self.data = model, data

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model.

        Args:
            *args: Its arguments.
            **kwargs: Its keyword arguments.
        """
        return poutine.condition(self.model, data=self.data)(*args, **kwargs)


@dataclass(frozen=True)
class Simulation:
    """One draw from a model's prior, and data drawn given it.

    Attributes:
        truth: The values of the latents and of the deterministic sites, by name.
        data: The values of the observed sites, by name.
    """

    truth: dict[str, Tensor]
    data: dict[str, Tensor]

    def check_numbers(self) -> None:
        """Refuse a simulation with a NaN.

        Raises:
            NonFiniteError: A value is NaN.
        """
        for name, value in {**self.truth, **self.data}.items():
            count = int(value.isnan().sum())
            if count:
                raise _checks.refusal(
                    NonFiniteError,
                    _WHO,
                    expected=f"a simulation without NaN at the site {name!r}",
                    got=f"{count} NaN among {value.numel()} values",
                )


class Simulator:
    """Draw latents and data from a model.

    Args:
        model: The model.
        args: Its arguments; the data among them give the shapes of what is drawn instead.
        kwargs: Its keyword arguments.
        observed: Names of sites that are data as well, though these arguments leave them free.
    """

    def __init__(
        self, model: Fn, args: tuple[Any, ...], kwargs: dict[str, Any], observed: Iterable[str]
    ) -> None:
        self._model, self._args, self._kwargs = model, args, kwargs
        self._observed = frozenset(observed)

    @torch.no_grad()
    def run(self) -> poutine.Trace:
        """Return a trace in which nothing is observed."""
        return poutine.trace(_Simulate()(self._model)).get_trace(*self._args, **self._kwargs)

    def read(self, trace: poutine.Trace) -> Simulation:
        """Return the simulation of a trace.

        Raises:
            DomainError: The model cannot be simulated, or has no data.
        """
        sites: list[Site] = list(trace.nodes.values())
        drawn = [s for s in sites if s["type"] == "sample" and not site_is_subsample(s)]
        data = {s["name"] for s in drawn if "_data" in s["infer"]} | self._observed
        _check_terms(sites)
        _check_whole(drawn)
        _check_names(data, {s["name"] for s in drawn if not is_deterministic(s)})
        values = {s["name"]: torch.as_tensor(s["value"]).detach() for s in drawn}
        return Simulation(
            truth={name: value for name, value in values.items() if name not in data},
            data={name: value for name, value in values.items() if name in data},
        )


class _Simulate(_Forget):
    """Draw what was observed, and note that it was."""

    def _pyro_sample(self, msg: Site) -> None:
        if is_data(msg):
            msg["infer"] = {**msg["infer"], "_data": True}
        super()._pyro_sample(msg)


class FixedParameters(Messenger):
    """Let a model run with its parameters as they are, out of sight of what would train them.

    Args:
        values: Those of Pyro's store, by name; others are as the model begins with them.
    """

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self._values = values

    def _pyro_param(self, msg: Site) -> None:
        msg["stop"] = True
        if msg["name"] in self._values:
            msg["value"], msg["done"] = self._values[msg["name"]], True

    def _pyro_post_param(self, msg: Site) -> None:
        msg["value"] = msg["value"].detach()


def _check_terms(sites: list[Site]) -> None:
    """Refuse a density from which nothing is drawn."""
    factors = [site["name"] for site in sites if site_is_factor(site)]
    if factors:
        raise _checks.refusal(
            DomainError,
            _WHO,
            expected="a model that draws its data",
            got=f"the factor {factors[0]!r}, a density from which nothing is drawn",
            advice="Write it as pyro.sample(..., obs=...) of a distribution with a sample method.",
        )


def _check_whole(drawn: list[Site]) -> None:
    for site in drawn:
        for frame in site["cond_indep_stack"]:
            if frame.full_size is not None and frame.full_size != frame.size:
                raise _checks.refusal(
                    DomainError,
                    _WHO,
                    expected="a model that draws all of its data",
                    got=f"a subsample of {frame.size} of {frame.full_size} in the plate "
                    f"{frame.name!r}",
                    advice="Run the model without subsample_size.",
                )


def _check_names(data: set[str], drawn: set[str]) -> None:
    unknown = sorted(data - drawn)
    if unknown:
        raise _checks.refusal(
            DomainError,
            _WHO,
            expected=f"observed to name sites that the model draws: {', '.join(sorted(drawn))}",
            got=", ".join(map(repr, unknown)),
        )
    if not data:
        raise _checks.refusal(
            DomainError,
            _WHO,
            expected="a model with observed sites",
            got="none",
            advice='Pass the data among the arguments, or name their sites: observed=["y"].',
        )
    if data == drawn:
        raise _checks.refusal(
            DomainError, _WHO, expected="a model with at least one latent", got="data alone"
        )
