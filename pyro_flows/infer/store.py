"""Names in Pyro's parameter store.

Pyro identifies a parameter by its name alone. A second guide of the same class would find the
tensors of the first under its own names, compute with its own and have the optimiser step the
others. Here each guide takes a name of its own, and a store that was loaded from a file is
adopted.
"""

import logging
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pyro
from pyro.nn import PyroModule
from pyro.params.param_store import param_with_module_name
from torch import Tensor, nn

from pyro_flows import _checks
from pyro_flows.errors import CheckpointError

logger = logging.getLogger("pyro_flows")

# Tensors that guides of this process put into the store, by identity; and the guides, by name.
_OURS: "weakref.WeakValueDictionary[int, Tensor]" = weakref.WeakValueDictionary()
_OWNERS: "weakref.WeakValueDictionary[str, PyroModule]" = weakref.WeakValueDictionary()

_silent = False


@contextmanager
def unused() -> Iterator[None]:
    """Leave the store alone: for a loop that takes its parameters from the modules themselves."""
    global _silent  # noqa: PLW0603
    before, _silent = _silent, True
    try:
        yield
    finally:
        _silent = before


def is_used() -> bool:
    """Whether parameters go through Pyro's store at present."""
    return not (_silent or pyro.settings.get("module_local_params"))


def claim(guide: PyroModule, attribute: str, module: nn.Module) -> None:
    """Register a guide's module with the store, renaming the guide where its name is taken.

    Values under the guide's name that no guide of this process put there came from a file; they
    are copied into the module.

    Args:
        guide: The guide; its name may get a number appended.
        attribute: The guide's attribute that holds ``module``.
        module: The module whose parameters, and floating-point buffers, go into the store.

    Raises:
        CheckpointError: The loaded values do not fit the module.
    """
    store = pyro.get_param_store()
    key, first = next(module.named_parameters())
    name = _names(guide, attribute, [key])[key]
    if name in store and store[name] is first:
        return
    tensors = _stored_tensors(module)
    base, number = guide._pyro_name, 0
    names = _names(guide, attribute, tensors)
    while any(_is_ours(name) for name in names.values()):
        if guide._pyro_name not in _OWNERS:
            # Left by a guide that is gone, as when a notebook's cell runs again.
            logger.info("%s: takes the name, and the place, of a guide that is gone", base)
            _delete(names[key].partition("$$$")[0])
            break
        number += 1
        guide._pyro_name = f"{base}_{number}"
        names = _names(guide, attribute, tensors)
    if any(name in store for name in names.values()):
        _adopt(guide, names, tensors)
    for key, tensor in tensors.items():
        # The store makes what it holds require a gradient; a buffer must not, so it gives an
        # alias.
        kept = tensor if isinstance(tensor, nn.Parameter) else tensor.detach()
        store.setdefault(names[key], kept)
        _OURS[id(kept)] = kept
    _OWNERS[guide._pyro_name] = guide


def _stored_tensors(module: nn.Module) -> dict[str, Tensor]:
    state = module.state_dict(keep_vars=True)
    return {key: tensor for key, tensor in state.items() if tensor.is_floating_point()}


def _names(guide: PyroModule, attribute: str, keys: Iterable[str]) -> dict[str, str]:
    prefix = guide._pyro_get_fullname(attribute)
    return {key: param_with_module_name(prefix, key) for key in keys}


def _delete(prefix: str) -> None:
    store = pyro.get_param_store()
    for name in [name for name in store if name.startswith(f"{prefix}$$$")]:
        del store[name]


def _is_ours(name: str) -> bool:
    store = pyro.get_param_store()
    if name not in store:
        return False
    tensor = store[name]
    return _OURS.get(id(tensor)) is tensor


def _adopt(guide: PyroModule, names: dict[str, str], tensors: dict[str, Tensor]) -> None:
    store = pyro.get_param_store()
    loaded = {key: store[name] for key, name in names.items() if name in store}
    if {key: value.shape for key, value in loaded.items()} != {
        key: value.shape for key, value in tensors.items()
    }:
        raise _checks.refusal(
            CheckpointError,
            guide._pyro_name,
            expected=f"the parameter store to hold {len(tensors)} tensors of this guide's shapes",
            got=f"{len(loaded)} tensors of its name, some missing or of other shapes",
            advice="Build the guide with the model and flow that were saved, or call "
            "pyro.clear_param_store().",
        )
    for key, value in loaded.items():
        tensors[key].data.copy_(value.detach())
        del store[names[key]]
