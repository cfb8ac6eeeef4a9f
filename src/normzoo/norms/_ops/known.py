"""What code may know of the value of a buffer."""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.weak import WeakTensorKeyDictionary


def is_readable(buffer: Tensor) -> bool:
    """Whether code may depend on the buffer's value: not in a graph, nor where it has none or, in `vmap`, several."""
    return not (
        torch.compiler.is_compiling()
        or buffer.is_meta
        or isinstance(buffer, FakeTensor)
        or torch._C._functorch.is_functorch_wrapped_tensor(buffer)
    )


# Of buffers on other devices, where to read one is to wait for all that has been asked of the device.
KNOWN = WeakTensorKeyDictionary()


def is_positive(buffer: Tensor) -> bool:
    """Whether the number in the buffer is above 0, read again only when something has been written to it."""
    if buffer.device.type == "cpu" or buffer.is_inference():
        return bool(buffer > 0)
    return known_positive(buffer)


def known_positive(buffer: Tensor) -> bool:
    """`is_positive` by what is known of the buffer's present version."""
    version, positive = KNOWN.get(buffer, (None, False))
    if version != buffer._version:
        positive = bool(buffer > 0)
        KNOWN[buffer] = buffer._version, positive
    return positive
