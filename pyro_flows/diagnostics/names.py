"""Names of variables and dims: which are possible, and what becomes of the others."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pyro_flows import _checks
from pyro_flows.errors import DomainError

# ArviZ reads these names as the axes of every sample.
SAMPLE_DIMS = ("chain", "draw")


def label_variables(names: Iterable[str]) -> dict[str, str]:
    """Return the names in the result of sites and constants.

    Args:
        names: Their names.

    Raises:
        DomainError: Two cannot be told apart, or one is that of a dim of ArviZ's own.
    """
    listed = list(names)
    labels = {name: name.replace("/", ".") for name in listed}
    uses = Counter(name.replace("/", ".") for name in listed)
    for name, label in labels.items():
        if not name or name in SAMPLE_DIMS or uses[label] > 1:
            raise _checks.refusal(
                DomainError,
                "to_arviz",
                expected="names of sites and constants that can be told apart, and from ArviZ's "
                "own dims",
                got=f"{name!r}" + (f", which becomes {label!r}" if name != label else ""),
                advice="Rename it; pyro.contrib.autoname.scope can do so from outside.",
            )
    return labels


def label_dims(names: Iterable[str], variables: Iterable[str]) -> dict[str, str]:
    """Return names for dims that no variable and no other dim has, and no file refuses.

    Args:
        names: The names in the model.
        variables: The names of the variables in the result.
    """
    labels: dict[str, str] = {}
    taken = {*variables, *SAMPLE_DIMS}
    for name in dict.fromkeys(names):
        label = name.replace("/", ".") or "dim"
        while label in taken:
            label += "_dim"
        labels[name] = label
        taken.add(label)
    return labels


def check_names(argument: str, names: Any, axes: int, *, exact: bool) -> list[str]:
    """Return names for axes.

    Args:
        argument: What they are passed as, for the message.
        names: The names.
        axes: Number of axes.
        exact: Whether there must be a name for each axis.

    Raises:
        DomainError: They are no names, too many, or too few.
    """
    listed = list(names) if isinstance(names, Sequence) and not isinstance(names, str) else None
    fits = listed is not None and (len(listed) == axes if exact else len(listed) <= axes)
    if listed is None or not fits or not all(isinstance(name, str) for name in listed):
        raise _checks.refusal(
            DomainError,
            "to_arviz",
            expected=f"{argument} to be {'' if exact else 'up to '}{axes} names",
            got=f"{names!r}",
            advice="Pass a list with a name for each axis, chain and draw apart.",
        )
    repeated = [name for name, uses in Counter(listed).items() if uses > 1]
    if repeated:
        raise _checks.refusal(
            DomainError,
            "to_arviz",
            expected=f"{argument} to be different names",
            got=f"{names!r}",
            advice="Rename one of them.",
        )
    return listed


def check_mapping(argument: str, value: Any) -> dict[str, Any]:
    """Return a mapping as a dictionary.

    Args:
        argument: What it is passed as, for the message.
        value: The mapping, or none.

    Raises:
        DomainError: It is none.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise _checks.refusal(
            DomainError,
            "to_arviz",
            expected=f"{argument} to be a mapping from names",
            got=_checks.describe(value),
            advice=f"Pass a dictionary for {argument}.",
        )
    return dict(value)


def check_known(argument: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names that nothing has.

    Args:
        argument: What they are passed as, for the message.
        names: The names.
        known: The names that there are.

    Raises:
        DomainError: One of them is unknown.
    """
    listed = sorted(known)
    unknown = [name for name in names if name not in listed]
    if unknown:
        raise _checks.refusal(
            DomainError,
            "to_arviz",
            expected=f"{argument} for any of {', '.join(map(repr, listed)) or 'nothing'}",
            got=", ".join(map(repr, unknown)),
            advice="Names are those in the model.",
        )


def check_members(dim: str, values: Any, size: int, index: np.ndarray | None) -> np.ndarray:
    """Return the coordinates of a dim.

    Args:
        dim: The dim.
        values: What the members are called; of all members of a plate that is subsampled.
        size: Number of members.
        index: Which members of a plate there are; none, if the dim is not a plate.

    Raises:
        DomainError: They are not as many as there are members.
    """
    values = values.tolist() if isinstance(values, torch.Tensor) else values
    try:
        array = np.asarray(values)
    except ValueError:
        # Of lists of different lengths.
        array = np.empty(())
    if array.ndim != 1 or len(array) != size:
        raise _checks.refusal(
            DomainError,
            "to_arviz",
            expected=f"coords of the dim {dim!r} to be {size} names or numbers",
            got=f"{len(array)}" if array.ndim == 1 and len(array) else f"{values!r}",
            advice="Pass one for each member, in their order.",
        )
    return array if index is None else array[index]
