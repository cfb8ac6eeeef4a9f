"""Which layers a network has: by name, by class, and by what they do."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.nn.modules import activation
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from normzoo.errors import InputError
from normzoo.norms._base import Norm

Layers = str | type[nn.Module] | Sequence[str | type[nn.Module]]
"""Which modules: patterns of names as "net.blocks.*.norm" or of classes as "Conv2d", classes, or several of these."""

# torch.compile's wrapper: its class has no public name, its child has this one.
WRAPPED = "_orig_mod"


def is_wrapper(module: nn.Module) -> bool:
    """Whether a module is the wrapper that torch.compile returns."""
    return any(name == WRAPPED for name, _ in module.named_children())


def is_compiled(model: nn.Module) -> bool:
    """Whether a part of a model runs as a compiled graph, in which hooks do not fire."""
    # Neither Lightning (for a compiled LightningModule) nor torch (for `module.compile()`) has a public way to ask.
    return getattr(model, "_compiler_ctx", None) is not None or any(
        module._compiled_call_impl is not None or is_wrapper(module) for module in model.modules()
    )


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and torch.compile, whatever their order."""
    while True:
        if is_wrapper(model):
            model = model.get_submodule(WRAPPED)
        elif isinstance(model, DistributedDataParallel):
            model = model.module
        else:
            return model


def named_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules by their names without wrappers, in the order of registration."""
    for name, module in unwrapped(model).named_modules():
        if not is_wrapper(module):
            yield ".".join(part for part in name.split(".") if part != WRAPPED), module


def own_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of a module, without its children; with those that its weight is computed from."""
    if isinstance(module, nn.MultiheadAttention):  # it does not call its children
        return list(module.parameters())
    made = getattr(module, "parametrizations", None)
    return [*module.parameters(recurse=False), *(made.parameters() if isinstance(made, nn.ModuleDict) else ())]


# By name or class.


def find(model: nn.Module, layers: Layers, option: str = "layers") -> dict[str, nn.Module]:
    """The modules that match patterns or classes.

    Args:
        model: any module.
        layers: a pattern (`*` any characters, `?` one) of names, such as "net.blocks.*.norm"; where no name matches, of
            classes, such as "Conv2d", "torch.nn.Conv2d" or "BatchNorm*", which match subclasses too; a class; or
            several of these.
        option: the option that gave them, for an error.

    Returns:
        Name -> module, in the order of registration.

    Raises:
        InputError: a pattern or a class matches no module.
    """
    named = dict(named_layers(model))
    named.pop("", None)
    wanted: Iterable[str | type[nn.Module]] = [layers] if isinstance(layers, str | type) else layers
    found = {name for one in wanted for name in matches(one, named, option)}
    return {name: module for name, module in named.items() if name in found}


def matches(wanted: str | type[nn.Module], named: Mapping[str, nn.Module], option: str = "layers") -> list[str]:
    """The names of the modules that one pattern or class matches; an error names the option that gave it."""
    if isinstance(wanted, str):
        found = [name for name in named if name == wanted or fnmatchcase(name, wanted)]
        found = found or [name for name, module in named.items() if is_called(type(module), wanted)]
    else:
        found = [name for name, module in named.items() if isinstance(module, wanted)]
    if not found:
        raise InputError(no_match(wanted, named, option))
    return found


def is_called(kind: type[nn.Module], pattern: str) -> bool:
    """Whether a pattern matches the name of a class or of a base class; with a package before it, a class from there.

    Nothing is imported: a pattern may come from a config.
    """
    package, _, name = pattern.rpartition(".")
    return any(
        fnmatchcase(base.__name__, name) and (not package or f"{base.__module__}.".startswith(f"{package}."))
        for base in kind.__mro__[: kind.__mro__.index(nn.Module)]
    )


def no_match(wanted: str | type, named: Mapping[str, nn.Module], option: str = "layers") -> str:
    """The message for a pattern or a class that matches nothing."""
    shown = wanted if isinstance(wanted, str) else wanted.__name__
    classes = sorted({type(module).__name__ for module in named.values()})
    words = [*named, *classes] if isinstance(wanted, str) else classes
    near = get_close_matches(shown, words, n=3, cutoff=0.4) or words[:3]
    return (
        f"{option}={shown!r} matches none of the network's {len(named)} modules; give the name of a module, in which * "
        f"matches any characters, or its class; there are {', '.join(near) or 'none'}"
        + (" and others." if len(words) > len(near) else ".")
    )


# By what they do, in networks that do not use this package.


def of_kind(model: nn.Module, kind: Callable[[nn.Module], bool]) -> dict[str, nn.Module]:
    """The modules of a kind; of those inside each other the outermost.

    Without modules that compute a weight (parametrizations), which see no activations.
    """
    found: dict[str, nn.Module] = {}
    for name, module in named_layers(model):
        parts = name.split(".")
        inside = any(".".join(parts[:i]) in found for i in range(1, len(parts)))
        if name and not inside and "parametrizations" not in parts and kind(module):
            found[name] = module
    return found


NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm),
)
NORM_NAMES = ("norm1d", "norm2d", "norm3d", "layernorm", "rmsnorm", "batchnorm")


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalizes activations: one of this package or of torch, or any with such a name."""
    if isinstance(module, Norm):
        return module.facts.acts_on == "activation"
    if isinstance(module, NORMS):
        return True
    if not any(part in type(module).__name__.lower() for part in NORM_NAMES):
        return False
    # Not a block of several layers that is named after its norm; an activation inside is part of the norm.
    return not any(is_norm(part) or is_weighted(part) for part in list(module.modules())[1:])


def is_weighted(module: nn.Module) -> bool:
    """Whether a module multiplies by a weight of its own: linear layers, convolutions, attention, embeddings."""
    made = getattr(module, "parametrizations", None)
    own = [*module.named_parameters(recurse=False), *(() if made is None else made.named_parameters())]
    wide = [name for name, p in own if is_lazy(p) or p.dim() > 1]
    if not wide or is_norm(module):
        return False
    # A network around its layers may have a table of positions, which does not make it a layer.
    return any("weight" in name for name in wide) or not any(is_weighted(part) for part in list(module.modules())[1:])


ACTIVATIONS = tuple(
    getattr(activation, name)
    for name in activation.__all__
    if name not in ("MultiheadAttention", "Softmax", "Softmax2d", "LogSoftmax", "Softmin")
)


def is_activation(module: nn.Module) -> bool:
    """Whether a module is one of torch's element-wise nonlinearities."""
    return isinstance(module, ACTIVATIONS)


def norm_name(model: nn.Module) -> str:
    """The class of a network's norms: "NoNorm" if there are none, "A+B" of several, in the order of registration."""
    kinds = [type(module).__name__ for module in of_kind(model, is_norm).values()]
    for name, module in named_layers(model):
        kind = type(module).__name__.lstrip("_")
        if "parametrizations" in name.split(".") and (isinstance(module, Norm) or "norm" in kind.lower()):
            kinds.append(kind)
    return "+".join(dict.fromkeys(kind for kind in kinds if kind != "NoNorm")) or "NoNorm"


# Where their features are.


LAST = (nn.Linear, nn.Bilinear, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)
"""Layers that take (N, *, C)."""
FED: WeakKeyDictionary[nn.Module, tuple[tuple[int, int], ...]] = WeakKeyDictionary()
"""Activation -> axis and size of the features of the layers that are registered before it, the nearest first."""


def remember_feeds(model: nn.Module) -> None:
    """Remembers for `feature_axis` which layers may feed each activation of a model."""
    before: dict[tuple[int, int], None] = {}
    for _, module in named_layers(model):
        if is_activation(module):
            FED[module] = tuple(reversed(before))
        for features in features_of(module):
            before.pop(features, None)  # to the end
            before[features] = None


def features_of(module: nn.Module) -> Iterator[tuple[int, int]]:
    """Axis and size of the features that a layer returns, if its class tells: 1 as in (N, C, *), -1 as in (N, *, C)."""
    if isinstance(module, nn.RNNBase):
        yield -1, (module.proj_size or module.hidden_size) * (2 if module.bidirectional else 1)
    elif isinstance(module, nn.MultiheadAttention):
        yield -1, module.embed_dim
    elif isinstance(module, nn.Embedding):
        yield -1, module.embedding_dim
    elif isinstance(module, nn.Linear | nn.Bilinear):
        yield -1, module.out_features
    elif type(module) in (nn.LayerNorm, nn.RMSNorm) or getattr(module, "over_axes", False):
        sizes: Any = module.normalized_shape
        yield -1, sizes[-1]
    elif isinstance(module, Norm):
        if module.facts.acts_on == "activation":
            yield module.channel_dim, module.num_features
    else:
        names = ("out_channels", "num_features", "num_channels")  # of convolutions, batch and group norms
        yield from ((1, size) for name in names if isinstance(size := getattr(module, name, None), int))


def feature_axis(module: nn.Module, x: Tensor) -> int:
    """The axis of the features in a module's input or output: 1 as in (N, C, *), or the last as in (N, *, C).

    The last for linear and recurrent layers, torch's LayerNorm and RMSNorm. Of a subclass that takes (N, C, *), of a
    norm or a linear layer of another library, the size of the axes decides. An activation has the axis of the layer
    that feeds it: the nearest one registered before it with as many features as that axis has in `x`; without any, 1.
    """
    if isinstance(module, Norm):
        return x.dim() - 1 if getattr(module, "over_axes", False) else module.channel_dim % x.dim()
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        size = module.normalized_shape[-1]
        return 1 if x.dim() > 2 and x.shape[-1] != size and x.shape[1] == size else x.dim() - 1
    if isinstance(module, LAST):
        return x.dim() - 1
    if x.dim() < 3:
        return x.dim() - 1
    for axis, size in FED.get(module, ()):
        if x.shape[axis] == size:
            return axis % x.dim()
    weight = dict(module.named_parameters(recurse=False)).get("weight")  # a parametrized one is not computed
    if weight is not None and not is_lazy(weight) and weight.dim() == (1 if is_norm(module) else 2):
        return x.dim() - 1 if x.shape[1] not in weight.shape and x.shape[-1] in weight.shape else 1
    return 1
