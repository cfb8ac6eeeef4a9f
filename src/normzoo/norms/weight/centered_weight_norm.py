"""Centered weight normalization."""

import torch
from torch import Tensor

from normzoo.norms._base import Facts, Paper
from normzoo.norms._checks import require_variance
from normzoo.norms.weight._weight import WeightTransform, by_output, length


class CenteredWeightNorm(WeightTransform):
    """Subtracts the mean from the weight of each output channel, and splits the rest into length and direction.

    `w = weight (v - mean) / |v - mean|`, mean and norm over all entries of an output channel

    This is `WeightNorm` in the space of weights that sum to zero. The length is learned, as in the paper; its authors'
    code also has a mode that fixes it at sqrt(2). A weight whose entries are all equal becomes zero: |v - mean| is
    clamped to at least 1e-12 (the authors add 1e-5 to it). It never learns, since its length starts at 0, too, and each
    is a factor of the other's gradient: initialize a layer with different values before the norm is attached.

    Attached to a layer, `weight` starts as the length of the layer's centred initial weight.

    Args:
        num_features: number of output channels C of the layer whose weight v, (C, I, *), is normalized.

    Parameter `weight`, (C,): the lengths; the paper's g.

    Raises:
        InputError: one value per output channel, which minus its mean is 0; a weight that is not (C, I, *).

    Reference: Lei Huang, Xianglong Liu, Yang Liu, Bo Lang, Dacheng Tao. Centered Weight Normalization in Accelerating
    Training of Deep Neural Networks. 2017. ICCV.
    """

    facts = Facts(
        family="weight",
        formula="w = weight (v - mean) / |v - mean|",
        paper=Paper(
            title="Centered Weight Normalization in Accelerating Training of Deep Neural Networks",
            year=2017,
        ),
        axes=("s",),
        centres=True,
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
        require_variance(
            self, x, entries, per="output channel", remedy="use a layer of more inputs, or take WeightNorm"
        )

        def rule(mean: Tensor, var: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
            scale = weight / length(torch.zeros_like(mean), var, entries)
            return scale, -mean * scale

        return by_output(x, rule, self.weight.unsqueeze(1))

    @torch.no_grad()
    def right_inverse(self, w: Tensor) -> Tensor:
        """Returns v and sets the lengths such that the result is w; called when the weight is set."""
        assert self.weight is not None
        rows = self.rows(w)
        self.weight.copy_((rows - rows.mean(1, keepdim=True)).norm(dim=1))
        return w
