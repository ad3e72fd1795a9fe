"""Settings that every test shares."""

import signal
from collections.abc import Iterator

import pyro
import pytest
import torch

# A shell lets what it runs in the background ignore Ctrl-C, and so would every process from here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def fresh_start() -> Iterator[None]:
    """Give every test its seed and an empty param store, and put the default dtype back."""
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
