"""The potential energy of a posterior over the base space of a guide's transform."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from pyro.infer.autoguide.guides import AutoContinuous
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.errors import DomainError, NonFiniteError
from pyro_flows.infer.engine import Batch, FlatParameters, Loss, StepFunction
from pyro_flows.infer.engine.native import CompilingError
from pyro_flows.infer.engine.recorder import RecordingError
from pyro_flows.infer.engine.runner import Runner
from pyro_flows.infer.guides.log_density import LogDensity
from pyro_flows.transforms import FlowTransform

logger = logging.getLogger("pyro_flows")

_NO_BATCH: Batch = ((), {})
# By numbers alone, since a choice by the clock could not be repeated. Native code saves some three
# microseconds for each operator of a graph, and takes as long as this, in seconds, to be made.
_SECONDS_SAVED, _SECONDS, _SECONDS_PER_NODE, _MOST_NODES = 3e-6, 8.0, 0.02, 5000

_TRIES = 100

Evaluate = Callable[[Batch], Sequence[Tensor]]


class Potential:
    r"""The negative log-density of a posterior, where a guide's transform begins.

    .. math:: U(\epsilon) = -\log p(T(f(\epsilon)), y) - \log |\det \partial T / \partial z|
        - \log |\det \partial f / \partial \epsilon|

    Its gradient comes with its value, step by step, or from a graph that is recorded once.

    Args:
        who: The caller, for the messages.
        density: The model's log-density over the unconstrained space.
        guide: The guide, whose transform is :math:`f`, frozen.

    Attributes:
        calls: How often a kernel has asked for it.

    Raises:
        DomainError: The guide has no transform.
    """

    def __init__(self, who: str, density: LogDensity, guide: AutoContinuous) -> None:
        self._who, self._density = who, density
        self._transform, self._base = _transform_of(who, guide), guide.get_base_dist()
        self._point = self._base.sample().requires_grad_()
        self._flat = FlatParameters({"point": self._point})
        self._step = StepFunction(self._loss, self._flat, [["point"]], None)
        self._evaluate: Evaluate = self._step
        self.calls = 0

    def take_rung(self, engine: str, evaluations: int) -> None:
        """Run on a rung of the engine from now on.

        Args:
            engine: The rung, or ``"auto"`` for the one that pays.
            evaluations: About how often the energy will be evaluated.

        Raises:
            DomainError: The rung is not possible.
        """
        self._evaluate = _on_rung(self._who, self._step, engine, evaluations)

    def __call__(self, points: dict[str, Tensor]) -> Tensor:
        """Return the energy at a point, as Pyro's kernels ask for it.

        Args:
            points: The point, of shape ``(D,)``, under any name.
        """
        (point,) = points.values()
        self.calls += 1
        energy: Tensor = _Differentiated.apply(point, *self._value_and_grad(point))
        return energy

    def start(self) -> Tensor:
        """Return a draw of the base where the energy and its gradient are finite.

        Raises:
            NonFiniteError: There is none among 100.
        """
        for _ in range(_TRIES):
            point: Tensor = self._base.sample()
            if all(bool(found.isfinite().all()) for found in self._value_and_grad(point)):
                return point
        raise _checks.refusal(
            NonFiniteError,
            self._who,
            expected=f"a finite density at one of {_TRIES} draws of the guide",
            got=self._density.describe_non_finite(self._transform(point)),
            advice="Fit the guide to this model and these data first.",
        )

    @torch.no_grad()
    def pushed(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Push points of the base space into the unconstrained space.

        Args:
            points: Of shape ``(N, D)``.

        Returns:
            Points of that shape, and the log-determinants of the transform, of shape ``(N,)``.
        """
        return _with_ladj(self._transform, points)

    def _value_and_grad(self, point: Tensor) -> tuple[Tensor, Tensor]:
        self._flat.assign([point])
        energy, _, grad = self._evaluate(_NO_BATCH)
        return energy, grad

    def _loss(self, batch: Batch) -> Loss:
        # Another tensor in each call, since Pyro's transforms know an input by its identity.
        z, ladj = _with_ladj(self._transform, self._point.view_as(self._point))
        energy = -(self._density(z) + ladj).to(self._point.dtype)
        return Loss(energy, (energy,))


class _Differentiated(torch.autograd.Function):
    """An energy that has its gradient with it; of the quicker of the two kinds of functions."""

    @staticmethod
    def forward(ctx: Any, point: Tensor, energy: Tensor, grad: Tensor) -> Tensor:
        ctx.grad = grad
        return energy.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        return cotangent * ctx.grad, None, None


def _transform_of(who: str, guide: AutoContinuous) -> Any:
    """Return the transform from a guide's base to the unconstrained space.

    Raises:
        DomainError: The guide has none.
    """
    try:
        return guide.get_transform()
    except (NotImplementedError, TypeError) as error:
        raise _checks.refusal(
            DomainError,
            who,
            expected="a guide with a transform from a base of its own",
            got=f"{type(guide).__name__}, which has none",
            advice="Use an AutoFlow, or Pyro's AutoMultivariateNormal or AutoIAFNormal.",
        ) from error


def _with_ladj(transform: Any, points: Tensor) -> tuple[Tensor, Tensor]:
    if isinstance(transform, FlowTransform):
        return transform.forward_and_ladj(points)
    z = transform(points)
    ladj = transform.log_abs_det_jacobian(points, z)
    # Transforms of coordinates return one for each.
    return z, ladj if ladj.shape == points.shape[:-1] else ladj.sum(-1)


def _on_rung(who: str, step: StepFunction, rung: str, evaluations: int) -> Evaluate:
    """Return what evaluates a step: native code, a recorded graph, or the step itself."""
    if rung == "eager":
        return step
    try:
        with pyro.validation_enabled(False):
            runner = Runner(step, _NO_BATCH)
        if rung == "compiled" or (rung == "auto" and _pays(runner, evaluations)):
            _compile(runner)
    except (RecordingError, CompilingError) as error:
        recorded = isinstance(error, CompilingError)
        if rung != "auto":
            raise _checks.refusal(
                DomainError,
                who,
                expected=f"a density that can be {'compiled' if recorded else 'recorded'}, for "
                f"engine={rung!r}",
                got=str(error),
                advice='Pass engine="auto" to run what can be run.',
            ) from error
        logger.warning("%s: runs %s steps: %s", who, "traced" if recorded else "eager", error)
        return runner if recorded else step
    return runner


def _pays(runner: Runner, evaluations: int) -> bool:
    nodes = len(runner._graph.main.graph.nodes)
    saved = _SECONDS_SAVED * nodes * evaluations
    return nodes <= _MOST_NODES and saved > _SECONDS + _SECONDS_PER_NODE * nodes


def _compile(runner: Runner) -> None:
    try:
        runner.compile_now()
    finally:
        runner.close()
