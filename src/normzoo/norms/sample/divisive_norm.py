"""Divisive normalization over channels with learned weights, known as GDN."""

import torch
from torch import Tensor, nn

from normzoo.norms._base import Facts, Norm, Paper
from normzoo.norms._checks import require_eps
from normzoo.norms._ops.blocks import in_blocks


class DivisiveNorm(Norm):
    """Divides each value by the root of a learned positive sum of the squares of all channels at its position.

    `y_i = x_i / sqrt(beta_i + sum_j gamma_ij x_j^2)`, the sum over channels, with `beta = beta_root^2 + eps` and
    `gamma = gamma_root^2`

    The generalized divisive normalization of the paper with the exponents fixed at 2 and 1/2, as in image compression
    (arXiv 1611.01704). Squares keep beta and gamma positive; other implementations clamp them, with a surrogate
    gradient. Initially beta is 1, and gamma is 0.1 on its diagonal, as usual, and 0.001 / C elsewhere: at 0 a square
    has no gradient, and channels would never learn to divide each other.

    With d = beta + gamma x^2 and s = 1 / sqrt(d), the gradient is, in matrices over channels::

        dd = -dy x s^3 / 2,   dx = dy s + 2 x gamma' dd,   dgamma = dd (x^2)',   dbeta = sum dd

    Args:
        num_features: number of channels C of the input (N, C, *).
        eps: the least beta, in units of x^2.

    Parameters `beta_root`, (C,), and `gamma_root`, (C, C).

    Raises:
        InputError: eps below 0; an input that is not (N, C, *).

    Reference: Johannes Balle, Valero Laparra, Eero P. Simoncelli. Density Modeling of Images using a Generalized
    Normalization Transformation. 2015. arXiv 1511.06281, section 2.
    """

    facts = Facts(
        family="sample",
        formula="y_i = x_i / sqrt(beta_i + sum_j gamma_ij x_j^2)",
        paper=Paper(
            title="Density Modeling of Images using a Generalized Normalization Transformation",
            year=2015,
            arxiv="1511.06281",
        ),
        axes=("C",),
    )

    def __init__(self, num_features: int, *, eps: float = 1e-5) -> None:
        super().__init__(num_features)
        require_eps(self, eps)
        self.eps = eps
        self.beta_root = nn.Parameter(torch.full((num_features,), max(1 - eps, 0) ** 0.5))
        gamma = torch.full((num_features, num_features), 0.001 / num_features).fill_diagonal_(0.1)
        self.gamma_root = nn.Parameter(gamma.sqrt_())

    @property
    def beta(self) -> Tensor:
        """(C,), positive."""
        return self.beta_root.square() + self.eps

    @property
    def gamma(self) -> Tensor:
        """(C, C), positive; row i has the weights of the squares that divide channel i."""
        return self.gamma_root.square()

    def normalize(self, x: Tensor) -> Tensor:
        return in_blocks(divided, x, self.beta, self.gamma, gradient=gradient_of_divided)


def as_volume(x: Tensor) -> Tensor:
    """(N, C, *) -> (N, C, L)."""
    return x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)


def inverse_root(flat: Tensor, beta: Tensor, gamma: Tensor) -> Tensor:
    """`1 / sqrt(beta + gamma x^2)` of x (N, C, L)."""
    return torch.matmul(gamma, flat.square()).add(beta.unsqueeze(1)).rsqrt()


def divided(x: Tensor, beta: Tensor, gamma: Tensor) -> Tensor:
    """The layer."""
    flat = as_volume(x)
    return (flat * inverse_root(flat, beta, gamma)).view(x.shape)


def gradient_of_divided(dy: Tensor, x: Tensor, beta: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, beta and gamma; see `DivisiveNorm`."""
    flat, dy = as_volume(x), as_volume(dy)
    s = inverse_root(flat, beta, gamma)
    direct = dy * s
    d_d = (direct * flat).mul_(s.square_()).mul_(-0.5)
    d_gamma = torch.matmul(d_d, flat.square().mT).sum(0)
    dx = direct.addcmul_(flat, torch.matmul(gamma.T, d_d), value=2)
    return dx.view(x.shape), d_d.sum((0, 2)), d_gamma
