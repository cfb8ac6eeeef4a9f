"""Values of buffers: whether code may read them, and copies of them for the backward pass."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from normzoo.norms._ops.tensors import is_traced


def is_readable(buffer: Tensor) -> bool:
    """Whether Python code may branch on the buffer's value.

    It cannot in a compiled or traced graph, for a meta or fake tensor, which has no value, or in `torch.func`, where a
    tensor may hold a batch of values. Of a subclass of Tensor, such as a fake tensor, nothing is known.
    """
    return not (
        torch.compiler.is_compiling()
        or is_traced()
        or buffer.is_meta
        or type(buffer) is not Tensor
        or torch._C._functorch.is_functorch_wrapped_tensor(buffer)  # torch.func has no public test for its tensors
    )


# For buffers on other devices, where reading a value waits for all work queued on the device: version and result.
KNOWN = WeakTensorKeyDictionary()


def is_positive(buffer: Tensor) -> bool:
    """Whether the number in the buffer is above 0; on other devices than a CPU, read again only after a write to it."""
    if buffer.device.type == "cpu" or buffer.is_inference():
        return bool(buffer > 0)
    return known_positive(buffer)


def known_positive(buffer: Tensor) -> bool:
    """`is_positive`, from the result that was stored for the buffer's current version."""
    version, positive = KNOWN.get(buffer, (None, False))
    now = buffer._version  # torch has no public name for the number of writes to a tensor
    if version != now:
        positive = bool(buffer > 0)
        KNOWN[buffer] = now, positive
    return positive


def snapshot(buffer: Tensor) -> Tensor:
    """A copy of the buffer, without gradient, for a backward pass that runs after the buffer has changed."""
    value = buffer.detach()
    return saved(value) if torch.compiler.is_compiling() else value.clone()


def snapshots(buffers: Sequence[Tensor]) -> list[Tensor]:
    """`snapshot` of several buffers, at least one of which the forward pass needs."""
    values = [buffer.detach() for buffer in buffers]
    return saved_together(values) if torch.compiler.is_compiling() else [value.clone() for value in values]


@torch.library.custom_op("normzoo::saved", mutates_args=())
def saved(x: Tensor) -> Tensor:
    """A copy that a compiler saves for the backward pass.

    The compiler does not recompute a custom operator. It may recompute anything else in the backward pass, from running
    statistics that the forward pass has changed since, and the gradient is silently wrong (torch 2.14 at least; see
    pull request 197039 of pytorch/pytorch).
    """
    return x.clone()


@saved.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("normzoo::saved_together", mutates_args=())
def saved_together(xs: Sequence[Tensor]) -> list[Tensor]:
    """`saved`, also for values that only the backward pass needs: a compiler would read those there, too late."""
    return [x.clone() for x in xs]


@saved_together.register_fake
def _(xs: Sequence[Tensor]) -> list[Tensor]:
    return [torch.empty_like(x) for x in xs]
