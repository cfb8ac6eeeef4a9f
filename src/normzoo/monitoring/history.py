"""What a monitor remembers of its samples: a bounded number of columns, evenly spread over the run."""

from typing import Any

import torch
from torch import Tensor

COLUMNS = 256


class History:
    """The samples of a run, thinned out by half whenever they become too many.

    Args:
        columns: the most samples that are kept.
    """

    def __init__(self, columns: int = COLUMNS) -> None:
        self.columns = columns
        self.stride = 1
        self.count = 0
        self.steps: list[int] = []
        self.buffer = torch.zeros(0)  # one for all samples: many small tensors would fragment the memory

    @property
    def values(self) -> Tensor:
        """(S, ...), the values of each sample."""
        return self.buffer[: len(self.steps)]

    def is_kept(self) -> bool:
        """Whether the next sample is one of those that are remembered."""
        self.count += 1
        return (self.count - 1) % self.stride == 0

    def add(self, step: int, values: Tensor) -> None:
        """Remembers the values of a step."""
        if not len(self.buffer):
            self.buffer = torch.zeros(self.columns + 1, *values.shape)
        self.buffer[len(self.steps)] = values
        self.steps.append(step)
        if len(self.steps) > self.columns:
            self.steps, kept = self.steps[::2], self.values[::2].clone()
            self.buffer[: len(kept)] = kept
            self.stride *= 2

    def state_dict(self) -> dict[str, Any]:
        """As tensors and numbers."""
        return {"stride": self.stride, "count": self.count, "steps": list(self.steps), "values": self.values.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the history from `state_dict`."""
        self.stride, self.count, self.steps = state["stride"], state["count"], list(state["steps"])
        if self.steps:
            self.buffer = torch.zeros(self.columns + 1, *state["values"].shape[1:])
            self.buffer[: len(self.steps)] = state["values"]
