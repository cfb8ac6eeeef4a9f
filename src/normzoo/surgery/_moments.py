"""Exact moments of the inputs of layers with running statistics, over many batches and ranks."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn

from normzoo.distributed.gather import Ranks
from normzoo.errors import InputError
from normzoo.monitoring.layers import Layers, unwrapped
from normzoo.norms._ops.running import RunningStatistics
from normzoo.surgery._batches import Data, batches, evaluation, predict
from normzoo.surgery._norms import inside

TRACKING = (RunningStatistics, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
OF_CHANNELS = {"running_mean", "running_var"}
"""Running statistics that are the moments of the layer's input."""

Buffers = dict[str, Tensor]


@dataclass(frozen=True)
class Moments:
    """Number of values, mean and sum of squared deviations of each channel, in float64.

    Args:
        samples: the number of samples.
        count: values per channel.
        mean: (C,).
        squares: (C,), the sum over values of `(x - mean)^2`.
        batches: the number of batches.
    """

    samples: int
    count: int
    mean: Tensor
    squares: Tensor
    batches: int = 1

    @staticmethod
    def of(rows: Tensor, samples: int) -> "Moments":
        """The moments of (values, C), on the CPU."""
        wide = (rows.cpu() if rows.device.type == "mps" else rows).double()  # MPS has no float64
        mean = wide.mean(0)
        return Moments(samples, len(rows), mean.cpu(), (wide - mean).square().sum(0).cpu())

    def __add__(self, other: "Moments") -> "Moments":
        """Both together, by Chan's formula."""
        count = self.count + other.count
        step = other.mean - self.mean
        return Moments(
            self.samples + other.samples,
            count,
            self.mean + step * (other.count / count),
            self.squares + other.squares + step.square() * (self.count * other.count / count),
            self.batches + other.batches,
        )

    def var(self, *, unbiased: bool = False) -> Tensor:
        """The variance, (C,)."""
        return self.squares / max(self.count - unbiased, 1)


# The layers.


def tracking_layers(net: nn.Module, where: Layers) -> dict[str, nn.Module]:
    """The layers with running statistics among the modules that a pattern matches.

    Raises:
        InputError: there are none.
    """
    names: dict[nn.Module, str] = {}
    for name, layer in inside(unwrapped(net), where).items():
        if isinstance(layer, TRACKING) and running_buffers(layer):
            names.setdefault(layer, name)  # a shared layer has several
    found = {name: layer for layer, name in names.items()}
    if not found:
        raise InputError(
            f"where={where!r}: none of these modules keeps running statistics of a batch; give the name of a "
            f"BatchNorm, of another layer of normzoo with track_running_stats=True, or * for all."
        )
    return found


def running_buffers(layer: nn.Module) -> Buffers:
    """The running statistics of a layer."""
    return {name: buffer for name, buffer in layer.named_buffers(recurse=False) if name.startswith("running_")}


def is_frozen(layer: nn.Module) -> bool:
    """Whether a layer is to keep its running statistics."""
    return bool(getattr(layer, "frozen", False))


def has_moments(layer: nn.Module) -> bool:
    """Whether the running statistics of a layer are the mean and variance of the channels of its input."""
    if not isinstance(layer, RunningStatistics):
        return True
    own = dict(layer.named_buffers(recurse=False))
    per_channel = all(own[name].shape == (layer.num_features,) for name in OF_CHANNELS & {*own})
    return "N" in layer.facts.axes and {*own} - {"num_batches_tracked"} <= OF_CHANNELS and per_channel


@torch.no_grad()
def set_buffers(layer: nn.Module, values: Mapping[str, Any]) -> None:
    """Sets buffers of a layer, of those that it has."""
    for name, buffer in layer.named_buffers(recurse=False):
        if name in values:
            buffer.copy_(torch.as_tensor(values[name]))


@contextmanager
def restored_on_error(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, Buffers]]:
    """Copies of the buffers of layers, by name, which are set again if an error is raised."""
    before = {
        name: {key: buffer.clone() for key, buffer in layer.named_buffers(recurse=False)}
        for name, layer in layers.items()
    }
    try:
        yield before
    except BaseException:
        for name, layer in layers.items():
            set_buffers(layer, before[name])
        raise


# One pass over the data.

Use = Callable[[nn.Module, Moments, Moments], None]
"""Called before a layer runs, with the moments of this batch and those of all batches so far."""


def measure(
    net: nn.Module, data: Data, layers: Mapping[str, nn.Module], use: Use, training: Collection[nn.Module] = ()
) -> tuple[dict[str, Moments], int]:
    """Measures the inputs of layers over the data of all ranks, in evaluation mode.

    Args:
        net: the network.
        data: the batches of this rank.
        layers: the layers, by name.
        use: see `Use`.
        training: the layers that run in training mode.

    Returns:
        Name -> moments, of the layers that have run; and the number of batches.

    Raises:
        InputError: an input has NaN or infinite values, or the data no batch; on all ranks, also if another has failed.
    """
    error, count = None, 0
    found: dict[str, Moments] = {}
    try:
        with evaluation(net, except_for=training), measured(layers, use, found):
            for batch in batches(net, data):
                predict(net, batch)
                count += 1
    except Exception as failure:  # the other ranks must not wait for this one
        error = failure
    parts = gathered((error and str(error), count, found))
    if error is not None:
        raise error
    for rank, (failed, _, _) in enumerate(parts):
        if failed is not None:
            raise InputError(f"rank {rank} has failed, so that no rank has new statistics: {failed}")
    if not (total := sum(seen for _, seen, _ in parts)):
        raise InputError("the data has no batches: give a loader that is not empty, or a list, not a used generator.")
    of_ranks = {name: [each[name] for _, _, each in parts if name in each] for name in layers}
    return {name: reduce(Moments.__add__, each) for name, each in of_ranks.items() if each}, total


@contextmanager
def measured(layers: Mapping[str, nn.Module], use: Use, found: dict[str, Moments]) -> Iterator[None]:
    """Adds the moments of the inputs of layers to `found`, while they run."""

    def take(name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x, mask = inputs(*args, **kwargs)
        last = x.detach().movedim(getattr(layer, "channel_dim", 1), -1)
        rows = last.flatten(0, -2) if mask is None else last[mask]
        if not len(rows):
            return
        batch = Moments.of(rows, len(x))
        if not batch.squares.isfinite().all():
            raise InputError(
                f"the input of {name} has NaN or infinite values; remove them from the data, or let "
                f"normzoo.callbacks.FiniteLoss say which layer makes them."
            )
        found[name] = found[name] + batch if name in found else batch
        use(layer, batch, found[name])

    hooks = [layer.register_forward_pre_hook(partial(take, name), with_kwargs=True) for name, layer in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def inputs(*args: Tensor, **kwargs: Tensor) -> tuple[Tensor, Tensor | None]:
    """The input of a layer, and its mask, from the arguments of its forward: (x, mask) or torch's (input)."""
    x, *mask = [*args, *(kwargs[name] for name in ("input", "x", "mask") if name in kwargs)]
    return x, mask[0] if mask else None


def gathered(value: Any) -> list[Any]:
    """The value of each rank."""
    ranks = Ranks()
    answers = ranks.gather(value)
    ranks.close()
    return answers
