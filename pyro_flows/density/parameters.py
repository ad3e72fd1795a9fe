"""What scikit-learn asks of an estimator's arguments."""

import inspect
from typing import Any

from typing_extensions import Self

from pyro_flows import _checks


class Parameters:
    """An estimator whose arguments are its attributes, so that ``clone`` can copy it."""

    @classmethod
    def _names(cls) -> list[str]:
        return list(inspect.signature(cls).parameters)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the arguments, by name.

        Args:
            deep: Not used; there are no estimators inside.
        """
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self, **params: Any) -> Self:
        """Set arguments by name, and return the estimator.

        Args:
            **params: Those of the constructor.

        Raises:
            DomainError: There is no such argument.
        """
        who = type(self).__name__
        for name, value in params.items():
            setattr(self, _checks.check_choice(who, "a parameter", name, self._names()), value)
        return self

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self)).parameters
        changed = [
            f"{name}={value!r}"
            for name, value in self.get_params().items()
            if value is not defaults[name].default and value != defaults[name].default
        ]
        return f"{type(self).__name__}({', '.join(changed)})"
