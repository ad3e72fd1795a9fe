"""The step size over a run of known length."""

import math

from pyro_flows.infer.training.schedule import Schedule


class CosineSchedule(Schedule):
    r"""Factor on the step size: a linear warm-up, times half a cosine over all of the run.

    .. math:: f_t = \min\Big(1, \frac{t + 1}{w + 1}\Big) \cdot
        \frac{1}{2} \Big(1 + \cos \frac{\pi t}{T}\Big)

    Args:
        steps: Number of steps.
        warm_up: Number of steps of warm-up; at most a quarter of ``steps`` are used.

    Reference:
        Loshchilov & Hutter (2017), *SGDR: Stochastic gradient descent with warm restarts*,
        equation 5.

    Example:
        >>> schedule = CosineSchedule(1000, warm_up=0)
        >>> schedule.factor(0), round(schedule.factor(500), 3)
        (1.0, 0.5)
    """

    def factor(self, step: int) -> float:
        """Return the factor of a step.

        Args:
            step: Number of steps taken before.
        """
        warmth = min((step + 1) / (self._warm_up + 1), 1.0)
        return warmth * 0.5 * (1.0 + math.cos(math.pi * min(step / self.steps, 1.0)))
