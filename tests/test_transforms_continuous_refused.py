"""Continuous flows where a solve cannot end well, and arguments that are not possible."""

import subprocess
import sys

import contracts
import pytest
import torch
import zoo
from fields import Linear, Times, net

from pyro_flows.errors import DomainError, NonFiniteError, NotConvergedError
from pyro_flows.nn import Field, TimeNet
from pyro_flows.transforms import Continuous

pytest.importorskip("torchdiffeq", reason="needs torchdiffeq")

NAN = Times(lambda t, z: z * torch.where(t > 0.3, torch.nan, 1.0))
FAULTY = {
    "NaN field": (NAN, {}, NonFiniteError, "expected finite velocities; got a NaN"),
    "blow-up": (
        Times(lambda t, z: 1 + z**2 * 9),
        {"max_steps": 50},
        (NonFiniteError, NotConvergedError),
        "got",
    ),
    "stiff field": (
        Times(lambda t, z: -1e6 * (z - t)),
        {"max_steps": 50},
        NotConvergedError,
        "at most 50",
    ),
    "budget of one": (net(2), {"max_steps": 1}, NotConvergedError, "at most 1 steps"),
}
EVERY_FAULT = pytest.mark.parametrize(
    ("field", "options", "error", "words"), FAULTY.values(), ids=FAULTY
)


@EVERY_FAULT
def test_faulty_solve_is_refused(field, options, error, words):
    """FAULTS 29, 30: with the time, the number of steps, and what to do."""
    transform = Continuous(field, solver="dopri5", **options)
    with pytest.raises(error, match=words) as caught:
        transform(zoo.points(4, 2))
    for word in ("Continuous: expected", "at time", "steps and", "velocities", "ield"):
        assert word in str(caught.value)
    if error is NotConvergedError:
        assert "max_steps" in str(caught.value)


@pytest.mark.slow
def test_faulty_solves_are_refused_without_asserts_too():
    """FAULTS 12, 29, 30: the library has asserts alone, and would go on for ever."""
    code = """
import torch
from pyro_flows.nn import Field
from pyro_flows.errors import FlowError
from pyro_flows.transforms import Continuous
class Bad(Field):
    def forward(self, t, z, context=None):
        return rate(t, z)
for rate in (lambda t, z: z * torch.nan, lambda t, z: -1e6 * (z - t), lambda t, z: 1 + 9 * z**2):
    try:
        Continuous(Bad(2), solver="dopri5", max_steps=50)(torch.ones(4, 2))
    except FlowError:
        print("refused")
"""
    command = [sys.executable, "-O", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout.split() == ["refused"] * 3


def test_faulty_adjoint_is_refused():
    """FAULTS 30: the way back has a budget of its own."""
    # It contracts, and so grows on the way back: there, steps must follow what they may damp here.
    field = Linear(-100 * torch.eye(2, dtype=torch.float64))
    transform = Continuous(field, solver="dopri5", adjoint=True, max_steps=60)
    y, _ = transform.forward_and_ladj(zoo.points(4, 2))
    with pytest.raises(NotConvergedError, match="at most 60 steps of the adjoint"):
        y.sum().backward()


def test_points_that_are_not_finite_are_refused_by_dopri5():
    """FAULTS 16, 17, 29."""
    x = zoo.points(5, 3)
    x[3, 1], x[4, 0] = torch.nan, torch.inf
    with pytest.raises(
        NonFiniteError, match=r"2 rows that are not, the first at \[\[3\], \[4\]\]"
    ):
        Continuous(net(), solver="dopri5")(x)


@pytest.mark.parametrize("solver", ["euler", "midpoint", "rk4"])
def test_fixed_steps_keep_a_nan_in_its_row(solver):
    """FAULTS 16, 29: and end after as many steps as ever."""
    x = zoo.points(5, 3)
    x[0, 1] = torch.nan
    contracts.faulty_row_stays_alone(Continuous(net(), solver=solver, num_steps=3), x, None)
    y, ladj = Continuous(NAN, solver=solver)(zoo.points(5, 2)), None
    assert y.isnan().all(), ladj


def test_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(DomainError, match=r"torchdiffeq to be installed.*pyro-flows\[ode\]"):
        Continuous(net(), solver="dopri5")
    assert Continuous(net())(zoo.points(3)).isfinite().all()


BAD = [
    ({"solver": "rk5"}, "solver to be one of 'euler'"),
    ({"num_steps": 0}, "num_steps to be an integer >= 1"),
    ({"tolerance": 0.0}, "tolerance to be a finite number > 0"),
    ({"max_steps": 0}, "max_steps to be an integer >= 1"),
    ({"trace": "guess"}, "trace to be one of 'auto'"),
    ({"noise": "uniform"}, "noise to be one of 'rademacher'"),
    ({"adjoint": "yes"}, "adjoint to be one of False, True"),
]


@pytest.mark.parametrize(("options", "words"), BAD)
def test_bad_options_are_refused(options, words):
    """FAULTS 11."""
    with pytest.raises(DomainError, match=f"^Continuous: expected {words}"):
        Continuous(TimeNet(2), **options)


def test_bad_fields_are_refused():
    with pytest.raises(DomainError, match=r"field to be a Field.*pyro_flows.nn.TimeNet"):
        Continuous(torch.nn.Linear(2, 2))
    with pytest.raises(DomainError, match="num_frequencies to be an integer >= 0"):
        TimeNet(2, num_frequencies=-1)
    with pytest.raises(NotImplementedError, match="Field does not define forward"):
        Continuous(Field(2))(torch.zeros(2))
