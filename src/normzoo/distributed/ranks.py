"""The loss of a task on several ranks."""

import torch
import torch.distributed as dist
from torch import Tensor

from normzoo.norms._ops.ranks import ranks


def mean_over_ranks(loss: Tensor, samples: int) -> Tensor:
    """A rank's loss, scaled so that the average that DDP and FSDP take is the mean over the samples of all ranks.

    `loss_r n_r R / sum_r n_r` for R ranks. DDP and FSDP average gradients over ranks, whatever the batch sizes: of 5
    and 3 samples, each of the 3 would count 5/3 times as much. With equal batch sizes, or one rank, the loss is
    unchanged, bit for bit.

    Every rank must call it in every training step, even with an empty batch: its loss is then 0, with gradients of 0,
    which the other ranks wait for.

    Args:
        loss: scalar, the mean over this rank's samples.
        samples: the number of this rank's samples.

    >>> mean_over_ranks(torch.tensor(0.5), 32)  # one rank
    tensor(0.5000)
    """
    group = ranks()
    if group is None:
        return loss
    total = torch.full(
        (), float(samples), dtype=torch.float64 if loss.device.type == "cpu" else None, device=loss.device
    )
    dist.all_reduce(total, group=group)
    if not samples:  # the mean over nothing is NaN
        return loss.nan_to_num() * 0
    return loss * (samples * dist.get_world_size(group) / total).to(loss.dtype)
