"""Read a folder that is laid out like a clone of posteriordb."""

import argparse
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

_DATABASE = "posterior_database"


def parser(description: str) -> argparse.ArgumentParser:
    """Return an argument parser with the option that names the folder."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--posteriordb", type=Path, default=default_root(), help="its folder")
    return result


def default_root() -> Path:
    """Return the folder named by POSTERIORDB, or the one shared beside the project."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "posteriordb"
    return Path(os.environ.get("POSTERIORDB", beside))


def raw_data(root: Path, posterior: str) -> dict[str, Any]:
    """Return the raw data of a posterior."""
    name = _info(root, posterior)["data_name"]
    return _zipped(root / _DATABASE / "data" / "data" / f"{name}.json.zip")


def reference_name(root: Path, posterior: str) -> str:
    """Return the name of the posterior whose reference draws are also those of this one."""
    return _info(root, posterior)["reference_posterior_name"]


def reference_draws(root: Path, posterior: str) -> dict[str, np.ndarray]:
    """Return a posterior's reference draws by parameter, all chains in one axis."""
    base = root / _DATABASE / "reference_posteriors" / "draws" / "draws"
    chains = _zipped(base / f"{posterior}.json.zip")
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


def _info(root: Path, posterior: str) -> dict[str, Any]:
    return json.loads((root / _DATABASE / "posteriors" / f"{posterior}.json").read_text())


def _zipped(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(archive.namelist()[0]))
