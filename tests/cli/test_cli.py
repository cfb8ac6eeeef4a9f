"""The command line, from flags to files: what each command does, what a run leaves behind, what is refused and how."""

import errno
import inspect
import io
import json
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import BRIEF, QUIET, SHORT, fit, normzoo, process, scalars
from lightning.pytorch import Trainer

from normzoo import norms
from normzoo.cli.norms import WORDS, shape
from normzoo.errors import InputError
from normzoo.models import MLP
from normzoo.norms._arguments import keyword_defaults
from normzoo.runs.checkpoints import find_checkpoint
from normzoo.runs.folders import existing, new_run, shared_run
from normzoo.tasks.classifier import Classifier

LAYERS = norms.layers()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test stands in a folder of its own, where its runs land."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run whose last epoch is not its best, since the rate jumps, and what it said; read only."""
    runs = tmp_path_factory.mktemp("trained")
    network = ("--model.net.hidden=[20]", "--model.optimizer.lr=0.01")
    jump = ("--model.lr_scheduler=StepLR", "--model.lr_scheduler.step_size=2", "--model.lr_scheduler.gamma=300")
    result = normzoo("fit", *QUIET, f"--runs={runs}", "--trainer.max_epochs=3", *network, *jump)
    assert result.status == 0, result.err
    conv = normzoo("fit", *QUIET, *SHORT, f"--runs={runs}", "--experiment=conv", "--model.net=ConvNet")
    assert conv.status == 0, conv.err
    accuracy = list(scalars(runs / "default" / "000-BatchNorm-0")["val/accuracy"].values())
    assert accuracy[-1] < max(accuracy)
    return {"runs": runs, "run": runs / "default" / "000-BatchNorm-0", "result": result}


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def table(out: str) -> dict[str, float]:
    """The metrics in a table that Lightning printed."""
    return {name: float(value) for name, value in re.findall(r"│\s*(\S+/\S+)\s*│\s*(\S+)\s*│", out)}


def config_of(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "config.yaml").read_text())  # type: ignore[no-any-return]


def weights(run: Path, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / name, weights_only=True)["state_dict"]  # type: ignore[no-any-return]


# The zoo


def test_norms_lists_every_layer_on_a_line() -> None:
    result = normzoo("norms")
    assert result.status == 0
    first = [line.split()[0] for line in result.out.splitlines() if line.strip()]
    assert [name for name in first if name in LAYERS] == list(LAYERS)
    assert max(map(len, result.out.splitlines())) <= 80, "a terminal of 80 columns"
    assert len(result.out.splitlines()) < 2 * len(LAYERS)


def test_norms_as_json_is_the_facts() -> None:
    rows = json.loads(normzoo("norms", "--json").out)
    assert [row["name"] for row in rows] == list(LAYERS)
    for row in rows:
        layer = LAYERS[row["name"]]
        facts = layer.facts
        assert row["paper"] == (str(facts.paper) if facts.paper else None)
        for fact in {fact.name for fact in fields(facts)} - {"paper"}:
            value = getattr(facts, fact)
            assert row[fact] == (list(value) if isinstance(value, tuple) else value)
        assert row["arguments"] == {name: repr(value) for name, value in keyword_defaults(layer).items()}
        example = layer(4)
        assert row["parameters"].keys() == dict(example.named_parameters()).keys()
        assert row["state"].keys() == dict(example.named_buffers()).keys()
    [one] = json.loads(normzoo("norms", "GroupNorm", "--json").out)
    assert one in rows


@pytest.mark.parametrize("name", LAYERS)
def test_a_card_holds_what_its_layer_is(name: str) -> None:
    result = normzoo("norms", name)
    facts = LAYERS[name].facts
    assert result.status == 0
    assert facts.formula in result.out
    assert f"family       {facts.family}" in result.out
    assert re.search(rf"works in an MLP, on \(N, C\) +{'yes' if facts.dense else 'no'}\b", result.out)
    assert all(argument in result.out for argument in keyword_defaults(LAYERS[name]))
    if facts.paper and facts.paper.arxiv:
        assert facts.paper.arxiv in result.out


def test_every_yes_or_no_has_words() -> None:
    assert set(WORDS) == {fact.name for fact in fields(norms.Facts) if fact.type in (bool, bool | None)}


@pytest.mark.parametrize(
    "first,second,groups,expected",
    [
        ((64,), (192,), (None, None), "(C,)"),
        ((2, 64), (2, 192), (None, None), "(2, C)"),
        ((32, 128), (96, 384), (None, None), "(C/2, 2C)"),
        ((96, 4), (288, 4), (None, None), "(3C/2, 4)"),
        ((64**2,), (192**2,), (None, None), "(C^2,)"),
        ((16, 4, 4), (32, 6, 6), (16, 32), "(G, C/G, C/G)"),
        ((7, 64), (11, 192), (16, 32), "(7 at C=64, C)"),
        ((), (), (None, None), "()"),
    ],
)
def test_shapes_in_letters(
    first: tuple[int, ...], second: tuple[int, ...], groups: tuple[Any, ...], expected: str
) -> None:
    assert shape(first, second, groups) == expected


def test_two_cards_at_once() -> None:
    out = normzoo("norms", "GroupNorm", "LayerNorm").out
    assert out.index("GroupNorm(num_features") < out.index("LayerNorm(num_features")


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)], ids=str)
def test_help_is_printed(arguments: tuple[str, ...]) -> None:
    result = normzoo(*arguments)
    assert result.status == 0
    assert all(command in result.out for command in ("fit", "validate", "test", "predict", "norms"))


def test_version() -> None:
    from normzoo import __version__

    assert normzoo("--version").out == f"normzoo {__version__}\n"


@pytest.mark.parametrize(
    "arguments,words",
    [
        (("fit", "--help"), ["--experiment", "--model", "--data", "--trainer.max_epochs", "--test_after_fit"]),
        (("test", "--help"), ["--ckpt_path", "--runs"]),
        (("fit", "--model.net.help=ResNet"), ["--net.depth", "6n + 2"]),
        (("fit", "--model.net.norm.help=GroupNorm"), ["num_groups"]),
        (("norms", "--help"), ["--json"]),
        (("completion", "--help"), ["zsh"]),
    ],
    ids=str,
)
def test_help_of_a_command_and_of_a_class(arguments: tuple[str, ...], words: list[str]) -> None:
    result = normzoo(*arguments)
    assert result.status == 0, result.err
    for word in words:
        assert word in result.out


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_help_fits_on_a_few_screens(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All options are there, in lines of 80 columns, without the long lists of classes."""
    monkeypatch.setenv("COLUMNS", "80")
    lines = normzoo(command, "--help").out.splitlines()
    assert len(lines) < 170
    assert all(len(line) <= 80 or line.startswith("options of Lightning") for line in lines)
    for name in inspect.signature(Trainer).parameters:
        assert sum(f"--trainer.{name}" in line.split() for line in lines) == 1, name


# Runs


def test_a_run_leaves_a_numbered_folder_and_never_touches_another(folder: Path) -> None:
    first = fit(*SHORT, "--experiment=a/b")
    assert first == folder / "lightning_logs" / "a" / "b" / "000-BatchNorm-0"
    before = {name: (first / name).read_bytes() for name in files(first)}
    assert {"config.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt"} <= before.keys()
    assert any("events" in name for name in before)
    second = fit(*SHORT, "--experiment=a/b")
    assert second.name == "001-BatchNorm-0"
    (second.parent / "007").mkdir()
    (second.parent / "notes").mkdir()
    assert fit(*SHORT, "--experiment=a/b").name == "008-BatchNorm-0"
    assert {name: (first / name).read_bytes() for name in files(first)} == before
    assert {path.name for path in folder.iterdir()} == {"lightning_logs"}


def test_runs_elsewhere(tmp_path: Path) -> None:
    run = fit(*SHORT, f"--runs={tmp_path}/elsewhere", "--experiment=mine")
    assert run == tmp_path / "elsewhere" / "mine" / "000-BatchNorm-0"
    assert not (tmp_path / "lightning_logs").exists()


@pytest.mark.parametrize("name", [lambda n: "", lambda n: f"Norm{n}-0"], ids=["no name", "names"])
def test_runs_that_start_together_get_folders_of_their_own(name: Callable[[int], str], tmp_path: Path) -> None:
    barrier = threading.Barrier(16)

    def start(n: int) -> Path:
        barrier.wait()
        return new_run(tmp_path / "runs", "together", name(n))

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(start, range(16)))
    assert sorted(run.name.partition("-")[0] for run in found) == [f"{n:03d}" for n in range(16)]
    assert sorted(run.name for run in (tmp_path / "runs" / "together").iterdir()) == sorted(run.name for run in found)


def test_the_number_of_a_run_is_enough(tmp_path: Path) -> None:
    for name in ("007-BatchNorm-0", "012-LayerNorm-3", "013"):
        (tmp_path / name).mkdir()
    assert existing(str(tmp_path / "7")).name == "007-BatchNorm-0"
    assert existing(str(tmp_path / "012")).name == "012-LayerNorm-3"
    assert existing(str(tmp_path / "013")).name == "013"
    assert existing(str(tmp_path / "14")).name == "14"


def test_a_number_that_another_process_takes_in_between_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = Path.mkdir

    def slow_mkdir(self: Path, *args: Any, **kwargs: Any) -> None:
        if self.name in ("000", "001"):
            mkdir(self)  # the other process is faster, twice
        mkdir(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", slow_mkdir)
    assert new_run(tmp_path, "race").name == "002"


@pytest.mark.slow
def test_processes_that_start_together_get_folders_of_their_own(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from normzoo.runs.folders import new_run; "
        "sys.stdin.read(); print(new_run(Path('runs'), 'x'))"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    said = [one.communicate("go", timeout=60)[0] for one in started]
    assert len(set(said)) == 4
    assert all(said)


def test_the_ranks_of_a_run_share_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NORMZOO_RUN", raising=False)
    run = shared_run(tmp_path, "ranks")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert shared_run(tmp_path, "ranks") == run
    monkeypatch.setenv("LOCAL_RANK", "0")  # the next run of the same process
    assert shared_run(tmp_path, "ranks") != run


def test_the_config_of_a_run_repeats_it_to_the_bit(trained: dict[str, Any]) -> None:
    again = fit("-c", str(trained["run"] / "config.yaml"), "--experiment=again", "--runs=runs")
    first, second = weights(trained["run"]), weights(again)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    ours, theirs = scalars(trained["run"]), scalars(again)
    assert ours == theirs
    other = fit("-c", str(again / "config.yaml"), "--seed_everything=1", "--experiment=other")
    assert not all(torch.equal(first[name], tensor) for name, tensor in weights(other).items())


def test_the_seed_decides_and_nothing_before_it() -> None:
    torch.manual_seed(123)
    first = weights(fit(*SHORT))
    torch.rand(7)
    second = weights(fit(*SHORT))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_config_and_flags_mix_and_the_later_wins(folder: Path) -> None:
    (folder / "mine.yaml").write_text(
        "experiment: mine\nmodel:\n  class_path: Classifier\n  init_args:\n    net:\n      class_path: MLP\n"
        "      init_args: {hidden: [8], norm: LayerNorm}\n"
    )
    run = fit("-c", "mine.yaml", *SHORT, "--model.net.norm=GroupNorm", "--model.net.norm.num_groups=2")
    assert run.parent.name == "mine"
    net = config_of(run)["model"]["init_args"]["net"]["init_args"]
    assert net["hidden"] == [8]
    assert net["norm"]["class_path"] == "normzoo.norms.GroupNorm"
    assert net["norm"]["init_args"]["num_groups"] == 2
    run = fit("--config=mine.yaml", *SHORT, "--model.net.hidden=[4,4]")
    assert config_of(run)["model"]["init_args"]["net"]["init_args"]["hidden"] == [4, 4]


FIRST = {layer.facts.family: name for name, layer in reversed(LAYERS.items())}.values()  # the first of each family
NAMES = [pytest.param(name, marks=() if name in FIRST else pytest.mark.slow) for name in LAYERS]


@pytest.mark.parametrize("name", NAMES)
def test_one_flag_changes_the_norm(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks: list[Classifier] = []
    monkeypatch.setattr(Classifier, "on_fit_start", lambda self: tasks.append(self))
    net = () if LAYERS[name].facts.dense else ("--model.net=ConvNet", "--model.net.widths=[8]")
    result = normzoo("fit", *BRIEF, *net, f"--model.net.norm={name}")
    assert result.status == 0, result.err
    [task] = tasks
    assert any(type(module) is LAYERS[name] for module in task.net.modules())


def first_norm(task: Any) -> norms.Norm:
    return task.net.hidden[0].norm  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "flags,check",
    [
        (
            ["--model.net.activation=Tanh", "--model.net.norm_position=after", "--model.net.norm.eps=0.5"],
            lambda task: (
                [type(task.net.hidden[0].activation), task.net.hidden[0].norm_first, first_norm(task).eps]
                == [torch.nn.Tanh, False, 0.5]
            ),
        ),
        (
            ["--model.net.norm=RMSNorm", "--model.net.norm.eps=0.5", "--model.optimizer=SGD", "--model.optimizer.lr=7"],
            lambda task: [first_norm(task).eps, task.optimizers().param_groups[0]["lr"]] == [0.5, 7],
        ),
        (
            ["--model.net.init=Normal", "--model.net.init.std=0"],
            lambda task: not task.net.head.weight.any(),
        ),
        (
            ["--model.net.norm=WeightStandardization", "--model.net.norm.then=RMSNorm", "--data.batch_size=7"],
            lambda task: [type(first_norm(task)), task.trainer.datamodule.batch_size] == [norms.RMSNorm, 7],
        ),
        (["--model.net.hidden=[]", "--model.net.activation=Sigmoid"], lambda task: len(task.net.hidden) == 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_flags_arrive(flags: list[str], check: Callable[[Any], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(Classifier, "on_fit_start", lambda self: seen.append(check(self)))
    result = normzoo("fit", *BRIEF, *flags)
    assert result.status == 0, result.err
    assert seen == [True]


def test_a_dry_run_writes_nothing(folder: Path) -> None:
    result = normzoo("fit", *BRIEF)
    assert result.status == 0
    assert not list(folder.iterdir())
    assert "tensorboard" not in result.out


def test_a_run_without_a_logger_can_be_repeated(folder: Path) -> None:
    for number in range(2):
        run = fit(*SHORT, "--trainer.logger=false")
        assert run.name == f"{number:03d}-BatchNorm-0"
        assert files(run) >= {"config.yaml", "checkpoints/best.ckpt"}
        assert not any("events" in name for name in files(run))
    assert {path.name for path in folder.iterdir()} == {"lightning_logs"}


def test_a_logger_of_another_kind() -> None:
    run = fit(*SHORT, "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=csv")
    assert (run / "checkpoints" / "best.ckpt").is_file()


def test_a_run_can_leave_out_the_test() -> None:
    result = normzoo("fit", *QUIET, *SHORT, "--test_after_fit=false")
    assert result.status == 0
    assert not table(result.out)
    assert not any(tag.startswith("test/") for tag in scalars(Path("lightning_logs/default/000-BatchNorm-0")))


def test_print_config_is_a_config(folder: Path) -> None:
    result = normzoo("fit", "--model.net.norm=GroupNorm", "--print_config")
    assert result.status == 0
    (folder / "printed.yaml").write_text(result.out)
    printed = yaml.safe_load(result.out)
    assert printed["model"]["init_args"]["net"]["init_args"]["norm"]["class_path"] == "normzoo.norms.GroupNorm"
    assert normzoo("fit", "-c", "printed.yaml", *BRIEF).status == 0
    short = yaml.safe_load(normzoo("fit", "--experiment=mine", "--print_config=skip_default").out)
    assert short["experiment"] == "mine"
    assert "trainer" not in short or "max_epochs" not in short["trainer"]


@pytest.mark.parametrize("flags,kept", [([], True), (["--keep_pages=false"], False)], ids=str)
def test_pages_are_kept_unless_told_otherwise(flags: list[str], kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []
    monkeypatch.setattr("normzoo.cli.command.keep_pages", lambda: calls.append(True))
    assert normzoo("fit", *BRIEF, *flags).status == 0
    assert bool(calls) == kept


def test_pages_can_be_kept_where_there_is_glibc() -> None:
    code = "from normzoo.cli.runtime import keep_pages; print(keep_pages())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    glibc = sys.platform.startswith("linux") and "CS_GNU_LIBC_VERSION" in os.confstr_names
    assert said == f"{glibc}\n"


# Checkpoints


@pytest.mark.parametrize("place", ["checkpoints/best.ckpt", ".", ".."])
def test_a_checkpoint_is_a_file_or_a_run_or_an_experiment(trained: dict[str, Any], place: str, folder: Path) -> None:
    """And its metrics are those that fit printed."""
    result = normzoo("test", *QUIET, f"--ckpt_path={trained['run'] / place}")
    assert result.status == 0, result.err
    printed = table(trained["result"].out)
    assert printed.keys() == {"test/accuracy", "test/loss", "test/calibration_error"}
    assert table(result.out) == printed
    assert not list(folder.iterdir()), "scoring leaves no files"


def test_the_last_checkpoint_is_of_the_last_epoch_and_the_best_of_the_best(trained: dict[str, Any]) -> None:
    logged = scalars(trained["run"])["val/accuracy"]
    for name, accuracy in (("best", max(logged.values())), ("last", list(logged.values())[-1])):
        file = trained["run"] / "checkpoints" / f"{name}.ckpt"
        result = normzoo("validate", *QUIET, f"--ckpt_path={file}")
        assert table(result.out)["val/accuracy"] == pytest.approx(accuracy)


# Files there are -> path given -> file that is meant.
PLACES: list[tuple[list[str], str, str | None]] = [
    (["x/000/checkpoints/best.ckpt", "x/000/checkpoints/last.ckpt"], "x", "x/000/checkpoints/best.ckpt"),
    (["x/000/checkpoints/last.ckpt"], "x", "x/000/checkpoints/last.ckpt"),
    (["x/000/checkpoints/best.ckpt", "x/001/config.yaml"], "x", "x/000/checkpoints/best.ckpt"),
    (["x/999/checkpoints/best.ckpt", "x/1000/checkpoints/last.ckpt"], "x", "x/1000/checkpoints/last.ckpt"),
    (["x/009/checkpoints/best.ckpt", "x/010/checkpoints/last.ckpt"], "x/009", "x/009/checkpoints/best.ckpt"),
    (
        ["x/000/checkpoints/best.ckpt", "x/000/checkpoints/last.ckpt"],
        "x/000/checkpoints",
        "x/000/checkpoints/best.ckpt",
    ),
    (["x/notes/checkpoints/best.ckpt"], "x", None),
    (["mine.pt"], "mine.pt", "mine.pt"),
    (["x/000/config.yaml"], "x/000", None),
    ([], "x", None),
]


@pytest.mark.parametrize("there,path,meant", PLACES)
def test_which_checkpoint_is_meant(there: list[str], path: str, meant: str | None, folder: Path) -> None:
    """Of a run the best, else the last; of an experiment the newest run that has one."""
    for name in there:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    if meant is None:
        with pytest.raises(InputError, match=f"{path}.*no checkpoint.*normzoo fit|{path}.*no checkpoint.*newest"):
            find_checkpoint(path, Path("x"))
    else:
        assert find_checkpoint(path, Path("x")) == Path(meant)


def test_predict_writes_a_row_per_image_beside_the_checkpoint(trained: dict[str, Any], folder: Path) -> None:
    for name in ("predictions.csv", "predictions-1.csv"):
        result = normzoo("predict", *QUIET, f"--ckpt_path={trained['run']}")
        assert result.status == 0, result.err
        file = trained["run"] / name
        assert str(file) in result.out
        rows = [line.split(",") for line in file.read_text().splitlines()]
        assert rows[0] == ["index", "predicted", "probability", "label"]
        right = sum(predicted == label for _, predicted, _, label in rows[1:]) / len(rows[1:])
        assert right == pytest.approx(table(trained["result"].out)["test/accuracy"])
    assert normzoo("predict", *QUIET, f"--ckpt_path={trained['run']}", "--output=mine.csv").status == 0
    assert files(folder) == {"mine.csv"}


@pytest.mark.filterwarnings("ignore:`ModelCheckpoint.monitor='val/accuracy'.` could not find the monitored key")
def test_the_last_checkpoint_counts_where_none_is_best() -> None:
    run = fit(*SHORT, "--data.val_size=0")
    assert files(run / "checkpoints") == {"last.ckpt"}
    assert normzoo("test", *QUIET, f"--ckpt_path={run}").status == 0


def test_a_checkpoint_knows_its_network_and_its_data(trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """And a flag still wins, where the weights allow."""
    seen: list[Any] = []
    monkeypatch.setattr(Classifier, "on_test_start", lambda self: seen.append(self))
    path = f"--ckpt_path={trained['runs'] / 'conv'}"
    assert normzoo("test", *QUIET, path, "--data.batch_size=9", "--model.channels_last=false").status == 0
    [task] = seen
    assert type(task.net).__name__ == "ConvNet"
    assert task.trainer.datamodule.batch_size == 9
    assert not task.channels_last


@pytest.mark.slow
def test_a_run_can_be_resumed(trained: dict[str, Any]) -> None:
    config = str(trained["run"] / "config.yaml")
    flags = ("-c", config, f"--ckpt_path={trained['run']}/checkpoints/last.ckpt", "--trainer.max_epochs=4")
    run = fit(*flags, "--runs=resumed")
    whole = fit("-c", config, "--trainer.max_epochs=4", "--runs=whole")
    first, second = weights(run), weights(whole)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert min(scalars(run)["train/loss"]) > max(scalars(trained["run"])["train/loss"])


# What is somebody else's

OWN = '''
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from normzoo.models import MLP, Network
from normzoo.norms import BatchNorm, Norm
from normzoo.tasks.classifier import Classifier


class MaxNorm(Norm):
    def __init__(self, num_features, *, power: float = 1.0):
        super().__init__(num_features)
        self.power = power

    def normalize(self, x):
        return x / (1e-5 + x.abs().amax(1, keepdim=True)) ** self.power


class Told(Network):
    """Takes what the data set says, and a norm."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, *, width: int = 4):
        super().__init__(input_shape, num_classes)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(input_shape[1] * input_shape[2], num_classes))

    def forward(self, x):
        return self.net(x)


class Heir(MLP):
    """Passes on by **kwargs."""

    def __init__(self, *args, extra: int = 1, **kwargs):
        super().__init__(*args, **kwargs)
        self.extra = extra


class Untold(nn.Module):
    """Knows by itself."""

    num_classes = 10

    def __init__(self, size: int = 64):
        super().__init__()
        self.linear = nn.Linear(size, 10)

    def forward(self, x):
        return self.linear(x.flatten(1))


class Bare(nn.Module):
    """Takes no arguments at all."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        return self.linear(x.flatten(1))


class Data(LightningDataModule):
    input_shape = (1, 8, 8)
    num_classes = 10

    def __init__(self, samples: int = 32):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.set = TensorDataset(torch.randn(samples, 1, 8, 8, generator=g), torch.arange(samples) % 10)

    def train_dataloader(self):
        return DataLoader(self.set, batch_size=8)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class Silent(LightningDataModule):
    """Does not say what its images are, and has nothing to test."""

    def __init__(self):
        super().__init__()
        self.set = Data().set

    def train_dataloader(self):
        return DataLoader(self.set, batch_size=8)

    def val_dataloader(self):
        return DataLoader(self.set, batch_size=8)


class Count(Callback):
    """Counts its calls, of hooks of the training step too."""

    calls = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        Count.calls.append("start")

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        Count.calls.append("step")


class Hooked(Classifier):
    """A task with a hook."""

    def on_after_backward(self):
        Count.calls.append("backward")


class Task(LightningModule):
    """Neither a network nor a monitor."""

    def __init__(self, lr: float = 0.1):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Linear(64, 10)

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0].flatten(1)), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


class Sized(Task):
    """A task of one's own that the data set tells its number of classes."""

    def __init__(self, num_classes: int, lr: float = 0.1):
        super().__init__(lr)
        assert num_classes == 10
        self.net = nn.Linear(64, num_classes)
'''


@pytest.fixture
def own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of the user's, importable by its name."""
    name = f"own_{abs(hash(folder))}"  # one per test: Python remembers modules
    (folder / f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(folder)
    yield name
    sys.modules.pop(name, None)


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")
@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(["--model.net.norm={own}.MaxNorm"], marks=pytest.mark.slow),
        ["--model.net.norm={own}.MaxNorm", "--model.net.norm.power=0.5"],
        pytest.param(
            ["--model.net=ResNet", "--model.net.depth=8", "--model.net.norm={own}.MaxNorm"], marks=pytest.mark.slow
        ),
        pytest.param(["--model.net={own}.Told", "--model.net.width=3"], marks=pytest.mark.slow),
        ["--model.net={own}.Heir", "--model.net.extra=3", "--model.net.norm=LayerNorm"],
        pytest.param(["--model.net={own}.Untold", "--model.net.size=64"], marks=pytest.mark.slow),
        ["--model.net={own}.Bare"],
        pytest.param(["--data={own}.Data", "--data.samples=24"], marks=pytest.mark.slow),
        pytest.param(["--data={own}.Data", "--model.net={own}.Told"], marks=pytest.mark.slow),
        ["--data={own}.Silent", "--model.net={own}.Untold"],
        pytest.param(["--model={own}.Task", "--model.lr=0.2"], marks=pytest.mark.slow),
        ["--model={own}.Sized"],
        ["--model={own}.Task", "--data={own}.Silent"],
    ],
    ids=lambda flags: " ".join(flags).replace("{own}.", "own."),
)
def test_what_is_ones_own_goes_by_its_path(flags: list[str], own: str) -> None:
    flags = [flag.format(own=own) for flag in flags]
    run = fit(*SHORT, *flags)
    files_there = files(run)
    assert any(name.endswith(".ckpt") for name in files_there)
    assert own in (run / "config.yaml").read_text()
    if not any("Task" in flag or "Sized" in flag for flag in flags):
        again = normzoo("validate", *QUIET, f"--ckpt_path={run}", f"--allow={own}")
        assert again.status == 0, again.err
        saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        task = Classifier.load_from_checkpoint(run / "checkpoints" / "last.ckpt", weights_only=True)
        assert all(torch.equal(v, saved["state_dict"][k]) for k, v in task.state_dict().items())


def test_hooks_of_ones_own_are_called(own: str) -> None:
    """Empty hooks of the training step are left out; these are not empty."""
    flags = (f"--model={own}.Hooked", "--model.net=MLP", f"--trainer.callbacks={own}.Count")
    fit(*SHORT, *flags)
    assert sys.modules[own].Count.calls == ["start", "backward", "step"] * 3


# What is refused


def write_bad_files(folder: Path, run: Path) -> None:
    """Configs and checkpoints that are none."""
    texts = {
        "empty.yaml": "",
        "malformed.yaml": "a: [1\nb: }",
        "list.yaml": "- 1\n- 2\n",
        "text.yaml": "hello",
        "address.yaml": "trainer:\n  default_root_dir: memory://x\n",
        "recursive.yaml": "a: &a [*a]\n",
        "tagged.yaml": "a: !!python/object/apply:os.system ['touch owned']\n",
        "key.yaml": "experimant: mine\n",
        "trainer.yaml": "trainer:\n  max_epoch: 3\n",
        "net.yaml": "model:\n  class_path: Classifier\n  init_args:\n    net:\n      class_path: MLP\n"
        "      init_args: {hiden: [3]}\n",
        "misspelled.yaml": "model:\n  class_path: Classifier\n  init_args:\n    net:\n      class_path: MLP\n"
        "      init_args: {norm: BatchNom}\n",
        "text.ckpt": "not a checkpoint",
        "empty.ckpt": "",
        "file": "in the place of a folder",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "binary.yaml").write_bytes(bytes(range(256)))
    (folder / "folder.yaml").mkdir()
    whole = (run / "checkpoints" / "best.ckpt").read_bytes()
    (folder / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    middle = len(whole) // 2
    (folder / "bit.ckpt").write_bytes(whole[:middle] + bytes(256) + whole[middle + 256 :])
    torch.save(
        {"state_dict": {}, "pytorch-lightning_version": "2.6.6", "hyper_parameters": {"x": Payload()}}, "evil.ckpt"
    )
    (folder / "evil.pkl").write_bytes(pickle.dumps(Payload()))
    torch.save({"state_dict": {}}, "bare.ckpt")
    torch.save([1, 2], "list.ckpt")


class Payload:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch owned",)


# Command -> words that its one message holds: the value given, the rule and the remedy. RUN is a run, RUNS all of them.
REFUSED: dict[str, str] = {
    # names
    "fitt": "'fitt'.*did you mean 'fit'.*validate",
    "nonsense": "'nonsense'.*fit.*norms",
    "norms BachNorm": "'BachNorm'.*Did you mean BatchNorm.*my_package.MyNorm",
    "norms GroupNorm Foo": "'Foo'.*GroupNorm",
    "norms --jsn": "--jsn.*--json",
    "norms --jso": "--jso.*--json",
    "fit --model.net.norm=BachNorm": "model.net.norm.*'BachNorm'.*Did you mean BatchNorm.*Choices:.*GroupNorm.*path",
    "fit --model.net.norm=3": "model.net.norm.*'3'.*Choices: .*BatchNorm",
    "fit --model.net.norm=torch.nn.BatchNorm2d": "torch.nn.BatchNorm2d.*Norm",
    "fit --model.net.norm=nowhere.Norm": "nowhere",
    "fit --model.net=Resnet": "'Resnet'.*Did you mean ResNet",
    "fit --model.net.init=Xaver": "'Xaver'.*Did you mean Xavier",
    "fit --data=Digit": "'Digit'.*Did you mean Digits",
    "fit --model.optimizer=Adm": "model.optimizer.*'Adm'.*Did you mean Adam",
    "fit --model.lr_scheduler=ReduceLROnPlateau": "path of one: torch.optim.lr_scheduler.ReduceLROnPlateau[.]\n",
    "fit --trainer.callbacks=EarlyStoping": "'EarlyStoping'.*Did you mean EarlyStopping",
    "fit --trainer.callbacks=EarlyStopping": "trainer.callbacks.*required: monitor",
    "fit --model=normzoo.models.MLP": "normzoo.models.MLP is no LightningModule",
    "fit --allow=pk.tasks": "pk.tasks.*--allow=pk ",
    # arguments
    "fit --model.net.norm.channel_dim=-1": "BatchNorm has no argument 'channel_dim'.*bias, sync, process_group",
    "fit --model.net.norm.process_group=3": "process_group=3.*new_group",
    "fit --model.net.norm.epsilon=1": "BatchNorm has no argument 'epsilon'.*Did you mean eps.*momentum",
    "fit --model.net.norm=LayerNorm --model.net.norm.num_groups=2": "LayerNorm has no argument "
    "'num_groups'.*GroupNorm.*have it.*arguments are eps, affine",
    "fit --model.net.nrom=BatchNorm": "MLP has no argument 'nrom'.*Did you mean norm",
    "fit --modle.net=MLP": "--modle.net=MLP.*--model",
    "fit --trainer.max_epoch=3": "--trainer.max_epoch=3.*Did you mean --trainer.max_epochs",
    "fit --experimen=x": "--experimen=x.*Did you mean --experiment",
    "fit extra": "extra",
    "fit -c misspelled.yaml": "model.net.norm.*'BatchNom'.*Did you mean BatchNorm",
    "fit --checkpoint_minutes=-1": "checkpoint_minutes=-1.*0.*default is 5",
    "completion": "required: shell. Usage: normzoo completion",
    "completion fish": "fish.*bash",
    "fit -c net.yaml": "MLP has no argument 'hiden'.*Did you mean hidden",
    "fit -c key.yaml": "'experimant'.*Did you mean experiment",
    "fit -c trainer.yaml": "'trainer.max_epoch'.*Did you mean trainer.max_epochs",
    # types and values
    "fit --trainer.max_epochs=many": "trainer.max_epochs.*type int.*'many'",
    "fit --data.batch_size=big": "data.batch_size.*type int.*'big'",
    "fit --model.net.hidden=[a]": "model.net.hidden.*type int.*'a'",
    "fit --model.net.norm.eps=tiny": "model.net.norm.eps.*type float.*'tiny'",
    "fit --model.optimizer.lr=fast": "model.optimizer.lr.*type float.*'fast'",
    "fit --model.net.norm_position=behind": "norm_position.*'before', 'after'.*'behind'",
    "fit --trainer.precision=12": "precision.*'bf16-mixed'.*'12'",
    "fit --seed_everything=-1": r"seed_everything=-1.*\[0, 2\^32\).*default",
    "fit --seed_everything=x": "seed_everything.*type int.*'x'",
    "fit --trainer.max_epochs=-5": "max_epochs.*-1.*-5",
    "fit --trainer.accelerator=quantum": "quantum.*cpu",
    "fit --data.batch_size=0": "batch_size=0.*1 or more",
    "fit --model.net.hidden=[0]": r"hidden=\[0\].*at least 1",
    "fit --model.net.norm.eps=-1": "eps=-1.*0 or above.*default",
    "fit --model.label_smoothing=2": r"label_smoothing=2.*\[0, 1\).*0.1",
    "fit --model.optimizer.lr=-1": "learning rate.*-1",
    "fit --model.lr_scheduler=OneCycleLR --model.lr_scheduler.max_lr=1": "lr_scheduler.*total_steps",
    "fit --model.lr_scheduler=WarmupCosine --trainer.max_epochs=-1": "no end.*trainer.max_epochs",
    "fit --model.num_classes=7": "--model.num_classes=7.*data set.*LightningDataModule",
    "fit --model.net.num_classes 7": "--model.net.num_classes=7.*data set.*LightningDataModule",
    "fit --model.net.init_args.input_shape=[3,2,2]": r"input_shape=\[3,2,2\].*data set.*LightningDataModule",
    "fit --trainer.accumulate_grad_batches=0": "accumulate_grad_batches=0.*1 or more",
    # networks and norms
    "fit --model.net.norm=GroupNorm --model.net.norm.num_groups=3": "num_groups=3.*must divide.*divisors are 1, 2, 4",
    "fit --model.net.norm=InstanceNorm": "InstanceNorm.*linear layer.*Use LayerNorm",
    "fit --data.batch_size=1": r"\(1, 100\).*one value per channel.*batches of at least 2",
    "fit --model.net=ResNet --model.net.stem=imagenet": "16 x 16.*8 x 8.*resize",
    "fit --model.net=ResNet --model.net.depth=9": "depth=9.*6n.*8",
    "fit --model.net=ConvNet --model.net.widths=[2,4,8,16,32]": "16 x 16.*8 x 8.*resize",
    "fit --data=CIFAR10 --data.download=false": "CIFAR10.*data_batch_1.*download=true",
    # configs
    "fit -c missing.yaml": "missing.yaml.*does not exist.*-c",
    "fit -c folder.yaml": "folder.yaml.*not a file but a folder.*--print_config",
    "fit -c empty.yaml": "empty.yaml.*nothing.*--print_config",
    "fit -c malformed.yaml": "malformed.yaml.*YAML.*--print_config",
    "fit -c binary.yaml": "binary.yaml.*YAML.*--print_config",
    "fit -c list.yaml": r"list.yaml.*\[1, 2\].*--print_config",
    "fit -c text.yaml": "text.yaml.*'hello'.*--print_config",
    "fit -c tagged.yaml": "tagged.yaml.*YAML",
    "fit -c address.yaml": "default_root_dir='memory://x' is a remote address.*local",
    "fit -c": "-c.*expected one argument",
    "fit -c=": "config file",
    # places
    "fit --experiment=../x": r"experiment='../x'.*inside lightning_logs.*default",
    "fit --experiment=a/../../x": "experiment='a/../../x'.*inside",
    "fit --experiment=": "experiment=''.*inside",
    "fit --experiment=a\x1bb": r"experiment='a\\x1bb'.*printable",
    "fit --experiment=/tmp/x": "experiment='/tmp/x'.*inside",
    "fit --runs=file": "file.*Not a directory.*--runs",
    "fit --runs=/dev/null": "/dev/null.*--runs",
    # checkpoints
    "test": "test needs.*--ckpt_path.*normzoo fit",
    "validate": "validate needs.*--ckpt_path.*normzoo fit",
    "predict": "predict needs.*--ckpt_path.*normzoo fit",
    "test --runs=RUNS": "test needs.*newest.*--ckpt_path=RUNS",
    "test --ckpt_path=nowhere": "'nowhere'.*no checkpoint.*normzoo fit",
    "test --ckpt_path=": "''.*no checkpoint",
    "fit --ckpt_path=nowhere": "'nowhere'.*no checkpoint.*normzoo fit",
    "test --ckpt_path=RUN --model.net.hidden=[3]": r"another.*\[20, 64\].*\[3, 64\].*Leave out the --model",
    "predict --ckpt_path=RUN --model.net=ConvNet": "another architecture.*net.stack.*Leave out the --model",
    "fit --ckpt_path=RUN --model.net.norm=LayerNorm": "trained with other settings.*BatchNorm.*LayerNorm.*config.yaml",
    "predict --ckpt_path=RUN --output=no/where.csv": "no/where.csv.*folder",
    "predict --ckpt_path=RUN --output=folder.yaml": "folder.yaml.*folder",
    **{
        f"{command} --ckpt_path={name}": f"{name}.*not a checkpoint.*{reason}.*normzoo fit"
        for command in ("test", "fit")
        for name, reason in {
            "text.ckpt": "archive",
            "empty.ckpt": "archive",
            "cut.ckpt": "archive",
            "bit.ckpt": "damaged",
            "evil.ckpt": "could run code",
            "evil.pkl": "archive",
            "bare.ckpt": "Lightning",
            "list.ckpt": "Lightning",
        }.items()
    },
}
# Those that another one is much like.
TWINS = (
    "nonsense", "norms GroupNorm Foo", "fit --model.net.norm=3", "fit --model.net=Resnet", "fit --model.net.init",
    "fit --model.optimizer=Adm", "fit --experimen=x", "fit extra", "fit -c net", "fit -c key", "fit --model.net.hidden",
    "fit --data.batch_size=big", "fit --model.net.norm.eps=tiny", "fit --trainer.precision", "fit --seed_everything=x",
    "fit --trainer.max_epochs=-5", "fit --data.batch_size=0", "fit --model.net=ResNet --model.net.depth", "fit -c list",
    "fit -c text", "fit -c recursive", "fit --experiment=a", "fit --experiment=/tmp", "fit --runs=/dev", "validate",
    "test --ckpt_path=nowhere", "predict --ckpt_path=RUN --model", "predict --ckpt_path=RUN --output=folder",
    "fit --ckpt_path=empty", "fit --ckpt_path=cut", "fit --ckpt_path=bit", "fit --ckpt_path=evil.pkl",
    "fit --ckpt_path=bare", "fit --ckpt_path=list", "test --ckpt_path=empty", "test --ckpt_path=list", "fit -c=",
    "fit --model.net.norm=torch", "fit --model.lr_scheduler=OneCycle", "fit --model.net.init_args", "fit -c folder",
    "fit --model.net=ConvNet", "fit --trainer.accelerator", "fit --model.label_smoothing",
    "fit --model.net.num_classes",
)  # fmt: skip
COMMANDS = [pytest.param(one, marks=pytest.mark.slow if one.startswith(TWINS) else (), id=one) for one in REFUSED]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_bad_input_ends_with_one_message_and_leaves_nothing(
    command: str, trained: dict[str, Any], folder: Path
) -> None:
    """The message holds the value, the rule and the remedy; status 1, no traceback, no file."""
    write_bad_files(folder, trained["run"])
    before = files(folder), files(trained["runs"])
    name, *arguments = command.replace("RUNS", str(trained["runs"])).replace("RUN", str(trained["run"])).split()
    brief = [flag for flag in (*QUIET, *SHORT) if name == "fit" and flag.split("=")[0] not in command]
    result = normzoo(name, *brief, *arguments)
    assert result.status == 1
    assert result.err.startswith("normzoo: error: ")
    assert result.err.count("error:") == 1
    assert "Traceback" not in result.err + result.out
    pattern = REFUSED[command].replace("RUNS", re.escape(str(trained["runs"])))
    assert re.search(f"(?is){pattern}", result.err), result.err
    assert (files(folder), files(trained["runs"])) == before
    assert not (folder / "owned").exists()


def test_a_data_set_that_does_not_say_its_shape_is_named(own: str) -> None:
    result = normzoo("fit", *BRIEF, f"--data={own}.Silent")
    assert result.status == 1
    assert re.search("input_shape=None.*LightningDataModule.*input_shape", result.err)


def test_a_data_set_without_test_images_is_named(own: str) -> None:
    run = fit(*SHORT, f"--data={own}.Silent", f"--model.net={own}.Untold")
    result = normzoo("test", *QUIET, f"--ckpt_path={run}", f"--allow={own}")
    assert result.status == 1
    assert "test_dataloader" in result.err


def test_the_traceback_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    from normzoo.__main__ import main

    monkeypatch.setenv("NORMZOO_TRACEBACK", "1")
    with pytest.raises(InputError):
        main(["fit", "--model.net.hidden=[0]"])


def test_an_error_that_is_ours_keeps_its_traceback(own: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug in somebody's code is not swallowed; and the run, which never took a step, leaves no folder."""

    def fail(self: MLP, images: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(MLP, "forward", fail)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        normzoo("fit", *QUIET, *SHORT)
    assert not any((folder / "lightning_logs" / "default").iterdir())


def test_a_run_that_broke_off_later_stays(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    forward = MLP.forward
    steps = []

    def fail(self: MLP, images: torch.Tensor) -> torch.Tensor:
        steps.append(1)
        if len(steps) > 5:
            raise ZeroDivisionError("a bug")
        return forward(self, images)

    monkeypatch.setattr(MLP, "forward", fail)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        normzoo("fit", "--monitors=false", *QUIET, "--trainer.max_epochs=1")
    assert (folder / "lightning_logs" / "default" / "000-BatchNorm-0" / "config.yaml").is_file()


# As a process of its own


@pytest.mark.slow
def test_the_real_thing(folder: Path) -> None:
    done = process("fit", *QUIET, *SHORT, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "lightning_logs/default/000-BatchNorm-0" in done.stdout
    assert "Warning" not in done.stderr
    tested = process("test", *QUIET, "--ckpt_path=lightning_logs", cwd=folder)
    assert tested.returncode == 1
    tested = process("test", *QUIET, "--ckpt_path=lightning_logs/default", cwd=folder)
    assert tested.returncode == 0
    assert table(tested.stdout) == table(done.stdout)
    refused = process("fit", "--data.batch_size=1", cwd=folder)
    assert refused.returncode == 1
    assert refused.stderr.count("error:") == 1
    assert "Traceback" not in refused.stderr
    assert files(folder / "lightning_logs" / "default") == {
        name for name in files(folder / "lightning_logs" / "default") if name.startswith("000-BatchNorm-0/")
    }


@pytest.mark.slow
def test_two_runs_of_the_same_seed_agree_to_the_bit_in_processes_of_their_own(folder: Path) -> None:
    for _ in range(2):
        assert process("fit", *QUIET, *SHORT, "--seed_everything=3", cwd=folder).returncode == 0
    first, second = (
        weights(folder / "lightning_logs" / "default" / name) for name in ("000-BatchNorm-3", "001-BatchNorm-3")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


# The surroundings of a command


@pytest.mark.parametrize(
    "variable,value,words",
    [
        ("LOCAL_RANK", "abc", "LOCAL_RANK='abc'.*expected the rank"),
        ("RANK", "1", "RANK=1 in the environment, without WORLD_SIZE.*unset RANK"),
    ],
)
def test_a_rank_in_the_environment_that_cannot_be_meant_is_named(
    variable: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv(variable, value)
    result = normzoo("fit", *BRIEF)
    assert result.status == 1
    assert re.search(words, result.err)


@pytest.mark.parametrize("reason,status,words", [(errno.EPIPE, 141, ""), (errno.ENOSPC, 1, "standard output cannot")])
def test_output_that_nobody_takes_ends_without_a_traceback(
    reason: int, status: int, words: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """A closed pipe is silent, as for other programs; a full device is named."""
    from normzoo.__main__ import main

    class Output(io.StringIO):
        def flush(self) -> None:
            raise OSError(reason, os.strerror(reason))

        def fileno(self) -> int:
            return os.open(folder / "output", os.O_WRONLY | os.O_CREAT)

    monkeypatch.setattr(sys, "stdout", Output())
    assert main(["norms", "GroupNorm"]) == status
    err = capfd.readouterr().err
    assert err.startswith(f"normzoo: error: {words}") if words else not err


def test_other_products_are_not_advertised(caplog: pytest.LogCaptureFixture) -> None:
    assert normzoo("fit", *BRIEF).status == 0
    assert "fast_dev_run" in caplog.text
    assert "Tip" not in caplog.text


@pytest.mark.slow
def test_help_lists_no_class_that_does_not_fit(tmp_path: Path) -> None:
    """Every module is a known activation, so that this list is left out; in a process without the norms of tests."""
    out = process("fit", "--model.net.help=ResNet", cwd=tmp_path).stdout
    assert "normzoo.norms.GroupNorm" in out
    assert "Block" not in out
