"""What monitors tell each other between ranks: small things, by a group of their own, with an end to waiting."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# A rank that waits this long for another, which has ended or stands still, gives up with an error.
PATIENCE = timedelta(minutes=5)


def patience() -> timedelta:
    """How long to wait for another rank: no longer than the training does."""
    try:
        own: timedelta = dist.group.WORLD._get_backend(torch.device("cpu")).options._timeout  # type: ignore[union-attr]
    except (RuntimeError, AttributeError):  # the training has no group for CPUs
        return PATIENCE
    return min(own, PATIENCE)


class Ranks:
    """The processes that train together; one process is a special case that costs nothing.

    Values are exchanged in a gloo group of their own: in float64, on CPUs, whatever the training uses.
    """

    def __init__(self) -> None:
        self.many = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.size = dist.get_world_size() if self.many else 1
        self.group: Any = dist.new_group(backend="gloo", timeout=patience()) if self.many else None

    def close(self) -> None:
        """Leaves the group."""
        if self.group is not None and dist.is_initialized():
            dist.destroy_process_group(self.group)
        self.group = None
        self.many = False

    def gather(self, value: Any, error: Exception | None = None) -> list[Any]:
        """What every rank has, in the order of ranks. All ranks must call it.

        Raises:
            Exception: this rank's error, or a RuntimeError with that of another rank: all fail together.
        """
        if not self.many:
            if error is not None:
                raise error
            return [value]
        told = None if error is None else f"{type(error).__name__}: {error}"
        answers: list[Any] = [None] * self.size
        dist.all_gather_object(answers, (told, None if told else value), group=self.group)
        if error is not None:
            raise error
        for rank, (trouble, _) in enumerate(answers):
            if trouble:
                raise RuntimeError(f"rank {rank} could not take its sample: {trouble}")
        return [answer for _, answer in answers]

    def total(self, tensors: Sequence[Tensor], error: Exception | None = None) -> list[Tensor]:
        """The sum of each tensor over all ranks. All must call it, with the same shapes.

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
