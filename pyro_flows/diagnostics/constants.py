"""Data that are no site: covariates and the like."""

from typing import Any

import numpy as np
import torch

from pyro_flows import _checks
from pyro_flows.diagnostics import arrays, names
from pyro_flows.errors import DomainError

# Booleans, integers, floating-point numbers, strings, dates.
_KINDS = "biufUSMm"


def constant_arrays(constant_data: Any) -> dict[str, np.ndarray]:
    """Return constants as arrays of their own, in dtypes that files can hold.

    Args:
        constant_data: Tensors, arrays or numbers, by name; none is no constants.

    Raises:
        DomainError: It is no mapping, or one of them is no array.
    """
    constants = names.check_mapping("constant_data", constant_data)
    return {name: _array(name, value) for name, value in constants.items()}


def _array(name: str, value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        return arrays.to_numpy(value).copy()
    try:
        array = np.array(value)
    except ValueError:
        array = np.empty((), object)
    if array.dtype.kind not in _KINDS:
        raise _checks.refusal(
            DomainError,
            "to_arviz",
            expected=f"constant_data[{name!r}] to be a tensor or an array of numbers or strings",
            got=_checks.describe(value),
            advice="Convert it with np.asarray(...).",
        )
    return array
