"""The map into an interval: what every transform promises, its ends, and what lies beyond."""

import contracts
import pytest
import torch
import zoo

from pyro_flows.errors import DomainError
from pyro_flows.transforms import Sigmoid

# Wide enough that the points of the contracts lie in it, and are logits as well.
WIDE = {"low": -9.0, "high": 11.0, "margin": 0.02}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [1, 2, 5])
def test_round_trip_and_ladj(d, dtype):
    """FAULTS 4, 33: against autodiff."""
    case = Sigmoid(d, **WIDE).to(dtype), zoo.points(7, d, dtype=dtype), None
    contracts.round_trip(*case)
    contracts.inverse_ladj_negates(*case)
    contracts.ladj_is_slogdet(*case)


def test_contracts():
    """FAULTS 10, 35, 37, 38: what every transform promises, within the interval."""
    transform, x = Sigmoid(3, **WIDE), zoo.points(7, 3)
    for _, direction in contracts.directions(transform):
        assert torch.autograd.gradcheck(lambda x: direction(x, None), contracts.leaf(x))  # noqa: B023
    contracts.vmap_is_batch(transform, x, None)
    contracts.batch_is_loop(transform, x, None)
    contracts.layout_does_not_matter(transform, x, x.T.contiguous().T, None)
    contracts.copies_are_equal(transform, x, None)
    contracts.compiled_is_eager(transform, x, 0.5 * x, None)
    contracts.empty_batch(transform, None)


def test_ends_are_reached_and_nothing_beyond_the_margins():
    pixels = Sigmoid(1, high=4.0, margin=0.1).double()
    x, ladj = pixels.inverse_and_ladj(torch.tensor([[0.0], [4.0], [-0.5], [4.5], [-1.0], [9.0]]))
    assert x[:2].flatten().tolist() == pytest.approx([-2.19722458, 2.19722458])
    assert ladj[:2].isfinite().all()
    assert torch.isinf(ladj[2:]).all()
    assert x.isfinite().all()
    assert pixels.codomain.check(torch.tensor([-0.49]))
    assert not pixels.codomain.check(torch.tensor([-0.51]))
    assert pixels.inverse_and_ladj(torch.tensor([[torch.nan]]))[1].isnan().all()


def test_far_logits_reach_the_margins_with_finite_gradients():
    x = torch.tensor([[-1e4, 0.0, 1e4]], requires_grad=True)
    y, ladj = Sigmoid(3, margin=0.1).forward_and_ladj(x)
    assert y.flatten().tolist() == pytest.approx([-0.125, 0.5, 1.125])
    assert ladj.tolist() == pytest.approx([-2e4], rel=1e-3)
    (y.sum() + ladj.sum()).backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"margin": 0.5}, "^Sigmoid: expected finite low < high, and a"),
        ({"low": 1.0, "high": 1.0}, "low=1.0, high=1.0"),
        ({"high": float("inf")}, "got low=0.0, high=inf"),
        ({"margin": 0.0}, "^Sigmoid: expected margin .* > 0"),
    ],
)
def test_impossible_intervals_are_refused(options, words):
    with pytest.raises(DomainError, match=words):
        Sigmoid(2, **options)
