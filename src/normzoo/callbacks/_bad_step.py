"""What it takes to run one training step again, in a file, and the state of a module from before a step."""

import random
from dataclasses import dataclass, field
from operator import is_
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normzoo.errors import InputError

VERSION = 1


class Buffers:
    """The buffers of a module as they were at the start of the step: running statistics, counters, random seeds.

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
        self.met: list[Tensor | None] = []
        self.keep()

    def keep(self) -> None:
        """Copies what they hold now, into memory that is there already."""
        now = [owner.get(name) for _, owner, name in self.places]
        if len(now) != len(self.met) or not all(map(is_, now, self.met)):  # at first, and where a step puts in new ones
            if not (len(now) == len(self.values) and all(map(alike, now, self.values))):
                self.values = [None if new is None else new.detach().clone() for new in now]
            self.met = now
            self.sources = [new.detach() for new in now if new is not None]
            self.copies = [old for old in self.values if old is not None]
        if self.sources:
            torch._foreach_copy_(self.copies, self.sources)

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


def alike(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether one can be copied into the other."""
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and one.dtype == other.dtype and one.device == other.device


class RandomNumbers:
    """Where the generators of torch, Python and numpy stand.

    Those of Python and numpy take as long to read as a layer to run, and few training steps draw from them: they are
    read at the first steps, and at the others only if one of these drew.

    Args:
        device: that the training runs on.
    """

    FIRST = 3

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.is_cuda = device.type == "cuda"
        self.left = self.FIRST
        """Steps that are still looked at for who draws."""
        self.python_draws = self.numpy_draws = False
        self.torch: Tensor = torch.get_rng_state()
        self.cuda: Tensor | None = None
        self.python: Any = None
        self.numpy: Any = None

    def keep(self) -> None:
        """Notes where they stand."""
        self.torch = torch.get_rng_state()
        if self.is_cuda:
            self.cuda = torch.cuda.get_rng_state(self.device)
        if self.left or self.python_draws:
            self.python = random.getstate()
        if self.left or self.numpy_draws:
            self.numpy = np.random.get_state()  # noqa: NPY002 - what users' own steps may draw from

    def after_forward(self) -> None:
        """Of one of the first steps: finds out whether it drew from Python's or numpy's generator."""
        self.left -= 1
        self.python_draws |= random.getstate() != self.python
        self.numpy_draws |= plain_numpy(np.random.get_state()) != plain_numpy(self.numpy)  # noqa: NPY002

    def plain(self) -> dict[str, Any]:
        """As tensors and plain data."""
        version, state, gauss = self.python
        return {
            "torch": self.torch,
            "cuda": self.cuda,
            "python": [version, list(state), gauss],
            "numpy": plain_numpy(self.numpy),
        }


def plain_numpy(state: Any) -> list[Any]:
    """A state of numpy's generator as plain data."""
    name, key, *rest = state
    return [str(name), [int(word) for word in key], *rest]


def set_random_numbers(state: dict[str, Any], device: torch.device) -> None:
    """Has the generators go on from a state that `RandomNumbers.plain` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, key, *rest = state["numpy"]
    np.random.set_state((name, np.array(key, dtype=np.uint32), *rest))  # noqa: NPY002


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
        random: where the random generators stood, as `RandomNumbers.plain` returns it.
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
            if saved.pop("version") != VERSION:
                raise ValueError("of another version of normzoo")
            return cls(**saved)
        except UnpicklingError as error:
            raise InputError(
                f"{file} holds a batch of objects whose reading could run code; have the data set yield tensors in "
                f"tuples, lists and dictionaries, as only these can be replayed."
            ) from error
        except (RuntimeError, OSError, EOFError, KeyError, TypeError, ValueError, AttributeError) as error:
            reason = str(error).strip().split(". ")[0]
            raise InputError(f"{file} is no step that normzoo has saved, or is damaged ({reason}).") from error
