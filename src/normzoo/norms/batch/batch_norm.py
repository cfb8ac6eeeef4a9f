"""Batch normalization, the project's own, from the paper."""

from torch import Tensor

from normzoo.norms._base import Facts, Paper
from normzoo.norms._ranks import Group
from normzoo.norms._running import RunningStatistics
from normzoo.norms.batch._normalize import batch_norm


class BatchNorm(RunningStatistics):
    """Normalizes each channel by its mean and variance over the batch, and learns a scale and a shift.

    `y = weight (x - mean) / sqrt(var + eps) + bias`, mean and biased variance over samples and positions.

    Parameters, buffers and their meaning are those of `torch.nn.BatchNorm2d`; a state_dict loads from one into the
    other. The gradient is derived by hand in `normzoo.norms.batch._normalize.Normalize`.

    Args:
        num_features: number of channels C of the input (N, C, *).
        eps: added to the variance, in its units.
        momentum: weight of the newest batch in the running statistics, in [0, 1]; None for the average of all batches.
        affine: learn `weight` and `bias`, (C,) each.
        track_running_stats: keep `running_mean` and `running_var` (unbiased), (C,) each, for evaluation.
        sync: take the statistics over the batches of all ranks, weighted by their counts.

    Raises:
        InputError: one value per channel in training; an argument out of range; an input that is not (N, C, *).

    Reference: Sergey Ioffe, Christian Szegedy. Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift. 2015. arXiv 1502.03167, algorithms 1 and 2.
    """

    facts = Facts(
        family="batch",
        formula="y = weight (x - mean) / sqrt(var + eps) + bias",
        paper=Paper(
            title="Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift",
            year=2015,
            arxiv="1502.03167",
        ),
        axes=("N", "s"),
        centres=True,
        scales=True,
        stateful=True,
        train_differs=True,
        syncs=True,
        folds=True,
    )

    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        y, mean, var, count = batch_norm(x, self.weight, self.bias, self.eps, group)
        self.require_several(count, x)
        self.update(mean, var, count)
        return y
