"""The outputs of new layers against those of the old ones, on data: measured, and fitted."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normzoo.errors import InputError
from normzoo.monitoring.probe import tensors
from normzoo.surgery._batches import Batches, evaluation, predict
from normzoo.surgery._norms import parts_after
from normzoo.surgery._swap import Swap, start, weight_and_bias

Put = Callable[[bool], None]
"""Puts the new layers into the network, or the old ones."""


@dataclass
class Change:
    """How far new values are from old ones: `|new - old| / |old|`, root mean squares over all values.

    Sums are tensors until they are asked for, so that no batch waits for the device.
    """

    difference: Tensor | float = 0.0
    size: Tensor | float = 0.0

    def add(self, new: Tensor, old: Tensor) -> None:
        new, old = new.float(), old.float()  # squares of half precision overflow
        self.difference = self.difference + (new - old).square().sum()
        self.size = self.size + old.square().sum()

    def __float__(self) -> float:
        return (float(self.difference) / max(float(self.size), 1e-30)) ** 0.5


@dataclass
class Fit:
    """The least squares `y = weight z + bias` of each channel, from sums in float64.

    `weight = cov(z, y) / var(z)`,  `bias = mean(y) - weight mean(z)`; without a bias `weight = sum z y / sum z^2`

    Args:
        axis: of the channels.
        has_weight: False for a weight of 1.
        has_bias: False for a bias of 0.
    """

    axis: int
    has_weight: bool
    has_bias: bool
    sums: Tensor | float = field(default=0.0)

    def add(self, z: Tensor, y: Tensor) -> None:
        """Adds a batch.

        Args:
            z: the new layer's output, with a weight of 1 and a bias of 0.
            y: what it should return.
        """
        z, y = (self.rows(x) for x in (z, y))
        count = torch.full_like(z[0], len(z))
        self.sums = self.sums + torch.stack([count, z.sum(0), y.sum(0), (z * z).sum(0), (z * y).sum(0)])

    def rows(self, x: Tensor) -> Tensor:
        """(values, C) in float64."""
        x = x.cpu() if x.device.type == "mps" else x  # MPS has no float64
        return x.movedim(self.axis, -1).flatten(0, -2).double()

    def solve(self) -> tuple[Tensor, Tensor]:
        """The weight and the bias, (C,) each; a weight of 1 where z does not vary."""
        assert isinstance(self.sums, Tensor)
        count, z, y, zz, zy = self.sums
        if self.has_bias:
            zz, zy = zz - z * z / count, zy - z * y / count
        varies = (zz > 1e-12 * self.sums[3]) & self.has_weight
        weight = torch.where(varies, zy / torch.where(varies, zz, 1), 1)
        return weight, (y - weight * z) / count * self.has_bias


def fit(net: nn.Module, swaps: Sequence[Swap], put: Put, data: Batches) -> None:
    """Fits weight and bias of the new layers in one pass over the data, each to inputs from those fitted before it."""
    affine = {swap: weight_and_bias(swap.norm, swap.channels) for swap in swaps}
    fits = {swap: Fit(swap.axis, w is not None, b is not None) for swap, (w, b) in affine.items()}
    reached: dict[Swap, None] = {}

    def hook(swap: Swap, z: Tensor, y: Tensor) -> Tensor:
        weight, bias = affine[swap]
        shape = [-1 if axis == swap.axis % z.dim() else 1 for axis in range(z.dim())]
        fits[swap].add(z, y)
        scale, shift = (values.to(z.device, z.dtype) for values in fits[swap].solve())
        reached[swap] = None
        for tensor, values in ((weight, scale), (bias, shift)):
            if tensor is not None:
                tensor.copy_(values.reshape(tensor.shape))
        return z * scale.view(shape) + shift.view(shape)

    momenta = {swap: getattr(swap.norm, "momentum", None) for swap in swaps if swap.unlearned}
    for swap in momenta:
        swap.norm.train().momentum = None  # the plain average over batches
    with ExitStack() as stack:
        for swap, (weight, bias) in affine.items():
            zero = swap.norm.register_forward_pre_hook(lambda *_, w=weight, b=bias: start(w, b))
            stack.callback(zero.remove)
        for _ in run(net, swaps, put, data, hook):
            pass
    for swap in reached:
        if not torch.as_tensor(fits[swap].sums).isfinite().all():
            raise InputError(
                f"the outputs of {swap.names[0]}, or of the layer for its place, have NaN or infinite values on data, "
                f"to which nothing can be fitted: leave them out of the data."
            )
    for swap, momentum in momenta.items():
        swap.norm.eval().momentum = momentum
    for swap in swaps:
        done = [name for name, tensor in zip(("weight", "bias"), affine[swap], strict=True) if tensor is not None]
        if swap in reached:
            swap.kept = [f"{' and '.join(done)} fitted", *(what for what in swap.kept if what not in done)]
            swap.lost, swap.unlearned = [], False


def measure(net: nn.Module, swaps: Sequence[Swap], put: Put, data: Batches) -> tuple[dict[Swap, Change], Change, int]:
    """The relative change of the output of each layer that the data reaches, and of the network, over all data."""
    layers: dict[Swap, Change] = defaultdict(Change)
    whole, count = Change(), 0

    def hook(swap: Swap, new: Tensor, old: Tensor) -> None:
        layers[swap].add(new, old)

    for old, new in run(net, swaps, put, data, hook):
        for a, b in zip(tensors(new), tensors(old), strict=False):
            if a.is_floating_point() and a.shape == b.shape:  # not, for example, the boxes that a detector finds
                whole.add(a, b)
        count += 1
    return layers, whole, count


def run(
    net: nn.Module,
    swaps: Sequence[Swap],
    put: Put,
    data: Batches,
    hook: Callable[[Swap, Tensor, Tensor], Tensor | None],
) -> Iterator[tuple[Any, Any]]:
    """Runs the old and the new network on each batch; yields both outputs.

    Args:
        net: the network with the old layers, which it has again afterwards.
        swaps: the layers.
        put: puts the new layers into the network, or the old ones.
        data: the batches.
        hook: called with a layer, its new output and its old one; what it returns replaces the new one.
    """
    wanted: dict[Swap, list[Tensor]] = defaultdict(list)

    def after_old(swap: Swap, old: Tensor) -> None:
        wanted[swap].append(old.clone())  # an activation may overwrite the output

    def after_new(swap: Swap, _: nn.Module, __: Any, new: Tensor) -> Tensor | None:
        return hook(swap, new, wanted[swap].pop(0))

    empty = True
    with evaluation(net), ExitStack() as stack:
        stack.callback(put, False)
        for swap in swaps:
            stack.callback(on_output(swap, partial(after_old, swap)).remove)
            stack.callback(swap.norm.register_forward_hook(partial(after_new, swap)).remove)
        for batch in data:
            wanted.clear()
            put(False)
            old = predict(net, batch)
            put(True)
            new = predict(net, batch)
            empty = False
            yield old, new
    if empty:
        raise InputError("data yields no batch: give an iterable of the network's inputs, or of (input, target) pairs.")


def on_output(swap: Swap, read: Callable[[Tensor], None]) -> torch.utils.hooks.RemovableHandle:
    """Calls a function with the output of an old layer, before an activation that the new one keeps."""
    after = parts_after(swap.old)
    if swap.new is swap.norm or not after:
        return swap.old.register_forward_hook(lambda _, __, y: read(y))
    return next(iter(after.values())).register_forward_pre_hook(lambda _, args: read(args[0]))
