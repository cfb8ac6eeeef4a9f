"""Samples a step for all monitors of a Trainer: the only one of them that Lightning calls at every step."""

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import cache, partial
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.optim import Optimizer

from normzoo.distributed.gather import Ranks
from normzoo.errors import InputError
from normzoo.monitoring.description import TAG, Description, finite, seed_of_run, steps_of
from normzoo.monitoring.event_files import continues_curves
from normzoo.monitoring.layers import is_compiled, named_layers
from normzoo.monitoring.lean import drop_empty
from normzoo.monitoring.overview import LAYOUT
from normzoo.monitoring.probe import Probe, Reader
from normzoo.monitoring.replica import Replica, gradients_of
from normzoo.monitoring.sample import Judge, Reads, Sampled, Seen, Site, Step
from normzoo.monitoring.writer import EventWriter


class Sampler(Callback):
    """Opens a sample before a step's forward pass, and closes it after the update. The first monitor adds it.

    A compiled network runs its own graphs at every step. Its layers are read on a copy of the module, which runs the
    same batch eagerly before the step.
    """

    def __init__(self) -> None:
        self.monitors: list[Sampled] = []
        self.judges: list[Judge] = []
        self.due: Sequence[Sampled] = []
        self.step: Step | None = None
        self.last = -1
        self.attached = ExitStack()
        self.description: Description | None = None
        self.writer: EventWriter | None = None
        self.ranks: Ranks | None = None
        self.has_layout = False
        self.resumed: dict[str, Any] = {}
        self.reasons: set[str] = set()

    # The run.

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined] # set by Lightning, undeclared
        self.monitors = [one for one in callbacks if isinstance(one, Sampled)]
        self.judges = [one for one in callbacks if isinstance(one, Judge)]
        self.step, self.has_layout = None, False
        self.replica = cache(lambda: Replica(trainer, pl_module))
        for i, monitor in enumerate(self.monitors):
            number = 1 + sum(type(one) is type(monitor) for one in self.monitors[:i])
            monitor.label = type(monitor).__name__ + (f"-{number}" if number > 1 else "")
        for monitor in list(self.monitors):
            try:
                monitor.find_layers(pl_module)
            except InputError:  # it has nothing to show
                if monitor.required:
                    raise
                self.monitors.remove(monitor)
        for callback in (self, *self.monitors, *self.judges):
            drop_empty(callback, Callback)
        self.ranks = Ranks()
        self.writer = EventWriter(trainer)
        if any(monitor.required for monitor in self.monitors):
            self.writer.warn_of_loggers(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.last = trainer.global_step - 1
        for monitor in self.monitors:
            monitor.set_rates(steps_of(trainer))
        resumed, self.resumed = self.resumed, {}
        if resumed and self.writer is not None and continues_curves(trainer):
            self.has_layout = resumed["laid_out"]
            self.writer.described = dict(resumed["described"])
            if json.loads(self.writer.described.get(TAG, "{}")).get("steps") != finite(steps_of(trainer)):
                self.writer.described.pop(TAG, None)  # with another limit, it is another run

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.drop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.drop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.drop()
        if stage == "fit":
            self.writer = self.replica = None  # type: ignore[assignment] # until the next on_fit_start
            if self.ranks is not None:
                self.ranks.close()

    # The sample.

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        number = trainer.global_step
        if number == self.last:  # a further batch whose gradients accumulate for the same step
            return
        passed = range(self.last + 1, number + 1)  # with several optimizers, a batch makes several steps
        self.last = number
        due = [monitor for monitor in self.monitors if any(map(monitor.every, passed))]
        if due and self.ranks is not None:
            self.compiled = is_compiled(pl_module)
            replica = cache(lambda: self.replica().refresh())
            step = Step(trainer, pl_module, number, batch, batch_idx, self.ranks, replica, self.compiled)
            self.open(step, due)

    def open(self, step: Step, due: Sequence[Sampled]) -> None:
        """Attaches the hooks that read the forward and the backward pass."""
        self.drop()
        self.step = step
        self.due = [monitor for monitor in due if self.starts(monitor, step)]
        is_described = self.writer is None or TAG in self.writer.described
        self.description = None if is_described else Description(step.module)
        readers: list[Reads] = [*self.due, *([] if self.description is None else [self.description])]
        if self.compiled:
            self.group = read_on_copy(step, readers)
        else:
            self.group = ProbeGroup(step.module, readers)
            self.attached.enter_context(self.group.probe)

    def starts(self, monitor: Sampled, step: Step) -> bool:
        """Starts a monitor's sample, on all ranks or on none: they would wait for each other."""
        fine = self.works(monitor, partial(monitor.start, step))
        if not monitor.required and not all(step.ranks.gather(fine)):
            if fine:
                self.leave_out(monitor, RuntimeError("it failed on another rank"))
            return False
        return fine

    def works(self, monitor: Sampled, call: Callable[[], object]) -> bool:
        """Runs a part of a sample. A monitor that nobody asked for, and that fails, warns and is left out."""
        try:
            call()
        except Exception as error:  # whatever the user's step raises on a copy
            if monitor.required:
                raise
            self.leave_out(monitor, error)
            return False
        return True

    def leave_out(self, monitor: Sampled, error: Exception) -> None:
        """Samples without a monitor from now on."""
        self.monitors.remove(monitor)
        reason, is_new = str(error), str(error) not in self.reasons
        self.reasons.add(reason)
        rank_zero_warn(f"{monitor.label} shows nothing from here on" + (f": {reason}" if is_new else ", either."))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self.step is not None:
            if pl_module.automatic_optimization:
                self.attached.close()  # an optimizer such as LBFGS repeats the forward pass
            step = self.step
            self.due = [m for m in self.due if self.works(m, partial(m.before_update, step, optimizer))]

    def on_train_batch_end(self, trainer: Trainer, *unused: object) -> None:
        """Removes the hooks. After the update: merges over ranks, computes and writes."""
        self.attached.close()
        step = self.step
        if step is None or self.writer is None or trainer.global_step == step.number:
            return
        parts: list[Any] = []
        failure: Exception | None = None
        for monitor in self.due:
            try:
                parts.append(monitor.read(step, self.group.seen(monitor)))
            except Exception as error:
                if monitor.required:  # all ranks receive it, and raise
                    failure = failure or error
                else:
                    self.leave_out(monitor, error)
                parts.append(None)
        of_ranks = step.ranks.gather(parts, failure)
        if self.description is not None:
            of_run = self.description.of_run(self.group.seen(self.description), seed_of_run(), steps_of(trainer))
            self.writer.describe(step.number, TAG, of_run)
        for monitor, *of_monitor in zip(self.due, *of_ranks, strict=True):
            if monitor.required or None not in of_monitor:
                self.works(monitor, partial(monitor.finish, self.writer, step.number, of_monitor))
        self.write_layout()
        self.writer.flush()
        for judge in self.judges:
            judge.judge(trainer, step.number)
        self.drop()

    def write_layout(self) -> None:
        """Writes the charts of the Custom Scalars tab, once per run."""
        if self.has_layout or self.writer is None:
            return
        self.has_layout = True
        self.writer.layout(self.last, LAYOUT)

    def on_train_epoch_end(self, *unused: object) -> None:
        self.drop()

    def drop(self) -> None:
        """Closes the open sample, and removes its hooks."""
        self.attached.close()
        self.step, self.due = None, []

    def state_dict(self) -> dict[str, Any]:
        """What the event files already hold, once per run."""
        described = dict(self.writer.described) if self.writer is not None else {}
        return {"laid_out": self.has_layout, "described": described}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps what `state_dict` returned until training starts."""
        self.resumed = state_dict


class ProbeGroup:
    """One probe for several monitors; what two of them read in the same way is read once.

    Args:
        model: the network.
        monitors: those that read.
    """

    def __init__(self, model: nn.Module, monitors: Iterable[Reads]) -> None:
        named = dict(named_layers(model))
        self.readers: dict[Site, dict[str, list[Reader]]] = {"input": {}, "output": {}, "gradient": {}}
        for monitor in monitors:
            for (site, read), names in monitor.readings().items():
                for readers in (self.readers[site].setdefault(name, []) for name in names if name in named):
                    if read not in readers:
                        readers.append(read)
        layers = {name: named[name] for by_layer in self.readers.values() for name in by_layer}
        of_sites = {
            site: {name: read_all(readers) for name, readers in by_layer.items()}
            for site, by_layer in self.readers.items()
        }
        self.probe = Probe(model, layers, **of_sites)

    def seen(self, monitor: Reads) -> Seen:
        """The values that a monitor asked for."""
        return {
            (site, read): [
                (visit.name, (getattr(visit, site) or {}).get(read))
                for visit in self.probe.visits
                if visit.name in names
            ]
            for (site, read), names in monitor.readings().items()
        }


def read_all(readers: Sequence[Reader]) -> Reader:
    """Several readers as one, which returns a dictionary: reader -> value."""
    return lambda module, x: {read: read(module, x) for read in readers}


def read_on_copy(step: Step, monitors: Iterable[Reads]) -> ProbeGroup:
    """Runs the step on a copy of the module, eagerly; with a backward pass if a monitor reads gradients."""
    replica = step.replica()
    group = ProbeGroup(replica.module, monitors)
    if group.probe.layers:
        weights = replica.weights()
        with group.probe:
            _, losses = replica.losses(step.batch, step.batch_idx, weights)
            if group.readers["gradient"]:
                with replica.backward(weights):
                    gradients_of(losses, weights)
    return group
