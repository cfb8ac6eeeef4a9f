"""Values of buffers that outlive the buffers' next move, in compiled graphs too."""

from collections.abc import Sequence

import torch
from torch import Tensor


def snapshot(buffer: Tensor) -> Tensor:
    """The buffer as it is now, without gradient, for a backward pass that comes after it has moved."""
    value = buffer.detach()
    return saved(value) if torch.compiler.is_compiling() else value.clone()


@torch.library.custom_op("normzoo::saved", mutates_args=())
def saved(x: Tensor) -> Tensor:
    """A copy that a compiler saves for the backward pass.

    A custom operator is nothing that it may compute again. Anything else it may: in the backward pass, from running
    statistics that the forward pass has moved meanwhile, and the gradient is silently wrong (torch 2.14 at least;
    see pull request 197039 of pytorch/pytorch).
    """
    return x.clone()


@saved.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def snapshots(buffers: Sequence[Tensor]) -> list[Tensor]:
    """`snapshot` of several buffers, of which the forward pass needs one at least."""
    values = [buffer.detach() for buffer in buffers]
    return saved_together(values) if torch.compiler.is_compiling() else [value.clone() for value in values]


@torch.library.custom_op("normzoo::saved_together", mutates_args=())
def saved_together(xs: Sequence[Tensor]) -> list[Tensor]:
    """`saved`, for values that the backward pass alone needs as well: these a compiler would read there, too late."""
    return [x.clone() for x in xs]


@saved_together.register_fake
def _(xs: Sequence[Tensor]) -> list[Tensor]:
    return [torch.empty_like(x) for x in xs]
