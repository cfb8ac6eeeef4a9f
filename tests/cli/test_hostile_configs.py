"""Wrong and hostile configs and flags: each ends with one clear message, and leaves nothing behind."""

import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import BRIEF, QUIET, SHORT, fit, normzoo
from forks import Forks
from hostile import FORBIDDEN, MARKER, ROOT, Case, Maker

from normzoo.runs.allowed import installed, refusal, typed
from normzoo.runs.config_files import DEEPEST, LARGEST, MOST

NUMBER = int(os.environ.get("HOSTILE_CASES", "150"))
SEED = int(os.environ.get("HOSTILE_SEED", "0"))
FEW = 20  # in the tests that take seconds
SECONDS = 20  # for one case, of which almost all take less than one


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to stand in, beside a module that nobody may import."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "forbidden.py").write_text(FORBIDDEN)
    (tmp_path / "here").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "here"
    sys.modules.pop("forbidden", None)


def late(*_: Any) -> None:
    raise TimeoutError(f"no end after {SECONDS} s")


def faults(case: Case, place: Path) -> list[str]:
    """Runs a case, and says what was not as it must be."""
    for name, content in case.files.items():
        (place / name).write_bytes(content)
    before = {str(path) for path in place.rglob("*")}
    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        result = normzoo("fit", *BRIEF, *case.arguments)
    except BaseException as error:  # what would be a traceback
        return [f"{type(error).__name__}: {error}"[:500]]
    finally:
        signal.alarm(0)
    found = []
    if (place / MARKER).exists() or "forbidden" in sys.modules:
        found.append("a forbidden module was imported")
    if new := {str(path) for path in place.rglob("*")} - before:
        found.append(f"wrote {sorted(new)}")
    if case.lucky and result.status == 0:
        return [*found, "lucky"]
    if result.status != 1:
        found.append(f"status {result.status}")
    if not result.err.startswith("normzoo: error: ") or result.err.count("normzoo: error: ") != 1:
        found.append("not one message")
    if "Traceback" in result.err + result.out:
        found.append("a traceback")
    if len(result.err.splitlines()) > 8 or len(result.err) > 2500:
        found.append(f"a message of {len(result.err.splitlines())} lines, {len(result.err)} letters")
    if case.names and not any(name in result.err for name in case.names):
        found.append(f"the message names none of {case.names}")
    if case.meant not in result.err:
        found.append(f"the message does not tell of {case.meant}")
    if hidden := re.search(r"Namespace\(|object at 0x|NoneType|unhashable|has no attribute", result.err):
        found.append(f"the message speaks of {hidden[0]}")
    return [*found, result.err] if found else []


def check(number: int, place: Path) -> None:
    """All cases keep the law, and nine of ten are truly wrong."""
    broken: list[str] = []
    lucky = 0
    for index, case in enumerate(Maker(SEED).cases(number)):
        for file in place.iterdir():
            file.unlink()
        found = faults(case, place)
        if found == ["lucky"]:
            lucky += 1
        elif found:
            texts = {name: content[:600] for name, content in case.files.items()}
            arguments = [argument[:200] for argument in case.arguments]
            broken.append(f"{index} {case.kind}: {arguments} {texts}\n    " + "\n    ".join(found))
    assert not broken, f"{len(broken)} of {number}:\n" + "\n".join(broken)
    assert lucky <= number / 10


def test_each_ends_with_one_message(place: Path) -> None:
    check(FEW, place)


@pytest.mark.slow
def test_each_of_many_ends_with_one_message(place: Path) -> None:
    check(NUMBER, place)


def test_there_are_cases_of_every_kind() -> None:
    cases = Maker(SEED).cases(NUMBER)
    assert len(Counter(case.kind for case in cases)) == len(Maker(SEED).makers)
    assert cases == Maker(SEED).cases(NUMBER)
    assert cases != Maker(SEED + 1).cases(NUMBER)


# What would run code if it were let: each is whole, so that nothing else is wrong with it.

HUBCONF = f"""
open({MARKER!r}, "w").close()


def net():
    import torch

    return torch.nn.Linear(1, 1)
"""


class Payload:
    def __reduce__(self) -> Any:
        return os.system, (f"touch {MARKER}",)


EXPLOITS = {
    "hub": "model: {class_path: Classifier, init_args: {optimizer: {class_path: torch.hub.load, init_args: "
    "{repo_or_dir: HERE, model: net, source: local, trust_repo: true}}}}",
    "hub as a network": "model: {class_path: Classifier, init_args: {net: {class_path: torch.hub.load, init_args: "
    "{repo_or_dir: HERE, model: net, source: local}}}}",
    "hub as a norm": "model: {class_path: Classifier, init_args: {net: {class_path: MLP, init_args: {norm: "
    "{class_path: torch.hub.load, init_args: {repo_or_dir: HERE, model: net, source: local}}}}}}",
    "a graph of text": "model: {class_path: Classifier, init_args: {optimizer: {class_path: "
    "torch.fx.graph_module.reduce_graph_module, init_args: {body: {code: forward = 1}, import_block: "
    "'import os; os.system(\"touch MARK\")'}}}}".replace("MARK", MARKER),
    "launcher": "model: {class_path: Classifier, init_args: {optimizer: {class_path: "
    "torch.distributed.launcher.api.elastic_launch, init_args: {config: {class_path: "
    "torch.distributed.launcher.api.LaunchConfig, init_args: {min_nodes: 1, max_nodes: 1, nproc_per_node: 1}}, "
    "entrypoint: touch}}}}",
    "compiler": "model: {class_path: Classifier, init_args: {optimizer: {class_path: torch.utils.cpp_extension.load, "
    "init_args: {name: x, sources: [x.cpp]}}}}",
    "pickle": "model: {class_path: normzoo.tasks.Classifier.load_from_checkpoint, init_args: "
    "{checkpoint_path: HERE/pickle.ckpt, weights_only: false}}",
    "pickle through torch": "model: {class_path: Classifier, init_args: {lr_scheduler: {class_path: torch.load, "
    "init_args: {f: HERE/pickle.ckpt, weights_only: false}}}}",
    "data": "data: {class_path: lightning.pytorch.LightningDataModule.from_datasets, init_args: {train_dataset: "
    "{class_path: torchvision.datasets.DatasetFolder, init_args: {root: HERE, loader: torch.ops.load_library, "
    "extensions: ['.so']}}}}",
    "hook": "trainer: {callbacks: {class_path: lightning.pytorch.callbacks.LambdaCallback, init_args: "
    "{on_fit_start: forbidden.run}}}",
    "hook of torch": "trainer: {callbacks: {class_path: lightning.pytorch.callbacks.LambdaCallback, init_args: "
    "{on_fit_start: torch.os.getcwd}}}",
    "schedule": "model: {class_path: Classifier, init_args: {lr_scheduler: {class_path: "
    "torch.optim.lr_scheduler.LambdaLR, init_args: {lr_lambda: torch.cuda.set_device}}}}",
    "quoted": "trainer: {max_epochs: \"Option 'x' is not accepted class_path='forbidden.Norm'\"}",
    "another file": "model: sub.txt",
    "another file in a list": "trainer: {callbacks: [sub.txt]}",
    "address": "model: file:///HERE/sub.txt",
    "private": "model: {class_path: Classifier, init_args: {net: {class_path: torch._dynamo.OptimizedModule}}}",
    "command line": "trainer: {callbacks: {class_path: lightning.pytorch.cli.SaveConfigCallback}}",
}


@pytest.mark.parametrize("name", EXPLOITS)
def test_a_file_runs_no_code(name: str, place: Path) -> None:
    (place / "hubconf.py").write_text(HUBCONF)
    (place / "sub.txt").write_text("class_path: forbidden.Norm\n")
    torch.save(Payload(), place / "pickle.ckpt")
    before = set(place.rglob("*"))
    text = EXPLOITS[name].replace("HERE", str(place))
    assert faults(Case(name, ("-c", "case.yaml"), {"case.yaml": text.encode()}), place) == []
    assert set(place.rglob("*")) == before | {place / "case.yaml"}


# The user's own.

OWN = """
model:
  class_path: Classifier
  init_args: {net: {class_path: MLP, init_args: {hidden: [4], norm: forbidden.Norm}}}
"""


def test_what_is_ones_own_is_allowed_by_a_flag_or_a_variable(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "own.yaml").write_text(OWN)
    refused = normzoo("fit", *BRIEF, "-c", "own.yaml")
    assert refused.status == 1
    assert re.search(
        r"own\.yaml names 'forbidden\.Norm'.*normzoo, torch.*--allow=forbidden.*NORMZOO_ALLOW=forbidden", refused.err
    )
    assert "forbidden" not in sys.modules
    for flags in (("--allow", "other,forbidden"), ("--allow=other", "--allow=forbidden")):
        allowed = normzoo("fit", *BRIEF, "-c", "own.yaml", *flags)
        assert allowed.status == 0, allowed.err
        sys.modules.pop("forbidden")
        assert normzoo("fit", *BRIEF, "-c", "own.yaml").status == 1, "it is allowed for one command"
        assert "forbidden" not in sys.modules
    monkeypatch.setenv("NORMZOO_ALLOW", "other, forbidden")
    assert normzoo("fit", *BRIEF, "-c", "own.yaml").status == 0


def declare(folder: Path) -> None:
    """Writes what an installer writes of a package with an entry point."""
    (folder / "forbidden-1.dist-info").mkdir()
    (folder / "forbidden-1.dist-info" / "METADATA").write_text("Name: forbidden\nVersion: 1\n")
    (folder / "forbidden-1.dist-info" / "entry_points.txt").write_text("[normzoo.packages]\nmine = forbidden.nets\n")


def test_an_installed_package_that_declares_itself_needs_no_flag(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "own.yaml").write_text(OWN)
    declare(place.parent / "modules")
    monkeypatch.setattr("site.getsitepackages", lambda: [str(place.parent / "modules")])
    installed.cache_clear()
    try:
        result = normzoo("fit", *BRIEF, "-c", "own.yaml")
    finally:
        installed.cache_clear()
    assert result.status == 0, result.err


def test_a_package_beside_the_config_declares_nothing(place: Path) -> None:
    """A stranger's folder may hold a package, and what makes it look installed."""
    (place / "own.yaml").write_text(OWN)
    (place / "forbidden.py").write_text(FORBIDDEN)
    declare(place)
    installed.cache_clear()
    assert normzoo("fit", *BRIEF, "-c", "own.yaml").status == 1
    assert "forbidden" not in sys.modules


def test_a_class_that_the_user_types_is_his_word(place: Path) -> None:
    for flags in (("--model.net.norm=forbidden.Norm",), ("--model.net.norm", "forbidden.Norm")):
        typed = normzoo("fit", *BRIEF, *flags)
        assert typed.status == 0, typed.err
        sys.modules.pop("forbidden")


def test_a_file_that_is_called_as_a_module_is_not(place: Path) -> None:
    (place / "forbidden.Norm").write_text(OWN)
    (place / "forbidden.yaml").write_text(OWN)
    for flags in (("-c", "forbidden.yaml"), ("--config=forbidden.Norm",), ("-c=forbidden.Norm",)):
        assert normzoo("fit", *BRIEF, *flags).status == 1
        assert "forbidden" not in sys.modules
    (place / "forbidden.Norm").write_text("class_path: forbidden.Norm")
    assert normzoo("fit", *BRIEF, "--model=forbidden.Norm").status == 1
    assert "forbidden" not in sys.modules


@pytest.mark.parametrize(
    "flag", ["--allow=os", "--allow=jsonargparse", "--allow=a-b", "--allow=", "--allow", "--allow=a.b"]
)
def test_what_cannot_be_allowed(flag: str, place: Path) -> None:
    result = normzoo("fit", *BRIEF, flag)
    assert result.status == 1
    assert re.match(f"normzoo: error: {flag}.*(package|anything)", result.err)


@pytest.mark.slow
def test_a_run_with_ones_own_layer_is_repeated_resumed_and_tested_by_the_same_flag(place: Path) -> None:
    run = fit(*SHORT, "--model.net.norm=forbidden.Norm", "--model.net.hidden=[4]")
    commands = [
        ("fit", *QUIET, *SHORT, "-c", f"{run}/config.yaml"),
        (
            "fit",
            *QUIET,
            "-c",
            f"{run}/config.yaml",
            f"--ckpt_path={run}/checkpoints/last.ckpt",
            "--trainer.max_epochs=2",
        ),
        ("test", *QUIET, f"--ckpt_path={run}"),
    ]
    for command in commands:
        refused = normzoo(*command)
        assert refused.status == 1
        assert re.search("names 'forbidden.Norm'.*--allow=forbidden", refused.err), refused.err
        allowed = normzoo(*command, "--allow=forbidden")
        assert allowed.status == 0, allowed.err


def test_which_flags_are_words_of_ones_own() -> None:
    flags = ("--change=model.optimizer.lr", "--change", "data.root", "--ckpt_path=a.ckpt", "-c", "b.yaml", "--x=os.c")
    assert [*typed([*flags, "--model.net.norm=mine.Norm"])] == ["mine"]


def test_a_typo_in_the_name_of_a_package_is_recognized() -> None:
    error = refusal("Importing 'torchvison.models.resnet18' is not allowed", {})
    assert error is not None
    assert "Did you mean torchvision" in str(error)
    assert refusal("another message", {}) is None


# Files that are none, and files that are fine.


def test_a_config_is_a_regular_file_of_some_kilobytes(place: Path) -> None:
    os.mkfifo(place / "pipe")
    (place / "loop").symlink_to("loop")
    (place / "folder").mkdir()
    with (place / "huge").open("wb") as file:
        file.truncate(20 * 2**30)
    with (place / "larger").open("w") as file:
        file.write("#" * (LARGEST + 1))
    for name, words in {
        "pipe": "pipe or a device",
        "/dev/zero": "pipe or a device",
        "/dev/stdin": "a file",
        "loop": "symbolic links",
        "folder": "folder",
        "huge": "at most 256 KiB",
        "larger": "at most 256 KiB",
        "missing": "does not exist",
        "-": "'?-'?",
    }.items():
        result = normzoo("fit", *BRIEF, "-c", name)
        assert result.status == 1
        assert re.search(f"error: {name}.*{words}", result.err), result.err
        (place / "case.yaml").write_text(f"model: {name!r}\ndata: {name!r}\ntrainer: {{callbacks: [{name!r}]}}\n")
        assert normzoo("fit", *BRIEF, "-c", "case.yaml").status == 1
        assert normzoo("fit", *BRIEF, f"--model={name}").status == 1


FINE = {
    "a byte order mark": "\ufeffexperiment: a\n",
    "anchors": "model:\n  class_path: Classifier\n  init_args:\n    optimizer:\n"
    "      class_path: torch.optim.SGD\n      init_args: &a {lr: 1e-3}\n    lr_scheduler:\n"
    "      class_path: normzoo.tasks.WarmupCosine\n      init_args: {warmup: 0.1}\n    net:\n"
    "      class_path: MLP\n      init_args: {hidden: &h [4, 4], norm: LayerNorm}\n",
    "repetition": "data:\n  class_path: Digits\n  init_args: {batch_size: &size 64, eval_batch_size: *size}\n",
    "merged": "trainer:\n  <<: &a {max_epochs: 3}\n  min_epochs: 1\n",
    "numbers": "data: {class_path: Digits, init_args: {batch_size: 64}}\ntrainer: {gradient_clip_val: 1e-1}\n",
    "words of all languages": "experiment: größe_大きさ\n",
    "a date as a name": "experiment: 2024-01-01\n",
    "windows' line ends": "experiment: a\r\ntrainer:\r\n  max_epochs: 3\r\n",
}


@pytest.mark.parametrize("name", FINE)
def test_what_is_fine_is_read(name: str, place: Path) -> None:
    (place / "fine.yaml").write_bytes(FINE[name].encode())
    result = normzoo("fit", *BRIEF, "-c", "fine.yaml")
    assert result.status == 0, result.err


def test_a_config_of_several_files(place: Path) -> None:
    (place / "net.yaml").write_text(
        "class_path: Classifier\ninit_args: {net: {class_path: MLP, init_args: {hidden: [4]}}}\n"
    )
    (place / "whole.yaml").write_text("model: net.yaml\n")
    assert normzoo("fit", *BRIEF, "-c", "whole.yaml").status == 0
    assert normzoo("fit", *BRIEF, "--model=net.yaml").status == 0


def test_bounds_are_far_above_what_is_there() -> None:
    for config in (ROOT / "configs").glob("*.yaml"):
        text = config.read_text()
        assert len(text) * 20 < LARGEST
        assert text.count("\n") * 100 < MOST
        assert max(len(line) - len(line.lstrip()) for line in text.splitlines()) * 2 < DEEPEST


# In processes of their own, which may not take more memory than any other parse.

LIMIT = """
import resource
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 2**28, size + 2**28))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_no_file_fills_the_memory(place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    forks = Forks(tmp_path_factory.mktemp("forks"))
    maker = Maker(SEED)
    try:
        with (place / "huge").open("wb") as file:
            file.truncate(20 * 2**30)
        huge = Case("huge", ("-c", "huge"), {}, ("huge",))
        for case in [huge, *(maker.bomb() for _ in range(20)), *(maker.nested() for _ in range(5))]:
            for name, content in case.files.items():
                (place / name).write_bytes(content)
            fork = forks.run("fit", *BRIEF, *case.arguments, cwd=place, before=LIMIT, seconds=SECONDS)
            assert fork.poll() == 1, fork.err[-2000:]
            assert fork.err.startswith("normzoo: error: "), fork.err[-2000:]
            assert fork.err.count("\n") <= 2
    finally:
        forks.close()
