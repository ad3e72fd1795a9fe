"""A run in a file: written while it goes on, and continued from where it was."""

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pyro_flows.checkpoint import (
    JSON,
    Checkpoint,
    check_matches,
    layout,
    read_checkpoint,
    write_checkpoint,
)
from pyro_flows.errors import CheckpointError
from pyro_flows.infer.engine import Batch
from pyro_flows.infer.random import RandomState, random_state, restore_random_state
from pyro_flows.infer.training.adam import FlatAdam
from pyro_flows.infer.training.batches import Batches
from pyro_flows.infer.training.loop import Loop
from pyro_flows.infer.training.result import Status
from pyro_flows.infer.training.signals import Termination

logger = logging.getLogger("pyro_flows")

# Lists of flat tensors that a loop keeps besides its parameters.
_KEPT = ("average", "best", "good", "start")
# What the parts of a run raise on a record that another program, or a later release, made up.
_MALFORMED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class Watcher(Protocol):
    """What follows a run besides its loop, and goes on from where it was with it."""

    def tensors(self) -> list[Tensor]:
        """Return the state that it keeps, laid out like the flat parameters; or nothing."""

    def record(self) -> dict[str, JSON]:
        """Return what to save besides."""

    def restore(self, tensors: Sequence[Tensor], record: Mapping[str, Any]) -> None:
        """Go on from what was saved."""


class RunFile:
    """Save a run every so many seconds, and continue it bit for bit.

    The file holds the parameters, frozen ones among them, and buffers by name, the optimiser's and
    scheduler's states, the averages, the losses, the counters, the plan, the place within the
    batches, and the random state.

    Args:
        path: The file.
        every: Seconds between two saves.
        loop: The run.
        batches: What its steps are called with.
        modules: The modules of the run by role: for their buffers and frozen parameters.
        options: What must be the same when it is continued, as JSON can hold it.
        who: Named in messages.
        kind: What sort of run it is; a file of another is refused.
        watchers: What else follows the run, by name.
        beginning: The random state of torch before anything was drawn; see :func:`beginning_of`.

    Raises:
        CheckpointError: No file of this name can be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        every: float,
        loop: Loop,
        batches: Batches,
        *,
        modules: Mapping[str, nn.Module],
        options: Mapping[str, JSON],
        who: str = "fit",
        kind: str = "run",
        watchers: Mapping[str, Watcher] | None = None,
        beginning: Tensor | None = None,
    ) -> None:
        self._path, self._every, self._loop, self._batches = Path(path), every, loop, batches
        self._modules, self._who, self._kind = modules, who, kind
        self._watchers, self._beginning = dict(watchers or {}), beginning
        self._options = {**options, **_described(loop)}
        _check_path(who, self._path)
        self._saved_at = time.monotonic()

    def save_if_due(self) -> None:
        """Save the run if the last save is long enough ago."""
        if time.monotonic() - self._saved_at >= self._every:
            self.save()

    def save(self) -> None:
        """Save the run as it is after a step.

        Raises:
            CheckpointError: The file could not be written.
        """
        random = random_state()
        tensors = {**self._named(), "losses": torch.tensor(self._loop.losses, dtype=torch.float64)}
        tensors |= {f"random/{name}": tensor for name, tensor in random.tensors.items()}
        passes = self._batches.state()
        for role, its in passes.items():
            tensors |= {f"batches/{role}/{name}": t for name, t in its.tensors.items()}
        for name, kept in self._loop.kept().items():
            tensors |= {f"{name}/{k}": tensor for k, tensor in enumerate(kept)}
        for name, watcher in self._watchers.items():
            tensors |= {f"watched/{name}/{k}": t for k, t in enumerate(watcher.tensors())}
        if self._beginning is not None:
            tensors["beginning"] = self._beginning
        record = {
            "options": self._options,
            "watched": {name: watcher.record() for name, watcher in self._watchers.items()},
            "order": list(self._loop.flat.parameters),
            "random": random.record,
            "batches": {role: its.record for role, its in passes.items()},
            "began": self._batches.began,
            "loop": self._loop.record(),
            "optimizer": _packed(self._loop.optimizer.state_dict(), "optimizer", tensors),
        }
        if self._loop.scheduler is not None:
            state = self._loop.scheduler.state_dict()
            record["scheduler"] = _packed(state, "scheduler", tensors)
        write_checkpoint(self._path, tensors, record, kind=self._kind)
        self._saved_at = time.monotonic()

    def restore(self) -> None:
        """Take over the run of the file, if there is one.

        Raises:
            CheckpointError: The file is damaged, or is of a run of another model, guide or
                options; nothing of it is taken over.
        """
        if not self._path.exists():
            logger.info("%s: there is no %s yet, so the run begins anew", self._who, self._path)
            return
        present = self._named()
        endless = [name for name, tensor in present.items() if not bool(_finite(tensor))]
        allowed = ["losses", *endless]
        found = read_checkpoint(self._path, kind=self._kind, allow_non_finite=allowed)
        self._check_options(found)
        named = {name: tensor for name, tensor in found.tensors.items() if name in present}
        own = ("parameters/", "frozen/", "buffers/")
        extra = {n: t for n, t in found.tensors.items() if n.startswith(own) and n not in named}
        check_matches(self._who, found._replace(tensors={**named, **extra}), present)
        before = {name: tensor.clone() for name, tensor in present.items()}
        try:
            _assign(present, named)
            self._restore_loop(found)
            tensors = found.part("random").tensors
            restore_random_state(RandomState(tensors, found.record["random"]))
        except (CheckpointError, *_MALFORMED) as error:
            _assign(present, before)
            raise layout.refusal(
                self._who,
                self._path,
                expected="a run of this release's in",
                got=f"a record that does not fit: {type(error).__name__}: {error}",
                advice=layout.written_by(found.versions),
            ) from error
        logger.info(
            "%s: goes on from step %d of %s", self._who, len(self._loop.losses), self._path
        )

    def _restore_loop(self, found: Checkpoint) -> None:
        loop, record = self._loop, found.record
        if record["order"] != list(loop.flat.parameters):
            raise ValueError("the parameters stand in another order")
        passes = {
            role: RandomState(found.part("batches").part(role).tensors, its)
            for role, its in record["batches"].items()
        }
        self._batches.restore(passes, record["began"])
        kept = {name: self._kept(found.part(name), name) for name in _KEPT}
        for name, watcher in self._watchers.items():
            state = self._kept(found.part("watched").part(name), name)
            watcher.restore(state, record["watched"][name])
        loop.restore(record["loop"], kept, found.tensors["losses"].tolist())
        loop.optimizer.load_state_dict(_unpacked(record["optimizer"], found.tensors))
        if loop.scheduler is not None:
            loop.scheduler.load_state_dict(_unpacked(record["scheduler"], found.tensors))

    def _kept(self, found: Checkpoint, name: str) -> list[Tensor]:
        """Return a state that was kept besides the present one, on the device of that one."""
        flat = self._loop.flat.tensors
        tensors = _listed(found.tensors)
        # Before the first state of its kind, there is none to keep.
        if not tensors and name not in ("good", "start"):
            return []
        if _shapes(tensors) != _shapes(flat):
            raise ValueError(f"the state {name!r} is of other sizes")
        return [tensor.to(like.device) for tensor, like in zip(tensors, flat, strict=True)]

    def _named(self) -> dict[str, Tensor]:
        trained = self._loop.flat.parameters
        named = {f"parameters/{n}": p.detach() for n, p in trained.items()}
        known = {id(parameter) for parameter in trained.values()}
        for role, module in self._modules.items():
            for n, p in module.named_parameters():
                if id(p) not in known:
                    named[f"frozen/{role}.{n}"] = p.detach()
            named |= {f"buffers/{role}.{n}": buffer for n, buffer in module.named_buffers()}
        return named

    def _check_options(self, found: Checkpoint) -> None:
        theirs, ours = found.record.get("options", {}), self._options
        differing = [
            f"{name}={theirs.get(name)!r} for {ours.get(name)!r}"
            for name in {**ours, **theirs}
            if theirs.get(name) != ours.get(name)
        ]
        if differing:
            raise layout.refusal(
                self._who,
                self._path,
                expected="a run with the same options in",
                got=", ".join(differing),
                advice="Continue it with the options it began with, or pass another path. "
                + layout.written_by(found.versions),
            )


def _described(loop: Loop) -> dict[str, str]:
    """Name the optimiser with its settings, and the scheduler."""
    optimizer, scheduler = loop.optimizer, loop.scheduler
    # The fit's own has no other settings than its step size and decay, which are options.
    defaults = {} if isinstance(optimizer, FlatAdam) else optimizer.defaults
    settings = ", ".join(f"{name}={value!r}" for name, value in sorted(defaults.items()))
    return {
        "optimizer": f"{type(optimizer).__name__}({settings})",
        "scheduler": "none" if scheduler is None else type(scheduler).__name__,
    }


def beginning_of(path: str | os.PathLike[str], kind: str) -> Tensor:
    """Return torch's random state before the run of a file began.

    What was drawn then, such as a split of the data, need not lie in the file: it is drawn anew.

    Args:
        path: The file.
        kind: What sort of run it is.

    Raises:
        CheckpointError: The file is damaged, or another's.
    """
    found = read_checkpoint(path, kind=kind, allow_non_finite=True)
    state = found.tensors.get("beginning")
    if state is None or (state.dtype, state.shape) != (torch.uint8, torch.get_rng_state().shape):
        raise layout.refusal(
            "beginning_of",
            found.path,
            expected="a random state of torch in",
            got="none",
            advice=layout.written_by(found.versions),
        )
    return state


def take_steps(
    loop: Loop, batches: Iterator[Batch], file: RunFile | None, *, progress: bool
) -> tuple[Status, str]:
    """Take the steps that are left and save them, also where the process is asked to end.

    Args:
        loop: The run.
        batches: What each step is called with.
        file: Where to save the run; nowhere if none.
        progress: Whether to show a progress bar.

    Raises:
        NonFiniteError: Too many steps in a row were not finite.
        CheckpointError: The file could not be written.
    """
    if file is None:
        return loop.run(batches, progress=progress, after_step=lambda: None)
    termination = Termination()

    def after_step() -> None:
        if termination.asked:
            file.save()
            loop.engine.close()
            termination.obey()
        file.save_if_due()

    with termination.noted():
        ending = loop.run(batches, progress=progress, after_step=after_step)
        file.save()
    return ending


def _check_path(who: str, path: Path) -> None:
    """Refuse at once what could not be written after an hour."""
    folder = path.parent
    if path.exists() and not path.is_file():
        got = "a directory or a device of this name"
    elif not folder.is_dir():
        got = f"no directory {str(folder)!r}"
    elif not os.access(folder, os.W_OK | os.X_OK):
        got = f"a directory {str(folder)!r} that must not be written to"
    else:
        return
    raise layout.refusal(
        who,
        path,
        expected="to be able to write the file",
        got=got,
        advice="Pass the path of a file in a directory that exists.",
    )


@torch.no_grad()
def _assign(present: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, tensor in present.items():
        tensor.copy_(values[name])


def _finite(tensor: Tensor) -> Tensor:
    return tensor.isfinite().all()


def _shapes(tensors: Sequence[Tensor]) -> list[tuple[torch.Size, torch.dtype]]:
    return [(tensor.shape, tensor.dtype) for tensor in tensors]


def _listed(tensors: Mapping[str, Tensor]) -> list[Tensor]:
    return [tensors[name] for name in sorted(tensors, key=int)]


def _packed(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return nested containers as JSON, and put their tensors aside under names."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach()
        return {"tensor": name}
    if isinstance(value, dict):
        pairs = [[key, _packed(entry, f"{name}/{key}", tensors)] for key, entry in value.items()]
        return {"dict": pairs}
    if isinstance(value, (list, tuple)):
        entries = [_packed(entry, f"{name}/{k}", tensors) for k, entry in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": entries}
    return value


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return what :func:`_packed` was given."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unpacked(entry, tensors) for key, entry in content}
    entries = [_unpacked(entry, tensors) for entry in content]
    return tuple(entries) if kind == "tuple" else entries
