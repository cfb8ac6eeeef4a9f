"""What the batch family shares: running statistics, and the choice between the batch's and the running ones."""

from typing import Any

import torch
from torch import Tensor

from normzoo.errors import InputError
from normzoo.norms._base import Norm, affine, at_least_float32, per_channel, require_positive


class BatchStatistics(Norm):
    """A layer with statistics over the batch: the batch's own in training, running averages of them in evaluation.

    `running <- (1 - momentum) running + momentum batch`, for the mean and the unbiased variance.

    Args:
        num_features: number of channels C.
        eps: added to the variance, in its units.
        momentum: weight of the newest batch in the running statistics, in [0, 1]; None for the average of all batches.
        affine: learn a `weight` and a `bias` per channel.
        track_running_stats: keep running statistics. Without them evaluation uses the batch's own.
    """

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__(num_features)
        require_positive(self, eps=eps)
        if momentum is not None and not 0 <= momentum <= 1:
            raise InputError(
                f"{type(self).__name__}(momentum={momentum!r}): momentum is the weight of the newest batch and lies in "
                f"[0, 1]; the default is 0.1, and None averages all batches."
            )
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        self.add_affine(weight=affine, bias=affine)
        tracked = track_running_stats
        self.register_buffer("running_mean", torch.zeros(num_features) if tracked else None)
        self.register_buffer("running_var", torch.ones(num_features) if tracked else None)
        self.register_buffer("num_batches_tracked", torch.tensor(0) if tracked else None)

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    @property
    def uses_batch(self) -> bool:
        """Whether this forward pass normalizes by the statistics of its own batch."""
        return self.training or self.running_mean is None

    def normalize(self, x: Tensor) -> Tensor:
        if self.uses_batch:
            return self.normalize_by_batch(x)
        return self.normalize_by_running(x)

    def normalize_by_batch(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def normalize_by_running(self, x: Tensor) -> Tensor:
        """`weight (x - running_mean) / sqrt(running_var + eps) + bias`, as one scale and one shift per channel."""
        assert self.running_mean is not None
        assert self.running_var is not None
        scale = (self.running_var + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        centred = at_least_float32(x) - per_channel(self.running_mean, x)
        return affine(centred, scale, self.bias).to(x.dtype)

    def require_several(self, count: int, x: Tensor) -> None:
        """Raises `InputError` when a channel's variance would be that of a single value, which is always 0."""
        if count == 1:
            raise InputError(
                f"{type(self).__name__} got an input of shape {tuple(x.shape)} to take statistics of: one value per "
                f"channel has no variance. Use batches of at least 2 samples (drop the last, smaller batch), or, where "
                f"there are running statistics, call .eval()."
            )

    def normalize_empty(self, x: Tensor) -> Tensor:
        """No value, no statistics: the empty batch passes, the running statistics stay, parameters have a gradient."""
        return affine(x, self.weight, self.bias).to(x.dtype)

    def update(self, mean: Tensor, var: Tensor, count: int, *, unbiased: bool = True) -> None:
        """Moves the running statistics towards those of a batch.

        Args:
            mean: (C,) mean of the batch.
            var: (C,) biased variance of the batch.
            count: values per channel; without any, the running statistics stay.
            unbiased: store `var count / (count - 1)`, as torch does; keras and the ONNX standard store `var`.
        """
        running_mean, running_var, seen = self.running_mean, self.running_var, self.num_batches_tracked
        if not self.training or running_mean is None or count == 0 or in_recomputation():
            return
        assert running_var is not None
        assert seen is not None
        with torch.no_grad():
            seen.add_(1)
            if unbiased and count > 1:
                var = var * (count / (count - 1))
            # A tensor, not a number read from it: reading would break a compiled graph.
            weight: Any = 1 / seen.to(running_mean.dtype) if self.momentum is None else self.momentum
            for running, batch in ((running_mean, mean), (running_var, var)):
                running.lerp_(batch.to(running.dtype), weight)


def in_recomputation() -> bool:
    """Whether this forward pass runs inside a backward pass: activation checkpointing repeats it there.

    The first pass has moved the running statistics already; to move them again would count the batch twice.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
