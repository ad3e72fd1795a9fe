"""Read a folder that is laid out like a clone of posteriordb."""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

_DATABASE = "posterior_database"


def default_root() -> Path:
    """Return the folder named by POSTERIORDB, or the one shared beside the project."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "posteriordb"
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


def _info(root: Path, posterior: str) -> dict[str, Any]:
    return json.loads((root / _DATABASE / "posteriors" / f"{posterior}.json").read_text())


def _zipped(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(archive.namelist()[0]))
