"""Filter response normalization with its thresholded linear unit."""

import torch
from torch import Tensor, nn

from normzoo.norms._base import Facts, Norm, Paper, affine, at_least_float32, per_channel, require_positive


class FilterResponseNorm(Norm):
    """Divides each channel of each sample by its root mean square over positions; brings its own activation.

    `y = max(weight x / sqrt(mean(x^2) + eps) + bias, tau)`, the mean over positions

    The maximum with the learned threshold tau (TLU) stands in the place of the network's activation. eps is not
    learned: the paper learns it only where there is a single position.

    Args:
        num_features: number of channels C of the input (N, C, *).
        eps: added to the mean square, in its units.

    Parameters `weight`, `bias` and `tau`, (C,) each; tau is None after `drop_activation`.

    Raises:
        InputError: an input without positions, (N, C), of which only the signs would remain; eps not above 0; an input
            that is not (N, C, *).

    Reference: Saurabh Singh, Shankar Krishnan. Filter Response Normalization Layer: Eliminating Batch Dependence in the
    Training of Deep Neural Networks. 2019. arXiv 1911.09737, equations 1 to 4.
    """

    facts = Facts(
        family="sample",
        formula="y = max(weight x / sqrt(mean(x^2) + eps) + bias, tau)",
        paper=Paper(
            title="Filter Response Normalization Layer: Eliminating Batch Dependence in the Training of Deep Neural "
            "Networks",
            year=2019,
            arxiv="1911.09737",
        ),
        axes=("s",),
        scales=True,
        dense=False,
        brings_activation=True,
    )

    def __init__(self, num_features: int, *, eps: float = 1e-5) -> None:
        super().__init__(num_features)
        require_positive(self, eps=eps)
        self.eps = eps
        self.add_affine()
        self.tau: nn.Parameter | None = nn.Parameter(torch.zeros(num_features))

    def drop_activation(self) -> None:
        self.tau = None

    def normalize(self, x: Tensor) -> Tensor:
        wide = at_least_float32(x)
        positions = tuple(range(2, x.dim()))
        rms = (wide.square().mean(positions, keepdim=True) + self.eps).sqrt()
        y = affine(wide / rms, self.weight, self.bias)
        if self.tau is not None:
            y = torch.maximum(y, per_channel(self.tau, y))
        return y.to(x.dtype)
