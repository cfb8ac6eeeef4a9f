"""The moments that a batch normalization has worked out itself, in the place of further passes over memory."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from normzoo.metrics import Moments
from normzoo.metrics.moments import PLANE, SMALL
from normzoo.monitoring.probe import Passage
from normzoo.monitoring.profile import feature_moments
from normzoo.norms._ops.running import in_recomputation
from normzoo.norms.batch.batch_norm import BatchNorm

# The layer has its variance from E[x^2] - E[x]^2 in float32, which costs up to 5e-7 of it here.
LARGEST_MEAN_SQUARE_OVER_VAR = 4.0
# The output is rounded around its mean: 6e-8 of the mean, in its own standard deviations up to 6e-7.
LARGEST_OUTPUT_MEAN_SQUARE_OVER_VAR = 100.0

Told = tuple[Tensor, Tensor, int]
"""Mean, biased variance, and the values per channel."""


def knows_moments(module: nn.Module) -> bool:
    """Whether a layer is batch normalization as we know it, and nothing is hung on it that changes what passes.

    A subclass may do more; torch's kernel errs by up to 1e-5.
    """
    hooks = len(module._forward_pre_hooks) + len(module._forward_hooks)
    methods = {"forward", "normalize", "normalize_by_batch", "update"}
    return type(module) is BatchNorm and not hooks and not methods & vars(module).keys()


class OwnMoments:
    """Count, mean and variance of each channel of a batch normalization's input and output, as `feature_moments`.

    The input's are the layer's own statistics, in float32; the output's follow from them::

        mean_y = bias,  var_y = weight^2 var / (var + eps)

    Where these would not be exact to 1e-6 of a standard deviation (a mean beyond two of the input or ten of the output,
    a variance that eps hides, large planes, anything not finite, a narrow dtype), where the layer says nothing (it
    normalizes by its running statistics, or leaves out padding), where it speaks of the batches of all ranks (`sync`),
    and of few values, which cost nothing, the values are read.

    Args:
        modules: layers that know their moments, see `knows_moments`.
    """

    def __init__(self, modules: Collection[nn.Module]) -> None:
        self.modules = set(modules)
        self.told: dict[nn.Module, Told] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While it is open, layers say what they move their running statistics towards."""
        told, listened = self.told, self.modules

        def update(self: BatchNorm, mean: Tensor, var: Tensor, count: int) -> None:
            # Not of a copy that was made meanwhile, which has a method of its own, bound to itself.
            if self in listened and self.group is None and not in_recomputation():
                told[self] = mean, var, count
            type(self).update(self, mean, var, count)

        try:
            for module in listened:
                module.update = MethodType(update, module)  # type: ignore[assignment] # a method, no tensor
            yield
        finally:
            for module in listened:
                module.__dict__.pop("update", None)
            told.clear()

    def forget(self, module: nn.Module, x: Tensor) -> None:
        """Reads nothing of what goes in: what the layer said before is not of this pass."""
        self.told.pop(module, None)

    def reader(self, sites: Sequence[str]) -> Passage:
        """What a probe reads of a layer's input and output together: site -> moments."""

        def read(module: nn.Module, x: Tensor | None, y: Tensor | None) -> dict[str, Moments | None]:
            told = self.told.pop(module, None)
            known = known_moments(module, x, told) if told and x is not None and is_bare(module) else {}
            sides = {"input": x, "output": y}
            return {
                site: known[site] if site in known else None if side is None else feature_moments(module, side.detach())
                for site, side in sides.items()
                if site in sites
            }

        return read


def is_bare(module: nn.Module) -> bool:
    """Whether the probe's hooks are the only ones: others may change what passes."""
    return len(module._forward_pre_hooks) == len(module._forward_hooks) == 1


def known_moments(module: Any, x: Tensor, told: Told) -> dict[str, Moments]:
    """The moments of a layer's input and output without a look at them, where that is exact and saves time."""
    if x.numel() <= SMALL or x.shape[2:].numel() > PLANE or x.dtype not in (torch.float32, torch.float64):
        return {}
    mean, var = told[0].double(), told[1].double()
    n = torch.tensor(float(told[2]), dtype=torch.float64, device=x.device)
    zeros, ones = torch.zeros_like(var), torch.ones_like(var)
    mean_y = zeros if module.bias is None else module.bias.detach().double()
    weight = ones if module.weight is None else module.weight.detach().double()
    var_y = weight.square() * var / (var + module.eps)
    # No comparison with NaN is true.
    is_exact = (var >= module.eps) & (var < torch.inf) & (mean.square() <= LARGEST_MEAN_SQUARE_OVER_VAR * var)
    is_exact_y = (var_y < torch.inf) & (mean_y.square() <= LARGEST_OUTPUT_MEAN_SQUARE_OVER_VAR * var_y)
    input_is_exact, output_is_exact = torch.stack([is_exact, is_exact & is_exact_y]).all(1).tolist()
    found = {"input": Moments(n, mean, var)} if input_is_exact else {}
    return found | ({"output": Moments(n, mean_y, var_y)} if output_is_exact else {})
