"""Another learning rate from here on, or another setting of an optimizer or its schedule, for a resumed run."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from normzoo.errors import InputError

SCHEDULE = "model.lr_scheduler."


class Change(Callback):
    """Lets new settings of the optimizer and its schedule win over those in the checkpoint of a resumed run.

    A Trainer restores optimizers and schedules from the checkpoint, with their old arguments. A new learning rate
    scales the whole schedule: the rate of now, and all to come, by new / old.

    Args:
        changes: key -> (old, new), the keys spelled as flags: `model.optimizer.lr`.

    Raises:
        InputError: the optimizer's state lacks what a change needs.
    """

    def __init__(self, changes: Mapping[str, tuple[Any, Any]]) -> None:
        self.changes = {
            key: pair for key, pair in changes.items() if key.startswith("model.") and not key.startswith("model.net")
        }
        self.groups: list[list[dict[str, Any]]] = []
        self.schedules: list[dict[str, Any]] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the settings as built, before the Trainer restores the old ones."""
        self.groups = [[settings(group) for group in optimizer.param_groups] for optimizer in trainer.optimizers]
        self.schedules = [copy.deepcopy(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for optimizer, groups in zip(trainer.optimizers, self.groups, strict=True):
            for group, built in zip(optimizer.param_groups, groups, strict=True):
                for key, pair in self.changes.items():
                    change_group(key, pair, group, built)
            require_step(optimizer, [key.rpartition(".")[2] for key in self.changes])
        names = [key.removeprefix(SCHEDULE) for key in self.changes if key.startswith(SCHEDULE)]
        for config, state in zip(trainer.lr_scheduler_configs, self.schedules, strict=True):
            change_schedule(config.scheduler, state, ["base_lrs", *names])


def settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group of parameters without the parameters."""
    return {name: value for name, value in group.items() if name != "params"}


def change_group(key: str, pair: tuple[Any, Any], group: dict[str, Any], built: Mapping[str, Any]) -> None:
    """Changes one setting of a group of parameters.

    Args:
        key: the setting.
        pair: its old and its new value.
        group: as restored, which is changed.
        built: as built from the new settings.
    """
    name = key.rpartition(".")[2]
    if key.startswith(SCHEDULE):
        limits = ("initial_lr", "max_lr", "min_lr") if name in built else ()
        group.update({limit: built[limit] for limit in limits if limit in group})
        return
    if name not in built:  # the argument of a task of one's own, such as `speed`: its values tell which setting it is
        old, new = ({**of, "lr": of.get("initial_lr", of["lr"])} for of in (group, built))
        name = next((other for other in new if pair == (old.get(other), new[other])), "")
    if name == "lr":
        change_rate(pair, group, built)
    elif name:
        group[name] = built[name]


def change_rate(pair: tuple[Any, Any], group: dict[str, Any], built: Mapping[str, Any]) -> None:
    """Scales the rate of a group of parameters; a schedule may have moved it from where it began."""
    old, new = pair
    if "initial_lr" in group and "initial_lr" in built:
        old, new = group["initial_lr"], built["initial_lr"]
        group["initial_lr"] = new
    group["lr"] = group["lr"] * (new / old) if old else built["lr"]


def change_schedule(scheduler: Any, built: Mapping[str, Any], names: list[str]) -> None:
    """Gives a schedule, and those it consists of, the values of some attributes as built."""
    for name in names:
        if name in built:
            setattr(scheduler, name, built[name])
    # SequentialLR and ChainedScheduler have no public name for the schedules they consist of.
    parts = "_schedulers"
    for part, inner in zip(getattr(scheduler, parts, ()), built.get(parts, ()), strict=True):
        change_schedule(part, inner, names)


def require_step(optimizer: Optimizer, names: list[str]) -> None:
    """Raises `InputError` unless an optimizer can step from its state, tried on a copy of its first parameter."""
    group = optimizer.param_groups[0]
    parameter: torch.Tensor | None = next(iter(group["params"]), None)
    if parameter is None or parameter not in optimizer.state or not set(names) & (group.keys() - {"lr"}):
        return
    copied = torch.nn.Parameter(parameter.detach().clone())
    copied.grad = torch.zeros_like(copied)
    kind: Any = type(optimizer)
    try:
        tried = kind([{**settings(group), "params": [copied]}])
        tried.state[copied] = copy.deepcopy(optimizer.state[parameter])
        tried.step()
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        raise InputError(
            f"change={','.join(names)}: {type(optimizer).__name__} cannot continue from this checkpoint with the "
            f"change ({type(error).__name__}: {error}); start a run without --ckpt_path."
        ) from error
