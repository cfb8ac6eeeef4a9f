"""Group normalization with statistics of a window around each position."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from normzoo.errors import InputError
from normzoo.norms._base import Facts, Norm, Paper, affine, per_channel, plane_sums, require_positive, require_variance
from normzoo.norms._blocks import in_blocks
from normzoo.norms._groups import resolve_groups


class LocalContextNorm(Norm):
    """Normalizes each value by the mean and variance of its group of channels in a window around its position.

    `y = weight (x - mean) / sqrt(var + eps) + bias`, mean and biased variance over the group's channels and the
    window's positions

    Near a border the window holds what of it lies inside the image. The authors' code differs in several ways: there a
    border takes the statistics of the nearest whole window, a window wider than the image the unbiased variance of
    all of it, and no gradient flows through the statistics of a window; here it does.

    With W the sums over windows of n values, z = (x - mean) / std, g = weight dy and sums over the group's channels,
    the gradient goes through W once more, as p lies in the window of q iff q lies in that of p::

        dvar = -sum g z / (2 std^2 n),   dmean = -sum g / (std n) - 2 mean dvar
        dx = g / std + W dmean + 2 x W dvar

    Args:
        num_features: number of channels C of the input (N, C, *).
        window_size: positions along each side of the window, odd. The paper's 227 is for photographs; 9 is for the
            images of 32 pixels that networks are tried on.
        num_groups: groups G of C / G neighbouring channels; must divide C. None for what `GroupNorm` takes: the most
            groups up to 32 that leave at least 4 channels in each. The paper takes groups of 2 channels.
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
        require_positive(self, eps=eps)
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
        values = self.num_features // self.num_groups
        for size in x.shape[2:]:
            values *= min(self.window_size // 2 + 1, size)  # in a corner
        require_variance(self, x, values, per="window", remedy="use larger images, or take fewer groups")
        constants = self.num_groups, self.window_size, self.eps
        gradient = partial(gradient_of_normalized, constants=constants)
        formula = partial(normalized, constants=constants)
        return in_blocks(formula, x, self.weight, self.bias, gradient=gradient)


def measured(x: Tensor, groups: int, window: int, eps: float) -> tuple[Tensor, ...]:
    """x in groups (N, G, C / G, *), less a constant; the means and 1 / std of windows (N, G, 1, *); 1 / their sizes."""
    grouped = x.unflatten(1, (groups, -1))
    # Any constant may be subtracted from a group: so that E[x^2] - E[x]^2 keeps its digits, near the mean.
    grouped = grouped - grouped.detach().mean(tuple(range(2, grouped.dim())), keepdim=True)
    share = 1 / window_sums(torch.ones_like(x[:1, :1]), window)
    mean = window_sums(grouped.mean(2), window) * share
    var = (window_sums(grouped.square().mean(2), window) * share - mean.square()).clamp_min(0)
    return grouped, mean.unsqueeze(2), (var + eps).rsqrt().unsqueeze(2), share


def normalized(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, constants: tuple[int, int, float]) -> Tensor:
    """The layer."""
    grouped, mean, inv_std, _ = measured(x, *constants)
    return affine(((grouped - mean) * inv_std).flatten(1, 2), weight, bias)


def gradient_of_normalized(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, *, constants: tuple[int, int, float]
) -> tuple[Tensor | None, ...]:
    """The gradients of x, weight and bias; see `LocalContextNorm`."""
    grouped, mean, inv_std, share = measured(x, *constants)
    z = (grouped - mean).mul_(inv_std)
    product = z.flatten(1, 2).mul_(dy)
    d_weight = None if weight is None else plane_sums(product).sum(0)
    d_bias = None if bias is None else plane_sums(dy).sum(0)
    if weight is None:
        dz = dy.unflatten(1, grouped.shape[1:3])
    else:
        product *= per_channel(weight, x)
        dz = (dy * per_channel(weight, x)).unflatten(1, grouped.shape[1:3])
    direct = dz * inv_std
    d_var = product.view_as(z).sum(2) * inv_std.squeeze(2).square() * (-0.5 / grouped.shape[2]) * share
    d_mean = direct.sum(2) * (-1 / grouped.shape[2]) * share - 2 * mean.squeeze(2) * d_var
    window = constants[1]
    d_mean, d_var = (window_sums(d, window).unsqueeze(2) for d in (d_mean, d_var))
    return direct.addcmul_(grouped, d_var, value=2).add_(d_mean).flatten(1, 2), d_weight, d_bias


def window_sums(x: Tensor, window: int) -> Tensor:
    """The sum of x over the window around each position, of which zeros lie outside of the image."""
    for axis in range(2, x.dim()):
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            x = sums_along(x, axis, window)
        else:
            x = SumsAlong.apply(x, axis, window)
    return x


def sums_along(x: Tensor, axis: int, window: int) -> Tensor:
    """The sums along one axis, from those of 1, 2, 4 ... neighbours: a pass per doubling, and nothing cancels."""
    size = x.shape[axis]
    window = min(window, 2 * size - 1)
    sums = F.pad(x, [0, 0] * (x.dim() - 1 - axis) + [window // 2, window // 2])
    result, start, width = None, 0, 1
    while True:  # `sums` holds those of `width` neighbours, `result` those of the first `start`
        if window & width:
            part = sums.narrow(axis, start, size)
            result, start = part if result is None else result + part, start + width
        if start == window:
            assert result is not None
            return result
        left = sums.shape[axis] - width
        sums = sums.narrow(axis, 0, left) + sums.narrow(axis, width, left)
        width *= 2


class SumsAlong(torch.autograd.Function):
    """`sums_along`, which is its own gradient: p lies in the window of q iff q lies in that of p."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: int, window: int) -> Tensor:
        ctx.axis, ctx.window = axis, window
        return sums_along(x, axis, window)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        return SumsAlong.apply(grad_outputs[0], ctx.axis, ctx.window), None, None
