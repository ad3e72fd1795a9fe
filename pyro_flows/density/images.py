"""A density estimator for images."""

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_flows import _checks, flows
from pyro_flows.density.conventions import Conventions, as_device, as_seed, check_repeatable
from pyro_flows.density.dequantised import Dequantised
from pyro_flows.density.mle import fit_mle
from pyro_flows.density.noise import UniformNoise, VariationalNoise
from pyro_flows.density.pixels import ImageShape, as_one_hot, read_images
from pyro_flows.distributions import Flow
from pyro_flows.errors import ShapeError
from pyro_flows.infer.random import seeded

_WHO = "ImageDensity"
_RECIPES: dict[str, Callable[..., Flow]] = {
    "glow": flows.glow,
    "nice": flows.nice_image,
    "realnvp": flows.realnvp_image,
}
_NOISES = ("variational", "uniform")
_IMAGES_AT_ONCE = 500
# Nats of hundreds of coordinates have a gradient as much larger than a table's.
_CLIP_NORM = 100.0
# Two codes in one line leave no sphere to walk on.
_LEAST_SINE = 1e-6
_Run = Callable[[Dequantised, Tensor, Tensor | None], Tensor]


class ImageDensity(Conventions):
    r"""Estimate the distribution of images by a flow, in bits a dimension.

    .. math:: \text{bits/dim} = -\frac{1}{D} \log_2 P(x)

    Images are integers from 0 to ``num_values - 1``; the distribution is that of these integers
    (:class:`~pyro_flows.density.Dequantised`). With labels, it is that of each class.

    Args:
        flow: ``"glow"``, ``"realnvp"``, ``"nice"``, or a function ``(image_shape, *, context_dim,
            num_values) -> Flow``, such as ``functools.partial(flows.glow, num_steps=16)``.
        dequantise: ``"variational"`` (learnt noise) or ``"uniform"``.
        num_values: Number of values of a pixel.
        augment: Returns other images for a batch of integers of shape ``(B, C, H, W)``, at each
            step anew, such as shifted ones; none if not given.
        validation: The share of the images to hold out; they choose the state and the end.
        epochs: Largest number of passes over the images.
        batch_size: Images of a step.
        lr: Largest step size.
        weight_decay: Decoupled decay of the parameters.
        patience: Epochs without a better held-out likelihood after which to stop, or ``None``.
        device: Where the flow is trained and used, such as ``"cuda"``.
        engine: How steps run, as in :func:`~pyro_flows.density.fit_mle`.
        random_state: Seeds parameters, split, order and noise.
        progress: Whether to show a progress bar.

    Attributes:
        flow_: The fitted flow, over pixels as real numbers from 0 to ``num_values``.
        density_: The distribution of the integers: a :class:`~pyro_flows.density.Dequantised`.
        result_: How the fit went: an :class:`~pyro_flows.density.MleResult`.
        image_shape_: ``(C, H, W)``.
        classes_: The labels, sorted; none without labels.

    Raises:
        DomainError: On fitting: an argument, or an image, is not possible.
        ShapeError: On fitting: the images have no common shape ``(N, C, H, W)`` or ``(N, H, W)``.

    Reference:
        Kingma & Dhariwal (2018), *Glow: Generative flow with invertible 1x1 convolutions*;
        Theis, van den Oord & Bethge (2016), *A note on the evaluation of generative models*.

    Example:
        >>> from functools import partial
        >>> import numpy as np
        >>> from pyro_flows import flows
        >>> images = np.random.default_rng(0).integers(0, 256, size=(64, 8, 8))
        >>> small = partial(flows.glow, num_steps=1, hidden_channels=8)
        >>> density = ImageDensity(small, epochs=1, random_state=0).fit(images)
        >>> density.sample(3).shape, density.bits_per_dim(images) > 7.0
        ((3, 1, 8, 8), True)
    """

    def __init__(
        self,
        flow: str | Callable[..., Flow] = "glow",
        *,
        dequantise: str = "variational",
        num_values: int = 256,
        augment: Callable[[Tensor], Tensor] | None = None,
        validation: float = 0.1,
        epochs: int = 100,
        batch_size: int = 64,
        lr: float = 2e-3,
        weight_decay: float = 0.0,
        patience: int | None = 30,
        device: str = "cpu",
        engine: str = "auto",
        random_state: int | None = None,
        progress: bool = False,
    ) -> None:
        self.flow, self.dequantise, self.num_values = flow, dequantise, num_values
        self.augment, self.validation = augment, validation
        self.epochs, self.batch_size, self.lr = epochs, batch_size, lr
        self.weight_decay, self.patience = weight_decay, patience
        self.device, self.engine = device, engine
        self.random_state, self.progress = random_state, progress

    def fit(
        self,
        images: Any,
        labels: Any = None,
        *,
        held_out: tuple[Any, Any] | Any = None,
        checkpoint: str | os.PathLike[str] | None = None,
        resume: bool = False,
    ) -> "ImageDensity":
        """Fit the flow to images, and return the estimator.

        Args:
            images: Integers, of shape ``(N, C, H, W)``, or ``(N, H, W)`` for one channel.
            labels: The class of each image, of shape ``(N,)``; none for one distribution of all.
            held_out: Images that are held out, in the place of the share ``validation``; with
                labels, a pair.
            checkpoint: A file to save the run in, as in :func:`~pyro_flows.density.fit_mle`; for
                a ``random_state`` that is a count.
            resume: Whether to go on from ``checkpoint``, if there is such a file.
        """
        if checkpoint is not None:
            check_repeatable(_WHO, self.random_state)
        pixels, self.image_shape_ = self._read(images)
        self.classes_ = None if labels is None else np.unique(np.asarray(labels))
        context = self._one_hot(labels, len(pixels))
        with seeded(_WHO, as_seed(_WHO, self.random_state)):
            density = self._build()
            self.result_ = fit_mle(
                density,
                pixels,
                context=context,
                validation=self._held_out(held_out),
                epochs=self.epochs,
                batch_size=self.batch_size,
                lr=self.lr,
                weight_decay=self.weight_decay,
                patience=self.patience,
                clip_norm=_CLIP_NORM,
                engine=self.engine,
                augment=None if self.augment is None else self._augmented,
                progress=self.progress,
                checkpoint=checkpoint,
                resume=resume,
            )
        self.density_ = density.eval()
        self.flow_ = density.flow
        return self

    def bits_per_dim(self, images: Any, labels: Any = None, *, num_draws: int = 1) -> float:
        """Return the mean bits a dimension that the images take; an upper bound of theirs.

        Args:
            images: As for :meth:`fit`.
            labels: Their classes, where it was fitted with labels.
            num_draws: Draws of the noise; more of them give a tighter bound.
        """
        return -self.score(images, labels, num_draws=num_draws) / (self._size * math.log(2))

    def score(self, images: Any, labels: Any = None, *, num_draws: int = 1) -> float:
        """Return the mean log-probability of the images, in nats.

        Args:
            images: As for :meth:`fit`.
            labels: Their classes, where it was fitted with labels.
            num_draws: Draws of the noise; more of them give a tighter bound.
        """
        return float(self.score_samples(images, labels, num_draws=num_draws).mean())

    def score_samples(self, images: Any, labels: Any = None, *, num_draws: int = 1) -> np.ndarray:
        """Return the log-probability of each image, in nats: a lower bound, of shape ``(N,)``.

        Args:
            images: As for :meth:`fit`.
            labels: Their classes, where it was fitted with labels.
            num_draws: Draws of the noise; more of them give a tighter bound.
        """

        def score(density: Dequantised, pixels: Tensor, context: Tensor | None) -> Tensor:
            given = density if context is None else density.condition(context)
            return given.tighter_log_prob(pixels, num_draws)

        with seeded(_WHO, as_seed(_WHO, self.random_state)):
            return self._by_chunks(score, self._rows(images), labels).double().numpy()

    def sample(
        self,
        num: int = 1,
        labels: Any = None,
        *,
        temperature: float = 1.0,
        random_state: int | None = None,
    ) -> np.ndarray:
        """Draw images, of shape ``(num, C, H, W)``.

        Args:
            num: Number of images.
            labels: Their classes, of shape ``(num,)`` or one for all, where it was fitted with
                labels.
            temperature: Factor on the base's draws: below 1, images are more typical and less
                diverse.
            random_state: Seeds the draws, and leaves the global random state alone.
        """
        self._check_fitted()
        num = _checks.check_count(_WHO, "num", num)
        temperature = _checks.check_positive(_WHO, "temperature", temperature, zero=True)
        with seeded(_WHO, as_seed(_WHO, random_state)), torch.no_grad():
            latents = self.flow_.base_dist.sample((num,)) * temperature
        return self.decode(latents, labels)

    def encode(self, images: Any, labels: Any = None) -> np.ndarray:
        """Return the base's point for each image, of shape ``(N, C * H * W)``.

        Args:
            images: As for :meth:`fit`.
            labels: Their classes, where it was fitted with labels.
        """

        def code(density: Dequantised, pixels: Tensor, context: Tensor | None) -> Tensor:
            # The middle of each value's interval, so that the same image has the same code.
            return density.transform.inverse_and_ladj(pixels + 0.5, context)[0]

        return self._by_chunks(code, self._rows(images), labels).numpy()

    def decode(self, latents: Any, labels: Any = None) -> np.ndarray:
        """Return the image of each point of the base, of shape ``(N, C, H, W)``.

        Args:
            latents: Of shape ``(N, C * H * W)``.
            labels: Their classes, where it was fitted with labels.
        """

        def image(density: Dequantised, codes: Tensor, context: Tensor | None) -> Tensor:
            return density.rounded(density.transform.forward_and_ladj(codes, context)[0])

        codes = torch.as_tensor(latents, dtype=torch.float32, device=as_device(_WHO, self.device))
        self._check_fitted()
        _checks.check_points(_WHO, "latents", codes, self._size)
        pixels = self._by_chunks(image, codes, labels).clamp(0, self.num_values - 1)
        return pixels.unflatten(1, self.image_shape_).to(torch.int64).numpy()

    def interpolate(
        self, first: Any, second: Any, labels: Any = None, *, num: int = 8, way: str = "spherical"
    ) -> np.ndarray:
        """Return images on the way from one to another, of shape ``(num, C, H, W)``.

        Args:
            first: An image, of shape ``(C, H, W)`` or ``(H, W)``.
            second: Another.
            labels: The class of both, where it was fitted with labels.
            num: Number of images.
            way: Of the codes: ``"spherical"``, on which they keep a typical length, or
                ``"linear"``.
        """
        num = _checks.check_count(_WHO, "num", num, least=2)
        _checks.check_choice(_WHO, "way", way, ("spherical", "linear"))
        pair = np.stack([np.asarray(first), np.asarray(second)])
        start, end = torch.from_numpy(self.encode(pair, labels)).double()
        shares = torch.linspace(0.0, 1.0, num, dtype=torch.float64)[:, None]
        between = on_sphere if way == "spherical" else torch.lerp
        return self.decode(between(start, end, shares), labels)

    @property
    def _size(self) -> int:
        return math.prod(self.image_shape_)

    def _build(self) -> Dequantised:
        recipe = self.flow
        if isinstance(recipe, str):
            recipe = _RECIPES[_checks.check_choice(_WHO, "flow", recipe, tuple(_RECIPES))]
        classes = 0 if self.classes_ is None else len(self.classes_)
        flow = recipe(self.image_shape_, context_dim=classes, num_values=self.num_values)
        if not isinstance(flow, Flow) or flow.event_shape != (self._size,):
            raise _checks.refusal(
                ShapeError,
                _WHO,
                expected=f"the recipe to return a Flow over {self._size} coordinates",
                got=_checks.describe(flow),
            )
        _checks.check_choice(_WHO, "dequantise", self.dequantise, _NOISES)
        learnt = self.dequantise == "variational"
        noise = VariationalNoise(self.num_values) if learnt else UniformNoise()
        return Dequantised(flow, noise=noise).to(as_device(_WHO, self.device))

    def _augmented(self, rows: Tensor) -> Tensor:
        assert self.augment is not None
        return self.augment(rows.unflatten(1, self.image_shape_)).flatten(1)

    def _held_out(self, held_out: Any) -> Any:
        if held_out is None:
            return self.validation
        if self.classes_ is None:
            return self._read(held_out)[0]
        if not isinstance(held_out, tuple) or len(held_out) != 2:
            raise _checks.refusal(
                ShapeError,
                _WHO,
                expected="held_out to be a pair of images and labels, as it is fitted with labels",
                got=_checks.describe(type(held_out)),
            )
        images, labels = held_out
        pixels = self._read(images)[0]
        return pixels, self._one_hot(labels, len(pixels))

    def _rows(self, images: Any) -> Tensor:
        """Return images of the fitted shape as rows."""
        self._check_fitted()
        rows, shape = self._read(images)
        if shape != self.image_shape_:
            raise _checks.refusal(
                ShapeError,
                _WHO,
                expected=f"images of shape {self.image_shape_}, as it was fitted to",
                got=f"{shape}",
            )
        return rows

    def _read(self, images: Any) -> tuple[Tensor, ImageShape]:
        rows, shape = read_images(_WHO, images, self.num_values)
        return rows.to(as_device(_WHO, self.device)), shape

    def _one_hot(self, labels: Any, count: int) -> Tensor | None:
        """Return the class of each of some images, as a context; none without labels."""
        context = as_one_hot(_WHO, labels, self.classes_, count)
        return None if context is None else context.to(as_device(_WHO, self.device))

    def _by_chunks(self, run: _Run, rows: Tensor, labels: Any) -> Tensor:
        """Return what a function makes of rows and contexts, without a graph, on the CPU."""
        density, context = self.density_, self._one_hot(labels, len(rows))
        chunks = rows.split(_IMAGES_AT_ONCE)
        contexts = [None] * len(chunks) if context is None else context.split(_IMAGES_AT_ONCE)
        with torch.no_grad():
            done = [run(density, *pair) for pair in zip(chunks, contexts, strict=True)]
        return torch.cat(done).cpu()


def on_sphere(start: Tensor, end: Tensor, shares: Tensor) -> Tensor:
    r"""Interpolate by :math:`(\sin((1 - t) \omega) a + \sin(t \omega) b) / \sin \omega`.

    Reference: Shoemake (1985), *Animating rotation with quaternion curves*.
    """
    cosine = (start @ end) / (start.norm() * end.norm())
    angle = cosine.clamp(-1.0, 1.0).acos()
    if float(angle.sin()) < _LEAST_SINE:
        return torch.lerp(start, end, shares)
    first, second = ((1 - shares) * angle).sin(), (shares * angle).sin()
    return (first * start + second * end) / angle.sin()
