"""The data-dependent start of ActNorm, alone and inside other transforms."""

import contracts
import pytest
import torch
import zoo

from pyro_flows.distributions import Flow
from pyro_flows.errors import DomainError, NonFiniteError, ShapeError
from pyro_flows.transforms import (
    ActNorm,
    AffineCoupling,
    Compose,
    Inverse,
    LULinear,
    MultiScale,
    Partial,
    Pixelwise,
    Planar,
    initialise_from_data,
)

NAN = float("nan")


def _standard(values, axes, *, tolerance=1e-5):
    """Mean 0 and sd 1 along the axes."""
    assert values.mean(axes).abs().max() < tolerance
    assert (values.std(axes, correction=0) - 1).abs().max() < tolerance


@pytest.mark.parametrize("direction", ["inverse", "forward"])
@pytest.mark.parametrize("batch", [(2,), (50,), (5, 4)])
def test_actnorm_starts_at_mean_zero_and_sd_one(batch, direction):
    data = 3 + torch.tensor([0.01, 1.0, 20.0, 5.0]) * zoo.points(*batch, 4, dtype=torch.float32)
    transform = zoo.randomise(ActNorm(4))
    transform.initialise(data, direction=direction)
    run = getattr(transform, f"{direction}_and_ladj")
    value, ladj = run(data)
    _standard(value, tuple(range(len(batch))), tolerance=1e-3 if direction == "forward" else 1e-4)
    contracts.ladj_is_slogdet(transform, data.view(-1, 4), None)
    contracts.close(ladj, run(torch.zeros(4))[1].expand(batch), "ladj")


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 4)])
def test_actnorm_of_channels(shape):
    data = 3 + 5 * zoo.points(20, *shape) * torch.arange(1.0, shape[0] + 1)[:, None, None]
    transform = ActNorm(data[0].numel(), image_shape=shape).double()
    transform.initialise(data.flatten(1))
    _standard(transform.inv(data.flatten(1)).view_as(data), (0, 2, 3))
    assert transform.transform.loc.shape == shape[:1]


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-6, 1.0, 1e6, 1e20, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_actnorm_starts_at_any_scale(dtype, size):
    """FAULTS 15."""
    data = size * zoo.points(50, 3, dtype=dtype)
    for direction in ("inverse", "forward"):
        transform = ActNorm(3).to(dtype)
        transform.initialise(data, direction=direction)
        _standard(getattr(transform, f"{direction}_and_ladj")(data)[0], 0)


def test_actnorm_keeps_the_digits_of_data_far_from_zero():
    data = 1e5 + zoo.points(500, 3, dtype=torch.float32)
    transform = ActNorm(3)
    transform.initialise(data)
    _standard(transform.inv(data).double(), 0, tolerance=1e-2)
    spread = transform.inv(data) * data.double().std(0) - (data.double() - data.double().mean(0))
    assert spread.abs().max() < 1e-2


def test_actnorm_changes_only_when_told_to():
    """FAULTS 42: no hidden statistics; the density of a point does not depend on its batch."""
    transform, data = ActNorm(3), zoo.points(50, 3, dtype=torch.float32)
    flow = Flow(transform)
    for training in (True, False):
        transform.train(training)
        contracts.starts_at_identity(transform, data, None)
        assert not transform.initialised
        contracts.close(flow.log_prob(data)[:1], flow.log_prob(data[:1]), "log-density")
    transform.initialise(data)
    assert transform.initialised
    before = flow.log_prob(data)
    transform.initialise(5 * data)
    assert not torch.equal(flow.log_prob(data), before)
    transform.initialise(data)
    assert torch.equal(flow.log_prob(data), before)


def test_actnorm_start_is_saved():
    """FAULTS 39."""
    transform, data = ActNorm(3), zoo.points(50, 3, dtype=torch.float32)
    transform.initialise(4 * data + 1)
    other = ActNorm(3)
    other.load_state_dict(transform.state_dict())
    assert other.initialised
    contracts.same_map(other, transform, data, None)
    contracts.copies_are_equal(transform, data, None)
    contracts.every_parameter_learns(transform, data, None)


FINE = zoo.points(5, 3, dtype=torch.float32)
COLUMN = torch.tensor([0.0, 1.0, 0.0])
BAD_DATA = {
    "one point": (FINE[:1], DomainError, "at least 2 points to start from; got 1"),
    "a vector": (FINE[0], DomainError, "at least 2 points to start from; got 1"),
    "none": (FINE[:0], DomainError, "at least 2 points to start from; got 0"),
    "nan": (FINE * torch.where(COLUMN == 1, NAN, 1.0), NonFiniteError, r"in coordinates \[1\]"),
    "inf": (FINE / COLUMN, NonFiniteError, r"in coordinates \[0, 2\]"),
    "constant": (FINE * (1 - COLUMN) + 0.1, DomainError, r"deviations \[0\] in coordinates \[1\]"),
    "all constant": (FINE[:1].repeat(4, 1), DomainError, r"in coordinates \[0, 1, 2\]"),
    "too little": (FINE * (1 - COLUMN) + 1e-42 * FINE, DomainError, r"in coordinates \[1\]"),
    "another dtype": (FINE.double() * 1e300, DomainError, "float64 points and float32 parameters"),
    "one too many": (torch.zeros(5, 4), ShapeError, r"points of shape \(\*, 3\)"),
    "integers": (torch.zeros(5, 3).int(), DomainError, "got a int32 tensor"),
}


@pytest.mark.parametrize(("data", "error", "words"), BAD_DATA.values(), ids=BAD_DATA)
def test_actnorm_refuses_bad_data(data, error, words):
    """FAULTS 16, 42: nothing is poisoned: a refused start leaves the transform as it was."""
    transform = ActNorm(3)
    for start in (transform.initialise, lambda x: initialise_from_data(transform, x)):
        with pytest.raises(error, match=rf"^ActNorm: expected .*{words}"):
            start(data)
    assert not transform.initialised
    contracts.starts_at_identity(transform, FINE, None)


def test_actnorm_names_few_of_many_constant_channels():
    transform = ActNorm(2000, image_shape=(1000, 2, 1))
    with pytest.raises(DomainError, match=r"in channels \[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, \.\.\.\]"):
        transform.initialise(torch.ones(4, 2000))


def _actnorms(transform):
    return [part for part in transform.modules() if isinstance(part, ActNorm)]


def _walked(d, c):
    """Return one that holds an ActNorm in every place that the walk looks into."""
    inside = Compose([LULinear(2), ActNorm(2)])
    return Compose(
        [
            ActNorm(d),
            AffineCoupling(d, context_dim=c, hidden_dims=(5,)),
            Inverse(Compose([ActNorm(d), AffineCoupling(d, hidden_dims=(5,))])),
            Inverse(Inverse(ActNorm(d))),
            MultiScale([Compose([ActNorm(d - 2), Planar(d - 2, context_dim=c)]), ActNorm(d)]),
            Partial(ActNorm(2), d),
            Pixelwise(inside, (2, d // 2, 1)),
            ActNorm(d, image_shape=(2, d // 2, 1)),
        ]
    ).double()


@pytest.mark.parametrize("context_batch", [(), (200,)])
@pytest.mark.parametrize("direction", ["inverse", "forward"])
@pytest.mark.parametrize("c", [0, 2])
def test_every_actnorm_starts_on_what_reaches_it(c, direction, context_batch, monkeypatch):
    transform, data = zoo.randomise(_walked(6, c)), 5 + 3 * zoo.points(200, 6)
    context = zoo.context_for(transform, *context_batch)
    initialise_from_data(transform, data, context, direction=direction)
    parts = _actnorms(transform)
    assert len(parts) == 8
    assert all(part.initialised for part in parts)
    seen = []
    for name, side in (("_forward_and_push", "forward"), ("_inverse_and_push", "inverse")):
        plain = getattr(ActNorm, name)

        def watched(self, points, context, plain=plain, side=side):
            value, *rest = plain(self, points, context)
            seen.append((id(self), side))
            _standard(self.to_pixels(value).flatten(0, -2), 0)
            return value, *rest

        monkeypatch.setattr(ActNorm, name, watched)
    getattr(transform, f"{direction}_and_ladj")(data, context)
    assert {part for part, _ in seen} == {id(part) for part in parts}
    # The one that is run backwards.
    assert sorted(side == direction for _, side in seen) == [False] + 7 * [True]


def test_initialise_from_data_refuses_as_the_transform_does():
    """FAULTS 1, 2."""
    transform = Compose([ActNorm(2), Planar(2, context_dim=1)])
    data = zoo.points(9, 2, dtype=torch.float32)
    with pytest.raises(ShapeError, match=r"points of shape \(\*, 2\)"):
        initialise_from_data(transform, torch.zeros(9, 3), torch.zeros(1))
    with pytest.raises(ShapeError, match=r"a context of shape \(\*, 1\); got none"):
        initialise_from_data(transform, data)
    for start in (ActNorm(2).initialise, lambda x, **o: initialise_from_data(Planar(2), x, **o)):
        with pytest.raises(DomainError, match="direction to be one of 'forward', 'inverse'; got"):
            start(data, direction="backward")
    initialise_from_data(Planar(2), data)
