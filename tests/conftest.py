"""Settings that every test shares."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pyro
import pytest
import torch

# The shared helpers (zoo, contracts) are plain modules beside the tests.
sys.path.insert(0, str(Path(__file__).parent))


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker of heavy tests."""
    config.addinivalue_line("markers", "slow: takes seconds; left out by -m 'not slow'")


@pytest.fixture(autouse=True)
def fresh_start() -> Iterator[None]:
    """Give every test its seed and an empty param store, and put the default dtype back."""
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
