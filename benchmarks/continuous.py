"""Continuous flows: against Zuko's, by maximum likelihood and flow matching, and by solver.

    python benchmarks/continuous.py [--quick] [--parts orders density moons rnode]
        [--budget 300] [--threads 1] [--out out/continuous]

``orders``: mean and largest error of the log-density of trained flows, in nats, by the number of
steps of each fixed-step solver, against Dormand-Prince at a tolerance of 1e-10 in float64; the
slopes are to be 1 (Euler), 2 (midpoint) and 4 (Runge-Kutta). A figure is written to ``--out``.

``density``: the log-density of 10,000 rows under trained flows of two and of ten coordinates, at
one tolerance, by the same network with the same parameters: ours is to be at least 1.5 times as
fast as Zuko's transform. Exact traces, without gradients; errors are against the same reference.

``moons``: training on two moons (3,000 points of noise 0.05, standardised, of which a fifth are
held out) until the held-out negative log-likelihood is 1.20 nats: by maximum likelihood with
recorded steps, by flow matching, by FFJORD (adaptive steps of torchdiffeq, the adjoint, one random
direction), and by Zuko's CNF. Who has not reached it within the budget shows how far it came. As
the rows' own luck moves the figure, what is judged is the excess over what the true density scores
on them: 1.20 less the entropy 1.131. Flow matching is to take a twentieth of FFJORD's time.

``rnode``: velocities that Dormand-Prince takes to score the held-out rows, for flows that were
trained by maximum likelihood with and without the cost of transport, which is to halve them.

The networks are those of the recipes but for their widths, and one for all contestants of a part.
Times are of one thread's own work. The exit status is 1 where a target is missed.
"""

import argparse
import copy
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from _timing import clock, interleaved
from density.two_moons import ENTROPY, moons, nll, row
from torch import Tensor

from pyro_flows import Flow, flows
from pyro_flows.density import fit_matching, fit_mle
from pyro_flows.nn import TimeNet
from pyro_flows.transforms import Continuous, TransportCost

WIDTHS, NUM_ROWS, TOLERANCE = (64, 64), 10_000, 1e-5
MOST_NLL, LEAST_SPEED, LEAST_MATCHING, LEAST_SAVING = 1.20, 1.5, 20.0, 2.0
MATCHING = {"epochs": 800, "lr": 1e-2, "pairing": "independent"}
LIKELIHOOD = {"epochs": 100, "lr": 1e-2}
COST = TransportCost(0.05, 0.05)
QUIET = {"validation": None, "seed": 0, "progress": False}
STEPS, SLOPES = (4, 8, 16, 32, 64, 128, 256), {"euler": 1, "midpoint": 2, "rk4": 4}


def bent(num: int) -> Tensor:
    """Return rows of ten coordinates, each a curved function of the one before."""
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randn(num, generator=generator)]
    for _ in range(9):
        noise = 0.3 * torch.randn(num, generator=generator)
        columns.append(torch.sin(2 * columns[-1]) + noise)
    rows = torch.stack(columns, -1)
    return (rows - rows.mean(0)) / rows.std(0)


def trained(given: argparse.Namespace) -> dict[str, tuple[Flow, Tensor]]:
    """Return flows of two and ten coordinates, trained by flow matching, and rows to score."""
    epochs = 5 if given.quick else 200
    found = {}
    for name, rows in {"two moons": moons(0).fresh, "ten, bent": bent(20_000)}.items():
        torch.manual_seed(0)
        flow = flows.cnf(rows.shape[1], hidden_dims=WIDTHS)
        options = {**MATCHING, "epochs": epochs, "batch_size": 512}
        fit_matching(flow, rows[:10_000], **options, **QUIET)
        found[name] = flow.eval(), rows[10_000:]
    return found


def part_of(flow: Flow, **settings: object) -> Continuous:
    """Return a flow's continuous transform, given other settings."""
    (part,) = flow.transform.parts
    for name, value in settings.items():
        setattr(part, name, value)
    return part


@torch.no_grad()
def reference(flow: Flow, rows: Tensor) -> Tensor:
    """Return the log-density to ten digits."""
    exact = copy.deepcopy(flow).double()
    part_of(exact, solver="dopri5", tolerance=1e-10, max_steps=10_000)
    return exact.log_prob(rows.double())


@torch.no_grad()
def measure_orders(given: argparse.Namespace) -> list[str]:
    """Print errors by steps, draw them, and return what is missed."""
    missed, curves = [], {}
    for name, (found, points) in trained(given).items():
        rows, flow = points[:1000].double(), copy.deepcopy(found).double()
        want = reference(flow, rows)
        print(f"\nmean (largest) error of the log-density in nats, {name}\n")
        row(["solver", *(f"{steps} steps" for steps in STEPS), "slope"])
        row(["---"] * (len(STEPS) + 2))
        for solver, order in SLOPES.items():
            errors = []
            for steps in STEPS:
                part_of(flow, solver=solver, num_steps=steps)
                errors.append((flow.log_prob(rows) - want).abs())
            means = torch.stack([error.mean() for error in errors])
            # Of the last doubling, where the leading term rules.
            slope = float((means[-2] / means[-1]).log2())
            cells = [f"{error.mean():.1e} ({error.max():.1e})" for error in errors]
            row([solver, *cells, f"{slope:.2f}"])
            curves[name, solver] = means
            if abs(slope - order) > 0.3:
                missed.append(f"{name}, {solver}: slope {slope:.2f}, {order} wanted")
    draw(curves, given.out)
    return missed


def draw(curves: dict[tuple[str, str], Tensor], out: Path) -> None:
    """Write the errors as a figure, where matplotlib is there."""
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        print("matplotlib: not installed, no figure")
        return
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(5, 4), layout="constrained")
    for (name, solver), means in curves.items():
        style = "-" if name == "two moons" else "--"
        ax.loglog(STEPS, means, style, marker="o", ms=3, label=f"{solver}, {name}")
    ax.set(xlabel="steps", ylabel="mean error of the log-density (nats)")
    ax.legend(fontsize="small")
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / "orders.png", dpi=110)
    print(f"\nfigure: {out / 'orders.png'}")


def in_zuko(field: TimeNet) -> object:
    """Return Zuko's transform from the base to the data, by a field of ours."""
    from zuko.transforms import FreeFormJacobianTransform

    phi = field.parameters() if field.training else ()
    return FreeFormJacobianTransform(field, phi=phi, atol=TOLERANCE, rtol=TOLERANCE)


def log_density_in_zuko(field: TimeNet, rows: Tensor) -> Tensor:
    """Return the log-density, as Zuko's flow computes it."""
    z, ladj = in_zuko(field).inv.call_and_ladj(rows)
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1) + ladj


@torch.no_grad()
def measure_density(given: argparse.Namespace) -> list[str]:
    """Print times and errors of the log-density; return what is missed."""
    missed = []
    names = ["rows", "who", "ms", "velocities", "mean error", "largest error", "times ours"]
    row(names)
    row(["---"] * len(names))
    for name, (flow, points) in trained(given).items():
        rows = points[:NUM_ROWS]
        want, fixed = reference(flow, rows), copy.deepcopy(flow)
        part = part_of(flow, solver="dopri5", tolerance=TOLERANCE)
        part_of(fixed, num_steps=16)
        evaluations = Counter(part.field)
        runs: dict[str, Callable[[], Tensor]] = {
            "ours, dopri5": lambda flow=flow, rows=rows: flow.log_prob(rows),
            "ours, 16 steps of rk4": lambda fixed=fixed, rows=rows: fixed.log_prob(rows),
            "Zuko": lambda field=part.field, rows=rows: log_density_in_zuko(field, rows),
        }
        seconds = interleaved(runs, 2 if given.quick else 7)
        for who, run in runs.items():
            evaluations.count = 0
            errors = (run().double() - want).abs()
            count = evaluations.count if who == "Zuko" else part.num_evaluations
            count = 64 if "rk4" in who else count
            ratio = seconds[who] / seconds["ours, dopri5"]
            figures = [f"{errors.mean():.1e}", f"{errors.max():.1e}", f"{ratio:.2f}"]
            row([name, who, f"{1e3 * seconds[who]:.0f}", count, *figures])
        ratio = seconds["Zuko"] / seconds["ours, dopri5"]
        if ratio < LEAST_SPEED:
            missed.append(f"{name}: {ratio:.2f} times as fast as Zuko, {LEAST_SPEED} wanted")
    return missed


class Counter:
    """Count the calls of a field."""

    def __init__(self, field: TimeNet) -> None:
        self.count = 0
        field.register_forward_hook(self._note)

    def _note(self, *_: object) -> None:
        self.count += 1


def measure_moons(given: argparse.Namespace) -> list[str]:
    """Train until the held-out rows score well; return what is missed."""
    data, needed = moons(0), {}
    print("\nexcess over the true density, held-out rows; 0.069 is wanted\n")
    row(["who", "reached", "excess at the end", "s", "steps", "velocities of a row"])
    row(["---"] * 6)
    ways = {
        "flow matching": (fit_matching, {}, MATCHING, 1),
        "maximum likelihood, 8 steps of rk4, RNODE": (
            fit_mle,
            {"num_steps": 8},
            {**LIKELIHOOD, "penalty": COST},
            32,
        ),
        "FFJORD": (
            fit_mle,
            {"solver": "dopri5", "adjoint": True, "trace": "hutchinson"},
            {**LIKELIHOOD, "engine": "eager"},
            None,
        ),
    }
    for who, (fit, settings, options, velocities) in ways.items():
        torch.manual_seed(0)
        flow = flows.cnf(2, hidden_dims=(*WIDTHS, 64), activation="silu", **settings)
        watch = Watch(flow, data, given.budget, velocities)
        result = fit(flow, data.train, callbacks=[watch], **options, **QUIET)
        needed[who] = watch.finish(who, result.steps)
    torch.manual_seed(0)
    needed["Zuko"] = train_in_zuko(data, given.budget)
    ratio = needed["FFJORD"] / needed["flow matching"]
    print(f"\nflow matching: at least {ratio:.0f} times as fast as FFJORD")
    return [] if ratio >= LEAST_MATCHING else [f"flow matching: {ratio:.1f}, 20 wanted"]


class Watch:
    """Score the held-out rows now and then, by an exact solve, and end a run in time."""

    def __init__(self, flow: Flow, data, budget: float, velocities: int | None) -> None:
        self.flow, self.data, self.budget = flow, data, budget
        self.velocities, self.total, self.steps = velocities, 0, 0
        self.began, self.aside, self.excess, self.reached = clock(), 0.0, math.inf, False
        self.scorer = Flow(Continuous(part_of(flow).field, num_steps=32, trace="exact"))

    @property
    def seconds(self) -> float:
        return clock() - self.began - self.aside

    def __call__(self, info) -> bool:
        self.steps += 1
        self.total += self.velocities or part_of(self.flow).num_evaluations
        if info.step % 90 == 0 or self.seconds > self.budget:
            began = clock()
            self.excess = nll(self.scorer, self.data.held_out) - self.data.floor(
                self.data.held_out
            )
            self.aside += clock() - began
            self.reached = self.excess <= MOST_NLL - ENTROPY
        return self.reached or self.seconds > self.budget

    def finish(self, who: str, steps: int) -> float:
        spent = self.seconds
        row([who, self.reached, f"{self.excess:.3f}", f"{spent:.1f}", steps, self.total])
        return spent


def train_in_zuko(data, budget: float) -> float:
    """Train the same network by Zuko's transform, whose gradient is its adjoint's."""
    field = TimeNet(2, hidden_dims=(*WIDTHS, 64), activation="silu")
    watch = Watch(Flow([Continuous(field)]), data, budget, 1)
    calls = Counter(field)
    optimizer = torch.optim.Adam(field.parameters(), lr=LIKELIHOOD["lr"], fused=True)
    steps = LIKELIHOOD["epochs"] * (len(data.train) // 256)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(1, steps + 1):
        chosen = torch.randint(len(data.train), (256,))
        optimizer.zero_grad()
        loss = -log_density_in_zuko(field, data.train[chosen]).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(field.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        watch.velocities, calls.count = calls.count, 0
        if watch(argparse.Namespace(step=step)):
            break
    return watch.finish("Zuko", step)


def measure_rnode(given: argparse.Namespace) -> list[str]:
    """Print how many velocities scoring takes, with and without the cost; return misses."""
    data, counts = moons(0), {}
    print()
    row(["penalty", "excess, held out", "excess, fresh", "velocities, dopri5", "s"])
    row(["---"] * 5)
    for name, penalty in {"none": None, "RNODE": COST}.items():
        torch.manual_seed(0)
        flow, began = flows.cnf(2, hidden_dims=WIDTHS, num_steps=8), clock()
        options = {**LIKELIHOOD, **({"epochs": 2} if given.quick else {})}
        fit_mle(flow, data.train, penalty=penalty, **options, **QUIET)
        part = part_of(flow.eval(), solver="dopri5", tolerance=TOLERANCE)
        spent, fresh = clock() - began, nll(flow, data.fresh) - data.floor(data.fresh)
        held_out = nll(flow, data.held_out) - data.floor(data.held_out)
        counts[name] = part.num_evaluations
        row([name, f"{held_out:.3f}", f"{fresh:.3f}", counts[name], f"{spent:.1f}"])
    saving = counts["none"] / counts["RNODE"]
    return [] if saving >= LEAST_SAVING else [f"RNODE saves {saving:.2f}, {LEAST_SAVING} wanted"]


MEASURES = {
    "orders": measure_orders,
    "density": measure_density,
    "moons": measure_moons,
    "rnode": measure_rnode,
}


def main() -> int:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=list(MEASURES), default=list(MEASURES))
    parser.add_argument("--budget", type=float, default=300.0, help="seconds of each training")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/continuous"))
    parser.add_argument("--quick", action="store_true", help="little, to see that it runs")
    given = parser.parse_args()
    given.budget = 3.0 if given.quick else given.budget
    torch.set_num_threads(given.threads)
    print(f"torch {torch.__version__}, {given.threads} threads\n")
    missed = [line for part in given.parts for line in MEASURES[part](given)]
    for line in missed:
        print(f"missed: {line}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
