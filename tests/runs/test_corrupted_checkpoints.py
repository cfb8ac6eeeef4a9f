"""Damaged and hostile checkpoints: each ends with one message, runs no code, and touches no file."""

import io
import random
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jsonargparse
import numpy
import pytest
import torch
from commands import QUIET, fit, normzoo
from corruptions import (
    MARKER,
    PARTS,
    REFUSED,
    at,
    edited,
    edits,
    endless,
    flipped,
    packed,
    payloads,
    records,
    saved,
    with_payload,
)
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from normzoo.data import Digits
from normzoo.errors import InputError
from normzoo.models import MLP
from normzoo.runs import SafeCheckpointIO, archive, load_checkpoint, load_task
from normzoo.tasks.classifier import Classifier

MLP_FLAGS = ("--model.net.hidden=[20,20]", "--model.lr_scheduler=WarmupCosine")
SHORT = ("--trainer.limit_train_batches=3", "--trainer.limit_val_batches=1", "--test_after_fit=false")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs every test in a folder of its own, with a module that must not be imported."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({MARKER!r}, 'w').close()\nclass Norm: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs of the command line; read only."""
    folder = tmp_path_factory.mktemp("trained")
    return fit(*SHORT, *MLP_FLAGS, "--trainer.max_epochs=2", f"--runs={folder}")


@pytest.fixture(scope="module")
def whole(run: Path) -> bytes:
    """The last checkpoint of the run."""
    return (run / "checkpoints" / "last.ckpt").read_bytes()


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts}


def equal(first: Any, second: Any) -> bool:
    """Whether two structures are equal to the bit."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return bool(first == second)


# Loading


@pytest.mark.parametrize("kind", REFUSED)
def test_a_corrupted_checkpoint_is_refused(kind: str, whole: bytes, folder: Path) -> None:
    """Each of a class of corruptions raises one message that names the file, and runs no code."""
    file = folder / "it.ckpt"
    for name, corrupt in REFUSED[kind].items():
        file.write_bytes(corrupt(whole))
        with pytest.raises(InputError, match=r"it\.ckpt.*is not a checkpoint that can be loaded") as caught:
            load_checkpoint(file)
        assert len(str(caught.value)) < 1000, name
        assert "weights_only" not in str(caught.value), name  # torch's advice to load it in an unsafe way
        assert not (folder / MARKER).exists(), name


@pytest.mark.parametrize("part", PARTS)
def test_a_flipped_bit_never_changes_what_is_loaded(part: str, whole: bytes, folder: Path) -> None:
    """It is refused, or was in a place that no reader needs, such as padding and dates."""
    original = load_checkpoint(io.BytesIO(whole))
    for number in range(8):
        (folder / "it.ckpt").write_bytes(flipped(whole, part, random.Random(f"{part}{number}")))
        try:
            loaded = load_checkpoint(folder / "it.ckpt")
        except InputError:
            continue
        assert equal(loaded, original), number


def test_an_intact_checkpoint_is_loaded_in_each_way(whole: bytes, folder: Path) -> None:
    """From a path, mapped into memory, from an open file, and from an archive that was packed again."""
    (folder / "it.ckpt").write_bytes(whole)
    (folder / "again.ckpt").write_bytes(packed([*records(whole).items()]))
    expected = torch.load("it.ckpt", weights_only=True)
    assert equal(load_checkpoint("it.ckpt"), expected)
    assert equal(load_checkpoint(folder / "again.ckpt", mmap=True), expected)
    with (folder / "it.ckpt").open("rb") as stream:
        assert equal(load_checkpoint(stream), expected)


@pytest.mark.parametrize("command", ["test", "fit"])
def test_a_command_reads_a_checkpoint_once_and_its_checksums_once(
    command: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line looks into it without reading its tensors; the Trainer reads these, and checks nothing again."""
    archive.check_file.cache_clear()
    checked, loaded = [], []
    check, load = archive.check_archive, torch.load
    monkeypatch.setattr(archive, "check_archive", lambda file: (checked.append(file), check(file)))
    monkeypatch.setattr(torch, "load", lambda *a, **k: (loaded.append(k.get("mmap")), load(*a, **k))[1])
    flags = (*SHORT, *MLP_FLAGS, "--trainer.max_epochs=3") if command == "fit" else ()
    result = normzoo(command, *QUIET, *flags, f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}")
    assert result.status == 0, result.err
    assert len(checked) == 1
    assert loaded == [True, False]


def test_a_file_that_changed_is_checked_again(whole: bytes, folder: Path) -> None:
    (folder / "it.ckpt").write_bytes(whole)
    load_checkpoint("it.ckpt")
    (folder / "it.ckpt").write_bytes(flipped(whole, "tensor", random.Random(0)))
    with pytest.raises(InputError, match="damaged|Bad CRC"):
        load_checkpoint("it.ckpt")


def test_weights_that_are_not_finite_are_named(whole: bytes, folder: Path) -> None:
    edit = at("state_dict", "net.head.bias", to=torch.full((10,), float("nan")))
    (folder / "it.ckpt").write_bytes(edited(whole, edit))
    with pytest.warns(UserWarning, match="it.ckpt.*NaN or infinity in net.head.bias"):
        load_checkpoint("it.ckpt")


def test_plain_values_and_tensors_of_all_kinds_are_loaded(folder: Path) -> None:
    dtypes = (torch.float64, torch.bfloat16, torch.float8_e4m3fn, torch.complex64, torch.bool, torch.int8)
    values = {"a": {1, 2}, "b": 1j, "c": b"x", "d": (1, None, True), "e": {3: [4.5]}, "f": "ü", "g": 2**70}
    checkpoint = {
        "state_dict": {str(dtype): torch.eye(2).to(dtype) for dtype in dtypes},
        "pytorch-lightning_version": "2.6.6",
        "mine": values,
    }
    (folder / "it.ckpt").write_bytes(saved(checkpoint))
    loaded = load_checkpoint("it.ckpt")
    assert loaded["mine"] == values
    assert all(torch.equal(value, loaded["state_dict"][name]) for name, value in checkpoint["state_dict"].items())  # type: ignore[attr-defined]  # a dict


def test_a_payload_runs_when_loaded_carelessly(whole: bytes, folder: Path) -> None:
    """The tests above could fail."""
    (folder / "it.ckpt").write_bytes(with_payload(whole, "top", payloads()["exec"]))
    torch.load("it.ckpt", weights_only=False)
    assert (folder / MARKER).exists()


# Commands


@pytest.mark.parametrize(
    "command,kind",
    [*zip(("test", "fit", "validate", "predict", "checkpoint") * 2, REFUSED, strict=False)],
)
def test_a_command_refuses_a_corrupted_checkpoint(command: str, kind: str, whole: bytes, folder: Path) -> None:
    """One of each class: one message, no traceback, no file touched, no code run."""
    corrupt = [*REFUSED[kind].values()][1]
    (folder / "it.ckpt").write_bytes(corrupt(whole))
    before = files(folder)
    result = normzoo(*([command, "it.ckpt"] if command == "checkpoint" else [command, *QUIET, "--ckpt_path=it.ckpt"]))
    assert result.status == 1
    assert result.err.startswith("normzoo: error: ckpt_path='it.ckpt' is not a checkpoint that can be loaded")
    assert result.err.count("error:") == 1
    assert "Traceback" not in result.err + result.out
    assert files(folder) == before


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=pytest.mark.slow if i % 3 else ()) for i, one in enumerate(edits())]
)
def test_plain_data_of_the_wrong_kind_is_refused(name: str, whole: bytes, folder: Path) -> None:
    """A run that is to be resumed from it ends with one message and leaves no folder."""
    edit, words = edits()[name]
    (folder / "it.ckpt").write_bytes(edited(whole, edit))
    result = normzoo("fit", *QUIET, *SHORT, *MLP_FLAGS, "--trainer.max_epochs=3", "--ckpt_path=it.ckpt")
    assert result.status == 1, result.out
    assert re.search(words, " ".join(result.err.split())), result.err
    assert result.err.count("error:") == 1
    assert "Traceback" not in result.err
    assert files(folder) == {"it.ckpt", "evil.py"}


@pytest.mark.parametrize("name", endless())
@pytest.mark.parametrize("place", ["hyper_parameters", "config"])
def test_settings_without_an_end_are_refused(place: str, name: str, whole: bytes, folder: Path) -> None:
    path = ("hyper_parameters", "net") if place == "hyper_parameters" else ("normzoo", "config", "data")
    (folder / "it.ckpt").write_bytes(edited(whole, at(*path, to=endless()[name])))
    result = normzoo("test", *QUIET, "--ckpt_path=it.ckpt")
    assert result.status == 1
    assert "holds more than 10,000 values" in result.err


@pytest.mark.parametrize("value", [torch.ones(2), {1, 2}, b"x"], ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("command", ["test", "fit"])
def test_a_setting_that_no_flag_can_give_is_refused(command: str, value: Any, whole: bytes, folder: Path) -> None:
    flags = (*SHORT, *MLP_FLAGS, "--trainer.max_epochs=3") if command == "fit" else ()
    for path, name in (
        (("hyper_parameters", "label_smoothing"), "the task.init_args.label_smoothing"),
        (("normzoo", "config", "data"), "normzoo.config.data"),
    ):
        (folder / "it.ckpt").write_bytes(edited(whole, at(*path, to=value)))
        result = normzoo(command, *QUIET, *flags, "--ckpt_path=it.ckpt")
        assert result.status == 1, result.out
        assert f"{type(value).__name__} for {name}, which is no setting" in result.err
        assert result.err.count("error:") == 1
    assert files(folder) == {"it.ckpt", "evil.py"}


def test_control_characters_of_a_checkpoint_do_not_reach_the_terminal(whole: bytes, folder: Path) -> None:
    edit = at("normzoo", "versions", "other", to="\x1b]0;evil\x07\x9b2J")
    (folder / "it.ckpt").write_bytes(edited(whole, edit))
    for flags in ((), ("--json",)):
        result = normzoo("checkpoint", "it.ckpt", *flags)
        assert result.status == 0, result.err
        assert not {"\x1b", "\x07", "\x9b"} & set(result.out)


# Classes that a checkpoint names


def hostile_classes() -> dict[str, Callable[[dict[str, Any]], Any]]:
    """Edits that name classes and functions which could run code."""
    touch = {"args": ["touch", MARKER]}
    source = {"body": {"code": "forward = 1"}, "import_block": f"open('{MARKER}', 'w')\n"}
    values: dict[str, tuple[tuple[str, ...], Any]] = {
        "a network": (("net",), {"class_path": "subprocess.Popen", "init_args": touch}),
        "a network by its name": (("net",), "evil.Norm"),
        "a norm": (("net", "init_args", "norm"), {"class_path": "evil.Norm"}),
        "a norm by its name": (("net", "init_args", "norm"), "evil.Norm"),
        "an activation": (("net", "init_args", "activation"), {"class_path": "os.system"}),
        "an optimizer": (("optimizer",), {"class_path": "subprocess.Popen", "init_args": touch}),
        "a function for an optimizer": (("optimizer",), "os.system"),
        "by way of torch": (("optimizer",), "torch.os.system"),
        "a function of torch": (("optimizer",), {"class_path": "torch.save", "init_args": {"f": MARKER}}),
        "a schedule": (("lr_scheduler",), {"class_path": "evil.Norm"}),
        "the task": (("_class_path",), "evil.Norm"),
        "a hub": (("optimizer",), {"class_path": "torch.hub.load", "init_args": {"repo_or_dir": ".", "model": "m"}}),
        "source code": (
            ("optimizer",),
            {"class_path": "torch.fx.graph_module.reduce_graph_module", "init_args": source},
        ),
        "a module of source code": (("net", "init_args", "norm"), {"class_path": "torch.fx.GraphModule"}),
        "a norm in a string": (("net", "init_args", "norm"), '{"class_path": "evil.Norm"}'),
        "a norm in a string of YAML": (("net", "init_args", "norm"), "class_path: evil.Norm"),
        "a norm in a file": (("net", "init_args", "norm"), "norm.yaml"),
        "a function in a string": (
            ("optimizer",),
            f"{{class_path: subprocess.check_call, dict_kwargs: {{args: [touch, {MARKER}]}}}}",
        ),
    }
    return {name: at("hyper_parameters", *path, to=value) for name, (path, value) in values.items()}


@pytest.mark.parametrize("name", hostile_classes())
def test_nothing_is_imported_or_called_because_a_checkpoint_names_it(name: str, whole: bytes, folder: Path) -> None:
    """The command line and `load_task` refuse it, and jsonargparse's settings stay as they were."""
    (folder / "it.ckpt").write_bytes(edited(whole, hostile_classes()[name]))
    (folder / "norm.yaml").write_text("class_path: evil.Norm\n")
    result = normzoo("test", *QUIET, "--ckpt_path=it.ckpt")
    assert result.status == 1
    assert result.err.count("error:") == 1
    assert "Traceback" not in result.err
    before = dict(jsonargparse._common.parsing_settings)  # what `load_task` restores; there is no public way to read it
    with pytest.raises(InputError, match=r"it\.ckpt"):
        load_task("it.ckpt")
    assert before == jsonargparse._common.parsing_settings
    assert "evil" not in sys.modules
    assert not (folder / MARKER).exists()


# Files that a checkpoint names


def victim(folder: Path) -> Path:
    """A folder that must not be touched."""
    (folder / "victim").mkdir()
    (folder / "victim" / "thesis.txt").write_text("years of work")
    return folder / "victim"


# Name -> the path of the victim as the stranger's checkpoint names it.
HOSTILE_PATHS: dict[str, Callable[[Path, Path], str]] = {
    "absolute": lambda victim, run: str(victim),
    "..": lambda victim, run: f"{run}/checkpoints/../../{victim.name}",
    "an address": lambda victim, run: f"local://{victim}",
    "a link": lambda victim, run: f"{run}/checkpoints/link/{victim.name}",
}


@pytest.mark.parametrize("name", HOSTILE_PATHS)
@pytest.mark.parametrize("key", ["kth_best_model_path", "best_model_path", "last_model_path"])
def test_a_resumed_run_of_a_stranger_deletes_nothing_outside_of_it(
    key: str, name: str, run: Path, folder: Path
) -> None:
    """Lightning deletes the files that the state of a ModelCheckpoint names when better ones come."""
    target = victim(folder)
    stranger = Path(shutil.copytree(run, folder / "stranger"))
    path = HOSTILE_PATHS[name](target, stranger)
    dirpath = str(folder) if name == "absolute" else str(stranger / "checkpoints")
    if name == "a link":
        (stranger / "checkpoints" / "link").symlink_to(folder)
    kinds = {
        "kth_best_model_path": {"monitor": "val/accuracy", "mode": "max"},
        "best_model_path": {},
        "last_model_path": {"save_last": True, "monitor": "val/accuracy"},
    }
    arguments = {"dirpath": dirpath, "filename": "best", **kinds[key]}
    callback = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": arguments}
    config = re.sub(r"  callbacks: null", f"  callbacks: [{callback}]", (stranger / "config.yaml").read_text())
    (stranger / "config.yaml").write_text(config)

    def hostile(checkpoint: dict[str, Any]) -> None:
        from lightning.pytorch.callbacks import ModelCheckpoint

        state = {"dirpath": dirpath, "monitor": arguments.get("monitor"), "best_model_score": torch.tensor(-1.0)}
        state |= {"best_model_path": "", "kth_best_model_path": "", "last_model_path": "", key: path}
        state |= {"kth_value": torch.tensor(-1.0), "best_k_models": {}}
        if key == "kth_best_model_path":
            state["best_k_models"] = {path: torch.tensor(-1.0)}
        checkpoint["callbacks"][ModelCheckpoint(**arguments).state_key] = state

    file = stranger / "checkpoints" / "last.ckpt"
    file.write_bytes(edited(file.read_bytes(), hostile))
    is_warned = pytest.warns(UserWarning, match="best checkpoints outside of the run folder")
    with nullcontext() if name == "a link" else is_warned:
        result = normzoo("resume", str(stranger), "--trainer.max_epochs=3")
    assert result.status == (1 if name == "a link" else 0), result.err
    assert ("is a link to" in result.err) == (name == "a link")
    assert (target / "thesis.txt").read_text() == "years of work"


# Extra state of modules


class Counted(MLP):
    """A network with extra state of tensors and plain data."""

    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += self.training
        return super().forward(x)

    def get_extra_state(self) -> Any:
        return {"calls": self.calls, "table": [torch.ones(2), "text"]}

    def set_extra_state(self, state: Any) -> None:
        self.calls = state["calls"]


class Unsafe(MLP):
    """A network whose extra state holds an object."""

    def get_extra_state(self) -> Any:
        return Path("somewhere")

    def set_extra_state(self, state: Any) -> None:
        pass


@pytest.mark.slow
def test_a_network_with_extra_state_is_trained_tested_resumed_and_loaded(folder: Path) -> None:
    own = f"--model.net={__name__}.Counted"
    trained = fit(own, *SHORT, "--trainer.max_epochs=1", "--runs=runs")
    for command in (
        ["resume", str(trained), "--trainer.max_epochs=2", f"--allow={__name__}"],
        ["test", *QUIET, f"--ckpt_path={trained}", f"--allow={__name__}"],
        ["checkpoint", str(trained)],
    ):
        result = normzoo(*command)
        assert result.status == 0, result.err
    assert load_task(trained / "checkpoints" / "last.ckpt").net.calls == 6  # type: ignore[union-attr]  # of Counted


def test_extra_state_that_cannot_be_loaded_is_refused_before_training(folder: Path) -> None:
    result = normzoo("fit", *QUIET, *SHORT, "--trainer.max_epochs=1", f"--model.net={__name__}.Unsafe")
    assert result.status == 1
    assert re.search(r"net.get_extra_state\(\) holds objects of pathlib.*plain data.*add_safe_globals", result.err)
    assert files(folder) == {"evil.py"}


# Trainers in Python


def trainer(**settings: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    short = {"max_epochs": 1, "limit_train_batches": 3, "limit_val_batches": 1, "limit_test_batches": 1}
    return Trainer(enable_checkpointing=False, plugins=[SafeCheckpointIO()], **quiet, **short, **settings)


def task() -> Classifier:
    return Classifier(MLP((1, 8, 8), 10, hidden=(20, 20)))


@pytest.mark.parametrize("method", ["fit", "test"])
@pytest.mark.parametrize("kind", ["payload", "a flipped bit of tensor"])
def test_a_trainer_with_our_plugin_refuses_a_corrupted_checkpoint(
    method: str, kind: str, whole: bytes, folder: Path
) -> None:
    (folder / "it.ckpt").write_bytes([*REFUSED[kind].values()][2](whole))
    with pytest.raises(InputError, match="not a checkpoint that can be loaded"):
        getattr(trainer(), method)(task(), Digits(), ckpt_path="it.ckpt")
    assert not (folder / MARKER).exists()


def test_our_plugin_writes_what_torch_loads(folder: Path) -> None:
    one = trainer()
    one.fit(task(), Digits())
    one.save_checkpoint(folder / "it.ckpt")
    assert equal(load_checkpoint("it.ckpt"), torch.load("it.ckpt", weights_only=True))


def test_our_plugin_refuses_to_write_what_cannot_be_loaded(folder: Path) -> None:
    """At the first checkpoint, not at the end of the run; the file before it is kept."""

    class Careless(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"table": numpy.ones(3)}

    one = trainer(callbacks=[Careless()])
    one.fit(task(), Digits())
    (folder / "it.ckpt").write_text("the one before")
    with pytest.raises(InputError, match="the checkpoint holds objects of numpy.*plain data"):
        one.save_checkpoint(folder / "it.ckpt")
    assert (folder / "it.ckpt").read_text() == "the one before"
    assert files(folder) == {"evil.py", "it.ckpt"}


# load_task


class Own(LightningModule):
    """A task that does not save its arguments."""

    def __init__(self, net: nn.Module, width: int = 3) -> None:
        super().__init__()
        self.net, self.width = net, width
        self.head = nn.Linear(64, width)


def own_checkpoint(class_path: str = f"{__name__}.Own", **init_args: Any) -> bytes:
    """A checkpoint of `Own` as the command line records it."""
    config = {"model": {"class_path": class_path, "init_args": {"net": {"class_path": "torch.nn.ReLU"}, **init_args}}}
    weights = {"head.weight": torch.ones(3, 64), "head.bias": torch.ones(3)}
    return saved({"state_dict": weights, "pytorch-lightning_version": "2.6.6", "normzoo": {"config": config}})


def test_a_task_is_loaded_with_its_weights(whole: bytes, folder: Path) -> None:
    (folder / "it.ckpt").write_bytes(whole)
    one = load_task("it.ckpt", label_smoothing=0.25)
    assert isinstance(one, Classifier)
    assert one.label_smoothing == 0.25
    assert equal(dict(one.state_dict()), load_checkpoint("it.ckpt")["state_dict"])
    assert {str(value.device) for value in load_task("it.ckpt", map_location="meta").parameters()} == {"meta"}


def test_a_task_of_ones_own_is_loaded_where_it_is_imported(folder: Path) -> None:
    (folder / "it.ckpt").write_bytes(own_checkpoint())
    one = load_task("it.ckpt")
    assert isinstance(one, Own)
    assert (one.width, one.head.bias[0].item()) == (3, 1.0)


def test_a_task_of_ones_own_is_imported_where_it_is_allowed(folder: Path) -> None:
    (folder / "mine_to_load.py").write_text(
        "import test_corrupted_checkpoints as here\n\n\nclass Task(here.Own):\n    pass\n"
    )
    (folder / "it.ckpt").write_bytes(own_checkpoint("mine_to_load.Task"))
    with pytest.raises(InputError, match=r"names 'mine_to_load.Task'.*allow=\['mine_to_load'\].*NORMZOO_ALLOW"):
        load_task("it.ckpt")
    assert "mine_to_load" not in sys.modules
    assert isinstance(load_task("it.ckpt", allow=["mine_to_load"]), Own)


@pytest.mark.parametrize(
    "content,words",
    [
        (lambda: own_checkpoint(width=4), r"it.ckpt.*another architecture.*size mismatch for head.weight"),
        (lambda: own_checkpoint(widht=4), r"task in 'it.ckpt' cannot be built.*widht"),
        (lambda: saved({"state_dict": {}, "pytorch-lightning_version": "2.6.6"}), "does not say how.*load_state_dict"),
    ],
    ids=["another shape", "an unknown argument", "trained in Python"],
)
def test_a_task_that_cannot_be_loaded_is_one_message(content: Callable[[], bytes], words: str, folder: Path) -> None:
    (folder / "it.ckpt").write_bytes(content())
    with pytest.raises(InputError, match=f"(?s){words}"):
        load_task("it.ckpt")
