"""The moments that a batch normalization has worked out itself, in the place of further passes over memory."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from normzoo.callbacks._profile import feature_moments
from normzoo.metrics import Moments
from normzoo.metrics.moments import SMALL
from normzoo.norms._running import in_recomputation
from normzoo.norms.batch.batch_norm import BatchNorm
from normzoo.probes import Passage

# The layer has its variance from E[x^2] - E[x]^2 in float32, which costs up to 5e-7 of it here.
LARGEST_MEAN_SQUARE_OVER_VAR = 4.0

Told = tuple[Tensor, Tensor, int]
"""Mean, biased variance, and the values per channel."""


def knows_moments(module: nn.Module) -> bool:
    """Whether a layer is batch normalization as we know it: a subclass may do more, and torch's kernel errs by 1e-5."""
    return type(module) is BatchNorm


class OwnMoments:
    """Count, mean and variance of each channel of a batch normalization's input and output, as `feature_moments`.

    The input's are the layer's own statistics, in float32; the output's follow from them::

        mean_y = bias,  var_y = weight^2 var / (var + eps)

    Where these would not be exact to 1e-6 of a standard deviation (a mean beyond two, a variance that eps hides,
    anything not finite, a narrow dtype), where the layer says nothing (it normalizes by its running statistics, or
    leaves out padding), where it speaks of the batches of all ranks (`sync`), and of few values, which cost nothing,
    the values are read.

    Args:
        modules: batch normalizations.
    """

    def __init__(self, modules: Collection[nn.Module]) -> None:
        self.modules = {module for module in modules if isinstance(module, BatchNorm)}
        self.told: dict[nn.Module, Told] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While it is open, layers of the zoo say what they move their running statistics towards."""
        told, listened = self.told, self.modules

        def update(self: BatchNorm, mean: Tensor, var: Tensor, count: int) -> None:
            # Not of a copy that was made meanwhile, which has a method of its own, bound to itself.
            if self in listened and self.group is None and not in_recomputation():
                told[self] = mean, var, count
            type(self).update(self, mean, var, count)

        try:
            for module in listened:
                module.update = MethodType(update, module)  # type: ignore[method-assign]
            yield
        finally:
            for module in listened:
                module.__dict__.pop("update", None)
            told.clear()

    def reader(self, sites: Sequence[str]) -> Passage:
        """What a probe reads of a layer's input and output together: site -> moments."""

        def read(module: nn.Module, x: Tensor | None, y: Tensor | None) -> dict[str, Moments | None]:
            told = self.told.pop(module, None)
            known = None if x is None or told is None else known_moments(module, x, told)
            if known is not None:
                return {"input": known, "output": moments_behind(module, known)}
            sides = {"input": x, "output": y}
            return {s: None if (t := sides[s]) is None else feature_moments(module, t.detach()) for s in sites}

        return read


def known_moments(module: Any, x: Tensor, told: Told) -> Moments | None:
    """The moments of a layer's input without a look at it, where that is exact and saves time."""
    if x.numel() <= SMALL or x.dtype not in (torch.float32, torch.float64):
        return None
    mean, var, count = told
    mean, var = mean.double(), var.double()
    least, largest = var.aminmax()
    # No comparison with NaN is true.
    sound = (least >= module.eps) & (largest < torch.inf) & (mean.square() <= LARGEST_MEAN_SQUARE_OVER_VAR * var).all()
    return Moments(torch.tensor(float(count), dtype=torch.float64, device=x.device), mean, var) if bool(sound) else None


def moments_behind(module: Any, of_input: Moments) -> Moments:
    """The moments of a batch normalization's output, from those of its input."""
    n, _, var = of_input
    share = var / (var + module.eps)
    mean = torch.zeros_like(var) if module.bias is None else module.bias.detach().double()
    return Moments(n, mean, share if module.weight is None else module.weight.detach().double().square() * share)
