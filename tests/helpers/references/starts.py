"""Where parameters and buffers of a layer of 8 channels start, from the papers."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

# A number, or from the layer's arguments a number or a tensor.
Start = float | Callable[[Mapping[str, Any]], float | Tensor]

# By the name of the tensor, in every layer that has no row of its own.
COMMON: dict[str, Start] = {
    "weight": 1.0,
    "bias": 0.0,
    "running_mean": 0.0,
    "running_var": 1.0,
    "running_scale": 1.0,
    "running_square": 1.0,
    "num_batches_tracked": 0,
    "v": 1.0,  # EvoNorm's
}

STARTS: dict[str, dict[str, Start]] = {
    "MovingAverageBatchNorm": {"squares": 0.0, "products": 0.0},
    "OnlineNorm": {"v": 0.0, "u": 0.0},
    "PowerNorm": {"nu": 0.0},
    "VirtualBatchNorm": {"reference_mean": 0.0, "reference_var": 1.0, "reference_samples": 0},
    "BatchChannelNorm": {"group_weight": 1.0, "group_bias": 0.0},
    "BatchInstanceNorm": {"gate": 1.0},
    "InstanceLayerNorm": {"gate": 0.0},
    "SwitchableNorm": {"mean_weight": 1.0, "var_weight": 1.0},
    "DynamicErf": {"alpha": lambda arguments: arguments["alpha"], "shift": 0.0},
    "DynamicISRU": {"beta": lambda arguments: arguments["beta"]},
    "DynamicTanh": {"alpha": lambda arguments: arguments["alpha"]},
    "LayerScale": {"weight": lambda arguments: arguments["init_values"]},
    "DivisiveNorm": {
        "beta_root": lambda arguments: math.sqrt(1 - arguments["eps"]),
        "gamma_root": lambda arguments: (0.1 * torch.eye(8) + 0.001 / 8 * (1 - torch.eye(8))).sqrt(),
    },
    "FilterResponseNorm": {"tau": 0.0},
    "GlobalResponseNorm": {"weight": 0.0},
    "ScaleNorm": {"weight": math.sqrt(8)},
    "SeeDNorm": {"alpha": 1.0, "beta": 0.0},
    "DecorrelatedBatchNorm": {"running_cov": lambda arguments: torch.eye(8 // (arguments["num_groups"] or 2))},
    "IterativeNorm": {"running_whitening": lambda arguments: torch.eye(8 // (arguments["num_groups"] or 1))},
}


def start(layer: str, tensor: str, arguments: Mapping[str, Any]) -> float | Tensor | None:
    """Where a tensor of a layer starts; None where nobody has said."""
    own = tensor.rpartition(".")[2]
    found = STARTS.get(layer, {}).get(own, COMMON.get(own))
    return found(arguments) if callable(found) else found
