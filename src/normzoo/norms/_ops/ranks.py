"""Sums over the ranks of distributed training, differentiable to every order; on gloo as well as nccl."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Group = Any  # torch.distributed.ProcessGroup, which builds of torch without distributed do not have


def ranks(group: Group = None) -> Group:
    """The group, by default that of all ranks; or None for a single rank."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1:
        return dist.group.WORLD if group is None else group
    return None


def all_reduce(x: Tensor, group: Group) -> Tensor:
    """The sum over the ranks of a group, differentiable; x itself if `group` is None."""
    return x if group is None else SumOverRanks.apply(x, group)


def total(count: int, group: Group, device: torch.device | None = None) -> int:
    """Sums a count over the ranks of a group."""
    return totals([count], group, device)[0]


def totals(counts: list[int], group: Group, device: torch.device | None = None) -> list[int]:
    """Sums each count over the ranks of a group."""
    if group is None or not counts:
        return counts
    summed = torch.tensor(counts, device=device)
    dist.all_reduce(summed, group=group)
    return [int(count) for count in summed]


def least(count: int, group: Group, device: torch.device | None = None) -> int:
    """The minimum of a count over the ranks of a group."""
    if group is None:
        return count
    smallest = torch.tensor([count], device=device)
    dist.all_reduce(smallest, dist.ReduceOp.MIN, group=group)
    return int(smallest)


def samples_before(count: int, group: Group, device: torch.device | None = None) -> tuple[int, int]:
    """The number of samples on the ranks before this one, and on all ranks of a group."""
    if group is None:
        return 0, count
    counts = torch.zeros(dist.get_world_size(group), dtype=torch.int64, device=device)
    rank = dist.get_rank(group)
    counts[rank] = count
    dist.all_reduce(counts, group=group)
    return int(counts[:rank].sum()), int(counts.sum())


class SumOverRanks(torch.autograd.Function):
    """The sum enters the loss of every rank, so the gradient of a rank's input is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        summed = x.contiguous().clone()
        dist.all_reduce(summed, group=group)
        return summed

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return all_reduce(grad_outputs[0], ctx.group), None
