"""How a quantity changes from layer to layer."""

import torch
from torch import Tensor


def slope(values: Tensor) -> Tensor:
    """The least-squares slope of a quantity against the layer's number: "the deeper, the larger" if above 0.

    `slope = sum (l - mean l)(v_l - mean v) / sum (l - mean l)^2`, over layers l with a finite value

    Args:
        values: (..., L), first layer to last.

    Returns:
        (...) in float64, in units of the values per layer; NaN of fewer than two finite values.
    """
    values = values.detach().double()
    known = values.isfinite()
    layers = torch.arange(values.shape[-1], dtype=torch.float64, device=values.device)
    count = known.sum(-1, keepdim=True)
    centred = torch.where(known, layers - (layers * known).sum(-1, keepdim=True) / count, 0.0)
    values = torch.where(known, values, 0.0)  # centred sums to 0: the mean of the values need not be subtracted
    return (centred * values).sum(-1) / centred.square().sum(-1)  # 0 / 0 is NaN


def growth(norms: Tensor) -> Tensor:
    """The factor by which a gradient grows per layer on its way from the last layer to the first.

    `growth = exp(-slope(ln norm_l))`: above 1 it explodes, below 1 it vanishes, in deep networks

    Args:
        norms: (L,), of the gradients with respect to the outputs of the layers, first layer to last.

    Returns:
        A scalar in float64; NaN of fewer than two norms that are finite and above 0.

    Reference: Greg Yang, Jeffrey Pennington, Vinay Rao, Jascha Sohl-Dickstein, Samuel Schoenholz. A Mean Field Theory
    of Batch Normalization. 2019. arXiv 1902.08129: sqrt(pi / (pi - 1)) = 1.21 for batch norm with ReLU.
    """
    return (-slope(norms.detach().double().log())).exp()
