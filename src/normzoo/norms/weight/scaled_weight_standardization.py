"""Scaled weight standardization."""

import math

from torch import Tensor

from normzoo.norms._base import Facts, Paper
from normzoo.norms._checks import require_eps, require_positive, require_variance
from normzoo.norms._ops.tensors import inverse_root
from normzoo.norms.weight._weight import WeightTransform, by_output

# ReLU of a standard normal value has variance (1 - 1 / pi) / 2.
RELU_GAIN = math.sqrt(2 / (1 - 1 / math.pi))


class ScaledWeightStandardization(WeightTransform):
    """Standardizes the weight of every output channel to the scale at which activations keep their variance.

    `w = weight gamma (v - mean) / sqrt(fan_in var + eps)`, mean and biased variance over the fan_in entries of an
    output channel

    With `gamma` the inverse standard deviation of the nonlinearity's output for standard normal input, the layer's
    output has variance 1 if its input is such an output, and no norm of activations is needed. eps is added to
    `fan_in var`, which is about 1 for any width, as in the paper's own code, which clamps it to at least 1e-4; timm
    adds eps to the variance, which in wide layers is no larger than eps.

    Args:
        num_features: number of output channels C of the layer whose weight v, (C, I, *), is standardized.
        gamma: gain of the nonlinearity before the layer, above 0: sqrt(2 / (1 - 1 / pi)) = 1.7139 for ReLU, 1.7881
            for SiLU, 1.7015 for GELU, 1 for none.
        eps: added to fan_in times the variance, in its units.

    Parameter `weight`, (C,): the gains of the output channels, which start at 1.

    Raises:
        InputError: one value per output channel, whose variance is 0; an argument not above 0; a weight that is not
            (C, I, *).

    Reference: Andrew Brock, Soham De, Samuel L. Smith. Characterizing signal propagation to close the performance gap
    in unnormalized ResNets. 2021. arXiv 2101.08692, section 4.
    """

    facts = Facts(
        family="weight",
        formula="w = weight gamma (v - mean) / sqrt(fan_in var + eps)",
        paper=Paper(
            title="Characterizing signal propagation to close the performance gap in unnormalized ResNets",
            year=2021,
            arxiv="2101.08692",
        ),
        axes=("s",),
        centres=True,
        scales=True,
        unit_square=False,  # its length is gamma
        folds=True,
        acts_on="weight",
    )

    def __init__(self, num_features: int, *, gamma: float = RELU_GAIN, eps: float = 1e-5) -> None:
        super().__init__(num_features)
        require_positive(self, gamma=gamma)
        require_eps(self, eps)
        self.gamma = gamma
        self.eps = eps
        self.add_affine(bias=False)

    def normalize(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        fan_in = x.shape[1:].numel()
        require_variance(self, x, fan_in, per="output channel", remedy="use a layer of more inputs, or take WeightNorm")

        def rule(mean: Tensor, var: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
            scale = weight * self.gamma * inverse_root(fan_in * var + self.eps)
            return scale, -mean * scale

        return by_output(x, rule, self.weight.unsqueeze(1))
