"""What it takes to run one training step again, in a file, and the state of a module from before a step."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from normzoo.errors import InputError
from normzoo.monitoring.random_state import readers

VERSION = 1
KINDS: dict[str, Any] = {
    **dict.fromkeys(("batch_idx", "epoch", "step", "ranks"), int),
    **dict.fromkeys(("buffers", "random", "findings"), dict),
    "evaluating": list,
    "factor": float | int,
    "precision": str,
    "loss": float | int | None,
}
"""Of the parts of a step."""


class Buffers:
    """The buffers of a module as they were at the start of the step: running statistics, counters, random seeds.

    Copying them costs a few calls per step. On a CPU numpy makes these: several times cheaper for what is small.

    Args:
        module: whose.
    """

    def __init__(self, module: nn.Module) -> None:
        self.places = [
            (f"{prefix}.{name}" if prefix else name, owner._buffers, name)
            for prefix, owner in module.named_modules()
            for name in owner._buffers
        ]
        self.values: list[Tensor | None] = []
        self.where: list[int] = [-1]
        self.keep()

    def keep(self) -> None:
        """Copies what they hold now, into memory that is there already."""
        now = [owner[name] for _, owner, name in self.places]
        where = [0 if new is None else new.data_ptr() for new in now]
        if where != self.where:  # at first, and where a step puts new ones in their place
            self.prepare(now)
            self.where = where
        for copy, source in self.arrays:
            copy[...] = source
        if self.tensors[0]:
            torch._foreach_copy_(*self.tensors)

    def prepare(self, now: list[Tensor | None]) -> None:
        """Makes room for the copies, and finds out how each is copied."""
        if not (len(now) == len(self.values) and all(map(alike, now, self.values))):
            self.values = [None if new is None else new.detach().clone() for new in now]
        pairs = [(v, n.detach()) for v, n in zip(self.values, now, strict=True) if v is not None and n is not None]
        plain = [v.device.type == "cpu" and v.is_contiguous() and n.is_contiguous() for v, n in pairs]
        self.arrays = [(as_bytes(v), as_bytes(n)) for (v, n), is_plain in zip(pairs, plain, strict=True) if is_plain]
        others = [pair for pair, is_plain in zip(pairs, plain, strict=True) if not is_plain]
        self.tensors = [v for v, _ in others], [n for _, n in others]

    @torch.no_grad()
    def restore(self) -> None:
        """Gives the module what they held."""
        for (_, owner, name), value in zip(self.places, self.values, strict=True):
            now = owner.get(name)
            if now is not None and value is not None and alike(now, value):
                now.copy_(value)
            else:
                owner[name] = None if value is None else value.clone()

    def kept(self) -> "Buffers":
        """This state, for longer than the step."""
        copy = object.__new__(Buffers)
        copy.places = self.places
        copy.values = [None if value is None else value.clone() for value in self.values]
        return copy

    def named(self) -> dict[str, Tensor | None]:
        return {name: value for (name, _, _), value in zip(self.places, self.values, strict=True)}


def as_bytes(x: Tensor) -> Any:
    """The memory of a contiguous tensor on the CPU, of whatever type, as a numpy array."""
    return x.reshape(-1).view(torch.uint8).numpy()


def alike(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether one can be copied into the other."""
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and one.dtype == other.dtype and one.device == other.device


class RandomNumbers:
    """Where the generators of torch, Python and numpy stood at the start of the step.

    Reading them takes as long as a layer to run. They are read at the first steps, and at the others only if one of
    these drew from them.

    Args:
        device: that the training runs on.
    """

    FIRST = 3

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.left = self.FIRST
        """Steps that are still looked at for who draws."""
        self.drawn: set[str] = set()
        self.read: tuple[tuple[str, Callable[[], Any]], ...] = tuple(readers(self.device).items())
        self.states: dict[str, Any] = {}

    def keep(self) -> None:
        """Notes where those stand that are drawn from."""
        for name, read in self.read:
            self.states[name] = read()

    def after_forward(self) -> None:
        """Of one of the first steps: finds out from which it drew."""
        self.left -= 1
        for name, read in self.read:
            before, now = self.states[name], read()
            if not torch.equal(before, now) if isinstance(now, Tensor) else before != now:
                self.drawn.add(name)
        if not self.left:
            self.read = tuple((name, read) for name, read in readers(self.device).items() if name in self.drawn)
            self.states = {name: self.states[name] for name in self.drawn}

    def plain(self) -> dict[str, Any]:
        """As tensors and plain data; those that no step draws from stand where they stood."""
        return {
            name: self.states[name] if name in self.states else read() for name, read in readers(self.device).items()
        }


@dataclass
class BadStep:
    """A training step of one rank, with all that it takes beside the checkpoint from before it.

    Args:
        batch: as it reached training_step.
        batch_idx: its number in the epoch.
        epoch: the epoch's number.
        step: optimizer steps made before it.
        buffers: name -> what it held before the step.
        evaluating: names of the modules that ran as in evaluation.
        random: where the random generators stood, as `random_state` returns it.
        factor: what the loss was multiplied by before the backward pass.
        precision: of the Trainer.
        loss: what training_step returned; None where that is not known.
        compiled: whether the network ran compiled, whose rounding differs.
        ranks: how many processes trained together.
        findings: what was seen of it, as plain data.
    """

    batch: Any
    batch_idx: int
    epoch: int
    step: int
    buffers: dict[str, Tensor | None]
    evaluating: list[str]
    random: dict[str, Any]
    factor: float
    precision: str
    loss: float | None
    compiled: bool
    ranks: int
    findings: dict[str, Any] = field(default_factory=dict)

    def save(self, file: Path) -> None:
        """Writes the file.

        Raises:
            OSError: it cannot be written.
        """
        try:
            torch.save({"version": VERSION, **vars(self)}, file)
        except RuntimeError as error:  # torch's word for what the file system refuses
            raise OSError(str(error)) from error

    @classmethod
    def load(cls, file: Path) -> "BadStep":
        """Reads what `save` wrote.

        Raises:
            InputError: it is something else, or holds objects whose reading could run code.
        """
        try:
            saved = torch.load(file, map_location="cpu", weights_only=True)
            if not isinstance(saved, dict):
                raise TypeError(f"a {type(saved).__name__}")
            if saved.pop("version") != VERSION:
                raise ValueError("of another version of normzoo")
            step = cls(**saved)
            wrong = [name for name, kind in KINDS.items() if not isinstance(getattr(step, name), kind)]
            found = step.findings if "findings" not in wrong else {}
            wrong += [f"findings.{name}" for name in ("loss", "offender", "says") if name not in found]
            if wrong:
                raise ValueError(f"{wrong[0]} is of another kind")
            return step
        except UnpicklingError as error:
            raise InputError(
                f"{file} holds a batch of objects whose reading could run code; have the data set yield tensors in "
                f"tuples, lists and dictionaries, as only these can be replayed."
            ) from error
        except (RuntimeError, OSError, EOFError, KeyError, TypeError, ValueError, AttributeError) as error:
            reason = str(error).strip().split(". ")[0]
            raise InputError(f"{file} is no step that normzoo has saved, or is damaged ({reason}).") from error
