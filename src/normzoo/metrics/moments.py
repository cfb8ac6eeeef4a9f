"""Mean and variance of each channel, and how those of parts make those of the whole."""

from typing import NamedTuple

import torch
from torch import Tensor

# Below this many values the calls count, and not the passes over memory.
SMALL = 1 << 16
# Values that are squared at once, and summed in float32.
BLOCK = 1 << 19
# Squares that torch's norm adds up one by one in float32: of 2^20 it loses 1e-3, of so many 3e-5 at worst.
PLANE = 1 << 14
# E[x^2] - E[x]^2 loses log2(1 + mean^2 / var) bits of the 24 that float32 has.
LARGEST_MEAN_SQUARE_OVER_VAR = 16.0


class Moments(NamedTuple):
    """Count, mean and biased variance per channel, in float64."""

    n: Tensor
    """Values per channel: a scalar, or one for each channel."""
    mean: Tensor
    """(C,)"""
    var: Tensor
    """(C,)"""

    @property
    def std(self) -> Tensor:
        """(C,), the root of the biased variance."""
        return self.var.sqrt()

    def unbiased(self) -> "Moments":
        """The same with the variance times `n / (n - 1)`, as torch's running variance has it; NaN where n = 1."""
        share = torch.where(self.n > 1, self.n / (self.n - 1), torch.nan)
        return self._replace(var=self.var * share)


def moments(x: Tensor, axis: int = 1) -> Moments:
    """Count, mean and biased variance of every channel.

    `mean = sum(x) / n`,  `var = sum((x - mean)^2) / n`, over all axes but one

    Large tensors are read once, as sums and sums of squares of blocks, which are then added up in float64; where the
    variance would drown in the square of the mean, they are read again around the mean.

    Args:
        x: any shape, floating or integer; NaN and infinity in a channel are in its moments.
        axis: the axis of the channels.

    Returns:
        Count (a scalar), mean (C,) and variance (C,) in float64; zeros where there is no value.
    """
    axis %= x.dim()
    channels = x.shape[axis]
    count = x.numel() // max(channels, 1)
    x = x.detach()
    if not x.is_floating_point():
        x = x.double()  # float32 holds no integer of more than 24 bits
    elif torch.finfo(x.dtype).bits < 32:
        x = x.float()
    total = torch.tensor(float(count), dtype=torch.float64, device=x.device)
    if count == 0:
        zeros = torch.zeros(channels, dtype=torch.float64, device=x.device)
        return Moments(total, zeros, zeros.clone())
    if x.numel() <= SMALL:
        rows = (x if axis == x.dim() - 1 == 1 else x.movedim(axis, -1).reshape(-1, channels)).double()
        mean = rows.mean(0)
        centred = rows - mean
        return Moments(total, mean, torch.linalg.vecdot(centred, centred, dim=0) / count)
    mean, square = (part / count for part in sums_and_squares(x, axis))
    var = square - mean.square()
    if bool((mean.square() > LARGEST_MEAN_SQUARE_OVER_VAR * var).any()):
        shape = [channels if i == axis else 1 for i in range(x.dim())]
        pivot = mean.to(x.dtype).nan_to_num(0.0, 0.0, 0.0)  # around infinity nothing is left
        offset, square = (part / count for part in sums_and_squares(x - pivot.view(shape), axis))
        mean, var = pivot.double() + offset, square - offset.square()
    return Moments(total, mean, var.clamp_min(0))


def sums_and_squares(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """`sum x` and `sum x^2` of each channel of a large tensor, (C,) in float64: float32 inside a block only."""
    channels_last = x.movedim(axis, -1)
    if channels_last.is_contiguous():
        rows = channels_last.reshape(-1, x.shape[axis])
        blocks = rows.split(max(BLOCK // x.shape[axis], 1))
        sums = torch.stack([block.sum(0) for block in blocks])
        squares = torch.stack([block.square().sum(0) for block in blocks])
    else:
        planes = x.movedim(axis, 1).flatten(2) if x.dim() > 2 else x.movedim(axis, 1).unsqueeze(2)
        sums = planes.sum(2)
        norms = torch.stack([torch.linalg.vector_norm(part, dim=2) for part in planes.split(PLANE, dim=2)])
        squares = norms.double().square().sum(0)
    return sums.double().sum(0), squares.double().sum(0)


@torch.no_grad()
def merge(count: Tensor, mean: Tensor, var: Tensor) -> Moments:
    """The moments of a whole from those of its parts, by Chan's formula.

    `n = sum n_r`,  `mean = sum n_r mean_r / n`,  `var = sum n_r (var_r + (mean_r - mean)^2) / n`

    Args:
        count: (R,) or (R, C), values in each of R parts; a part may be empty.
        mean: (R, C).
        var: (R, C), biased.

    Returns:
        Count (scalar or (C,)), mean (C,) and variance (C,) in float64; zeros where all parts are empty.

    Reference: Tony Chan, Gene Golub, Randall LeVeque. Updating Formulae and a Pairwise Algorithm for Computing Sample
    Variances. 1979. Stanford STAN-CS-79-773, equation 2.1.
    """
    count, mean, var = count.double(), mean.double(), var.double()
    weight = count if count.dim() == mean.dim() else count.unsqueeze(-1)
    empty = weight == 0  # whatever an empty part says of itself, NaN included, does not count
    mean, var = mean.masked_fill(empty, 0), var.masked_fill(empty, 0)
    total = weight.sum(0).clamp_min(1)
    merged = (weight * mean).sum(0) / total
    return Moments(count.sum(0), merged, (weight * (var + (mean - merged).square())).sum(0) / total)
