"""Every transform and every recipe, by name: the rows over which the generic contracts run.

A factory takes the number of coordinates and the size of the context. Networks are small, so that
the whole zoo stays quick; a transform that takes no context is listed in ``WITHOUT_CONTEXT``.
"""

from collections.abc import Callable, Iterable
from functools import partial

import torch

from pyro_flows import flows
from pyro_flows.distributions import Flow
from pyro_flows.nn import TimeNet
from pyro_flows.nn.activations import ACTIVATIONS
from pyro_flows.numerics import log_sech_square
from pyro_flows.transforms import (
    LOFT,
    ActNorm,
    AdditiveCoupling,
    AffineAutoregressive,
    AffineCoupling,
    Autoregressive,
    BlockNeuralAutoregressive,
    Compose,
    Continuous,
    Coupling,
    DeepSigmoid,
    Elementwise,
    ElementwiseAffine,
    ElementwiseSpline,
    FlowTransform,
    GraphicalAutoregressive,
    Inverse,
    InvertibleConv1x1,
    LeakyTanh,
    LowerTriangularAffine,
    LULinear,
    MultiScale,
    NeuralAutoregressive,
    Node,
    Orthogonal,
    Partial,
    Permute,
    Pixelwise,
    Planar,
    PolynomialAutoregressive,
    QRLinear,
    Radial,
    SplineAutoregressive,
    SplineCoupling,
    Squeeze,
    SumOfSquares,
    Sylvester,
    TailTransform,
    Univariate,
)

Factory = Callable[[int, int], FlowTransform]
HIDDEN = (12, 10)


class Bend(Univariate):
    """A user's own map, which leaves its inverse to the root finder."""

    num_params = 2

    def forward_and_ladj(self, x, params):
        """Add a step of either sign, and shift."""
        bend, shift = params.unbind(-2)
        bend = 0.9 * torch.tanh(bend)
        ladj = torch.log1p(bend * log_sech_square(x).exp())
        return x + bend * torch.tanh(x) + shift, ladj


class SlowNet(TimeNet):
    """A field so slow that a few steps are as exact as the contracts ask for."""

    def dynamics(self, context=None, noise=None):
        """Return what maps a time and points to the velocity and the trace of its Jacobian."""
        dynamics = super().dynamics(context, noise)

        def run(t, z):
            return tuple(0.1 * rate for rate in dynamics(t, z))

        return run


def _alternating(input_dim: int) -> list[bool]:
    return [i % 2 == 1 for i in range(input_dim)]


def _located_elementwise(d: int, c: int) -> FlowTransform:
    return ElementwiseAffine(
        d,
        loc=torch.linspace(-1.0, 2.0, d),
        scale=torch.linspace(0.5, 2.0, d),
        context_dim=c,
        hidden_dims=HIDDEN,
    )


def _located_triangular(d: int, c: int) -> FlowTransform:
    scale_tril = torch.eye(d) + 0.3 * torch.ones(d, d).tril()
    loc = torch.linspace(-1.0, 2.0, d)
    return LowerTriangularAffine(
        d, loc=loc, scale_tril=scale_tril, context_dim=c, hidden_dims=HIDDEN
    )


def _coupling(d: int, c: int, **options: object) -> FlowTransform:
    return AffineCoupling(d, context_dim=c, **{"hidden_dims": HIDDEN, **options})


def _autoregressive(d: int, c: int, **options: object) -> FlowTransform:
    return AffineAutoregressive(d, context_dim=c, **{"hidden_dims": HIDDEN, **options})


def _sylvester(d: int, c: int, **options: object) -> FlowTransform:
    return Sylvester(d, context_dim=c, hidden_dims=HIDDEN, **options)


def _lu(d: int, c: int, **options: object) -> FlowTransform:
    return LULinear(d, context_dim=c, hidden_dims=HIDDEN, **options)


def _located_lu(d: int, c: int) -> FlowTransform:
    """Return one whose pivots are negative."""
    return _lu(d, c, matrix=-torch.eye(d) - 0.3 * torch.ones(d, d).tril())


def _qr(d: int, c: int, **options: object) -> FlowTransform:
    return QRLinear(d, context_dim=c, hidden_dims=HIDDEN, **options)


def _pixelwise(d: int, c: int) -> FlowTransform:
    return Pixelwise(Planar(1, context_dim=c, hidden_dims=HIDDEN), (1, d, 1))


def _multi_scale(d: int, c: int) -> FlowTransform:
    return MultiScale([_coupling((d + 1) // 2, c), Planar(d), _coupling(d, c)])


def _block_neural(d: int, c: int) -> FlowTransform:
    # Bounded so that float32 keeps the digits that the contracts ask for, at random parameters.
    return BlockNeuralAutoregressive(
        d, hidden_factors=(4, 3), context_dim=c, hidden_dims=HIDDEN, log_scale_bound=3.0
    )


def _continuous(d: int, c: int) -> FlowTransform:
    return Continuous(SlowNet(d, context_dim=c, hidden_dims=(4,), num_frequencies=1), num_steps=8)


def _graphical(d: int, c: int) -> FlowTransform:
    """Return one of a first coordinate, pairs that follow it, and the rest that follows all."""
    places = torch.arange(d).roll(1)
    pairs = places[1 : 1 + (d - 1) // 4 * 2].reshape(-1, 2)
    before = 1 + pairs.numel()
    nodes = [Node(places[None, :1], places[None, :0])]
    if len(pairs):
        nodes.append(Node(pairs, places[:1].expand(len(pairs), 1)))
    if before < d:
        rest = places[before:, None]
        parents = torch.stack([places[:before].roll(k) for k in range(d - before)])
        nodes.append(Node(rest, parents[:, :2]))
    return GraphicalAutoregressive(nodes, num_hidden=3)


def _compose_couplings(d: int, c: int) -> FlowTransform:
    return Compose([_coupling(d, c), Permute.reversal(d), _coupling(d, c)])


def _compose_everything(d: int, c: int) -> FlowTransform:
    return Compose(
        [
            Planar(d, context_dim=c, hidden_dims=HIDDEN),
            _autoregressive(d, c),
            Permute.random(d, seed=3),
            Inverse(_autoregressive(d, 0)),
            AdditiveCoupling(d, context_dim=c, hidden_dims=HIDDEN),
            ElementwiseAffine(d),
        ]
    )


ZOO: dict[str, Factory] = {
    "elementwise_affine": lambda d, c: ElementwiseAffine(d, context_dim=c, hidden_dims=HIDDEN),
    "elementwise_affine_located": _located_elementwise,
    "lower_triangular_affine": lambda d, c: LowerTriangularAffine(
        d, context_dim=c, hidden_dims=HIDDEN
    ),
    "lower_triangular_affine_located": _located_triangular,
    "additive_coupling": lambda d, c: AdditiveCoupling(d, context_dim=c, hidden_dims=HIDDEN),
    "affine_coupling": _coupling,
    "affine_coupling_linear": partial(_coupling, hidden_dims=()),
    "affine_coupling_alternating": lambda d, c: _coupling(d, c, mask=_alternating(d)),
    "affine_coupling_moving_all": lambda d, c: _coupling(d, c, mask=[False] * d),
    "elementwise_bend": lambda d, c: Elementwise(Bend(), d, context_dim=c, hidden_dims=HIDDEN),
    "coupling_bend": lambda d, c: Coupling(Bend(), d, context_dim=c, hidden_dims=HIDDEN),
    "autoregressive_bend": lambda d, c: Autoregressive(
        Bend(), d, context_dim=c, hidden_dims=HIDDEN
    ),
    "elementwise_neural": lambda d, c: Elementwise(
        DeepSigmoid(num_units=5), d, context_dim=c, hidden_dims=HIDDEN
    ),
    "neural_autoregressive": lambda d, c: NeuralAutoregressive(
        d, num_units=4, context_dim=c, hidden_dims=HIDDEN
    ),
    "coupling_polynomial": lambda d, c: Coupling(
        SumOfSquares(degree=2, num_polynomials=3), d, context_dim=c, hidden_dims=HIDDEN
    ),
    "polynomial_autoregressive": lambda d, c: PolynomialAutoregressive(
        d, degree=3, context_dim=c, hidden_dims=HIDDEN
    ),
    "elementwise_spline": lambda d, c: ElementwiseSpline(
        d, count_bins=5, bound=3.0, context_dim=c, hidden_dims=HIDDEN
    ),
    "spline_coupling": lambda d, c: SplineCoupling(
        d, count_bins=4, bound=3.0, context_dim=c, hidden_dims=HIDDEN
    ),
    "spline_autoregressive": lambda d, c: SplineAutoregressive(
        d, count_bins=4, bound=3.0, context_dim=c, hidden_dims=HIDDEN
    ),
    "ordered_autoregressive": lambda d, c: _autoregressive(d, c, order=torch.arange(d).roll(1)),
    "autoregressive_linear": partial(_autoregressive, hidden_dims=()),
    "autoregressive_deep": partial(_autoregressive, hidden_dims=(8, 12, 6)),
    **{
        f"autoregressive_{name}": partial(_autoregressive, activation=name) for name in ACTIVATIONS
    },
    "inverse_autoregressive": lambda d, c: Inverse(_autoregressive(d, c)),
    "inverse_planar": lambda d, c: Inverse(Planar(d, context_dim=c, hidden_dims=HIDDEN)),
    "inverse_compose": lambda d, c: Inverse(_compose_couplings(d, c)),
    "permute_reversal": lambda d, c: Permute.reversal(d),
    "permute_random": lambda d, c: Permute.random(d, seed=1),
    "block_neural": _block_neural,
    "planar": lambda d, c: Planar(d, context_dim=c, hidden_dims=HIDDEN),
    "radial": lambda d, c: Radial(d, context_dim=c, hidden_dims=HIDDEN),
    "inverse_radial": lambda d, c: Inverse(Radial(d, context_dim=c, hidden_dims=HIDDEN)),
    "sylvester": _sylvester,
    "sylvester_narrow": lambda d, c: _sylvester(d, c, num_hidden=(d + 1) // 2),
    "sylvester_householder": partial(_sylvester, num_reflections=1),
    "sylvester_triangular": partial(_sylvester, num_reflections=0, reverse=True),
    "inverse_sylvester": lambda d, c: Inverse(_sylvester(d, c)),
    # A heavier tail would have more mass outside of the box over which its density is integrated.
    "tails": lambda d, c: TailTransform(d, bound=0.2, context_dim=c, hidden_dims=HIDDEN),
    "loft": lambda d, c: LOFT(d, threshold=1.0),
    "leaky_tanh": lambda d, c: LeakyTanh(d, bound=1.5),
    "lu_linear": _lu,
    "lu_linear_located": _located_lu,
    "lu_linear_permuted": lambda d, c: _lu(d, c, permutation=torch.arange(d).roll(1)),
    "qr_linear": _qr,
    "qr_linear_long": lambda d, c: _qr(d, c, num_reflections=2 * d),
    "orthogonal": lambda d, c: Orthogonal(d),
    "compose_orthogonal": lambda d, c: Compose([Orthogonal(d), _located_elementwise(d, c)]),
    "actnorm": lambda d, c: ActNorm(d),
    "actnorm_channels": lambda d, c: ActNorm(d, image_shape=(1, d, 1)),
    "pixelwise": _pixelwise,
    "conv1x1": lambda d, c: InvertibleConv1x1((d, 1, 1), context_dim=c, hidden_dims=HIDDEN),
    "squeeze": lambda d, c: Squeeze((d, 1, 1), factor=1),
    "partial": lambda d, c: Partial(_coupling(max(d - 1, 1), c), d),
    "multi_scale": _multi_scale,
    "continuous": _continuous,
    "graphical": _graphical,
    "compose_couplings": _compose_couplings,
    "compose_everything": _compose_everything,
    "compose_nested": lambda d, c: Compose([_compose_couplings(d, c), _located_triangular(d, 0)]),
}

RECIPES: dict[str, Callable[[int, int], Flow]] = {
    "bnaf": lambda d, c: flows.bnaf(d, hidden_factors=(4, 4), context_dim=c),
    "cnf": lambda d, c: flows.cnf(d, hidden_dims=(8, 8), num_steps=10, context_dim=c),
    "elementwise": lambda d, c: flows.elementwise(d, context_dim=c),
    "iaf": lambda d, c: flows.iaf(d, context_dim=c),
    "maf": lambda d, c: flows.maf(d, context_dim=c),
    "naf": lambda d, c: flows.naf(d, num_units=4, context_dim=c),
    "nice": lambda d, c: flows.nice(d, context_dim=c),
    "nsf": lambda d, c: flows.nsf(d, context_dim=c),
    "planar": lambda d, c: flows.planar(d, context_dim=c),
    "radial": lambda d, c: flows.radial(d, context_dim=c),
    "realnvp": lambda d, c: flows.realnvp(d, context_dim=c),
    "sospf": lambda d, c: flows.sospf(d, degree=3, context_dim=c),
    "sylvester": lambda d, c: flows.sylvester(d, context_dim=c),
}

# Rows whose parameters, if they have any, leave the density of a flow as it is.
WITHOUT_PARAMETERS = frozenset(
    {"permute_reversal", "permute_random", "orthogonal", "squeeze", "loft", "leaky_tanh"}
)
WITHOUT_CONTEXT = WITHOUT_PARAMETERS | {"actnorm", "actnorm_channels", "graphical"}
AUTOREGRESSIVE = tuple(name for name in ZOO if name.startswith("autoregressive"))
# All but those whose inverse grows exponentially, and so overflows long before 1e30.
FINITE = tuple(name for name in ZOO if name != "loft")
# One member of each kind, for the contracts whose cost is high or whose code the variants share.
KINDS = (
    "elementwise_affine_located",
    "lower_triangular_affine_located",
    "additive_coupling",
    "affine_coupling",
    "autoregressive_silu",
    "elementwise_bend",
    "coupling_bend",
    "autoregressive_bend",
    "neural_autoregressive",
    "polynomial_autoregressive",
    "elementwise_spline",
    "spline_coupling",
    "spline_autoregressive",
    "inverse_autoregressive",
    "permute_random",
    "block_neural",
    "planar",
    "radial",
    "sylvester",
    "tails",
    "loft",
    "leaky_tanh",
    "lu_linear",
    "qr_linear",
    "orthogonal",
    "actnorm",
    "pixelwise",
    "conv1x1",
    "squeeze",
    "partial",
    "multi_scale",
    "continuous",
    "graphical",
    "compose_everything",
)


def names(context_dim: int, among: Iterable[str] = ZOO) -> list[str]:
    """Return the rows that can be built with a context of that size."""
    return [name for name in among if context_dim == 0 or name not in WITHOUT_CONTEXT]


def rows(among: Iterable[str] = ZOO) -> list[tuple[str, int]]:
    """Return each row with each size of the context that it takes, out of 0 and 2."""
    return [(name, c) for c in (0, 2) for name in names(c, among)]


def learnable(among: Iterable[str] = ZOO) -> list[str]:
    """Return the rows whose density has parameters."""
    return [name for name in among if name not in WITHOUT_PARAMETERS]


def build(
    name: str,
    input_dim: int,
    context_dim: int = 0,
    *,
    dtype: torch.dtype = torch.float64,
    scale: float = 0.4,
    seed: int = 0,
) -> FlowTransform:
    """Return a row of the zoo, at random parameters away from the identity."""
    return randomise(ZOO[name](input_dim, context_dim).to(dtype), scale=scale, seed=seed)


def randomise(module: torch.nn.Module, *, scale: float = 0.4, seed: int = 0) -> torch.nn.Module:
    """Draw every parameter from N(0, scale^2), from the seed alone; return the module."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(scale * noise)
    return module


def points(
    *shape: int, dtype: torch.dtype = torch.float64, scale: float = 1.5, seed: int = 1
) -> torch.Tensor:
    """Return normal points, from the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def context_for(
    transform: FlowTransform, *batch: int, dtype: torch.dtype = torch.float64
) -> torch.Tensor | None:
    """Return a context of that batch shape, or none where the transform takes none."""
    if transform.context_dim == 0:
        return None
    return points(*batch, transform.context_dim, dtype=dtype, scale=1.0, seed=2)
