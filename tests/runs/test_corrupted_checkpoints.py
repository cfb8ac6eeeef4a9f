"""No checkpoint that is damaged or hostile is believed, and none runs code, by whatever way it comes in."""

import io
import pickle
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import torch
from commands import QUIET, fit, normzoo
from corruptions import (
    ARCHIVES,
    KINDS,
    MARKER,
    PLACES,
    edited,
    edits,
    flipped,
    packed,
    pickles,
    records,
    runs,
    saved,
    with_payload,
    with_records,
    without_end,
)
from forks import Forks
from lightning.pytorch import Trainer

from normzoo.data import Digits
from normzoo.errors import InputError
from normzoo.models import MLP
from normzoo.runs.archive import load_checkpoint
from normzoo.runs.checkpoint_classes import is_trusted
from normzoo.runs.checkpoint_io import SafeCheckpointIO
from normzoo.runs.seal import SEALED, digest, seal
from normzoo.tasks.classifier import Classifier

MONITORS = Path(__file__).parents[2] / "configs" / "monitors.yaml"
SHORT = ("--trainer.max_epochs=2", "--trainer.limit_train_batches=3", "--test_after_fit=false")
RUNS: dict[str, tuple[str, ...]] = {
    "mlp": ("--model.net.hidden=[20,20]",),
    "resnet": ("--model.net=ResNet", "--model.net.depth=8", "--model.optimizer=SGD", "--model.optimizer.momentum=0.9"),
    "monitored": ("--model.net.hidden=[20]", f"-c={MONITORS}", "--model.lr_scheduler=WarmupCosine"),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test stands in a folder of its own, where its runs land, and where payloads leave their marks."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({MARKER!r}, 'w').close()\nclass Norm: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Name -> a checkpoint of a network, as the command line wrote it."""
    folder = tmp_path_factory.mktemp("whole")
    made = {name: fit(*SHORT, *flags, f"--runs={folder}", f"--experiment={name}") for name, flags in RUNS.items()}
    return {name: (run / "checkpoints" / "last.ckpt").read_bytes() for name, run in made.items()}


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts}


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two checkpoints hold the same weights, state of optimizers and place in the run, to the bit."""
    assert all(part in first for part in SEALED)
    return digest(first) == digest(second) and repr(first["hyper_parameters"]) == repr(second["hyper_parameters"])


def corrupted() -> dict[str, Callable[[dict[str, bytes]], bytes]]:
    """All that is tried, by name: what makes it of the whole ones."""
    names = [*RUNS]
    tried: dict[str, Callable[[dict[str, bytes]], bytes]] = {}

    def cut(number: int) -> Callable[[dict[str, bytes]], bytes]:
        whole = names[number % len(names)]
        return lambda wholes: wholes[whole][: random.Random(number).randrange(len(wholes[whole]))]

    def flip(kind: str, number: int) -> Callable[[dict[str, bytes]], bytes]:
        whole = names[number % len(names)]
        return lambda wholes: flipped(wholes[whole], kind, random.Random(f"{kind}{number}"))

    for number in range(15):
        tried[f"cut {number}"] = cut(number)
    for kind in ("header", "name", "padding", "pickle", "tensor", "after", "directory", "end"):
        for number in range(6):
            tried[f"a bit of {kind} {number}"] = flip(kind, number)
    for number, (name, change) in enumerate(ARCHIVES.items()):
        tried[name] = lambda wholes, change=change, n=number: change(wholes[names[n % len(names)]])  # type: ignore[misc]
    for name, make in KINDS.items():
        tried[f"in its place {name}"] = lambda wholes, make=make: make()  # type: ignore[misc]
    for number, (name, value) in enumerate(runs().items()):
        place = [*PLACES][number % len(PLACES)]
        tried[f"{name} in {place}"] = lambda wholes, p=place, v=value: with_payload(wholes["mlp"], p, v)  # type: ignore[misc]
    for place in PLACES:
        payload = runs()["exec"]
        tried[f"exec in {place}"] = lambda wholes, p=place, v=payload: with_payload(wholes["monitored"], p, v)  # type: ignore[misc]
    for name, pickled in pickles().items():
        tried[f"pickle: {name}"] = lambda wholes, p=pickled: with_records(wholes["mlp"], **{"data.pkl": p})  # type: ignore[misc]
    for name, value in without_end().items():
        tried[f"without end: {name}"] = lambda wholes, v=value: with_payload(wholes["mlp"], "hyper_parameters", v)  # type: ignore[misc]
    return tried


CORRUPTED = corrupted()
# The same checkpoint, though other bytes: what no reader needs, such as padding and dates.
COMMANDS = ("test", "fit", "validate", "predict", "checkpoint")


def test_a_hundred_are_tried() -> None:
    assert len(CORRUPTED) >= 100


def ends_well(command: str, file: Path, whole: dict[str, Any], folder: Path) -> str:
    """Asserts what must hold of a command that is given a corrupted checkpoint; "refused" or "the same"."""
    before = files(folder)
    flags = () if command == "checkpoint" else QUIET
    path = str(file) if command == "checkpoint" else f"--ckpt_path={file}"
    result = normzoo(command, *flags, path)
    assert not (folder / MARKER).exists(), "it ran code"
    assert "Traceback" not in result.err + result.out
    assert files(folder) - before <= {"predictions.csv"} or result.status == 0
    if result.status == 1 and "trained otherwise" not in result.err:  # fit holds it against other flags: it was read
        assert result.err.startswith("normzoo: error: ")
        assert result.err.count("error:") == 1
        assert file.name in result.err
        assert len(result.err) < 1500
        assert files(folder) == before
        return "refused"
    assert same(load_checkpoint(file), whole), "it was read, and holds something else"
    return "the same"


def read(file: Path) -> tuple[dict[str, Any], str]:
    """What a file holds, and "the same"; or nothing, and "refused"."""
    try:
        return load_checkpoint(file), "the same"
    except InputError:
        return {}, "refused"


@pytest.mark.slow
def test_a_corrupted_checkpoint_is_refused_and_runs_nothing(wholes: dict[str, bytes], folder: Path) -> None:
    """All of them, each by one command and by `load_checkpoint`."""
    originals = {}
    for name, whole in wholes.items():
        (folder / f"{name}.whole").write_bytes(whole)
        originals[name] = load_checkpoint(folder / f"{name}.whole")
    outcomes: dict[str, str] = {}
    for number, (name, make) in enumerate(CORRUPTED.items()):
        file = folder / "it.ckpt"
        content = make(wholes)
        assert content not in wholes.values(), name
        file.write_bytes(content)
        loaded, outcomes[name] = read(file)
        assert not (folder / MARKER).exists(), name
        assert outcomes[name] == "refused" or any(same(loaded, original) for original in originals.values()), name
        original = next((o for o in originals.values() if outcomes[name] == "the same" and same(loaded, o)), {})
        assert ends_well(COMMANDS[number % len(COMMANDS)], file, original, folder) == outcomes[name], name
    same_ones = [name for name, outcome in outcomes.items() if outcome == "the same"]
    assert all(re.fullmatch("a bit of (header|padding|directory|end|after) .*", name) for name in same_ones), same_ones
    assert len(outcomes) - len(same_ones) >= 100, same_ones


QUICK = ("cut 0", "a bit of tensor 1", "a bit of pickle 0", "swapped tensors", "os.system in top", "pickle: GLOBAL")


@pytest.mark.parametrize("name", QUICK)
def test_some_of_them(name: str, wholes: dict[str, bytes], folder: Path) -> None:
    (folder / "it.ckpt").write_bytes(CORRUPTED[name](wholes))
    for command in ("test", "checkpoint"):
        assert ends_well(command, folder / "it.ckpt", {}, folder) == "refused"


@pytest.mark.parametrize("name", RUNS)
def test_a_whole_one_is_read_and_so_is_one_packed_anew(name: str, wholes: dict[str, bytes], folder: Path) -> None:
    (folder / "whole.ckpt").write_bytes(wholes[name])
    (folder / "anew.ckpt").write_bytes(packed([*records(wholes[name]).items()]))
    first = load_checkpoint("whole.ckpt")
    assert same(first, load_checkpoint(folder / "anew.ckpt", mmap=True))
    assert same(first, torch.load(folder / "whole.ckpt", weights_only=True))
    with (folder / "whole.ckpt").open("rb") as stream:
        assert same(first, load_checkpoint(stream))


# What is read without harm, and is no checkpoint


@pytest.mark.parametrize("name", edits())
def test_what_is_of_the_wrong_kind_is_named(name: str, wholes: dict[str, bytes], folder: Path) -> None:
    edit, words = edits()[name]
    file = folder / "it.ckpt"
    file.write_bytes(edited(wholes["mlp"], edit, sealed=name not in ("another weight", "an absurd tensor")))
    flags = (*QUIET, *SHORT, *RUNS["mlp"], "--trainer.max_epochs=3")
    result = normzoo("fit", *flags, f"--ckpt_path={file}")
    assert result.status == 1, result.out
    assert re.search(words, " ".join(result.err.split())), result.err
    assert result.err.count("error:") == 1
    assert "Traceback" not in result.err
    assert files(folder) == {"it.ckpt", "evil.py"}


def test_weights_that_are_not_finite_are_named(wholes: dict[str, bytes], folder: Path) -> None:
    def spoil(checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"]["net.head.bias"][3] = float("nan")

    (folder / "it.ckpt").write_bytes(edited(wholes["mlp"], spoil, sealed=True))
    with pytest.warns(UserWarning, match="it.ckpt.*NaN or infinity in net.head.bias"):
        load_checkpoint("it.ckpt")


def test_what_no_run_writes_is_shown_all_the_same(wholes: dict[str, bytes], folder: Path) -> None:
    def edit(checkpoint: dict[str, Any]) -> None:
        checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] = [0.1]
        checkpoint["optimizer_states"].append({"state": {}})
        checkpoint["normzoo"]["versions"]["other"] = "\x1b]0;evil\x07\x9b2J"

    (folder / "it.ckpt").write_bytes(edited(wholes["mlp"], edit, sealed=True))
    for flags in ((), ("--json",)):
        result = normzoo("checkpoint", "it.ckpt", *flags)
        assert result.status == 0, result.err
        assert "0.1" in result.out
        assert not {"\x1b", "\x07", "\x9b"} & set(result.out)


def test_plain_values_of_all_kinds_are_read(wholes: dict[str, bytes], folder: Path) -> None:
    values = {"a": {1, 2}, "b": 1j, "c": b"x", "d": (1, None, True), "e": {3: [4.5]}, "f": "ü", "g": 2**70}
    (folder / "it.ckpt").write_bytes(edited(wholes["mlp"], lambda c: c["callbacks"].update(mine=values), sealed=True))
    assert load_checkpoint("it.ckpt")["callbacks"]["mine"] == values


@pytest.mark.parametrize("value", [torch.ones(2), {1, 2}, 1j, b"x"], ids=lambda v: type(v).__name__)
def test_a_setting_that_no_flag_could_give_is_told(value: Any, wholes: dict[str, bytes], folder: Path) -> None:
    for place in (("hyper_parameters", "label_smoothing"), ("normzoo", "config", "data")):

        def edit(checkpoint: dict[str, Any], place: tuple[str, ...] = place) -> None:
            for key in place[:-1]:
                checkpoint = checkpoint[key]
            checkpoint[place[-1]] = value

        (folder / "it.ckpt").write_bytes(edited(wholes["mlp"], edit, sealed=True))
        for command, more in (("test", ()), ("fit", (*SHORT, *RUNS["mlp"], "--trainer.max_epochs=3"))):
            result = normzoo(command, *QUIET, *more, "--ckpt_path=it.ckpt")
            assert result.status == 1, (place, command, result.out)
            assert f"{type(value).__name__} for {'.'.join(place)}, which is no setting" in result.err
            assert result.err.count("error:") == 1
            assert "Traceback" not in result.err
    assert files(folder) == {"it.ckpt", "evil.py"}


# Classes that a checkpoint names


def hostile_classes() -> dict[str, Callable[[dict[str, Any]], Any]]:
    def at(*path: str, to: Any) -> Callable[[dict[str, Any]], Any]:
        def edit(checkpoint: dict[str, Any]) -> None:
            place = checkpoint["hyper_parameters"]
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = to

        return edit

    touch = {"args": ["touch", MARKER]}
    return {
        "a network": at("net", to={"class_path": "subprocess.Popen", "init_args": touch}),
        "a network by one word": at("net", to="evil.Norm"),
        "a norm": at("net", "init_args", "norm", to={"class_path": "evil.Norm"}),
        "a norm by one word": at("net", "init_args", "norm", to="evil.Norm"),
        "an activation": at("net", "init_args", "activation", to={"class_path": "os.system"}),
        "an optimizer": at("optimizer", to={"class_path": "subprocess.Popen", "init_args": touch}),
        "an optimizer's function": at("optimizer", to="os.system"),
        "by way of torch": at("optimizer", to="torch.os.system"),
        "a schedule": at("lr_scheduler", to={"class_path": "evil.Norm"}),
        "the task": at("_class_path", to="evil.Norm"),
        "a hub": at("optimizer", to={"class_path": "torch.hub.load", "init_args": {"repo_or_dir": ".", "model": "m"}}),
        "a graph of text": at(
            "optimizer",
            to={
                "class_path": "torch.fx.graph_module.reduce_graph_module",
                "init_args": {"body": {"code": "forward = 1"}, "import_block": f"open('{MARKER}', 'w')\n"},
            },
        ),
        "a norm within a text": at("net", "init_args", "norm", to='{"class_path": "evil.Norm"}'),
        "a norm within a text of YAML": at("net", "init_args", "norm", to="class_path: evil.Norm"),
        "a norm within a file": at("net", "init_args", "norm", to="norm.yaml"),
        "a file that names itself": at("net", "init_args", "norm", to="itself.yaml"),
        "a function within a text": at(
            "optimizer", to=f"{{class_path: subprocess.check_call, dict_kwargs: {{args: [touch, {MARKER}]}}}}"
        ),
        "the instantiator": at("_instantiator", to="os.system"),
    }


@pytest.mark.parametrize("name", hostile_classes())
def test_no_class_is_imported_because_a_checkpoint_names_it(name: str, wholes: dict[str, bytes], folder: Path) -> None:
    file = folder / "it.ckpt"
    file.write_bytes(edited(wholes["mlp"], hostile_classes()[name], sealed=True))
    (folder / "norm.yaml").write_text("class_path: evil.Norm\n")
    (folder / "itself.yaml").write_text("[itself.yaml]\n")
    result = normzoo("test", *QUIET, f"--ckpt_path={file}")
    assert result.status == 1
    assert "it.ckpt" in result.err
    assert "could run any code" in result.err
    with pytest.raises(InputError, match="could run any code"):
        Classifier.load_from_checkpoint(file)
    with pytest.raises(InputError, match="could run any code"):
        Classifier.load_from_checkpoint(io.BytesIO(file.read_bytes()))
    assert normzoo("fit", *QUIET, *RUNS["mlp"], f"--ckpt_path={file}").status == 1
    assert "evil" not in sys.modules
    assert not (folder / MARKER).exists()


def test_a_file_too_large_to_look_into_names_no_class(
    wholes: dict[str, bytes], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "evil.py").write_text(f"open('{MARKER}', 'w')\n")
    monkeypatch.syspath_prepend(folder)

    def edit(checkpoint: dict[str, Any]) -> None:
        checkpoint["hyper_parameters"]["net"]["init_args"]["norm"] = "large.yaml"

    (folder / "large.yaml").write_text("class_path: evil.Norm\n" + "#" * 2**20)
    (folder / "it.ckpt").write_bytes(edited(wholes["mlp"], edit, sealed=True))
    before = dict(jsonargparse._common.parsing_settings)
    with pytest.raises(Exception, match="large.yaml|not allowed"):
        Classifier.load_from_checkpoint(folder / "it.ckpt")
    assert before == jsonargparse._common.parsing_settings
    assert not (folder / MARKER).exists()


@pytest.mark.parametrize(
    "path,trusted",
    [
        ("normzoo.norms.BatchNorm", True),
        ("torch.optim.SGD", True),
        ("torch.nn.ReLU", True),
        ("torchvision.transforms.v2.RandomCrop", True),
        ("lightning.pytorch.cli.instantiate_module", False),  # but as the instantiator
        ("torch.float32", True),
        ("torch.nn.functional.relu", True),
        ("torch.hub.load", False),
        ("torch.load", False),
        ("torch.utils.model_zoo.load_url", False),
        ("torchvision.models.resnet18", True),
        ("test_corrupted_checkpoints.Own", True),  # imported by the program itself
        ("torch.os.system", False),
        ("torch.serialization.os.system", False),
        ("torch.nn.Nothing", False),
        ("os.system", False),
        ("subprocess.Popen", False),
        ("builtins.eval", False),
        ("evil.Norm", False),
        ("system", False),
        ("", False),
    ],
)
def test_which_classes_a_checkpoint_may_name(path: str, trusted: bool) -> None:
    assert is_trusted(path) is trusted


def test_a_package_can_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMZOO_ALLOW", "evil,os")
    assert is_trusted("evil.Norm")
    assert not is_trusted("os.system")
    assert "evil" not in sys.modules


class Own(MLP):
    """Somebody's network."""


# Ways in, in Python


def trainer(**settings: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(max_epochs=1, enable_checkpointing=False, **quiet, **settings)


def task() -> Classifier:
    return Classifier(MLP((1, 8, 8), 10, hidden=(20, 20)))


WAYS: dict[str, Callable[[Path], Any]] = {
    "load_checkpoint": load_checkpoint,
    "load_from_checkpoint": Classifier.load_from_checkpoint,
    "load_from_checkpoint of bytes": lambda file: Classifier.load_from_checkpoint(io.BytesIO(file.read_bytes())),
    "load_from_checkpoint of None": lambda file: Classifier.load_from_checkpoint(file, weights_only=None),
    "fit": lambda file: trainer().fit(task(), Digits(), ckpt_path=file),
    "test": lambda file: trainer().test(task(), Digits(), ckpt_path=file, verbose=False),
    "validate": lambda file: trainer().validate(task(), Digits(), ckpt_path=file, verbose=False),
    "predict": lambda file: trainer().predict(task(), Digits(), ckpt_path=file),
    "fit with our plugin": lambda file: trainer(plugins=[SafeCheckpointIO()]).fit(task(), Digits(), ckpt_path=file),
    "test with our plugin": lambda file: trainer(plugins=[SafeCheckpointIO()]).test(
        task(), Digits(), ckpt_path=file, verbose=False
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_payload_does_not_run_by_any_way_in(way: str, wholes: dict[str, bytes], folder: Path) -> None:
    for place in ("top", "optimizer", "hyper_parameters"):
        (folder / "it.ckpt").write_bytes(with_payload(wholes["mlp"], place, runs()["exec"]))
        with pytest.raises((InputError, pickle.UnpicklingError)):
            WAYS[way](folder / "it.ckpt")
        assert not (folder / MARKER).exists()


def test_the_payload_is_one(wholes: dict[str, bytes], folder: Path) -> None:
    """Read carelessly, it leaves its mark: the tests above could fail."""
    (folder / "it.ckpt").write_bytes(with_payload(wholes["mlp"], "top", runs()["exec"]))
    torch.load("it.ckpt", weights_only=False)
    assert (folder / MARKER).exists()


@pytest.mark.parametrize(
    "way", ["load_checkpoint", "load_from_checkpoint", "fit with our plugin", "test with our plugin"]
)
def test_a_flipped_bit_is_seen_by_our_ways_in(way: str, wholes: dict[str, bytes], folder: Path) -> None:
    (folder / "it.ckpt").write_bytes(flipped(wholes["mlp"], "tensor", random.Random(1)))
    with pytest.raises(InputError, match="damaged"):
        WAYS[way](folder / "it.ckpt")


def test_what_our_plugin_writes_is_sealed(folder: Path) -> None:
    one = trainer(plugins=[SafeCheckpointIO()])
    one.fit(task(), Digits())
    one.save_checkpoint(folder / "it.ckpt")
    saved_one = load_checkpoint(folder / "it.ckpt")
    assert saved_one["normzoo"]["digest"] == digest(saved_one)
    again = Classifier.load_from_checkpoint(folder / "it.ckpt", net=task().net)
    assert all(torch.equal(value, saved_one["state_dict"][name]) for name, value in again.state_dict().items())


DTYPES = [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64, torch.bool, torch.int8]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_any_kind_are_sealed_and_read(dtype: torch.dtype, folder: Path) -> None:
    values = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).to(dtype)
    weights = {"a": values, "turned": values.T, "part": values[1:, 1], "none": values[:0], "one": values[0, 1]}
    checkpoint: dict[str, Any] = {"state_dict": weights, "pytorch-lightning_version": "2.6.6"}
    seal(checkpoint)
    torch.save(checkpoint, folder / "it.ckpt")
    assert all(torch.equal(v, weights[name]) for name, v in load_checkpoint("it.ckpt")["state_dict"].items())
    checkpoint["state_dict"] = weights | {"part": torch.full((1,), 7.0)}
    assert digest(checkpoint) != checkpoint["normzoo"]["digest"]


# Real processes


@pytest.mark.slow
def test_in_processes_of_their_own(wholes: dict[str, bytes], folder: Path) -> None:
    forks = Forks(folder)
    try:
        for name in (*QUICK, "Popen in group", "pickle: INST", "a zip bomb", "without end: doubled"):
            command = COMMANDS[len(name) % 4]
            (folder / "it.ckpt").write_bytes(CORRUPTED[name](wholes))
            done = forks.run(command, *QUIET, "--ckpt_path=it.ckpt", cwd=folder, seconds=60)
            assert done.poll() == 1, name
            assert done.err.startswith("normzoo: error: "), name
            assert "Traceback" not in done.err, name
            assert not (folder / MARKER).exists(), name
            assert not (folder / "lightning_logs").exists(), name
    finally:
        forks.close()


def test_nothing_is_saved_that_cannot_be_read(folder: Path) -> None:
    (folder / "it.ckpt").write_bytes(saved({"state_dict": {}, "pytorch-lightning_version": "2.6.6"}))
    assert load_checkpoint("it.ckpt") == {"state_dict": {}, "pytorch-lightning_version": "2.6.6"}
