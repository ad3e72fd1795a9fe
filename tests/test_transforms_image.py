"""Images as flat vectors: 1x1 convolutions, squeezing, several scales, and a small Glow."""

import contracts
import pytest
import torch
import zoo
from torch.nn import functional

from pyro_flows.distributions import Flow
from pyro_flows.errors import DomainError, ShapeError
from pyro_flows.transforms import (
    ActNorm,
    AffineCoupling,
    Compose,
    Inverse,
    InvertibleConv1x1,
    MultiScale,
    Partial,
    Pixelwise,
    Planar,
    Squeeze,
    initialise_from_data,
)

IMAGE = (3, 8, 8)


def _images(count, shape=IMAGE, **options):
    return zoo.points(count, *shape, **options)


# One transform of the channels at every pixel.


@pytest.mark.parametrize("context_dim", [0, 2])
def test_pixelwise_is_a_loop_over_pixels(context_dim):
    inner = zoo.randomise(Planar(3, context_dim=context_dim, hidden_dims=(5,)).double())
    transform, x = Pixelwise(inner, IMAGE), _images(4)
    context = zoo.context_for(transform, 4)
    for name, direction in contracts.directions(transform):
        value, ladj = direction(x.flatten(1), context)
        one = getattr(inner, f"{name}_and_ladj")
        pixels = [one(x[:, :, i, j], context) for i in range(8) for j in range(8)]
        want = torch.stack([pixel[0] for pixel in pixels], -1)
        contracts.close(value.view(4, 3, 64), want, f"{name} value")
        contracts.close(ladj, sum(pixel[1] for pixel in pixels), f"{name} ladj")


def test_conv1x1_is_a_convolution():
    transform, x = zoo.randomise(InvertibleConv1x1(IMAGE).double()), _images(4)
    linear = transform.transform
    matrix = (linear(torch.eye(3, dtype=x.dtype)) - linear.loc).T
    y, ladj = transform.forward_and_ladj(x.flatten(1))
    want = functional.conv2d(x, matrix[:, :, None, None], linear.loc)
    contracts.close(y.view_as(x), want, "y", inputs=x)
    contracts.close(ladj, (64 * torch.linalg.slogdet(matrix)[1]).expand(4), "ladj")


@pytest.mark.parametrize("channels", [1, 2, 3, 12])
def test_conv1x1_starts_at_a_rotation(channels):
    for seed in range(4):
        torch.manual_seed(seed)
        transform = InvertibleConv1x1((channels, 1, 1), start="rotation")
        matrix = transform(torch.eye(channels)).T
        contracts.close(matrix @ matrix.T, torch.eye(channels), "product", slack=10)
        contracts.close(torch.linalg.det(matrix), torch.tensor(1.0), "determinant", slack=10)
        assert channels == 1 or not torch.allclose(matrix, torch.eye(channels), atol=1e-2)


@pytest.mark.parametrize(("shape", "factor"), [(IMAGE, 2), ((2, 6, 9), 3), ((1, 4, 4), 4)])
def test_squeeze_is_pixel_unshuffle(shape, factor):
    transform, x = Squeeze(shape, factor=factor), _images(4, shape)
    y, ladj = transform.forward_and_ladj(x.flatten(1))
    want = functional.pixel_unshuffle(x, factor)
    assert transform.output_shape == tuple(want.shape[1:])
    assert torch.equal(y.view_as(want), want)
    assert torch.equal(transform.inv(y).view_as(x), functional.pixel_shuffle(want, factor))
    assert not ladj.any()


# Several scales.


def test_partial_keeps_what_it_does_not_move():
    inner = zoo.randomise(AffineCoupling(2, context_dim=2, hidden_dims=(5,)).double())
    x, context = zoo.points(5), zoo.points(3, 1, 2)
    for name, direction in contracts.directions(Partial(inner, 5)):
        value, ladj = direction(x, context)
        want = getattr(inner, f"{name}_and_ladj")(x[:2], context)
        contracts.close(value[..., :2], want[0], f"{name} value")
        contracts.close(ladj, want[1], f"{name} ladj")
        assert torch.equal(value[..., 2:], x[2:].expand(3, 1, 3)), name


def test_multi_scale_lets_coordinates_stop():
    """Seen from the data, the last level acts first, and some of its results are the base's."""
    first, second, last = (zoo.randomise(AffineCoupling(d).double()) for d in (2, 4, 8))
    y = zoo.points(10, 8)
    x, ladj = MultiScale([first, second, last]).inverse_and_ladj(y)
    z, ladj_last = last.inverse_and_ladj(y)
    assert torch.equal(x[:, 4:], z[:, 4:])
    z, ladj_second = second.inverse_and_ladj(z[:, :4])
    assert torch.equal(x[:, 2:4], z[:, 2:])
    z, ladj_first = first.inverse_and_ladj(z[:, :2])
    assert torch.equal(x[:, :2], z)
    contracts.close(ladj, ladj_first + ladj_second + ladj_last, "ladj")


def _glow(image_shape, *, count_levels=2, num_steps=2, start="rotation", context_dim=0):
    """Return a small Glow, from the base to an image of that shape."""
    levels, shape = [], image_shape
    for _ in range(count_levels):
        squeeze = Squeeze(shape)
        inner, d = squeeze.output_shape, squeeze.input_dim
        steps = [
            part
            for _ in range(num_steps)
            for part in (
                AffineCoupling(d, hidden_dims=(16,), context_dim=context_dim),
                InvertibleConv1x1(inner, start=start),
                ActNorm(d, image_shape=inner),
            )
        ]
        levels.append(Compose([*steps, Inverse(squeeze)]))
        shape = (inner[0] // 2, *inner[1:])
    return MultiScale(reversed(levels))


@pytest.mark.parametrize("context_dim", [0, 2])
def test_small_glow_keeps_the_contracts(context_dim):
    """FAULTS 33: its log-determinant against autodiff, both ways, at random parameters."""
    transform = zoo.randomise(_glow((2, 4, 4), context_dim=context_dim).double(), scale=0.2)
    assert [part.input_dim for part in transform.parts] == [32, 32]
    x, context = zoo.points(3, 32), zoo.context_for(transform, 3)
    contracts.round_trip(transform, x, context)
    contracts.inverse_ladj_negates(transform, x, context)
    contracts.ladj_is_slogdet(transform, x, context)
    contracts.batch_is_loop(transform, zoo.points(2, 1, 32), context)
    contracts.vmap_is_batch(transform, x, context)
    contracts.every_parameter_learns(transform, x, context)
    contracts.copies_are_equal(transform, x, context)


def test_small_glow_starts_at_a_reordering():
    """FAULTS 34: squeezing moves the entries to other places, and nothing else happens."""
    x = _images(4, dtype=torch.float32).flatten(1)
    y, ladj = _glow(IMAGE, start="identity").forward_and_ladj(x)
    contracts.close(y.sort(-1)[0], x.sort(-1)[0], "entries")
    assert not ladj.any()


def test_glow_of_real_images_starts_and_trains():
    torch.manual_seed(0)
    data = (200 + 30 * _images(40, dtype=torch.float32).cumsum(-1)).flatten(1)
    transform = _glow(IMAGE)
    flow = Flow(transform)
    initialise_from_data(transform, data)
    assert all(part.initialised for part in transform.modules() if isinstance(part, ActNorm))
    contracts.relative_round_trip(transform, data, None)
    optimiser, losses = torch.optim.Adam(transform.parameters(), lr=1e-2), []
    for _ in range(30):
        optimiser.zero_grad()
        loss = -flow.log_prob(data).mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 50, losses


def test_context_and_names_in_representations():
    text = repr(_glow(IMAGE))
    assert "image_shape=(3, 8, 8), factor=2" in text
    assert "image_shape=(12, 4, 4)" in text


BAD = [
    # FAULTS 11: impossible sizes, with the numbers.
    *[
        (lambda make=make: make((3, 8)), ShapeError, r"\(channels, height, width\); got \(3, 8\)")
        for make in (Squeeze, InvertibleConv1x1, lambda shape: ActNorm(24, image_shape=shape))
    ],
    (lambda: Squeeze((3, 0, 8)), DomainError, "^Squeeze: expected each of image_shape .* got 0"),
    (lambda: InvertibleConv1x1(3), DomainError, "image_shape to be a sequence of integers"),
    (
        lambda: Squeeze((3, 8, 7)),
        ShapeError,
        "^Squeeze: expected a height and a width that factor=2 divides; got 8 x 7",
    ),
    (lambda: Squeeze(IMAGE, factor=0), DomainError, "factor to be an integer >= 1; got 0"),
    (lambda: InvertibleConv1x1(IMAGE, start="zero"), DomainError, "'identity', 'rotation'; got"),
    (
        lambda: InvertibleConv1x1(IMAGE, context_dim=-1),
        DomainError,
        "^InvertibleConv1x1: .*got -1",
    ),
    (lambda: ActNorm(5, image_shape=IMAGE), ShapeError, r"of 5 entries.*got \(3, 8, 8\), of 192"),
    (lambda: Pixelwise(Planar(2), IMAGE), ShapeError, r"the 3 channels of .*; got input_dim=2"),
    (lambda: Pixelwise(torch.exp, IMAGE), DomainError, "^Pixelwise: expected a FlowTransform"),
    (lambda: Partial(Planar(3), 2), ShapeError, "^Partial: expected an input_dim of at least 3"),
    (lambda: Partial(Planar(3), 0), DomainError, "^Partial: expected input_dim .*; got 0"),
    (lambda: Partial(None, 2), DomainError, "^Partial: expected a FlowTransform; got None"),
    (
        lambda: MultiScale([]),
        DomainError,
        "^MultiScale: expected at least one level; got an empty",
    ),
    (lambda: MultiScale([Planar(2), 3]), DomainError, "^MultiScale: expected a FlowTransform"),
    (
        lambda: MultiScale([Planar(4), Planar(2)]),
        ShapeError,
        r"^MultiScale: expected levels of a growing input_dim; got \[4, 2\]",
    ),
    (
        lambda: MultiScale([Planar(2, context_dim=1), Planar(4, context_dim=2)]),
        ShapeError,
        r"^MultiScale: expected parts of one context_dim; got \[1, 2\]",
    ),
]


@pytest.mark.parametrize(("call", "error", "words"), BAD)
def test_bad_arguments(call, error, words):
    """FAULTS 5, 11."""
    with pytest.raises(error, match=words):
        call()
