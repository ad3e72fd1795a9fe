"""Whether a guide and a model go together for the data of a step."""

from typing import Any

import pyro
import torch
from torch import nn

from pyro_flows import _checks
from pyro_flows.checkpoint import JSON
from pyro_flows.errors import DomainError, FlowError
from pyro_flows.infer.engine import Batch
from pyro_flows.infer.particles import Particles
from pyro_flows.infer.random import random_state, restore_random_state
from pyro_flows.infer.tracer import Site, check_latents, sample_sites, subsample_sites


def check_agreement(scorer: Particles, batch: Batch) -> None:
    """Run guide and model once, and refuse data whose sizes do not go with the guide's latents.

    A guide that was set up for data of other sizes draws latents of those; where these broadcast
    against the data, the model would be another, without a word. Random numbers and the buffers
    of modules stay as if nothing had been run.

    Args:
        scorer: Runs guide and model.
        batch: What they are called with.

    Raises:
        DomainError: They do not go together.
    """
    state = random_state()
    parts = [part for part in (scorer.guide, scorer.model) if isinstance(part, nn.Module)]
    buffers = [(buffer, buffer.clone()) for part in parts for buffer in part.buffers()]
    scorer.args, scorer.kwargs = batch
    try:
        with torch.no_grad(), pyro.validation_enabled(False):
            guide_trace = scorer.trace(scorer.guide)
            latents = guide_trace.copy()
            for name in subsample_sites(guide_trace):
                # Else the model's plates would be of the guide's sizes.
                latents.remove_node(name)
            model_trace = scorer.replay(scorer.model, latents)
            check_latents(guide_trace, model_trace)
            for trace in (guide_trace, model_trace):
                trace.compute_log_prob()
                for site in sample_sites(trace):
                    _check_plates(site)
    except FlowError:
        raise
    except (RuntimeError, ValueError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise _refusal(f"the error {first_line!r}") from error
    finally:
        restore_random_state(state)
        for buffer, before in buffers:
            buffer.copy_(before)


def sizes_of(scorer: Particles) -> dict[str, JSON]:
    """Return the shape of each site of guide and model, for one particle, by a name for it."""
    return {
        f"shape of {name!r} in the {role}": list(site["value"].shape)
        for role, trace in zip(("guide", "model"), scorer.single, strict=True)
        for name, site in ((site["name"], site) for site in sample_sites(trace))
        if isinstance(site["value"], torch.Tensor)
    }


def _check_plates(site: Site) -> None:
    frames: list[Any] = site["cond_indep_stack"]
    shape = tuple(site["log_prob"].shape)
    for frame in frames:
        if frame.vectorized and -frame.dim <= len(shape):
            size = shape[frame.dim]
            if size not in (1, frame.size):
                raise _refusal(
                    f"{size} of them at the site {site['name']!r}, in the plate {frame.name!r} of "
                    f"size {frame.size}"
                )


def _refusal(got: str) -> Exception:
    return _checks.refusal(
        DomainError,
        "fit",
        expected="as many latents and data as the plates of the model have members",
        got=got,
        advice="Where the guide was set up for data of other sizes, make a new one; latents of "
        "single members of the data do not go with batches.",
    )
