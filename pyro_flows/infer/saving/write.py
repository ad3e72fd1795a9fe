"""Saving a guide or a flow."""

import logging
import os
from typing import Any

from torch import Tensor

from pyro_flows import _checks
from pyro_flows.checkpoint import JSON, write_checkpoint
from pyro_flows.distributions import Flow
from pyro_flows.errors import DomainError, NonFiniteError
from pyro_flows.infer.guides.auto_flow import AutoFlow
from pyro_flows.infer.guides.plates.guide import AutoPlateFlow
from pyro_flows.infer.guides.plates.parts import Parts
from pyro_flows.infer.saving import plates
from pyro_flows.infer.saving.probe import probe
from pyro_flows.infer.saving.record import record_of_graph, record_of_site, sites_of
from pyro_flows.transforms.base import any_float

logger = logging.getLogger("pyro_flows")

GUIDE, FLOW = "guide", "flow"


def save(
    guide: AutoFlow | AutoPlateFlow | Flow,
    path: str | os.PathLike[str],
    *,
    allow_non_finite: bool = False,
) -> None:
    """Save a guide, or a flow, in a file that :func:`load` reads.

    The file is written whole or not at all: a former one of this name stays until then. It holds
    the weights, the recipe's name and options, and the latents' names, shapes and supports, but no
    code: not the model, nor a recipe that is not registered. Parameters of the model are not in
    it.

    Args:
        guide: An :class:`~pyro_flows.AutoFlow` or an :class:`~pyro_flows.AutoPlateFlow` that is
            set up, or a :class:`~pyro_flows.Flow`. Encoders that are modules have their weights in
            the file, and are passed to :func:`load`.
        path: The file.
        allow_non_finite: Whether weights may be NaN or infinite.

    Raises:
        CheckpointError: The file could not be written.
        DomainError: There is something else to save, or a guide that is not set up.
        NonFiniteError: A weight is NaN or infinite, or draws are.

    Example:
        >>> import os, tempfile, pyro, pyro.distributions as dist
        >>> from pyro_flows.infer.saving import load, save
        >>> def model():
        ...     pyro.sample("scale", dist.Gamma(9.0, 3.0))
        >>> guide = AutoFlow(model, "planar")
        >>> guide.initialise()
        >>> path = os.path.join(tempfile.mkdtemp(), "guide.flow")
        >>> save(guide, path)
        >>> bool(load(path, model=model, args=()).median()["scale"] == guide.median()["scale"])
        True
    """
    module, kind, record = _parts(guide)
    if isinstance(module, Parts):
        tensors = plates.tensors_of(module)
    else:
        tensors = {f"weights/{name}": tensor for name, tensor in module.state_dict().items()}
        if kind == GUIDE:
            tensors |= {f"probe/{name}": tensor for name, tensor in probe(module).items()}
    if not allow_non_finite:
        _check_finite(tensors)
    own = any_float(module)
    record["dtype"] = "" if own is None else str(own.dtype).removeprefix("torch.")
    write_checkpoint(path, tensors, record, kind=kind)
    logger.info("save: wrote %s", path)


def _parts(guide: Any) -> tuple[Flow | Parts, str, dict[str, JSON]]:
    """Return the modules, the kind of the file, and its record."""
    if isinstance(guide, Flow):
        return guide, FLOW, {"input_dim": guide.input_dim}
    # What a subclass adds would be lost.
    if type(guide) is AutoFlow:
        return guide._ready_flow(), GUIDE, _guide_record(guide)
    if type(guide) is AutoPlateFlow:
        guide.check_ready()
        return guide.parts, GUIDE, plates.record_of(guide)
    raise _checks.refusal(
        DomainError,
        "save",
        expected="an AutoFlow, an AutoPlateFlow or a Flow",
        got=_checks.describe(guide),
        advice="Save other guides with torch.save(guide.state_dict(), path).",
    )


def _guide_record(guide: AutoFlow) -> dict[str, JSON]:
    saved = plates.saved_recipe(guide.recipe)
    return {
        "class": "AutoFlow",
        "recipe": saved.recipe,
        "function": saved.function,
        "sites": [record_of_site(site) for site in sites_of(guide)],
        "parents": {name: sorted(others) for name, others in guide.parents.items()},
        "graph": record_of_graph(guide.graph),
        "origin": guide.origin,
        "gradient": guide.gradient,
    }


def _check_finite(tensors: dict[str, Tensor]) -> None:
    bad = {name: int((~tensor.isfinite()).sum()) for name, tensor in tensors.items()}
    named_bad = [f"{count} in {name!r}" for name, count in bad.items() if count]
    if named_bad:
        raise _checks.refusal(
            NonFiniteError,
            "save",
            expected="finite weights, and finite draws",
            got=f"NaN or infinite entries: {', '.join(named_bad)}",
            advice="Fit the guide again; allow_non_finite=True saves it as it is.",
        )
