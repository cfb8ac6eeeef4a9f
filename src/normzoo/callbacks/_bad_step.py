"""The state before a training step, and a file from which the step can be repeated."""

from collections.abc import Mapping
from dataclasses import dataclass
from operator import is_
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from normzoo.errors import InputError
from normzoo.monitoring.random_state import readers

FIRST = 3  # steps


class StateBefore:
    """The buffers of a module and the states of the random number generators before the newest step.

    It is taken at every step, so it must be cheap: buffers are copied into the same memory each time, and the states of
    Python's and NumPy's generators, which take long to read, only if one of the first steps drew from them.

    Args:
        module: the module.
        device: where it is trained.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.device = device
        self.steps = 0
        self.readers = readers(device)
        self.random: dict[str, Any] = {}
        self.first: dict[str, Any] = {}
        self.find_buffers(module)

    def find_buffers(self, module: nn.Module) -> None:
        """Finds the buffers; to be called again when layers were added or removed."""
        modules = [(f"{name}." if name else "", owner) for name, owner in module.named_modules()]
        self.places = {
            p + name: (owner, name) for p, owner in modules for name, _ in owner.named_buffers(recurse=False)
        }
        self.sources: list[Tensor | None] = []
        self.copies: list[Tensor | None] = []
        self.groups: list[tuple[list[Tensor], list[Tensor]]] = []

    def take(self) -> None:
        """Copies the present state."""
        new = {name: read() for name, read in self.readers.items()}
        if self.steps == FIRST:
            unused = {name for name in ("numpy", "python") if new[name] == self.first[name]}
            self.readers = {name: read for name, read in self.readers.items() if name not in unused}
        elif self.steps == 0:
            self.first = new
        self.random = {name: new[name] for name in self.readers}
        self.steps += 1
        self.copy_buffers()

    def copy_buffers(self) -> None:
        now = [getattr(owner, name) for owner, name in self.places.values()]
        if len(now) == len(self.sources) and all(map(is_, now, self.sources)):
            for copies, sources in self.groups:
                # One call, and on a GPU one kernel, for all buffers of a type; Tensor.copy_ takes one for each.
                torch._foreach_copy_(copies, sources)
            return
        self.sources, self.copies = now, [None if one is None else one.detach().clone() for one in now]
        groups: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
        for copy, source in zip(self.copies, now, strict=True):
            if copy is not None and source is not None:
                group = groups.setdefault((copy.device, copy.dtype), ([], []))
                group[0].append(copy)
                group[1].append(source.detach())
        self.groups = list(groups.values())

    def kept(self) -> tuple[dict[str, Tensor | None], dict[str, Any]]:
        """The buffers by name and the random states, to keep beyond the next step."""
        buffers = {n: None if x is None else x.clone() for n, x in zip(self.places, self.copies, strict=True)}
        # What is not read at each step is not drawn from: it is now what it was before the step.
        return buffers, {name: self.random.get(name, read()) for name, read in readers(self.device).items()}


@torch.no_grad()
def set_buffers(module: nn.Module, buffers: Mapping[str, Tensor | None]) -> None:
    """Sets buffers to values from before a step; names that the module lacks are skipped."""
    modules = dict(module.named_modules())
    for name, value in buffers.items():
        prefix, _, last = name.rpartition(".")
        owner = modules.get(prefix)
        if owner is None or not hasattr(owner, last):
            continue
        now = getattr(owner, last)
        if now is not None and value is not None and now.shape == value.shape and now.dtype == value.dtype:
            now.copy_(value)
        else:
            setattr(owner, last, None if value is None else value.clone())


@dataclass
class BadStep:
    """A training step of one rank: with the checkpoint from before it, all that it takes to repeat the step.

    Args:
        batch: as training_step received it.
        batch_idx: its number in the epoch.
        epoch: the epoch.
        step: the number of optimizer steps before it.
        buffers: name -> value before the step.
        evaluating: names of the modules in evaluation mode.
        random: the state of the random number generators, as of `random_state`.
        factor: what the loss was multiplied by before the backward pass.
        precision: of the Trainer.
        ranks: the number of ranks.
        loss: what training_step returned; None if that is not known.
        offender: the first layer that is not finite; empty if that is not known.
        summary: a sentence about it.
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
    ranks: int
    loss: float | None
    offender: str = ""
    summary: str = ""

    def save(self, file: Path) -> None:
        """Writes the file."""
        torch.save(vars(self), file)

    @classmethod
    def load(cls, file: Path) -> "BadStep":
        """Reads what `save` wrote.

        Raises:
            InputError: it is another file, or damaged, or holds objects that could run code.
        """
        try:
            return cls(**torch.load(file, map_location="cpu", weights_only=True))
        except UnpicklingError as error:
            raise InputError(
                f"{file} holds objects that could run code, which are not read. Only batches of tensors in tuples, "
                f"lists and dictionaries can be replayed: let the data set return these."
            ) from error
        except (RuntimeError, OSError, EOFError, TypeError, ValueError) as error:
            reason = str(error).strip().split(". ")[0]
            raise InputError(f"{file} is not a step that FiniteLoss saved, or is damaged ({reason}).") from error
