"""Running statistics, computed exactly over a data set."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from normzoo.errors import InputError
from normzoo.monitoring.layers import Layers
from normzoo.surgery._batches import Data
from normzoo.surgery._moments import (
    Buffers,
    Moments,
    gathered,
    has_moments,
    is_frozen,
    measure,
    restored_on_error,
    running_buffers,
    set_buffers,
    tracking_layers,
)
from normzoo.surgery.report import Report, counted


def recalibrate(net: nn.Module, data: Data, *, where: Layers = "*") -> Report:
    """Computes the running statistics of a network again, exactly over all of the data and all ranks.

    `running_mean = mean(x)`,  `running_var = var(x)`, over all values that a channel takes in all batches

    The variance is that of the whole set, as in the paper; the average of the batches' variances, which
    `torch.optim.swa_utils.update_bn` computes, lacks the spread of their means. It is unbiased where the layer stores
    the unbiased one, as torch's layers do.

    One pass. Each layer normalizes a batch by the batch's own statistics, as in training: the larger the batches, the
    better. All else is in evaluation mode, so that there is no dropout. Layers whose running statistics are no moments
    of their input, such as `RangeBatchNorm`, get their own average over the batches. Those of `OnlineNorm` and of
    frozen layers stay.

    Use it after averaging weights, with small batches, for another data set, and for weights without statistics. In
    place; weights, gradients, modes and random numbers stay as they are. Each of several ranks passes its own share of
    the data, of any size, and all get the same statistics.

    Args:
        net: the network; also inside DistributedDataParallel or torch.compile, or a LightningModule.
        data: an iterable of batches: inputs, tuples or lists that begin with the inputs, or dictionaries of arguments.
            A LightningModule with a `predict_step` takes them by it. Or a LightningDataModule: its training batches.
        where: which layers: a pattern of names such as "layer4.*", a class, or several.

    Returns:
        A table: by how many standard deviations the mean of a channel moved, and by which factor its standard deviation
        changed, up or down, at most. `undo` sets the old statistics.

    Raises:
        InputError: there is no layer to recalibrate; data without batches, or with NaN or infinity; a network on the
            meta device. The network is as before.

    Reference: Yuxin Wu, Justin Johnson. Rethinking "Batch" in BatchNorm. 2021. arXiv 2105.07576, section 3.

    >>> net = nn.Sequential(nn.BatchNorm1d(2))
    >>> print(recalibrate(net, [torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 3.0]])]))
    recalibrated 1 layer over 2 batches
      layer  kind         statistics  mean moved  std times
      0      BatchNorm1d  exact       1.4         1.4
    >>> net[0].running_mean, net[0].running_var
    (tensor([1., 2.]), tensor([2., 2.]))
    """
    layers = tracking_layers(net, where)
    kept = {name: reason for name, layer in layers.items() if (reason := why_kept(layer))}
    chosen = {name: layer for name, layer in layers.items() if name not in kept}
    if not chosen:
        raise InputError(
            f"recalibrate(where={where!r}): all layers keep their statistics ({', '.join(sorted({*kept.values()}))}); "
            f"unfreeze them, or name others."
        )
    average = {name: layer for name, layer in chosen.items() if not has_moments(layer)}

    def use(layer: nn.Module, batch: Moments, so_far: Moments) -> None:
        if has_moments(layer):
            set_buffers(layer, {"running_mean": batch.mean, "running_var": batch.var()})

    with restored_on_error(chosen) as before:
        with averaging(average.values()):
            found, count = measure(net, data, chosen, use, average.values())
        averages = over_ranks(average)
        new = {name: averages.get(name) or exact(chosen[name], found[name]) for name in found}
        for name, layer in chosen.items():
            set_buffers(layer, before[name] | new.get(name, {}))
    done = {name: "average over batches" if name in average else "exact" for name in new}
    reasons = {name: f"kept: {kept.get(name, 'the layer did not run')}" for name in layers}
    rows = [row(name, layer, (reasons | done)[name], before.get(name, {})) for name, layer in layers.items()]
    title = f"recalibrated {counted(new, 'layer')} over {counted(count, 'batch')}"
    return Report(title=title, rows=rows, steps=[partial(set_buffers, layers[name], before[name]) for name in new])


def why_kept(layer: nn.Module) -> str | None:
    """Why a layer keeps its running statistics; None if it does not."""
    if is_frozen(layer):
        return "frozen"
    return None if getattr(layer, "averages_batches", True) else "no average over batches"


def exact(layer: nn.Module, moments: Moments) -> dict[str, Any]:
    """The running statistics of a layer from the moments of its input."""
    var = moments.var(unbiased=getattr(layer, "stores_unbiased", True))
    return {"running_mean": moments.mean, "running_var": var, "num_batches_tracked": moments.batches}


@contextmanager
def averaging(layers: Collection[Any]) -> Iterator[None]:
    """Lets layers average their statistics over the batches to come, each rank its own."""
    settings = [(layer, layer.momentum, layer.sync) for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum, layer.sync = None, False
    try:
        yield
    finally:
        for layer, momentum, sync in settings:
            layer.momentum, layer.sync = momentum, sync


def over_ranks(layers: Mapping[str, nn.Module]) -> dict[str, dict[str, Any]]:
    """The running statistics of layers that average over batches, averaged over the batches of all ranks."""
    parts = gathered({name: state_of(layer) for name, layer in layers.items()})
    found: dict[str, dict[str, Any]] = {}
    for name, layer in layers.items():
        total = sum(int(part[name]["num_batches_tracked"]) for part in parts)
        sums = {
            key: sum(part[name][key].double() * part[name]["num_batches_tracked"] for part in parts)
            for key in running_buffers(layer)
        }
        found[name] = {key: value / max(total, 1) for key, value in sums.items()} | {"num_batches_tracked": total}
    return found


def state_of(layer: nn.Module) -> Buffers:
    """The buffers of a layer, on the CPU."""
    return {key: buffer.detach().cpu() for key, buffer in layer.named_buffers(recurse=False)}


def row(name: str, layer: Any, statistics: str, before: Buffers) -> dict[str, Any]:
    """A row of the table: by how much the channel changed that changed most.

    `max |mean - mean_before| / std`,  `max(std / std_before, std_before / std)`, both with eps in the variance
    """
    now, std, mean_moved, std_times = running_buffers(layer), torch.ones(()), None, None
    if "running_var" in before:
        std, old = ((one["running_var"] + layer.eps).sqrt() for one in (now, before))
        std_times = float(torch.maximum(std / old, old / std).max())
    if "running_mean" in before:
        mean_moved = float(((now["running_mean"] - before["running_mean"]) / std).abs().max())
    kind = type(layer).__name__
    return {"layer": name, "kind": kind, "statistics": statistics, "mean moved": mean_moved, "std times": std_times}
