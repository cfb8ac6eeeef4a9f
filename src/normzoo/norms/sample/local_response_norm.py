"""Local response normalization."""

from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from normzoo.norms._base import Facts, Norm, Paper
from normzoo.norms._checks import require_count, require_positive
from normzoo.norms._ops import cpu as kernels
from normzoo.norms._ops.second_derivatives import gradient_of, needs_autograd
from normzoo.norms._ops.tensors import at_least_float32


class LocalResponseNorm(Norm):
    """Divides each value by a power of the sum of squares of the channels around it, at its position.

    `y = x (offset + scale / size sum(x^2))^-exponent`, the sum over a window of `size` channels

    The window reaches `size // 2` channels down and `(size - 1) // 2` up; beyond the first and the last channel there
    are zeros. scale, exponent and offset are what torch and the paper call alpha, beta and k; of the conventions in
    use this is torch's and Caffe's, which divide alpha by the size. The paper does not, so that its 1e-4 is 5e-4 here.
    The defaults are the paper's: for activations of size 1 they mainly multiply by 2^-0.75.

    Args:
        num_features: number of channels C of the input (N, C, *).
        size: channels in a window.
        scale: weight of the window's mean square, in inverse squared units of x.
        exponent: the power; 0.5 would be that of a standard deviation.
        offset: added to the weighted mean square; with 0 the result of a window of zeros would be undefined.

    Raises:
        InputError: size not a positive integer; scale, exponent or offset not above 0; an input that is not (N, C, *).

    Reference: Alex Krizhevsky, Ilya Sutskever, Geoffrey E. Hinton. ImageNet Classification with Deep Convolutional
    Neural Networks. 2012. Advances in Neural Information Processing Systems 25, section 3.3.
    """

    facts = Facts(
        family="sample",
        formula="y = x (offset + scale / size sum(x^2))^-exponent",
        paper=Paper(title="ImageNet Classification with Deep Convolutional Neural Networks", year=2012),
        axes=("C/w",),
    )

    def __init__(
        self, num_features: int, *, size: int = 5, scale: float = 5e-4, exponent: float = 0.75, offset: float = 2.0
    ) -> None:
        super().__init__(num_features)
        require_count(self, 1, size=size)
        require_positive(self, scale=scale, exponent=exponent, offset=offset)
        self.size, self.scale, self.exponent, self.offset = size, scale, exponent, offset

    def normalize(self, x: Tensor) -> Tensor:
        wide, settings = at_least_float32(x), (self.size, self.scale, self.exponent, self.offset)
        if kernels.stays_plain(x):
            return plain(wide, *settings).to(x.dtype)
        volume, last = kernels.as_volume(wide)
        y: Tensor = Response.apply(volume, 2 if last else 1, *settings)
        return kernels.restore(y, x, last).to(x.dtype)


def plain(x: Tensor, size: int, scale: float, exponent: float, offset: float) -> Tensor:
    """The equation on (N, C, *), differentiable to every order."""
    channels = x.shape[1]
    padded = F.pad(x.square(), (*[0, 0] * (x.dim() - 2), size // 2, (size - 1) // 2))
    sums = reduce(torch.add, (padded.narrow(1, start, channels) for start in range(size)))
    return x * inverse_power(offset + scale / size * sums, exponent)


def inverse_power(d: Tensor, exponent: float) -> Tensor:
    """`d^-exponent`, by vectorized operations where possible: torch.pow is not vectorized."""
    if exponent == 0.75:  # d^-1/2 d^-1/4
        root = d.rsqrt()
        return root * root.sqrt()
    return (d.log() * -exponent).exp()


def window_sums(x: Tensor, down: int, up: int, dim: int, name: str) -> Tensor:
    """The sums over `down` channels before each, itself and `up` after it, in the scratch memory of this name."""
    channels = x.shape[dim]
    sums = kernels.scratch.take(name, x.shape, x).copy_(x)
    for step in range(1, min(down, channels - 1) + 1):
        sums.narrow(dim, step, channels - step).add_(x.narrow(dim, 0, channels - step))
    for step in range(1, min(up, channels - 1) + 1):
        sums.narrow(dim, 0, channels - step).add_(x.narrow(dim, step, channels - step))
    return sums


class Response(torch.autograd.Function):
    """The equation on a volume whose channels lie along dim, and its gradient.

    With d = offset + scale / size sum(x^2), and as channel i is in the window of j exactly if j is in the mirrored
    window of i::

        dx = dy d^-exponent - 2 scale exponent / size x sum'(dy x d^(-exponent - 1)),   sum' over mirrored windows
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, size: int, scale: float, exponent: float, offset: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.dim, ctx.settings = dim, (size, scale, exponent, offset)
        y = torch.empty_like(x)
        for y_, x_ in kernels.blocks(y, x):
            torch.mul(inverse_power(denominator(x_, dim, size, scale, offset), exponent), x_, out=y_)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (dy,), (x,), dim = grad_outputs, ctx.saved_tensors, ctx.dim
        size, scale, exponent, offset = ctx.settings
        if needs_autograd(dy):
            found = gradient_of(lambda x: plain(x.movedim(dim, 1), *ctx.settings), (x,), (True,), dy.movedim(dim, 1))
            return *found, *[None] * 5
        dx = torch.empty_like(x)
        for dx_, dy_, x_ in kernels.blocks(dx, dy.contiguous(), x):
            d = denominator(x_, dim, size, scale, offset)
            power = inverse_power(d, exponent)
            torch.mul(dy_, power, out=dx_)
            of_window = torch.div(dx_, d, out=power).mul_(x_)
            sums = window_sums(of_window, (size - 1) // 2, size // 2, dim, "sums")
            dx_.addcmul_(sums, x_, value=-2 * scale * exponent / size)
        return dx, *[None] * 5


def denominator(x: Tensor, dim: int, size: int, scale: float, offset: float) -> Tensor:
    """d of `Response`, in scratch memory."""
    squares = torch.mul(x, x, out=kernels.scratch.take("squares", x.shape, x))
    return window_sums(squares, size // 2, (size - 1) // 2, dim, "sums").mul_(scale / size).add_(offset)
