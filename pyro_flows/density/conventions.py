"""scikit-learn's conventions for an estimator, without that library."""

import importlib
import inspect
import sys
from typing import Any, TypeVar

import numpy as np
import torch

from pyro_flows import _checks
from pyro_flows.errors import DomainError, FlowError

_Self = TypeVar("_Self", bound="Conventions")


class Conventions:
    """An estimator whose constructor keeps its arguments under their names.

    A subclass sets ``flow_`` when it is fitted.
    """

    @classmethod
    def _names(cls) -> list[str]:
        return list(inspect.signature(cls).parameters)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the arguments, by name.

        Args:
            deep: Not used; there are no estimators inside.
        """
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self: _Self, **params: Any) -> _Self:
        """Set arguments by name, and return the estimator.

        Args:
            **params: Those of the constructor.

        Raises:
            DomainError: There is no such argument; none is set.
        """
        for name in params:
            _checks.check_choice(type(self).__name__, "a parameter", name, self._names())
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self)).parameters
        changed = [
            f"{name}={value!r}"
            for name, value in self.get_params().items()
            if value is not defaults[name].default and repr(value) != repr(defaults[name].default)
        ]
        return f"{type(self).__name__}({', '.join(changed)})"

    def __sklearn_tags__(self) -> Any:
        # Called by scikit-learn alone, so that it is there.
        tags: Any = importlib.import_module("sklearn.utils")
        return tags.Tags(
            estimator_type="density_estimator",
            target_tags=tags.TargetTags(required=False),
            input_tags=tags.InputTags(),
        )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "flow_")

    def _check_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            raise _checks.refusal(
                _not_fitted(),
                type(self).__name__,
                expected="a fitted estimator",
                got="one that was not fitted",
                advice="Call fit(X) first.",
            )


def _not_fitted() -> type[FlowError]:
    """Return an error that is scikit-learn's as well, where somebody could be catching that."""
    exceptions: Any = sys.modules.get("sklearn.exceptions")
    if exceptions is None:
        return DomainError
    return type("NotFittedError", (DomainError, exceptions.NotFittedError), {})


def as_seed(who: str, random_state: Any) -> int | None:
    """Return the seed that a random state stands for; none for none.

    Args:
        who: The caller, for the errors' messages.
        random_state: A count; a generator of numpy's, of either kind, from which one is drawn; or
            none.

    Raises:
        DomainError: It is nothing of these.
    """
    if random_state is None:
        return None
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**31 - 1))
    return _checks.check_count(who, "random_state", random_state, least=0)


def check_repeatable(who: str, random_state: Any, *, num_starts: int = 1) -> None:
    """Refuse what a fit that goes on in another process could not do again.

    Args:
        who: The caller, for the error's message.
        random_state: As of the estimator.
        num_starts: Number of fits, of which the best is kept.

    Raises:
        DomainError: The random state is no count, or there are several starts.
    """
    if num_starts > 1 or not hasattr(random_state, "__index__"):
        raise _checks.refusal(
            DomainError,
            who,
            expected="one start, and a count as random_state, for a checkpoint",
            got=f"num_starts={num_starts}, random_state={random_state!r}",
            advice="Pass random_state=0, say: rows are then split as before the break.",
        )


def as_device(who: str, device: str) -> torch.device:
    """Return the device of a name.

    Args:
        who: The caller, for the errors' messages.
        device: Such as ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

    Raises:
        DomainError: There is no such device.
    """
    try:
        return torch.empty((), device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise _checks.refusal(
            DomainError,
            who,
            expected="device to name one that is there",
            got=f"{device!r}: {str(error).splitlines()[0]}",
            advice="Pass device='cpu'.",
        ) from error
