"""No normalization, for comparison."""

from torch import Tensor

from normzoo.norms._base import Facts, Norm


class NoNorm(Norm):
    """Returns its input.

    `y = x`

    Args:
        num_features: number of channels C of the input (N, C, *).

    Raises:
        InputError: an input that is not (N, C, *).
    """

    facts = Facts(family="pointwise", formula="y = x", folds=True)

    def normalize(self, x: Tensor) -> Tensor:
        return x
