"""What the laws observe of a layer, and how they compare it."""

import copy
import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from normzoo.errors import InputError

State = dict[str, Tensor]


def outputs_and_gradients(
    f: Callable[[Tensor], Tensor], x: Tensor, parameters: Mapping[str, Tensor], seed: int = 5
) -> State:
    """y, and the gradients of x and the parameters, for a fixed gradient of y."""
    x = x.detach().clone().requires_grad_()
    torch.manual_seed(0)
    y = f(x)
    g = torch.Generator().manual_seed(seed)
    dy = torch.randn(y.shape, generator=g, dtype=torch.float64).to(y.dtype)
    wanted = {"x": x, **parameters}
    found = torch.autograd.grad(y, list(wanted.values()), dy, allow_unused=True, materialize_grads=True)
    return {"output": y.detach(), **{f"gradient of {n}": d for n, d in zip(wanted, found, strict=True)}}


def learned(layer: nn.Module) -> State:
    """The parameters that are not frozen."""
    return {name: p for name, p in layer.named_parameters() if p.requires_grad}


def of_layer(layer: nn.Module, x: Tensor) -> State:
    return outputs_and_gradients(layer, x, learned(layer))


def fresh(layer: nn.Module, x: Tensor) -> Tensor:
    """The layer's output, without a trace in the layer."""
    return copy.deepcopy(layer)(x)


def buffers_of(layer: nn.Module) -> State:
    return {name: buffer.clone() for name, buffer in layer.named_buffers()}


def refusal(layer: nn.Module, x: Tensor, by: type[Exception] = InputError) -> Exception | None:
    """The error with which the layer refuses x; None if it takes x."""
    try:
        y = layer(x)
    except by as error:
        return error
    if y.shape != x.shape:
        raise AssertionError(f"the output of an input of shape {tuple(x.shape)} has the shape {tuple(y.shape)}")
    if not y.isfinite().all():
        raise AssertionError(f"the output of an input of shape {tuple(x.shape)} is not finite")
    return None


def pure(layer: nn.Module) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """The layer as a function of x and its parameters, which leaves the buffers alone; and the parameters."""
    names = [name for name, _ in layer.named_parameters()]

    def f(x: Tensor, *values: Tensor) -> Tensor:
        state = {**dict(zip(names, values, strict=True)), **buffers_of(layer)}
        return functional_call(layer, state, (x,))

    return f, tuple(p.detach().clone().requires_grad_() for p in layer.parameters())


def short(of_torch: torch.dtype | torch.memory_format) -> str:
    """A dtype or a format as people say it."""
    return str(of_torch).removeprefix("torch.")


# Comparisons.


def close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> bool:
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance)


def assert_close(a: Tensor, b: Tensor, what: str = "output", tolerance: float = 1e-9) -> None:
    def message(detail: str) -> str:
        """How far apart, first."""
        off = re.search(r"bsolute difference: (\S+)", detail)
        return f"{what}: off by {float(off[1]):.2g}\n{detail}" if off else f"{what}: {detail}"

    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, check_stride=False, msg=message)


def same_tensors(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def assert_same_buffers(layer: nn.Module, other: nn.Module, tolerance: float = 1e-9) -> None:
    assert_same_results(buffers_of(layer), buffers_of(other), tolerance)


def assert_same_results(a: Mapping[str, Tensor], b: Mapping[str, Tensor], tolerance: float = 1e-9) -> None:
    if a.keys() != b.keys():
        raise AssertionError(f"{sorted(a)} is not {sorted(b)}")
    for name in a:
        assert_close(a[name], b[name], name, tolerance)
