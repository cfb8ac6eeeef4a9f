"""Weight standardization."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from normzoo.norms._base import Facts, Norm, Paper
from normzoo.norms._checks import require_eps, require_variance
from normzoo.norms._ops.scale_shift import standardize
from normzoo.norms.weight._weight import WeightTransform, by_output


class WeightStandardization(WeightTransform):
    """Standardizes the weight of each output channel to mean 0 and variance 1.

    `w = (v - mean) / sqrt(var + eps)`, mean and biased variance over all entries of an output channel

    Three conventions are in use; this is the paper's: the biased variance, with eps inside the root. A weight of
    variance 1 multiplies the scale of its input by about the root of its fan-in, so the paper combines it with a norm
    of the output.

    Args:
        num_features: number of output channels C of the layer whose weight v, (C, I, *), is standardized.
        eps: added to the variance, in its units.
        then: the norm that a network adds after the layer; None for the paper's GroupNorm, NoNorm for none.

    Raises:
        InputError: one value per output channel, whose variance is 0; eps below 0; a weight that is not (C, I, *).

    Reference: Siyuan Qiao, Huiyu Wang, Chenxi Liu, Wei Shen, Alan Yuille. Micro-Batch Training with Batch-Channel
    Normalization and Weight Standardization. 2019. arXiv 1903.10520, equations 4 to 7.
    """

    facts = Facts(
        family="weight",
        formula="w = (v - mean) / sqrt(var + eps)",
        paper=Paper(
            title="Micro-Batch Training with Batch-Channel Normalization and Weight Standardization",
            year=2019,
            arxiv="1903.10520",
        ),
        axes=("s",),
        centres=True,
        scales=True,
        folds=True,
        acts_on="weight",
        wants_partner=True,
    )

    def __init__(self, num_features: int, *, eps: float = 1e-5, then: Callable[[int], Norm] | None = None) -> None:
        super().__init__(num_features)
        require_eps(self, eps)
        self.eps = eps
        self.then = then

    def normalize(self, x: Tensor) -> Tensor:
        require_variance(
            self, x, x.shape[1:].numel(), per="output channel", remedy="use a layer of more inputs, or take WeightNorm"
        )
        return by_output(x, partial(standardize, eps=self.eps))
