"""What a run trains: its norms, its seed, its length, its metric, and the layers of its network as they run."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor, nn

from normzoo.monitoring.layers import is_activation, is_norm, is_weighted, norm_name, of_kind
from normzoo.monitoring.sample import Readings, Seen

TAG = "normalization/run"
ROLES = {"weighted": is_weighted, "norm": is_norm, "activation": is_activation}


class Description:
    """Reads which layers of a network run, and the shapes of what they return.

    Args:
        model: the network.
    """

    def __init__(self, model: nn.Module) -> None:
        self.norm = norm_name(model)
        self.monitor = getattr(model, "monitor", None)
        self.monitor_mode = getattr(model, "monitor_mode", "min")
        self.layers = {name: (role, m) for role, kind in ROLES.items() for name, m in of_kind(model, kind).items()}

    def readings(self) -> Readings:
        """Read as by a monitor."""
        return {("output", shape_of): self.layers}

    def of_run(self, seen: Seen, seed: int | None, steps: float) -> dict[str, Any]:
        """The description of a run, as plain data."""
        shapes: Mapping[str, Any] = dict(reversed(seen["output", shape_of]))  # that of the first pass
        order = dict.fromkeys(name for name, _ in seen["output", shape_of])
        network = [
            {"name": name, "type": type(module).__name__, "role": role, "shape": shapes[name] or []}
            for name, (role, module) in ((name, self.layers[name]) for name in order)
        ]
        return {
            "norm": self.norm,
            "seed": seed,
            "steps": finite(steps),
            "network": network,
            **({"monitor": self.monitor, "monitor_mode": self.monitor_mode} if isinstance(self.monitor, str) else {}),
        }


def finite(steps: float) -> int | None:
    """A number of steps; None for infinitely many."""
    return int(steps) if math.isfinite(steps) else None


def shape_of(module: nn.Module, x: Tensor) -> Sequence[int]:
    """Reads the shape of an output."""
    return list(x.shape)


def steps_of(trainer: Trainer) -> float:
    """The number of optimizer steps of a run; infinite if it has no end, or one that is not known.

    In manual optimization every optimizer is taken to make one update per batch.
    """
    steps = trainer.estimated_stepping_batches
    if steps < 0:
        return math.inf
    if steps == trainer.max_steps or trainer.lightning_module.automatic_optimization:
        return steps
    steps *= len(trainer.optimizers)
    return min(steps, trainer.max_steps) if trainer.max_steps >= 0 else steps


def seed_of_run() -> int | None:
    """The seed that `seed_everything` has set, in this process or in the one that started it."""
    seed = os.environ.get("PL_GLOBAL_SEED", "")
    return int(seed) if seed.isdigit() else None
