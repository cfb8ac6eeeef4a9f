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

    `y = x (k + alpha / size sum(x^2))^-beta`, the sum over a window of `size` channels

    The window reaches `size // 2` channels down and `(size - 1) // 2` up; beyond the first and the last channel there
    are zeros. Of the conventions in use this is torch's and Caffe's, which divide alpha by the size. The paper does
    not, so that its 1e-4 is 5e-4 here. The defaults are the paper's, where torch has alpha 1e-4, k 1 and no default for
    the size: for activations of size 1 they mainly multiply by 2^-0.75.

    Args:
        num_features: number of channels C of the input (N, C, *).
        size: channels in a window.
        alpha: weight of the window's mean square, in inverse squared units of x.
        beta: the power; 0.5 would be that of a standard deviation.
        k: added to the weighted mean square; with 0 the result of a window of zeros would be undefined.

    Raises:
        InputError: size not a positive integer; alpha, beta or k not above 0; an input that is not (N, C, *).

    Reference: Alex Krizhevsky, Ilya Sutskever, Geoffrey E. Hinton. ImageNet Classification with Deep Convolutional
    Neural Networks. 2012. Advances in Neural Information Processing Systems 25, section 3.3.
    """

    facts = Facts(
        family="sample",
        formula="y = x (k + alpha / size sum(x^2))^-beta",
        paper=Paper(title="ImageNet Classification with Deep Convolutional Neural Networks", year=2012),
        axes=("C/w",),
    )

    def __init__(
        self, num_features: int, size: int = 5, alpha: float = 5e-4, beta: float = 0.75, k: float = 2.0
    ) -> None:
        super().__init__(num_features)
        require_count(self, 1, size=size)
        require_positive(self, alpha=alpha, beta=beta, k=k)
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def normalize(self, x: Tensor) -> Tensor:
        wide, settings = at_least_float32(x), (self.size, self.alpha, self.beta, self.k)
        if kernels.stays_plain(x):
            return plain(wide, *settings).to(x.dtype)
        volume, last = kernels.as_volume(wide)
        y: Tensor = Response.apply(volume, 2 if last else 1, *settings)
        return kernels.restore(y, x, last).to(x.dtype)


def plain(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """The equation on (N, C, *), differentiable to every order."""
    channels = x.shape[1]
    padded = F.pad(x.square(), (*[0, 0] * (x.dim() - 2), size // 2, (size - 1) // 2))
    sums = reduce(torch.add, (padded.narrow(1, start, channels) for start in range(size)))
    return x * inverse_power(k + alpha / size * sums, beta)


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

    With d = k + alpha / size sum(x^2), and as channel i is in the window of j exactly if j is in the mirrored
    window of i::

        dx = dy d^-beta - 2 alpha beta / size x sum'(dy x d^(-beta - 1)),   sum' over mirrored windows
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, size: int, alpha: float, beta: float, k: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.dim, ctx.settings = dim, (size, alpha, beta, k)
        y = torch.empty_like(x)
        for y_, x_ in kernels.blocks(y, x):
            torch.mul(inverse_power(denominator(x_, dim, size, alpha, k), beta), x_, out=y_)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (dy,), (x,), dim = grad_outputs, ctx.saved_tensors, ctx.dim
        size, alpha, beta, k = ctx.settings
        if needs_autograd(dy):
            found = gradient_of(lambda x: plain(x.movedim(dim, 1), *ctx.settings), (x,), (True,), dy.movedim(dim, 1))
            return *found, *[None] * 5
        dx = torch.empty_like(x)
        for dx_, dy_, x_ in kernels.blocks(dx, dy.contiguous(), x):
            d = denominator(x_, dim, size, alpha, k)
            power = inverse_power(d, beta)
            torch.mul(dy_, power, out=dx_)
            of_window = torch.div(dx_, d, out=power).mul_(x_)
            sums = window_sums(of_window, (size - 1) // 2, size // 2, dim, "sums")
            dx_.addcmul_(sums, x_, value=-2 * alpha * beta / size)
        return dx, *[None] * 5


def denominator(x: Tensor, dim: int, size: int, alpha: float, k: float) -> Tensor:
    """d of `Response`, in scratch memory."""
    squares = torch.mul(x, x, out=kernels.scratch.take("squares", x.shape, x))
    return window_sums(squares, size // 2, (size - 1) // 2, dim, "sums").mul_(alpha / size).add_(k)
