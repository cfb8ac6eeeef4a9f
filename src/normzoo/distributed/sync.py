"""Statistics over the batch of all ranks, switched on for a whole network by Lightning's Trainer."""

from typing import Any, TypeGuard

from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.layer_sync import LayerSync
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from normzoo.errors import InputError
from normzoo.norms._base import Norm
from normzoo.norms._ops.ranks import ranks


class SyncNorms(LayerSync):
    """While a Trainer fits, layers take their statistics over the batches of all ranks: `plugins=[SyncNorms()]`.

    Every layer of the zoo that can (`facts.syncs`) has `sync=True` for that time, on any device. torch's own BatchNorm
    becomes SyncBatchNorm, as with Lightning's TorchSyncBatchNorm, except on a CPU, which torch refuses. A warning names
    the layers that normalize over the batch and go on doing so on each rank alone. When fitting has ended the network
    is what it was, with what it has learned. One rank has nothing to synchronize: results stay the same.
    """

    def __init__(self) -> None:
        self.before: list[tuple[Any, bool]] = []  # layer, its sync
        self.converted: list[tuple[nn.Module, str, _BatchNorm, nn.Module]] = []  # parent, name, layer, its stand-in

    def apply(self, model: nn.Module) -> nn.Module:
        able = [layer for layer in model.modules() if isinstance(layer, Norm) and layer.facts.syncs]
        for layer in able:
            if not hasattr(layer, "sync"):
                raise InputError(
                    f"{type(layer).__name__}: its facts say syncs=True, and it has no attribute `sync`; give the layer "
                    f"an argument `sync`, which `__init__` keeps, or `facts` with syncs=False."
                )
        for layer in able:
            self.before.append((layer, bool(layer.sync)))
            layer.sync = True  # type: ignore[assignment]  # torch expects tensors and modules
        if device_type(model) != "cpu":
            self.convert(model)
        if ranks() is not None:
            warn_of_others(model)
        return model

    def convert(self, model: nn.Module) -> None:
        """Puts a SyncBatchNorm with the same tensors in the place of each BatchNorm of torch's."""
        stand_ins: dict[nn.Module, nn.Module] = {}  # a layer that stands in two places has one
        for parent in list(model.modules()):
            for name, layer in list(parent._modules.items()):
                if is_torchs(layer):
                    if layer not in stand_ins:
                        stand_ins[layer] = nn.SyncBatchNorm.convert_sync_batchnorm(layer)
                    parent.add_module(name, stand_ins[layer])
                    self.converted.append((parent, name, layer, stand_ins[layer]))

    def revert(self, model: nn.Module) -> nn.Module:
        while self.before:
            layer, sync = self.before.pop()
            layer.sync = sync
        while self.converted:
            parent, name, layer, stand_in = self.converted.pop()
            # The same tensors, unless a move to another device has replaced them.
            layer._parameters.update(stand_in._parameters)
            layer._buffers.update(stand_in._buffers)
            layer.train(stand_in.training)
            parent.add_module(name, layer)
        return model


def device_type(model: nn.Module) -> str:
    """Where a model will be trained: a Trainer synchronizes layers before it moves the model."""
    if isinstance(model, LightningModule) and model._trainer is not None:
        return model._trainer.strategy.root_device.type
    return next((p.device.type for p in model.parameters()), "cpu")


def is_torchs(layer: nn.Module | None) -> TypeGuard[_BatchNorm]:
    """Whether a layer is a BatchNorm of torch's that each rank computes alone."""
    return isinstance(layer, _BatchNorm) and not isinstance(layer, nn.SyncBatchNorm)


def is_deaf(layer: nn.Module) -> bool:
    """Whether a layer of ours, or of the user's, normalizes over the batch and cannot hear of other ranks."""
    return (
        isinstance(layer, Norm)
        and layer.facts.acts_on == "activation"
        and "N" in layer.facts.axes
        and not layer.facts.syncs
    )


def warn_of_others(model: nn.Module) -> None:
    """Names the layers that normalize over the batch and are not synchronized, and what to do."""
    remedies = {
        is_torchs: "torch synchronizes its BatchNorm on GPUs only; use normzoo.norms.BatchNorm, which reads and writes "
        "the same state_dict",
        is_deaf: "give the layer an argument `sync`, and `facts` with syncs=True, or use one that can: see `normzoo "
        "norms NAME`",
    }
    for kind, remedy in remedies.items():
        found = [f"{name} ({type(layer).__name__})" for name, layer in model.named_modules() if kind(layer)]
        if found:
            rank_zero_warn(f"Each rank normalizes by its own batch alone in {', '.join(found)}: {remedy}.")
