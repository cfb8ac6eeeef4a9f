"""Mean-only batch normalization."""

import math
from functools import partial

import torch
from torch import Tensor

from normzoo.errors import InputError
from normzoo.norms._base import Facts, Paper
from normzoo.norms._ops.ranks import Group, total
from normzoo.norms._ops.running import RunningStatistics, over_samples
from normzoo.norms._ops.scale import scale_per_channel
from normzoo.norms._ops.scale_shift import by_plane


class MeanOnlyBatchNorm(RunningStatistics):
    """Subtracts from each channel its mean over the batch, and learns a shift, but does not normalize the scale.

    `y = x - mean + bias`, the mean over samples and positions

    The paper combines it with weight normalization, which sets the scale, and learns no scale, as here. It gives no
    momentum; implementations average over 10 to 1000 batches.

    Args:
        num_features: number of channels C of the input (N, C, *).
        momentum: weight of the newest batch in the running mean, in [0, 1]; None for the average of all batches.
        affine: learn `bias`, (C,); there is no `weight`.
        track_running_stats: keep `running_mean`, (C,), for evaluation.
        sync: take the mean over the batches of all ranks, weighted by their counts.

    Raises:
        InputError: one value per channel in training, which is its own mean; an argument out of range; an input that
            is not (N, C, *).

    Reference: Tim Salimans, Diederik P. Kingma. Weight Normalization: A Simple Reparameterization to Accelerate
    Training of Deep Neural Networks. 2016. arXiv 1602.07868, section 4.
    """

    facts = Facts(
        family="batch",
        formula="y = x - mean + bias",
        paper=Paper(
            title="Weight Normalization: A Simple Reparameterization to Accelerate Training of Deep Neural Networks",
            year=2016,
            arxiv="1602.07868",
        ),
        axes=("N", "s"),
        centres=True,
        stateful=True,
        train_differs=True,
        syncs=True,
        folds=True,
    )

    def __init__(
        self,
        num_features: int,
        *,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        sync: bool = False,
    ) -> None:
        super().__init__(
            num_features, momentum=momentum, affine=affine, track_running_stats=track_running_stats, sync=sync
        )
        self.add_affine(weight=False, bias=affine)

    def add_running(self, tracked: bool) -> None:
        self.register_buffer("running_mean", torch.zeros(self.num_features) if tracked else None)
        self.register_buffer("num_batches_tracked", torch.tensor(0) if tracked else None)

    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        count = total(x.numel() // x.shape[1], group, x.device)
        if count == 1:
            raise InputError(
                f"MeanOnlyBatchNorm got an input of shape {tuple(x.shape)}: one value per channel is its own mean, so "
                f"the output would be constant. Use batches of at least 2 samples, or, with running statistics, call "
                f".eval()."
            )
        rule = partial(self.rule, positions=math.prod(x.shape[2:]), group=group)
        y, mean = by_plane(x, rule, bias=self.bias)
        self.move(count, running_mean=mean)
        return y

    def rule(self, mean: Tensor, var: Tensor, positions: int, group: Group) -> tuple[Tensor, ...]:
        mean, _ = over_samples(mean, var, positions, group)
        return torch.ones_like(mean), -mean, mean

    def normalize_by_running(self, x: Tensor) -> Tensor:
        assert self.running_mean is not None
        return scale_per_channel(x, torch.ones_like(self.running_mean), self.running_mean, self.bias)
