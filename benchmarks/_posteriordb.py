"""Read a folder that is laid out like a clone of posteriordb."""

import argparse
import json
import os
import zipfile
from pathlib import Path

import numpy as np


def parser(description: str) -> argparse.ArgumentParser:
    """Return an argument parser with the option that names the folder."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--posteriordb", type=Path, default=default_root(), help="its folder")
    return result


def default_root() -> Path:
    """Return the folder named by POSTERIORDB, or the one shared beside the project."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "posteriordb"
    return Path(os.environ.get("POSTERIORDB", beside))


def reference_draws(root: Path, posterior: str) -> dict[str, np.ndarray]:
    """Return a posterior's reference draws by parameter, all chains in one axis."""
    base = root / "posterior_database" / "reference_posteriors" / "draws" / "draws"
    with zipfile.ZipFile(base / f"{posterior}.json.zip") as archive:
        chains = json.loads(archive.read(archive.namelist()[0]))
    return {name: np.concatenate([chain[name] for chain in chains]) for name in chains[0]}


def discrepancies(
    draws: dict[str, np.ndarray], reference: dict[str, np.ndarray]
) -> tuple[float, float]:
    """Return the largest mean error in reference sds, and the largest |log sd ratio|."""
    means, ratios = [], []
    for name, truth in reference.items():
        means.append(abs(draws[name].mean() - truth.mean()) / truth.std())
        ratios.append(abs(np.log(draws[name].std() / truth.std())))
    return float(max(means)), float(max(ratios))
