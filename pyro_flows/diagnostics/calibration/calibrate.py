"""Fit the same guide recipe to data that a model has simulated, over and over."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from torch import nn
from tqdm.auto import tqdm

from pyro_flows import _checks
from pyro_flows.diagnostics.calibration.jobs import import_joblib, in_order
from pyro_flows.diagnostics.calibration.result import Calibration, Failure
from pyro_flows.diagnostics.calibration.simulation import Fn
from pyro_flows.diagnostics.calibration.trial import Outcome, Trial
from pyro_flows.errors import DomainError
from pyro_flows.infer.training.options import FitOptions

_WHO = "calibrate"
_LEAST_SIMULATIONS, _LEAST_DRAWS = 20, 99
# Steps of all fits together from which on compiling the first one's repays: once, for all.
_STEPS_TO_COMPILE, _LEAST_STEPS = 50_000, 100
# What would make one fit depend on another, or on the arguments' own data.
_NOT_FOR_MANY = ("batches", "checkpoint", "checkpoint_every", "resume", "seed", "progress")
_OPTIONS = {f.name for f in fields(FitOptions)} | {"seed"}


def calibrate(
    model: Fn,
    make_guide: Callable[[Fn], Fn],
    *args: Any,
    observed: Sequence[str] = (),
    num_simulations: int = 200,
    num_draws: int = 999,
    fit_options: Mapping[str, Any] | None = {},
    seed: int = 0,
    jobs: int = 1,
    progress: bool = True,
    **kwargs: Any,
) -> Calibration:
    r"""Say whether fits of a guide to a model recover what the model's data were drawn from.

    .. math:: \theta_i^* \sim p(\theta), \quad y_i \sim p(y \mid \theta_i^*), \quad
        q_i \approx p(\theta \mid y_i), \quad r_i = \#\{s: \theta_i^{(s)} < \theta_i^*\}

    Where each :math:`q_i` is the posterior, the ranks :math:`r_i` are uniform. Each latent and
    each deterministic site is ranked, entry by entry; ties are broken by lot.

    The model runs with its usual arguments; at its observed sites, drawn values stand in the place
    of the arguments' data. What it reads of these data elsewhere stays as it is: a scale of a
    prior, or the past values in a regression on them. So do parameters of the model.

    A simulation whose model, fit or draws raise an error or hold a NaN is counted as failed, with
    the reason. Each fit runs on one thread.

    Args:
        model: The model.
        make_guide: A function from a model to a guide for it: ``pf.AutoFlow``, say, one of
            Pyro's autoguides, or ``lambda model: pf.AutoFlow(model, "nsf")``. The model that it
            is called with has the simulated data in ``model.data``, by the name of the site.
        *args: Arguments of the model, data included; their values matter for their shapes alone.
        observed: Names of sites that are data, too, where these arguments leave them free.
        num_simulations: Number of simulations, and of fits; at least 20.
        num_draws: Number of draws of each guide; at least 99.
        fit_options: Options of :func:`~pyro_flows.fit`; none for guides that need no fit.
        seed: Seeds each simulation by its number, and leaves the global random state alone. The
            number of jobs makes no difference, but for rounding where ``engine="auto"`` changes
            rungs by the clock.
        jobs: Number of processes; more than one need joblib.
        progress: Whether to show a progress bar.
        **kwargs: Keyword arguments of the model; one that has a name of the above is to be bound
            with ``functools.partial``.

    Returns:
        The ranks, what they say of each scalar, and the failed simulations. Print it.

    Raises:
        DomainError: An argument is not possible; the model has a factor, a subsample, or no
            data; every simulation failed; joblib is not installed.

    Reference:
        Talts et al. (2018), *Validating Bayesian inference algorithms with simulation-based
        calibration*; Yao et al. (2018), *Yes, but did it work?*

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> def make_guide(model):  # a third as wide as the posterior
        ...     mean, sd = model.data["y"] / 2, 0.5**0.5
        ...     return lambda y: pyro.sample("mu", dist.Normal(mean, sd / 3))
        >>> found = calibrate(
        ...     model,
        ...     make_guide,
        ...     torch.tensor(0.0),
        ...     num_simulations=20,
        ...     fit_options=None,
        ...     progress=False,
        ... )
        >>> found.verdict
        'not right: mu too narrow'
    """
    num_simulations = _checks.check_count(
        _WHO, "num_simulations", num_simulations, least=_LEAST_SIMULATIONS
    )
    num_draws = _checks.check_count(_WHO, "num_draws", num_draws, least=_LEAST_DRAWS)
    seed = _checks.check_count(_WHO, "seed", seed, least=0)
    jobs = _checks.check_count(_WHO, "jobs", jobs)
    _check_functions(model, make_guide)
    options = _check_options(fit_options, kwargs)
    if jobs > 1:
        import_joblib(jobs)
    trial = Trial(model, make_guide, args, kwargs, tuple(observed), num_draws, options, seed)
    began = time.perf_counter()
    outcomes = list(_shown(_outcomes(trial, num_simulations, jobs), num_simulations, progress))
    return _gathered(outcomes, num_draws, time.perf_counter() - began)


def _outcomes(trial: Trial, num: int, jobs: int) -> Iterator[Outcome]:
    """Yield the outcome of each index; the first that succeed settle how all others run."""
    first, engine = 0, None
    if _may_compile(trial.options, num):
        for first in range(1, num + 1):
            outcome, engine = trial(first - 1, "compiled"), "compiled"
            if isinstance(outcome, Failure):
                outcome, engine = trial(first - 1, "auto"), "auto"
            yield outcome
            if not isinstance(outcome, Failure):
                break
    yield from in_order(_Engined(trial, engine), range(first, num), jobs)


@dataclass(frozen=True)
class _Engined:
    """A trial on one rung of the engine."""

    trial: Trial
    engine: str | None

    def __call__(self, index: int) -> Outcome:
        return self.trial(index, self.engine)


def _may_compile(options: dict[str, Any] | None, num: int) -> bool:
    """Whether fits run compiled if they can: all have one graph, compiled once."""
    if options is None or "engine" in options:
        return False
    steps = FitOptions(**options).steps
    return steps >= _LEAST_STEPS and num * steps >= _STEPS_TO_COMPILE


def _shown(outcomes: Iterator[Outcome], num: int, progress: bool) -> Iterator[Outcome]:
    failed = 0
    with tqdm(total=num, desc=_WHO, unit="simulation", disable=not progress) as bar:
        for outcome in outcomes:
            failed += isinstance(outcome, Failure)
            if failed:
                bar.set_postfix_str(f"{failed} failed", refresh=False)
            bar.update()
            yield outcome


def _gathered(outcomes: list[Outcome], num_draws: int, seconds: float) -> Calibration:
    fitted = [outcome for outcome in outcomes if not isinstance(outcome, Failure)]
    failures = tuple(outcome for outcome in outcomes if isinstance(outcome, Failure))
    if not fitted:
        raise _checks.refusal(
            DomainError,
            _WHO,
            expected="a simulation that can be fitted",
            got=f"{len(failures)} that failed, the first with {failures[0].reason}",
            advice="Call the model, make_guide and fit by themselves.",
        )
    shapes = [{name: ranks.shape for name, ranks in one.ranks.items()} for one in fitted]
    if any(other != shapes[0] for other in shapes):
        raise _checks.refusal(
            DomainError,
            _WHO,
            expected="a model with the same sites and shapes in every simulation",
            got=f"{shapes[0]} and {next(other for other in shapes if other != shapes[0])}",
        )
    return Calibration(
        ranks={name: np.stack([one.ranks[name] for one in fitted]) for name in shapes[0]},
        num_draws=num_draws,
        num_simulations=len(outcomes),
        failures=failures,
        constant={
            name: np.asarray(np.stack([one.constant[name] for one in fitted]).all(0))
            for name in shapes[0]
        },
        k_hats=np.array([one.k_hat for one in fitted]),
        seconds=seconds,
    )


def _check_functions(model: Any, make_guide: Any) -> None:
    if not callable(model):
        raise _checks.refusal(
            DomainError, _WHO, expected="a model to call", got=_checks.describe(model)
        )
    if isinstance(make_guide, nn.Module) or not callable(make_guide):
        is_guide = isinstance(make_guide, nn.Module)
        raise _checks.refusal(
            DomainError,
            _WHO,
            expected="make_guide to be a function from a model to a guide",
            got=f"a guide ({type(make_guide).__name__})"
            if is_guide
            else _checks.describe(make_guide),
            advice="Pass pyro_flows.AutoFlow itself, or lambda model: AutoFlow(model, 'nsf'), as "
            "the second argument: each simulation gets a guide of its own.",
        )


def _check_options(
    options: Mapping[str, Any] | None, kwargs: Mapping[str, Any]
) -> dict[str, Any] | None:
    misplaced = sorted(_OPTIONS & set(kwargs))
    if misplaced:
        raise _checks.refusal(
            DomainError,
            _WHO,
            expected="options of the fits in fit_options",
            got=f"{', '.join(misplaced)} among the model's arguments",
            advice=f"Pass fit_options={{{misplaced[0]!r}: ...}}, or bind an argument of the model "
            "with functools.partial.",
        )
    if options is None:
        return None
    if not isinstance(options, Mapping):
        raise _checks.refusal(
            DomainError,
            _WHO,
            expected="fit_options to be a dictionary",
            got=_checks.describe(options),
        )
    wrong = sorted(set(options) - _OPTIONS) + sorted(set(options) & set(_NOT_FOR_MANY))
    if wrong:
        known = ", ".join(sorted(_OPTIONS - set(_NOT_FOR_MANY)))
        raise _checks.refusal(
            DomainError,
            _WHO,
            expected=f"fit_options among {known}",
            got=", ".join(map(repr, wrong)),
        )
    FitOptions(**options)
    return dict(options)
