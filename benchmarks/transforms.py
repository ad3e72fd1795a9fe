"""The transforms against those of Pyro, Zuko, nflows and normflows, at the same architectures.

    pip install -e '.[bench]'
    python benchmarks/transforms.py [--dims 2 10 64] [--families affine_coupling ...]
        [--compiled] [--sampling [10000]] [--memory] [--batch 512] [--repeats 15] [--threads 1]

Times a step of maximum likelihood (both ends of a batch, the loss and its gradients) of each
family in each library's cheap direction, in float32, all libraries in turn, and prints the medians
in ms with their ratios to ours. Conditioners have two hidden layers of 128 relu units; where there
are any, a column has the time of these networks alone, which nothing can beat. Further, on
demand: the step under torch.compile; drawing from a spline autoregressive flow, its slow direction
in the others; and the memory of the autoregressive inverse against that of the forward pass.

A library that is not installed is left out, and a line says so. The exit status is 1 where a
target is missed: 1.3 times as fast as the fastest peer in each family and size, 3 times if
compiled, 100 times in drawing, 2 times the memory.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial

import pyro
import torch
from _peers import DESCRIPTIONS, LIBRARIES, Family, Peer, bare, load
from _peers.ours import FAMILIES
from _timing import allocated, interleaved, once
from torch import Tensor

LEAST_EAGER, LEAST_COMPILED, LEAST_SAMPLING, MOST_MEMORY = 1.3, 3.0, 100.0, 2.0
SAMPLED, SAMPLED_DIM = "spline_autoregressive", 64
SAMPLERS = ("zuko", "nflows")
IMPLICIT = ("affine_autoregressive", "spline_autoregressive")
MEMORY_DIM, MEMORY_POINTS = 64, 2000


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 10, 64])
    parser.add_argument("--families", nargs="*", choices=list(DESCRIPTIONS), default=None)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--sampling", type=int, nargs="?", const=10_000, default=0)
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=["zuko"])
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def libraries() -> dict[str, dict[str, Family]]:
    """Return the flows of each library that is installed."""
    found = {name: load(name) for name in LIBRARIES}
    for name, families in found.items():
        if families is None:
            print(f"{name}: not installed, left out")
    return {name: families for name, families in found.items() if families is not None}


def build(family: Family, input_dim: int) -> Peer:
    """Return a flow at random parameters around its start."""
    torch.manual_seed(0)
    flow = family(input_dim).train()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return flow


def loss_of(flow: Peer) -> Callable[[Tensor], Tensor]:
    """Return the negative log-likelihood of a batch, up to a constant."""

    def loss(x: Tensor) -> Tensor:
        z, ladj = flow(x)
        return (0.5 * z.square().sum(-1) - ladj).mean()

    return loss


def step_of(flow: Peer, loss: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    """Return one step of training, the optimizer's own part apart."""

    def step() -> Tensor:
        flow.zero_grad(set_to_none=True)
        # A new tensor each time: Pyro would return the last result for one that it has seen.
        value = loss(x.detach())
        value.backward()
        return value

    return step


def parameters(flow: Peer, step: Callable[[], Tensor]) -> str:
    """Return how many parameters there are, and how many get a gradient.

    Those behind a mask get none, nor do those of a unit that is off at every point.

    Raises:
        RuntimeError: The loss or a gradient is not finite, or a parameter takes no part.
    """
    grads = {}
    if step().isfinite():
        grads = {name: parameter.grad for name, parameter in flow.named_parameters()}
    faulty = [name for name, g in grads.items() if g is None or not g.isfinite().all()]
    if faulty or not grads:
        raise RuntimeError(f"{type(flow).__name__}: no finite gradient for {faulty or 'any'}.")
    acting = sum(int(grad.count_nonzero()) for grad in grads.values())
    return f"{sum(grad.numel() for grad in grads.values())} ({acting})"


def compiled(flow: Peer, x: Tensor, what: str) -> Callable[[], Tensor]:
    """Return the step with the loss and its gradient compiled; say so if not in one graph."""
    eager = loss_of(flow)
    torch.compiler.reset()
    loss = torch.compile(eager, fullgraph=True, dynamic=False)
    try:
        value = loss(x)
    except torch._dynamo.exc.TorchDynamoException as error:
        print(f"{what}: does not compile in one graph: {str(error).splitlines()[0]}")
        loss = torch.compile(eager, dynamic=False)
        value = loss(x)
    torch.testing.assert_close(value, eager(x), rtol=1e-3, atol=1e-3)
    return step_of(flow, loss, x)


def row(cells: list[str]) -> None:
    """Print one row of a Markdown table at once."""
    print(f"| {' | '.join(cells)} |", flush=True)


def measure_steps(
    chosen: list[str], peers: dict[str, dict[str, Family]], given: argparse.Namespace
) -> list[str]:
    """Print the table of the steps, and return the targets that are missed."""
    missed, counts = [], []
    for family in chosen:
        print(f"{family}: {DESCRIPTIONS[family]}")
    print()
    names = ["nets alone", "ours", *(["compiled"] if given.compiled else []), *peers]
    row(["family", "D", *names, "fastest peer / ours"])
    row(["---"] * (len(names) + 3))
    for family in chosen:
        for dim in given.dims:
            x = torch.randn(given.batch, dim)
            builders = {"ours": FAMILIES} | peers
            flows = {
                name: build(families[family], dim)
                for name, families in builders.items()
                if family in families
            }
            runs = {name: step_of(flow, loss_of(flow), x) for name, flow in flows.items()}
            sizes = {name: parameters(flow, runs[name]) for name, flow in flows.items()}
            counts.append([family, str(dim), *(sizes.get(n, "") for n in ["ours", *peers])])
            if family in bare.FAMILIES:
                nets = build(bare.FAMILIES[family], dim)
                runs["nets alone"] = step_of(nets, loss_of(nets), x)
            if given.compiled:
                runs["compiled"] = compiled(flows["ours"], x, f"{family}, D={dim}")
            seconds = interleaved(runs, given.repeats)
            missed += _report(family, dim, names, seconds)
    print("\nParameters, and in brackets those that get a gradient:\n")
    row(["family", "D", "ours", *peers])
    row(["---"] * (len(peers) + 3))
    for cells in counts:
        row(cells)
    return missed


def _report(family: str, dim: int, names: list[str], seconds: dict[str, float]) -> list[str]:
    """Print one row; return what is missed in it."""
    ours = seconds["ours"]
    cells = [
        f"{1e3 * seconds[name]:.2f} ({seconds[name] / ours:.2f})" if name in seconds else ""
        for name in names
    ]
    peers = {name: seconds[name] for name in seconds if name in LIBRARIES}
    if not peers:
        row([family, str(dim), *cells, "no peer"])
        return []
    fastest = min(peers, key=lambda name: peers[name])
    targets = {"ours": LEAST_EAGER, "compiled": LEAST_COMPILED}
    ratios = {name: peers[fastest] / seconds[name] for name in targets if name in seconds}
    shown = ", ".join(f"{ratio:.2f}" for ratio in ratios.values())
    row([family, str(dim), *cells, f"{shown} ({fastest})"])
    bound = peers[fastest] / seconds["nets alone"] if "nets alone" in seconds else None
    remark = "" if bound is None else f" (the nets alone: {bound:.2f})"
    return [
        f"{family}, D={dim}, {name}: {ratio:.2f} times as fast as {fastest}, "
        f"not {targets[name]}{remark}"
        for name, ratio in ratios.items()
        if ratio < targets[name]
    ]


@torch.no_grad()
def measure_sampling(peers: dict[str, dict[str, Family]], given: argparse.Namespace) -> list[str]:
    """Print the seconds of drawing in the slow direction; return the targets that are missed."""
    z = torch.randn(given.sampling, SAMPLED_DIM)
    ours = build(FAMILIES[SAMPLED], SAMPLED_DIM)
    seconds = interleaved({"ours": lambda: ours.draw(z)}, given.repeats)["ours"]
    back = float((ours(ours.draw(z))[0] - z).abs().max())
    print(f"\n{DESCRIPTIONS[SAMPLED]}, D={SAMPLED_DIM}, {given.sampling} draws, no gradients:")
    print(f"ours: {seconds:.3f} s; largest difference after a round trip {back:.1e}", flush=True)
    missed = []
    for name in given.samplers:
        if name in peers:
            flow = build(peers[name][SAMPLED], SAMPLED_DIM)
            ratio = once(lambda flow=flow: flow.draw(z)) / seconds
            print(f"{name}: {ratio * seconds:.1f} s, {ratio:.0f} times ours", flush=True)
            if ratio < LEAST_SAMPLING:
                missed.append(f"drawing: {ratio:.0f} times as fast as {name}, not 100")
    return missed


def measure_memory() -> list[str]:
    """Print the memory of the inverse over that of the forward; return the targets missed."""
    x = torch.randn(MEMORY_POINTS, MEMORY_DIM, requires_grad=True)
    print(f"\nMB of the inverse and of the forward pass, D={MEMORY_DIM}, {MEMORY_POINTS} points:")
    missed = []
    for family in IMPLICIT:
        for count in (1, 3):
            flow = build(partial(FAMILIES[family], num_transforms=count), MEMORY_DIM)
            chain = flow.parts[0]
            (kept, peak), (kept_before, peak_before) = (
                allocated(lambda run=run: sum(part.square().mean() for part in run(x)))
                for run in (chain.inverse_and_ladj, chain.forward_and_ladj)
            )
            ratio = peak / peak_before
            print(
                f"{family}, layers: {count}: kept for the gradients {kept / 1e6:.1f} and "
                f"{kept_before / 1e6:.1f} ({kept / kept_before:.2f}), "
                f"peak {peak / 1e6:.1f} and {peak_before / 1e6:.1f} ({ratio:.2f})"
            )
            if ratio > MOST_MEMORY:
                missed.append(
                    f"memory: {family}, layers: {count}: {ratio:.2f} times, not {MOST_MEMORY}"
                )
    return missed


def main() -> int:
    """Measure what is asked for."""
    given = options()
    torch.set_num_threads(given.threads)
    pyro.enable_validation(False)
    torch.distributions.Distribution.set_default_validate_args(False)
    peers = libraries()
    chosen = list(DESCRIPTIONS) if given.families is None else given.families
    sizes = f"{given.threads} threads, batch {given.batch}"
    print(f"torch {torch.__version__}, {sizes}, float32; ms\n")
    missed = measure_steps(chosen, peers, given) if chosen else []
    if given.sampling:
        missed += measure_sampling(peers, given)
    if given.memory:
        missed += measure_memory()
    for line in missed:
        print(f"missed: {line}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
