"""Taps into a running network: what goes into its modules, what comes out, and the gradient of what came out.

A hook costs nothing once it is gone, changes nothing while it reads, and is always removed: `Probe` is a context
manager.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules import activation as torch_activations
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel

from normzoo.errors import InputError
from normzoo.norms._base import Norm

Layers = str | type[nn.Module] | Sequence[str | type[nn.Module]]
"""Which modules: patterns of names as "net.blocks.*.norm", classes, or several of both."""

Reader = Callable[[nn.Module, Tensor], Any]
"""What is made of a tensor while it is there: it may be overwritten right after."""


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
    """Of the loss with respect to the output; None before the backward pass, and where there is none."""


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

    Attributes:
        visits: a `Visit` for every pass through a tapped module.

    Raises:
        InputError: `layers` matches nothing.
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
        self.layers = layers if isinstance(layers, Mapping) else find(model, layers)
        self.inputs, self.outputs, self.gradients = (
            {self.layers[name]: read for name, read in one.items()}
            if isinstance(one, Mapping)
            else dict.fromkeys(self.layers.values(), one)
            if one is not None
            else {}
            for one in (input, output, gradient)
        )
        self.compiled = is_compiled(model)
        self.visits: list[Visit] = []
        self.stack = ExitStack()

    def __enter__(self) -> Self:
        self.visits.clear()
        self.open: dict[nn.Module, list[Visit]] = {module: [] for module in self.layers.values()}
        self.calls = dict.fromkeys(self.layers.values(), 0)
        with ExitStack() as stack:
            if self.compiled:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            for name, module in self.layers.items():
                before = module.register_forward_pre_hook(self.before(name), prepend=True, with_kwargs=True)
                stack.callback(before.remove)
                # always_call: also when the module raises, so that its visit is not taken for that of a later call
                after = module.register_forward_hook(self.after, always_call=True)
                stack.callback(after.remove)
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stack.close()
        self.open = {}

    def before(self, name: str) -> Callable[..., None]:
        """The hook that opens a visit."""

        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if is_recomputing():
                return
            visit = Visit(name, module, self.calls[module])
            self.calls[module] += 1
            self.visits.append(visit)
            self.open[module].append(visit)
            if module in self.inputs:
                visit.input = apply(self.inputs[module], module, first_tensor((*args, *kwargs.values())))

        return hook

    def after(self, module: nn.Module, args: Any, result: Any) -> None:
        """The hook that closes a visit."""
        if is_recomputing() or not self.open.get(module):
            return
        visit = self.open[module].pop()
        if module in self.outputs:
            visit.output = apply(self.outputs[module], module, first_tensor(result))
        if module in self.gradients:
            y = first_tensor(result)
            if y is not None and y.requires_grad:

                def read(gradient: Tensor) -> None:
                    visit.gradient = apply(self.gradients[module], module, gradient)

                self.stack.callback(y.register_hook(read).remove)


@torch.no_grad()
def apply(read: Reader, module: nn.Module, tensor: Tensor | None) -> Any:
    """What a reader makes of a tensor; None where there is none."""
    return None if tensor is None else read(module, tensor.detach())


def first_tensor(values: Any) -> Tensor | None:
    """The first tensor in what a module takes or returns: itself, or in a tuple, list or mapping."""
    if isinstance(values, Tensor):
        return values
    if isinstance(values, Mapping):
        values = values.values()
    elif not isinstance(values, tuple | list):
        return None
    return next((found for value in values if (found := first_tensor(value)) is not None), None)


def is_recomputing() -> bool:
    """Whether a backward pass is under way, in which checkpointing computes activations once more."""
    return torch._C._current_graph_task_id() != -1


def is_compiled(model: nn.Module) -> bool:
    """Whether a part of a model runs as a compiled graph, which hooks do not see."""
    return getattr(model, "_compiler_ctx", None) is not None or any(
        module._compiled_call_impl is not None or hasattr(module, "_orig_mod") for module in model.modules()
    )


def named_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules by the names they have without wrappers, in the order in which they were registered."""
    if isinstance(model, DistributedDataParallel):
        model = model.module
    for name, module in model.named_modules():
        if not hasattr(module, "_orig_mod"):
            yield name.replace("_orig_mod.", "").removesuffix("._orig_mod"), module


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
            matches = {name for name in named if fnmatchcase(name, one)}
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
    known = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)
    named_so = any(mark in type(module).__name__ for mark in ("Norm2d", "Norm1d", "LayerNorm", "RMSNorm", "BatchNorm"))
    return isinstance(module, known) or (named_so and not any(module.children()))


def is_weighted(module: nn.Module) -> bool:
    """Whether a module multiplies by a weight of its own: linear layers, convolutions, attention, embeddings."""
    made = getattr(module, "parametrizations", None)
    own = (
        list(module.parameters(recurse=False))
        if made is None
        else [*module.parameters(recurse=False), *made.parameters()]
    )
    return not is_norm(module) and any(p.dim() > 1 for p in own)


ACTIVATIONS = tuple(
    getattr(torch_activations, name)
    for name in torch_activations.__all__
    if name not in ("MultiheadAttention", "Softmax", "Softmax2d", "LogSoftmax", "Softmin")
)


def is_activation(module: nn.Module) -> bool:
    """Whether a module is a nonlinearity of torch's that acts on each value."""
    return isinstance(module, ACTIVATIONS)


def of_kind(model: nn.Module, kind: Callable[[nn.Module], bool]) -> dict[str, nn.Module]:
    """The modules of a kind; not those that make a weight (parametrizations), which see no activations."""
    parts = (
        (name, module)
        for name, module in named_layers(model)
        if name and not any(part == "parametrizations" for part in name.split("."))
    )
    return {name: module for name, module in parts if kind(module)}


def feature_axis(module: nn.Module, x: Tensor) -> int:
    """The axis of a module's input or output that holds the features: 1 as in (N, C, *), or the last.

    The last for layers that take (N, *, C) and say how many features that is: linear layers, torch's LayerNorm and
    RMSNorm. Where a subclass takes its channels second all the same, the sizes tell.
    """
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        size = module.normalized_shape[-1]
        return 1 if x.dim() > 2 and x.shape[-1] != size and x.shape[1] == size else x.dim() - 1
    if isinstance(module, nn.Linear | nn.Bilinear | nn.Embedding | nn.MultiheadAttention):
        return x.dim() - 1
    return min(1, x.dim() - 1)
