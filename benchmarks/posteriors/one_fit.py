"""One fit of the table, in a process of its own."""

import os
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.posteriors.contestants import PYROS, Fitted, failed, fit_ours, fit_pyros
from benchmarks.posteriors.models import POSTERIORS
from benchmarks.posteriors.posterior import load
from benchmarks.posteriors.report import Row, row_of


def one_fit(name: str, guide: str, seed: int, folder: Path, dtype: str) -> Row:
    """Fit one guide to one posterior, with nothing compiled before."""
    posterior = POSTERIORS[name]
    raw, reference = load(posterior, folder)
    args = tuple(x.to(getattr(torch, dtype)) for x in posterior.data(raw))
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        try:
            fit = contestant(guide)(posterior.model, args, seed)
        # A crash is a figure of the table.
        except Exception as error:
            traceback.print_exc()
            fit = failed(error, time.perf_counter() - began)
    sites = {site: x.double() for site, x in fit.draws.items()}
    columns = posterior.columns(sites) if sites else {}
    draws = {column: x.numpy() for column, x in columns.items()}
    return row_of((name, guide, seed), fit, draws, reference)


def contestant(guide: str) -> Callable[..., Fitted]:
    """Return what fits a guide, given a model, its arguments and a seed."""
    if guide in PYROS:
        return partial(fit_pyros, make=PYROS[guide])
    return fit_ours if guide == "ours" else partial(fit_ours, flow=guide)
