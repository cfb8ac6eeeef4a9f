"""How far does the gradient predict the loss?"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normzoo.errors import InputError
from normzoo.metrics import gradient_change, loss_range
from normzoo.metrics.landscape import change_per_distance
from normzoo.monitoring.monitor import Monitor
from normzoo.monitoring.sample import Seen, Step, Table
from normzoo.monitoring.schedule import Schedule
from normzoo.monitoring.writer import EventWriter

CURVE = {
    "loss": "loss at theta - eta g",
    "gradient_change": "norm of the change of the gradient from theta to theta - eta g",
}
STEPS = tuple(round(0.05 * i, 2) for i in range(1, 9))


class LossLandscape(Monitor):
    """Shows how loss and gradient vary along the gradient: a smooth landscape is one in which large steps are safe.

    At the weights theta of the sampled step, with g the gradient of its batch, `theta - eta g` is tried for each eta:

    - `loss`, `loss_min`, `loss_max`, `loss_range`: the loss at theta, and its least, largest and range over eta;
    - `gradient_change_min`, `gradient_change_max`: of `||grad L(theta - eta g) - g||`;
    - `smoothness`: the effective beta, `max_eta ||grad L(theta - eta g) - g|| / (eta ||g||)`;
    - the whole curve, loss and change of the gradient at each eta, in a table of its own.

    The loss is in its own units, the change in those of the gradient, beta in loss per squared unit of the weights. All
    on a copy of the module, by its own `training_step`, with the same batch, buffers and random numbers; over ranks
    losses and gradients are averages, weighted by their samples. A sample costs about as many steps as there are eta,
    and some copies of the weights.

    With several optimizers (manual optimization), the loss is the sum of the losses of all, and g has for each weight
    the gradient of the loss of its own optimizer, as `InternalCovariateShift` defines it: the step of all together.

    Args:
        every: optimizer steps between samples, or a function of the step; None for 2000, or less in a run so short
            that there were fewer than 10 samples.
        steps: the values of eta, above 0. The paper uses half to four times its learning rate of 0.1.

    Raises:
        InputError: no eta, or one that is not above 0; a module that cannot be copied.

    Reference: Shibani Santurkar, Dimitris Tsipras, Andrew Ilyas, Aleksander Madry. How Does Batch Normalization Help
    Optimization? 2018. arXiv 1805.11604, section 3.1 and figure 4.
    """

    question = "Loss landscape"
    usual_every = 2000
    usual_samples = 10
    metrics: Mapping[str, str] = {
        "loss": "loss at the weights",
        "loss_min": "least loss along the gradient",
        "loss_max": "largest loss along the gradient",
        "loss_range": "range of the loss along the gradient",
        "gradient_change_min": "least change of the gradient along itself",
        "gradient_change_max": "largest change of the gradient along itself",
        "smoothness": "effective beta, largest change of the gradient per distance",
    }

    def __init__(self, every: int | Schedule | None = None, steps: Sequence[float] = STEPS) -> None:
        super().__init__(every, None, detail_every=0)
        steps = tuple(steps)
        if not steps or any(isinstance(eta, bool) or not 0 < eta < float("inf") for eta in steps):
            raise InputError(
                f"LossLandscape(steps={list(steps)}): give lengths along the gradient above 0, such as [0.05, 0.4]."
            )
        self.steps = steps

    def find_layers(self, model: nn.Module) -> None:
        """Reads the network as a whole."""

    def begin(self, step: Step) -> None:
        """Tries all steps before the training makes its own."""
        self.found = self.look_around(step)

    def look_around(self, step: Step) -> dict[str, Any]:
        """Metric -> value, "curve" -> loss and change at each eta; nothing where `training_step` skips the batch."""
        start = step.replica().weights()
        here = self.look(step, start)
        if here is None:
            return {}
        loss, g = here
        direction = dict(zip(start, g.split([p.numel() for p in start.values()]), strict=True))
        losses, changes = [], []
        for eta in self.steps:
            there = {name: (p.detach() - eta * direction[name].view_as(p)) for name, p in start.items()}
            found = self.look(step, {name: p.requires_grad_() for name, p in there.items()})
            if found is None:
                return {}
            losses.append(found[0])
            changes.append(gradient_change(g, found[1]))  # one by one: all gradients at once take much memory
        loss_all, change, size = (one.double().cpu() for one in (torch.stack(losses), torch.stack(changes), g.norm()))
        steps = torch.tensor(self.steps, dtype=torch.float64)
        return {
            "loss": loss.item(),
            "loss_min": loss_all.min().item(),
            "loss_max": loss_all.max().item(),
            "loss_range": loss_range(loss_all).item(),
            "gradient_change_min": change.min().item(),
            "gradient_change_max": change.max().item(),
            "smoothness": change_per_distance(change, size, steps).item(),
            "curve": torch.stack([loss_all, change], 1),
        }

    def look(self, step: Step, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        """The loss and its gradient (P,) at some weights."""
        replica = step.replica()
        found = replica.loss_and_gradients(step.ranks, step.samples, step.batch, step.batch_idx, weights, list(weights))
        return None if found is None else (found[0], torch.cat([gradient.flatten() for gradient in found[1]]))

    def read(self, step: Step, seen: Seen) -> dict[str, Any]:
        return self.found  # of all ranks

    def compute(self, number: int, sample: dict[str, Any]) -> Table:
        values = {metric: {"landscape": sample[metric]} for metric in self.metrics if metric in sample}
        return Table(["landscape"], values)

    def write(self, writer: EventWriter, number: int, table: Table) -> None:
        super().write(writer, number, table)
        etas = [f"{eta:g}" for eta in self.steps]
        curve = self.found["curve"].nan_to_num(torch.inf, torch.inf, -torch.inf)
        writer.table(number, f"normalization/{self.label}/curve", etas, CURVE, curve)

    def tag(self, metric: str, row: str) -> str:
        return f"{self.group}/{metric}"

    @property
    def group(self) -> str:
        """The group of its tags, with the number of this monitor if there are several."""
        return self.label.replace(type(self).__name__, "landscape")
