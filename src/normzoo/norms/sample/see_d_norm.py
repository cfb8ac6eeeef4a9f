"""Root-mean-square normalization whose gain depends on the input."""

from functools import partial

import torch
from torch import Tensor, nn

from normzoo.norms._base import Facts, Norm, Paper
from normzoo.norms._checks import divisors, require_divisor, require_eps
from normzoo.norms._ops.blocks import in_blocks
from normzoo.norms._ops.tensors import inverse_root, per_channel


class SeeDNorm(Norm):
    """Divides each position by the root mean square of its channels, with a gain computed from the input.

    `y = (alpha tanh(beta . x) + weight) x / sqrt(mean(x^2) + eps)`, product and mean over channels

    It starts as `RMSNorm`. The product uses x itself, so the gain depends on the size of x, which the division removes.
    With several heads, the channels are split into as many neighbouring slices, each with its own product; the root
    mean square is that of all channels.

    Args:
        num_features: number of channels C of the input (N, C, *).
        num_heads: slices of the channels; must divide C. The paper takes 1 for text, and 16 for images. None for the
            largest divisor of C up to 16: 64 -> 16, 100 -> 10, 7 -> 7.
        eps: added to the mean square, in its units.

    Parameters `weight`, `alpha` and `beta`, (C,) each, which start at 1, 1 and 0. The paper's gamma is `weight`. It
    applies weight decay to alpha and beta.

    Raises:
        InputError: num_heads does not divide C; eps below 0; an input that is not (N, C, *).

    Reference: Wenrui Cai, Defa Zhu, Qingjie Liu, Qiyang Min. SeeDNorm: Self-Rescaled Dynamic Normalization. 2025.
    arXiv 2510.22777, section 3.
    """

    facts = Facts(
        family="sample",
        formula="y = (alpha tanh(beta . x) + weight) x / sqrt(mean(x^2) + eps)",
        paper=Paper(title="SeeDNorm: Self-Rescaled Dynamic Normalization", year=2025, arxiv="2510.22777"),
        axes=("C",),
        unit_square=True,
    )

    def __init__(self, num_features: int, *, num_heads: int | None = None, eps: float = 1e-5) -> None:
        super().__init__(num_features)
        require_eps(self, eps)
        if num_heads is None:
            num_heads = max(d for d in divisors(num_features) if d <= 16)
        require_divisor(self, num_heads=num_heads)
        self.num_heads = num_heads
        self.eps = eps
        self.add_affine(bias=False)
        self.alpha = nn.Parameter(torch.ones(num_features))
        self.beta = nn.Parameter(torch.zeros(num_features))

    def normalize(self, x: Tensor) -> Tensor:
        formula = partial(rescaled, heads=self.num_heads, eps=self.eps)
        gradient = partial(gradient_of_rescaled, heads=self.num_heads, eps=self.eps)
        return in_blocks(formula, x, self.weight, self.alpha, self.beta, gradient=gradient)


def over_heads(product: Tensor, heads: int) -> Tensor:
    """The sum over the channels of each head, at each of its channels; with one head, a single sum."""
    if heads == 1:
        return product.sum(1, keepdim=True)
    return product.unflatten(1, (heads, -1)).sum(2).repeat_interleave(product.shape[1] // heads, 1)


def rescaled(x: Tensor, weight: Tensor, alpha: Tensor, beta: Tensor, *, heads: int, eps: float) -> Tensor:
    """The layer."""
    inv_rms = inverse_root(x.square().mean(1, keepdim=True) + eps)
    gate = over_heads(x * per_channel(beta, x), heads).tanh()
    return x * inv_rms * (gate * per_channel(alpha, x) + per_channel(weight, x))


def gradient_of_rescaled(
    dy: Tensor, x: Tensor, weight: Tensor, alpha: Tensor, beta: Tensor, *, heads: int, eps: float
) -> tuple[Tensor, ...]:
    """The gradients of x, weight, alpha and beta.

    With r = 1 / rms, t the gate, g = alpha t + weight the gain and p = dy x r::

        dweight = sum p,   dalpha = sum p t,   dbeta = sum dgate x,   dgate = (1 - t^2) sum_head p alpha
        dx = dy g r + beta dgate - x r^2 mean(p g)
    """
    positions = (0, *range(2, x.dim()))
    inv_rms = inverse_root(x.square().mean(1, keepdim=True) + eps)
    gate = over_heads(x * per_channel(beta, x), heads).tanh()
    p = (dy * x).mul_(inv_rms)
    d_weight = p.sum(positions)
    d_alpha = (p * gate).sum(positions)
    d_gate = over_heads(p * per_channel(alpha, x), heads) * (1 - gate.square())
    gain = (gate * per_channel(alpha, x)).add_(per_channel(weight, x))
    along = p.mul_(gain).mean(1, keepdim=True) * inv_rms.square()
    dx = gain.mul_(inv_rms).mul_(dy).addcmul_(d_gate, per_channel(beta, x)).addcmul_(x, along, value=-1)
    d_beta = torch.mul(x, d_gate, out=p).sum(positions)
    return dx, d_weight, d_alpha, d_beta
