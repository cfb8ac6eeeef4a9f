"""Decorrelated batch normalization: ZCA whitening of groups of channels."""

import torch
from torch import Tensor

from normzoo.norms._base import Facts, Paper
from normzoo.norms.whitening._matrices import wider
from normzoo.norms.whitening._whitening import Whitening

# Derivatives of the matrices are exact up to this order.
ORDERS = 3


class DecorrelatedBatchNorm(Whitening):
    """Whitens the channels of each group over the batch: mean 0, variance 1 and no correlations.

    `y = weight (cov + eps I)^(-1/2) (x - mean) + bias`, mean and biased covariance over samples and positions

    Of all whitening matrices, the symmetric root (ZCA) rotates the channels least. Evaluation whitens by the running
    average of the batches' covariances; the authors' code averages the matrices themselves.

    Args:
        num_features: number of channels C of the input (N, C, *).
        num_groups: groups G of d = C / G neighbouring channels; must divide C. None for groups of the largest size
            that divides C, up to the paper's 16 and, as in the authors' code, C / 2: 64 -> 4, 100 -> 10, 16 -> 2. A
            group with more channels than values has directions without variance, which only eps keeps finite.
        eps: added to the variances, in their units.
        momentum: weight of the newest batch in the running statistics, in [0, 1]; None for the average of all batches.
        affine: learn `weight` and `bias`, (C,) each.
        track_running_stats: keep `running_mean`, (C,), and `running_cov` (unbiased), (G, d, d), for evaluation.
        sync: take the statistics over the batches of all ranks, weighted by their counts.

    Raises:
        InputError: one value per channel in training; num_groups does not divide C; an argument out of range; an input
            that is not (N, C, *).

    Reference: Lei Huang, Dawei Yang, Bo Lang, Jia Deng. Decorrelated Batch Normalization. 2018. arXiv 1804.08450,
    algorithms 1 and 2; the gradient is that of `inverse_root`.
    """

    facts = Facts(
        family="whitening",
        formula="y = weight (cov + eps I)^(-1/2) (x - mean) + bias",
        paper=Paper(title="Decorrelated Batch Normalization", year=2018, arxiv="1804.08450"),
        axes=("N", "C/G", "s"),
        centres=True,
        scales=True,
        cancels_bias=True,
        stateful=True,
        train_differs=True,
        syncs=True,
        exceptions={"onnx": "ONNX has no operator for eigenvalues"},
    )

    running_matrix = "running_cov"
    running_cov: Tensor | None

    def largest_group(self) -> int:
        return min(16, max(self.num_features // 2, 1))

    def whitening(self, cov: Tensor) -> Tensor:
        return inverse_root(cov, self.eps)

    def to_average(self, cov: Tensor, matrix: Tensor, count: int) -> Tensor:
        return cov * (count / (count - 1)) if count > 1 else cov

    def evaluation_matrix(self) -> Tensor:
        assert self.running_cov is not None
        return inverse_root(wider(self.running_cov), self.eps)


def inverse_root(cov: Tensor, eps: float) -> Tensor:
    """`W = S^(-1/2)` with `S = cov + eps I`, and derivatives that exist where eigenvalues are equal.

    The gradient of the eigenvectors is infinite there, that of W is not. From `W S W = I`, with `R = S^(1/2)`::

        dW R + R dW = - W dS W

    In the basis of the eigenvectors of S, where R is diagonal, the solution is a division by r_i + r_j. So one step of
    Newton's method, `W <- W - solve(W S W - I)`, with R and the eigenvectors as constants, does not change the
    solution, and has this derivative; each further step makes the next order exact.

    Args:
        cov: (G, d, d), symmetric, in float64.
        eps: the lower bound of the eigenvalues of S, which rounding may violate.
    """
    identity = torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device)
    s = cov + eps * identity
    with torch.no_grad():
        constant = s.detach()  # for forward-mode differentiation, which no_grad does not stop
        # eigh raises for NaN; the steps below make the result NaN.
        finite = constant.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
        values, vectors = torch.linalg.eigh(torch.where(finite, constant, identity))
        roots = values.clamp_min(eps).sqrt()
        inverse = (vectors / roots.unsqueeze(-2)) @ vectors.mT
        sums = roots.unsqueeze(-1) + roots.unsqueeze(-2)
    w = inverse
    for _ in range(ORDERS):
        residual = vectors.mT @ (w @ s @ w - identity) @ vectors
        w = w - vectors @ (residual / sums) @ vectors.mT
    return inverse + (w - w.detach())
