"""Taps into a running network: what goes into its modules, what comes out, and the gradient of what came out.

A hook costs nothing once it is gone, changes nothing while it reads, and is always removed: `Probe` is a context
manager.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Self, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules import activation as torch_activations
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from normzoo.errors import InputError
from normzoo.norms._base import Norm

Layers = str | type[nn.Module] | Sequence[str | type[nn.Module]]
"""Which modules: patterns of names as "net.blocks.*.norm", classes, or several of both."""

Reader = Callable[[nn.Module, Tensor], Any]
"""What is made of a tensor while it is there: it may be overwritten right after."""

Passage = Callable[[nn.Module, Tensor | None, Tensor | None], Any]
"""What is made of what went into a module and of what came out, once it has run; with its graph, to be left alone."""


AnyReader = TypeVar("AnyReader", Reader, Passage)


@dataclass
class Visit:
    """One pass through a tapped module."""

    name: str
    module: nn.Module
    call: int
    """How often this module had been passed before, since the probe was attached."""
    input: Any = None
    output: Any = None
    gradient: Any = None
    """Of the loss with respect to the output; None before the backward pass, and where there is none.

    There is none of a view of the module's own input, as Flatten's, that a later layer writes over.
    """
    passage: Any = None
    """Of both sides together."""


class Probe:
    """Reads the inputs, outputs and output gradients of modules while a network runs, in the order of execution.

    ::

        with Probe(net, "blocks.*", output=lambda module, y: y.std()) as probe:
            net(x)
        for visit in probe.visits:
            print(visit.name, visit.output)

    What is read is the first tensor that a module takes or returns. Readers run without autograd, on detached tensors,
    at the moment the tensor passes, and must not change it. A compiled network runs eagerly while the probe is
    attached: hooks do not fire in graphs that were compiled without them. When activations are computed again in the
    backward pass (checkpointing) that is no second visit.

    Args:
        model: any module; of one that is wrapped by DistributedDataParallel or torch.compile, what is inside.
        layers: names with `*`, classes, several of both; or modules by name, as `find` returns them.
        input: reads what goes in: a reader for all layers, or name -> reader.
        output: reads what comes out, likewise.
        gradient: reads the gradient of the loss with respect to what came out, during the backward pass, likewise.
        passage: reads both sides together once the module has run, likewise; of one that does not write over its input.

    Attributes:
        visits: a `Visit` for every pass through a tapped module.

    Raises:
        InputError: `layers` matches nothing; a reader is for a layer that is not tapped; attached while it is attached.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers | Mapping[str, nn.Module] = Norm,
        *,
        input: Reader | Mapping[str, Reader] | None = None,
        output: Reader | Mapping[str, Reader] | None = None,
        gradient: Reader | Mapping[str, Reader] | None = None,
        passage: Passage | Mapping[str, Passage] | None = None,
    ) -> None:
        self.model = model
        self.layers = layers if isinstance(layers, Mapping) else find(model, layers)
        self.inputs = self.by_module("input", input)
        self.outputs = self.by_module("output", output)
        self.gradients = self.by_module("gradient", gradient)
        self.passages = self.by_module("passage", passage)
        self.visits: list[Visit] = []
        self.stack = ExitStack()
        self.attached = False

    def by_module(self, site: str, readers: AnyReader | Mapping[str, AnyReader] | None) -> dict[nn.Module, AnyReader]:
        """Who reads at a site."""
        if readers is None:
            return {}
        if not isinstance(readers, Mapping):
            return dict.fromkeys(self.layers.values(), readers)
        for name in readers:
            if name not in self.layers:
                near = get_close_matches(name, self.layers, n=3, cutoff=0.4) or list(self.layers)[:3]
                raise InputError(
                    f"{site}={{{name!r}: ...}} reads a layer that is not tapped; give a reader for all layers, or "
                    f"readers by the names of those that `layers` matches: {', '.join(near) or 'none'}."
                )
        return {self.layers[name]: read for name, read in readers.items()}

    def __enter__(self) -> Self:
        if self.attached:
            raise InputError(
                f"Probe of {len(self.layers)} modules: it is attached, and a probe is attached once at a time; leave "
                f"its with block first, or build a second probe."
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
                # always_call: also when the module raises, so that its visit is not taken for that of a later call
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
            if is_recomputing() or module not in self.open:  # a copy, made with its hooks while the probe was attached
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
        if is_recomputing() or not self.open.get(module):
            return
        visit = self.open[module].pop()
        if module in self.outputs:
            visit.output = apply(self.outputs[module], module, first_tensor(result))
        if module in self.passages:
            with torch.no_grad():
                x, y = (dense(first_tensor(side)) for side in ((*args, *kwargs.values()), result))
                visit.passage = self.passages[module](module, x, y)
        if module in self.gradients:
            y = first_tensor(result)
            if y is not None and y.requires_grad:
                self.await_gradient(visit, y, tensors((args, kwargs)))

    def await_gradient(self, visit: Visit, y: Tensor, inputs: Iterable[Tensor]) -> None:
        """Reads the gradient of an output when the backward pass has come to it."""
        came = False

        def read(gradient: Tensor) -> None:
            nonlocal came
            came = True
            visit.gradient = apply(self.gradients[visit.module], visit.module, gradient)

        self.stack.callback(y.register_hook(read).remove)
        base = y._base
        if base is None or base.grad_fn is None or base.dtype != y.dtype:
            return
        if any(base is x or base is x._base for x in inputs):  # whose gradient is not only that of y
            return
        # y is a view of a tensor of the module's own. A layer behind that writes over it, as ReLU(inplace=True), takes
        # the view out of the graph: the gradient comes to that tensor alone.
        base_stride, size, stride = base.stride(), y.size(), y.stride()
        offset = y.storage_offset() - base.storage_offset()

        def read_within(gradient: Tensor) -> None:
            if not came:
                whole = gradient.detach().new_empty_strided(gradient.size(), base_stride).copy_(gradient.detach())
                visit.gradient = apply(
                    self.gradients[visit.module], visit.module, whole.as_strided(size, stride, offset)
                )

        self.stack.callback(base.register_hook(read_within).remove)


@torch.no_grad()
def apply(read: Reader, module: nn.Module, tensor: Tensor | None) -> Any:
    """What a reader makes of a tensor; None where there is none."""
    tensor = dense(tensor)
    return None if tensor is None else read(module, tensor.detach())


def dense(tensor: Tensor | None) -> Tensor | None:
    """A tensor with plain memory, hence no nested or sparse one."""
    return None if tensor is None or tensor.is_nested or tensor.layout != torch.strided else tensor


def first_tensor(values: Any) -> Tensor | None:
    """The first tensor in what a module takes or returns: itself, or in a tuple, list or mapping."""
    return next(tensors(values), None)


def tensors(values: Any) -> Iterator[Tensor]:
    """All of them, in their order."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        yield from tensors(list(values.values()))
    elif isinstance(values, tuple | list):
        for value in values:
            yield from tensors(value)


def is_recomputing() -> bool:
    """Whether a backward pass is under way, in which checkpointing computes activations once more."""
    return torch._C._current_graph_task_id() != -1


def is_compiled(model: nn.Module) -> bool:
    """Whether a part of a model runs as a compiled graph, which hooks do not see."""
    if getattr(model, "_compiler_ctx", None) is not None:
        return True
    return any(module._compiled_call_impl is not None or "_orig_mod" in module._modules for module in walk(model))


def walk(model: nn.Module) -> Iterator[nn.Module]:
    """All modules, each once, in the order of `model.modules()`; which asks for hashes, and metrics' are slow."""
    seen: set[int] = set()
    ahead = [model]
    while ahead:
        module = ahead.pop()
        if id(module) not in seen:
            seen.add(id(module))
            yield module
            ahead += [child for child in reversed(module._modules.values()) if child is not None]


def named_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules by the names they have without wrappers, in the order in which they were registered."""
    for name, module in unwrapped(model).named_modules():
        if "_orig_mod" not in module._modules:
            yield ".".join(part for part in name.split(".") if part != "_orig_mod"), module


def unwrapped(model: nn.Module) -> nn.Module:
    """What is inside DistributedDataParallel and torch.compile, in whatever order they were put around it."""
    while True:
        if "_orig_mod" in model._modules:
            model = cast(nn.Module, model._orig_mod)
        elif isinstance(model, DistributedDataParallel):
            model = model.module
        else:
            return model


def find(model: nn.Module, layers: Layers) -> dict[str, nn.Module]:
    """The modules that are meant by patterns of names, or by classes.

    Args:
        model: any module.
        layers: a pattern such as "net.blocks.*.norm" (`*` any characters, `?` one), a class, or several of both.

    Returns:
        Name -> module, in the order in which they were registered.

    Raises:
        InputError: a pattern or class that matches no module.
    """
    named = dict(named_layers(model))
    named.pop("", None)
    wanted: Iterable[Any] = [layers] if isinstance(layers, str | type) else layers
    found: set[str] = set()
    for one in wanted:
        if isinstance(one, str):
            matches = {name for name in named if name == one or fnmatchcase(name, one)}
        else:
            matches = {name for name, module in named.items() if isinstance(module, one)}
        if not matches:
            raise InputError(no_match(one, named))
        found |= matches
    return {name: module for name, module in named.items() if name in found}


def no_match(wanted: str | type, named: Mapping[str, nn.Module]) -> str:
    """What to say of a pattern or a class that matches nothing."""
    shown = wanted if isinstance(wanted, str) else wanted.__name__
    words = list(named) if isinstance(wanted, str) else sorted({type(m).__name__ for m in named.values()})
    near = get_close_matches(shown, words, n=3, cutoff=0.4) or words[:3]
    return (
        f"layers={shown!r} matches none of the network's {len(named)} modules; a layer goes by its name, in which * "
        f"stands for any characters, or by its class; there are {', '.join(near) or 'none'}"
        + (" and others." if len(words) > len(near) else ".")
    )


# What kinds of layers there are in networks that know nothing of this package.


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalizes activations: the zoo's, torch's, or anybody's that is called so."""
    if isinstance(module, Norm):
        return module.facts.acts_on == "activation"
    if isinstance(module, _NormBase | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm | nn.LocalResponseNorm):
        return True
    name = type(module).__name__.lower()
    if not any(mark in name for mark in ("norm1d", "norm2d", "layernorm", "rmsnorm", "batchnorm")):
        return False
    # Not a block of several layers that is called after its norm; an activation within is part of the norm.
    return not any(is_norm(part) or is_weighted(part) for part in list(module.modules())[1:])


def is_weighted(module: nn.Module) -> bool:
    """Whether a module multiplies by a weight of its own: linear layers, convolutions, attention, embeddings."""
    made = getattr(module, "parametrizations", None)
    own = [*module.named_parameters(recurse=False), *(() if made is None else made.named_parameters())]
    wide = [name for name, p in own if is_lazy(p) or p.dim() > 1]
    if not wide or is_norm(module):
        return False
    # A network around its layers may own a table of positions: that makes it no layer.
    return any("weight" in name for name in wide) or not any(is_weighted(part) for part in list(module.modules())[1:])


ACTIVATIONS = tuple(
    getattr(torch_activations, name)
    for name in torch_activations.__all__
    if name not in ("MultiheadAttention", "Softmax", "Softmax2d", "LogSoftmax", "Softmin")
)


def is_activation(module: nn.Module) -> bool:
    """Whether a module is a nonlinearity of torch's that acts on each value."""
    return isinstance(module, ACTIVATIONS)


def of_kind(model: nn.Module, kind: Callable[[nn.Module], bool]) -> dict[str, nn.Module]:
    """The modules of a kind: of those within each other the outermost, which stands for what it is made of.

    Not those that make a weight (parametrizations), which see no activations.
    """
    found: dict[str, nn.Module] = {}
    for name, module in named_layers(model):
        parts = name.split(".")
        within = any(".".join(parts[:i]) in found for i in range(1, len(parts)))
        if name and not within and "parametrizations" not in parts and kind(module):
            found[name] = module
    return found


def feature_axis(module: nn.Module, x: Tensor) -> int:
    """The axis of a module's input or output that holds the features: 1 as in (N, C, *), or the last.

    The last for layers that take (N, *, C) and say how many features that is: linear and recurrent layers, torch's
    LayerNorm and RMSNorm. Where a subclass takes its channels second all the same, the sizes tell, as they do of a norm
    of somebody else's that takes them last.
    """
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        size = module.normalized_shape[-1]
        return 1 if x.dim() > 2 and x.shape[-1] != size and x.shape[1] == size else x.dim() - 1
    if isinstance(module, nn.Linear | nn.Bilinear | nn.Embedding | nn.MultiheadAttention | nn.RNNBase):
        return x.dim() - 1
    scale = getattr(module, "weight", None) if is_norm(module) else None
    if isinstance(scale, Tensor) and not is_lazy(scale) and scale.dim() == 1 and x.dim() > 2:
        return x.dim() - 1 if x.shape[1] != len(scale) == x.shape[-1] else 1
    return min(1, x.dim() - 1)
