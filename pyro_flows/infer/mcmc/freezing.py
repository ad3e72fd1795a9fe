"""A guide that stays as it is for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def frozen(guide: Any) -> Iterator[None]:
    """Let a guide's parameters need no gradient, and its modules evaluate; put both back.

    Args:
        guide: A guide; nothing is done to one that is no module.
    """
    module = guide if isinstance(guide, nn.Module) else nn.Module()
    free = [parameter for parameter in module.parameters() if parameter.requires_grad]
    training = [part for part in module.modules() if part.training]
    try:
        for parameter in free:
            parameter.requires_grad_(False)
        module.eval()
        yield
    finally:
        for parameter in free:
            parameter.requires_grad_(True)
        for part in training:
            part.training = True
