"""Iterative normalization: whitening by a few of Newton's iterations."""

import torch
from torch import Tensor

from normzoo.norms._base import Facts, Paper
from normzoo.norms._checks import require_count
from normzoo.norms.whitening._matrices import wider
from normzoo.norms.whitening._whitening import Whitening


class IterativeNorm(Whitening):
    """Whitens the channels of each group approximately, by iterations towards the inverse root of the covariance.

    `y = weight P_T (x - mean) / sqrt(tr S) + bias` with `S = cov + eps I`, `P_0 = I` and
    `P_k+1 = (3 P_k - P_k^3 S / tr S) / 2`, mean and biased covariance over samples and positions

    P_T / sqrt(tr S) converges to S^(-1/2), the matrix of `DecorrelatedBatchNorm`. Directions of large variance converge
    first, those of small variance hardly change. This needs no eigenvalues and is more stable in small batches. As in
    the authors' code, evaluation multiplies by a running average of the matrices.

    Args:
        num_features: number of channels C of the input (N, C, *).
        num_groups: groups G of d = C / G neighbouring channels; must divide C. None for groups of the largest size up
            to the authors' 64 that divides C: 64 -> 1, 100 -> 2, 256 -> 4.
        iterations: T; the authors' 5.
        eps: added to the variances, in their units.
        momentum: weight of the newest batch in the running statistics, in [0, 1]; None for the average of all batches.
        affine: learn `weight` and `bias`, (C,) each.
        track_running_stats: keep `running_mean`, (C,), and `running_whitening`, (G, d, d), for evaluation.
        sync: take the statistics over the batches of all ranks, weighted by their counts.

    Raises:
        InputError: one value per channel in training; num_groups does not divide C; an argument out of range; an input
            that is not (N, C, *).

    Reference: Lei Huang, Yi Zhou, Fan Zhu, Li Liu, Ling Shao. Iterative Normalization: Beyond Standardization towards
    Efficient Whitening. 2019. arXiv 1904.03441, algorithm 1.
    """

    facts = Facts(
        family="whitening",
        formula="y = weight P_T (x - mean) / sqrt(tr S) + bias, P_T by Newton's iterations towards (S / tr S)^(-1/2)",
        paper=Paper(
            title="Iterative Normalization: Beyond Standardization towards Efficient Whitening",
            year=2019,
            arxiv="1904.03441",
        ),
        axes=("N", "C/G", "s"),
        centres=True,
        scales=True,
        unit_square=False,
        cancels_bias=True,
        stateful=True,
        train_differs=True,
        syncs=True,
    )

    running_matrix = "running_whitening"
    running_whitening: Tensor | None

    def __init__(
        self,
        num_features: int,
        *,
        num_groups: int | None = None,
        iterations: int = 5,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        sync: bool = False,
    ) -> None:
        super().__init__(
            num_features,
            num_groups=num_groups,
            eps=eps,
            momentum=momentum,
            affine=affine,
            track_running_stats=track_running_stats,
            sync=sync,
        )
        require_count(self, 1, iterations=iterations)
        self.iterations = iterations

    def largest_group(self) -> int:
        return 64

    def whitening(self, cov: Tensor) -> Tensor:
        identity = torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device)
        s = cov + self.eps * identity
        trace = (s * identity).sum((-2, -1), keepdim=True)
        # q = p S / tr S is iterated, too: computing it from p would amplify rounding in every iteration.
        p, q = identity.expand_as(s), s / trace
        for _ in range(self.iterations):
            step = 1.5 * identity - 0.5 * p @ q
            p, q = step @ p, q @ step
        return p * trace.rsqrt()

    def to_average(self, cov: Tensor, matrix: Tensor, count: int) -> Tensor:
        return matrix

    def evaluation_matrix(self) -> Tensor:
        assert self.running_whitening is not None
        return wider(self.running_whitening)
