"""Batch normalization whose statistics, scale and shift are constants."""

from typing import Any

import torch
from torch import Tensor

from normzoo.norms._base import Facts, Norm, Paper
from normzoo.norms._checks import require_eps
from normzoo.norms._ops.scale import scale_per_channel


class FrozenBatchNorm(Norm):
    """Normalizes each channel by constants, as a trained `BatchNorm` does in evaluation.

    `y = weight (x - running_mean) / sqrt(running_var + eps) + bias`, in training and evaluation alike

    All four are buffers, as in `torchvision.ops.FrozenBatchNorm2d`; a state_dict loads from one into the other. That of
    a `BatchNorm` loads too, without its `num_batches_tracked`. To unfreeze a layer later, or to train its scale and
    shift, use `BatchNorm` and `freeze()`.

    Args:
        num_features: number of channels C of the input (N, C, *).
        eps: added to the variance, in its units.

    Buffers `weight`, `bias`, `running_mean`, `running_var`: (C,) each; ones, zeros, zeros and ones before a state is
    loaded.

    Raises:
        InputError: eps below 0; an input that is not (N, C, *).

    Reference: Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun. Deep Residual Learning for Image Recognition. 2015.
    arXiv 1512.03385, appendix A, where the layers of Ioffe & Szegedy are fixed for object detection.
    """

    facts = Facts(
        family="batch",
        formula="y = weight (x - running_mean) / sqrt(running_var + eps) + bias",
        paper=Paper(title="Deep Residual Learning for Image Recognition", year=2015, arxiv="1512.03385"),
        constants=("weight", "bias", "running_mean", "running_var"),
        folds=True,
    )

    weight: Tensor  # type: ignore[assignment]  # buffers, not parameters
    bias: Tensor  # type: ignore[assignment]
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(num_features)
        require_eps(self, eps)
        self.eps = eps
        for name in ("weight", "running_var"):
            self.register_buffer(name, torch.ones(num_features))
        for name in ("bias", "running_mean"):
            self.register_buffer(name, torch.zeros(num_features))

    def normalize(self, x: Tensor) -> Tensor:
        return scale_per_channel(x, self.weight * (self.running_var + self.eps).rsqrt(), self.running_mean, self.bias)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *others)
