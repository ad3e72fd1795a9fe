"""Bad arguments of constructors, recipes and the registry: typed errors with the numbers."""

import pyro.distributions as dist
import pytest
import torch

from pyro_flows import flows
from pyro_flows.distributions import (
    Box,
    DiagonalNormal,
    Flow,
    GaussianMixture,
    StandardNormal,
    StudentT,
)
from pyro_flows.errors import DomainError, ShapeError
from pyro_flows.nn import DenseNet, MaskedNet
from pyro_flows.transforms import (
    LOFT,
    ActNorm,
    AdditiveCoupling,
    AffineAutoregressive,
    AffineCoupling,
    BlockNeuralAutoregressive,
    Compose,
    DeepSigmoid,
    ElementwiseAffine,
    ElementwiseSpline,
    FlowTransform,
    Inverse,
    LeakyTanh,
    LowerTriangularAffine,
    LULinear,
    NeuralAutoregressive,
    Orthogonal,
    Permute,
    Planar,
    PolynomialAutoregressive,
    QRLinear,
    Radial,
    SplineAutoregressive,
    SplineCoupling,
    SumOfSquares,
    Sylvester,
    TailTransform,
    TukeyH,
)

NAN = float("nan")


def _tril(*rows):
    return torch.tensor(rows)


# What is called, the error, and words of its message.
BAD_ARGUMENTS = [
    # FAULTS 5: nothing to transform.
    *[
        pytest.param(
            lambda kind=kind, size=size: kind(size),
            DomainError,
            rf"^{kind.__name__}: expected input_dim to be an integer >= 1; got {size!r}",
            id=f"{kind.__name__}({size!r})",
        )
        for kind in (
            ActNorm,
            AdditiveCoupling,
            AffineAutoregressive,
            AffineCoupling,
            BlockNeuralAutoregressive,
            ElementwiseAffine,
            ElementwiseSpline,
            FlowTransform,
            LOFT,
            LeakyTanh,
            LowerTriangularAffine,
            LULinear,
            NeuralAutoregressive,
            Orthogonal,
            Planar,
            PolynomialAutoregressive,
            QRLinear,
            Radial,
            Sylvester,
            TailTransform,
            Box,
            DiagonalNormal,
            SplineAutoregressive,
            SplineCoupling,
            StandardNormal,
            StudentT,
            flows.realnvp,
            flows.nice,
            flows.iaf,
            flows.maf,
            flows.planar,
        )
        for size in (0, -1, 2.5, "3", True, None)
    ],
    *[
        pytest.param(
            lambda recipe=recipe: recipe(3, num_transforms=0),
            DomainError,
            rf"^{recipe.__name__}: expected num_transforms to be an integer >= 1; got 0",
            id=f"{recipe.__name__}(num_transforms=0)",
        )
        for recipe in (flows.realnvp, flows.nice, flows.iaf, flows.maf, flows.planar)
    ],
    (lambda: Compose([]), DomainError, "^Compose: expected at least one transform; got an empty"),
    (lambda: Flow([]), DomainError, "expected at least one transform"),
    # FAULTS 11: impossible hyper-parameters, with the numbers.
    (lambda: Planar(2, context_dim=-1), DomainError, "context_dim to be an integer >= 0; got -1"),
    (lambda: flows.iaf(2, context_dim="a"), DomainError, "iaf: expected context_dim .* got 'a'"),
    (
        lambda: Compose([Planar(2), Planar(3)]),
        ShapeError,
        r"^Compose: expected parts of one input_dim; got \[2, 3\]",
    ),
    (
        lambda: Compose([Planar(2, context_dim=1), Planar(2, context_dim=4), Planar(2)]),
        ShapeError,
        r"^Compose: expected parts of one context_dim; got \[1, 4\]",
    ),
    (
        lambda: Compose([Planar(2), torch.nn.ReLU()]),
        DomainError,
        "^Compose: expected a FlowTransf",
    ),
    (
        lambda: Inverse("planar"),
        DomainError,
        r"^Inverse: expected a FlowTransform; got 'planar' \(st",
    ),
    (
        lambda: AffineCoupling(2, mask=[True, True]),
        DomainError,
        r"not all of them true; got \[True, T",
    ),
    (
        lambda: AffineCoupling(2, mask=[1, 0]),
        DomainError,
        r"a boolean mask of 2 entries.*got \[1, 0\]",
    ),
    (
        lambda: AffineCoupling(2, mask=[False]),
        DomainError,
        r"a boolean mask of 2 entries.*\[False\]",
    ),
    (lambda: AdditiveCoupling(2, mask="ab"), DomainError, "a boolean mask of 2 entries"),
    (lambda: AdditiveCoupling(2, mask=3), DomainError, "a boolean mask of 2 entries.*; got 3"),
    (lambda: Permute([0, 0]), DomainError, r"each of 0 \.\.\. D-1 once; got \[0, 0\]"),
    (lambda: Permute([1, 2]), DomainError, r"got \[1, 2\]"),
    (lambda: Permute([]), DomainError, r"got \[\]"),
    (lambda: Permute([[0, 1]]), DomainError, r"got \[\[0, 1\]\]"),
    (lambda: Permute(torch.tensor([1.0, 0.0])), DomainError, r"got \[1.0, 0.0\]"),
    (lambda: Permute(torch.tensor([True, False])), DomainError, r"got \[True, False\]"),
    (lambda: Permute(7), DomainError, "got 7"),
    (lambda: DeepSigmoid(0), DomainError, "^DeepSigmoid: expected num_units .* >= 1; got 0"),
    (lambda: DeepSigmoid(2, 0), DomainError, "^DeepSigmoid: expected log_scale_bound .* got 0"),
    (lambda: SumOfSquares(0), DomainError, "^SumOfSquares: expected degree .* >= 1; got 0"),
    (lambda: SumOfSquares(3, 0), DomainError, "expected num_polynomials .* >= 1; got 0"),
    (lambda: SumOfSquares(3, 5), DomainError, "of at most 4 for degree=3; got num_polynomials=5"),
    (lambda: SumOfSquares(bound=NAN), DomainError, "expected bound .* > 0; got nan"),
    (lambda: SumOfSquares(coefficient_bound=-1), DomainError, "coefficient_bound .* got -1"),
    (lambda: AffineCoupling(2, log_scale_bound=0), DomainError, "log_scale_bound .* > 0; got 0"),
    (
        lambda: AffineCoupling(2, log_scale_bound=NAN),
        DomainError,
        "log_scale_bound .* > 0; got nan",
    ),
    (
        lambda: AffineAutoregressive(2, log_scale_bound=-1),
        DomainError,
        "log_scale_bound .* got -1",
    ),
    (
        lambda: AffineAutoregressive(2, log_scale_bound="3x"),
        DomainError,
        "log_scale_bound .* '3x'",
    ),
    (
        lambda: AffineAutoregressive(9, hidden_dims=(8, 7)),
        DomainError,
        r"hidden_dims of at least 8 for input_dim=9; got hidden_dims=\(8, 7\)",
    ),
    (
        lambda: AffineAutoregressive(9, hidden_dims=(8,), context_dim=1),
        DomainError,
        "hidden_dims of at least 9 for input_dim=9",
    ),
    (
        lambda: AffineCoupling(2, hidden_dims=(8, 0)),
        DomainError,
        "each of hidden_dims .* >= 1; got 0",
    ),
    (lambda: AffineCoupling(2, hidden_dims=8), DomainError, "hidden_dims to be a sequence"),
    (lambda: AffineCoupling(2, hidden_dims="88"), DomainError, "hidden_dims to be a sequence"),
    (lambda: DenseNet(2, 0), DomainError, "^DenseNet: expected output_dim"),
    (lambda: MaskedNet(2, 0), DomainError, "^MaskedNet: expected num_params"),
    (
        lambda: AffineCoupling(2, activation="gelu"),
        DomainError,
        "activation to be one of 'relu'.*'gelu'",
    ),
    (
        lambda: MaskedNet(2, 2, activation=torch.relu),
        DomainError,
        "activation to be one of 'relu'",
    ),
    (
        lambda: flows.maf(1, activation="gelu"),
        DomainError,
        "^maf: expected activation to be one of",
    ),
    *[
        (lambda options=options: Sylvester(3, **options), DomainError, f"^Sylvester: {words}")
        for options, words in (
            ({"num_hidden": 4}, "expected num_hidden of at most input_dim=3; got 4. Chain"),
            ({"num_hidden": 0}, "expected num_hidden to be an integer >= 1; got 0"),
            ({"num_hidden": 1.5}, "expected num_hidden to be an integer >= 1; got 1.5"),
            ({"num_reflections": -1}, "expected num_reflections to be an integer >= 0; got -1"),
            ({"num_reflections": "2"}, "expected num_reflections to be an integer >= 0; got '2'"),
        )
    ],
    (lambda: LOFT(2, threshold=-1), DomainError, "^LOFT: expected threshold .* >= 0; got -1"),
    (lambda: LeakyTanh(2, bound=0), DomainError, "^LeakyTanh: expected bound .* > 0; got 0"),
    (lambda: TailTransform(2, bound=NAN), DomainError, "^TukeyH: expected bound .* > 0; got nan"),
    (lambda: TukeyH("a"), DomainError, "^TukeyH: expected bound .* got 'a'"),
    # FAULTS 26: a scale that cannot be inverted.
    (
        lambda: ElementwiseAffine(2, scale=torch.tensor([1.0, 0.0])),
        DomainError,
        r"got \[1.0, 0.0\]",
    ),
    (
        lambda: ElementwiseAffine(2, scale=torch.tensor([1.0, NAN])),
        DomainError,
        "scale to be finite",
    ),
    (lambda: ElementwiseAffine(2, loc=torch.tensor([1.0, NAN])), DomainError, "loc to be finite"),
    (
        lambda: ElementwiseAffine(2, loc=torch.zeros(3)),
        ShapeError,
        r"loc of shape \(2,\); got .* \(3,\)",
    ),
    (lambda: ElementwiseAffine(2, scale=torch.ones(1)), ShapeError, r"scale of shape \(2,\)"),
    (
        lambda: ElementwiseAffine(2, scale=2.0),
        DomainError,
        r"scale to be .* tensor; got 2.0 \(float\)",
    ),
    (
        lambda: ElementwiseAffine(2, loc=torch.zeros(2).int()),
        DomainError,
        "loc to be .* got a int32",
    ),
    (
        lambda: ElementwiseAffine(2, loc=torch.zeros(2).double(), scale=torch.ones(2)),
        DomainError,
        "loc and scale of one dtype; got float64 loc and float32 scale",
    ),
    *[
        (
            lambda value=value: LowerTriangularAffine(2, scale_tril=value),
            DomainError,
            "scale_tril to be lower-triangular with a positive diagonal; got",
        )
        for value in (
            _tril([1.0, 0.0], [0.5, 0.0]),
            _tril([1.0, 0.0], [0.5, -1.0]),
            _tril([1.0, 0.5], [0.0, 1.0]),
        )
    ],
    (
        lambda: LowerTriangularAffine(2, scale_tril=torch.eye(3)),
        ShapeError,
        r"scale_tril of shape \(2, 2",
    ),
    (
        lambda: LowerTriangularAffine(2, scale_tril=torch.ones(2)),
        ShapeError,
        "scale_tril of shape",
    ),
    (
        lambda: LowerTriangularAffine(2, scale_tril=_tril([1.0, 0.0], [NAN, 1.0])),
        DomainError,
        "scale_tril to be finite",
    ),
    # FAULTS 11: bases.
    (
        lambda: GaussianMixture(2, 0),
        DomainError,
        "^GaussianMixture: expected num_components to be an",
    ),
    (lambda: GaussianMixture(0, 2), DomainError, "^GaussianMixture: expected input_dim to be an"),
    (
        lambda: StudentT(2, df=1.0),
        DomainError,
        r"^StudentT: expected every df to be > 1; got \[1.",
    ),
    (lambda: StudentT(2, df=NAN), DomainError, "^StudentT: expected df to be finite"),
    (lambda: StudentT(2, df="5"), DomainError, "^StudentT: expected df to be a real floating-"),
    (lambda: StudentT(2, df=torch.ones(3)), ShapeError, r"StudentT: expected df of shape \(2,\)"),
    (lambda: Box(2, low=1.0), DomainError, r"^Box: expected low < high.*got low=\[1.0, 1.0\] and"),
    (lambda: Box(1, low=-3e38, high=3e38), DomainError, "a finite width apart"),
    (lambda: Box(2, high=torch.inf), DomainError, "^Box: expected high to be finite"),
    (lambda: Box(2, high=torch.ones(1)), ShapeError, r"^Box: expected high of shape \(2,\)"),
    (
        lambda: Box(2, low=torch.zeros(2).double(), high=torch.ones(2)),
        DomainError,
        "^Box: expected low and high of one dtype; got float64 low and float32 high",
    ),
    # FAULTS 14: a base that cannot be pushed forward.
    (
        lambda: Flow(Planar(2), base="normal"),
        DomainError,
        "^Flow: expected base to be a distribution",
    ),
    (
        lambda: Flow(Planar(2), base=dist.Normal(0.0, 1.0)),
        ShapeError,
        r"event shape \(2,\); got .* \(\)",
    ),
    (
        lambda: Flow(Planar(2), base=dist.Normal(0.0, 1.0).expand([2])),
        ShapeError,
        r"got batch shape \(2,\) and event shape \(\)\. Use \.to_event\(1\)",
    ),
    (
        lambda: Flow(Planar(2), base=dist.Normal(0.0, 1.0).expand([3]).to_event(1)),
        ShapeError,
        r"event shape \(2,\); got batch shape \(\) and event shape \(3,\)",
    ),
    (
        lambda: Flow(Planar(2), base=dist.Normal(0.0, 1.0).expand([5, 2]).to_event(1)),
        ShapeError,
        r"a base of batch shape \(\)",
    ),
    (
        lambda: Flow(Planar(2), base=dist.Poisson(3.0).expand([2]).to_event(1)),
        DomainError,
        r"a base whose support is the domain .*Real.*; got the support .*\. Real vectors take",
    ),
    (
        lambda: Flow(Planar(2), base=dist.Gamma(3.0, 1.0).expand([2]).to_event(1)),
        DomainError,
        "a base whose support is the domain .*; got the support .*GreaterThan",
    ),
    (
        lambda: Flow(Planar(2), base=dist.Dirichlet(torch.ones(2))),
        DomainError,
        "a base whose support is the domain .*; got the support Simplex",
    ),
    # Recipes by name.
    (lambda: flows.find("resnet"), DomainError, "'iaf', .*'realnvp'.*; got 'resnet'"),
    (lambda: flows.find(3), DomainError, "a name or a function"),
    (lambda: flows.register("", flows.iaf), DomainError, "a non-empty string.*got ''"),
    (lambda: flows.register(3, flows.iaf), DomainError, "a non-empty string.*got 3"),
    (lambda: flows.register("iaf", flows.maf), DomainError, "not a built-in recipe's; got 'iaf'"),
    (lambda: flows.register("mine", 3), DomainError, r"recipe to be a function.*got 3 \(int\)"),
]


@pytest.mark.parametrize(("call", "error", "words"), BAD_ARGUMENTS)
def test_bad_arguments(call, error, words):
    """FAULTS 5, 11, 14, 26."""
    with pytest.raises(error, match=words) as caught:
        call()
    assert type(caught.value) is error
    assert isinstance(caught.value, ValueError)
