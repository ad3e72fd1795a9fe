"""One simulation: its data, the guide that is fitted to them, and the ranks of the truth."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch

from pyro_flows import _checks
from pyro_flows.diagnostics.arviz import to_arviz
from pyro_flows.diagnostics.calibration.result import Failure
from pyro_flows.diagnostics.calibration.simulation import (
    FixedParameters,
    Fn,
    SimulatedModel,
    Simulation,
    Simulator,
)
from pyro_flows.errors import DomainError, NonFiniteError
from pyro_flows.infer.guides.flow_guide import FlowGuide
from pyro_flows.infer.random import seeded
from pyro_flows.infer.training.fit import fit

_WHO = "calibrate"
_LONGEST_REASON = 300


class Ranks(NamedTuple):
    """What one simulation has to say; by site, each of the site's shape."""

    ranks: dict[str, np.ndarray]
    constant: dict[str, np.ndarray]
    k_hat: float


Outcome = Ranks | Failure


def _stored() -> dict[str, torch.Tensor]:
    """Return copies of what is in Pyro's parameter store."""
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


@dataclass(frozen=True)
class Trial:
    """A simulation, a fit and its draws; another for each index, all alike but for the seed.

    What it depends on of the process it is made in goes along to others.

    Args:
        model: The model.
        make_guide: A function from a model to a guide.
        args: Arguments of both.
        kwargs: Keyword arguments of both.
        observed: Names of sites that are data, though the arguments leave them free.
        num_draws: Number of draws of the guide.
        options: Options of the fit; none for no fit.
        seed: The seed of all.
    """

    model: Fn
    make_guide: Callable[[Fn], Fn]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    observed: tuple[str, ...]
    num_draws: int
    options: dict[str, Any] | None
    seed: int
    _dtype: torch.dtype = field(default_factory=torch.get_default_dtype)
    _params: dict[str, torch.Tensor] = field(default_factory=_stored)

    def __call__(self, index: int, engine: str | None = None) -> Outcome:
        """Return the ranks of a simulation, or why there are none.

        Args:
            index: Its number.
            engine: The rung on which to fit, where the options name none.

        Raises:
            DomainError: The model cannot be simulated.
        """
        seeds = np.random.SeedSequence([self.seed, index]).generate_state(2, np.uint64)
        model = FixedParameters(self._params)(self.model)
        with _alone(self._dtype), seeded(_WHO, int(seeds[0])):
            simulator = Simulator(model, self.args, self.kwargs, self.observed)
            # A model, a recipe and a fit may fail with anything.
            try:
                trace = simulator.run()
            except Exception as error:
                return Failure(index, _reason(error))
            simulation = simulator.read(trace)
            try:
                simulation.check_numbers()
                simulated = SimulatedModel(model, simulation.data)
                return self._ranks(simulated, simulation, engine, np.random.default_rng(seeds[1]))
            except Exception as error:
                return Failure(index, _reason(error))

    def _ranks(
        self,
        model: SimulatedModel,
        simulation: Simulation,
        engine: str | None,
        rng: np.random.Generator,
    ) -> Ranks:
        guide, k_hat = self._fitted(model, engine)
        ranks, constant = {}, {}
        for name, drawn, true in self._drawn(model, guide, simulation):
            below, equal = (drawn < true).sum(0), (drawn == true).sum(0)
            ranks[name] = below + rng.integers(0, equal + 1)
            constant[name] = np.asarray(equal == len(drawn))
        return Ranks(ranks, constant, k_hat)

    def _fitted(self, model: SimulatedModel, engine: str | None) -> tuple[Fn, float]:
        guide = self.make_guide(model)
        if not callable(guide):
            raise _checks.refusal(
                DomainError,
                _WHO,
                expected="make_guide to return a guide",
                got=_checks.describe(guide),
            )
        if self.options is None:
            if isinstance(guide, FlowGuide):
                guide.initialise(*self.args, **self.kwargs)
            return guide, np.nan
        options = {**({} if engine is None else {"engine": engine}), **self.options}
        with _unswallowed():
            result = fit(model, guide, *self.args, progress=False, **options, **self.kwargs)
        return guide, result.k_hat

    def _drawn(
        self, model: Fn, guide: Fn, simulation: Simulation
    ) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Yield, for each site, its draws on the first axis, and the true value."""
        posterior = to_arviz(
            lambda: model(*self.args, **self.kwargs),
            lambda: guide(*self.args, **self.kwargs),
            num_draws=self.num_draws,
            predictive=False,
            log_likelihood=False,
        )["posterior"]
        for name, true in simulation.truth.items():
            drawn = np.asarray(posterior[name.replace("/", ".")])[0]
            _check_no_nan(name, drawn)
            # Axes that Pyro puts between two plates are not kept.
            yield name, drawn, np.asarray(true.cpu()).reshape(drawn.shape[1:])


@contextmanager
def _alone(dtype: torch.dtype) -> Iterator[None]:
    """Run on one thread, in a default dtype, and with a parameter store without other guides."""
    threads, before = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    torch.set_default_dtype(dtype)
    try:
        with pyro.get_param_store().scope():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(before)


@contextmanager
def _unswallowed() -> Iterator[None]:
    """Let Ctrl-C go on from a fit, which would take it for the wish to end that fit alone."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    pressed = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    short = text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]} ..."
    return f"{type(error).__name__}: {short}" if short else type(error).__name__


def _check_no_nan(name: str, drawn: np.ndarray) -> None:
    count = int(np.isnan(drawn).sum())
    if count:
        raise _checks.refusal(
            NonFiniteError,
            _WHO,
            expected=f"draws without NaN at the site {name!r}",
            got=f"{count} NaN among {drawn.size} values",
        )
