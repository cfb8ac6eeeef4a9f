"""Another learning rate from here on, and whatever else of an optimizer and its schedule a resumed run changes."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from normzoo.errors import InputError


class Change(Callback):
    """Has what is asked for win over what a checkpoint holds, for the settings named, when a run is resumed.

    A Trainer takes up the state of optimizers and schedules from the checkpoint, and with it their old arguments. A new
    learning rate moves the whole schedule: the rate of now, and all to come, by the ratio of new to old.

    Args:
        changes: key -> (old, new), the keys spelled as flags: `model.optimizer.lr`.

    Raises:
        InputError: the optimizer's state lacks what a change needs.
    """

    def __init__(self, changes: Mapping[str, tuple[Any, Any]]) -> None:
        self.changes = {
            key: pair for key, pair in changes.items() if key.startswith("model.") and not key.startswith("model.net")
        }
        self.checkpoint: dict[str, Any] | None = None

    # The state is changed after the optimizers are built and before they take it up. Most strategies read the
    # checkpoint before they build, FSDP after.

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.checkpoint = checkpoint
        if trainer.optimizers:
            self.apply(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.checkpoint is not None:
            self.apply(trainer)

    def apply(self, trainer: Trainer) -> None:
        """Writes the new settings into the state that the Trainer is about to take up."""
        checkpoint, self.checkpoint = self.checkpoint, None
        assert checkpoint is not None
        states = checkpoint["optimizer_states"]
        for optimizer, state in zip(trainer.optimizers, states, strict=False):
            for group, old in zip(optimizer.param_groups, state["param_groups"], strict=False):
                for key, pair in self.changes.items():
                    change_group(key, pair, group, old)
            require_step(optimizer, state, [key.rpartition(".")[2] for key in self.changes])
        for config, state in zip(trainer.lr_scheduler_configs, checkpoint["lr_schedulers"], strict=False):
            groups = states[trainer.optimizers.index(config.scheduler.optimizer)]["param_groups"]
            for key in self.changes:
                if key.startswith("model.lr_scheduler."):
                    state.pop(key.rpartition(".")[2], None)
            rebase(config.scheduler, state, [group["lr"] for group in groups])


def change_group(key: str, pair: tuple[Any, Any], group: dict[str, Any], old: dict[str, Any]) -> None:
    """Changes one setting of a saved group of parameters.

    Args:
        key: the setting.
        pair: its old and its new value.
        group: the group as the optimizer is built now.
        old: the group as saved, which is changed.
    """
    name = key.rpartition(".")[2]
    if key.startswith("model.lr_scheduler."):
        old.update(
            {other: group[other] for other in ("initial_lr", "max_lr", "min_lr") if other in old and name in group}
        )
        return
    if name not in group:  # a task of one's own may call the rate by another name: it goes by its value
        base = ("lr", group.get("initial_lr", group["lr"]), old.get("initial_lr", old["lr"]))
        values = [base, *((other, group[other], old.get(other)) for other in group.keys() - {"params", "lr"})]
        matches = [other for other, now, before in values if pair == (before, now)]
        if not matches:
            return
        name = matches[0]
    if name == "lr":
        base, before = group.get("initial_lr", group["lr"]), old.get("initial_lr", pair[0])
        old["lr"] = old["lr"] * (base / before) if before else base
        if "initial_lr" in old:
            old["initial_lr"] = base
    else:
        old[name] = group[name]


def rebase(scheduler: Any, state: dict[str, Any], rates: list[Any]) -> None:
    """Has a saved schedule, and those it is made of, go out from the rates of the optimizer as it is built now.

    Args:
        scheduler: as it is built now.
        state: as saved, which is changed.
        rates: the rate of now of each group of parameters.
    """
    if "base_lrs" in state:
        state["base_lrs"] = list(scheduler.base_lrs)
    if "_last_lr" in state:
        state["_last_lr"] = list(rates)
    for part, inner in zip(getattr(scheduler, "_schedulers", ()), state.get("_schedulers", ()), strict=False):
        rebase(part, inner, rates)


def require_step(optimizer: Optimizer, state: dict[str, Any], names: list[str]) -> None:
    """Raises `InputError` unless an optimizer can go on from a state, tried on a copy of its first parameter."""
    group, old = optimizer.param_groups[0], state["param_groups"][0]
    if not old["params"] or old["params"][0] not in state["state"] or not set(names) & (old.keys() - {"lr"}):
        return
    parameter = torch.nn.Parameter(group["params"][0].detach().clone())
    parameter.grad = torch.zeros_like(parameter)
    arguments = {name: value for name, value in old.items() if name != "params"}
    try:
        kind: Any = type(optimizer)
        tried = kind([{**arguments, "params": [parameter]}])
        tried.state[parameter] = copy.deepcopy(state["state"][old["params"][0]])
        tried.step()
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        raise InputError(
            f"change={','.join(names)}: {type(optimizer).__name__} cannot go on so from this checkpoint "
            f"({type(error).__name__}: {error}); start a run without --ckpt_path."
        ) from error
