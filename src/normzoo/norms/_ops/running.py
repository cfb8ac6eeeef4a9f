"""Statistics over the batch: merging samples and ranks, running statistics, freezing."""

import math
from typing import Self

import torch
from torch import Tensor

from normzoo.errors import InputError
from normzoo.norms._base import Norm
from normzoo.norms._checks import is_number, require_eps, require_group
from normzoo.norms._ops.buffers import snapshots
from normzoo.norms._ops.ranks import Group, all_reduce, ranks, totals
from normzoo.norms._ops.scale import scale_per_channel
from normzoo.norms._ops.tensors import affine, in_torch_func, is_traced, is_transformed


def over_samples(mean: Tensor, var: Tensor, positions: int, group: Group = None) -> tuple[Tensor, Tensor]:
    """The mean and biased variance of each channel from those of its planes, by Chan's formula.

    `mean = avg_n mean_n`,  `var = avg_n (var_n + (mean_n - mean)^2)`, averages weighted by values: if images
    differ in size between ranks, the planes of larger images weigh more

    Args:
        mean: (N, C), of every channel of every sample.
        var: (N, C), biased.
        positions: values in a plane, on this rank.
        group: the ranks that share the batch; a rank may have no samples.

    Returns:
        mean and var, (C,) each; zeros if no rank has a sample.
    """
    if group is None:
        samples = max(mean.shape[0], 1)
        merged = mean.sum(0) / samples
        return merged, (var + (mean - merged).square()).sum(0) / samples
    sums = torch.cat([mean.sum(0), mean.new_full((1,), mean.shape[0])]) * positions
    sums = all_reduce(sums, group)
    values = sums[-1].detach().clamp_min(1)
    merged = sums[:-1] / values
    return merged, all_reduce((var + (mean - merged).square()).sum(0) * positions, group) / values


def over_parts(
    mean: Tensor, var: Tensor, part: Tensor, parts: int, positions: int, group: Group = None
) -> tuple[Tensor, Tensor]:
    """`over_samples` for each part of the batch.

    Args:
        mean: (N, C), of every channel of every sample.
        var: (N, C), biased.
        part: (N,), the part of each sample; a part may span several ranks.
        parts: the number of parts.
        positions: values in a plane, on this rank.
        group: the ranks that share the batch.

    Returns:
        mean and var, (parts, C) each.
    """

    def sums(table: Tensor) -> Tensor:
        summed = table.new_zeros(parts, table.shape[1]).index_add(0, part, table)
        return summed if group is None else all_reduce(summed * positions, group)

    both = sums(torch.cat([mean, mean.new_ones(mean.shape[0], 1)], 1))
    values = both[:, -1:].detach().clamp_min(1)
    merged = both[:, :-1] / values
    return merged, sums(var + (mean - merged[part]).square()) / values


def counts_of_parts(x: Tensor, before: int, size: int, parts: int, group: Group) -> list[int]:
    """The number of values per channel in each part of a batch that the ranks of a group share.

    Args:
        x: (N, C, *), the samples of this rank.
        before: the number of samples on the ranks before it.
        size: samples in a part; the last may have fewer.
        parts: the number of parts.
        group: the ranks.
    """
    end = before + x.shape[0]
    own = [max(min(size * (p + 1), end) - max(size * p, before), 0) for p in range(parts)]
    return totals([samples * math.prod(x.shape[2:]) for samples in own], group, x.device)


class RunningStatistics(Norm):
    """A layer with statistics over the batch: the batch's own in training, running averages of them in evaluation.

    `running <- (1 - momentum) running + momentum batch`, for the mean and the unbiased variance.

    A subclass defines `normalize_by_batch`, which calls `update`.

    Args:
        num_features: number of channels C.
        eps: added to the variance, in its units.
        momentum: weight of the newest batch in the running statistics, in [0, 1]; None for the average of all batches.
        affine: learn a `weight` and a `bias` per channel.
        track_running_stats: keep running statistics. Without them evaluation uses those of the batch.
        bias: learn `bias`, too, if `affine`.
        sync: compute the statistics over the batches of all ranks, weighted by their numbers of values.
        process_group: the ranks to synchronize over; None for all.
    """

    before_last: dict[str, Tensor] | None = None
    # Whether running statistics are averages over batches, so that momentum=None makes them plain averages.
    averages_batches = True
    # Whether running_var averages the unbiased variance, as torch does; keras and the ONNX standard store the biased.
    stores_unbiased = True
    frozen = False

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        bias: bool = True,
        sync: bool = False,
        process_group: Group = None,
    ) -> None:
        super().__init__(num_features)
        require_eps(self, eps)
        if momentum is not None and not (is_number(momentum) and 0 <= momentum <= 1):
            raise InputError(
                f"{type(self).__name__}(momentum={momentum!r}): momentum is the weight of the newest batch and lies in "
                f"[0, 1]; the default is 0.1, and None averages all batches."
            )
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        self.sync = sync
        require_group(self, process_group)
        self.process_group = process_group
        self.add_affine(weight=affine, bias=affine and bias)
        self.add_running(track_running_stats)

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def add_running(self, tracked: bool) -> None:
        """Registers the running statistics, or None for each."""
        self.register_buffer("running_mean", torch.zeros(self.num_features) if tracked else None)
        self.register_buffer("running_var", torch.ones(self.num_features) if tracked else None)
        self.register_buffer("num_batches_tracked", torch.tensor(0) if tracked else None)

    def freeze(self, frozen: bool = True) -> Self:
        """Normalizes by the running statistics, in training too, and stops updating them.

        Unlike `.eval()`, it persists through `.train()`. The parameters continue to train; `requires_grad_(False)`
        stops them.

        Args:
            frozen: False to undo it.

        Raises:
            InputError: a layer without running statistics.
        """
        if frozen and self.num_batches_tracked is None:
            raise InputError(
                f"{type(self).__name__}.freeze(): the layer keeps no running statistics; build it with "
                f"track_running_stats=True."
            )
        self.frozen = frozen
        return self

    @property
    def uses_batch(self) -> bool:
        """Whether this forward pass normalizes by the statistics of the batch."""
        return (self.training and not self.frozen) or self.lacks_statistics()

    def lacks_statistics(self) -> bool:
        """Whether evaluation uses the statistics of the batch, too."""
        seen = self.num_batches_tracked
        # Test-time adaptation sets the running statistics of trained layers to None.
        return seen is None or getattr(self, "running_mean", seen) is None

    def reset_running_stats(self) -> None:
        """Sets running statistics to their initial values; those of a frozen layer stay."""
        if not self.frozen:
            super().reset_running_stats()

    @property
    def group(self) -> Group:
        """The ranks that share the statistics of this forward pass; None for one rank."""
        return ranks(self.process_group) if self.sync and self.uses_batch else None

    def normalize(self, x: Tensor) -> Tensor:
        if not self.uses_batch:
            return self.normalize_by_running(x)
        group = self.group
        if group is None and not is_traced() and x.numel() == 0:
            return self.normalize_empty(x)
        return self.normalize_by_batch(x, group)

    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        """Normalizes by the statistics of x; x may be empty if other ranks of `group` have samples."""
        raise NotImplementedError

    def normalize_by_running(self, x: Tensor) -> Tensor:
        """`weight (x - running_mean) / sqrt(running_var + eps) + bias`, as one scale and one shift per channel."""
        assert self.running_mean is not None
        assert self.running_var is not None
        scale = (self.running_var + self.eps).rsqrt()
        return scale_per_channel(x, scale if self.weight is None else scale * self.weight, self.running_mean, self.bias)

    def require_several(self, count: int, x: Tensor) -> None:
        """Raises `InputError` if the variance of a channel would be that of a single value, which is always 0."""
        if count == 1:
            raise InputError(
                f"{type(self).__name__} got an input of shape {tuple(x.shape)} to take statistics of: one value per "
                f"channel has no variance. Use batches of at least 2 samples (drop the last, smaller batch), or, where "
                f"there are running statistics, call .eval()."
            )

    def normalize_empty(self, x: Tensor) -> Tensor:
        """Passes an empty batch: running statistics are unchanged, and parameters get a gradient of 0."""
        zero = sum(p.sum() * 0 for p in self.parameters())
        return (affine(x, self.weight, self.bias) + zero).to(x.dtype)

    def before(self) -> dict[str, Tensor]:
        """Copies of the buffers before this batch, for values that a backward pass may recompute.

        When activation checkpointing repeats a forward pass, it gets the copies of the first pass, which has updated
        the buffers since. With several forward passes before a backward pass, all get the copies of the last.
        """
        if in_recomputation() and self.before_last is not None:
            return self.before_last
        buffers = dict(self.named_buffers())
        values = dict(zip(buffers, snapshots([*buffers.values()]), strict=True))
        if not is_transformed():
            self.before_last = values
        return values

    def update(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Updates the running mean and variance with those of a batch.

        Args:
            mean: (C,) mean of the batch.
            var: (C,) biased variance of the batch.
            count: values per channel; with 0, nothing is updated.
        """
        if self.stores_unbiased and count > 1:
            var = var * (count / (count - 1))
        self.move(count, running_mean=mean, running_var=var)

    @torch.no_grad()
    def move(self, count: int | Tensor, **batch: Tensor) -> None:
        """Counts a batch and updates the named buffers with its statistics, if this is a training step.

        NaN and infinite values are skipped, channel by channel: the running statistics stay finite.

        Args:
            count: values per channel; with 0, nothing is updated.
            batch: the statistics of the batch, by the name of the buffer.
        """
        seen = self.num_batches_tracked
        if not self.training or self.frozen or seen is None or not self.track_running_stats:
            return
        if in_recomputation() or is_captured(seen):
            return
        if isinstance(count, int):
            if count == 0:
                return
            seen.add_(1)
        else:
            seen.add_(count > 0)
        for name, value in batch.items():
            running = getattr(self, name)
            step = (value.detach() - running).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
            if not isinstance(count, int):
                step = step * (count > 0)
            if self.momentum is None:
                # A tensor, as reading its value would break a compiled graph.
                running.add_(step / seen.clamp_min(1))
            else:
                running.add_(step, alpha=self.momentum)


def in_recomputation() -> bool:
    """Whether this forward pass runs inside a backward pass, where activation checkpointing repeats it.

    The first pass has updated the running statistics; a second update would count the batch twice.
    """
    # torch has no public way to ask whether autograd is running a backward pass.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def is_captured(buffer: Tensor) -> bool:
    """Whether a transform of `torch.func` is active and the buffer is not one of its arguments.

    A transformed function has no side effects: its layers do not update their running statistics, which the batches of
    `vmap` could not share. Buffers passed by `functional_call` are updated.
    """
    # torch.func has no public names for the active transform and for that of a tensor.
    if not in_torch_func():
        return False
    functorch = torch._C._functorch
    return functorch.maybe_get_level(buffer) != functorch.maybe_current_level()
