"""Things that are easily mistaken for one another: typed errors that say which is which."""

import pytest
import torch

from pyro_flows import flows
from pyro_flows.distributions import Flow
from pyro_flows.errors import DomainError
from pyro_flows.transforms import (
    Compose,
    Coupling,
    ElementwiseSpline,
    MultiScale,
    Partial,
    Pixelwise,
    Planar,
    Univariate,
    initialise_from_data,
)

MISTAKEN = [
    (
        lambda: Compose(Planar(2)),
        DomainError,
        "^Compose: expected a sequence of transforms; got Pl",
    ),
    (lambda: MultiScale(Planar(2)), DomainError, "^MultiScale: expected a sequence of transforms"),
    (lambda: Flow(None), DomainError, "expected a sequence of transforms; got None"),
    (
        lambda: initialise_from_data(flows.nice(2), torch.randn(5, 2)),
        DomainError,
        "^initialise_from_data: expected a FlowTransform; got Flow",
    ),
    (lambda: Coupling(Univariate(), 2), DomainError, "num_params to be an integer >= 1; got None"),
    (
        lambda: Partial(ElementwiseSpline(1, circular=True), 2),
        DomainError,
        "^Partial: expected a transform of real vectors; got ElementwiseSpline over .*Interval",
    ),
    (
        lambda: Pixelwise(ElementwiseSpline(1, circular=True), (1, 2, 2)),
        DomainError,
        "^Pixelwise: expected a transform of real vectors; got ElementwiseSpline over .*Interval",
    ),
    (
        lambda: flows.nsf(2, kind="coupling", one_pass="both"),
        DomainError,
        "^nsf: expected one_pass to be one of 'sampling', 'scoring'; got 'both'",
    ),
    (lambda: flows.nsf(2, kind="cubic"), DomainError, "^nsf: expected kind to be one of 'autoreg"),
    (lambda: flows.bnaf(2, hidden_factors=8), DomainError, "hidden_factors to be a sequence"),
    (
        lambda: flows.maf(2, context_dim=2).condition(torch.zeros(2).double()).sample(),
        DomainError,
        "float32 points and float64 context and float32 parameters",
    ),
]


@pytest.mark.parametrize(("call", "error", "words"), MISTAKEN)
def test_mistaken_argument_is_refused(call, error, words):
    """FAULTS 11, 14."""
    with pytest.raises(error, match=words):
        call()
