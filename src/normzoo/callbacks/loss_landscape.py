"""How far can the gradient be trusted?"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normzoo.errors import InputError
from normzoo.metrics import gradient_change, loss_range
from normzoo.metrics.landscape import change_per_distance
from normzoo.monitoring.monitor import Monitor
from normzoo.monitoring.sample import Heard, Samples, Step
from normzoo.monitoring.schedule import Schedule
from normzoo.monitoring.writer import Chart

STEPS = tuple(round(0.05 * i, 2) for i in range(1, 9))


class LossLandscape(Monitor):
    """Shows how loss and gradient vary along the gradient: a smooth landscape is one in which large steps are safe.

    At the weights theta of the sampled step, with g the gradient of its batch, `theta - eta g` is tried for each eta:

    - `landscape/loss`, `landscape/loss_min`, `landscape/loss_max`, `landscape/loss_range`: the loss at theta, and the
      least, the largest and the range over eta;
    - `landscape/gradient_change_min`, `landscape/gradient_change_max`: of `||grad L(theta - eta g) - g||`;
    - `landscape/smoothness`: the effective beta, `max_eta ||grad L(theta - eta g) - g|| / (eta ||g||)`.

    The loss is in its own units, the change in those of the gradient, beta in loss per squared unit of the weights. All
    on a copy of the module, by its own `training_step`, with the same batch, buffers and random numbers; over ranks
    losses and gradients are averages, weighted by their samples. A sample costs about as many steps as there are eta,
    and some copies of the weights. Not for modules that optimize by hand.

    Args:
        every: optimizer steps between samples, or a function of the step.
        steps: each eta, above 0. The paper tries half to four times the learning rate, which is 0.1 there.

    Raises:
        InputError: no eta, or one that is not above 0; a module that cannot be copied.

    Reference: Shibani Santurkar, Dimitris Tsipras, Andrew Ilyas, Aleksander Madry. How Does Batch Normalization Help
    Optimization? 2018. arXiv 1805.11604, section 3.1 and figure 4.
    """

    question = "Loss landscape"
    metrics: Mapping[str, str] = {
        "loss": "loss at the weights",
        "loss_min": "least loss along the gradient",
        "loss_max": "largest loss along the gradient",
        "loss_range": "range of the loss along the gradient",
        "gradient_change_min": "least change of the gradient along itself",
        "gradient_change_max": "largest change of the gradient along itself",
        "smoothness": "effective beta, largest change of the gradient per distance",
    }

    def __init__(self, every: int | Schedule = 1000, steps: Sequence[float] = STEPS) -> None:
        super().__init__(every, None, detail_every=0)
        steps = tuple(steps)
        if not steps or any(isinstance(eta, bool) or not 0 < eta < float("inf") for eta in steps):
            raise InputError(
                f"LossLandscape(steps={list(steps)}): lengths along the gradient, each above 0, as [0.05, 0.4]."
            )
        self.steps = steps

    def find_layers(self, model: nn.Module) -> None:
        """The network as a whole."""

    def begin(self, step: Step) -> None:
        """Looks around before the step is made."""
        start = {name: p.detach() for name, p in step.module.named_parameters() if p.requires_grad}
        self.found: dict[str, Tensor] = {}

        def look(weights: list[Tensor]) -> tuple[Tensor, Tensor] | None:
            """The loss and the gradient, (P,)."""
            there = dict(zip(start, (w.requires_grad_() for w in weights), strict=True))
            found = step.replica.loss_and_gradients(
                step.ranks, step.samples, step.batch, step.batch_idx, there, list(there)
            )
            return None if found is None else (found[0], torch.cat([d.flatten() for d in found[1]]))

        here = look([p.clone() for p in start.values()])
        if here is None:
            return
        loss, g = here
        direction = [
            part.view_as(p)
            for part, p in zip(g.split([p.numel() for p in start.values()]), start.values(), strict=True)
        ]
        losses, changes = [], []
        for eta in self.steps:
            there = look([p - eta * d for p, d in zip(start.values(), direction, strict=True)])
            if there is None:
                return
            losses.append(there[0])
            changes.append(gradient_change(g, there[1]))  # one by one: all gradients at once would be many
        loss_all, change, size = (one.double().cpu() for one in (torch.stack(losses), torch.stack(changes), g.norm()))
        self.found = {
            "loss": loss.double().cpu(),
            "loss_min": loss_all.min(),
            "loss_max": loss_all.max(),
            "loss_range": loss_range(loss_all),
            "gradient_change_min": change.min(),
            "gradient_change_max": change.max(),
            "smoothness": change_per_distance(change, size, torch.tensor(self.steps, dtype=torch.float64)),
        }

    def collect(self, step: Step, heard: Heard) -> dict[str, Tensor]:
        return self.found

    def digest(self, numbers: Sequence[int], found: Sequence[Any]) -> Samples | None:
        [values] = found
        if not values:
            return None
        return Samples(["landscape"], {name: value.reshape(1, 1) for name, value in values.items()})

    def tag(self, metric: str, row: str) -> str:
        return f"landscape/{metric}"

    def charts(self) -> list[Chart]:
        loss, low, high = (f"landscape/{name}" for name in ("loss", "loss_min", "loss_max"))
        return [
            Chart("loss along the gradient", (loss, low, high), band=True),
            Chart("range of the loss", ("^landscape/loss_range$",)),
            Chart("change of the gradient", ("^landscape/gradient_change",)),
            Chart("effective smoothness", ("^landscape/smoothness$",)),
        ]
