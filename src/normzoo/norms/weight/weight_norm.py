"""Weight normalization."""

import torch
from torch import Tensor, nn

from normzoo.norms._arguments import checked_axis
from normzoo.norms._base import Facts, Paper
from normzoo.norms.weight._weight import WeightTransform, by_output, length


class WeightNorm(WeightTransform):
    """Splits the weight of every output channel into its length, which is learned, and its direction.

    `w = weight v / |v|`, the norm over all entries of an output channel

    A weight of zeros stays zero: |v| is clamped to at least 1e-12, as in `F.normalize`. It never learns, since its
    length starts at 0, too, and each is a factor of the other's gradient: initialize a layer with other values before
    the norm is attached.

    Attached to a layer, `weight` starts as the length of the layer's initial weight, which does not change.

    Args:
        num_features: number of output channels C of the layer whose weight v, (C, I, *), is normalized.
        dim: the axis of the output channels; 1 for a transposed convolution, None for one length of the whole weight.

    Parameter `weight`, (C,), or (1,) for dim=None: the lengths; the paper's g.

    Raises:
        InputError: a weight that is not (C, I, *).

    Reference: Tim Salimans, Diederik P. Kingma. Weight Normalization: A Simple Reparameterization to Accelerate
    Training of Deep Neural Networks. 2016. arXiv 1602.07868, equation 2.
    """

    facts = Facts(
        family="weight",
        formula="w = weight v / |v|",
        paper=Paper(
            title="Weight Normalization: A Simple Reparameterization to Accelerate Training of Deep Neural Networks",
            year=2016,
            arxiv="1602.07868",
        ),
        axes=("s",),
        scales=True,
        folds=True,
        acts_on="weight",
    )

    weight: nn.Parameter

    def __init__(self, num_features: int, dim: int | None = 0) -> None:
        super().__init__(num_features)
        self.dim = None if dim is None else checked_axis(self, "dim", dim)
        self.weight = nn.Parameter(torch.ones(1 if dim is None else num_features))

    def normalize(self, x: Tensor) -> Tensor:
        v = x.unsqueeze(0) if self.dim is None else x
        entries = v.shape[1:].numel()

        def rule(mean: Tensor, var: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
            return weight / length(mean, var, entries), torch.zeros_like(mean)

        return by_output(v, rule, self.weight.unsqueeze(1)).view_as(x)

    @torch.no_grad()
    def right_inverse(self, w: Tensor) -> Tensor:
        """Returns v and sets the lengths such that the result is w; called when the weight is set."""
        self.weight.copy_(torch.linalg.vector_norm(self.rows(w), dim=1))
        return w
