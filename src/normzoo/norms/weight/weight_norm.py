"""Weight normalization."""

import torch
from torch import Tensor

from normzoo.norms._base import Facts, Paper
from normzoo.norms._ops.tensors import at_least_float32
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

    Parameter `weight`, (C,): the lengths; the paper's g.

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

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.add_affine(bias=False)

    def normalize(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        entries = x.shape[1:].numel()

        def rule(mean: Tensor, var: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
            return weight / length(mean, var, entries), torch.zeros_like(mean)

        return by_output(x, rule, self.weight.unsqueeze(1))

    @torch.no_grad()
    def right_inverse(self, w: Tensor) -> Tensor:
        """Returns v and sets the lengths such that the result is w; called when the weight is set."""
        assert self.weight is not None
        self.weight.copy_(torch.linalg.vector_norm(at_least_float32(w).flatten(1), dim=1))
        return w
