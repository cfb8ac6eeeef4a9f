"""Passes over large inputs on a CPU, a block at a time, so that intermediate values stay in the processor's cache.

Each function takes a *volume*, a contiguous view (N, a, b) of the input; `dim` is the axis that the statistics are
taken over. A *table* has one value per sample and index of the other axis:

=====================  ===========  ===  ==========
statistics             memory       dim  table
=====================  ===========  ===  ==========
over positions         (N, C, L)    2    (N, C)
over positions         (N, L, C)    1    (N, C)
over channels          (N, C, L)    1    (N, L)
over channels          (N, L, C)    2    (N, L)
=====================  ===========  ===  ==========

A chain such as `scale x + shift` then reads and writes memory once instead of once per operation. Memory traffic
dominates the cost of such a layer on a CPU.
"""

import math
import threading
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

from normzoo.norms._ops.tensors import is_transformed

# A quarter of a core's second-level cache: an input, an output and two temporary blocks fit.
BLOCK_BYTES = 1 << 20
# Values of a sheet: the three sheets of a backward pass fit in the cache.
SHEET = 1 << 18
# Up to this many values, the number of calls dominates, not memory traffic.
SMALL = 1 << 14


def stays_plain(x: Tensor) -> bool:
    """Whether a layer computes x by its plain formula and autograd.

    It does so where the code is transformed, see `is_transformed`; for few values; and on devices other than a CPU.
    """
    return is_transformed() or x.numel() <= SMALL or x.device.type != "cpu"


def samples_per_block(x: Tensor) -> int:
    """The number of samples in a block; on other devices than a CPU, all of them."""
    if x.device.type != "cpu":
        return max(len(x), 1)
    return max(BLOCK_BYTES // max(x.shape[1:].numel() * x.element_size(), 1), 1)


def blocks(
    volume: Tensor, *others: Tensor, tables: tuple[Tensor, ...] = (), dim: int = 2
) -> Iterator[tuple[Tensor, ...]]:
    """Matching blocks of volumes and tables, with tables that broadcast against the volume.

    Args:
        volume: (N, a, b).
        others: of the shape of the volume.
        tables: each broadcasts to (N, a) or (N, b).
        dim: the axis of the volume that the tables lack.
    """
    n = samples_per_block(volume)
    places = volume.shape[3 - dim]
    wide = (t.expand(len(volume), places).unsqueeze(dim) for t in tables)
    return zip(*(t.split(n) for t in (volume, *others, *wide)), strict=True)


class Scratch(threading.local):
    """Memory for temporary blocks, reused within a thread.

    If blocks at the end of the heap were freed each time, the C library would return the pages to the system, and each
    large tensor would start with a page fault per 4 KB.
    """

    def __init__(self) -> None:
        self.kept: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Uninitialized memory, valid until the next call with this name; new unless `like` is a plain CPU tensor."""
        if like.device.type != "cpu" or type(like) is not Tensor:
            return like.new_empty(shape)
        size = math.prod(shape)
        kept = self.kept.get((name, like.dtype))
        if kept is None or kept.numel() < size:
            with torch.inference_mode(False):  # inference tensors cannot be written to outside that mode
                kept = torch.empty(size, dtype=like.dtype)
            if size * like.element_size() <= 2 * BLOCK_BYTES:
                self.kept[name, like.dtype] = kept
        return kept[:size].view(shape)


scratch = Scratch()


def joined(parts: list[Tensor], volume: Tensor, dim: int) -> Tensor:
    """Concatenates the tables of the blocks."""
    return torch.cat(parts) if parts else volume.new_zeros(0, volume.shape[3 - dim])


def dot(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """`sum a b`: a table."""
    return torch.mul(a, b, out=scratch.take("product", a.shape, a)).sum(dim)


def sums_and_squares(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """`sum x` and `sum x^2`: two tables."""
    sums, squares = [], []
    for (block,) in blocks(x):
        sums.append(block.sum(dim))
        # A norm needs no temporary memory, but it is fast only along contiguous memory.
        squares.append(torch.linalg.vector_norm(block, dim=2).square() if dim == 2 else dot(block, block, 1))
    return joined(sums, x, dim), joined(squares, x, dim)


def along(v: Tensor, dim: int) -> Tensor:
    """Views a vector so that it broadcasts against a volume, along the axis that is not `dim`."""
    return v.unsqueeze(1) if dim == 2 else v


def sums_and_dots(dy: Tensor, x: Tensor, dim: int, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`sum weight dy` and `sum weight dy x`: two tables. The weight lies along `dim`."""
    sums, dots = [], []
    for dy_, x_ in blocks(dy, x):
        if weight is not None:
            dy_ = torch.mul(dy_, along(weight, 3 - dim), out=scratch.take("weighted", dy_.shape, dy_))
        sums.append(dy_.sum(dim))
        dots.append(dot(dy_, x_, dim))
    return joined(sums, x, dim), joined(dots, x, dim)


def weighted_sums_and_dots(
    dy: Tensor, x: Tensor, scale: Tensor, shift: Tensor, dim: int, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All sums of a gradient with a weight along `dim`, in one pass over memory.

    Returns:
        `sum weight dy` and `sum weight dy x` along `dim`: two tables; `sum dy (scale x + shift)` and `sum dy` along
        every other axis: two vectors.
    """
    sums, dots = [], []
    d_weight, d_bias = torch.zeros_like(weight), torch.zeros_like(weight)
    with torch.autocast(x.device.type, enabled=False):
        for dy_, x_, scale_, shift_ in blocks(dy, x, tables=(scale, shift), dim=dim):
            product = torch.mul(dy_, x_, out=scratch.take("product", x_.shape, x_))
            if dim == 2:
                rows, products = dy_.flatten(0, 1), product.flatten(0, 1)
                sums.append(torch.mv(rows, weight).view(dy_.shape[:2]))
                dots.append(torch.mv(products, weight).view(dy_.shape[:2]))
                d_weight += torch.mv(products.T, scale_.flatten()) + torch.mv(rows.T, shift_.flatten())
                d_bias += rows.sum(0)
            else:
                along_channels = weight.expand(len(dy_), 1, -1)
                sums.append(torch.bmm(along_channels, dy_).squeeze(1))
                dots.append(torch.bmm(along_channels, product).squeeze(1))
                d_weight += torch.addcmul(product.mul_(scale_), dy_, shift_, out=product).sum(2).sum(0)
                d_bias += dy_.sum(2).sum(0)
    return joined(sums, x, dim), joined(dots, x, dim), d_weight, d_bias


def scale_and_shift(
    x: Tensor, scale: Tensor, shift: Tensor, dim: int, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """`weight (scale x + shift) + bias` in new memory: two tables, and two vectors along `dim`."""
    y = torch.empty_like(x)
    for y_, x_, scale_, shift_ in blocks(y, x, tables=(scale, shift), dim=dim):
        torch.mul(x_, scale_, out=y_).add_(shift_)
        if weight is not None:
            y_ *= along(weight, 3 - dim)
        if bias is not None:
            y_ += along(bias, 3 - dim)
    return y


def sheets(vectors: tuple[Tensor, ...], x: Tensor, dim: int) -> Iterator[tuple[slice, list[Tensor]]]:
    """Expands vectors over channels to the channels and positions of a sample, a range of axis 1 at a time.

    With a sheet, all operands of an operation on the whole input are contiguous. With a vector they are not, and an
    operation with three operands falls back to a slow loop.
    """
    _, a, b = x.shape
    step = max(min(SHEET // max(b, 1), a), 1)
    for start in range(0, a, step):
        part = slice(start, min(start + step, a))
        places = (v[part] for v in vectors) if dim == 2 else vectors
        shape = (part.stop - part.start, b)
        yield part, [scratch.take(f"sheet {i}", shape, x).copy_(v.unsqueeze(dim - 1)) for i, v in enumerate(places)]


def scale_and_shift_channels(x: Tensor, scale: Tensor, shift: Tensor, dim: int) -> Tensor:
    """`scale x + shift`, vectors (C,), in new memory."""
    y = torch.empty_like(x)
    for part, (scale_, shift_) in sheets((scale, shift), x, dim):
        torch.addcmul(shift_, x[:, part], scale_, out=y[:, part])
    return y


def combine_channels(dy: Tensor, x: Tensor, scale: Tensor, slope: Tensor, constant: Tensor, dim: int) -> Tensor:
    """`scale dy + slope x + constant`, vectors (C,), in new memory."""
    dx = torch.empty_like(x)
    for part, (scale_, slope_, constant_) in sheets((scale, slope, constant), x, dim):
        torch.addcmul(constant_, x[:, part], slope_, out=dx[:, part]).addcmul_(dy[:, part], scale_)
    return dx


def centre_scale_shift(x: Tensor, centre: Tensor | None, scale: Tensor, shift: Tensor | None, dim: int) -> Tensor:
    """`scale (x - centre) + shift` in new memory: three tables or vectors over channels."""
    y = torch.empty_like(x)
    zero = scale.new_zeros(())
    tables = (scale, zero if centre is None else centre, zero if shift is None else shift)
    for y_, x_, scale_, centre_, shift_ in blocks(y, x, tables=tables, dim=dim):
        if centre is None:
            torch.mul(x_, scale_, out=y_)
        else:
            torch.sub(x_, centre_, out=y_).mul_(scale_)
        if shift is not None:
            y_ += shift_
    return y


def combine(
    dy: Tensor, x: Tensor, scale: Tensor, slope: Tensor, constant: Tensor, dim: int, weight: Tensor | None = None
) -> Tensor:
    """`scale weight dy + slope x + constant` in new memory: three tables, and the weight along `dim`."""
    dx = torch.empty_like(x)
    for dx_, dy_, x_, scale_, slope_, constant_ in blocks(dx, dy, x, tables=(scale, slope, constant), dim=dim):
        if weight is not None:
            dy_ = torch.mul(dy_, along(weight, 3 - dim), out=scratch.take("weighted", dy_.shape, dy_))
        torch.mul(x_, slope_, out=dx_).add_(constant_).addcmul_(dy_, scale_)
    return dx


def as_volume(x: Tensor) -> tuple[Tensor, bool]:
    """Views (N, C, *) as (N, C, L), or as (N, L, C) if the channels of a position are adjacent in memory.

    Returns:
        the volume, a copy if x has neither layout; and whether its channels are last.
    """
    if x.dim() == 2:
        return x.contiguous().unsqueeze(1), True
    if x.is_contiguous() and x.shape[2:].numel() > 1:
        return x.flatten(2), False
    last = x.movedim(1, -1)
    if last.is_contiguous():
        return last.reshape(len(x), x.shape[2:].numel(), x.shape[1]), True
    return x.contiguous().flatten(2), False


def regrouped(rows: Tensor) -> Tensor:
    """Views rows (N, L, C) with few positions as (M / k, k, C), so that a pass sums k rows at a time."""
    n, positions, channels = rows.shape
    if positions >= 16 or n * positions == 0:
        return rows
    most = max(BLOCK_BYTES // (channels * rows.element_size()), 1)
    return rows.view(-1, largest_divisor(n * positions, most), channels)


@cache
def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of a number up to `most`; the number itself if it has only tiny divisors."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    best = max(d for d in (*small, *(number // d for d in small)) if d <= most)
    return best if best >= 16 else number


def channels_second(volume: Tensor, dim: int) -> Tensor:
    """A volume whose statistics run over positions, as (N, C, L)."""
    return volume.movedim(2, 1) if dim == 1 else volume


def restore(volume: Tensor, like: Tensor, channels_last: bool) -> Tensor:
    """The inverse of `as_volume`, in the shape of `like`."""
    if not channels_last:
        return volume.view(like.shape)
    return volume.view(len(like), *like.shape[2:], like.shape[1]).movedim(-1, 1)
