"""A flow posterior for a real model: eight schools (Rubin 1981; Gelman et al. 2013, section 5.5).

    python tutorials/eight_schools.py --out out

Fits the model, prints the posterior beside reference values, and writes the posterior (NetCDF) and
three pictures. The exit status is 1 where the posterior is off by more than it should be.
"""

import argparse
import logging
import sys
from pathlib import Path

import arviz as az
import matplotlib as mpl
import numpy as np
import pyro
import pyro.distributions as dist
import torch

import pyro_flows as pf

# Estimated effects of coaching in eight schools, and their standard errors.
y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

# Mean and standard deviation of posteriordb's 10,000 reference draws.
REFERENCE = {
    "mu": (4.41, 3.31),
    "tau": (3.60, 3.20),
    "theta[0]": (6.15, 5.62),
    "theta[1]": (4.94, 4.65),
    "theta[2]": (3.91, 5.28),
    "theta[3]": (4.80, 4.77),
    "theta[4]": (3.61, 4.61),
    "theta[5]": (4.05, 4.80),
    "theta[6]": (6.32, 5.00),
    "theta[7]": (4.88, 5.32),
}
LARGEST_MEAN_ERROR = 0.15  # in reference sds
LARGEST_LOG_SD_RATIO = 0.2
LARGEST_K_HAT = 0.7


def model(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        theta_trans = pyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * theta_trans)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--out", type=Path, default=Path("out"))
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("pyro_flows").setLevel(logging.INFO)

    guide = pf.AutoFlow(model)
    result = pf.fit(model, guide, y, sigma, steps=1000, particles=256, seed=options.seed)
    idata = pf.to_arviz(model, guide, y, sigma, num_draws=4000, seed=options.seed)

    print(result)
    table = compare(idata)
    print(table.to_string())
    idata.to_netcdf(str(options.out / "eight_schools.nc"))
    draw_pictures(result, idata, options.out)
    print(
        f"Wrote {', '.join(sorted(path.name for path in options.out.iterdir()))} to {options.out}/"
    )
    return verdict(table, result.k_hat)


def compare(idata):
    """Return ArviZ's summary with the reference values and the discrepancies beside it."""
    table = az.summary(idata, var_names=["mu", "tau", "theta"], kind="stats")
    table["reference mean"] = [REFERENCE[name][0] for name in table.index]
    table["reference sd"] = [REFERENCE[name][1] for name in table.index]
    mean, sd = table["mean"].astype(float), table["sd"].astype(float)
    table["mean error / sd"] = ((mean - table["reference mean"]) / table["reference sd"]).round(3)
    table["log sd ratio"] = np.log(sd / table["reference sd"]).round(3)
    return table


def verdict(table, k_hat):
    mean, ratio = table["mean error / sd"].abs().max(), table["log sd ratio"].abs().max()
    good = mean <= LARGEST_MEAN_ERROR and ratio <= LARGEST_LOG_SD_RATIO and k_hat <= LARGEST_K_HAT
    print(
        f"Largest mean error {mean:.3f} sd (at most {LARGEST_MEAN_ERROR}), "
        f"|log sd ratio| {ratio:.3f} (at most {LARGEST_LOG_SD_RATIO}), "
        f"k-hat {k_hat:.2f} (at most {LARGEST_K_HAT}): "
        f"the posterior is {'right' if good else 'OFF'}."
    )
    return 0 if good else 1


def draw_pictures(result, idata, out):
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    axes.plot(result.losses, lw=0.7)
    axes.set(xlabel="step", ylabel="negative ELBO", title="Eight schools: the fit")
    low, high = np.nanpercentile(result.losses, [0, 99])
    axes.set_ylim(low - 0.1 * (high - low), high)
    figure.savefig(out / "loss.png", dpi=150)

    posterior = idata["posterior"]
    posterior["log_tau"] = np.log(posterior["tau"])
    az.plot_pair(posterior, var_names=["mu", "log_tau"], kind="scatter", marginals=True)
    plt.savefig(out / "pair.png", dpi=150, bbox_inches="tight")
    az.plot_forest(posterior, var_names=["theta"], combined=True)
    plt.savefig(out / "forest.png", dpi=150, bbox_inches="tight")
    plt.close("all")


if __name__ == "__main__":
    sys.exit(main())
