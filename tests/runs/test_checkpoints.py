"""Checkpoints: which one is meant, what it records, and which settings a resumed run may change."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import QUIET, fit, normzoo, scalars

from normzoo.errors import InputError
from normzoo.runs import load_task
from normzoo.runs.checkpoints import find_checkpoint
from normzoo.tasks.classifier import Classifier

SMALL = (
    "--model.net.hidden=[20]",
    "--trainer.max_epochs=2",
    "--trainer.limit_train_batches=4",
    "--trainer.limit_val_batches=1",
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs every test in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs with momentum; read only."""
    runs = tmp_path_factory.mktemp("trained")
    optimizer = ("--model.optimizer=SGD", "--model.optimizer.lr=0.1", "--model.optimizer.momentum=0.9")
    return fit(*SMALL, *optimizer, f"--runs={runs}", "--experiment=mlp", "--test_after_fit=false")


def last(run: Path) -> Path:
    return run / "checkpoints" / "last.ckpt"


def equal(first: Any, second: Any) -> bool:
    """Whether two structures are equal to the bit."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return bool(first == second)


def one_line(message: str) -> str:
    """A message in one line."""
    return " ".join(message.split())


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def edited(run: Path, edit: Callable[[dict[str, Any]], Any], to: Path) -> Path:
    """Saves a copy of the last checkpoint of a run, edited."""
    checkpoint = torch.load(last(run), weights_only=True)
    edit(checkpoint)
    torch.save(checkpoint, to)
    return to


def resume(run: Path, *flags: str, file: Path | None = None) -> Any:
    """Continues a run for one more epoch, from its last checkpoint or from another file."""
    return normzoo(
        *("fit", *QUIET, "-c", str(run / "config.yaml"), f"--ckpt_path={file or last(run)}", "--trainer.max_epochs=3"),
        *("--runs=resumed", "--test_after_fit=false", *flags),
    )


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(last(run), weights_only=True)["state_dict"]  # type: ignore[no-any-return]


# Settings that differ from a checkpoint's

# Flags of one command -> the differences that are listed: key, value in the checkpoint, value asked for.
DIFFERENCES: dict[str, dict[str, tuple[str, str, str]]] = {
    "values": {
        "--data.batch_size=32": ("data.batch_size", "64", "32"),
        "--data.val_size=99": ("data.val_size", "None", "99"),
        "--model.label_smoothing=0.1": ("model.label_smoothing", "0.0", "0.1"),
        "--model.net.activation=Tanh": ("model.net.activation", "torch.nn.ReLU", "torch.nn.Tanh"),
        "--model.net.hidden=[30]": ("model.net.hidden", "[20]", "[30]"),
        "--model.net.norm.eps=0.5": ("model.net.norm.eps", "1e-05", "0.5"),
        "--model.net.norm.momentum=0.5": ("model.net.norm.momentum", "0.1", "0.5"),
        "--model.optimizer.lr=0.01": ("model.optimizer.lr", "0.1", "0.01"),
        "--seed_everything=3": ("seed_everything", "0", "3"),
    },
    "classes": {
        "--model.lr_scheduler=WarmupCosine": ("model.lr_scheduler", "None", "normzoo.tasks.WarmupCosine"),
        "--model.net.norm=L1BatchNorm": ("model.net.norm", "normzoo.norms.BatchNorm", "normzoo.norms.L1BatchNorm"),
        "--model.optimizer=AdamW": ("model.optimizer", "torch.optim.SGD", "torch.optim.AdamW"),
    },
    "a network": {"--model.net=ConvNet": ("model.net", "normzoo.models.MLP", "normzoo.models.ConvNet")},
}


@pytest.mark.parametrize("group", DIFFERENCES)
def test_each_setting_that_differs_is_listed_with_a_remedy(group: str, run: Path, folder: Path) -> None:
    """All at once, and nothing else: below a class that differs no argument is listed."""
    result = resume(run, *DIFFERENCES[group])
    assert result.status == 1
    listed = re.findall(r"^  (\S+): checkpoint has (.*), asked for (.*)$", result.err, re.MULTILINE)
    assert listed == list(DIFFERENCES[group].values())
    [change] = re.findall(r"--change=(\S+)", result.err) or [""]
    for key, _, _ in listed:
        assert key in change.split(",") or f"{key} cannot change within a run" in result.err
    assert not files(folder)


def test_groupnorm_for_layernorm_is_noticed_though_the_weights_fit(folder: Path) -> None:
    run = fit(*SMALL, "--model.net.norm=LayerNorm", "--runs=runs", "--trainer.limit_train_batches=2")
    result = resume(run, "--model.net.norm=GroupNorm")
    assert result.status == 1
    assert "model.net.norm: checkpoint has normzoo.norms.LayerNorm, asked for normzoo.norms.GroupNorm" in result.err
    tested = normzoo("test", *QUIET, f"--ckpt_path={run}", "--model.net.norm=GroupNorm")
    assert tested.status == 0
    assert "model.net.norm: checkpoint has normzoo.norms.LayerNorm, asked for normzoo.norms.GroupNorm" in tested.err


def test_settings_that_do_not_affect_training_change_freely(run: Path) -> None:
    whole = resume(run)
    free = resume(run, "--data.eval_batch_size=7", "--data.download=false")
    assert (whole.status, free.status) == (0, 0), free.err
    first, second = (weights(Path(f"resumed/mlp/00{n}-BatchNorm-0")) for n in (0, 1))
    assert equal(first, second)


@pytest.mark.parametrize(
    "change,words",
    [
        ("model.optimizer.rate", "change='model.optimizer.rate'.*no setting.*model.optimizer.lr"),
        ("seed_everything", "seed_everything cannot change"),
        ("model.optimizer.lr", "seed_everything cannot change"),
    ],
)
def test_what_cannot_change(change: str, words: str, run: Path) -> None:
    result = resume(run, "--seed_everything=3", f"--change={change}")
    assert result.status == 1
    assert re.search(words, one_line(result.err))


def test_another_architecture_is_refused_by_its_weights_though_a_change_was_announced(run: Path, folder: Path) -> None:
    result = resume(run, "--model.net.norm=LayerNorm", "--change=model.net.norm")
    assert result.status == 1
    assert re.search("another architecture.*norms.BatchNorm, asked for.*LayerNorm.*running_mean", one_line(result.err))
    assert not files(folder)


def test_other_images_within_an_epoch_are_refused(run: Path, folder: Path) -> None:
    def within(checkpoint: dict[str, Any]) -> None:
        checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False

    result = resume(run, "--data.batch_size=32", "--change=data", file=edited(run, within, folder / "it.ckpt"))
    assert result.status == 1
    assert "data.batch_size cannot change within a run: the checkpoint is from the middle of an epoch" in result.err
    assert resume(run, "--data.batch_size=32", "--change=data").status == 0


# Settings that change on purpose

# Schedule -> the flags of a run with it.
SGD = ("--model.optimizer=SGD", "--model.optimizer.lr=0.1", "--model.optimizer.momentum=0.9")
SCHEDULES: dict[str, tuple[str, ...]] = {
    "none": (),
    "StepLR": ("--model.lr_scheduler=StepLR", "--model.lr_scheduler.step_size=1", "--model.lr_scheduler.gamma=0.5"),
    "WarmupCosine": ("--model.lr_scheduler=WarmupCosine", "--model.lr_scheduler.total_steps=90"),
    "CosineAnnealingLR": ("--model.lr_scheduler=CosineAnnealingLR", "--model.lr_scheduler.T_max=4"),
    "ReduceLROnPlateau": (
        "--model.lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau",
        "--model.lr_scheduler.patience=0",
    ),
}


def slower(checkpoint: dict[str, Any]) -> None:
    """Replaces the rate 0.1 by 0.01 everywhere in a checkpoint, its schedule included."""
    for group in checkpoint["optimizer_states"][0]["param_groups"]:
        group["lr"] *= 0.01 / 0.1
        if "initial_lr" in group:
            group["initial_lr"] = 0.01
    for state in checkpoint["lr_schedulers"]:
        if "base_lrs" in state:
            state["base_lrs"] = [0.01] * len(state["base_lrs"])
        state["_last_lr"] = [group["lr"] for group in checkpoint["optimizer_states"][0]["param_groups"]]
    checkpoint["hyper_parameters"]["optimizer"]["init_args"]["lr"] = 0.01


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_new_learning_rate_takes_effect(schedule: str, folder: Path) -> None:
    """The curve, the schedule and the weights equal those of a checkpoint that always had the new rate."""
    run = fit(*SMALL, *SGD, *SCHEDULES[schedule], "--runs=runs", "--test_after_fit=false")
    asked = "--model.optimizer.lr=0.01"
    done = [resume(run), resume(run, asked, "--change=model.optimizer.lr")]
    done.append(resume(run, asked, file=edited(run, slower, folder / "slower.ckpt")))
    assert [result.status for result in done] == [0, 0, 0], done[-1].err
    old, new, expected = (Path(f"resumed/default/00{n}-BatchNorm-0") for n in range(3))
    rates = {name: list(scalars(path)["lr"].values()) for name, path in (("old", old), ("new", new))}
    assert rates["new"] == pytest.approx([rate / 10 for rate in rates["old"]])
    assert equal(weights(new), weights(expected))
    assert not equal(weights(new), weights(old))
    saved = torch.load(last(new), weights_only=True)
    assert all(group["lr"] == pytest.approx(rates["new"][-1], rel=0.6) for group in groups(saved))
    for state in saved["lr_schedulers"]:
        assert all(base == 0.01 for base in state.get("base_lrs", ()))


def groups(checkpoint: dict[str, Any]) -> list[dict[str, Any]]:
    return checkpoint["optimizer_states"][0]["param_groups"]  # type: ignore[no-any-return]


SLOW = pytest.mark.slow
# Change -> flags, and the expected settings of both groups of parameters.
CHANGES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "model.optimizer.momentum": (("--model.optimizer.momentum=0.5",), {"momentum": [0.5, 0.5], "lr": [0.1, 0.1]}),
    "model.optimizer.weight_decay": (("--model.optimizer.weight_decay=0.25",), {"weight_decay": [0.25, 0.0]}),
    "model.optimizer": (
        ("--model.optimizer.lr=0.2", "--model.optimizer.nesterov=true"),
        {"nesterov": [True, True], "lr": [0.2, 0.2], "momentum": [0.9, 0.9]},
    ),
}


@pytest.mark.parametrize("change", ["model.optimizer", *(pytest.param(c, marks=SLOW) for c in list(CHANGES)[:2])])
def test_any_argument_of_the_optimizer_can_change(change: str, run: Path) -> None:
    flags, expected = CHANGES[change]
    result = resume(run, *flags, f"--change={change}")
    assert result.status == 0, result.err
    assert resume(run).status == 0
    changed, unchanged = (Path(f"resumed/mlp/00{n}-BatchNorm-0") for n in (0, 1))
    saved = torch.load(last(changed), weights_only=True)
    assert {name: [group[name] for group in groups(saved)] for name in expected} == expected
    assert not equal(weights(changed), weights(unchanged))


def test_the_schedule_can_change_its_shape(folder: Path) -> None:
    run = fit(*SMALL, *SGD, *SCHEDULES["StepLR"], "--runs=runs", "--test_after_fit=false")
    result = resume(run, "--model.lr_scheduler.gamma=0.1", "--change=model.lr_scheduler.gamma")
    assert result.status == 0, result.err
    [state] = torch.load(last(Path("resumed/default/000-BatchNorm-0")), weights_only=True)["lr_schedulers"]
    assert state["gamma"] == 0.1
    assert state["_last_lr"] == pytest.approx([0.1 * 0.5 * 0.5 * 0.1] * 2)


def test_a_change_of_the_network_reaches_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(Classifier, "on_train_epoch_start", lambda self: seen.append(self))
    flags = ("--model.net.norm.momentum=0.5", "--model.label_smoothing=0.25")
    result = resume(run, *flags, "--change=model.net,model.label_smoothing")
    assert result.status == 0, result.err
    [norm] = [module for module in seen[0].net.modules() if hasattr(module, "running_mean")]
    assert (norm.momentum, seen[0].label_smoothing) == (0.5, 0.25)


def test_a_change_that_the_state_lacks_something_for_is_refused(folder: Path) -> None:
    run = fit(*SMALL, "--model.optimizer=AdamW", "--runs=runs", "--test_after_fit=false")
    result = resume(run, "--model.optimizer.amsgrad=true", "--change=model.optimizer.amsgrad")
    assert result.status == 1
    assert re.search("change=amsgrad: AdamW cannot continue from this checkpoint.*max_exp_avg_sq", one_line(result.err))
    assert not (folder / "resumed" / "default" / "000-BatchNorm-0").exists()


TASK = """
import torch
from lightning.pytorch import LightningModule
from torch import nn


class Own(LightningModule):
    def __init__(self, speed: float = 0.1):
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.speed = speed
        self.net = nn.Linear(64, 10)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0].flatten(1)), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.speed)
"""


TEST_STEP = """
    def test_step(self, batch, batch_idx):
        self.log("speed", self.speed)
"""


@pytest.mark.filterwarnings("ignore:.*validation_step", "ignore:.*val_dataloader")
def test_the_rate_of_a_task_of_ones_own_changes_whatever_it_calls_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "speedy.py").write_text(TASK)
    monkeypatch.syspath_prepend(str(folder))
    run = fit("--model=speedy.Own", "--model.speed=0.1", "--trainer.max_epochs=2", "--runs=runs")
    refused = resume(run, "--model.speed=0.01", "--allow=speedy")
    assert "model.speed: checkpoint has 0.1, asked for 0.01" in refused.err
    result = resume(run, "--model.speed=0.01", "--change=model.speed", "--allow=speedy")
    assert result.status == 0, result.err
    [resumed] = Path("resumed/default").iterdir()
    assert [group["lr"] for group in groups(torch.load(last(resumed), weights_only=True))] == [0.01]


@pytest.mark.filterwarnings("ignore:.*validation_step", "ignore:.*val_dataloader")
def test_a_task_that_does_not_save_its_arguments_is_built_as_its_run_was_configured(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint records the configuration, and every command finds the task there."""
    source = TASK.replace("        self.save_hyperparameters(logger=False)\n", "").replace("Own", "Bare") + TEST_STEP
    (folder / "bare.py").write_text(source)
    monkeypatch.syspath_prepend(str(folder))
    run = fit("--model=bare.Bare", "--model.speed=0.125", "--trainer.max_epochs=1", "--runs=runs")
    result = normzoo("test", *QUIET, f"--ckpt_path={run}", "--allow=bare")
    assert result.status == 0, result.err
    assert "0.125" in result.out
    assert load_task(last(run)).speed == 0.125


# Evaluation with other settings


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_evaluation_with_other_settings_prints_a_note(command: str, run: Path, folder: Path) -> None:
    output = [f"--output={folder / 'it.csv'}"] if command == "predict" else []
    as_trained = normzoo(command, *QUIET, f"--ckpt_path={run}", *output)
    otherwise = normzoo(command, *QUIET, f"--ckpt_path={run}", "--model.net.norm.eps=30", *output)
    assert (as_trained.status, otherwise.status) == (0, 0)
    assert "note" not in as_trained.err
    assert "model.net.norm.eps: checkpoint has 1e-05, asked for 30.0" in otherwise.err
    if command != "predict":
        assert as_trained.out != otherwise.out


def test_weights_only_cannot_be_switched_off(run: Path) -> None:
    result = normzoo("test", *QUIET, f"--ckpt_path={run}", "--weights_only=false")
    assert result.status == 1
    assert "weights_only=False" in result.err


# Words for a checkpoint

# Existing files, word, experiment, and the file that is found, or a part of the message.
WORDS: list[tuple[list[str], str, str, str]] = [
    (["e/000/checkpoints/last.ckpt", "e/001/checkpoints/last.ckpt"], "last", "e", "e/001/checkpoints/last.ckpt"),
    (["e/009/checkpoints/last.ckpt", "e/010/checkpoints/last.ckpt"], "last", "e", "e/010/checkpoints/last.ckpt"),
    (["e/000/checkpoints/last.ckpt", "e/001/checkpoints/best.ckpt"], "last", "e", "e/000/checkpoints/last.ckpt"),
    (["e/000/checkpoints/best.ckpt", "e/001/checkpoints/last.ckpt"], "best", "e", "e/000/checkpoints/best.ckpt"),
    (["e/000/hpc_ckpt_9.ckpt", "e/000/hpc_ckpt_10.ckpt"], "hpc", "e", "e/000/hpc_ckpt_10.ckpt"),
    (["default/000/checkpoints/last.ckpt"], "last", "default", "default/000/checkpoints/last.ckpt"),
    (
        ["f/000/checkpoints/last.ckpt"],
        "last",
        "e",
        "'last': there is no checkpoint runs/e/.*last.ckpt.*--experiment.*f/000",
    ),
    ([], "last", "e", "'last': there is no checkpoint runs/e/.*last.ckpt.*No run under runs.*normzoo fit"),
    (["e/000/checkpoints/last.ckpt"], "best", "e", "'best': there is no checkpoint runs/e/.*best.ckpt"),
    (["e/000/checkpoints/last.ckpt"], "hpc", "e", "'hpc': there is no checkpoint runs/e/.*hpc_ckpt_"),
    (["e/000/checkpoints/last.ckpt"], "registry:mine", "e", "'registry:mine': .*not from a registry"),
]


@pytest.mark.parametrize("there,word,experiment,meant", WORDS)
def test_a_word_means_the_newest_run_of_the_experiment(
    there: list[str], word: str, experiment: str, meant: str, folder: Path
) -> None:
    for name in there:
        (folder / "runs" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "runs" / name).touch()
    if meant.startswith("'"):
        with pytest.raises(InputError, match=f"(?s)ckpt_path={meant}"):
            find_checkpoint(word, Path("runs"), experiment)
    else:
        assert find_checkpoint(word, Path("runs"), experiment) == Path("runs") / meant


@pytest.mark.parametrize("command", ["fit", "test", "validate", "predict"])
def test_a_word_that_finds_nothing_is_an_error(command: str, folder: Path) -> None:
    """Lightning would train from scratch, and warn."""
    result = normzoo(command, *QUIET, "--ckpt_path=last", "--experiment=mine")
    assert result.status == 1
    assert "ckpt_path='last': there is no checkpoint lightning_logs/mine/*/checkpoints/last.ckpt" in result.err
    assert not files(folder)


def test_a_word_is_about_the_experiment_of_flags_and_configs_and_says_its_file(run: Path, folder: Path) -> None:
    (folder / "mine.yaml").write_text("experiment: mlp\n")
    where = f"--runs={run.parents[1]}"
    for flags in ((where, "--experiment=mlp"), ("-c", "mine.yaml", where), ("--config=mine.yaml", where)):
        result = normzoo("test", *QUIET, "--ckpt_path=last", *flags)
        assert result.status == 0, result.err
        assert f"checkpoint   {last(run)}\n" in result.out
    result = normzoo("test", *QUIET, "--ckpt_path=last", "-c", "mine.yaml", "--experiment=other", where)
    assert result.status == 1
    named = normzoo("test", *QUIET, f"--ckpt_path={last(run)}")
    assert "checkpoint   " not in named.out


# What a checkpoint records


def test_a_checkpoint_says_what_it_holds(run: Path) -> None:
    holds = json.loads(normzoo("checkpoint", str(last(run)), "--json").out)
    task = load_task(last(run))
    assert holds["network"]["class_path"] == "normzoo.models.MLP"
    assert holds["network"]["init_args"]["hidden"] == [20]
    assert holds["norm"]["class_path"] == "normzoo.norms.BatchNorm"
    assert holds["parameters"] == sum(parameter.numel() for parameter in task.parameters())
    assert holds["tensors"] == {name: [*value.shape] for name, value in task.state_dict().items()}
    assert (holds["epoch"], holds["step"], holds["seed"]) == (2, max(scalars(run)["train/loss"]), 0)  # of two, all done
    assert holds["data"]["class_path"] == "normzoo.data.Digits"
    assert holds["data"]["init_args"]["batch_size"] == 64
    accuracy = list(scalars(run)["val/accuracy"].values())
    assert holds["metrics"]["val/accuracy"] == pytest.approx(accuracy[-1])
    assert holds["best"] == {"val/accuracy": pytest.approx(max(accuracy))}
    assert holds["optimizer"]["class_path"] == "torch.optim.SGD"
    assert holds["lr"] == [0.1, 0.1]
    assert holds["versions"]["torch"] == torch.__version__
    assert holds["resumable"]
    assert holds["bytes"] == last(run).stat().st_size


@pytest.mark.parametrize("place", [".", "..", "checkpoints/best.ckpt"])
def test_a_checkpoint_is_shown_of_a_file_or_a_run_or_an_experiment(place: str, run: Path) -> None:
    result = normzoo("checkpoint", str(run / place))
    assert result.status == 0
    for line in (
        "checkpoint .*best.ckpt",
        "network .*MLP.hidden=.20.",
        "norm .*BatchNorm",
        "rate +0.1",
        "safe +yes",
    ):
        assert re.search(f"^{line}", result.out, re.MULTILINE), line
    assert all(len(line.split(maxsplit=1)) == 2 for line in result.out.splitlines())


def test_a_checkpoint_made_in_python_says_what_it_can(folder: Path) -> None:
    bare = {"state_dict": {"w": torch.ones(2, 3)}, "pytorch-lightning_version": "2.6.6"}
    torch.save(bare, "bare.ckpt")
    result = normzoo("checkpoint", "bare.ckpt")
    assert result.status == 0
    assert re.search(r"parameters +6 numbers", result.out)
    assert "weights only" in result.out
    refused = normzoo("fit", *QUIET, "--ckpt_path=bare.ckpt")
    assert re.search("bare.ckpt.*lacks epoch, global_step, loops.*can be tested", refused.err)


@pytest.mark.parametrize(
    "arguments,words",
    [
        ([], "path.*Usage"),
        (["nowhere"], "'nowhere'.*no checkpoint"),
        (["--jsn", "x"], "--jsn.*Usage"),
        (["last"], "there is no checkpoint lightning_logs/default"),
    ],
)
def test_the_command_checkpoint_refuses_in_one_message(arguments: list[str], words: str) -> None:
    result = normzoo("checkpoint", *arguments)
    assert result.status == 1
    assert re.search(words, one_line(result.err))
    assert result.err.count("error:") == 1


def test_a_checkpoint_knows_its_data_away_from_its_run(run: Path, folder: Path) -> None:
    (folder / "alone.ckpt").write_bytes(last(run).read_bytes())
    result = normzoo("test", *QUIET, "--ckpt_path=alone.ckpt", "--data.batch_size=32")
    assert result.status == 0, result.err
