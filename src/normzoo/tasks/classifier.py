"""Image classification: network, loss, metrics and optimizer. Copy this file to write a task of your own."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from normzoo.distributed import mean_over_ranks, shard_network
from normzoo.errors import InputError
from normzoo.models import Network
from normzoo.norms import Norm
from normzoo.tasks.parameter_groups import parameter_groups
from normzoo.tasks.schedules import WarmupCosine

Batch = tuple[Tensor, Tensor]


class Classifier(LightningModule):
    """Trains any network that maps images (N, C, H, W) to logits (N, K), by cross entropy.

    Logs `val/loss`, `val/accuracy` and `val/calibration_error` (the expected calibration error over 15 bins) after each
    epoch, and the same under `test/`. `normzoo.callbacks.TrainingCurve` logs `train/loss`, `train/accuracy` and `lr`.

    >>> from normzoo.models import MLP
    >>> task = Classifier(MLP((1, 8, 8), 10), label_smoothing=0.1)

    Args:
        net: the network.
        optimizer: builds the optimizer from parameter groups (see `parameter_groups`).
        lr_scheduler: builds the schedule from the optimizer; None for a constant rate. A schedule with `total_steps`
            (OneCycleLR, WarmupCosine) moves after every optimizer step, any other after every epoch.
        label_smoothing: the share of the target's probability that is spread over all classes, in [0, 1).
        num_classes: the number of classes K; None for the network's own `num_classes`.
        channels_last: store images and convolution weights in channels-last format, which is faster on CPUs and tensor
            cores. Changes results by rounding only.
        compile: compile the network by `torch.compile` when fitting starts; needs a C++ compiler and about a minute.

    Raises:
        InputError: the number of classes is unknown, or the label smoothing is out of range.
    """

    # The command line keeps the best checkpoint by this metric.
    monitor = "val/accuracy"
    monitor_mode = "max"

    def __init__(
        self,
        net: Network | nn.Module,
        *,
        optimizer: Callable[[Iterable[Any]], Optimizer] = torch.optim.AdamW,
        lr_scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        label_smoothing: float = 0.0,
        num_classes: int | None = None,
        channels_last: bool = True,
        compile: bool = False,
    ) -> None:
        super().__init__()
        classes = num_classes or getattr(net, "num_classes", None)
        if not isinstance(classes, int) or classes < 1:
            raise InputError(
                f"Classifier(num_classes={num_classes}): the number of classes is unknown, as {type(net).__name__} has "
                f"no attribute num_classes; pass num_classes, or add the attribute."
            )
        if not 0 <= label_smoothing < 1:
            raise InputError(f"Classifier(label_smoothing={label_smoothing}): must be in [0, 1); 0.1 is common.")
        self.net = net
        self.build_optimizer = optimizer
        self.build_scheduler = lr_scheduler
        self.label_smoothing = label_smoothing
        self.channels_last = channels_last
        self.compile_net = compile
        metrics: dict[str, Metric | MetricCollection] = {
            "accuracy": MulticlassAccuracy(classes, average="micro", validate_args=False),
            "calibration_error": MulticlassCalibrationError(classes, n_bins=15, validate_args=False),
        }
        self.val_metrics = MetricCollection(metrics, prefix="val/")
        self.test_metrics = MetricCollection(metrics, prefix="test/").clone()
        self.val_loss, self.test_loss = MeanMetric(), MeanMetric()

    def setup(self, stage: str) -> None:
        if self.channels_last and self.device_mesh is None:  # FSDP needs the default format
            self.net.to(memory_format=torch.channels_last)
        if self.compile_net and stage == "fit":
            self.net.compile()
        if stage == "fit" and any(isinstance(m, Norm) and m.facts.takes_reference for m in self.net.modules()):
            self.trainer.num_sanity_val_steps = 0  # such a norm cannot evaluate before its first training batch

    def configure_model(self) -> None:
        shard_network(self)  # under FSDP

    def forward(self, images: Tensor) -> Tensor:
        if images.dim() == 4 and not self.channels_last:
            images = images.contiguous()
        return self.net(images)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of logits (N, K) and labels (N,), the mean over samples, in nats."""
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        images, labels = batch
        logits = self(images)
        loss = mean_over_ranks(self.loss(logits, labels), len(labels))
        return {"loss": loss, "accuracy": logits.detach().argmax(1) == labels}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluate("val", self.val_metrics, self.val_loss, batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluate("test", self.test_metrics, self.test_loss, batch)

    def evaluate(self, stage: str, metrics: MetricCollection, loss: MeanMetric, batch: Batch) -> None:
        images, labels = batch
        logits = self(images)
        metrics.update(logits, labels)
        loss.update(self.loss(logits, labels), weight=len(labels))
        # Metric objects average over all samples of all ranks, and Lightning computes and resets them after the epoch.
        self.log(f"{stage}/loss", loss, prog_bar=stage == "val")
        self.log_dict(metrics, prog_bar=stage == "val")

    def predict_step(self, batch: Batch | Tensor, batch_idx: int) -> dict[str, Tensor]:
        """The most probable class (N,) of each image and its probability (N,), and the label if it is known."""
        images, labels = (batch, None) if isinstance(batch, Tensor) else batch
        probability, predicted = self(images).float().softmax(1).max(1)
        known = {} if labels is None else {"label": labels}
        return {"predicted": predicted, "probability": probability, **known}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        try:
            optimizer = self.build_optimizer(parameter_groups(self.net))
            scheduler = None if self.build_scheduler is None else self.build_scheduler(optimizer)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"optimizer or lr_scheduler cannot be built: {error}; change its arguments, or choose another class."
            ) from error
        if scheduler is None:
            return optimizer
        if isinstance(scheduler, WarmupCosine) and scheduler.total_steps is None:
            scheduler.set_total_steps(self.trainer.estimated_stepping_batches)
        interval = "step" if hasattr(scheduler, "total_steps") else "epoch"
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": interval, "monitor": "val/loss"},
        }
