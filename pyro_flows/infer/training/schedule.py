"""The step size over a run: warm-up, a constant stretch, and a decay that can begin early."""

from collections.abc import Mapping
from typing import Any

from pyro_flows import _checks
from pyro_flows.errors import CheckpointError

_KEYS = ("limit", "warm_up", "begin", "steps")


class Schedule:
    r"""Factor on the step size: a linear warm-up, a constant stretch, a decay over the last 30 %.

    .. math:: f_t = \min\Big(1, \frac{\min(t, b) + 1}{w + 1}\Big) \cdot
        \Big(1 - \frac{\max(t - b + 1, 0)}{T - b + 1}\Big)

    with :math:`w` steps of warm-up, a decay that begins at step :math:`b`, and :math:`T` steps in
    all. No factor of a step is zero.

    Args:
        steps: Number of steps, at most.
        warm_up: Number of steps of warm-up; at most a quarter of ``steps`` are used.

    Attributes:
        steps: Number of steps in all, the decay among them; fewer once it has begun early.
        begin: The first step of the decay.

    Raises:
        DomainError: A number is not a count.

    Example:
        >>> schedule = Schedule(1000)
        >>> schedule.begin, schedule.factor(0) < 0.02, schedule.factor(699), schedule.factor(850)
        (700, True, 1.0, 0.49...)
        >>> schedule.decay_from(350)
        >>> schedule.steps, schedule.decaying(350)
        (500, True)
    """

    def __init__(self, steps: int, warm_up: int = 50) -> None:
        self._limit = _checks.check_count("Schedule", "steps", steps)
        warm_up = _checks.check_count("Schedule", "warm_up", warm_up, least=0)
        self._warm_up = min(warm_up, self._limit // 4)
        self.steps = self._limit
        # In integers, since 0.7 * steps is now below and now above the step that is meant.
        self.begin = self.steps - 3 * self.steps // 10

    def factor(self, step: int) -> float:
        """Return the factor of a step; zero from the end of the run on.

        Args:
            step: Number of steps taken before.
        """
        into = min(max(step - self.begin + 1, 0) / (self.steps - self.begin + 1), 1.0)
        warmth = (min(step, self.begin) + 1) / (self._warm_up + 1)
        # Half a cosine ended higher: by 4 % on noisy quadratics, by 0-0.01 nats on flows.
        return min(warmth, 1.0) * (1 - into)

    def decaying(self, step: int) -> bool:
        """Return whether a step belongs to the decay.

        Args:
            step: Number of steps taken before.
        """
        return step >= self.begin

    def decay_from(self, step: int) -> None:
        """Begin the decay at a step, so that it is 30 % of a run that then ends early.

        Nothing changes where the decay has begun by then.

        Args:
            step: Number of steps taken before.

        Raises:
            DomainError: The step is not a count.
        """
        step = _checks.check_count("Schedule.decay_from", "step", step, least=0)
        if not self.decaying(step):
            self.begin = step
            self.steps = min(max(-(-10 * step // 7), 1), self._limit)

    def state_dict(self) -> dict[str, int]:
        """Return the state, as numbers that JSON can hold."""
        return dict(zip(_KEYS, (self._limit, self._warm_up, self.begin, self.steps), strict=True))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the state of another schedule.

        Args:
            state: What :meth:`state_dict` returned.

        Raises:
            CheckpointError: It is not such a state.
        """
        counts = [state[key] for key in _KEYS if isinstance(state.get(key), int)]
        if set(state) != set(_KEYS) or len(counts) != len(_KEYS) or not _possible(*counts):
            raise _checks.refusal(
                CheckpointError,
                "Schedule",
                expected=f"a state with the counts {', '.join(_KEYS)}, begin <= steps <= limit",
                got=f"{dict(state)!r}",
            )
        self._limit, self._warm_up, self.begin, self.steps = counts


def _possible(limit: int, warm_up: int, begin: int, steps: int) -> bool:
    return warm_up >= 0 and 0 <= begin <= steps <= limit and steps >= 1
