"""Unit length of the channels at every position."""

import torch
import torch.nn.functional as F
from torch import Tensor

from normzoo.errors import InputError
from normzoo.norms._base import Facts, Norm, Paper
from normzoo.norms._checks import is_number
from normzoo.norms._ops import cpu as kernels
from normzoo.norms._ops.scale_shift import by_position
from normzoo.norms._ops.tensors import at_least_float32, inverse_root

# The lower bound of the norm, as in `F.normalize`.
SHORTEST = 1e-12


class LpNorm(Norm):
    """Divides each position of each sample by the p-norm of its channels.

    `y = x / |x|_p`, `|x|_p = (sum |x|^p)^(1/p)` over channels

    It has no parameters, and equals `F.normalize`: a position of zeros stays zero, as |x|_p is clamped to at least
    1e-12. The values of y are of the order of C^(-1/p); the paper uses p = 2, followed by a scale per channel that
    starts at 10 or 20.

    Args:
        num_features: number of channels C of the input (N, C, *).
        p: order of the norm, at least 1; `math.inf` (`.inf` on the command line) for the largest absolute value.

    Raises:
        InputError: p below 1; an input that is not (N, C, *).

    Reference: Wei Liu, Andrew Rabinovich, Alexander C. Berg. ParseNet: Looking Wider to See Better. 2015.
    arXiv 1506.04579, section 3.3.
    """

    facts = Facts(
        family="sample",
        formula="y = x / |x|_p",
        paper=Paper(title="ParseNet: Looking Wider to See Better", year=2015, arxiv="1506.04579"),
        axes=("C",),
        scales=True,
        unit_square=False,
    )

    def __init__(self, num_features: int, *, p: float = 2.0) -> None:
        super().__init__(num_features)
        if not is_number(p) or not p >= 1:
            raise InputError(
                f"LpNorm(p={p!r}): p must be a number of at least 1, below which it is no norm; the default "
                f"is 2.0, and math.inf takes the largest absolute value."
            )
        self.p = p

    def normalize(self, x: Tensor) -> Tensor:
        if self.p != 2 or x.dim() == 2 or kernels.stays_plain(x):
            return F.normalize(at_least_float32(x), self.p, dim=1, eps=SHORTEST).to(x.dtype)

        def rule(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
            square = self.num_features * (mean.square() + var)
            return inverse_root(square.clamp_min(SHORTEST**2)), torch.zeros_like(mean)

        return by_position(x, rule)[0]
