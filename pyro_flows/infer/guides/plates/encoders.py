"""Encoders: functions of a plate's members and the model's arguments."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, nn

from pyro_flows import _checks
from pyro_flows.errors import DomainError, ShapeError
from pyro_flows.infer.guides.plates.layout import Block, Layout

# Called with the members of each plate, the leftmost first, and the model's arguments.
Encoder = Callable[..., Tensor]
Encode = Encoder | Mapping[str | tuple[str, ...], Encoder]


class Source(NamedTuple):
    """What tells the members of a block apart.

    Attributes:
        encoder: What says of them what the data do; none without one.
        has_tables: Whether each has an affine map and an embedding of its own.
        length: Of the encoder's output; zero without one, or before the first call.
    """

    encoder: Encoder | None
    has_tables: bool
    length: int = 0

    @property
    def module(self) -> nn.Module | None:
        """The encoder, where it is a module."""
        return self.encoder if isinstance(self.encoder, nn.Module) else None


def sources_of(who: str, layout: Layout, encode: Encode | None, *, embed: bool) -> list[Source]:
    """Return what tells the members of each block apart.

    Args:
        who: Named in messages.
        layout: The latents.
        encode: The encoders.
        embed: Whether members with an encoder have tables as well.

    Raises:
        DomainError: An encoder is of no plate, or cannot be called.
    """
    named: dict[tuple[str, ...], Encoder] = {}
    blocks = [block.plates for block in layout.blocks]
    if isinstance(encode, Mapping):
        named = {(key,) if isinstance(key, str) else tuple(key): f for key, f in encode.items()}
    elif encode is not None:
        if len(blocks) > 1:
            raise _unknown(who, blocks, "a single encoder")
        named = {blocks[0]: encode}
    for plates, encoder in named.items():
        if plates not in blocks:
            raise _unknown(who, blocks, f"one of {plates}")
        if not callable(encoder):
            raise _checks.refusal(
                DomainError,
                who,
                expected=f"the encoder of {plates} to be a module or a function",
                got=_checks.describe(encoder),
            )
    return [Source(named.get(plates), embed or plates not in named) for plates in blocks]


def _unknown(who: str, blocks: Sequence[tuple[str, ...]], got: str) -> Exception:
    known = ", ".join(repr(plates[0] if len(plates) == 1 else plates) for plates in blocks)
    return _checks.refusal(
        DomainError,
        who,
        expected=f"encoders of plates that hold latents, which are {known}",
        got=got,
        advice="Pass encode={plate: encoder}; that of latents in several plates has the tuple of "
        "their names, the leftmost first.",
    )


def encoded(
    who: str,
    block: Block,
    encoder: Encoder,
    members: Sequence[Tensor],
    of_model: tuple[tuple[Any, ...], dict[str, Any]],
) -> Tensor:
    """Return what an encoder says of some members, of shape ``(*, C)``, on their plates' axes.

    Args:
        who: Named in messages.
        block: The latents.
        encoder: The encoder.
        members: The members of each plate.
        of_model: The model's arguments.

    Raises:
        ShapeError: Its output does not fit the plates.
    """
    args, kwargs = of_model
    output: Any = encoder(*members, *args, **kwargs)
    sizes = tuple(len(index) for index in members)
    fits = isinstance(output, Tensor) and output.is_floating_point()
    if not fits or output.shape[:-1] != sizes or output.dim() != len(sizes) + 1:
        raise _checks.refusal(
            ShapeError,
            who,
            expected=f"the encoder of {', '.join(map(repr, block.plates))} to return a "
            f"floating-point tensor of shape ({', '.join(map(str, sizes))}, C)",
            got=_checks.describe(output),
            advice="It is called as encode(indices, *args, **kwargs), and says of each of the "
            "members in indices what its latents depend on.",
        )
    return block.spread(output)


def tried(
    who: str,
    block: Block,
    source: Source,
    members: Sequence[Tensor],
    of_model: tuple[tuple[Any, ...], dict[str, Any]],
) -> Source:
    """Return a source with the length of its encoder's output, which is called once.

    Args:
        who: Named in messages.
        block: The latents.
        source: Their source.
        members: The members of each plate.
        of_model: The model's arguments.

    Raises:
        DomainError: The encoder hides parameters.
        ShapeError: Its output does not fit the plates.
    """
    if source.encoder is None:
        return source
    with torch.enable_grad():
        output = encoded(who, block, source.encoder, members, of_model)
    args, kwargs = of_model
    given = [leaf for leaf in (*args, *kwargs.values()) if isinstance(leaf, Tensor)]
    _check_trainable(who, source.encoder, output, given)
    return source._replace(length=output.shape[-1])


def _check_trainable(who: str, encoder: Encoder, output: Tensor, owned: Iterable[Tensor]) -> None:
    """Refuse a function that hides parameters, which would never be trained.

    Args:
        who: Named in the message.
        encoder: The encoder.
        output: What it returned with gradients enabled.
        owned: Tensors that may require a gradient.

    Raises:
        DomainError: It depends on a parameter of nobody's.
    """
    stored: list[Any] = list(pyro.get_param_store().values())
    known = {id(tensor) for tensor in (*owned, *(each.unconstrained() for each in stored))}
    if isinstance(encoder, nn.Module) or not output.requires_grad:
        return
    hidden = [leaf for leaf in _leaves(output) if id(leaf) not in known]
    if hidden:
        raise _checks.refusal(
            DomainError,
            who,
            expected="an encoder whose parameters the guide can train",
            got=f"a function that uses {len(hidden)} parameters of a module it does not own, such "
            f"as one of shape {tuple(hidden[0].shape)}",
            advice="Pass a torch.nn.Module whose forward takes (indices, *args, **kwargs).",
        )


def _leaves(output: Tensor) -> list[Tensor]:
    """Return the parameters that a tensor was computed from."""
    found, seen, queue = [], set(), [output.grad_fn]
    while queue:
        node: Any = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        queue += [following for following, _ in node.next_functions]
    return found


def is_index(value: Any) -> bool:
    """Whether the members of a plate are given by their numbers."""
    return isinstance(value, Tensor) and value.dim() == 1 and value.dtype == torch.long
