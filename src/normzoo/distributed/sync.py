"""Batch statistics over all ranks, for a whole network, as a plugin of Lightning's Trainer."""

from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.layer_sync import LayerSync
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from normzoo.errors import InputError
from normzoo.norms._base import Norm
from normzoo.norms._ops.ranks import ranks


def is_torch_batch_norm(layer: nn.Module) -> bool:
    """Whether a layer is a BatchNorm of torch's; `BatchNorm` of the zoo derives from one."""
    return isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and not isinstance(layer, Norm)


class SyncNorms(LayerSync):
    """While a Trainer fits, layers take their statistics over the batches of all ranks: `plugins=[SyncNorms()]`.

    Every layer of the zoo that supports it (`facts.syncs`) gets `sync=True`, on any device. torch's BatchNorm becomes
    SyncBatchNorm, as with Lightning's TorchSyncBatchNorm, except on a CPU, which torch does not support. A warning
    names the layers that normalize over the batch and still do so on each rank alone. After fitting, the network has
    its own layers again, with what they learned. On one rank, results do not change.

    Raises:
        InputError: a layer's facts claim `syncs`, but it has no attribute `sync`.
    """

    def __init__(self) -> None:
        self.before: list[tuple[Any, bool]] = []  # layer, its sync
        self.converted: list[tuple[str, nn.Module]] = []  # the path of a BatchNorm of torch's in the model, the layer

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
        """Replaces each BatchNorm of torch's by a SyncBatchNorm with the same tensors."""
        synced: dict[nn.Module, nn.Module] = {}  # a layer that the model uses twice is replaced by one
        for name, layer in list(model.named_modules(remove_duplicate=False)):
            if is_torch_batch_norm(layer):
                if layer not in synced:
                    synced[layer] = nn.SyncBatchNorm.convert_sync_batchnorm(layer)
                model.set_submodule(name, synced[layer])
                self.converted.append((name, layer))

    def revert(self, model: nn.Module) -> nn.Module:
        while self.before:
            layer, sync = self.before.pop()
            layer.sync = sync
        while self.converted:
            name, layer = self.converted.pop()
            synced = model.get_submodule(name)
            # The same tensors, unless a move to another device has replaced them.
            for key, value in (*synced.named_parameters(recurse=False), *synced.named_buffers(recurse=False)):
                setattr(layer, key, value)
            layer.train(synced.training)
            model.set_submodule(name, layer)
        return model


def device_type(model: nn.Module) -> str:
    """Where a model will be trained: Lightning sets `device` before it synchronizes layers and moves the model."""
    if isinstance(model, LightningModule):
        return model.device.type
    return next((p.device.type for p in model.parameters()), "cpu")


def cannot_sync(layer: nn.Module) -> bool:
    """Whether a layer of the zoo, or of the user's, normalizes over the batch and cannot synchronize."""
    return (
        isinstance(layer, Norm)
        and layer.facts.acts_on == "activation"
        and "N" in layer.facts.axes
        and not layer.facts.syncs
    )


def warn_of_others(model: nn.Module) -> None:
    """Names the layers that normalize over the batch and are not synchronized, and what to do."""
    layers = [(f"{name} ({type(layer).__name__})", layer) for name, layer in model.named_modules()]
    warn_of(
        [name for name, layer in layers if is_torch_batch_norm(layer)],
        "torch synchronizes its BatchNorm on GPUs only; use normzoo.norms.BatchNorm, which reads and writes the same "
        "state_dict",
    )
    warn_of(
        [name for name, layer in layers if cannot_sync(layer)],
        "give the layer an argument `sync`, and `facts` with syncs=True, or use one that can: see `normzoo norms NAME`",
    )


def warn_of(names: list[str], remedy: str) -> None:
    """Warns once, on the first rank, of layers that each rank normalizes alone."""
    if names:
        rank_zero_warn(f"Each rank normalizes by its own batch alone in {', '.join(names)}: {remedy}.")
