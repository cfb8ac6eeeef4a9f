"""Layer normalization whose gain follows the input instead of being learned."""

from functools import partial

from torch import Tensor

from normzoo.norms._base import Facts, Norm, Paper
from normzoo.norms._checks import require_eps, require_positive, require_variance
from normzoo.norms._ops.blocks import in_blocks
from normzoo.norms._ops.tensors import inverse_root


class AdaNorm(Norm):
    """Normalizes each position over its channels, and damps large values by a gain that has no gradient.

    `y = base_gain (1 - slope z) z`, with `z = (x - mean) / sqrt(var + eps)`, mean and biased variance over channels,
    and (1 - slope z) treated as a constant in the gradient

    Nothing is learned. `base_gain` and `slope` are the paper's C and k. Variance and eps are those of
    `ChannelLayerNorm`; the authors' code takes the unbiased variance and adds eps to the standard deviation.

    With g = base_gain (1 - slope z) dy, the gradient is that of layer normalization with g instead of dy::

        dx = (g - mean(g) - z mean(g z)) / sqrt(var + eps)

    Args:
        num_features: number of channels C of the input (N, C, *).
        base_gain: the gain of small values. The paper chooses it for each data set.
        slope: how much the gain decreases per unit of z; the paper's is 0.1.
        eps: added to the variance, in its units.

    Raises:
        InputError: a single channel, whose variance is 0; an argument not above 0; an input that is not (N, C, *).

    Reference: Jingjing Xu, Xu Sun, Zhiyuan Zhang, Guangxiang Zhao, Junyang Lin. Understanding and Improving Layer
    Normalization. 2019. arXiv 1911.07013, section 4.
    """

    facts = Facts(
        family="sample",
        formula="y = base_gain (1 - slope z) z, with z = (x - mean) / sqrt(var + eps)",
        paper=Paper(title="Understanding and Improving Layer Normalization", year=2019, arxiv="1911.07013"),
        axes=("C",),
        centres=True,
        scales=True,
        zero_mean=False,
        unit_square=False,
        exceptions=dict.fromkeys(
            ("gradcheck", "gradgradcheck", "func-jvp"),
            "the gradient is not that of the output: as in the paper, it treats the gain as a constant",
        ),
    )

    def __init__(self, num_features: int, *, base_gain: float = 1.0, slope: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__(num_features)
        require_positive(self, base_gain=base_gain, slope=slope)
        require_eps(self, eps)
        self.base_gain, self.slope, self.eps = base_gain, slope, eps

    def normalize(self, x: Tensor) -> Tensor:
        require_variance(self, x, self.num_features, per="position", remedy="use more channels, or take NoNorm here")
        formula = partial(damped, base_gain=self.base_gain, slope=self.slope, eps=self.eps)
        gradient = partial(gradient_of_damped, base_gain=self.base_gain, slope=self.slope, eps=self.eps)
        return in_blocks(formula, x, gradient=gradient)


def standardized(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`(x - mean) / std` over channels, and 1 / std."""
    z = x - x.mean(1, keepdim=True)
    inv_std = inverse_root(z.square().mean(1, keepdim=True) + eps)
    return z * inv_std, inv_std


def damped(x: Tensor, *, base_gain: float, slope: float, eps: float) -> Tensor:
    """The layer."""
    z, _ = standardized(x, eps)
    return (base_gain - base_gain * slope * z).detach() * z


def gradient_of_damped(dy: Tensor, x: Tensor, *, base_gain: float, slope: float, eps: float) -> tuple[Tensor]:
    """The gradient of x; see `AdaNorm`."""
    z, inv_std = standardized(x, eps)
    g = (z * (-base_gain * slope)).add_(base_gain).mul_(dy)
    along = (g * z).mean(1, keepdim=True)
    return (g.sub_(g.mean(1, keepdim=True)).sub_(z.mul_(along)).mul_(inv_std),)
