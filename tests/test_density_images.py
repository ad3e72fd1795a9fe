"""The estimator for images: what it fits, draws, codes, and refuses."""

import math
import pickle
from functools import partial

import numpy as np
import pytest
import torch

from pyro_flows import flows
from pyro_flows.density import ImageDensity
from pyro_flows.density.images import on_sphere
from pyro_flows.errors import DomainError, FlowError, ShapeError

GLOW = partial(flows.glow, num_steps=1, hidden_channels=8)
QUICK = {"epochs": 3, "lr": 5e-3, "random_state": 0}


def _digits(count, *, seed=0):
    """Return white bars on black, upright where the label is 1, with a random brightness."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, size=count)
    images = np.zeros((count, 8, 8), dtype=np.uint8)
    for image, label, place in zip(images, labels, rng.integers(2, 6, size=count), strict=True):
        bar = rng.integers(128, 256, size=8)
        if label:
            image[:, place] = bar
        else:
            image[place] = bar
    return images, labels


@pytest.fixture(scope="module")
def fitted():
    images, labels = _digits(1024)
    flow = partial(flows.glow, num_steps=3, hidden_channels=16)
    estimator = ImageDensity(flow, epochs=20, lr=8e-3, random_state=0)
    return estimator.fit(images, labels)


def test_images_are_learnt(fitted):
    """Better than the entropy of independent pixels, each with its own table of values."""
    images, labels = _digits(300, seed=1)
    many = _digits(20_000, seed=2)[0].reshape(-1, 64)
    shares = np.stack([np.bincount(pixel, minlength=256) for pixel in many.T]) / len(many)
    entropy = -np.sum(shares * np.log2(np.maximum(shares, 1e-30)), -1).mean()
    bits = fitted.bits_per_dim(images, labels)
    assert bits < entropy
    # A bar is one of eight, of eight values out of 128.
    assert bits > (2 + 8 * 7) / 64


def test_probabilities_tell_the_classes_apart(fitted):
    images, labels = _digits(200, seed=3)
    right = fitted.score_samples(images, labels)
    wrong = fitted.score_samples(images, 1 - labels)
    assert (right > wrong).mean() > 0.9


def test_draws_are_images_of_their_class(fitted):
    for label in (0, 1):
        draws = fitted.sample(100, label, temperature=0.7, random_state=0)
        assert draws.shape == (100, 1, 8, 8)
        assert draws.dtype == np.int64
        assert draws.min() >= 0
        assert draws.max() <= 255
        # Along a bar, sums differ more than across it.
        spread = [draws[:, 0].sum(axis).std(-1).mean() for axis in (1, 2)]
        assert (spread[0] > spread[1]) == bool(label)


def test_temperature_scales_the_base_draws(fitted):
    still = fitted.sample(5, 1, temperature=0.0, random_state=0)
    np.testing.assert_array_equal(still, np.repeat(still[:1], 5, 0))
    cool, warm = (
        fitted.encode(fitted.sample(200, 1, temperature=t, random_state=0), np.ones(200))
        for t in (0.5, 1.0)
    )
    assert cool.std() < warm.std()


def test_same_seed_same_draws_and_global_state_is_left(fitted):
    before = torch.get_rng_state()
    first, second = (fitted.sample(3, 0, random_state=7) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


def test_codes_come_back_as_the_images(fitted):
    images, labels = _digits(20, seed=4)
    codes = fitted.encode(images, labels)
    assert codes.shape == (20, 64)
    back = fitted.decode(codes, labels)[:, 0]
    assert (back == images).mean() > 0.99
    assert np.abs(back - images.astype(int)).max() <= 1


@pytest.mark.parametrize("way", ["linear", "spherical"])
def test_interpolation_begins_and_ends_at_the_images(fitted, way):
    images, labels = _digits(60, seed=5)
    first, second = images[labels == 1][:2]
    between = fitted.interpolate(first, second, 1, num=5, way=way)
    assert between.shape == (5, 1, 8, 8)
    assert np.abs(between[0, 0] - first.astype(int)).max() <= 1
    assert np.abs(between[-1, 0] - second.astype(int)).max() <= 1


def test_spherical_way_keeps_the_length_and_equal_angles(fitted):
    """Of two codes of one length, a right angle apart, closed forms hold at each third."""
    images, labels = _digits(2, seed=5)
    size = fitted.encode(images, labels).shape[1]
    ends = 3.0 * torch.eye(2, size, dtype=torch.float64)
    shares = torch.tensor([0.0, 1 / 3, 2 / 3, 1.0], dtype=torch.float64)[:, None]
    codes = on_sphere(*ends, shares)
    angles = shares * math.pi / 2
    torch.testing.assert_close(codes[:, :1], 3.0 * angles.cos())
    torch.testing.assert_close(codes[:, 1:2], 3.0 * angles.sin())
    assert not codes[:, 2:].any()
    torch.testing.assert_close(on_sphere(ends[0], 2 * ends[0], shares), (1 + shares) * ends[0])


def test_more_draws_of_the_noise_give_a_tighter_bound(fitted):
    images, labels = _digits(100, seed=6)
    bits = [fitted.bits_per_dim(images, labels, num_draws=n) for n in (1, 20)]
    assert bits[1] < bits[0]


@pytest.mark.parametrize("dequantise", ["uniform", "variational"])
@pytest.mark.parametrize("flow", ["nice", "realnvp", "glow"])
def test_recipes_fit_without_labels(flow, dequantise):
    small = {
        "nice": partial(flows.nice_image, hidden_dims=(32,)),
        "realnvp": partial(flows.realnvp_image, hidden_channels=4),
        "glow": GLOW,
    }[flow]
    images = _digits(128)[0]
    estimator = ImageDensity(small, dequantise=dequantise, **QUICK)
    assert estimator.fit(images) is estimator
    assert np.isfinite(estimator.score_samples(images[:4])).all()
    assert estimator.sample(2).shape == (2, 1, 8, 8)
    assert estimator.result_.validation[-1] < estimator.result_.validation[0]
    nats = estimator.score(images)
    assert estimator.bits_per_dim(images) == pytest.approx(-nats / 64 / math.log(2))


def test_named_recipes_are_those_of_the_flows():
    images = _digits(40)[0]
    estimator = ImageDensity("realnvp", epochs=1, random_state=0).fit(images)
    assert type(estimator.density_.flow.transform.parts[-1]).__name__ == "Sigmoid"


def test_colour_tensors_and_held_out_images():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 8, (64, 3, 4, 4), generator=generator)
    estimator = ImageDensity(GLOW, num_values=8, **QUICK).fit(images, held_out=images[:16])
    assert estimator.image_shape_ == (3, 4, 4)
    assert estimator.sample(2).max() < 8
    assert estimator.result_.nll == pytest.approx(-estimator.score(images[:16]), rel=0.05)


def test_augmented_images_are_what_is_fitted():
    seen = []

    def invert(images):
        seen.append(images.shape)
        return 255 - images

    images = _digits(256)[0]
    estimator = ImageDensity(GLOW, augment=invert, epochs=25, lr=1e-2, random_state=0)
    estimator.fit(images, held_out=255 - images[:32])
    assert set(seen) == {(64, 1, 8, 8)}
    assert estimator.score(255 - images) > estimator.score(images) + 50


def test_copies_and_arguments():
    images = _digits(64)[0]
    estimator = ImageDensity(GLOW, epochs=1, random_state=0)
    assert estimator.get_params()["epochs"] == 1
    assert "epochs=1" in repr(estimator)
    estimator.set_params(epochs=2).fit(images)
    assert estimator.result_.epochs == 2
    copy = pickle.loads(pickle.dumps(estimator))
    np.testing.assert_array_equal(copy.score_samples(images), estimator.score_samples(images))


IMAGES, LABELS = _digits(16)
BAD = [
    (lambda: ImageDensity().fit(IMAGES[0]), ShapeError, r"shape \(N, C, H, W\) or \(N, H, W\)"),
    (lambda: ImageDensity().fit(IMAGES[:0]), ShapeError, "got one of shape"),
    (lambda: ImageDensity().fit(IMAGES / 255), DomainError, r"0 to 255; got .*Undo a scaling"),
    (lambda: ImageDensity(num_values=2).fit(IMAGES), DomainError, "integers from 0 to 1"),
    (lambda: ImageDensity().fit(-IMAGES.astype(int)), DomainError, "integers from 0 to 255"),
    (lambda: ImageDensity("vae").fit(IMAGES), DomainError, "expected flow to be one of 'glow'"),
    (lambda: ImageDensity(device="cudda").fit(IMAGES), DomainError, "device to name one that is"),
    (lambda: ImageDensity(dequantise="no").fit(IMAGES), DomainError, "dequantise to be one of"),
    (lambda: ImageDensity().fit(IMAGES, LABELS[:3]), ShapeError, "16 labels, one for each"),
    (
        lambda: ImageDensity().fit(IMAGES, LABELS, held_out=IMAGES),
        ShapeError,
        "held_out to be a pair of images and labels",
    ),
    (
        lambda: ImageDensity().fit(IMAGES, checkpoint="run"),
        DomainError,
        "a count as random_state",
    ),
    (lambda: ImageDensity().sample(), DomainError, r"a fitted estimator.*Call fit"),
    (
        lambda: ImageDensity(lambda shape, **_: flows.realnvp(3)).fit(IMAGES),
        ShapeError,
        "the recipe to return a Flow over 64 coordinates",
    ),
]


def test_run_that_was_broken_off_goes_on_the_same(tmp_path):
    images, labels = _digits(128)
    calls = []

    def augment(images):
        calls.append(len(images))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return images

    density = ImageDensity(GLOW, augment=augment, engine="traced", **QUICK)
    density.fit(images, labels, checkpoint=tmp_path / "run")
    assert 0 < density.result_.steps < 3
    density.fit(images, labels, checkpoint=tmp_path / "run", resume=True)
    whole = ImageDensity(GLOW, engine="traced", **QUICK).fit(images, labels)
    assert np.array_equal(density.result_.losses, whole.result_.losses)
    assert density.score(images, labels) == whole.score(images, labels)


@pytest.mark.parametrize(("call", "error", "words"), BAD)
def test_bad_arguments(call, error, words):
    """FAULTS 5, 11."""
    with pytest.raises(error, match=words):
        call()


def test_bad_arguments_after_a_fit(fitted):
    for call, error, words in [
        (lambda: fitted.score(IMAGES), ShapeError, "labels where it was fitted with labels"),
        (lambda: fitted.score(IMAGES, LABELS + 5), DomainError, r"labels among \[0, 1\]; got \[5"),
        (lambda: fitted.score(IMAGES[:, :4], LABELS), ShapeError, r"of shape \(1, 8, 8\), as it"),
        (lambda: fitted.sample(0, 1), DomainError, "num to be an integer >= 1"),
        (lambda: fitted.sample(1, 1, temperature=-1.0), DomainError, "temperature"),
        (lambda: fitted.decode(np.zeros((2, 5)), 1), FlowError, "latents"),
        (
            lambda: fitted.interpolate(IMAGES[0], IMAGES[1], 1, way="cubic"),
            DomainError,
            "way to be one of 'spherical', 'linear'",
        ),
    ]:
        with pytest.raises(error, match=words):
            call()
