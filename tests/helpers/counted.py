"""A network with state that is neither parameter nor buffer."""

from typing import Any

from torch import Tensor

from normzoo.models import MLP


class Counted(MLP):
    """Scales its output by the number of its training steps, which `get_extra_state` keeps."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return super().forward(x) * (1 + 0.01 * self.calls)

    def get_extra_state(self) -> Any:
        return {"calls": self.calls}

    def set_extra_state(self, state: Any) -> None:
        self.calls = state["calls"]
