"""What a task of one's own needs to train on several ranks as on one."""

import torch
import torch.distributed as dist
from torch import Tensor

from normzoo.norms._ops.ranks import ranks


def mean_over_ranks(loss: Tensor, samples: int) -> Tensor:
    """A rank's loss, scaled such that what distributed training averages is the mean over the samples of all ranks.

    `loss_r n_r R / sum_r n_r`, for R ranks. DDP and FSDP average gradients over ranks, whatever their batches: with 5
    and 3 samples, each of the 3 would count as much as 5/3. Where all ranks have equally many samples, or there is one
    rank, the loss stays what it is, to the bit.

    Every rank must call it in every training step, also one whose batch is empty: its loss counts as 0, with gradients
    of 0, which the others wait for.

    Args:
        loss: this rank's, the mean over its samples.
        samples: how many this rank has.
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
