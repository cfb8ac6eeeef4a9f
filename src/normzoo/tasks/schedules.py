"""Learning rate schedules that fit the length of the run by themselves."""

import math
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from normzoo.errors import InputError


class WarmupCosine(LRScheduler):
    """Warms the learning rate up linearly, then anneals it along half a cosine, step by step.

    `lr(t) = lr (t + 1) / (w + 1)` for t < w, then `lr (final + (1 - final) (1 + cos(pi (t - w) / (T - w))) / 2)`

    Args:
        optimizer: its learning rates are the highest of the schedule.
        total_steps: T, the length of the run in optimizer steps; None if the task calls `set_total_steps`.
        warmup: w as a share of T, in [0, 1).
        final: the last rate as a share of the highest, in [0, 1].

    Raises:
        InputError: a share is out of range.

    Reference: Ilya Loshchilov, Frank Hutter. SGDR: Stochastic Gradient Descent with Warm Restarts. 2016. arXiv
    1608.03983, equation 5; the warm-up is that of Priya Goyal et al. 2017, arXiv 1706.02677.
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int | None = None, warmup: float = 0.05, final: float = 0.0
    ) -> None:
        if not 0 <= warmup < 1 or not 0 <= final <= 1:
            raise InputError(
                f"WarmupCosine(warmup={warmup}, final={final}): both are shares; warmup, of the run, must be in [0, 1) "
                f"and final, of the highest rate, in [0, 1]; the defaults are 0.05 and 0."
            )
        self.total_steps = total_steps
        self.warmup = warmup
        self.final = final
        super().__init__(optimizer)

    def set_total_steps(self, total_steps: float) -> None:
        """Sets the length of the run in optimizer steps, before it starts; an `InputError` if it is infinite."""
        if total_steps == math.inf:
            raise InputError(
                "WarmupCosine(total_steps=None): the run has no end; set trainer.max_epochs, trainer.max_steps or "
                "total_steps."
            )
        self.total_steps = int(total_steps)
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate
        self._last_lr = self.get_lr()

    def state_dict(self) -> dict[str, Any]:
        """The position in the schedule, without its length and shape: a resumed run may be longer."""
        shape = ("total_steps", "warmup", "final")
        return {name: value for name, value in super().state_dict().items() if name not in shape}

    def get_lr(self) -> list[float | Tensor]:
        return [base * self.share(self.last_epoch) for base in self.base_lrs]

    def share(self, step: int) -> float:
        """The rate at a step as a share of the highest."""
        if self.total_steps is None:
            return 1.0
        warm = round(self.warmup * self.total_steps)
        if step < warm:
            return (step + 1) / (warm + 1)
        progress = min((step - warm) / max(self.total_steps - warm, 1), 1)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2
