"""Tall matrices are stored column by column in compiled graphs, with the same numbers."""

import pytest
import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_flows.infer.engine.layout import store_by_columns
from pyro_flows.infer.engine.native import _cause

aten = torch.ops.aten
TALL, SMALL = (64, 5), (3, 5)


def graph_of(target, *shapes, **kwargs):
    graph = fx.Graph()
    inputs = [graph.placeholder(f"x{k}") for k in range(len(shapes))]
    graph.output((graph.call_function(target, tuple(inputs), kwargs),))
    return fx.GraphModule(torch.nn.Module(), graph)


def asks(module):
    return [node for node in module.graph.nodes if "stride_order" in str(node.target)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("target", "shapes", "num_asks"),
    [
        (aten.mm.default, (TALL, SMALL[::-1]), 1),
        (aten.mm.default, (TALL[::-1], (64, 3)), 2),
        (aten.addmm.default, (SMALL[:1], TALL, SMALL[::-1]), 1),
        (aten.addmm.default, ((1, 3), TALL[::-1], (64, 3)), 2),
        (aten.mm.default, (SMALL, TALL[::-1]), 0),
        (aten.mm.default, ((4, 4), (4, 4)), 0),
    ],
)
def test_products_of_tall_matrices_keep_their_numbers(target, shapes, num_asks, dtype):
    inputs = [torch.randn(shape, dtype=dtype) for shape in shapes]
    module = graph_of(target, *shapes)
    (expected,) = module(*inputs)
    store_by_columns(module, inputs)
    assert len(asks(module)) == num_asks
    (found,) = module(*inputs)
    torch.testing.assert_close(found, expected)
    assert not any(node.meta for node in module.graph.nodes)


def test_a_scaled_product_stays():
    shapes = (SMALL[:1], TALL, SMALL[::-1])
    inputs = [torch.randn(shape) for shape in shapes]
    module = graph_of(aten.addmm.default, *shapes, beta=0.5)
    (expected,) = module(*inputs)
    store_by_columns(module, inputs)
    assert not asks(module)
    assert torch.equal(module(*inputs)[0], expected)


def flattened(x, weight):
    return aten.view.default(aten.mm.default(x, weight), [-1])


def addressed(x, weight):
    return aten.as_strided.default(aten.mm.default(x, weight), [64], [3])


@pytest.mark.parametrize(("function", "num_asks"), [(flattened, 1), (addressed, 0)])
def test_views_of_products_keep_their_order(function, num_asks):
    inputs = [torch.randn(TALL), torch.randn(SMALL[::-1])]
    module = make_fx(lambda x, weight: (function(x, weight),))(*inputs)
    (expected,) = module(*inputs)
    store_by_columns(module, inputs)
    assert len(asks(module)) == num_asks
    torch.testing.assert_close(module(*inputs)[0], expected)


def test_the_cause_is_the_error_not_the_advice_below_it():
    complaint = "Traceback\n  File x\ntorch.foo.BadError: no lowering of aten.x\n\nSet LOGS\n"
    assert _cause(complaint) == "torch.foo.BadError: no lowering of aten.x"
    assert _cause("cc: killed\n\n") == "cc: killed"
    assert _cause("") == "the compiler was stopped"
