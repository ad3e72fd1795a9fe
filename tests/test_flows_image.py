"""The recipes for images: contracts, starts, contexts, and what is refused."""

from functools import partial

import contracts
import pytest
import torch
import zoo

from pyro_flows import flows
from pyro_flows.density import Dequantised
from pyro_flows.errors import DomainError, ShapeError
from pyro_flows.transforms import initialise_from_data

SHAPE = (1, 8, 8)
SMALL = {
    "glow": partial(flows.glow, num_steps=2, hidden_channels=6),
    "glow_one_scale": partial(flows.glow, num_steps=2, num_scales=1, hidden_channels=6),
    "realnvp_image": partial(flows.realnvp_image, hidden_channels=4, num_blocks=1),
    "realnvp_one_scale": partial(flows.realnvp_image, hidden_channels=4, num_scales=1),
    "nice_image": partial(flows.nice_image, hidden_dims=(8, 8)),
}
EVERY = pytest.mark.parametrize("name", SMALL)


def _images(count, shape=SHAPE, *, num_values=256, dtype=torch.float64):
    """Return integers, of which half are black."""
    size = (count, shape[0] * shape[1] * shape[2])
    values = (zoo.points(*size, dtype=torch.float64).clamp(0, 3) / 3 * (num_values - 1)).floor()
    return values.to(dtype)


@EVERY
@pytest.mark.parametrize("shape", [SHAPE, (3, 4, 4)])
def test_log_determinant_is_autodiffs(name, shape):
    """FAULTS 33: both ways, at random parameters, for pixels between 0 and 256."""
    transform = zoo.randomise(SMALL[name](shape).double(), scale=0.1).transform
    x = _images(2, shape) + 0.5
    contracts.ladj_is_slogdet(transform, transform.inv(x), None)
    back, ladj = transform.inverse_and_ladj(x)
    again, forth = transform.forward_and_ladj(back)
    torch.testing.assert_close(again, x, rtol=1e-8, atol=1e-6)
    torch.testing.assert_close(forth, -ladj, rtol=1e-8, atol=1e-6)


@EVERY
def test_class_conditional_flows_depend_on_the_class(name):
    """Also where what depends on it is many scales away."""
    flow = zoo.randomise(SMALL[name](SHAPE, context_dim=3).double(), scale=0.2)
    x = _images(2) + 0.5
    scores = [flow.condition(row).log_prob(x) for row in torch.eye(3).double()]
    assert not torch.allclose(scores[0], scores[1])
    torch.testing.assert_close(
        flow.condition(torch.eye(3).double()[:, None]).log_prob(x), torch.stack(scores)
    )


@EVERY
def test_every_parameter_learns_from_pixels(name):
    flow = zoo.randomise(SMALL[name](SHAPE, context_dim=2), scale=0.1)
    rows = _images(4, dtype=torch.float32) + 0.5
    flow.condition(torch.eye(2).repeat(2, 1)).log_prob(rows).sum().backward()
    still = [
        key
        for key, p in flow.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert not still


@EVERY
@pytest.mark.parametrize("num_values", [2, 256])
def test_black_and_white_pixels_have_finite_densities(name, num_values):
    """FAULTS 15: all values, their ends among them, in float32, and finite gradients."""
    flow = SMALL[name](SHAPE, num_values=num_values)
    rows = torch.cat([torch.zeros(1, 64), torch.full((1, 64), num_values - 1.0)]).repeat(4, 1)
    initialise_from_data(flow.transform, rows + torch.rand(8, 64))
    for points in (rows, rows + 1.0):
        log_prob = flow.log_prob(points)
        assert log_prob.isfinite().all()
        log_prob.sum().backward()
    assert all(p.grad.isfinite().all() for p in flow.parameters() if p.grad is not None)


@EVERY
def test_draws_are_pixels_and_score_as_they_were_drawn(name):
    flow = zoo.randomise(SMALL[name](SHAPE).double(), scale=0.05)
    x, log_prob = flow.rsample_with_log_prob((50,))
    torch.testing.assert_close(flow.log_prob(x), log_prob, rtol=1e-6, atol=1e-4)
    if name != "nice_image":
        assert ((x > -0.6) & (x < 256.6)).all()


def test_probabilities_of_all_images_sum_to_that_of_a_draw_within_them():
    """There are 3^4 images; a draw may also fall into the margins."""
    torch.manual_seed(0)
    flow = flows.glow((1, 2, 2), num_scales=1, num_steps=2, hidden_channels=4, num_values=3)
    density = Dequantised(zoo.randomise(flow.double(), scale=0.1))
    images = torch.cartesian_prod(*[torch.arange(3.0, dtype=torch.float64)] * 4)
    with torch.no_grad():
        total = density.tighter_log_prob(images, 400).exp().sum()
        draws = flow.sample((20_000,))
        within = ((draws >= 0) & (draws < 3)).all(-1).double().mean()
    assert total == pytest.approx(float(within), abs=0.02)


BAD = [
    (lambda: flows.glow((28, 28)), ShapeError, r"^glow: .*\(channels, height, width\)"),
    (lambda: flows.glow((1, 6, 6)), ShapeError, "that factor=2 divides; got 3 x 3"),
    (lambda: flows.glow(SHAPE, num_steps=0), DomainError, "^glow: expected num_steps .*; got 0"),
    (lambda: flows.glow(SHAPE, num_scales=0), DomainError, "^glow: expected num_scales"),
    (lambda: flows.glow(SHAPE, num_values=1), DomainError, "num_values to be an integer >= 2"),
    (lambda: flows.realnvp_image(SHAPE, num_scales=-1), DomainError, "num_scales .*; got -1"),
    (lambda: flows.nice_image(SHAPE, num_transforms=0), DomainError, "^nice_image: .*; got 0"),
]


@pytest.mark.parametrize(("call", "error", "words"), BAD)
def test_bad_arguments(call, error, words):
    """FAULTS 11."""
    with pytest.raises(error, match=words):
        call()
