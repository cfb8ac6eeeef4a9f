"""Small values that callbacks exchange between ranks."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks:
    """The processes that train together; a single process exchanges nothing.

    Values travel over gloo, on CPUs, whatever the training uses: its own process group where that is gloo, a new one
    otherwise. All ranks must create, use and close it together.

    Attributes:
        many: whether there are several ranks.
        size: the number of ranks.
    """

    def __init__(self) -> None:
        self.many = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.size = dist.get_world_size() if self.many else 1
        self.group: Any = dist.new_group(backend="gloo") if self.many and dist.get_backend() != "gloo" else None

    def close(self) -> None:
        """Destroys the process group, if it is not that of the training."""
        if self.group is not None and dist.is_initialized():
            dist.destroy_process_group(self.group)
        self.group = None
        self.many = False

    def gather(self, value: Any, error: Exception | None = None) -> list[Any]:
        """The value of each rank, in the order of ranks. All ranks must call it.

        Args:
            value: of this rank; anything that pickles.
            error: why this rank has no value.

        Raises:
            Exception: this rank's error, or a RuntimeError with that of another rank: all ranks raise.
        """
        if not self.many:
            if error is not None:
                raise error
            return [value]
        message = None if error is None else f"{type(error).__name__}: {error}"
        answers: list[Any] = [None] * self.size
        dist.all_gather_object(answers, (message, None if message else value), group=self.group)
        if error is not None:
            raise error
        for rank, (failure, _) in enumerate(answers):
            if failure:
                raise RuntimeError(f"rank {rank} could not take its sample: {failure}")
        return [answer for _, answer in answers]

    def total(self, tensors: Sequence[Tensor], error: Exception | None = None) -> list[Tensor]:
        """The sum of each tensor over all ranks, computed in float64. All ranks must call it, with the same shapes.

        Args:
            tensors: of this rank.
            error: why this rank has none.

        Raises:
            Exception: this rank's error, or a RuntimeError with that of another rank.
        """
        self.gather(None, error)
        if not self.many or not tensors:
            return list(tensors)
        flat = torch.cat([t.detach().double().cpu().flatten() for t in tensors])
        dist.all_reduce(flat, group=self.group)
        parts = flat.split([t.numel() for t in tensors])
        return [part.view_as(t).to(t) for part, t in zip(parts, tensors, strict=True)]
