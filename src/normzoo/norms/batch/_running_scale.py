"""The base of layers with a running scale instead of a running variance."""

import torch
from torch import Tensor

from normzoo.norms._ops.running import RunningStatistics
from normzoo.norms._ops.scale import scale_per_channel


class RunningScale(RunningStatistics):
    """A layer with another scale than the deviation: `y = weight (x - running_mean) / (running_scale + eps) + bias`."""

    running_scale: Tensor | None

    def add_running(self, tracked: bool) -> None:
        self.register_buffer("running_mean", torch.zeros(self.num_features) if tracked else None)
        self.register_buffer("running_scale", torch.ones(self.num_features) if tracked else None)
        self.register_buffer("num_batches_tracked", torch.tensor(0) if tracked else None)

    def normalize_by_running(self, x: Tensor) -> Tensor:
        assert self.running_mean is not None
        assert self.running_scale is not None
        scale = 1 / (self.running_scale + self.eps)
        return scale_per_channel(x, scale if self.weight is None else scale * self.weight, self.running_mean, self.bias)
