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


def by_head(x: Tensor, *vectors: Tensor, heads: int) -> list[Tensor]:
    """(N, C, *) and vectors (C,) with the channels of a head along an axis of their own: (N, heads, C / heads, *)."""
    return [t.unflatten(1, (heads, -1)) for t in (x, *(per_channel(v, x) for v in vectors))]


def rescaled(x: Tensor, weight: Tensor, alpha: Tensor, beta: Tensor, *, heads: int, eps: float) -> Tensor:
    """The layer."""
    inv_rms = inverse_root(x.square().mean(1, keepdim=True) + eps)
    parts, weight, alpha, beta = by_head(x, weight, alpha, beta, heads=heads)
    gate = (parts * beta).sum(2, keepdim=True).tanh()
    return (parts * (gate * alpha + weight)).flatten(1, 2) * inv_rms


def gradient_of_rescaled(
    dy: Tensor, x: Tensor, weight: Tensor, alpha: Tensor, beta: Tensor, *, heads: int, eps: float
) -> tuple[Tensor, ...]:
    """The gradients of x, weight, alpha and beta.

    With r = 1 / rms, t the gate of a head, g = alpha t + weight the gain and p = dy x r::

        dweight = sum p,   dalpha = sum p t,   dbeta = sum dgate x,   dgate = (1 - t^2) sum_head p alpha
        dx = dy g r + beta dgate - x r^2 mean(p g)
    """
    over = (0, *range(3, x.dim() + 1))
    inv_rms = inverse_root(x.square().mean(1, keepdim=True) + eps).unsqueeze(1)
    parts, weight, alpha, beta = by_head(x, weight, alpha, beta, heads=heads)
    dy = dy.unflatten(1, (heads, -1))
    gate = (parts * beta).sum(2, keepdim=True).tanh()
    p = (dy * parts).mul_(inv_rms)
    d_weight, d_alpha = p.sum(over), (p * gate).sum(over)
    d_gate = (p * alpha).sum(2, keepdim=True) * (1 - gate.square())
    gain = torch.mul(gate, alpha, out=torch.empty_like(p)).add_(weight)
    along = p.mul_(gain).mean((1, 2), keepdim=True) * inv_rms.square()
    dx = gain.mul_(inv_rms).mul_(dy).addcmul_(d_gate, beta).addcmul_(parts, along, value=-1)
    d_beta = torch.mul(parts, d_gate, out=p).sum(over)
    return dx.flatten(1, 2), d_weight.flatten(), d_alpha.flatten(), d_beta.flatten()
