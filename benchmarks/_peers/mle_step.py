"""Steps of maximum likelihood in the torch libraries; run by the benchmark, as its own process."""

from collections.abc import Callable
from itertools import cycle

import torch
from _step_worker import Curve, Steps, restrict_to_cores, serve
from torch import Tensor

from _peers import Peer, load
from _peers.ours import FAMILIES
from pyro_flows.density.objectives import Likelihood
from pyro_flows.density.options import MleOptions
from pyro_flows.density.run import MleRun
from pyro_flows.distributions import Flow
from pyro_flows.transforms import Inverse

RATE = 1e-4
BATCHES = 8
EPOCHS = 10**9  # more than are taken, so that the schedule stays at its start


def prepare(family: str, batch_size: int, way: str) -> Steps:
    """Make steps ready; the way is the library, the number of coordinates, and how."""
    library, dim, how = way.split()
    torch.manual_seed(0)
    data = torch.randn(BATCHES * batch_size, int(dim))
    if how == "products":
        return repeated(products(FAMILIES[family](int(dim)), batch_size))
    if library == "ours":
        return repeated(our_step(FAMILIES[family](int(dim)), data, batch_size, how))
    flow = load(library)[family](int(dim)).train()
    return repeated(peers_step(flow, data, batch_size, how))


def repeated(step: Callable[[], object]) -> Steps:
    """Return what takes any number of steps."""

    def steps(count: int) -> None:
        for _ in range(count):
            step()

    return steps


def our_step(chain: Peer, data: Tensor, batch_size: int, rung: str) -> Callable[[], object]:
    """Return all that ``fit_mle`` does in a step."""
    flow = Flow(Inverse(chain.parts[0]))
    options = MleOptions(
        epochs=EPOCHS, batch_size=batch_size, lr=RATE, engine=rung, progress=False
    )
    loop = MleRun(
        Likelihood(flow), [data], [], options, same={}, beginning=torch.get_rng_state()
    ).loop
    batches = cycle([((rows,), {}) for rows in data.split(batch_size)])
    return lambda: loop._take(next(batches))


def products(chain: Peer, batch_size: int) -> Callable[[], object]:
    """Return the products with the weights' matrices of a step, forward and backward."""
    matrices = [p.detach() for p in chain.parameters() if p.dim() == 2]
    sides = [
        (torch.randn(batch_size, w.shape[1]), torch.randn(batch_size, w.shape[0]))
        for w in matrices
    ]

    def step() -> None:
        for weight, (inputs, cotangent) in zip(matrices, sides, strict=True):
            inputs @ weight.mT
            cotangent @ weight
            cotangent.mT @ inputs

    return step


def peers_step(flow: Peer, data: Tensor, batch_size: int, how: str) -> Callable[[], object]:
    """Return a step as their users write it, with the quickest Adam of torch's."""

    def loss_of(x: Tensor) -> Tensor:
        z, ladj = flow(x)
        return (0.5 * z.square().sum(-1) - ladj).mean()

    loss = torch.compile(loss_of, dynamic=False) if how == "compiled" else loss_of
    optimizer = torch.optim.Adam(flow.parameters(), lr=RATE, fused=True)
    batches = cycle(data.split(batch_size))

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        value = loss(next(batches))
        value.backward()
        optimizer.step()
        return value.item()

    return step


def no_fit(*args: object, **options: object) -> Curve:
    """Refuse: there is none in this benchmark."""
    raise NotImplementedError


if __name__ == "__main__":
    restrict_to_cores()
    torch.set_num_threads(1)
    torch.distributions.Distribution.set_default_validate_args(False)
    serve({"torch": torch.__version__}, prepare, no_fit)
