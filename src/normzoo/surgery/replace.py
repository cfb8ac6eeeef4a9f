"""Other normalization layers in a network that exists."""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from normzoo.errors import InputError
from normzoo.monitoring.layers import Layers, unwrapped
from normzoo.surgery._batches import Batches, Data, batches, evaluation, predict
from normzoo.surgery._fit import Put, fit, measure
from normzoo.surgery._norms import behind_linear, channels_of, places, usual_shape
from normzoo.surgery._placed import Placed, let_norms_run
from normzoo.surgery._rules import Rule, choose, shortened
from normzoo.surgery._swap import Factory, Swap, planned
from normzoo.surgery.report import Report, counted


def replace(
    net: nn.Module,
    rules: Mapping[Rule, Factory],
    *,
    where: Layers = "*",
    match: Literal["nothing", "affine", "output"] = "affine",
    data: Data | None = None,
) -> Report:
    """Replaces normalization layers of a network, in place.

    A new layer has the device, dtype, mode and `requires_grad` of the old one, and its layout: a layer of this package
    behind a `LayerNorm` on (N, *, C) is built for channels last. A layer that the network has under several names is
    replaced once. The activation inside a layer of timm, such as `BatchNormAct2d`, stays; a new layer that includes an
    activation takes its place there, and drops its own elsewhere. Build the optimizer afterwards: the parameters are
    new.

    `match="output"` fits weight and bias of each new layer by least squares per channel: its output, for what the
    layers replaced before it make of the data, to the output of the old layer in the old network. It takes one pass
    over the data in evaluation mode, in which each layer is fitted to all batches so far, and memory for the outputs of
    the old layers for one batch. New running statistics are learned in the same pass.

    Args:
        net: the network.
        rules: from a layer, a class or a pattern of class names (`"BatchNorm*"`, `"torch.nn.LayerNorm"`) to what builds
            the new layer from the number of channels: a class, a `functools.partial`, any callable; None to remove the
            layer. The first rule that fits a layer counts.
        where: which layers: patterns of module names such as "layer3.*"; of a module with children, all those inside.
        match: what a new layer keeps: "nothing"; "affine", what both layers have of weight, bias, eps, and running
            statistics with their momentum; "output", its output on data.
        data: inputs, or (input, target) pairs, of the network: for `match="output"`, and to measure what changed.

    Returns:
        One row per layer; with data, also the relative change of its output, `|new - old| / |old|` over all data.

    Raises:
        InputError: a rule matches no layer; a new layer cannot take the place of the old one, for example because its
            groups would have one value each; data is missing or has no batch. The network is unchanged.

    >>> from normzoo.norms import GroupNorm
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> print(replace(net, {"BatchNorm*": GroupNorm}))
    replaced 1 layer
      layer  from            to            kept
      1      BatchNorm2d(8)  GroupNorm(8)  weight, bias, eps
    """
    require_arguments(net, rules, match, data)
    root = unwrapped(net)
    chosen = choose(root, rules, where)
    if data is not None and not isinstance(data, LightningDataModule) and iter(data) is data:
        data = list(data)  # which is read several times
    loaded = None if data is None else batches(net, data)
    shapes = usual_shapes(root, chosen) if loaded is None else input_shapes(net, chosen, loaded)
    swaps = plan(root, chosen, shapes, match)
    found = places_of(root, swaps)
    put = placing(root, found)
    columns, notes = compared(net, swaps, put, loaded, match)
    modes = [(swap.new, swap.old.training) for swap in swaps]
    for module, training in modes:
        module.train(training)
    put(True)
    report = Report(
        title=f"replaced {counted(swaps, 'layer')}",
        rows=[row(swap) | column for swap, column in zip(swaps, columns, strict=True)],
        notes=[*notes, *remarks(swaps)],
        steps=[Placed(root, path, swap.old, swap.new) for path, swap in found],
    )
    report.steps += let_norms_run(root, {swap.new for swap in swaps})
    return report


def require_arguments(net: nn.Module, rules: Mapping[Rule, Factory], match: str, data: Data | None) -> None:
    """Raises `InputError` for a wrapped network, a rule that builds nothing, an unknown `match`, or missing data."""
    if any(isinstance(module, DistributedDataParallel) for module in net.modules()):
        raise InputError(
            "the network is wrapped in DistributedDataParallel, which would not synchronize the gradients of new "
            "parameters: call replace on its .module, and wrap that again."
        )
    for rule, factory in rules.items():
        if isinstance(factory, nn.Module) or not (factory is None or callable(factory)):
            raise InputError(f"the rule for {rule!r} is {factory!r}; give what builds a layer, such as GroupNorm.")
    if match not in ("nothing", "affine", "output"):
        raise InputError(f"match={match!r}: a new layer keeps 'nothing', 'affine' or 'output'.")
    if match == "output" and data is None:
        raise InputError("match='output' needs data: give some batches of the network's inputs, data=loader.")


# What each is fed with.


def usual_shapes(root: nn.Module, chosen: Mapping[nn.Module, object]) -> dict[nn.Module, tuple[int, ...] | None]:
    """The shape of an input of each layer, as far as its class and the layer before it say."""
    linear = behind_linear(root)
    return {layer: usual_shape(layer, channels_of(layer) or 1, layer in linear) for layer in chosen}


def input_shapes(
    net: nn.Module, chosen: Mapping[nn.Module, object], data: Batches
) -> dict[nn.Module, tuple[int, ...] | None]:
    """The shape of an input of each layer that the first batch reaches."""
    shapes: dict[nn.Module, tuple[int, ...] | None] = dict.fromkeys(chosen)
    handles = [
        layer.register_forward_pre_hook(lambda module, args: shapes.update({module: tuple(args[0].shape)}))
        for layer in chosen
    ]
    try:
        with evaluation(net):
            for batch in islice(data, 1):
                predict(net, batch)
    finally:
        for handle in handles:
            handle.remove()
    return shapes


# The new layers.


def plan(
    root: nn.Module,
    chosen: Mapping[nn.Module, tuple[list[str], Factory]],
    shapes: Mapping[nn.Module, tuple[int, ...] | None],
    match: str,
) -> list[Swap]:
    """Builds all new layers.

    Raises:
        InputError: one of them cannot take the place of the old one; it lists them.
    """
    fused = {name: module for name, module in root.named_modules() if type(module).__module__.startswith("torch.ao.")}
    home = next((t for tensors in (root.parameters(), root.buffers()) for t in tensors), torch.zeros(()))
    swaps: list[Swap] = []
    refused: dict[str, list[str]] = {}
    for layer, (names, factory) in chosen.items():
        try:
            require_unfused(names, fused)
            swaps.append(planned(names, layer, factory, shapes[layer], home, match=match))
        except (TypeError, ValueError, RuntimeError) as error:  # what layers of any library raise
            refused.setdefault(str(error).removesuffix("."), []).append(names[0])
    if refused:
        raise InputError(refusal(refused, len(chosen)))
    return swaps


def require_unfused(names: Sequence[str], fused: Mapping[str, nn.Module]) -> None:
    """Raises `InputError` for a layer inside one of the modules of torch that were fused for quantization."""
    for name in names:
        if parent := fused.get(name.rpartition(".")[0]):
            raise InputError(
                f"it is part of a {type(parent).__name__}, which computes its weight from the statistics of its "
                f"BatchNorm: replace it before the network is fused or prepared for quantization"
            )


def refusal(refused: Mapping[str, Sequence[str]], layers: int) -> str:
    """The message for layers that cannot be replaced.

    Args:
        refused: reason -> names of layers.
        layers: the number of all layers to replace.
    """
    lines = [f"{shortened(names)}: {reason}." for reason, names in refused.items()]
    more = [f"and {len(lines) - 5} more reasons."] if len(lines) > 5 else []
    return "\n  ".join(
        [
            f"{sum(map(len, refused.values()))} of {counted(layers, 'layer')} cannot be replaced, and the network "
            f"is unchanged; give them another rule, or leave them out by where=:",
            *lines[:5],
            *more,
        ]
    )


def places_of(root: nn.Module, swaps: Sequence[Swap]) -> list[tuple[str, Swap]]:
    """The paths of the layers in the network; a shared layer has several."""
    by_layer = {swap.old: swap for swap in swaps}
    return [(path, by_layer[module]) for path, _, module in places(root) if module in by_layer]


def placing(root: nn.Module, found: Sequence[tuple[str, Swap]]) -> Put:
    """A function that puts the new layers into the network, or the old ones."""

    def put(new: bool) -> None:
        for path, swap in found:
            root.set_submodule(path, swap.new if new else swap.old)

    return put


# The report.


def compared(
    net: nn.Module, swaps: Sequence[Swap], put: Put, data: Batches | None, match: str
) -> tuple[list[dict[str, float | None]], list[str]]:
    """Fits the new layers, if wanted, and measures what changed: columns of the rows, and lines about the network."""
    if data is None:
        return [{} for _ in swaps], []
    if match == "output":
        fit(net, swaps, put, data)
    layers, whole, count = measure(net, swaps, put, data)
    columns = [{"output change": float(layers[swap]) if swap in layers else None} for swap in swaps]
    missed = [swap.names[0] for swap in swaps if swap not in layers]
    notes = [f"the data does not reach {shortened(missed)}"] if missed else []
    if whole.size:
        notes.insert(0, f"relative change of the network's output: {float(whole):.2g}, over {counted(count, 'batch')}")
    return columns, notes


def row(swap: Swap) -> dict[str, object]:
    """What is known of a replaced layer without data."""
    new = "nothing" if isinstance(swap.norm, nn.Identity) else f"{type(swap.norm).__name__}({swap.channels})"
    old = f"{type(swap.old).__name__}({swap.channels})"
    return {"layer": ", ".join(swap.names), "from": old, "to": new, "kept": ", ".join(swap.kept)}


def remarks(swaps: Sequence[Swap]) -> list[str]:
    """Lines about what the new layers lack."""
    lost = {name for swap in swaps for name in swap.lost}
    unlearned = [swap.names[0] for swap in swaps if swap.unlearned]
    notes = [f"the new layers have no {' and no '.join(sorted(lost, reverse=True))}"] if lost else []
    if unlearned:
        notes.append(
            f"running statistics of {counted(unlearned, 'layer')} were not learned: train them, or call recalibrate"
        )
    return notes
