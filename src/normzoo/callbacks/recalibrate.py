"""Running statistics that are exact for the weights that are evaluated."""

import copy
from collections.abc import Iterator
from itertools import islice
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.utilities import CombinedLoader
from lightning_utilities.core.apply_func import apply_to_collection
from torch.utils.data import DataLoader

from normzoo.errors import InputError
from normzoo.monitoring.layers import Layers
from normzoo.surgery._batches import Batches
from normzoo.surgery.recalibrate import recalibrate


class Recalibrate(Callback):
    """Recalibrates the running statistics before each validation and after training, by `normzoo.surgery.recalibrate`.

    Averaged weights need it: the average of the running statistics is not that of the averaged network. List it after
    `WeightAveraging`, `EMAWeightAveraging` or `StochasticWeightAveraging`. The checkpoints hold the new statistics.

    The weights train as without it, unless a layer normalizes by its running statistics in training, such as
    `BatchRenorm`. Each rank reads its own share of the training batches; a resumed run ends as one without an
    interruption. The network takes a batch by `predict_step` if it has one, else by `forward`.

    Args:
        batches: the number of training batches per rank; None for all.
        where: which layers: patterns of module names such as "net.backbone.*"; of a module with children, all those
            inside.

    Raises:
        InputError: batches below 1; a callback that averages weights comes after this one; an error of `recalibrate`.

    >>> from lightning.pytorch.callbacks import EMAWeightAveraging
    >>> trainer = Trainer(callbacks=[EMAWeightAveraging(), Recalibrate(batches=50)], logger=False)
    """

    def __init__(self, batches: int | None = 100, where: Layers = "*") -> None:
        if batches is not None and (isinstance(batches, bool) or not isinstance(batches, int) or batches < 1):
            raise InputError(
                f"Recalibrate(batches={batches!r}): an integer of at least 1, or None for all of the training data."
            )
        self.batches = batches
        self.where = where

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined] # set by Lightning, undeclared
        for later in callbacks[callbacks.index(self) :]:
            if isinstance(later, WeightAveraging | StochasticWeightAveraging):
                raise InputError(
                    f"Recalibrate comes before {type(later).__name__} in the list of callbacks, and would see weights "
                    f"that are not averaged yet: list it after."
                )

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.recalibrate(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.recalibrate(trainer, pl_module)

    def recalibrate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Recalibrates the module over its training batches, moved once, by the Trainer's strategy."""
        data = Batches(self.training_batches(trainer), trainer.strategy.batch_to_device)
        with trainer.precision_plugin.forward_context():
            recalibrate(pl_module, data, where=self.where)

    def training_batches(self, trainer: Trainer) -> Iterator[Any]:
        """The training batches; their loader starts, and draws its random numbers, with the first."""
        loaders = apply_to_collection(trainer.train_dataloader, DataLoader, again)
        for batch, _, _ in islice(CombinedLoader(loaders, "max_size_cycle"), self.batches):
            yield batch


def again(loader: "DataLoader[Any]") -> "DataLoader[Any]":
    """A loader of the same batches, whose iteration does not end that of the loader."""
    new = copy.copy(loader)
    if loader.persistent_workers:
        new._iterator = None  # the one iterator of its workers, which training uses; it has no public name
    return new
