"""A run that is killed and resumed ends as if nothing had happened: to the bit, in every file it leaves."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import IO, Any

import pytest
import torch
import yaml
from commands import QUIET, fit, normzoo, scalars
from forks import Fork, Forks
from kills import POINTS
from left_behind import age, differences, flat, records, saved
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import AsyncCheckpointIO, TorchCheckpointIO
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from normzoo import norms
from normzoo.callbacks import ExactResume, TrainingCurve
from normzoo.data import Digits
from normzoo.models import ConvNet
from normzoo.runs import folders
from normzoo.runs.atomic import written_whole
from normzoo.runs.checkpoint_io import SafeCheckpointIO, write_safely
from normzoo.tasks.classifier import Classifier

# How many random kills; more by hand.
TRIALS = int(os.environ.get("NORMZOO_TRIALS", "40"))


def objects(*named: tuple[str, dict[str, Any]]) -> str:
    """Classes and their arguments as the value of a flag."""
    return json.dumps([{"class_path": name, "init_args": arguments} for name, arguments in named])


MONITORS = [
    ("normzoo.callbacks.RunningStatistics", {"every": 2, "detail_every": 5}),
    ("normzoo.callbacks.CovariateShift", {"every": 3}),
    ("normzoo.callbacks.GradientFlow", {"every": 2}),
    ("normzoo.callbacks.ActivationPercentiles", {"every": 3, "detail_every": 6}),
    ("normzoo.callbacks.InternalCovariateShift", {"every": 4}),
    ("normzoo.callbacks.LossLandscape", {"every": 7, "steps": [0.05, 0.4]}),
]
AUGMENT = "--data.augment=" + objects(("normzoo.data.RandomFlip", {}), ("normzoo.data.RandomShift", {"padding": 1}))
COMMON = (
    *QUIET,
    "--monitors=false",  # a setting has monitors of its own
    "--trainer.max_epochs=3",
    "--trainer.limit_train_batches=12",
    "--trainer.log_every_n_steps=5",  # not a divisor of an epoch: points of the curve lie across its end
    "--checkpoint_steps=4",
)
HIDDEN = "--model.net.hidden=[24,20]"
# Else a short run has a point at every step, and nothing between two points to be lost.
FEW_POINTS = (
    "from normzoo.callbacks import TrainingCurve\nTrainingCurve.__init__.__defaults__ = (('loss', 'accuracy'), 5)\n"
)
CONV = ("--model.net=ConvNet", "--model.net.widths=[4,6]")
SETTINGS: dict[str, tuple[str, ...]] = {
    "dropout": ("--model.net.activation=Dropout", "--model.lr_scheduler=WarmupCosine"),
    "augment": (AUGMENT, *CONV, "--model.net.norm=OnlineNorm", "--data.num_workers=2", "--model.lr_scheduler=StepLR",
                "--model.lr_scheduler.step_size=1", "--model.lr_scheduler.gamma=0.3"),
    "accumulate": ("--trainer.accumulate_grad_batches=5", "--model.net.norm=SpectralNorm", "--checkpoint_steps=1",
                   "--model.lr_scheduler=WarmupCosine", "--trainer.limit_train_batches=17"),
    "plateau": ("--model.lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau", "--model.lr_scheduler.patience=0",
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
SETTINGS |= {
    "scheduled accumulation": ("--trainer.limit_train_batches=17", "--checkpoint_steps=1", "--trainer.callbacks="
                               + objects(("GradientAccumulationScheduler", {"scheduling": {"0": 2, "1": 3}}))),
    "loggers of one's own": ("--trainer.log_every_n_steps=1", "--trainer.logger=" + objects(
        ("lightning.pytorch.loggers.TensorBoardLogger", {"save_dir": "own", "name": "curves"}),
        ("lightning.pytorch.loggers.CSVLogger", {"save_dir": "own", "name": "rows"}))),
    "frozen norms": (*CONV, "--trainer.callbacks=" + objects(("normzoo.callbacks.FreezeNorms", {"from_epoch": 1}))),
    "extra state": ("--model.net=counted.Counted", HIDDEN),
}  # fmt: skip
TWO_RANKS = ("--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=32")
RANKS: dict[str, tuple[str, ...]] = {
    "ranks": (*TWO_RANKS, "--trainer.sync_batchnorm=true", "--model.net.activation=Dropout", AUGMENT),
    "ranks by the clock": (*TWO_RANKS, "--checkpoint_minutes=0.0005", "--checkpoint_steps=null", "--data.num_workers=1",
                           "--model.net.norm=NoisyBatchNorm", "--trainer.callbacks=" + objects(*MONITORS[:4])),
    "sharded ranks": (*TWO_RANKS, '--trainer.strategy={"class_path": "normzoo.distributed.FSDP"}',
                      "--trainer.sync_batchnorm=true", "--model.optimizer=SGD", "--model.optimizer.lr=0.1",
                      "--model.optimizer.momentum=0.9"),
}  # fmt: skip


def flags_of(setting: str) -> tuple[str, ...]:
    """All flags of a setting."""
    flags = {**SETTINGS, **RANKS}[setting]
    return (*COMMON, *([] if any(flag.startswith("--model.net=") for flag in flags) else [HIDDEN]), *flags)


# What a run leaves.


def left(run: Path) -> dict[str, Any]:
    """All that a run leaves which another one could have left as well."""
    checkpoints = {
        f"{name}{key}": leaf for name in ("last.ckpt", "best.ckpt") for key, leaf in saved(run, name).items()
    }
    return {**checkpoints, **{f"TensorBoard {tag}": values for tag, values in records(run).items()},
            **{f"left over: {part}": True for part in run.glob("**/*.part")}, **own(run.parents[2])}  # fmt: skip


def own(folder: Path) -> dict[str, Any]:
    """What loggers of one's own wrote to `own/`; a run that begins anew does so in a new version."""
    newest = max(folder.glob("own/curves/*"), default=folder), max(folder.glob("own/rows/*"), default=folder)
    rows = [file.read_text() for file in newest[1].glob("metrics.csv")]
    return {**{f"own {tag}": values for tag, values in records(newest[0]).items()}, "own rows": rows}


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
    """Runs of the settings: an uninterrupted one, and others that are killed and resumed.

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
        environments: list[dict[str, str]] = [{"NORMZOO_ALLOW": "counted"}]
        if setting in RANKS:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "WORLD_SIZE": "2",
                      "NORMZOO_RUN": f"lightning_logs/default/{run}"}  # fmt: skip
            environments = [{**shared, "LOCAL_RANK": str(rank)} for rank in range(2)]
        forks = [
            self.forks.start(*arguments, cwd=cwd, before=FEW_POINTS + ("" if i else before), **environment)
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
                cwd.mkdir(parents=True, exist_ok=True)
                counting = f"import kills; kills.count({str(cwd / 'counts.json')!r})"
                assert self.normzoo(setting, "fit", *flags_of(setting), cwd=cwd, before=counting) == 0
                counts = json.loads((cwd / "counts.json").read_text())
                self.whole[setting] = next((cwd / "lightning_logs/default").iterdir()), counts
            return self.whole[setting]

    def killed(self, setting: str, kills: list[str], cwd: Path) -> Path | None:
        """A run that is killed as often as it is said, and resumed each time; its folder, None if it ended before."""
        cwd.mkdir(parents=True)
        number, begun = 0, False
        for i, kill in enumerate([*kills, ""]):
            numbered = str(cwd / f"lightning_logs/default/{number:03d}")
            command = ("resume", numbered) if begun else ("fit", *flags_of(setting))
            status = self.normzoo(setting, *command, cwd=cwd, before=kill, run=folders.existing(numbered).name)
            run = folders.existing(numbered)
            if status == 0:
                return run if i else None
            begun = (run / "config.yaml").is_file()
            if not begun:  # it was killed before it began, and is refused
                assert self.normzoo(setting, "resume", str(run), cwd=cwd, run=run.name) == 1
                number += 1
        raise AssertionError(f"{kills}: the last of the runs has not ended well")

    def random(self, seed: int) -> list[str]:
        """How a run that is killed at random, once or twice, differs from an uninterrupted one."""
        draw = random.Random(seed)
        names = [*SETTINGS, *RANKS]
        setting = names[seed % len(names)]
        whole, counts = self.uninterrupted(setting)

        def kill(again: bool) -> str:
            share = 0.5 if again else 1  # of the run that is left to do
            points = [point for point in POINTS if counts["passed"].get(point)] + ["cut"] * again
            if draw.random() < 0.35:
                return f"kills.kill_later({draw.uniform(0, share * counts['seconds'])})"
            point = draw.choice(points)
            number = draw.randint(1, max(1, int(share * counts["passed"].get(point, 1))))
            return f"kills.kill({point!r}, {number}, {draw.random() < 0.5})"

        run = None
        while run is None:  # clocks are no measure: a run may be faster than the one that was timed
            kills = [f"import kills; {kill(again)}" for again in (False, True)[: 1 + (draw.random() < 0.3)]]
            run = self.killed(setting, kills, self.folder / setting / f"{seed}-{draw.random()}")
        found = differences(left(whole), left(run))
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
def test_a_killed_run_ends_as_an_uninterrupted_one(seed: int, trials: Trials) -> None:
    assert trials.futures[seed].result() == []


@pytest.mark.slow
def test_tensorboard_reads_the_same_curves_of_a_killed_run(trials: Trials) -> None:
    """By its own reader: scalars, each step once, and the monitors' tables."""
    whole, _ = trials.uninterrupted("monitors")
    kills = [f"import kills; kills.kill({point!r}, {number}, False)" for point, number in (("step", 23), ("step", 6))]
    run = trials.killed("monitors", kills, trials.folder / "monitors" / "read")
    assert run is not None
    assert len(list(run.glob("*tfevents*"))) > len(list(whole.glob("*tfevents*")))
    one, two = read(whole), read(run)
    assert one == two
    assert {kind for kind, _ in one} == {"scalars", "tensors"}
    scalars_of = [values for (kind, _), values in two.items() if kind == "scalars"]
    assert all(len(steps := [step for step, _ in values]) == len(set(steps)) for values in scalars_of)


KINDS = {
    "scalars": "value",
    "tensors": "tensor_proto",
}


def read(run: Path) -> dict[tuple[str, str], list[tuple[int, Any]]]:
    """(kind, tag) -> steps and values, as TensorBoard has them."""
    events = EventAccumulator(str(run), dict.fromkeys(KINDS, 0))
    events.Reload()
    return {
        (kind, tag): [(event.step, getattr(event, value)) for event in getattr(events, kind.capitalize())(tag)]
        for kind, value in KINDS.items()
        for tag in events.Tags()[kind]
    }


@pytest.mark.slow
def test_two_ranks_that_lightning_starts_are_killed_and_resumed(trials: Trials) -> None:
    """As a user starts them: one command, whose process starts the other rank."""
    flags = flags_of("ranks")
    runs = []
    for name, kill in {"whole": "", "killed": "import kills; kills.kill('step', 20, True)"}.items():
        cwd = trials.folder / f"started {name}"
        cwd.mkdir()
        fork = trials.forks.run("fit", *flags, cwd=cwd, before=kill)
        assert fork.poll() == (-9 if kill else 0), fork.err[-3000:]
        runs.extend((cwd / "lightning_logs/default").iterdir())
    resumed = trials.forks.run("resume", "lightning_logs/default", cwd=trials.folder / "started killed")
    assert resumed.poll() == 0, resumed.err[-3000:]
    assert differences(*map(left, runs)) == []


# The command, in this process.


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of two epochs that has ended; to be copied."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("finished"))
        patch.setattr(TrainingCurve.__init__, "__defaults__", (("loss", "accuracy"), 2))
        yield fit(*BRIEF, "--trainer.max_epochs=2")


@pytest.fixture
def ended(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same in the folder that the test is in."""
    monkeypatch.chdir(tmp_path)
    # so that the end of an epoch lies between two points
    monkeypatch.setattr(TrainingCurve.__init__, "__defaults__", (("loss", "accuracy"), 2))
    return Path(shutil.copytree(finished, tmp_path / "lightning_logs/default/000-BatchNorm-0"))


BRIEF = ("--trainer.limit_train_batches=4", "--trainer.log_every_n_steps=3", "--model.net.hidden=[8]")


def content(run: Path) -> dict[str, bytes]:
    return {str(file.relative_to(run)): file.read_bytes() for file in run.rglob("*") if file.is_file()}


def test_a_finished_run_is_reported(ended: Path) -> None:
    before = content(ended)
    for path in (ended, ended.parent):
        result = normzoo("resume", str(path))
        assert result.status == 0
        assert "has finished" in result.out
        assert "--trainer.max_epochs" in result.out
    assert content(ended) == before


ROTATION = "--data.augment=" + objects(("torchvision.transforms.v2.RandomRotation", {"degrees": 15}))


@pytest.mark.filterwarnings("ignore::UserWarning")  # of jsonargparse
@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        (ROTATION, "--model.net=ConvNet", "--model.net.widths=[4]"),
        ("--trainer.callbacks=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.1"),
    ],
    ids=["a number of any kind", "a device"],
)
def test_a_value_that_jsonargparse_cannot_write_can_be_resumed(
    flags: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = fit("--trainer.limit_train_batches=2", "--trainer.max_epochs=2", "--test_after_fit=false", *flags)
    assert "Unable to serialize" not in (run / "config.yaml").read_text()
    result = normzoo("resume", str(run), "--trainer.max_epochs=5")  # the averaged weights have taken a third epoch
    assert result.status == 0, result.err


def test_a_run_that_has_finished_can_be_made_longer(ended: Path) -> None:
    """And is then what it would have been, with both configurations kept."""
    first = (ended / "config.yaml").read_text()
    result = normzoo("resume", str(ended), "--trainer.max_epochs=3")
    assert result.status == 0, result.err
    assert (ended / "config-1.yaml").read_text() == first
    assert yaml.safe_load((ended / "config.yaml").read_text()) == {
        **(settings := yaml.safe_load(first)),
        "trainer": {**settings["trainer"], "max_epochs": 3},
    }
    whole = fit(*BRIEF, "--trainer.max_epochs=3", "--experiment=whole")
    assert differences(left(whole), left(ended), leaving_out="_hparams_") == []


SLOW = ("accumulate", "plateau", "scheduled accumulation", "loggers of one's own")
ESSENTIAL = ("dropout", *(pytest.param(one, marks=pytest.mark.slow) for one in SLOW))


@pytest.mark.parametrize("setting", ESSENTIAL)
def test_a_run_that_is_cut_off_within_an_epoch_ends_the_same(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off by an exception, after which nothing is saved either."""
    monkeypatch.setattr(TrainingCurve.__init__, "__defaults__", (("loss", "accuracy"), 5))
    runs = []
    for name, number in (("whole", 0), ("killed", 21)):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        flags = (*flags_of(setting), "--trainer.max_epochs=2", "--test_after_fit=false", "--monitors=false")
        with monkeypatch.context() as patch:
            if number:
                patch.setattr(Classifier, "training_step", dies_in_class(Classifier.training_step, number))
            with pytest.raises(Killed) if number else nullcontext():
                normzoo("fit", *flags)
        runs.extend((tmp_path / name / "lightning_logs/default").iterdir())
    result = normzoo("resume", str(runs[1]))
    assert result.status == 0, result.err
    assert differences(*map(left, runs)) == []


@pytest.mark.slow
def test_another_number_of_threads_is_reported(ended: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums are then rounded differently: a run cannot be exact."""
    saved = torch.get_num_threads()
    monkeypatch.setattr("normzoo.runs.exact_resume.torch.get_num_threads", lambda: saved + 3)
    with pytest.warns(UserWarning, match=f"with {saved} threads, and this process uses {saved + 3}.*OMP_NUM_THREADS"):
        assert normzoo("resume", str(ended), "--trainer.max_epochs=3").status == 0


def test_images_that_have_changed_on_disk_are_reported(ended: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Digits.read

    def changed(self: Digits) -> Any:
        train, test = read(self)
        train.images[0, 0, 0] += 1
        return train, test

    monkeypatch.setattr(Digits, "read", changed)
    with pytest.warns(UserWarning, match="Digits: the images in .* are not those of the checkpoint"):
        assert normzoo("resume", str(ended), "--trainer.max_epochs=3").status == 0


STOPPED = {
    "early stopping": (
        ("--trainer.callbacks=" + objects(("EarlyStopping", {"monitor": "val/loss", "stopping_threshold": 100.0})),),
        "--trainer.max_epochs=100001",
    ),
    "time": (('--trainer.max_time={"milliseconds": 300}',), '--trainer.max_time={"milliseconds": 600}'),
}


@pytest.mark.slow
@pytest.mark.parametrize("by", STOPPED)
def test_a_stopped_run_continues_with_other_limits(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    limit, other = STOPPED[by]
    run = fit(*BRIEF, "--trainer.max_epochs=100000", *limit)
    at = newest(run)["global_step"]
    (run / "finished").unlink()
    assert normzoo("resume", str(run)).status == 0
    assert newest(run)["global_step"] == at  # it has stopped, whatever became of its end
    result = normzoo("resume", str(run), other)
    assert result.status == 0, result.err
    assert newest(run)["global_step"] > at


def newest(run: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    return checkpoint


ORDERS = {
    "the same few batches": ("--trainer.overfit_batches=4", "--trainer.limit_train_batches=null"),
    "an uneven last batch": (
        "--data.drop_last=false",
        "--data.batch_size=400",
        "--trainer.limit_train_batches=null",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ORDERS)
def test_a_run_continues_within_an_epoch_with_the_next_batch(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [
        fit(*BRIEF, *ORDERS[name], "--trainer.max_epochs=2", f"--experiment={steps}", f"--trainer.max_steps={steps}")
        for steps in (6, 8)
    ]
    result = normzoo("resume", str(runs[0]), "--trainer.max_steps=8")
    assert result.status == 0, result.err
    one, other = (dict(flat([newest(run)[key] for key in ("state_dict", "optimizer_states")], run)) for run in runs)
    assert one == other


@pytest.mark.parametrize("lost", ["finished", "finished and the last records"])
def test_a_test_that_was_cut_off_is_done(lost: str, ended: Path) -> None:
    whole = left(ended)
    (ended / "finished").unlink()
    if lost != "finished":
        [_, last] = sorted(ended.glob("*tfevents*"), key=age)  # of the test
        last.unlink()
    config = (ended / "config.yaml").stat()
    unchanged = config.st_ino, config.st_mtime_ns
    result = normzoo("resume", str(ended))
    assert result.status == 0, result.err
    assert "test/accuracy" in result.out
    assert differences(whole, left(ended)) == []
    assert (ended / "finished").is_file()
    config = (ended / "config.yaml").stat()
    assert (config.st_ino, config.st_mtime_ns) == unchanged
    assert not (ended / "config-1.yaml").exists()


def test_a_run_without_a_checkpoint_begins_anew_in_its_folder(finished: Path, ended: Path) -> None:
    (ended / "finished").unlink()
    (ended / "checkpoints/last.ckpt").rename(ended / "checkpoints/.last.ckpt.1.part")
    result = normzoo("resume", str(ended))
    assert result.status == 0, result.err
    assert "from its beginning" in result.out
    assert differences(left(finished), left(ended)) == []


def test_a_run_without_a_checkpoint_keeps_its_curves_until_it_begins_anew(ended: Path) -> None:
    """Not where flags are refused, nor where it has finished."""
    for file in ended.glob("checkpoints/*"):
        file.unlink()
    before = {name: data for name, data in content(ended).items() if name != ".lock"}
    for finished, flag, said in (
        (True, "--trainer.max_epochs=3", "has finished, and kept no checkpoint.*normzoo fit -c"),
        (False, "--trainer.max_epoch=3", "Did you mean --trainer.max_epochs"),
        (False, "--change=model.optimizer.lr", "change=model.optimizer.lr: there is no checkpoint"),
    ):
        if not finished:
            (ended / "finished").unlink(missing_ok=True)
        result = normzoo("resume", str(ended), flag)
        assert result.status == 1
        assert re.search(said, result.err)
        after = content(ended)
        assert {name: after.get(name) for name in before if name != "finished"} == {
            name: data for name, data in before.items() if name != "finished"
        }


def test_a_moved_folder_continues_where_it_is(ended: Path, tmp_path: Path) -> None:
    """Its best checkpoint too, which an epoch that is worse leaves alone."""
    moved = tmp_path / "elsewhere/7"
    shutil.move(ended, moved)
    worse = ("--trainer.max_epochs=3", "--model.lr_scheduler=StepLR", "--model.lr_scheduler.step_size=2")
    checkpoint = torch.load(moved / "checkpoints/last.ckpt", weights_only=True)
    [state] = [state for key, state in checkpoint["callbacks"].items() if key.startswith("ModelCheckpoint")]
    state["best_model_score"] = state["kth_value"] = torch.tensor(2.0)  # no accuracy reaches it
    state["best_k_models"] = dict.fromkeys(state["best_k_models"], torch.tensor(2.0))
    torch.save(checkpoint, moved / "checkpoints/last.ckpt")
    best = (moved / "checkpoints/best.ckpt").read_bytes()
    result = normzoo("resume", str(moved), *worse[:1])
    assert result.status == 0, result.err
    assert (moved / "checkpoints/best.ckpt").read_bytes() == best
    assert not ended.exists()
    assert max(scalars(moved)["val/accuracy"]) == 11


def test_a_lost_curve_does_not_prevent_resuming(ended: Path) -> None:
    for file in ended.glob("*tfevents*"):
        file.unlink()
    result = normzoo("resume", str(ended), "--trainer.max_epochs=3")
    assert result.status == 0, result.err
    assert list(scalars(ended)["val/loss"]) == [11]


def test_a_run_of_another_checkpoint_leaves_that_ones_curves_alone(ended: Path) -> None:
    before = content(ended)
    other = fit(*BRIEF, "--trainer.max_epochs=3", f"--ckpt_path={ended}/checkpoints/last.ckpt", "--experiment=other")
    assert content(ended) == before
    assert list(scalars(other)["val/loss"]) == [11]
    assert any(tag.startswith("_hparams_") for tag in records(other))


REFUSED = {
    "resume": "no run.*There are .*default/000",
    "resume nowhere": "'nowhere' is no run.*config.yaml.*There are .*default/000",
    "resume lightning_logs": "'lightning_logs' is no run.*There are .*default/000",
    "resume lightning_logs/default/000-BatchNorm-0/checkpoints": "no run.*There are .*default/000",
    "resume --trainer.max_epochs=3": "folder of the run comes first",
    "resume RUN --ckpt_path=x.ckpt": "--ckpt_path.*own newest checkpoint.*normzoo fit",
    "resume RUN --runs=elsewhere": "--runs.*own folder",
    "resume RUN --experiment=other": "--experiment.*own folder",
    "resume RUN --trainer.max_epoch=3": "max_epochs",
    "resume RUN --model.net.hidden=[9]": r"model.net.hidden: .* asked for \[9\].*--change=model.net.hidden",
    "resume RUN --model.net.hidden=[9] --change=model.net.hidden --trainer.max_epochs=9": "another architecture",
    "resume RUN --model.optimizer.lr=0.1 --change=model.optimizer.lr": "finished, with max_epochs=2.*max_epochs=N",
    "resume RUN --trainer.max_steps=5": "finished, with max_.*to make it longer",
    "resume RUN --checkpoint_steps=0 --trainer.max_epochs=9": "every_steps=0",
    "resume RUN --checkpoint_minutes=-1": "checkpoint_minutes=-1",
    "resume RUN --trainer.fast_dev_run=true --trainer.max_epochs=9": "fast_dev_run=True.*normzoo fit -c",
    "resume RUN --trainer.max_epochs=9 --trainer.callbacks=ExactResume --trainer.callbacks.folder=x": "2 ExactResume",
}


@pytest.mark.slow
def test_what_cannot_be_resumed_is_refused_and_left_alone(ended: Path) -> None:
    before = {name: data for name, data in content(ended).items() if name != ".lock"}
    for command, said in REFUSED.items():
        result = normzoo(*command.replace("RUN", str(ended)).split())
        assert result.status == 1, command
        assert re.search(said, result.err.replace("\n", " ")), (command, result.err)
        after = content(ended)
        assert {name: after.get(name) for name in before} == before, command


@pytest.mark.parametrize("name", [".lock", "finished", "hparams.yaml", "events.out.tfevents.1", "checkpoints"])
def test_a_run_that_leads_elsewhere_writes_nothing_there(name: str, ended: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "last.ckpt").write_bytes((ended / "checkpoints" / "last.ckpt").read_bytes())
    (elsewhere / "mine").write_text("precious")
    before = content(elsewhere)
    if name == "checkpoints":
        shutil.rmtree(ended / name)
        (ended / name).symlink_to(elsewhere)
    else:
        (ended / name).unlink(missing_ok=True)
        (ended / name).symlink_to(elsewhere / ("mine" if name != "hparams.yaml" else "new"))
    result = normzoo("resume", str(ended), "--trainer.max_epochs=3")
    assert result.status == 1
    assert f"{name} is a link to" in result.err
    assert content(elsewhere) == before


def test_a_link_within_a_run_is_allowed(ended: Path) -> None:
    last = ended / "checkpoints" / "last.ckpt"
    last.rename(last.with_name("it.ckpt"))
    last.symlink_to("it.ckpt")
    assert normzoo("resume", str(ended), "--trainer.max_epochs=3").status == 0


def test_predictions_follow_no_link(ended: Path, tmp_path: Path) -> None:
    (ended / "predictions.csv").symlink_to(tmp_path / "elsewhere.csv")
    assert normzoo("predict", f"--ckpt_path={ended}").status == 0
    assert not (tmp_path / "elsewhere.csv").exists()
    assert (ended / "predictions-1.csv").is_file()


def test_a_run_that_is_still_being_trained_is_refused(ended: Path) -> None:
    """As long as its process lives, however it ends."""
    holding = "import pathlib, runpy, sys, time; runpy.run_path(sys.argv[1])['hold'](pathlib.Path(sys.argv[2]))"
    command = [sys.executable, "-c", f"{holding}; print(1, flush=True); time.sleep(100)", folders.__file__, str(ended)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "1\n"
        result = normzoo("resume", str(ended), "--trainer.max_epochs=3")
        holder.kill()
        assert result.status == 1
        assert f"still being trained, by process {holder.pid} on" in result.err
        holder.wait()
        assert normzoo("resume", str(ended), "--trainer.max_epochs=3").status == 0


# In Python.


class Killed(Exception):
    pass


class Shuffled(LightningModule):
    """A task that knows nothing of this package: dropout, a loader in random order, a schedule on a metric."""

    def __init__(self, dies_at: int = -1) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 1))
        self.dies_at = dies_at

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if self.trainer.global_step == self.dies_at:
            raise Killed
        loss = (self.net(batch[0]).squeeze(1) - batch[1]).square().mean()
        self.log("loss", loss, on_step=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val", self.net(batch[0]).square().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), 0.01)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val"}}

    def train_dataloader(self) -> DataLoader[Any]:
        x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, x.sum(1)), batch_size=8, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(torch.ones(8, 4), torch.ones(8)), batch_size=4)


def train(folder: Path, task: LightningModule, data: Any = None, minutes: float = 0, **settings: Any) -> None:
    exact = ExactResume(folder / "0", settings.pop("every_steps", None), every_minutes=minutes)
    trainer = Trainer(
        callbacks=[exact], plugins=[SafeCheckpointIO()], logger=TensorBoardLogger(folder, "", "0"), accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1, **settings
    )  # fmt: skip
    trainer.fit(task, data, ckpt_path=exact.file if exact.file.is_file() else None, weights_only=True)


def last(folder: Path) -> dict[str, Any]:
    checkpoint = torch.load(folder / "0/last.ckpt", weights_only=True)
    del checkpoint["exact_resume"]["events"]
    return dict(flat(checkpoint, folder))


@pytest.mark.filterwarnings("ignore:Checkpoint directory", "ignore:.*does not have many workers")
@pytest.mark.parametrize("settings", [{"max_epochs": 4}, {"max_epochs": -1, "max_steps": 20}], ids=str)
def test_anyones_task_is_resumed_exactly_from_the_end_of_an_epoch(settings: dict[str, int], tmp_path: Path) -> None:
    """Of 5 batches each, in an order that torch's DataLoader draws from the global generator."""
    seed_everything(0, verbose=False)
    train(tmp_path / "whole", Shuffled(), **settings)
    for dies_at in (7, 8, 10, 16, -1):  # at 10 an epoch has just ended
        seed_everything(0, verbose=False)
        with nullcontext() if dies_at < 0 else pytest.raises(Killed):
            train(tmp_path / "killed", Shuffled(dies_at), **settings)
    assert last(tmp_path / "whole") == last(tmp_path / "killed")
    assert records(tmp_path / "whole/0") == records(tmp_path / "killed/0")


@pytest.mark.slow
@pytest.mark.parametrize("name", norms.layers())
def test_every_norm_is_resumed_exactly_within_an_epoch(name: str, tmp_path: Path) -> None:
    """Two layers of it: all that a norm keeps between steps is in the checkpoint."""

    def task() -> Classifier:
        seed_everything(0, verbose=False)
        net = ConvNet((1, 8, 8), 10, widths=(4, 6), norm=getattr(norms, name))
        return Classifier(net, optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9))

    settings = {"max_steps": 7, "every_steps": 2, "limit_val_batches": 1, "num_sanity_val_steps": 0}
    train(tmp_path / "whole", task(), Digits(), **settings)
    killed = task()
    killed.training_step = dies(killed.training_step, 5)
    with pytest.raises(Killed):
        train(tmp_path / "killed", killed, Digits(), **settings)
    train(tmp_path / "killed", task(), Digits(), **settings)
    assert last(tmp_path / "whole") == last(tmp_path / "killed")


def dies_in_class(method: Callable[..., Any], number: int) -> Callable[..., Any]:
    """A method of a class, whose n-th call is interrupted."""
    calls = iter(range(1, 1000))

    def called(self: Any, batch: Any, batch_idx: int) -> Any:
        if next(calls) == number:
            raise Killed
        return method(self, batch, batch_idx)

    return called


def dies(method: Callable[..., Any], number: int) -> Callable[..., Any]:
    """The method, which is interrupted at its n-th call."""
    calls = iter(range(1, 100))

    def called(batch: Any, batch_idx: int) -> Any:
        if next(calls) == number:
            raise Killed
        return method(batch, batch_idx)

    return called


class Mine(TorchCheckpointIO):
    pass


def test_a_plugin_of_the_users_stays_and_one_that_only_decides_when_writes_whole_files() -> None:
    for given, written_by in ((None, SafeCheckpointIO), (Mine(), Mine), (AsyncCheckpointIO(Mine()), Mine),
                              (AsyncCheckpointIO(), SafeCheckpointIO)):  # fmt: skip
        trainer = Trainer(accelerator="cpu", logger=False, plugins=[] if given is None else [given])
        write_safely(trainer)
        chosen = trainer.strategy.checkpoint_io
        assert type(getattr(chosen, "checkpoint_io", chosen)) is written_by
        assert isinstance(chosen, AsyncCheckpointIO) is isinstance(given, AsyncCheckpointIO)


def write_half(file: IO[bytes]) -> None:
    file.write(b"sec")
    file.flush()
    raise Killed


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    file = tmp_path / "new/file"
    with written_whole(file) as opened:
        opened.write(b"first")
        assert not file.exists()
    with pytest.raises(Killed), written_whole(file) as opened:
        write_half(opened)
    assert content(tmp_path) == {"new/file": b"first"}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_run_that_receives_a_signal_says_how_to_resume(
    number: signal.Signals, trials: Trials, tmp_path: Path
) -> None:
    """And its status is that of the signal, not of a run that has ended well."""
    once = f"import kills; kills.watch('step', lambda times, over: times == 7 and not over and kills.send({number}))"
    run = trials.forks.run("fit", *COMMON, cwd=tmp_path, before=once)
    assert run.poll() == 128 + number
    assert (
        f"normzoo: ended by {number.name}; to resume, run: normzoo resume lightning_logs/default/000-BatchNorm-0"
        in run.err
    )
    assert "Traceback" not in run.err
    assert not (tmp_path / "lightning_logs/default/000-BatchNorm-0/finished").exists()
    assert trials.forks.run("resume", "lightning_logs/default", cwd=tmp_path).poll() == 0


SIGNALLED = (
    *COMMON, HIDDEN, "--checkpoint_steps=null", "--trainer.max_epochs=2", "--trainer.limit_val_batches=3",
    "--data.eval_batch_size=32", "--trainer.accumulate_grad_batches=3", "--trainer.val_check_interval=6",
    "--model.net.activation=Dropout", "--model.lr_scheduler=WarmupCosine", "--model.optimizer=SGD",
    "--model.optimizer.lr=0.1", "--model.optimizer.momentum=0.9",
)  # fmt: skip


@pytest.mark.slow
def test_sigterm_leaves_what_can_be_resumed(trials: Trials, tmp_path: Path) -> None:
    """It writes a checkpoint within the epoch; but none amid a validation, whose end a resumed run would not repeat."""
    for name in ("whole", "step", "validation"):
        cwd = tmp_path / name
        cwd.mkdir()
        point, number = ("step", 9) if name == "step" else ("validation", 4)
        once = f"import kills; kills.watch({point!r}, lambda n, over: n == {number} and not over and kills.send(15))"
        fork = trials.forks.run("fit", *SIGNALLED, cwd=cwd, before=FEW_POINTS + ("" if name == "whole" else once))
        assert fork.poll() == (0 if name == "whole" else 128 + signal.SIGTERM), fork.err
        assert (cwd / "lightning_logs/default/000-BatchNorm-0/checkpoints/last.ckpt").is_file() is (
            name != "validation"
        )
        if name != "whole":
            resumed = trials.forks.run("resume", "lightning_logs/default", cwd=cwd, before=FEW_POINTS)
            assert resumed.poll() == 0, resumed.err
    whole, *others = (
        left(tmp_path / name / "lightning_logs/default/000-BatchNorm-0") for name in ("whole", "step", "validation")
    )
    assert [differences(whole, other) for other in others] == [[], []]
