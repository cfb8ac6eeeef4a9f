"""Running statistics of a whole network, computed again."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from normzoo.norms._ops.running import RunningStatistics


@torch.no_grad()
def update_running_stats(batches: Iterable[Any], net: nn.Module, device: torch.device | str | None = None) -> None:
    """Computes the running statistics of a network again, as averages over batches, for example after weight averaging.

    As `torch.optim.swa_utils.update_bn`, which knows torch's layers only. Frozen layers keep their statistics. Those of
    OnlineNorm, which are not averages over batches, continue as in training.

    Args:
        batches: inputs of the network, or tuples or lists that begin with one.
        net: the network.
        device: where the inputs are moved; None leaves them where they are.

    >>> from normzoo.norms import GhostBatchNorm
    >>> net = nn.Sequential(nn.Linear(4, 8), GhostBatchNorm(8))
    >>> update_running_stats([torch.randn(16, 4) for _ in range(3)], net)
    >>> net[1].num_batches_tracked
    tensor(3)
    """
    kinds = RunningStatistics | nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
    layers = [m for m in net.modules() if isinstance(m, kinds) and getattr(m, "averages_batches", True)]
    momenta, modes = {layer: layer.momentum for layer in layers}, {m: m.training for m in net.modules()}
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
        net.train()
        for batch in batches:
            x = batch[0] if isinstance(batch, tuple | list) else batch
            net(x if device is None else x.to(device))
    finally:
        for layer, momentum in momenta.items():
            layer.momentum = momentum
        for module, training in modes.items():
            module.training = training
