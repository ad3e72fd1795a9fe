"""Which rung of the engine all fits of a calibration run on."""

import pytest

from pyro_flows.diagnostics.calibration.calibrate import _outcomes
from pyro_flows.diagnostics.calibration.result import Failure


class Stub:
    """A trial that fails on some rungs, or for some simulations."""

    def __init__(self, options, *, compiles=True, failing=()):
        self.options, self.calls = options, []
        self._compiles, self._failing = compiles, failing

    def __call__(self, index, engine=None):
        self.calls.append((index, engine))
        if index in self._failing or (engine == "compiled" and not self._compiles):
            return Failure(index, "no")
        return index


def outcomes(trial, num=30):
    return [
        one.index if isinstance(one, Failure) else one for one in _outcomes(trial, num, jobs=1)
    ]


def test_one_compilation_serves_all():
    trial = Stub({"steps": 2000})
    assert outcomes(trial) == list(range(30))
    assert trial.calls == [(k, "compiled") for k in range(30)]


def test_what_does_not_compile_runs_as_it_can():
    trial = Stub({"steps": 2000}, compiles=False)
    assert outcomes(trial) == list(range(30))
    assert trial.calls == [(0, "compiled")] + [(k, "auto") for k in range(30)]


def test_a_failure_settles_nothing():
    trial = Stub({"steps": 2000}, failing=(0, 1, 7))
    assert outcomes(trial) == list(range(30))
    first = [(k, engine) for k in (0, 1) for engine in ("compiled", "auto")]
    assert trial.calls == first + [(k, "compiled") for k in range(2, 30)]


def test_nothing_but_failures_comes_to_an_end():
    trial = Stub({"steps": 2000}, failing=range(30))
    assert outcomes(trial) == list(range(30))


@pytest.mark.parametrize(
    "options", [None, {"steps": 1000}, {"steps": 90}, {"steps": 2000, "engine": "eager"}]
)
def test_nothing_is_compiled_that_does_not_repay_it(options):
    """30 short fits, no fit, or a rung that was asked for."""
    trial = Stub(options)
    assert outcomes(trial) == list(range(30))
    assert trial.calls == [(k, None) for k in range(30)]
