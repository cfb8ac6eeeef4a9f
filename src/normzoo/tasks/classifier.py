"""The LightningModules: network + loss + metrics + optimizer."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from normzoo.distributed.ranks import mean_over_ranks
from normzoo.distributed.shard import shard_network
from normzoo.errors import InputError
from normzoo.models._base import Network
from normzoo.norms._base import Norm
from normzoo.tasks.schedules import WarmupCosine

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]
Batch = tuple[Tensor, Tensor]

# A training curve of a short run has at least this many points, if it has as many steps.
CURVE_POINTS = 50


class Classifier(LightningModule):
    """Trains any network that maps images (N, C, H, W) to logits (N, K), by cross entropy.

    Logs `train/loss`, `train/accuracy` and `lr` every `trainer.log_every_n_steps` steps, or more often in a run too
    short for 50 points; after each epoch `val/loss`, `val/accuracy` and `val/calibration_error` (the expected
    calibration error over 15 bins); and the same under `test/`.

    Args:
        net: the network.
        optimizer: builds the optimizer from groups of parameters. Norm parameters, biases and other vectors are a
            group of their own, without weight decay.
        lr_scheduler: builds the schedule from the optimizer; None keeps the rate. One with `total_steps` (torch's
            OneCycleLR, our WarmupCosine, which is told the length of the run) moves every step, any other every epoch.
        label_smoothing: share of the target's probability that is spread over all classes, in [0, 1).
        num_classes: number of classes K; None for the network's own `num_classes`.
        channels_last: keep convolution weights and activations with their channels next to each other in memory,
            which convolutions on CPUs and tensor cores prefer. Changes results by rounding only.
        compile: compile the network by `torch.compile` when fitting starts; needs a C++ compiler and about a minute.

    Attributes:
        curve: the newest point of the training curve, for a progress bar to show.

    Raises:
        InputError: no number of classes to be had; a label smoothing out of range.
    """

    # What a checkpoint is the best by, for the command line.
    monitor = "val/accuracy"
    monitor_mode = "max"

    def __init__(
        self,
        net: Network | nn.Module,
        *,
        optimizer: OptimizerFactory = torch.optim.AdamW,
        lr_scheduler: SchedulerFactory | None = None,
        label_smoothing: float = 0.0,
        num_classes: int | None = None,
        channels_last: bool = True,
        compile: bool = False,
    ) -> None:
        super().__init__()
        # On the command line, the resolved configuration: enough to build the module anew from a checkpoint. In Python
        # the network is an object, which does not belong into a checkpoint.
        if _given_hyperparameters.get() is not None:
            self.save_hyperparameters(logger=False)
        classes = num_classes or getattr(net, "num_classes", None)
        if not isinstance(classes, int) or classes < 1:
            raise InputError(
                f"Classifier(num_classes={num_classes}): the network, a {type(net).__name__}, does not say its number "
                f"of classes; pass num_classes, or give the network an attribute of that name."
            )
        if not 0 <= label_smoothing < 1:
            raise InputError(f"Classifier(label_smoothing={label_smoothing}): it lies in [0, 1); 0.1 is common.")
        self.net = net
        self.optimizer_factory = optimizer
        self.scheduler_factory = lr_scheduler
        self.label_smoothing = label_smoothing
        self.channels_last = channels_last
        self.compile_net = compile
        metrics: dict[str, Metric | MetricCollection] = {
            "accuracy": MulticlassAccuracy(classes, average="micro", validate_args=False),
            "calibration_error": MulticlassCalibrationError(classes, n_bins=15, validate_args=False),
        }
        self.metrics = nn.ModuleDict({stage: MetricCollection(metrics).clone() for stage in ("val", "test")})
        self.losses = nn.ModuleDict({stage: MeanMetric() for stage in ("val", "test")})
        self.curve: dict[str, float] = {}
        self.saved_steps: dict[str, Tensor] = {}

    def setup(self, stage: str) -> None:
        if self.channels_last and self._device_mesh is None:  # FSDP wants the usual format
            self.net.to(memory_format=torch.channels_last)
        if self.compile_net and stage == "fit":
            self.net.compile()
        if stage == "fit" and any(isinstance(m, Norm) and m.facts.takes_reference for m in self.net.modules()):
            self.trainer.num_sanity_val_steps = 0  # before training there is no reference batch to validate with

    def configure_model(self) -> None:
        shard_network(self)

    def forward(self, images: Tensor) -> Tensor:
        if images.dim() == 4 and not self.channels_last:
            images = images.contiguous()
        return self.net(images)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of logits (N, K) and labels (N,), the mean over samples, in nats."""
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    # Training. A metric logged by Lightning's self.log costs as much as a step of a small network; so each step leaves
    # its loss and its hits on the device, and they are read once per point of the curve.

    def on_train_start(self) -> None:
        interval: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined] # set by Lightning, undeclared
        steps = self.trainer.estimated_stepping_batches * self.trainer.accumulate_grad_batches
        self.log_every = int(max(1, min(interval, steps / CURVE_POINTS)))
        self.step_losses: list[Tensor] = []
        self.step_hits: list[Tensor] = []
        self.step_sizes: list[int] = []
        saved, self.saved_steps = self.saved_steps, {}
        if saved and len(saved["losses"]) == self.trainer.world_size:
            own = {name: values[self.global_rank].to(self.device) for name, values in saved.items()}
            self.step_losses, self.step_hits = list(own["losses"]), list(own["hits"])
            self.step_sizes = own["sizes"].tolist()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the steps since the last point of the training curve, (ranks, steps) of each; all ranks are here."""
        if not getattr(self, "step_sizes", None):
            return
        sizes = torch.tensor(self.step_sizes, device=self.device)
        own = {"losses": torch.stack(self.step_losses), "hits": torch.stack(self.step_hits), "sizes": sizes}

        def of_ranks(values: Tensor) -> Tensor:
            gathered = self.all_gather(values)
            assert isinstance(gathered, Tensor)
            return gathered.reshape(self.trainer.world_size, -1).cpu()

        checkpoint["curve"] = {name: of_ranks(values) for name, values in own.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.saved_steps = checkpoint.get("curve", {})

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss = mean_over_ranks(self.loss(logits, labels), len(labels))
        self.step_losses.append(loss.detach())
        self.step_hits.append((logits.detach().argmax(1) == labels).sum())
        self.step_sizes.append(len(labels))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if len(self.step_sizes) >= self.log_every:
            self.log_curve()

    def on_train_end(self) -> None:
        if self.step_sizes:
            self.log_curve()

    def log_curve(self) -> None:
        """Logs the mean loss and accuracy of the steps since the last point, over all ranks."""
        sums = torch.stack([torch.stack(self.step_losses).float().sum(), torch.stack(self.step_hits).float().sum()])
        counts = torch.tensor([len(self.step_sizes), sum(self.step_sizes)], device=self.device)
        totals = self.trainer.strategy.reduce(torch.cat([sums, counts]), reduce_op="sum")
        assert isinstance(totals, Tensor)
        loss, hits, steps, samples = totals.tolist()
        self.curve = {
            "train/loss": loss / steps,
            "train/accuracy": hits / samples,
            "lr": self.trainer.optimizers[0].param_groups[0]["lr"],
        }
        for logger in self.loggers:
            logger.log_metrics(self.curve, step=self.trainer.global_step)
        for kept in (self.step_losses, self.step_hits, self.step_sizes):
            kept.clear()

    # Evaluation.

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluate("test", batch)

    def on_validation_epoch_end(self) -> None:
        self.log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self.log_evaluation("test")

    def evaluate(self, stage: str, batch: Batch) -> None:
        images, labels = batch
        logits = self(images)
        self.metrics[stage].update(logits, labels)  # type: ignore[operator]
        self.losses[stage].update(self.loss(logits, labels), weight=len(labels))  # type: ignore[operator]

    def log_evaluation(self, stage: str) -> None:
        values = {"loss": self.losses[stage].compute(), **self.metrics[stage].compute()}  # type: ignore[operator]
        # All ranks have the same values already: sync_dist, the mean of them, changes nothing and calms Lightning.
        logged = {f"{stage}/{name}": value for name, value in values.items()}
        self.log_dict(logged, prog_bar=stage == "val", sync_dist=True)
        self.losses[stage].reset()  # type: ignore[operator]
        self.metrics[stage].reset()  # type: ignore[operator]

    def predict_step(self, batch: Batch | Tensor, batch_idx: int) -> dict[str, Tensor]:
        """The most probable class (N,) of each image and its probability (N,); the labels too where they are known."""
        images, labels = (batch, None) if isinstance(batch, Tensor) else batch
        probability, predicted = self(images).float().softmax(1).max(1)
        known = {} if labels is None else {"label": labels}
        return {"predicted": predicted, "probability": probability, **known}

    # Optimization.

    def configure_optimizers(self) -> OptimizerLRScheduler:
        try:
            optimizer = self.optimizer_factory(parameter_groups(self.net))
            if self.scheduler_factory is None:
                return optimizer
            scheduler = self.scheduler_factory(optimizer)
        except (TypeError, ValueError) as error:
            raise InputError(f"optimizer or lr_scheduler cannot be built: {error}; change their arguments.") from error
        by_step = hasattr(scheduler, "total_steps")
        if isinstance(scheduler, WarmupCosine) and scheduler.total_steps is None:
            steps = self.trainer.estimated_stepping_batches
            if steps == float("inf"):
                raise InputError(
                    f"{type(scheduler).__name__}(total_steps=None): the run has no end to schedule for; set "
                    f"trainer.max_epochs, trainer.max_steps or total_steps."
                )
            scheduler.set_total_steps(int(steps))
        interval = "step" if by_step else "epoch"
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": interval, "monitor": "val/loss"},
        }


def parameter_groups(net: nn.Module) -> list[dict[str, Any]]:
    """Splits the parameters of a network into those with and those without weight decay.

    Without: every parameter of a `Norm`, and every vector and scalar, which are biases and the parameters of other
    libraries' norms. Shrinking them does not make a network simpler, and shrinks what a norm has just learned.
    """
    of_norms = {id(p) for m in net.modules() if isinstance(m, Norm) for p in m.parameters(recurse=False)}
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for parameter in net.parameters():
        if parameter.requires_grad:
            (spared if parameter.ndim < 2 or id(parameter) in of_norms else decayed).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": spared, "weight_decay": 0.0}]
    return [part for group in groups for part in apart(group) if part["params"]]


def apart(group: dict[str, Any]) -> list[dict[str, Any]]:
    """A group of parameters as one of sharded and one of whole ones, which an optimizer does not take together."""
    kinds = [[p for p in group["params"] if isinstance(p, DTensor) is sharded] for sharded in (True, False)]
    return [{**group, "params": kind} for kind in kinds]
