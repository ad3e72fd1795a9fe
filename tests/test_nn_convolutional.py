"""The convolutional conditioner: what it sees, what it writes, and how a context enters."""

import contracts
import pytest
import torch
import zoo
from torch.nn import functional

from pyro_flows.errors import DomainError, ShapeError
from pyro_flows.nn import ConvNet
from pyro_flows.transforms import AffineCoupling

SHAPE = (2, 4, 6)
ROWS, COLUMNS = torch.arange(4).view(-1, 1), torch.arange(6)
MASKS = {
    "channel": torch.tensor([False, True]).view(2, 1, 1).expand(SHAPE),
    "checkerboard": ((ROWS + COLUMNS) % 2 == 0).expand(SHAPE),
    "one_pixel": torch.arange(48).view(SHAPE) == 17,
}
EVERY_MASK = pytest.mark.parametrize("name", MASKS)


def _net(name, **options):
    net = ConvNet(SHAPE, 2, mask=MASKS.get(name), hidden_channels=5, num_blocks=2, **options)
    return zoo.randomise(net.double(), scale=0.5)


@EVERY_MASK
def test_parameters_are_those_of_a_masked_convolution(name):
    """Against convolutions of the whole image, with zeros for what is not kept."""
    net, mask, x = _net(name), MASKS[name], zoo.points(3, *SHAPE)
    image = torch.where(mask, x, 0.0)
    if net.whole_channels:
        image = image[:, mask[:, 0, 0]]
    h = functional.conv2d(image, net.first.weight, net.first.bias, padding=1)
    for block in net.blocks:
        a = functional.conv2d(
            functional.silu(h), block.spatial.weight, block.spatial.bias, padding=1
        )
        h = h + functional.conv2d(functional.silu(a), block.pointwise.weight, block.pointwise.bias)
    params = functional.conv2d(functional.silu(h), net.last.weight, net.last.bias)
    of_all = params.unflatten(1, (2, -1))
    want = of_all.flatten(2) if net.whole_channels else of_all.flatten(2)[:, :, ~mask.flatten()]
    got = net(x.flatten(1)[:, mask.flatten()])
    contracts.close(got, want.flatten(1), "parameters")


@EVERY_MASK
@pytest.mark.parametrize("context_dim", [0, 2])
def test_coupling_keeps_the_contracts(name, context_dim):
    """FAULTS 33: the log-determinant against autodiff, both ways."""
    transform = AffineCoupling(
        48,
        mask=MASKS[name].flatten(),
        conditioner=_net(name, context_dim=context_dim),
        context_dim=context_dim,
    ).double()
    x, context = zoo.points(3, 48), zoo.context_for(transform, 3)
    contracts.round_trip(transform, x, context)
    contracts.inverse_ladj_negates(transform, x, context)
    contracts.ladj_is_slogdet(transform, x, context)
    contracts.batch_is_loop(transform, zoo.points(2, 1, 48), context)
    contracts.vmap_is_batch(transform, x, context)
    contracts.every_parameter_learns(transform, x, context)
    contracts.copies_are_equal(transform, x, context)


@EVERY_MASK
def test_coupling_starts_at_the_identity(name):
    net = ConvNet(SHAPE, 2, mask=MASKS[name], hidden_channels=5)
    transform = AffineCoupling(48, mask=MASKS[name].flatten(), conditioner=net)
    x = zoo.points(3, 48, dtype=torch.float32)
    assert torch.equal(transform(x), x)


def test_without_a_mask_it_sees_and_writes_the_whole_image():
    net = _net(None)
    rows = torch.func.jacrev(net)(zoo.points(48)).view(2, 2, 24, 2, 24)
    reached = rows.ne(0).any(0).any(0).any(1)
    assert reached.any()
    assert net(zoo.points(7, 3, 48)).shape == (7, 3, 96)
    middle = rows.view(2, 2, 4, 6, 2, 4, 6)[:, :, 0, 0]
    # Three 3 x 3 convolutions reach three pixels far, and no farther.
    assert middle[..., 3, 3].any()
    assert not middle[..., 4:].any()


def test_context_broadcasts():
    net, x, context = _net("channel", context_dim=3), zoo.points(4, 24), zoo.points(5, 1, 3)
    together = net(x, context)
    assert together.shape == (5, 4, 48)
    for k in range(5):
        contracts.close(together[k], net(x, context[k, 0]), f"context {k}")


BAD = [
    (lambda: ConvNet((3, 8), 2), ShapeError, r"^ConvNet: .*\(channels, height, width\)"),
    (lambda: ConvNet(SHAPE, 0), DomainError, "^ConvNet: expected num_params"),
    (lambda: ConvNet(SHAPE, 2, hidden_channels=0), DomainError, "hidden_channels .*; got 0"),
    (lambda: ConvNet(SHAPE, 2, num_blocks=0), DomainError, "num_blocks .*; got 0"),
    (lambda: ConvNet(SHAPE, 2, activation="sine"), DomainError, "activation"),
    (
        lambda: ConvNet(SHAPE, 2, mask=torch.ones(SHAPE, dtype=torch.bool)),
        DomainError,
        r"^ConvNet: expected a boolean mask of 48 entries.*got \[True, .{50,70}\.\.\.",
    ),
    (
        lambda: ConvNet(SHAPE, 2, mask=torch.zeros(SHAPE, dtype=torch.bool)),
        DomainError,
        "keeps some coordinates; got none kept",
    ),
]


@pytest.mark.parametrize(("call", "error", "words"), BAD)
def test_bad_arguments(call, error, words):
    """FAULTS 11."""
    with pytest.raises(error, match=words):
        call()
