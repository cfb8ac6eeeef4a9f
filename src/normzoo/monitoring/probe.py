"""Reads what passes through a running network: the inputs, outputs and output gradients of its modules.

Reading changes nothing. `Probe` is a context manager: its hooks cost nothing once it is closed, and are always removed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from typing import Any, Self

import torch
from torch import Tensor, nn

from normzoo.errors import InputError
from normzoo.monitoring.layers import FED, Layers, find, is_activation, is_compiled, remember_feeds
from normzoo.norms._base import Norm
from normzoo.norms._ops.running import in_recomputation
from normzoo.norms._ops.tensors import in_torch_func

Reader = Callable[[nn.Module, Tensor], Any]
"""Computes a value from a tensor while it is there: it may be overwritten right after."""


@dataclass
class Visit:
    """One pass through a module.

    Args:
        name: of the module.
        module: the module.
        call: the number of passes through it before, since the probe was attached.
        input: the value read from its input.
        output: the value read from its output.
        gradient: the value read from the gradient of the loss with respect to the output; None before the backward
            pass, and where there is no gradient: of a view of the module's own input, as Flatten's, that a later layer
            overwrites.
    """

    name: str
    module: nn.Module
    call: int
    input: Any = None
    output: Any = None
    gradient: Any = None


class Probe:
    """Reads the inputs, outputs and output gradients of modules while a network runs, in the order of execution.

    ::

        with Probe(net, "blocks.*", output=lambda module, y: y.std()) as probe:
            net(x)
        for visit in probe.visits:
            print(visit.name, visit.output)

    It reads the first tensor that a module takes or returns. Readers run without autograd, on detached tensors, at the
    moment the tensor passes, and must not change it. A compiled network runs eagerly while the probe is attached, as
    hooks do not fire in graphs that were compiled without them. Activations that are recomputed in the backward pass
    (checkpointing) are no second visit.

    Args:
        model: any module; inside DistributedDataParallel or torch.compile, the module itself.
        layers: patterns of names, classes, several of both; or modules by name, as `find` returns them.
        input: reads the input: a reader for all layers, or name -> reader.
        output: reads the output, likewise.
        gradient: reads the gradient of the loss with respect to the output, during the backward pass, likewise.

    Attributes:
        visits: a `Visit` for every pass through a module.

    Raises:
        InputError: `layers` matches nothing; a reader for a layer that is not among them; attached while attached.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers | Mapping[str, nn.Module] = Norm,
        *,
        input: Reader | Mapping[str, Reader] | None = None,
        output: Reader | Mapping[str, Reader] | None = None,
        gradient: Reader | Mapping[str, Reader] | None = None,
    ) -> None:
        self.model = model
        self.layers = layers if isinstance(layers, Mapping) else find(model, layers)
        if any(module not in FED and is_activation(module) for module in self.layers.values()):
            remember_feeds(model)
        self.inputs = self.by_module("input", input)
        self.outputs = self.by_module("output", output)
        self.gradients = self.by_module("gradient", gradient)
        self.visits: list[Visit] = []
        self.stack = ExitStack()
        self.attached = False

    def by_module(self, site: str, readers: Reader | Mapping[str, Reader] | None) -> dict[nn.Module, Reader]:
        """The readers of a site."""
        if readers is None:
            return {}
        if not isinstance(readers, Mapping):
            return dict.fromkeys(self.layers.values(), readers)
        for name in readers:
            if name not in self.layers:
                near = get_close_matches(name, self.layers, n=3, cutoff=0.4) or list(self.layers)[:3]
                raise InputError(
                    f"{site}={{{name!r}: ...}} reads a layer that `layers` does not match; give a reader for all "
                    f"layers, or readers by the names of those that it matches: {', '.join(near) or 'none'}."
                )
        return {self.layers[name]: read for name, read in readers.items()}

    def __enter__(self) -> Self:
        if self.attached:
            raise InputError(
                f"Probe of {len(self.layers)} modules: it is already attached; close its with block first, or build a "
                f"second probe."
            )
        self.visits.clear()
        self.open: dict[nn.Module, list[Visit]] = {module: [] for module in self.layers.values()}
        self.calls = dict.fromkeys(self.layers.values(), 0)
        with ExitStack() as stack:
            if is_compiled(self.model):
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            for name, module in self.layers.items():
                before = module.register_forward_pre_hook(self.before(name), prepend=True, with_kwargs=True)
                stack.callback(before.remove)
                # always_call: also when the module raises, so that the next call does not close this visit
                after = module.register_forward_hook(self.after, always_call=True, with_kwargs=True)
                stack.callback(after.remove)
            self.stack = stack.pop_all()
        self.attached = True
        return self

    def __exit__(self, *exception: object) -> None:
        self.attached = False
        self.stack.close()
        self.open = {}

    def before(self, name: str) -> Callable[..., None]:
        """The hook that opens a visit."""

        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            # A module that is not in `open` is a copy that was made, with its hooks, while the probe was attached.
            if in_recomputation() or module not in self.open:
                return
            visit = Visit(name, module, self.calls[module])
            self.calls[module] += 1
            self.visits.append(visit)
            self.open[module].append(visit)
            if module in self.inputs:
                visit.input = apply(self.inputs[module], module, first_tensor((*args, *kwargs.values())))

        return hook

    def after(self, module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        """The hook that closes a visit."""
        if in_recomputation() or not self.open.get(module):
            return
        visit = self.open[module].pop()
        y = first_tensor(result)
        if module in self.outputs:
            visit.output = apply(self.outputs[module], module, y)
        if module in self.gradients and y is not None and y.requires_grad:
            self.await_gradient(visit, y, tensors((args, kwargs)))

    def await_gradient(self, visit: Visit, y: Tensor, inputs: Iterable[Tensor]) -> None:
        """Reads the gradient of an output when the backward pass reaches it."""
        reached = False

        def read(gradient: Tensor) -> None:
            nonlocal reached
            reached = True
            visit.gradient = apply(self.gradients[visit.module], visit.module, gradient)

        self.stack.callback(y.register_hook(read).remove)
        base = base_of(y)
        if base is None or base.grad_fn is None or base.dtype != y.dtype:
            return
        if any(base is x or base is base_of(x) for x in inputs):  # whose gradient is not only that of y
            return
        # y is a view of a tensor of the module. A later layer that overwrites it, as ReLU(inplace=True), takes the view
        # out of the graph: the gradient reaches that tensor alone.
        base_stride, size, stride = base.stride(), y.size(), y.stride()
        offset = y.storage_offset() - base.storage_offset()

        def read_from_base(gradient: Tensor) -> None:
            if not reached:
                whole = gradient.detach().new_empty_strided(gradient.size(), base_stride).copy_(gradient.detach())
                read(whole.as_strided(size, stride, offset))

        self.stack.callback(base.register_hook(read_from_base).remove)


def base_of(x: Tensor) -> Tensor | None:
    """The tensor that a view belongs to; None for any other."""
    return x._base  # torch has no public name for it


@torch.no_grad()
def apply(read: Reader, module: nn.Module, tensor: Tensor | None) -> Any:
    """The value that a reader computes from a dense tensor; None where there is none, and inside `torch.func`."""
    if tensor is None or tensor.dim() == 0 or tensor.is_nested or tensor.layout != torch.strided or in_torch_func():
        return None
    return read(module, tensor.detach())


def first_tensor(values: Any) -> Tensor | None:
    """The first tensor in what a module takes or returns: itself, or in a tuple, list or mapping."""
    return next(tensors(values), None)


def tensors(values: Any) -> Iterator[Tensor]:
    """All tensors in what a module takes or returns, in their order; also in dataclasses."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        yield from tensors(list(values.values()))
    elif isinstance(values, tuple | list):
        for value in values:
            yield from tensors(value)
    elif is_dataclass(values) and not isinstance(values, type):
        yield from tensors([getattr(values, one.name) for one in fields(values)])
