"""Loading a guide or a flow."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple, overload

import torch
from pyro.infer.autoguide.guides import AutoContinuous
from torch import Tensor

from pyro_flows import _checks, flows
from pyro_flows.checkpoint import Checkpoint, check_matches, layout, read_checkpoint
from pyro_flows.distributions import Flow
from pyro_flows.errors import CheckpointError, DomainError, FlowError
from pyro_flows.flows.registry import find_for_guide, from_name
from pyro_flows.infer.guides.assembly import Structure, assemble
from pyro_flows.infer.guides.auto_flow import AutoFlow
from pyro_flows.infer.guides.gaussian import Start
from pyro_flows.infer.guides.plates.encoders import Encode
from pyro_flows.infer.guides.plates.guide import AutoPlateFlow
from pyro_flows.infer.guides.plates.parts import MemberRecipe
from pyro_flows.infer.guides.plates.parts import member_flow as default_member_flow
from pyro_flows.infer.random import aside
from pyro_flows.infer.saving import plates
from pyro_flows.infer.saving.budget import Budget
from pyro_flows.infer.saving.probe import differs
from pyro_flows.infer.saving.record import Site, graph_in, parents_in, sites_in, sites_of
from pyro_flows.infer.saving.write import FLOW, GUIDE

logger = logging.getLogger("pyro_flows")

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in layout.DTYPES if dtype.is_floating_point
}
# What the parts of a guide raise on a record that another program, or a later release, made up.
_MALFORMED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
Fn = Callable[..., Any]


@overload
def load(
    path: str | os.PathLike[str],
    *,
    model: Fn,
    args: tuple[Any, ...] | None = None,
    kwargs: dict[str, Any] | None = None,
    flow: str | flows.Recipe | None = None,
    init_loc_fn: Callable[..., Tensor] | None = None,
    create_plates: Fn | None = None,
    member_flow: str | MemberRecipe | None = None,
    encode: Encode | None = None,
    allow_non_finite: bool = False,
) -> AutoFlow | AutoPlateFlow: ...


@overload
def load(
    path: str | os.PathLike[str],
    *,
    flow: str | flows.Recipe,
    allow_non_finite: bool = False,
) -> Flow: ...


def load(
    path: str | os.PathLike[str],
    *,
    model: Fn | None = None,
    args: tuple[Any, ...] | None = None,
    kwargs: dict[str, Any] | None = None,
    flow: str | flows.Recipe | None = None,
    init_loc_fn: Callable[..., Tensor] | None = None,
    create_plates: Fn | None = None,
    member_flow: str | MemberRecipe | None = None,
    encode: Encode | None = None,
    allow_non_finite: bool = False,
) -> AutoFlow | AutoPlateFlow | Flow:
    """Load what :func:`save` saved: a guide, given its model, or a flow, given its recipe.

    Nothing in the file is executed. It is read whole or refused, and what is built from it must
    have the sizes of the tensors, and the draws, that were saved. A loaded guide draws the same as
    the saved one, bit for bit on the same machine, and can be trained on.

    With ``args`` or ``kwargs``, the guide is set up at once, without a search for a start; else by
    its first call with the model's arguments. Its latents must then have the names, order, shapes,
    supports and dtype of the file. It stands on the device of the model's latents.

    Args:
        path: The file.
        model: The model of the guide; none for a flow.
        args: The model's arguments; an empty tuple for a model that takes none.
        kwargs: The model's keyword arguments.
        flow: The recipe, where the file does not name a registered one.
        init_loc_fn: As for :class:`~pyro_flows.AutoFlow`; only its shapes and supports count.
        create_plates: As for :class:`~pyro_flows.AutoFlow`.
        member_flow: The recipe of the members' flows of an :class:`~pyro_flows.AutoPlateFlow`,
            where the file does not name a registered one.
        encode: The encoders of an :class:`~pyro_flows.AutoPlateFlow`; modules take their weights
            from the file once the guide is set up.
        allow_non_finite: Whether weights may be NaN or infinite.

    Raises:
        CheckpointError: The file is missing, damaged, foreign, or not of this model and recipe.
        DomainError: There is neither a model nor a recipe, or something for an ``AutoPlateFlow``
            and a file of another guide.

    Example:
        >>> import os, tempfile, pyro_flows as pf
        >>> from pyro_flows.infer.saving import load, save
        >>> path = os.path.join(tempfile.mkdtemp(), "density.flow")
        >>> save(pf.flows.maf(3), path)
        >>> load(path, flow="maf").event_shape
        torch.Size([3])
    """
    if model is None:
        return _load_flow(path, flow, allow_non_finite)
    found = read_checkpoint(path, kind=GUIDE, allow_non_finite=allow_non_finite)
    with _refusing(found):
        gradient = _checks.check_choice(
            "load", "gradient", found.record["gradient"], ("path", "total")
        )
    options: dict[str, Any] = {
        "init_loc_fn": init_loc_fn,
        "create_plates": create_plates,
        "gradient": gradient,
    }
    guide: AutoFlow | AutoPlateFlow
    if found.record.get("class") == "AutoPlateFlow":
        guide = _plate_guide(found, model, flow, member_flow, encode=encode, **options)
    else:
        if member_flow is not None or encode is not None:
            raise _checks.refusal(
                DomainError,
                "load",
                expected="neither member_flow nor encode for an AutoFlow",
                got=f"one of them, for the guide of {str(path)!r}",
            )
        saved, recipe = _saved_guide(found, flow)
        follow = "prior" if saved.structure.graph is None else "posterior"
        guide = AutoFlow(model, recipe, follow=follow, **options)
        guide._saved, guide.origin = saved, saved.origin
        _, guide.parents, guide.graph = saved.structure
    if args is not None or kwargs is not None:
        with aside():
            guide.initialise(*(args or ()), **(kwargs or {}))
    return guide


def _plate_guide(
    found: Checkpoint,
    model: Fn,
    flow: str | flows.Recipe | None,
    of_members: str | MemberRecipe | None,
    **options: Any,
) -> AutoPlateFlow:
    """Return a guide for models with plates, whose modules are made when it is set up."""
    record = found.record
    recipe, building = _recipe(found, flow)
    with _refusing(found):
        local, origin = record["plates"], str(record["origin"])
        options["embed"] = record.get("embed") is True
        local = None if local is None else [str(plate) for plate in local]
        described = [str(line) for line in record["latents"]], str(record["dtype"])
        parents = {name: frozenset(others) for name, others in record["parents"].items()}
        is_default = of_members is None and plates.is_default(record["member_recipe"])
    if is_default:
        member_recipe: MemberRecipe = default_member_flow
    else:
        member_recipe, of_file = _recipe(found, of_members, "member_")
        building = of_file if flow is not None else building
    guide = AutoPlateFlow(model, recipe, member_flow=member_recipe, plates=local, **options)
    trusted = isinstance(building, nullcontext)
    guide._saved = plates.SavedParts(
        found, *described, parents, nullcontext if trusted else partial(_within_budget, found)
    )
    guide.parents, guide.origin = parents, origin
    return guide


class _SavedGuide(NamedTuple):
    """A guide's flow with its weights, and the latents that it is of."""

    flow: Flow
    sites: list[Site]
    dtype: torch.dtype
    structure: Structure
    origin: str
    path: str
    versions: dict[str, str]

    def flow_for(self, guide: AutoContinuous) -> Flow:
        """Return the flow, if the guide's latents are those of the file."""
        loc = guide._init_loc()
        ours = [*map(str, sites_of(guide)), _named(loc.dtype)]
        theirs = [*map(str, self.sites), _named(self.dtype)]
        if ours != theirs:
            raise layout.refusal(
                "load",
                self.path,
                expected="a guide of the model's latents in",
                got=_difference(theirs, ours),
                advice="Load it with the model and data of the sizes that it was saved with. "
                + layout.written_by(self.versions),
            )
        logger.info("load: the guide of %s, which started from %s", self.path, self.origin)
        return self.flow.to(loc.device)


def _difference(theirs: list[str], ours: list[str]) -> str:
    different = [line for line in theirs if line not in ours], [x for x in ours if x not in theirs]
    if not any(different):
        different = theirs, ours
    words = [", ".join(lines) or "nothing of the kind" for lines in different]
    return f"{words[0]} where the model has {words[1]}"


def _named(dtype: torch.dtype) -> str:
    return f"tensors of {str(dtype).removeprefix('torch.')}"


def _saved_guide(
    found: Checkpoint, flow: str | flows.Recipe | None
) -> tuple[_SavedGuide, flows.Recipe]:
    record = found.record
    recipe, building = _recipe(found, flow)
    with _refusing(found):
        sites, structure = sites_in(record), _structure_in(record)
        dtype, origin = _DTYPES[record["dtype"]], str(record["origin"])
        input_dim = _input_dim(found, sum(site.size for site in sites))
    with aside(), building:
        start = Start(torch.zeros(input_dim), torch.ones(input_dim), origin)
        built = assemble("load", recipe, structure, start).to(dtype)
    _fill(built, found)
    difference = ""
    with _refusing(found):
        difference = differs(built, found.part("probe").tensors)
    if difference:
        raise layout.refusal(
            "load",
            found.path,
            expected="the flow that was saved in",
            got=f"one of the same sizes with {difference}",
            advice="Pass the recipe it was built by, with the same options, as flow=... "
            + layout.written_by(found.versions),
        )
    saved = _SavedGuide(built, sites, dtype, structure, origin, found.path, found.versions)
    return saved, recipe


def _structure_in(record: Mapping[str, Any]) -> Structure:
    shapes = {site.name: torch.Size(site.unconstrained_shape) for site in sites_in(record)}
    return Structure(shapes, parents_in(record), graph_in(record))


def _recipe(
    found: Checkpoint, flow: str | flows.Recipe | None, lead: str = ""
) -> tuple[flows.Recipe, AbstractContextManager[Any]]:
    """Return the recipe, and the context to build by it; no code but the caller's is trusted."""
    if flow is not None:
        return flows.find(flow) if lead else find_for_guide(flow), nullcontext()
    record = found.record
    with _refusing(found):
        recipe, function = record[f"{lead}recipe"], record[f"{lead}function"]
    if recipe is None:
        raise layout.refusal(
            "load",
            found.path,
            expected=f"{lead}flow=..., the recipe of the guide, beside",
            got=f"no recipe, and the file names the function {function!r}, which it cannot hold",
            advice=f"Pass that function: load(path, model=..., {lead}flow=make_flow).",
        )
    with _refusing(found, "Register that recipe first, by pyro_flows.flows.register, or pass it "):
        made = from_name(recipe["name"], recipe["options"])
    return made, _within_budget(found)


@contextmanager
def _within_budget(found: Checkpoint) -> Iterator[None]:
    with _refusing(found), Budget("load", repr(found.path), found.tensors):
        yield


@contextmanager
def _refusing(found: Checkpoint, advice: str = "Pass the recipe ") -> Iterator[None]:
    """Refuse a record that nothing can be built by."""
    try:
        yield
    except CheckpointError:
        raise
    except (FlowError, *_MALFORMED) as error:
        raise layout.refusal(
            "load",
            found.path,
            expected="a record that a guide can be built by in",
            got=f"{type(error).__name__}: {error}",
            advice=f"{advice}as flow=... {layout.written_by(found.versions)}",
        ) from error


def _input_dim(found: Checkpoint, size: Any) -> int:
    """Return a number of coordinates, if some tensor has as many entries."""
    input_dim = _checks.check_count("load", "the number of coordinates", size)
    if input_dim > max((tensor.numel() for tensor in found.tensors.values()), default=0):
        raise ValueError(f"{input_dim} coordinates, more than any tensor has entries")
    return input_dim


def _fill(flow: Flow, found: Checkpoint) -> None:
    check_matches("load", found.part("weights"), flow.state_dict())
    flow.load_state_dict(found.part("weights").tensors)


def _load_flow(
    path: str | os.PathLike[str], flow: str | flows.Recipe | None, allow_non_finite: bool
) -> Flow:
    if flow is None:
        raise _checks.refusal(
            DomainError,
            "load",
            expected="a model, to load its guide, or a recipe, to load a flow",
            got="neither",
            advice="Pass model=... or flow=...",
        )
    recipe = flows.find(flow)
    found = read_checkpoint(path, kind=FLOW, allow_non_finite=allow_non_finite)
    with _refusing(found):
        input_dim, dtype = found.record["input_dim"], found.record["dtype"]
        input_dim = _input_dim(found, input_dim)
        to_dtype = _DTYPES[dtype] if dtype else None
    with aside(), _within_budget(found):
        built = recipe(input_dim)
    if to_dtype is not None:
        built = built.to(to_dtype)
    _fill(built, found)
    return built
