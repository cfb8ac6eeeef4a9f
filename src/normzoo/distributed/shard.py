"""Networks too wide for one device: each rank keeps a share of every parameter, gradient and optimizer state.

"Fully sharded data parallel" (FSDP2): a module gathers its parameters when it is about to compute, and lets go of them
afterwards. Buffers, such as running statistics, are small, and every rank keeps them whole.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.utils.parametrize import ParametrizationList

from normzoo.errors import InputError
from normzoo.norms._base import Norm


class FSDP(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, over all ranks there are, with checkpoints that are one file as any other.

    Lightning's own FSDPStrategy is of the first kind, and refuses CPUs.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def shard_network(module: LightningModule) -> None:
    """Shards `module.net` if the strategy is FSDP, for `configure_model`; otherwise does nothing.

    Args:
        module: attached to a Trainer, with its network as the attribute `net`.

    Raises:
        InputError: the strategy splits layers too.
    """
    if module.device_mesh is None:
        return
    # Lightning applies SyncNorms under DDP but not under this strategy, and keeps the plugin in a private attribute.
    layer_sync = getattr(module.trainer.strategy, "_layer_sync", None)
    if layer_sync is not None and module.trainer.training:
        layer_sync.apply(module)
    assert isinstance(module.net, nn.Module)
    shard(module.net, module.device_mesh)


def shard(net: nn.Module, mesh: DeviceMesh) -> None:
    """Splits the parameters of a network over the ranks; once for all.

    What stands in an `nn.Sequential` or `nn.ModuleList`, such as a block, is gathered by itself, the rest with the
    network. Weight norms are computed on the whole weight, as without.

    Args:
        net: the network, with the same parameters on all ranks.
        mesh: the ranks, with the dimensions "data_parallel" and "tensor_parallel", as Lightning's ModelParallelStrategy
            has them.

    Raises:
        InputError: the ranks are meant to split layers too.
    """
    if isinstance(net, FSDPModule):
        return
    if (ways := mesh["tensor_parallel"].size()) > 1:
        raise InputError(
            f"tensor_parallel_size={ways}: parameters are sharded over the ranks, layers are not; set "
            f"data_parallel_size to the number of ranks, and tensor_parallel_size to 1."
        )
    ranks = mesh["data_parallel"]
    scalars = {p for p in net.parameters() if p.ndim == 0}  # cannot be split
    for unit in [*units(net), net]:
        for parameter in unit.parameters():
            parameter.data = parameter.data.contiguous()
        fully_shard(unit, mesh=ranks, ignored_params=scalars)
    for scalar in scalars:
        scalar.register_post_accumulate_grad_hook(partial(average, ranks.get_group()))


def average(group: Any, parameter: Tensor) -> None:
    """Makes a gradient the mean over the ranks, as FSDP does with those of the parameters that it splits."""
    assert parameter.grad is not None
    dist.all_reduce(parameter.grad, group=group)
    parameter.grad /= dist.get_world_size(group)


def units(module: nn.Module) -> Iterator[nn.Module]:
    """What is gathered by itself, the innermost first.

    Not what stands in a norm or behind a parametrized weight: that is no step of its own, but used by what holds it.
    """
    for child in module.children():
        if isinstance(child, Norm | ParametrizationList):
            continue
        yield from units(child)
        if isinstance(module, nn.Sequential | nn.ModuleList) and any(True for _ in child.parameters()):
            yield child
