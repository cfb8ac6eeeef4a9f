"""A run that is killed and resumed ends as if nothing had happened: to the bit, in every file it leaves."""

import json
import os
import random
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from torch import Tensor

from commands import QUIET
from forks import Fork, Forks
from kills import POINTS

# How many random kills; more by hand.
TRIALS = int(os.environ.get("NORMZOO_TRIALS", "40"))


def objects(*named: tuple[str, dict[str, Any]]) -> str:
    """Classes and their arguments as the value of a flag."""
    return json.dumps([{"class_path": name, "init_args": arguments} for name, arguments in named])


MONITORS = [
    ("normzoo.callbacks.RunningStatistics", {"every": 2, "detail_every": 5}),
    ("normzoo.callbacks.CovariateShift", {"every": 3, "detail_every": 7}),
    ("normzoo.callbacks.GradientFlow", {"every": 2, "detail_every": 6}),
    ("normzoo.callbacks.ActivationPercentiles", {"every": 3, "detail_every": 6}),
    ("normzoo.callbacks.InternalCovariateShift", {"every": 4}),
    ("normzoo.callbacks.LossLandscape", {"every": 7, "steps": [0.05, 0.4]}),
]
AUGMENT = "--data.augment=" + objects(("normzoo.data.RandomFlip", {}), ("normzoo.data.RandomShift", {"padding": 1}))
COMMON = (
    *QUIET,
    "--trainer.max_epochs=3",
    "--trainer.limit_train_batches=12",
    "--trainer.log_every_n_steps=5",  # not a divisor of an epoch: points of the curve lie across its end
    "--model.net.hidden=[24,20]",
    "--checkpoint_steps=4",
)
CONV = ("--model.net=ConvNet", "--model.net.widths=[4,6]")
SETTINGS: dict[str, tuple[str, ...]] = {
    "dropout": ("--model.net.activation=Dropout", "--model.lr_scheduler=WarmupCosine"),
    "augment": (AUGMENT, *CONV, "--model.net.norm=OnlineNorm", "--data.num_workers=2", "--model.lr_scheduler=StepLR",
                "--model.lr_scheduler.step_size=1", "--model.lr_scheduler.gamma=0.3"),
    "accumulate": ("--trainer.accumulate_grad_batches=5", "--model.net.norm=SpectralNorm", "--model.lr_scheduler=WarmupCosine",
                   "--checkpoint_steps=1", "--trainer.limit_train_batches=17"),
    "plateau": ("--model.lr_scheduler=ReduceLROnPlateau", "--model.lr_scheduler.patience=0",
                "--model.lr_scheduler.threshold=0.5", "--model.net.norm=NoisyBatchNorm", AUGMENT),
    "monitors": ("--trainer.callbacks=" + objects(*MONITORS), "--model.net.activation=RReLU", "--model.optimizer=SGD",
                 "--model.optimizer.lr=0.1", "--model.optimizer.momentum=0.9"),
    "monitors of convolutions": (*CONV, "--trainer.callbacks=" + objects(*MONITORS), "--data.num_workers=2", AUGMENT,
                                 "--model.net.norm=BatchRenorm"),
    "reference batch": ("--model.net.norm=VirtualBatchNorm", "--trainer.val_check_interval=3", "--checkpoint_steps=1"),
    "early stopping": ("--model.net.norm=WeightNorm", "--trainer.max_epochs=9", "--trainer.limit_train_batches=7",
                       "--trainer.callbacks=" + objects(("EarlyStopping", {"monitor": "val/loss", "patience": 1,
                                                                          "min_delta": 0.3}))),
    "steps": ("--trainer.max_epochs=-1", "--trainer.max_steps=31", "--trainer.val_check_interval=6",
              "--model.net.norm=PowerNorm", "--checkpoint_steps=3"),
    "by the clock": ("--checkpoint_minutes=0.0005", "--checkpoint_steps=null", "--trainer.check_val_every_n_epoch=2",
                     "--model.net.norm=MovingAverageBatchNorm", "--trainer.max_epochs=4", AUGMENT),
}  # fmt: skip
TWO_RANKS = ("--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=32")
RANKS: dict[str, tuple[str, ...]] = {
    "ranks": (*TWO_RANKS, "--trainer.sync_batchnorm=true", "--model.net.activation=Dropout", AUGMENT),
    "ranks by the clock": (*TWO_RANKS, "--checkpoint_minutes=0.0005", "--checkpoint_steps=null", "--data.num_workers=1",
                           "--model.net.norm=NoisyBatchNorm", "--trainer.callbacks=" + objects(*MONITORS[:3])),
}  # fmt: skip


# What a run leaves.


def flat(value: Any, run: Path, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a checkpoint by its path, tensors as their bytes, the run's own folder as RUN."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from flat(part, run, f"{path}/{str(key).replace(str(run), 'RUN')}")
    elif isinstance(value, list | tuple):
        yield f"{path}/length", len(value)
        for i, part in enumerate(value):
            yield from flat(part, run, f"{path}/{i}")
    elif isinstance(value, Tensor):
        yield path, (value.dtype, tuple(value.shape), value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    else:
        yield path, repr(value).replace(str(run), "RUN")


def saved(run: Path, name: str) -> dict[str, Any]:
    checkpoint = torch.load(run / "checkpoints" / name, weights_only=True)
    if name == "best.ckpt":
        return dict(flat(checkpoint["state_dict"], run))
    del checkpoint["exact_resume"]["events"]  # files have the names of processes
    return dict(flat(checkpoint, run))


def records(run: Path) -> dict[str, list[tuple[int, bytes]]]:
    """Tag -> all its steps and values, in the order of the files."""
    found: dict[str, list[tuple[int, bytes]]] = {}
    for file in sorted(run.glob("*tfevents*")):
        for event in LegacyEventFileLoader(str(file)).Load():
            for value in event.summary.value:
                told = (
                    b"" if value.tag == "_hparams_/session_start_info" else value.SerializeToString()
                )  # it has a clock
                found.setdefault(value.tag, []).append((event.step, told))
    return found


def differences(one: Path, two: Path) -> list[str]:
    """What is not the same in two runs, a line for each."""
    found = []
    for name in ("last.ckpt", "best.ckpt"):
        first, second = saved(one, name), saved(two, name)
        found += [f"{name}{key}" for key in sorted(first.keys() | second.keys()) if first.get(key) != second.get(key)]
    first, second = records(one), records(two)
    for tag in sorted(first.keys() | second.keys()):
        if (ours := first.get(tag, [])) != (theirs := second.get(tag, [])):
            steps = [step for step, _ in ours], [step for step, _ in theirs]
            found.append(f"TensorBoard {tag}: {steps if steps[0] != steps[1] else 'values'}")
    if parts := list(two.glob("**/*.part")):
        found.append(f"left over: {parts}")
    return found


# Killing.


class Shared(Forks):
    """Asked by several threads."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.lock = threading.Lock()

    def start(self, *arguments: str, **given: Any) -> Fork:
        with self.lock:
            return super().start(*arguments, **given)

    def ask(self, **request: Any) -> dict[str, Any]:
        if self.lock.locked() and "arguments" in request:
            return super().ask(**request)
        with self.lock:
            return super().ask(**request)


class Trials:
    """Runs of the settings: one that is left alone, and others that are killed and resumed.

    Args:
        folder: for all of them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.forks = Shared(folder)
        self.pool = ThreadPoolExecutor(2)
        self.whole: dict[str, tuple[Path, dict[str, Any]]] = {}
        self.locks = {name: threading.Lock() for name in (*SETTINGS, *RANKS)}
        self.futures: dict[int, Future[list[str]]] = {}

    def normzoo(self, setting: str, *arguments: str, cwd: Path, before: str = "", run: str = "000") -> int:
        """Runs a command, on two ranks if the setting says so; if one dies, so does the other."""
        environments: list[dict[str, str]] = [{}]
        if setting in RANKS:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "WORLD_SIZE": "2",
                      "NORMZOO_RUN": f"lightning_logs/default/{run}"}  # fmt: skip
            environments = [{**shared, "LOCAL_RANK": str(rank)} for rank in range(2)]
        forks = [
            self.forks.start(*arguments, cwd=cwd, before="" if i else before, **environment)
            for i, environment in enumerate(environments)
        ]
        end = time.monotonic() + 100
        while None in (statuses := [fork.poll() for fork in forks]) and not any(statuses):
            assert time.monotonic() < end, "\n".join(fork.out[-1000:] + fork.err[-3000:] for fork in forks)
            time.sleep(0.02)
        for fork in forks:
            fork.kill()
            fork.wait()
        for fork in forks:
            assert fork.poll() in (0, -9, 1), fork.err[-3000:]
        assert statuses[0] != 1 or "is no run" in forks[0].err, forks[0].err[-3000:]
        return next((status for status in statuses if status), 0)

    def uninterrupted(self, setting: str) -> tuple[Path, dict[str, Any]]:
        """A run that is left alone, and how often it passes each point."""
        with self.locks[setting]:
            if setting not in self.whole:
                cwd = self.folder / setting / "whole"
                cwd.mkdir(parents=True)
                flags = {**SETTINGS, **RANKS}[setting]
                counting = f"import kills; kills.count({str(cwd / 'counts.json')!r})"
                assert self.normzoo(setting, "fit", *COMMON, *flags, cwd=cwd, before=counting) == 0
                counts = json.loads((cwd / "counts.json").read_text())
                self.whole[setting] = cwd / "lightning_logs/default/000", counts
            return self.whole[setting]

    def killed(self, setting: str, kills: list[str], cwd: Path) -> Path:
        """A run that is killed as often as it is said, and resumed each time; returns its folder."""
        flags = {**SETTINGS, **RANKS}[setting]
        cwd.mkdir(parents=True)
        number, begun = 0, False
        for i, kill in enumerate([*kills, ""]):
            run = cwd / f"lightning_logs/default/{number:03d}"
            command = ("resume", str(run)) if begun else ("fit", *COMMON, *flags)
            status = self.normzoo(setting, *command, cwd=cwd, before=kill, run=run.name)
            if i == 0:
                assert status == -9, f"{kill} did not kill the run"
            if status == 0:
                break
            begun = (run / "config.yaml").is_file()
            if not begun:  # it was killed before it began, and is refused
                assert self.normzoo(setting, "resume", str(run), cwd=cwd, run=run.name) == 1
                number += 1
        return run

    def random(self, seed: int) -> list[str]:
        """How a run that is killed at random, once or twice, differs from one that is left alone."""
        draw = random.Random(seed)
        names = [*SETTINGS, *RANKS]
        setting = names[seed % len(names)]
        whole, counts = self.uninterrupted(setting)

        def kill(share: float) -> str:
            points = [point for point in POINTS if counts["passed"].get(point)]
            if draw.random() < 0.35:
                return f"kills.kill_later({draw.uniform(0, share * counts['seconds'])})"
            point = draw.choice(points)
            return f"kills.kill({point!r}, {draw.randint(1, max(1, int(share * counts['passed'][point])))}, {draw.random() < 0.5})"

        kills = [f"import kills; {kill(1.0 if i == 0 else 0.5)}" for i in range(1 + (draw.random() < 0.3))]
        run = self.killed(setting, kills, self.folder / setting / str(seed))
        found = differences(whole, run)
        if not found:
            shutil.rmtree(run.parents[2])
        return [f"{setting}, {kills}: {one}" for one in found]

    def start(self, seeds: list[int]) -> None:
        for seed in seeds:
            self.futures[seed] = self.pool.submit(self.random, seed)

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)
        self.forks.close()


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Trials]:
    """All random trials that are asked for, two at a time."""
    found = Trials(tmp_path_factory.mktemp("trials"))
    calls = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    found.start([call.params["seed"] for call in calls if call and "seed" in call.params])
    yield found
    found.close()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(TRIALS))
def test_a_killed_run_ends_as_one_that_was_left_alone(seed: int, trials: Trials) -> None:
    assert trials.futures[seed].result() == []
