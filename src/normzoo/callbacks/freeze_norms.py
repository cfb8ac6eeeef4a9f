"""Running statistics that are fixed from an epoch on."""

from lightning.pytorch import Callback, LightningModule, Trainer

from normzoo.errors import InputError
from normzoo.monitoring.layers import Layers
from normzoo.surgery.freeze import freeze, with_something_to_freeze


class FreezeNorms(Callback):
    """Freezes the running statistics of normalization layers from an epoch on, by `normzoo.surgery.freeze`.

    From then on the layers normalize by them in training, too. Their parameters continue to train. A resumed run ends
    as one without an interruption. The layers stay frozen after `fit`.

    Args:
        from_epoch: the first epoch, counted from 0, in which they are frozen.
        where: which layers: patterns of module names such as "net.backbone.*"; of a module with children, all those
            inside.

    Raises:
        InputError: from_epoch is not an integer of at least 0; when training starts, no layer there keeps running
            statistics.

    >>> trainer = Trainer(callbacks=[FreezeNorms(from_epoch=5)], logger=False)
    """

    def __init__(self, from_epoch: int = 0, where: Layers = "*") -> None:
        if isinstance(from_epoch, bool) or not isinstance(from_epoch, int) or from_epoch < 0:
            raise InputError(f"FreezeNorms(from_epoch={from_epoch!r}): from_epoch must be an integer of at least 0.")
        self.from_epoch = from_epoch
        self.where = where

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with_something_to_freeze(pl_module, self.where, parameters=False)
        self.on_train_epoch_start(trainer, pl_module)  # Lightning does not call it for an epoch that is resumed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch >= self.from_epoch:
            freeze(pl_module, self.where)
