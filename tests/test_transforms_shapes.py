"""Batch axes, contexts, layouts and dtypes of every transform."""

import copy

import contracts
import pytest
import torch
import zoo

BROADCASTS = {
    "x(D),c(N,C)": ((), (4,)),
    "x(S,N,D),c(N,C)": ((3, 4), (4,)),
    "x(N,D),c(C)": ((4,), ()),
    "x(S,1,D),c(N,C)": ((3, 1), (4,)),
    "x(D),c(C)": ((), ()),
}
BATCHES = [(), (1,), (4,), (3, 4), (2, 1, 3)]


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("name", zoo.ZOO)
def test_batch_is_loop(name, d):
    transform = zoo.build(name, d)
    for batch in BATCHES:
        contracts.batch_is_loop(transform, zoo.points(*batch, d), None)


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("name", zoo.names(2))
@pytest.mark.parametrize(("batch", "context_batch"), BROADCASTS.values(), ids=BROADCASTS)
def test_context_broadcasts(name, d, batch, context_batch):
    """FAULTS 3."""
    transform = zoo.build(name, d, 2)
    context = zoo.context_for(transform, *context_batch)
    contracts.batch_is_loop(transform, zoo.points(*batch, d), context)


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("name", zoo.ZOO)
def test_empty_batch(name, d):
    """FAULTS 6."""
    contracts.empty_batch(zoo.build(name, d), None)


@pytest.mark.parametrize("context_batch", [(), (0,), (1,)])
@pytest.mark.parametrize("name", zoo.names(2, zoo.KINDS))
def test_empty_batch_with_context(name, context_batch):
    """FAULTS 6."""
    transform = zoo.build(name, 3, 2)
    contracts.empty_batch(transform, zoo.context_for(transform, *context_batch))


def _odd_layouts(x):
    """Yield values like those of ``x`` in odd layouts, each beside its plain copy."""
    yield x, x.T.contiguous().T
    yield x, torch.cat([x, x], -1)[:, : x.shape[-1]]
    yield x, x.repeat_interleave(2, 0)[::2]
    yield x[:1].repeat(5, 1), x[:1].expand(5, -1)
    yield x[:, :1].repeat(1, x.shape[-1]), x[:, :1].expand(-1, x.shape[-1])
    yield x, contracts.leaf(x)
    yield x, contracts.leaf(x) * 1


@pytest.mark.parametrize(("name", "c"), zoo.rows())
def test_layout_does_not_matter(name, c):
    """FAULTS 10: strides, views, stride 0, gradients; and the input is left as it was."""
    transform = zoo.build(name, 3, c)
    for plain, odd in _odd_layouts(zoo.points(4, 3)):
        contracts.layout_does_not_matter(transform, plain, odd, zoo.context_for(transform))


@pytest.mark.parametrize("default", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "c"), zoo.rows())
def test_dtype_of_input_is_kept(name, c, dtype, default):
    """FAULTS 8: whatever torch's default dtype is, when it was built and when it is used."""
    torch.set_default_dtype(default)
    transform = zoo.build(name, 3, c, dtype=dtype)
    context = zoo.context_for(transform, dtype=dtype)
    contracts.dtype_is_kept(transform, zoo.points(4, 3, dtype=dtype), context)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", zoo.KINDS)
def test_half_precision_keeps_its_log_determinant_in_float32(name, dtype):
    """FAULTS 7."""
    half, x = zoo.build(name, 3, dtype=dtype), zoo.points(4, 3, dtype=dtype)
    wide = copy.deepcopy(half).double()
    tolerance = 20 * torch.finfo(dtype).eps
    for (direction, run), (_, exact) in zip(
        contracts.directions(half), contracts.directions(wide), strict=True
    ):
        value, ladj = run(x)
        assert (value.dtype, ladj.dtype) == (dtype, torch.float32), direction
        assert (ladj - exact(x.double())[1]).abs().max() < tolerance, direction
