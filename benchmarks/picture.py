"""The README's picture: a posterior by exact draws, by two of Pyro's guides and by ours.

    python benchmarks/picture.py [--out docs/static/schools.png]

Eight schools, centred: the spread between the schools and the effect of the first. Exact draws
come from quadrature over the spread and closed forms below it. Pyro's guides take 4,000 steps of
16 particles by SVI, the step size falling to a hundredth; ours follows the posterior's graph, and
has its defaults otherwise. Each panel is titled by the k-hat of 10,000 draws of the guide.
"""

import argparse
from pathlib import Path

import matplotlib as mpl
import pyro
import torch
from _plate_models import SCHOOLS, schools_given_spread, schools_model
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

import pyro_flows as pf

mpl.use("Agg")
import matplotlib.pyplot as plt

NUM_DRAWS, SHOWN, STEPS = 10_000, 2000, 4000
EXACT, GUIDE = "#9aa0a6", "#0072b2"


def exact_draws(num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return exact draws of log tau and of the first effect."""
    y, noise = (values.double() for values in SCHOOLS)
    grid = torch.linspace(-8.0, 5.0, 4001, dtype=torch.float64)
    log_p, mean, precision, shares = schools_given_spread(y, noise, grid)
    chosen = torch.multinomial(log_p.softmax(0), num, replacement=True)
    log_tau, shrink = grid[chosen], shares[chosen, 0]
    mu = mean[chosen] + torch.randn(num) / precision[chosen].sqrt()
    theta = shrink * y[0] + (1 - shrink) * mu + shrink.sqrt() * noise[0] * torch.randn(num)
    return log_tau, theta


def fit_pyros(make) -> object:
    """Fit a guide of Pyro's by its own loop."""
    pyro.clear_param_store()
    guide = make(schools_model)
    decay = {"gamma": 0.01 ** (1 / STEPS)}
    settings = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.02}, **decay}
    scheduler = pyro.optim.ExponentialLR(settings)
    elbo = Trace_ELBO(num_particles=16, vectorize_particles=True)
    svi = SVI(schools_model, guide, scheduler, elbo)
    for _ in range(STEPS):
        svi.step(*SCHOOLS)
        scheduler.step()
    return guide


def draws_of(guide) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return a guide's draws of log tau and of the first effect, and its k-hat."""
    report = pf.diagnose(schools_model, guide, *SCHOOLS, num_draws=NUM_DRAWS, seed=0)
    with torch.no_grad(), pyro.plate("draws", SHOWN, dim=-2):
        drawn = guide(*SCHOOLS)
    return drawn["tau"].log().flatten(), drawn["theta"][:, 0], report.k_hat


def main() -> None:
    """Fit, print the k-hats, and write the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("docs/static/schools.png"))
    given = parser.parse_args()
    pyro.set_rng_seed(0)
    ours = pf.AutoFlow(schools_model, follow="posterior")
    pf.fit(schools_model, ours, *SCHOOLS, seed=0, progress=False)
    guides = {
        "AutoNormal": fit_pyros(AutoNormal),
        "AutoMultivariateNormal": fit_pyros(AutoMultivariateNormal),
        "AutoFlow": ours,
    }
    exact_log_tau, exact_theta = exact_draws(SHOWN)
    figure, axes = plt.subplots(
        1, 3, figsize=(9, 3), sharex=True, sharey=True, layout="constrained"
    )
    for ax, (name, guide) in zip(axes, guides.items(), strict=True):
        log_tau, theta, k_hat = draws_of(guide)
        print(f"{name}: k-hat {k_hat:.2f}")
        ax.scatter(exact_theta, exact_log_tau, s=4, c=EXACT, lw=0, label="exact draws")
        ax.scatter(theta, log_tau, s=4, c=GUIDE, lw=0, alpha=0.5, label="the guide's draws")
        ax.set(title=f"{name}: k-hat {k_hat:.2f}", xlabel="effect of school 1 (points)")
        ax.set(xlim=(-12, 28), ylim=(-4, 4))
    axes[0].set_ylabel("log of the spread between schools")
    axes[0].legend(loc="lower right", fontsize="small", markerscale=3)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(given.out, dpi=110)
    print(f"picture: {given.out}")


if __name__ == "__main__":
    main()
