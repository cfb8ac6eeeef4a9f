"""Group normalization with statistics of a window around each position."""

from functools import partial

import torch
from torch import Tensor

from normzoo.errors import InputError
from normzoo.norms._base import Facts, Norm, Paper
from normzoo.norms._checks import require_eps, require_variance
from normzoo.norms._ops.groups import resolve_groups
from normzoo.norms._ops.scale import scale_per_channel
from normzoo.norms._ops.scale_shift import by_position
from normzoo.norms._ops.tensors import at_least_float32, inverse_root, is_traced


class LocalContextNorm(Norm):
    """Normalizes each value by the mean and variance of its group of channels in a window around its position.

    `y = weight (x - mean) / sqrt(var + eps) + bias`, mean and biased variance over the group's channels and the
    window's positions

    Near a border the window is the part inside the image. The authors' code differs: its windows are
    one position off the centre; near a border it uses the statistics of the nearest whole window, and for a window
    wider than the image the unbiased variance; and it has no gradient through the statistics, which this layer has.

    The mean and variance of a group's channels at each position form a table, and those of a window are sums over its
    part of the table. The gradient uses the same sums, as p is in the window of q iff q is in that of p.

    Args:
        num_features: number of channels C of the input (N, C, *).
        window_size: positions along each side of the window, odd. The paper's 227 is for photographs; 9 suits
            images of 32 pixels.
        num_groups: groups G of C / G neighbouring channels; must divide C. None for the default of `GroupNorm`: the
            most groups up to 32 that have at least 4 channels each. The paper takes groups of 2 channels.
        eps: added to the variance, in its units.
        affine: learn `weight` and `bias`, (C,) each.

    Raises:
        InputError: an input without positions, (N, C); a window of one value, whose variance is 0; an argument out of
            range; an input that is not (N, C, *).

    Reference: Anthony Ortiz, Caleb Robinson, Dan Morris, Olac Fuentes, Christopher Kiekintveld, Md Mahmudulla Hassan,
    Nebojsa Jojic. Local Context Normalization: Revisiting Local Normalization. 2019. arXiv 1912.05845, section 3.
    """

    facts = Facts(
        family="sample",
        formula="y = weight (x - mean) / sqrt(var + eps) + bias",
        paper=Paper(title="Local Context Normalization: Revisiting Local Normalization", year=2019, arxiv="1912.05845"),
        axes=("C/G", "s/w"),
        centres=True,
        scales=True,
        zero_mean=False,
        unit_square=False,
        dense=False,
    )

    def __init__(
        self,
        num_features: int,
        *,
        window_size: int = 9,
        num_groups: int | None = None,
        eps: float = 1e-5,
        affine: bool = True,
    ) -> None:
        super().__init__(num_features)
        require_eps(self, eps)
        if isinstance(window_size, bool) or not isinstance(window_size, int) or window_size < 1 or window_size % 2 == 0:
            raise InputError(
                f"LocalContextNorm(window_size={window_size!r}): a window has its position in the middle, so "
                f"window_size must be an odd integer of at least 1; the default is 9."
            )
        self.window_size = window_size
        self.num_groups = resolve_groups(self, num_groups)
        self.eps = eps
        self.affine = affine
        self.add_affine(weight=affine, bias=affine)

    def normalize(self, x: Tensor) -> Tensor:
        if not is_traced():
            values = self.num_features // self.num_groups
            for size in x.shape[2:]:
                values *= min(self.window_size // 2 + 1, size)  # in a corner
            require_variance(self, x, values, per="window", remedy="use larger images, or take fewer groups")
        wide = at_least_float32(x)
        # Each group of a sample as a sample: the tables are (N G, L).
        groups = wide.reshape(x.shape[0] * self.num_groups, self.num_features // self.num_groups, *x.shape[2:])
        z, *_ = by_position(groups, partial(self.rule, sizes=x.shape[2:]))
        z = like(z.reshape(x.shape), x)
        if self.weight is not None:
            z = scale_per_channel(z, self.weight, None, self.bias)
        return z.to(x.dtype)

    def rule(self, mean: Tensor, var: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        dtype = mean.dtype
        # In float64: E[x^2] - E[x]^2 of a window loses digits where its mean is larger than its deviations, as at an
        # edge in the image.
        mean, var = (table.double().reshape(table.shape[0], 1, *sizes) for table in (mean, var))
        share = 1 / window_sums(torch.ones_like(mean[:1]), self.window_size)
        of_window = window_sums(mean, self.window_size) * share
        square = window_sums(var + mean.square(), self.window_size) * share
        inv_std = inverse_root((square - of_window.square()).clamp_min(0) + self.eps)
        return inv_std.flatten(1).to(dtype), (-of_window * inv_std).flatten(1).to(dtype)


def like(y: Tensor, x: Tensor) -> Tensor:
    """y, laid out in memory as x: with its channels last if those of x are."""
    return y if x.is_contiguous() else y.movedim(1, -1).contiguous().movedim(-1, 1)


def window_sums(x: Tensor, window: int) -> Tensor:
    """The sum of x (N, C, *) over the window around each position, with zeros outside of the image.

    Along each axis a product with a band of ones: a position's row has ones where its neighbours are.
    """
    for axis in range(2, x.dim()):
        place = torch.arange(x.shape[axis], device=x.device)
        band = ((place - place.unsqueeze(1)).abs() <= window // 2).to(x.dtype)
        x = (x.movedim(axis, -1) @ band).movedim(-1, axis)
    return x
