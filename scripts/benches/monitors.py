"""`scripts/bench monitors`: what it costs to watch a training, as ratios to the same training unwatched.

One run of `normzoo fit` alternates between some steps with the callbacks and as many without, so that other load on the
machine affects both alike. Without means that the callbacks are not in the Trainer's list. Schedules count only the
steps with them, and a block of B of these steps has exactly the samples that a run of B steps
would. The clock stops once TensorBoard's thread has written everything. What lies between epochs is left out of both.

One ratio is that of a block with to the block without between whose turns it ran. Where a block has fewer than 1000
steps, the values of channels that monitors write every 1000 steps are left out.

It judges nothing: marks are shown, and the exit status is 0. By default it takes about 11 minutes on two quiet cores.
"""

import argparse
import logging
import os
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from normzoo.cli.runtime import share_cores

share_cores()  # what the command normzoo does before it imports torch

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

sys.path.insert(0, str(Path(__file__).parent))
from arms import CONFIGS  # beside this file
from machine import describe, row

from normzoo.callbacks import MONITORS, CovariateShift, Every, GradientFlow, RunningStatistics
from normzoo.cli.fit import CLI
from normzoo.monitoring.layers import is_norm, is_weighted, of_kind
from normzoo.monitoring.monitor import Monitor
from normzoo.monitoring.sampler import Sampler

ROUNDS = 2
SAMPLES = 10_000

NETS = {
    "mlp": ("MLP", "fashion_mlp.yaml", ("--data=arms.RandomImages", "--data.batch_size=128")),
    "resnet": ("ResNet-8", "cifar10_resnet.yaml", ("--data=arms.RandomImages32", "--model.net.depth=8")),
}
WARMUP = {"mlp": 150, "resnet": 10}


# What others do, written anew here, as kindly as it can be: on the layers that the statistics look at.


class Other(Callback):
    """Samples on a schedule, by hooks that are there during the sampled step only.

    Args:
        every: optimizer steps between samples.
    """

    def __init__(self, every: int) -> None:
        self.every: Callable[[int], bool] = Every(every)
        self.handles: list[RemovableHandle] = []
        self.sampling = False
        self.found: dict[str, Any] = {}

    def attach(self, trainer: Trainer, module: LightningModule) -> None:
        """Puts the hooks on, for a step that is sampled."""

    def detach(self) -> None:
        """Takes them off."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def switch(self, on: bool, module: LightningModule) -> None:
        """Between steps with and steps without."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *unused: Any) -> None:
        self.sampling = self.every(trainer.global_step)
        if self.sampling:
            self.attach(trainer, pl_module)

    def on_train_batch_end(self, *unused: Any) -> None:
        if self.sampling:
            self.detach()
            self.collect()
            self.sampling = False

    def collect(self) -> None:
        """The sample has been taken. Only the newest is kept."""


class ActivationStats(Other):
    """fastai's ActivationStats(with_hist=True): mean, deviation, share near zero and 40 bins of every layer's output.

    As there, each is a reduction of its own and comes to Python as a number; the bins lie between 0 and 10.
    """

    def attach(self, trainer: Trainer, module: LightningModule) -> None:
        for name, layer in of_kind(module, is_layer).items():
            self.handles.append(layer.register_forward_hook(self.hook(name)))

    def hook(self, name: str) -> Callable[..., None]:
        """What reads the output of a layer."""

        def read(layer: nn.Module, args: Any, result: Tensor) -> None:
            y = result.detach().float()
            near_zero = (y <= 0.05).long().sum().item() / y.numel()
            self.found[name] = y.mean().item(), y.std().item(), near_zero, y.histc(40, 0, 10)

        return read


class Histograms(Other):
    """SummaryWriter.add_histogram of every norm's output with the writer's own bins, as tutorials have it in a hook."""

    def attach(self, trainer: Trainer, module: LightningModule) -> None:
        writer = trainer.logger.experiment  # type: ignore[union-attr]
        for name, layer in of_kind(module, is_norm).items():

            def read(layer: nn.Module, args: Any, result: Tensor, name: str = name) -> None:
                writer.add_histogram(f"output/{name}", result, trainer.global_step)

            self.handles.append(layer.register_forward_hook(read))


class Gradients(Other):
    """wandb.watch(log="gradients"): 64 bins between least and largest value of every parameter's gradient, as lists.

    As there, the hooks stay on the parameters between samples and return at once. What becomes of the lists, which go
    to another process and over the net, is not counted.
    """

    def switch(self, on: bool, module: LightningModule) -> None:
        super().detach()
        if on:
            for name, parameter in module.named_parameters():
                self.handles.append(parameter.register_hook(self.hook(name)))

    def detach(self) -> None:
        """They stay on between samples."""

    def hook(self, name: str) -> Callable[[Tensor], None]:
        """What reads the gradient of a parameter."""

        def read(gradient: Tensor) -> None:
            if not self.sampling:
                return
            flat = gradient.detach().clone().reshape(-1)
            finite = flat.isfinite()
            if not finite.all():
                flat = flat[finite]
            low, high = (flat.min().item(), flat.max().item()) if flat.numel() else (0.0, 0.0)
            if low < high:
                counts, edges = flat.histc(64, low, high), torch.linspace(low, high, 65)
                self.found[name] = counts.tolist(), edges.tolist()

        return read


def is_layer(module: nn.Module) -> bool:
    """Whether the statistics look at a module."""
    return is_norm(module) or is_weighted(module)


# What is measured.

Watcher = Monitor | Other


class Size(NamedTuple):
    """How long it is measured."""

    block: int
    """Steps with, and steps without, that make one ratio."""
    stretch: int
    """Steps until the other has its turn: a divisor of the block."""
    times: int
    """Blocks for each of `--rounds`."""


@dataclass(frozen=True)
class Row:
    """One row of the result."""

    says: str
    make: Callable[[], list[Watcher]]
    sizes: dict[str, Size]
    marks: dict[str, str] = field(default_factory=dict)


# What else a shared machine does comes and goes within seconds: the shorter the turns, the more alike it meets both.
SUITE = {"mlp": Size(2000, 50, 2), "resnet": Size(2000, 50, 1)}
EACH_STEP = {"mlp": Size(500, 50, 2), "resnet": Size(48, 48, 3)}
EACH_STEP_SLOW = {"mlp": Size(500, 50, 2), "resnet": Size(16, 16, 2)}
EVERY_50 = {"mlp": Size(500, 50, 2), "resnet": Size(100, 50, 1)}

STATISTICS: tuple[Callable[[int], Monitor], ...] = (RunningStatistics, CovariateShift, GradientFlow)
SINGLES: tuple[Callable[[], Monitor], ...] = MONITORS


def suite() -> list[Watcher]:
    """All monitors at their usual rates."""
    return [make() for make in SINGLES]


def at_two_rates(says: str, make: Callable[[int], list[Watcher]], each: dict[str, Size], **marks: str) -> list[Row]:
    """Rows of what is sampled at every step, and every 50 steps."""
    return [
        Row(f"{says}, every step", lambda: make(1), each, marks),
        Row(f"{says}, every 50", lambda: make(50), EVERY_50),
    ]


def single(make: Callable[[], Monitor]) -> Row:
    """The row of one monitor; of one that samples rarely, a sample in each block."""
    usual = make()
    block = max(500, rate_of(usual))
    sizes = {"mlp": Size(block, 50, 2), "resnet": Size(block, 50, 1)}
    return Row(f"{type(usual).__name__}, every {rate_of(usual)}", lambda: [make()], sizes)


def rate_of(one: Watcher) -> int:
    """Steps between its samples."""
    assert isinstance(one.every, Every)
    return one.every.steps


ROWS: dict[str, list[Row]] = {
    "suite": [Row("whole suite at its defaults", suite, SUITE, {"mlp": "at most 1.05", "resnet": "at most 1.02"})],
    "statistics": at_two_rates(
        "three statistics",
        lambda every: [make(every) for make in STATISTICS],
        EACH_STEP,
        mlp="at most 2.0",
        resnet="at most 1.10",
    ),
    # Those of ours that answer what fastai's and wandb's answer.
    "running": at_two_rates("RunningStatistics", lambda every: [RunningStatistics(every)], EACH_STEP),
    "flow": at_two_rates("GradientFlow", lambda every: [GradientFlow(every)], EACH_STEP),
    "fastai": at_two_rates("as fastai", lambda every: [ActivationStats(every)], EACH_STEP_SLOW),
    "histograms": at_two_rates("add_histogram", lambda every: [Histograms(every)], EACH_STEP_SLOW),
    "wandb": at_two_rates("as wandb.watch", lambda every: [Gradients(every)], EACH_STEP_SLOW),
}
USUAL = tuple(ROWS)
ROWS |= {make.__name__: [single(make)] for make in SINGLES}  # type: ignore[attr-defined] # they are classes


# How it is measured.


class Turn(NamedTuple):
    """Steps on end, with or without."""

    on: bool
    steps: int
    first: bool = False
    """Whether a block begins with it."""
    last: bool = False
    """Whether a block ends with it."""
    counts: bool = True


def turns(size: Size, rounds: int, warmup: int) -> Iterator[Turn]:
    """Warm-up of both, and then the turns of all blocks."""
    yield Turn(False, warmup, counts=False)
    yield Turn(True, warmup, True, True, counts=False)
    count = size.block // size.stretch
    for _ in range(rounds):
        for i in range(count):
            yield Turn(True, size.stretch, i == 0, i == count - 1)
            yield Turn(False, size.stretch, i == 0, i == count - 1)


class Blocks(Callback):
    """Trains with callbacks and without them in turn, and times both. It stands last among the callbacks.

    Args:
        watchers: the callbacks.
        size: how long a block is.
        rounds: how many blocks there are of either.
        warmup: steps with and steps without that are not counted.
    """

    def __init__(self, watchers: Sequence[Watcher], size: Size, rounds: int, warmup: int) -> None:
        self.watchers = watchers
        self.size = size
        self.turns = turns(size, rounds, warmup)
        self.milliseconds: dict[bool, list[float]] = {True: [], False: []}
        self.at = 0
        """Steps with, since the block began."""
        self.taken: Counter[str] = Counter()
        self.in_detail: Counter[str] = Counter()
        self.expected = {type(one).__name__: -(-size.block // rate_of(one)) for one in watchers}
        for one in watchers:
            self.count_for(one)

    def count_for(self, one: Watcher) -> None:
        """Has a callback count only steps with, and its samples be counted."""
        rate, name = rate_of(one), type(one).__name__
        one.every = lambda step: self.at % rate == 0
        if isinstance(one, Monitor):
            one.set_rates = lambda steps: None  # type: ignore[method-assign] # they follow the length of the run
            one.read = counted(one.read, self.taken, name)  # type: ignore[method-assign]
            # It goes by the Trainer's steps, of which every second one is without.
            one.detail_every = 2 * one.detail_every if self.size.block >= one.detail_every else 0
            one.detail = counted(one.detail, self.in_detail, name)  # type: ignore[method-assign]
        else:
            one.collect = counted(one.collect, self.taken, name)  # type: ignore[method-assign]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The monitors' sampler has come to the list by itself.
        everyone = [one for one in trainer.callbacks if one is not self]  # type: ignore[attr-defined]
        others = [one for one in everyone if one not in self.watchers and not isinstance(one, Sampler)]
        self.lists = {True: [*everyone, self], False: [*others, self]}
        self.begin(trainer, next(self.turns))

    def begin(self, trainer: Trainer, turn: Turn) -> None:
        """Puts the callbacks in or out, and starts the clock."""
        self.turn, self.left = turn, turn.steps
        if turn.on and turn.first:
            self.at = 0
            self.taken.clear()
            self.in_detail.clear()
            for one in self.watchers:
                if isinstance(one, Monitor):
                    one.detailed_at = -1  # as when a run begins
        trainer.callbacks = self.lists[turn.on]  # type: ignore[attr-defined] # a new list: the hooks go over the old one
        for one in self.watchers:
            if isinstance(one, Other):
                one.switch(turn.on, trainer.lightning_module)
        self.before = self.taken.total()
        self.idle = 0.0
        self.since = self.ended = time.perf_counter()

    def on_train_epoch_start(self, *unused: Any) -> None:
        self.idle += time.perf_counter() - self.ended

    def on_train_batch_end(self, trainer: Trainer, *unused: Any) -> None:
        self.left -= 1
        self.at += self.turn.on
        if self.left == 0:
            self.end(trainer)
        self.ended = time.perf_counter()

    def end(self, trainer: Trainer) -> None:
        """Stops the clock once everything is written, and goes on with the next turn."""
        turn = self.turn
        trainer.logger.experiment.flush()  # type: ignore[union-attr]
        seconds = time.perf_counter() - self.since - self.idle
        if turn.counts:
            spans = self.milliseconds[turn.on]
            if turn.first:
                spans.append(0.0)
            spans[-1] += 1e3 * seconds / self.size.block
        self.check()
        following = next(self.turns, None)
        if following is not None:
            self.begin(trainer, following)
        else:
            trainer.callbacks = self.lists[True]  # type: ignore[attr-defined] # each comes to its end
            trainer.should_stop = True

    def check(self) -> None:
        """Raises where a ratio would be of something else than was meant."""
        if not self.turn.on and self.taken.total() != self.before:
            raise RuntimeError(f"{self.taken.total() - self.before} samples in steps without")
        if self.turn.on and self.turn.last and self.turn.counts and dict(self.taken) != self.expected:
            raise RuntimeError(f"a block with {dict(self.taken)} samples instead of {self.expected}")

    def samples(self) -> str:
        """How many samples the last block held, of each callback."""
        count = " ".join(str(self.taken[type(one).__name__]) for one in self.watchers)
        return count + (f", {self.in_detail.total()} in detail" if self.in_detail else "")


def counted(method: Callable[..., Any], counter: Counter[str], name: str) -> Callable[..., Any]:
    """A method whose calls are counted."""

    def call(*args: Any) -> Any:
        counter[name] += 1
        return method(*args)

    return call


def fit(config: str, callbacks: Sequence[Callback], flags: Sequence[str], runs: Path | None) -> None:
    """Our command line with one of our configs, and these callbacks behind its own."""

    class WatchedCLI(CLI):
        def instantiate_trainer(self, **kwargs: object) -> Trainer:
            trainer = super().instantiate_trainer(**kwargs)
            trainer.callbacks.extend(callbacks)  # type: ignore[attr-defined]
            return trainer

    endless = ["--trainer.max_epochs=100000", "--test_after_fit=false", "--trainer.accelerator=cpu", "--monitors=false"]
    with (
        tempfile.TemporaryDirectory() if runs is None else nullcontext(runs) as folder,
        open(os.devnull, "w") as nowhere,
        redirect_stdout(nowhere),  # the bar and the tables
    ):
        try:
            WatchedCLI(["fit", "-c", str(CONFIGS / config), f"--runs={folder}", *endless, *flags])
        except SystemExit as stop:  # Lightning ends so on a signal, with status 0
            raise SystemExit(stop.code or "the run was ended by a signal") from None


def measure(net: str, one: Row, rounds: int, arguments: argparse.Namespace) -> None:
    """Prints one row."""
    label, config, flags = NETS[net]
    size, warmup = one.sizes[net], WARMUP[net]
    if arguments.steps:
        block, stretch, warmup = arguments.steps
        size = Size(block, stretch, 1)
    watchers = one.make()
    blocks = Blocks(watchers, size, rounds * size.times, warmup)
    says = f"{label}: {one.says}"
    runs = arguments.keep / re.sub(r"\W+", "_", says) if arguments.keep else None
    flags = (*flags, "--data.val_size=0", "--trainer.enable_checkpointing=false")
    fit(config, [*watchers, blocks], flags, runs)
    with_, without = blocks.milliseconds[True], blocks.milliseconds[False]
    print(row(says, with_, without, f"{one.marks.get(net, ''):14}{blocks.samples()}"), flush=True)


# Memory.


class Ledger(Callback):
    """Prints what the process holds after so many steps, and then ends the run.

    Args:
        steps: when.
    """

    def __init__(self, steps: Sequence[int]) -> None:
        self.steps = steps
        self.out = sys.stdout

    def on_train_batch_end(self, trainer: Trainer, *unused: Any) -> None:
        number = trainer.global_step
        if number in self.steps:
            print(f"{number:44,} {resident() / 2**20:9.1f} {handles():9}", file=self.out, flush=True)
            trainer.should_stop = number == self.steps[-1]


def memory(samples: int) -> None:
    """Prints whether memory or open files grow with samples: of the three statistics at every step, on Digits."""
    print(f"\n{'samples of three statistics, MLP on Digits':44} {'MiB':>9} {'files':>9}", flush=True)
    ledger = Ledger([samples // 10, samples * 4 // 10, samples * 7 // 10, samples])
    fit("digits_mlp.yaml", [*(make(1) for make in STATISTICS), ledger], (), None)


def resident() -> int:
    """Bytes of memory that the process holds; where only the most it has held is known, that."""
    pages = Path("/proc/self/statm")
    if pages.exists():
        return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def handles() -> int:
    """Files that the process has open."""
    return len(os.listdir("/proc/self/fd" if sys.platform == "linux" else "/dev/fd")) - 1  # the folder itself


def main() -> None:
    """Measures what --only names on the networks of --net, and prints a row for each."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench monitors", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    single = ", ".join(name for name in ROWS if name not in USUAL)
    parser.add_argument(
        "--rounds",
        type=int,
        default=ROUNDS,
        help="blocks with and without of the suite on ResNet-8, which take 2.5 minutes each time; of what takes less "
        f"time as many or some times as many (default: {ROUNDS})",
    )
    parser.add_argument(
        "--only",
        default=",".join(USUAL),
        help=f"which, separated by commas: {', '.join(USUAL)} (the default); a monitor by itself at its usual rate, "
        f"seconds on the MLP and up to 5 minutes on ResNet-8: {single}; memory, a minute",
    )
    parser.add_argument("--net", default=",".join(NETS), help="on which networks: mlp, resnet, or both (the default)")
    # For tests: the length of block, stretch and warm-up; where runs are kept; samples of `memory`.
    parser.add_argument("--steps", type=lambda text: tuple(map(int, text.split(","))), help=argparse.SUPPRESS)
    parser.add_argument("--keep", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--samples", type=int, default=SAMPLES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names, nets = arguments.only.split(","), arguments.net.split(",")
    for unknown in (name for name in names if name not in ROWS and name != "memory"):
        parser.error(f"--only={unknown}: there are {', '.join(ROWS)}, memory.")
    for unknown in (net for net in nets if net not in NETS):
        parser.error(f"--net={unknown}: there are {', '.join(NETS)}.")
    if arguments.rounds < 1:
        parser.error(f"--rounds={arguments.rounds}: at least 1.")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    print(f"{describe()}\nload      {os.getloadavg()[0]:.1f} processes besides, as it began", flush=True)
    if "memory" in names:  # first, while the process has held nothing else
        memory(arguments.samples)
    rows = [one for name in names if name != "memory" for one in ROWS[name]]
    if rows:
        heading = f"{'milliseconds per step, medians':44} {'with':>9} {'without':>9}   ratio  (range)          "
        print(f"\n{heading}{'mark':14}samples in a block", flush=True)
    for net in nets:
        for one in rows:
            measure(net, one, arguments.rounds, arguments)


if __name__ == "__main__":
    main()
