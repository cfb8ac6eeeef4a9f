"""Instance-layer normalization: a learned gate between instance norm and layer norm per channel."""

import math

import torch
from torch import Tensor, nn

from normzoo.norms._base import Facts, Norm, Paper
from normzoo.norms._checks import require_eps, require_variance
from normzoo.norms._ops.scale_shift import about, by_plane
from normzoo.norms._ops.tensors import inverse_root
from normzoo.norms.mixed._mixed import to_unit_interval


class InstanceLayerNorm(Norm):
    """Mixes instance norm and layer norm by a gate per channel, which learns how much the other channels matter.

    `y = weight (gate x_I + (1 - gate) x_L) + bias`, x_I normalized over positions, x_L over channels and positions

    The gate stays in [0, 1]: the forward pass clips it, with the gradient of `BatchInstanceNorm`, under DDP by each
    rank's own part. Variances are biased, as in the equations; the authors' code takes unbiased ones. The paper's
    AdaLIN is this layer with a weight and a bias that another network computes.

    Args:
        num_features: number of channels C of the input (N, C, *).
        eps: added to the variances, in their units.
        affine: learn `weight` and `bias`, (C,) each.

    Parameter `gate`: (C,), which starts at 0, as `LayerNorm`, like the paper's layers that upsample; it calls the gate
    rho.

    Raises:
        InputError: an input without positions, (N, C); a single position, whose variance is 0; eps below 0; an
            input that is not (N, C, *).

    Reference: Junho Kim, Minjae Kim, Hyeonwoo Kang, Kwanghee Lee. U-GAT-IT: Unsupervised Generative Attentional
    Networks with Adaptive Layer-Instance Normalization for Image-to-Image Translation. 2019. arXiv 1907.10830.
    """

    facts = Facts(
        family="mixed",
        formula="y = weight (gate x_I + (1 - gate) x_L) + bias",
        paper=Paper(
            title="U-GAT-IT: Unsupervised Generative Attentional Networks with Adaptive Layer-Instance Normalization "
            "for Image-to-Image Translation",
            year=2019,
            arxiv="1907.10830",
        ),
        axes=("C", "s"),
        centres=True,
        scales=True,
        dense=False,
        gates=("gate",),
    )

    def __init__(self, num_features: int, *, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(num_features)
        require_eps(self, eps)
        self.eps = eps
        self.affine = affine
        self.gate = nn.Parameter(torch.zeros(num_features))
        self.add_affine(weight=affine, bias=affine)

    def normalize(self, x: Tensor) -> Tensor:
        remedy = "use larger images or fewer strides, or take LayerNorm"
        require_variance(self, x, math.prod(x.shape[2:]), per="channel", remedy=remedy)
        gate = to_unit_interval(self.gate, None)
        return by_plane(x, self.rule, gate, weight=self.weight, bias=self.bias)[0]

    def rule(self, mean: Tensor, var: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        of_layer = mean.mean(1, keepdim=True)
        var_of_layer = (var + (mean - of_layer).square()).mean(1, keepdim=True)
        layer, instance = (inverse_root(v + self.eps) for v in (var_of_layer, var))
        return about(mean, layer + gate * (instance - layer), (1 - gate) * layer * (mean - of_layer))
