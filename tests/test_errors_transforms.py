"""Bad points, contexts and shapes: each gets a typed error that says what to do."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import zoo

from pyro_flows import flows
from pyro_flows.distributions import DistributionModule, Flow, StandardNormal
from pyro_flows.errors import DomainError, ShapeError
from pyro_flows.transforms import FlowTransform, Planar

BAD_POINTS = {
    "one too few": (
        torch.zeros(4, 2),
        ShapeError,
        r"expected points of shape \(\*, 3\); got a float32",
    ),
    "one too many": (torch.zeros(4, 4), ShapeError, r"got a float32 tensor of shape \(4, 4\)"),
    "a scalar": (torch.tensor(0.0), ShapeError, r"got a float32 tensor of shape \(\)"),
    "empty": (torch.zeros(0), ShapeError, r"got a float32 tensor of shape \(0,\)"),
    "integers": (torch.zeros(4, 3, dtype=torch.int64), DomainError, "got a int64 tensor"),
    "booleans": (torch.zeros(4, 3, dtype=torch.bool), DomainError, "got a bool tensor"),
    "complex": (torch.zeros(4, 3, dtype=torch.complex64), DomainError, "got a complex64 tensor"),
    "a list": ([0.0, 0.0, 0.0], DomainError, r"got \[0.0, 0.0, 0.0\] \(list\)"),
    "none": (None, DomainError, r"got None \(NoneType\)"),
}


@pytest.mark.parametrize("name", zoo.ZOO)
@pytest.mark.parametrize(("points", "error", "words"), BAD_POINTS.values(), ids=BAD_POINTS)
def test_bad_points(name, points, error, words):
    """FAULTS 1, 7: a wrong last dimension, and anything that is not real floating point."""
    transform = zoo.ZOO[name](3, 0)
    who = type(transform).__name__
    for run in (transform.forward_and_ladj, transform.inverse_and_ladj, transform._inverse):
        with pytest.raises(error, match=f"^{who}: expected .*{words}|^{who}: {words}"):
            run(points)


@pytest.mark.parametrize("name", zoo.learnable())
def test_points_of_another_dtype_than_the_parameters(name):
    """FAULTS 8: neither promoted in silence nor left to torch's message about matrices."""
    transform = zoo.ZOO[name](3, 0)
    words = "points and parameters of one dtype; got float64 points and float32 parameters"
    for run in (transform.forward_and_ladj, transform.inverse_and_ladj):
        with pytest.raises(DomainError, match=words):
            run(torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("name", zoo.names(2))
def test_bad_context(name):
    """FAULTS 2: missing, unexpected, of the wrong size, or not broadcasting."""
    x, plain, conditional = torch.zeros(4, 3), zoo.ZOO[name](3, 0), zoo.ZOO[name](3, 2)
    who = type(plain).__name__
    for direction in ("forward_and_ladj", "inverse_and_ladj"):
        run = getattr(conditional, direction)
        with pytest.raises(
            ShapeError, match=rf"^{who}: expected a context of shape \(\*, 2\); got none"
        ):
            run(x)
        with pytest.raises(
            ShapeError, match=rf"^{who}: expected no context.*got a float32 tensor"
        ):
            getattr(plain, direction)(x, torch.zeros(2))
        for wrong in (torch.zeros(4, 1), torch.zeros(4, 3), torch.tensor(0.0)):
            with pytest.raises(ShapeError, match=rf"^{who}: expected context of shape \(\*, 2\)"):
                run(x, wrong)
        with pytest.raises(DomainError, match="expected context to be a real floating-point"):
            run(x, torch.zeros(4, 2, dtype=torch.int64))
        with pytest.raises(DomainError, match="float64 context"):
            run(x, torch.zeros(4, 2, dtype=torch.float64))
        with pytest.raises(ShapeError, match=r"\(4,\) of points and \(5,\) of context"):
            run(x, torch.zeros(5, 2))


def test_bad_context_of_a_conditioned_transform():
    """FAULTS 2."""
    with pytest.raises(ShapeError, match=r"Planar: expected a context.*got none"):
        Planar(3, context_dim=2).condition(None)
    with pytest.raises(ShapeError, match=r"Planar: expected context of shape \(\*, 2\)"):
        Planar(3, context_dim=2).condition(torch.zeros(3))
    with pytest.raises(ShapeError, match=r"Planar: expected a shape \(\*, 3\); got \(4,\)"):
        Planar(3).forward_shape(torch.Size([4]))


def test_flow_refuses_bad_values():
    """FAULTS 1, 2, 7."""
    flow, conditional = flows.realnvp(3), flows.realnvp(3, context_dim=2)
    with pytest.raises(ShapeError, match=r"^Flow: expected value of shape \(\*, 3\)"):
        flow.log_prob(torch.zeros(2))
    with pytest.raises(DomainError, match=r"^Flow: expected value to be a real floating-point"):
        flow.log_prob(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"\(4,\) of value and \(5,\) of flow"):
        flow.expand((5,)).log_prob(torch.zeros(4, 3))
    with pytest.raises(ShapeError, match=r"^Flow: expected no context"):
        flow.condition(torch.zeros(2))
    with pytest.raises(ShapeError, match=r"^Flow: expected context of shape \(\*, 2\)"):
        conditional.condition(torch.zeros(3))
    for use in (conditional.sample, lambda: conditional.log_prob(torch.zeros(3))):
        with pytest.raises(
            ShapeError, match=r"^Flow: expected a context of shape \(\*, 2\); got none"
        ):
            use()


@pytest.mark.parametrize("make", [lambda: flows.iaf(3), lambda: StandardNormal(3)])
def test_expand_refuses_to_shrink(make):
    """A batch of five is no batch of three, nor of one."""
    five: DistributionModule = make().expand((5,))
    for wrong in ((3,), (1,), (), (5, 2)):
        with pytest.raises(ShapeError, match="batch shape"):
            five.expand(wrong)
    assert five.expand((2, 5)).batch_shape == (2, 5)


def test_one_way_transform_says_which_way_is_missing():
    """FAULTS 13: never a look-up in a cache that happens to be empty."""

    class OneWay(FlowTransform):
        def _forward_and_ladj(self, x, context):
            return x, x.sum(-1)

    for score in (OneWay(2).inv, Flow(OneWay(2)).log_prob):
        with pytest.raises(NotImplementedError, match="OneWay does not define _inverse_and_ladj"):
            score(torch.zeros(2))


@pytest.mark.slow
def test_same_errors_without_assertions():
    """FAULTS 12: under ``python -O`` no check is lost; ``pytest.raises`` needs no assertion."""
    here = Path(__file__)
    files = [str(here), str(here.with_name("test_errors_arguments.py"))]
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestConfigWarning"]
    command = [sys.executable, "-O", "-m", "pytest", *options, "-m", "not slow", *files]
    done = subprocess.run(
        command, cwd=here.parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
