"""What layers share that mix statistics of the batch with those of each sample."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from normzoo.norms._ranks import Group, total
from normzoo.norms._running import RunningStatistics, over_samples

# From the means and variances of the planes, (N, C) each, to those of the batch, (C,) each.
OfBatch = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class MixedStatistics(RunningStatistics):
    """A layer that knows the batch's statistics from the batch, or in evaluation from running averages.

    Those of a sample are its own in evaluation as well.
    """

    def normalize_by(self, x: Tensor, of_batch: OfBatch) -> tuple[Tensor, ...]:
        """The layer with the batch's statistics as `of_batch` finds them.

        Returns:
            y like x; the batch's mean and variance, (C,) each.
        """
        raise NotImplementedError

    def require_values(self, x: Tensor, samples: int) -> None:
        """Raises `InputError` where a statistic would be that of a single value; the batch has that many samples."""
        self.require_several(samples * x.shape[2:].numel(), x)

    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        samples = total(len(x), group, x.device)
        self.require_values(x, samples)
        y, mean, var = self.normalize_by(x, partial(over_samples, group=group))
        self.update(mean, var, samples * x.shape[2:].numel())
        return y

    def normalize_by_running(self, x: Tensor) -> Tensor:
        return self.normalize_by(x, self.running)[0]

    def running(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """The running averages, whatever the statistics of this batch."""
        assert self.running_mean is not None
        assert self.running_var is not None
        return self.running_mean, self.running_var
