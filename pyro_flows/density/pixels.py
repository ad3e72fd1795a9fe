"""Images and their labels as rows of numbers."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pyro_flows import _checks
from pyro_flows.errors import DomainError, ShapeError

ImageShape = tuple[int, int, int]


def read_images(who: str, images: Any, num_values: int) -> tuple[Tensor, ImageShape]:
    """Return images as rows of integers in float32, and their shape ``(C, H, W)``.

    Args:
        who: The caller, for the errors' messages.
        images: An array or a tensor of shape ``(N, C, H, W)``, or ``(N, H, W)``.
        num_values: Number of values of a pixel.

    Raises:
        DomainError: A pixel is no integer from 0 to ``num_values - 1``.
        ShapeError: There are no images, or they have another number of axes.
    """
    array = images.detach().cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    array = array[:, None] if array.ndim == 3 else array
    if array.ndim != 4 or not array.size or array.dtype.kind not in "fiub":
        raise _checks.refusal(
            ShapeError,
            who,
            expected="an array of numbers of shape (N, C, H, W) or (N, H, W)",
            got=f"one of shape {array.shape} and dtype {array.dtype}",
        )
    rows = torch.from_numpy(array.astype(np.float32)).flatten(1)
    if not bool(((rows == rows.floor()) & (rows >= 0) & (rows < num_values)).all()):
        raise _checks.refusal(
            DomainError,
            who,
            expected=f"pixels that are integers from 0 to {num_values - 1}",
            got=f"others, from {float(rows.min()):g} to {float(rows.max()):g}",
            advice="Undo a scaling to [0, 1], or pass num_values.",
        )
    _, channels, height, width = array.shape
    return rows, (channels, height, width)


def as_one_hot(who: str, labels: Any, classes: np.ndarray | None, count: int) -> Tensor | None:
    """Return labels as one-hot rows of shape ``(count, K)``; none where there are no classes.

    Args:
        who: The caller, for the errors' messages.
        labels: One for each of ``count`` images, or one for all; none without classes.
        classes: The ``K`` labels that are known, sorted, or none.
        count: Number of images.

    Raises:
        DomainError: A label is not known.
        ShapeError: There are labels without classes, none with them, or another number of them.
    """
    if (classes is None) != (labels is None):
        raise _checks.refusal(
            ShapeError,
            who,
            expected="labels where it was fitted with labels, and none where it was not",
            got="none" if labels is None else "labels",
        )
    if classes is None:
        return None
    given = np.asarray(labels)
    given = np.broadcast_to(given, (count,)) if given.ndim == 0 else given
    if given.shape != (count,):
        raise _checks.refusal(
            ShapeError,
            who,
            expected=f"{count} labels, one for each image",
            got=f"labels of shape {given.shape}",
        )
    unknown = np.setdiff1d(given, classes)
    if unknown.size:
        raise _checks.refusal(
            DomainError,
            who,
            expected=f"labels among {_checks.shortened(classes.tolist())}",
            got=_checks.shortened(unknown.tolist()),
        )
    places = torch.from_numpy(np.searchsorted(classes, given))
    return one_hot(places, len(classes)).to(torch.float32)
