r"""Two-dimensional densities to try flows on, each with its exact density.

All are Pyro distributions over points of the plane: they are sampled, scored, and stand at sample
sites. Their coordinates are of order one.
"""

import math
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from pyro_flows import _checks
from pyro_flows.infer.random import seeded

_POINTS_OF_A_CURVE = 400
# Sums over a grid as fine as this, in units of the finest scale, are integrals to many digits.
_GRID, _POINTS_AT_ONCE = 0.8, 2**11


class ToyDensity(TorchDistribution):
    """A density over the plane."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    # Half the side of the square outside of which there is hardly any mass.
    reach: ClassVar[float] = 4.0
    _finest = 1.0

    def __init__(self) -> None:
        super().__init__(torch.Size(), torch.Size((2,)), validate_args=False)

    @abstractmethod
    def _draw(self, num: int) -> Tensor:
        """Return independent draws, of shape ``(num, 2)``."""

    @abstractmethod
    def _log_density(self, points: Tensor) -> Tensor:
        """Return the log-density of points, of shape ``(N, 2)``."""

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Return independent draws, of shape ``sample_shape + (2,)``.

        Args:
            sample_shape: Their batch shape.
        """
        shape = torch.Size(sample_shape)
        with torch.no_grad():
            return self._draw(max(shape.numel(), 1)).reshape(*shape, 2)

    def seeded(self, num: int, seed: int) -> Tensor:
        """Return the same draws for the same seed, of shape ``(num, 2)``, in float32.

        Args:
            num: Number of draws.
            seed: Leaves the global random state alone.
        """
        with seeded(type(self).__name__, seed):
            return self.sample((_checks.check_count(type(self).__name__, "num", num),)).float()

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of points, of shape ``value.shape[:-1]``.

        Args:
            value: Of shape ``(*, 2)``.
        """
        _checks.check_points(type(self).__name__, "value", value, 2)
        return self._in_chunks(value.reshape(-1, 2)).reshape(value.shape[:-1])

    def _in_chunks(self, points: Tensor) -> Tensor:
        return torch.cat([self._log_density(chunk) for chunk in points.split(_POINTS_AT_ONCE)])

    def entropy(self) -> Tensor:
        """Return the entropy in nats, by quadrature over the plane."""
        cell = _GRID * self._finest
        edge = torch.arange(-self.reach, self.reach, cell, dtype=torch.float64)
        log_density = self._in_chunks(torch.cartesian_prod(edge, edge))
        return -torch.special.xlogy(log_density.exp(), log_density.exp()).sum() * cell**2


class _Curve(ToyDensity):
    r"""A curve with Gaussian noise: :math:`p(x) = \int_0^1 N(x; c(t), \sigma^2 I) \, dt`."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.noise = self._finest = _checks.check_positive(type(self).__name__, "noise", noise)

    @abstractmethod
    def _curves(self, t: Tensor) -> list[Tensor]:
        """Return the points of each curve at times in [0, 1], of shape ``(len(t), 2)``."""

    def _draw(self, num: int) -> Tensor:
        curves = torch.stack(self._curves(torch.rand(num)))
        chosen = torch.randint(len(curves), (num,))
        return curves[chosen, torch.arange(num)] + self.noise * torch.randn(num, 2)

    def _log_density(self, points: Tensor) -> Tensor:
        # The midpoint rule, whose step is far below the noise.
        t = (torch.arange(_POINTS_OF_A_CURVE, dtype=points.dtype) + 0.5) / _POINTS_OF_A_CURVE
        nodes = torch.cat(self._curves(t.to(points.device)))
        squares = torch.cdist(points, nodes).square()
        scale = self.noise**2
        log_terms = -squares / (2 * scale) - math.log(2 * math.pi * scale)
        return log_terms.logsumexp(-1) - math.log(len(nodes))


class TwoMoons(_Curve):
    r"""Two interleaved half circles, with Gaussian noise.

    .. math:: (\cos \pi t, \sin \pi t) \quad \text{and} \quad
        (1 - \cos \pi t, \tfrac{1}{2} - \sin \pi t)

    Args:
        noise: Standard deviation of the noise.

    Reference:
        Pedregosa et al. (2011), *Scikit-learn: Machine learning in Python* (``make_moons``).

    Example:
        >>> moons = TwoMoons(noise=0.05)
        >>> moons.seeded(3000, seed=0).shape
        torch.Size([3000, 2])
        >>> round(float(moons.entropy()), 2)
        0.29
    """

    reach = 3.0

    def __init__(self, noise: float = 0.05) -> None:
        super().__init__(noise)

    def _curves(self, t: Tensor) -> list[Tensor]:
        upper = torch.stack([(math.pi * t).cos(), (math.pi * t).sin()], -1)
        return [upper, torch.tensor([1.0, 0.5]).to(upper) - upper]


class Rings(_Curve):
    """Concentric circles of equal mass, with Gaussian noise.

    Args:
        count: Number of circles, of radii up to 3.
        noise: Standard deviation of the noise.

    Example:
        >>> Rings().sample((5,)).shape
        torch.Size([5, 2])
    """

    reach = 5.0

    def __init__(self, count: int = 4, noise: float = 0.08) -> None:
        self.count = _checks.check_count("Rings", "count", count)
        super().__init__(noise)

    def _curves(self, t: Tensor) -> list[Tensor]:
        circle = torch.stack([(2 * math.pi * t).cos(), (2 * math.pi * t).sin()], -1)
        return [3.0 * (k + 1) / self.count * circle for k in range(self.count)]


class Spirals(_Curve):
    """Two spirals that wind around each other, with Gaussian noise.

    Args:
        turns: Number of turns of each, up to a radius of 3.
        noise: Standard deviation of the noise.

    Example:
        >>> Spirals().sample((5,)).shape
        torch.Size([5, 2])
    """

    reach = 5.0

    def __init__(self, turns: float = 1.5, noise: float = 0.1) -> None:
        self.turns = _checks.check_positive("Spirals", "turns", turns)
        super().__init__(noise)

    def _curves(self, t: Tensor) -> list[Tensor]:
        # The root of a uniform time spreads points evenly along the arms.
        radius = (0.05 + 0.95 * t).sqrt()
        angle = 2 * math.pi * self.turns * radius
        arm = 3.0 * radius[:, None] * torch.stack([angle.cos(), angle.sin()], -1)
        return [arm, -arm]


class EightGaussians(ToyDensity):
    """Eight Gaussians of equal mass on a circle of radius 2.

    Args:
        scale: Standard deviation of each.

    Example:
        >>> round(float(EightGaussians(0.1).entropy()), 2) == round(
        ...     math.log(8) + 1 + math.log(2 * math.pi * 0.01), 2
        ... )
        True
    """

    def __init__(self, scale: float = 0.2) -> None:
        super().__init__()
        self.scale = self._finest = _checks.check_positive("EightGaussians", "scale", scale)

    def _centres(self, like: Tensor) -> Tensor:
        angles = torch.arange(8).to(like) * (math.pi / 4)
        return 2.0 * torch.stack([angles.cos(), angles.sin()], -1)

    def _draw(self, num: int) -> Tensor:
        noise = torch.randn(num, 2)
        return self._centres(noise)[torch.randint(8, (num,))] + self.scale * noise

    def _log_density(self, points: Tensor) -> Tensor:
        squares = torch.cdist(points, self._centres(points)).square()
        log_terms = -squares / (2 * self.scale**2) - math.log(2 * math.pi * self.scale**2)
        return log_terms.logsumexp(-1) - math.log(8)


class Pinwheel(ToyDensity):
    r"""Arms that bend the further out they are: Gaussians, turned by an angle of their radius.

    .. math:: x = R(2 \pi k / K + b\,(|f| - 1))\, f, \qquad
        f \sim N\bigl((1.3, 0), \operatorname{diag}(0.4^2, 0.12^2)\bigr)

    The map from :math:`f` keeps volumes, so that the density is exact.

    Args:
        count: Number of arms, K.
        bend: Angle by which an arm turns for each unit of radius, b, in radians.

    Example:
        >>> Pinwheel().sample((5,)).shape
        torch.Size([5, 2])
    """

    _finest = 0.12

    def __init__(self, count: int = 5, bend: float = 1.0) -> None:
        super().__init__()
        self.count = _checks.check_count("Pinwheel", "count", count)
        self.bend = _checks.check_positive("Pinwheel", "bend", bend, zero=True)

    def _draw(self, num: int) -> Tensor:
        points = torch.tensor([1.3, 0.0]) + torch.tensor([0.4, 0.12]) * torch.randn(num, 2)
        arm = torch.randint(self.count, (num,)) * (2 * math.pi / self.count)
        return _turn(points, arm + self.bend * (points.norm(dim=-1) - 1.0))

    def _log_density(self, points: Tensor) -> Tensor:
        twist = self.bend * (points.norm(dim=-1) - 1.0)
        centre, scale = torch.tensor([1.3, 0.0]).to(points), torch.tensor([0.4, 0.12]).to(points)
        arms = [_turn(points, -twist - 2 * math.pi * k / self.count) for k in range(self.count)]
        terms = [
            -((arm - centre) / scale).square().sum(-1) / 2 - (2 * math.pi * scale.prod()).log()
            for arm in arms
        ]
        return torch.stack(terms).logsumexp(0) - math.log(self.count)


class Checkerboard(ToyDensity):
    """Uniform on every second square of a board of 4 x 4 unit squares around the origin.

    Example:
        >>> Checkerboard().log_prob(torch.tensor([[0.5, 0.5], [0.5, 1.5]]))
        tensor([-2.0794,    -inf])
    """

    def _draw(self, num: int) -> Tensor:
        row, column = torch.randint(4, (num,)), torch.randint(2, (num,))
        corner = torch.stack([2 * column + row % 2, row], -1) - 2
        return corner + torch.rand(num, 2)

    def _log_density(self, points: Tensor) -> Tensor:
        square = points.floor()
        on_board = (points.abs() < 2).all(-1) & (square.sum(-1) % 2 == 0)
        return torch.full_like(points[:, 0], -torch.inf).masked_fill(on_board, -math.log(8))

    def entropy(self) -> Tensor:
        """Return the entropy in nats."""
        return torch.tensor(math.log(8), dtype=torch.float64)


def _turn(points: Tensor, angle: Tensor | float) -> Tensor:
    angle = torch.as_tensor(angle).to(points)
    cos, sin = angle.cos(), angle.sin()
    x, y = points.unbind(-1)
    return torch.stack([cos * x - sin * y, sin * x + cos * y], -1)


TOYS: dict[str, type[ToyDensity]] = {
    "checkerboard": Checkerboard,
    "eight_gaussians": EightGaussians,
    "pinwheel": Pinwheel,
    "rings": Rings,
    "spirals": Spirals,
    "two_moons": TwoMoons,
}
