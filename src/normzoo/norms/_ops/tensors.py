"""Helpers on tensors of shape (N, C, *): broadcasting, precision, order of axes; and who runs the code."""

from contextlib import AbstractContextManager, nullcontext
from functools import reduce

import torch
from torch import Tensor
from torch.autograd import forward_ad


def per_channel(v: Tensor, x: Tensor) -> Tensor:
    """Views a vector (C,) so that it broadcasts against x of shape (N, C, *).

    The vector is expanded to a table (N, C) first: then its gradient is summed over positions before samples, which is
    several times faster in compiled code than summing over both at once.
    """
    return per_plane(v.expand(x.shape[0], -1), x)


def per_plane(table: Tensor, x: Tensor) -> Tensor:
    """Views a table (N, C) so that it broadcasts against x of shape (N, C, *)."""
    return table.view(*table.shape, *[1] * (x.dim() - 2))


def plane_sums(x: Tensor) -> Tensor:
    """Sums each plane of x (N, C, *): a new table (N, C)."""
    return x.clone() if x.dim() == 2 else x.flatten(2).sum(2)


def affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """`weight x + bias` per channel; either may be None."""
    if weight is not None:
        x = x * per_channel(weight, x)
    if bias is not None:
        x = x + per_channel(bias, x)
    return x


def at_least_float32(x: Tensor) -> Tensor:
    """Converts x to the dtype of statistics: float64 is kept, narrower dtypes become float32."""
    return x if x.dtype == torch.float32 else x.to(torch.promote_types(x.dtype, torch.float32))


def inverse_root(square: Tensor) -> Tensor:
    """`1 / sqrt(square)`; the gradient of `rsqrt` is its cube, which underflows in float32 for a root above 1e12."""
    return square.sqrt().reciprocal()


def in_one_precision(*tensors: Tensor | None) -> list[Tensor | None]:
    """Converts an input and parameters to one dtype, the widest.

    torch's kernels require it on a GPU. On a CPU they take narrow inputs with float32 parameters, too, but that of
    LayerNorm then rounds the gradients of the parameters.
    """
    dtypes = {t.dtype for t in tensors if t is not None}
    if len(dtypes) == 1:
        return list(tensors)
    widest = reduce(torch.promote_types, dtypes)
    return [None if t is None else t.to(widest) for t in tensors]


def positions_first(x: Tensor) -> Tensor:
    """(N, C, *) -> (N, *, C): a view, free for a channels-last tensor."""
    return x.movedim(1, -1)


def channels_second(x: Tensor, like: Tensor) -> Tensor:
    """(N, *, C) -> (N, C, *), contiguous if `like` is."""
    x = x.movedim(-1, 1)
    if like.is_contiguous():
        return x.contiguous()
    return x


def in_torch_func() -> bool:
    """Whether a transform of `torch.func` is active."""
    return torch._C._are_functorch_transforms_active()  # torch.func has no public name for it


def in_forward_mode() -> bool:
    """Whether forward-mode differentiation is active."""
    return forward_ad._current_level >= 0  # torch has no public name for it


def is_traced() -> bool:
    """Whether `torch.jit.trace` records this code.

    It warns of every size or value that Python branches on, as its graph keeps the branch: there, nothing is checked.
    """
    traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call] # public, but not typed
    return traced


def is_transformed() -> bool:
    """Whether something other than eager reverse-mode differentiation runs this code.

    That is `torch.compile`, `torch.export`, a transform of `torch.func`, forward-mode differentiation,
    `torch.jit.trace`, or `FakeTensorMode`: they transform the plain formula, and cannot use an explicit gradient.
    """
    return (
        torch.compiler.is_compiling()
        or in_torch_func()
        or in_forward_mode()
        or is_traced()
        or torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None  # it has no public name
    )


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context without autocast; the meta device has none, and entering one that changes nothing costs time."""
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)
