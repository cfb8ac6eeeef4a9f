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
        self.values: list[Tensor] = []

    def is_kept(self) -> bool:
        """Whether the next sample is one of those that are remembered."""
        self.count += 1
        return (self.count - 1) % self.stride == 0

    def add(self, step: int, values: Tensor) -> None:
        """Remembers the values of a step."""
        self.steps.append(step)
        self.values.append(values.float().cpu().clone())
        if len(self.steps) > self.columns:
            self.steps, self.values = self.steps[::2], self.values[::2]
            self.stride *= 2

    def state_dict(self) -> dict[str, Any]:
        """As tensors and numbers."""
        values = torch.stack(self.values) if self.values else torch.zeros(0)
        return {"stride": self.stride, "count": self.count, "steps": list(self.steps), "values": values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the history from `state_dict`."""
        self.stride, self.count, self.steps = state["stride"], state["count"], list(state["steps"])
        self.values = list(state["values"])
