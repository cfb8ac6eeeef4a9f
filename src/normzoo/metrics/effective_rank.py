"""How many directions the activations of a layer fill."""

import torch
from torch import Tensor


def effective_rank(x: Tensor, axis: int = 1) -> Tensor:
    """The effective rank of the centred features: the exponential of the entropy of their singular values.

    `rank = exp(-sum_i p_i ln p_i)`,  `p_i = s_i / sum_j s_j`

    k for values spread evenly over k directions; 1 where all lie on a line.

    Args:
        x: (N, C, *); every position of every sample is a row.
        axis: the axis of the features C.

    Returns:
        A scalar in [1, C] in float64; NaN where nothing varies, and where a value is not finite.

    Reference: Olivier Roy, Martin Vetterli. The effective rank: A measure of effective dimensionality. 2007.
    """
    rows = x.detach().movedim(axis, -1).reshape(-1, x.shape[axis]).double()
    if not bool(rows.isfinite().all()) or len(rows) == 0:
        return torch.full((), torch.nan, dtype=torch.float64, device=x.device)
    rows = rows - rows[0]  # exactly 0 where nothing varies, which no rounded mean leaves
    rows = rows - rows.mean(0)
    gram = rows.T @ rows if len(rows) > rows.shape[1] else rows @ rows.T  # the smaller has the same spectrum
    s = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    p = s / s.sum()  # 0 / 0 is NaN
    return torch.special.entr(p).sum().exp()
