"""Helpers on tensors of shape (N, C, *): broadcasting, precision and the order of axes."""

import torch
from torch import Tensor


def per_channel(v: Tensor, x: Tensor) -> Tensor:
    """Views a vector (C,) such that it broadcasts against x of shape (N, C, *).

    As a table (N, C): so its gradient is summed within planes first, which compiled is several times faster than over
    samples and positions at once.
    """
    return per_plane(v.expand(len(x), -1), x)


def per_plane(table: Tensor, x: Tensor) -> Tensor:
    """Views a table (N, C) such that it broadcasts against x of shape (N, C, *)."""
    return table.view(*table.shape, *[1] * (x.dim() - 2))


def plane_sums(x: Tensor) -> Tensor:
    """The sum of each plane of x (N, C, *): a table (N, C), in memory of its own."""
    return x.clone() if x.dim() == 2 else x.flatten(2).sum(2)


def affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """`weight x + bias` per channel, either of them absent."""
    if weight is not None:
        x = x * per_channel(weight, x)
    if bias is not None:
        x = x + per_channel(bias, x)
    return x


def at_least_float32(x: Tensor) -> Tensor:
    """x in the dtype in which statistics are computed: float64 stays, everything narrower becomes float32."""
    return x if x.dtype == torch.float32 else x.to(torch.promote_types(x.dtype, torch.float32))


def in_one_precision(*tensors: Tensor | None) -> list[Tensor | None]:
    """An input and parameters as torch's kernels take them together: all in float64 if any of them is."""
    if any(t is not None and t.dtype == torch.float64 for t in tensors):
        return [None if t is None else t.double() for t in tensors]
    return list(tensors)


def positions_first(x: Tensor) -> Tensor:
    """(N, C, *) -> (N, *, C): a view, free for a channels-last tensor."""
    return x.movedim(1, -1)


def channels_second(x: Tensor, like: Tensor) -> Tensor:
    """(N, *, C) -> (N, C, *), laid out in memory as `like` was."""
    x = x.movedim(-1, 1)
    if like.is_contiguous():
        return x.contiguous()
    return x
