"""Samples a step for all monitors of a Trainer: the only one of them that Lightning calls at every step."""

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer

from normzoo.distributed.gather import Ranks
from normzoo.monitoring.event_files import goes_on
from normzoo.monitoring.lean import drop_empty
from normzoo.monitoring.own_moments import OwnMoments, knows_moments
from normzoo.monitoring.probe import Probe, Reader, Visit, is_compiled, named_layers
from normzoo.monitoring.profile import feature_moments
from normzoo.monitoring.replica import Replica
from normzoo.monitoring.sample import Heard, Sampled, Site, Step
from normzoo.monitoring.writer import Board, Chart

MOST_NOTED = 16
"""Samples that are worked out together."""
LONGEST_NOTED = 1.0
"""Seconds after which they are, however few."""
SIDES: tuple[Site, Site] = ("input", "output")


class Sampler(Callback):
    """Opens a sample before a step's forward pass and closes it after the update; monitors add it by themselves.

    Between samples it costs one call per step: the hooks that only a sample needs are None, which Lightning skips.

    A compiled network runs its own graphs in the training step, sampled or not: what hooks would see is seen on a copy
    of the module, which runs the same batch eagerly, before.
    """

    def __init__(self) -> None:
        self.step: Step | None = None
        self.last = -1
        self.due: list[Sampled] = []
        self.ears: dict[tuple[int, ...], Ear] = {}
        self.attached = ExitStack()
        self.replicas: list[Replica] = []
        self.monitors: list[Sampled] = []
        self.board: Board | None = None
        self.ranks: Ranks | None = None
        self.noted = 0
        self.since = 0.0
        self.laid_out = False
        self.resumed: dict[str, Any] = {}
        self.listen(False)

    def listen(self, on: bool) -> None:
        """Sets the hooks that are needed while a sample is open."""
        for name, method in (
            ("on_before_optimizer_step", self.before_update),
            ("on_train_batch_end", self.close),
            ("on_train_epoch_end", self.drop),
        ):
            setattr(self, name, method if on else None)

    # The run.

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.monitors = [one for one in trainer.callbacks if isinstance(one, Sampled)]  # type: ignore[attr-defined]
        self.step, self.last = None, -1
        self.replicas.clear()
        self.ears.clear()
        self.compiled = is_compiled(pl_module)
        for monitor in self.monitors:
            alike = [one for one in self.monitors if type(one) is type(monitor)]
            number = alike.index(monitor) + 1
            monitor.label = type(monitor).__name__ + (f"-{number}" if number > 1 else "")
            monitor.find_layers(pl_module)
            monitor.settle_all = self.settle
            drop_empty(monitor, Callback)
        self.ranks = Ranks()
        self.board = Board(trainer)
        self.laid_out = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        resumed, self.resumed = self.resumed, {}
        if resumed and self.board is not None and goes_on(trainer):
            self.laid_out = resumed["laid_out"]
            self.board.described = set(resumed["described"])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.end(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.end(trainer)

    def end(self, trainer: Trainer) -> None:
        """Removes all hooks, writes what is left, and draws what has been seen."""
        self.drop()
        if self.board is not None:
            self.settle()
            for monitor in self.monitors:
                monitor.draw(self.board, trainer.global_step)
            self.board.write()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.drop()
        if stage == "fit":
            self.board = None
            self.replicas.clear()
            self.ears.clear()
            if self.ranks is not None:
                self.ranks.close()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.settle()

    # The sample.

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        number = trainer.global_step
        if number == self.last:  # a further batch whose gradients accumulate for the same step
            return
        self.last = number
        due = [monitor for monitor in self.monitors if monitor.every(number)]
        if due and self.ranks is not None:
            step = Step(trainer, pl_module, number, batch, batch_idx, self.ranks, self.compiled, self.replicas)
            self.open(step, due)

    def open(self, step: Step, due: list[Sampled]) -> None:
        """Attaches what listens to the forward pass."""
        self.drop()
        self.step, self.due = step, due
        for monitor in due:
            monitor.open(step)
        if self.compiled:
            self.ear = listened(step, due)
        else:
            key = tuple(map(id, due))
            if key not in self.ears:
                self.ears[key] = Ear(step.module, due)
            self.ear = self.ears[key]
            self.attached.enter_context(self.ear.listening())
        self.listen(True)

    def before_update(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Gradients are whole."""
        if self.step is not None:
            for monitor in self.due:
                monitor.before_update(self.step, optimizer)

    def close(self, trainer: Trainer, *unused: object) -> None:
        """Takes the hooks off, and, once the weights have moved, has every monitor write what it found."""
        self.attached.close()
        step = self.step
        if step is None or trainer.global_step == step.number:
            return
        parts: list[Any] = []
        trouble: Exception | None = None
        for monitor in self.due:
            try:
                parts.append(monitor.collect(step, self.ear.heard(monitor)))
            except Exception as error:  # all ranks hear of it, and end together
                trouble = trouble or error
                parts.append(None)
        everyone = step.ranks.gather(parts, trouble)
        for i, monitor in enumerate(self.due):
            monitor.note(step, [of_rank[i] for of_rank in everyone])
        self.drop()
        self.noted += 1
        now = time.monotonic()
        if self.noted == 1:
            self.since = now
        if self.noted >= MOST_NOTED or now - self.since > LONGEST_NOTED or not self.laid_out:
            self.settle()

    def settle(self) -> None:
        """Has the monitors work out what they have noted, and writes it."""
        if self.board is None:
            return
        self.noted = 0
        for monitor in self.monitors:
            monitor.settle(self.board)
        if not self.laid_out and self.last >= 0:
            self.laid_out = True
            by_question: dict[str, list[Chart]] = {}
            for monitor in self.monitors:
                by_question.setdefault(monitor.question, []).extend(monitor.charts())
            self.board.layout(self.last, by_question)
        self.board.write()

    def drop(self, *unused: object) -> None:
        """Forgets the open sample, and with it all hooks."""
        self.attached.close()
        self.step, self.due = None, []
        self.listen(False)

    def state_dict(self) -> dict[str, Any]:
        """What the run's files hold already, once per run."""
        self.settle()
        return {"laid_out": self.laid_out, "described": sorted(self.board.described) if self.board is not None else []}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up what `state_dict` returned, when training starts."""
        self.resumed = state_dict

    # Callbacks of a Trainer are pickled when it starts processes; hooks that are None or bound are set anew.

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]


class Ear:
    """One probe for all that several monitors listen to; what two of them want to hear is read once.

    Args:
        model: what runs.
        monitors: who listens.
    """

    def __init__(self, model: nn.Module, monitors: Sequence[Sampled]) -> None:
        named = dict(named_layers(model))
        self.wanted: dict[tuple[Site, Reader], set[str]] = {}
        for monitor in monitors:
            for key, names in monitor.readings().items():
                self.wanted.setdefault(key, set()).update(names)
        everyone = set().union(*self.wanted.values())
        layers = {name: module for name, module in named.items() if name in everyone}
        of_moments = {site: self.wanted.get((site, feature_moments), set()) for site in SIDES}
        knowing = {name for name, module in layers.items() if knows_moments(module)}
        self.known = {(site, name) for site in SIDES for name in of_moments[site] & knowing}
        """Where moments are wanted that the layer knows itself."""
        told = {name: [site for site in SIDES if (site, name) in self.known] for _, name in self.known}
        self.own_moments = OwnMoments([layers[name] for name in told])
        passages = {name: self.own_moments.reader(sites) for name, sites in told.items()}
        readers = {site: self.readers(site, layers) for site in (*SIDES, "gradient")}
        for name in passages:
            readers["input"].setdefault(name, []).append(self.own_moments.forget)
        by_site = {site: {name: read_by(many) for name, many in of.items()} for site, of in readers.items()}
        self.probe = Probe(model, layers, **by_site, passage=passages)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Attaches the probe."""
        with self.own_moments.listening(), self.probe:
            yield

    def readers(self, site: Site, layers: Collection[str]) -> dict[str, list[Reader]]:
        """Layer -> what reads of it all that is wanted at a site and that it does not know itself."""
        found: dict[str, list[Reader]] = {}
        for (where, read), names in self.wanted.items():
            for name in layers if where == site else ():
                if name in names and not self.is_known(site, read, name):
                    found.setdefault(name, []).append(read)
        return found

    def is_known(self, site: Site, read: Reader, name: str) -> bool:
        """Whether what is wanted of a layer is what the layer says itself."""
        return read is feature_moments and (site, name) in self.known

    def heard(self, monitor: Sampled) -> Heard:
        """What a monitor wanted to hear, by where and how."""
        found: dict[tuple[Site, Reader], list[tuple[str, Any]]] = {}
        for (site, read), names in monitor.readings().items():
            visits = [visit for visit in self.probe.visits if visit.name in names]
            found[site, read] = [(visit.name, self.of_visit(visit, site, read)) for visit in visits]
        return found

    def of_visit(self, visit: Visit, site: Site, read: Reader) -> Any:
        """What was read at a site, by whoever has read it."""
        if self.is_known(site, read, visit.name):
            return (visit.passage or {}).get(site)
        return (getattr(visit, site) or {}).get(read)


def read_by(readers: Sequence[Reader]) -> Reader:
    """Several readers as one: a dictionary, reader -> value."""
    return lambda module, x: {read: read(module, x) for read in readers}


def listened(step: Step, due: Sequence[Sampled]) -> Ear:
    """What is heard of a step on a copy of the module, which runs eagerly; with a backward pass if need be."""
    replica = step.replica.refresh()
    ear = Ear(replica.module, due)
    if ear.wanted:
        weights = {name: p.detach().clone() for name, p in step.module.named_parameters() if p.requires_grad}
        with ear.listening():
            loss = replica.loss(step.batch, step.batch_idx, {n: w.requires_grad_() for n, w in weights.items()})
            if loss is not None and any(site == "gradient" for site, _ in ear.wanted):
                torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    return ear
