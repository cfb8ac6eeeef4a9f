"""Internal covariate shift, as a difference of gradients."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class InternalCovariateShift(NamedTuple):
    """What a layer's gradient before and after the update of the layers below differ by."""

    l2: Tensor
    """`||G - G'||`, in units of the gradient."""
    relative: Tensor
    """`||G - G'|| / ||G||`."""
    cosine: Tensor
    """`<G, G'> / (||G|| ||G'||)`."""


def internal_covariate_shift(before: Sequence[Tensor], after: Sequence[Tensor]) -> InternalCovariateShift:
    """How much the update of the layers below changes the gradient of a layer.

    `||G - G'||`,  `||G - G'|| / ||G||`,  `<G, G'> / (||G|| ||G'||)`

    G is the gradient of the loss with respect to the layer's weights; G' the same, of the same batch, once the layers
    before it have made their update. For the first layer they are equal: 0, 0 and 1.

    Args:
        before: G, the gradients of the layer's P parameters.
        after: G', of the same shapes.

    Returns:
        Three scalars in float64; relative is NaN where G is 0, cosine where either is.

    Reference: Shibani Santurkar, Dimitris Tsipras, Andrew Ilyas, Aleksander Madry. How Does Batch Normalization Help
    Optimization? 2018. arXiv 1805.11604, definition 2.1.
    """
    g = torch.cat([t.detach().double().flatten() for t in before])
    g_after = torch.cat([t.detach().double().flatten() for t in after])
    l2, size, size_after = (g - g_after).norm(), g.norm(), g_after.norm()
    relative = torch.where(size > 0, l2 / size, torch.nan)
    return InternalCovariateShift(l2, relative, (g @ g_after / (size * size_after)).clamp(-1, 1))
