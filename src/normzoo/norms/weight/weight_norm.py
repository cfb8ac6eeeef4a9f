"""Weight normalization."""

import torch
from torch import Tensor

from normzoo.norms._base import Facts, Paper
from normzoo.norms._ops.tensors import at_least_float32
from normzoo.norms.weight._weight import WeightTransform, by_output, length


class WeightNorm(WeightTransform):
    """Splits the weight of every output channel into its length, which is learned, and its direction.

    `w = weight v / |v|`, the norm over all entries of an output channel

    A weight of zeros, which has no direction, stays zero: |v| counts as 1e-12 at least, as in `F.normalize`. It never
    learns, for its length starts at 0 as well, and each is the factor of the other's gradient: fill a layer with other
    values, be they small, before the norm is attached.

    Attached to a layer, `weight` starts as the length of the layer's initial weight, which therefore stays as it was.

    Args:
        num_features: number of output channels C of the layer whose weight v, (C, I, *), is normalized.

    Parameter `weight`, (C,): the lengths, which the paper calls g.

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
        """Called when the layer is attached, or its weight assigned: the v, and with it the lengths, that give w."""
        assert self.weight is not None
        self.weight.copy_(torch.linalg.vector_norm(at_least_float32(w).flatten(1), dim=1))
        return w
