"""Networks too wide for one device: each rank keeps a share of every parameter, gradient and optimizer state.

"Fully sharded data parallel" (FSDP2): a module gathers its parameters before it computes and frees them afterwards.
Buffers, such as running statistics, are small, and every rank keeps them whole.
"""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from functools import partial
from typing import Any, cast

import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils.parametrize import ParametrizationList
from torch.optim import Optimizer

from normzoo.errors import InputError
from normzoo.norms._base import Norm


class FSDP(ModelParallelStrategy):
    """Lightning's strategy for FSDP2 over all ranks, with the checkpoints of a single process: one file, whole tensors.

    Lightning's FSDPStrategy is FSDP1, which refuses CPUs. The LightningModule calls `shard_network(self)` in
    `configure_model`.

    Args:
        timeout: how long a rank waits for the others in one exchange.
    """

    def __init__(self, timeout: timedelta = timedelta(minutes=30)) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=timeout)

    def setup_environment(self) -> None:
        # Lightning's "auto" is the number of machines. The number of ranks is known only now, and has no public setter.
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    # Lightning loads optimizers by functions of torch that refuse an empty state, such as that of SGD without momentum.

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.model is not None
        options = StateDictOptions(full_state_dict=True, strict=strict)
        set_model_state_dict(self.model, checkpoint["state_dict"], options=options)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        state = optimizer.state_dict()
        whole = {i: {name: gathered(v) for name, v in values.items()} for i, values in state["state"].items()}
        return {**state, "state": whole}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            shares = {
                i: {name: like(parameters[i], v) for name, v in values.items()} for i, values in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": shares})


def gathered(value: Any) -> Any:
    """A tensor from the shares of all ranks, on the CPU; any other value as it is."""
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def like(parameter: Tensor, value: Any) -> Any:
    """This rank's share of an optimizer's tensor, split as the parameter is; any other value as it is."""
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


def shard_network(module: LightningModule) -> None:
    """Shards `module.net` if the strategy is FSDP, for `configure_model`; otherwise does nothing.

    >>> class Task(LightningModule):
    ...     def configure_model(self) -> None:
    ...         shard_network(self)

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
    shard(cast(nn.Module, module.net), module.device_mesh)


def shard(net: nn.Module, mesh: DeviceMesh) -> None:
    """Splits the parameters of a network over the ranks; a second call does nothing.

    A child of an `nn.Sequential` or `nn.ModuleList`, such as a block, is gathered by itself, the rest with the network.
    Weight norms are computed on the whole weight.

    Args:
        net: the network, with the same parameters on all ranks.
        mesh: the ranks, with the dimensions "data_parallel" and "tensor_parallel" of Lightning's ModelParallelStrategy.

    Raises:
        InputError: the mesh has several ranks in "tensor_parallel".
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
    """Averages a gradient over the ranks, as FSDP does for the parameters that it splits."""
    assert parameter.grad is not None
    dist.all_reduce(parameter.grad, group=group)
    parameter.grad /= dist.get_world_size(group)


def units(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that are gathered by themselves, the innermost first.

    Not those inside a norm or a parametrized weight, which the surrounding module uses.
    """
    for child in module.children():
        if isinstance(child, Norm | ParametrizationList):
            continue
        yield from units(child)
        if isinstance(module, nn.Sequential | nn.ModuleList) and any(True for _ in child.parameters()):
            yield child
