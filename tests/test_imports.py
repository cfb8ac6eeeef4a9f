"""The import law: which room may import which. And what an import costs: help answers without torch."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "normzoo"

# Room -> what it may import besides the standard library, `normzoo.errors` and itself; a name allows all below it.
# The table is the plan of the house: a new room gets a row here.
LAW: dict[str, set[str]] = {
    "__init__": set(),
    "__main__": set(),
    "errors": set(),
    "norms": {"torch"},
    "metrics": {"torch", "numpy"},  # numpy, which torch brings, for what it selects several times faster
    "probes": {"torch", "normzoo.norms._base"},
    "models": {"torch", "normzoo.norms"},
    "data": {"torch", "torchvision", "lightning", "numpy", "sklearn"},
    # A task names what a network is, so that the command line finds our ResNet before torchvision's of the same name.
    "tasks": {
        *("torch", "lightning", "torchmetrics"),
        *("normzoo.norms._base", "normzoo.models._base", "normzoo.schedules", "normzoo.ranks", "normzoo.shard"),
        *("normzoo.archive", "normzoo.checkpoint_classes"),
    },
    "callbacks": {
        *("torch", "lightning", "tensorboard", "numpy", "PIL"),
        *("normzoo.probes", "normzoo.metrics", "normzoo.norms._base", "normzoo.lean"),
        *("normzoo.norms._running", "normzoo.norms.batch", "normzoo.imports"),
    },
    "catalogue": {"torch", "rich", "normzoo.norms"},
    "cli": {"*"},
    "arguments": {"torch", "lightning", "normzoo.configs", "normzoo.imports", "normzoo.messages"},
    "replay": {"torch", "lightning", "normzoo.callbacks", "normzoo.cli", "normzoo.lean"},
    # What the command line and the tasks stand on: small, and free of lightning.
    "configs": {"yaml", "jsonargparse", "normzoo.imports"},
    "imports": set(),
    "atomic": set(),
    "run_config": {"lightning", "yaml", "normzoo.atomic", "normzoo.runs"},
    # The last two when all else is known to be right.
    "resume": {"normzoo.atomic", "normzoo.runs", "normzoo.runtime", "normzoo.cli"},
    "messages": {"normzoo.data", "normzoo.models", "normzoo.norms", "normzoo.imports"},
    "lean": {"lightning", "tensorboard", "google_crc32c"},
    "leave": {"torch", "lightning"},
    "ranks": {"torch", "normzoo.norms._ranks"},
    "watch": {"torch", "lightning", "normzoo.leave"},
    "archive": {"torch", "normzoo.seal"},
    "checkpoint_classes": {"yaml", "normzoo.configs", "normzoo.imports"},
    "checkpoint_io": {"torch", "lightning", "normzoo.archive", "normzoo.atomic", "normzoo.seal"},
    "checkpoints": {"normzoo.archive", "normzoo.checkpoint_classes", "normzoo.configs", "normzoo.runs"},
    "contradictions": set(),
    "seal": {"torch"},
    "show": {"rich", "normzoo.checkpoints", "normzoo.archive"},
    "runs": set(),
    "shard": {"torch", "lightning", "normzoo.norms._base"},
    "runtime": set(),
    "schedules": {"torch"},
    "storage": {"normzoo.imports", "normzoo.runs"},
    "sync": {"torch", "lightning", "normzoo.norms._base", "normzoo.norms._ranks"},
}
# These two dispatch: inside a function they may import anything, since nothing is paid before it is called.
LAZY = {"__init__", "__main__"}


def imports(tree: ast.AST, package: str, *, lazy: bool = False) -> list[tuple[int, str]]:
    """Every (line, dotted name) a module of `package` imports; with `lazy`, only what importing the module runs."""
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
        elif not (lazy and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            found += imports(node, package, lazy=lazy)
    return found


def breaches(source: str, path: str) -> list[str]:
    """The imports of the module at `path` (relative to the package) that the law forbids."""
    *folders, name = Path(path).with_suffix("").parts
    package = ".".join(["normzoo", *folders])
    room = folders[0] if folders else name
    if name == "utils":
        return [f"{path}: no module is called utils.py; name it after the idea it holds"]
    if room not in LAW:
        return [f"{path}: the room {room} has no row in LAW; plan what it may import, and add the row"]
    allowed = {"normzoo.errors", "normzoo.__version__", *LAW[room]}
    allowed.add(f"normzoo.{room}")
    shared = False
    if room == "norms" and name != "__init__":  # families stand side by side, on the shared modules norms/_*.py
        allowed.remove("normzoo.norms")
        shared = True
        if len(folders) > 1:
            allowed.add(package)

    def lawful(imported: str) -> bool:
        top = imported.split(".")[0]
        return (
            "*" in allowed
            or top in sys.stdlib_module_names
            or any(f"{imported}.".startswith(f"{one}.") for one in allowed)
            or (shared and imported.startswith("normzoo.norms._"))
        )

    found = imports(ast.parse(source), package, lazy=room in LAZY)
    return [f"{path}:{line} imports {one}" for line, one in found if not lawful(one)]


@pytest.mark.parametrize("path", sorted(str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.py")))
def test_a_module_imports_only_what_its_room_may(path: str) -> None:
    assert breaches((PACKAGE / path).read_text(encoding="utf-8"), path) == []


@pytest.mark.parametrize(
    ("path", "source", "lawful"),
    [
        ("norms/_base.py", "import torch.nn as nn", True),
        ("norms/_base.py", "import lightning", False),
        ("norms/_base.py", "import torchvision", False),  # not below torch, though it begins with it
        ("norms/_base.py", "from .batch import BatchNorm", False),
        ("norms/batch/batch_norm.py", "from .._base import Norm", True),
        ("norms/batch/batch_norm.py", "from normzoo.norms import _base", True),
        ("norms/batch/batch_norm.py", "from ._statistics import mean", True),
        ("norms/batch/batch_norm.py", "from ..sample import GroupNorm", False),
        ("norms/batch/batch_norm.py", "from normzoo.norms.sample.group_norm import GroupNorm", False),
        ("norms/batch/batch_norm.py", "from normzoo.norms import GroupNorm", False),
        ("norms/batch/__init__.py", "from .batch_norm import BatchNorm", True),
        ("norms/__init__.py", "from .batch import BatchNorm", True),
        ("norms/__init__.py", "from normzoo.models import MLP", False),
        ("metrics/moments.py", "from normzoo.norms._base import Norm", False),
        ("metrics/moments.py", "from normzoo.errors import InputError", True),
        ("probes.py", "from .norms._base import Norm", True),
        ("probes.py", "from .norms import BatchNorm", False),
        ("probes.py", "import lightning", False),
        ("models/mlp.py", "from normzoo.norms import LayerNorm", True),
        ("models/mlp.py", "def f():\n    import lightning", False),
        ("data/digits.py", "from sklearn.datasets import load_digits", True),
        ("data/digits.py", "from normzoo.models import MLP", False),
        ("tasks.py", "import torchmetrics\nfrom normzoo.norms._base import Norm", True),
        ("tasks.py", "from normzoo.norms import BatchNorm", False),
        ("callbacks/moments.py", "from torch.utils.tensorboard import SummaryWriter", True),
        ("callbacks/moments.py", "from ..tasks import Classification", False),
        ("cli.py", "import jsonargparse, normzoo.callbacks", True),
        ("__main__.py", "import torch", False),
        ("__main__.py", "if True:\n    from normzoo.cli import main", False),
        ("__main__.py", "def main():\n    from normzoo.cli import main", True),
        ("metrics/utils.py", "", False),
        ("attic.py", "", False),
    ],
)
def test_the_law_sees_a_breach(path: str, source: str, lawful: bool) -> None:
    assert (breaches(source, path) == []) is lawful


def modules_of(*command: str) -> set[str]:
    """The modules that `python *command` imports."""
    result = subprocess.run(
        [sys.executable, "-X", "importtime", *command], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    lines = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    modules = {line.rsplit("|", 1)[1].strip() for line in lines}
    assert "normzoo" in modules, "-X importtime no longer prints what this test reads"
    return modules


HEAVY = {"torch", "torchvision", "lightning", "torchmetrics", "jsonargparse", "tensorboard", "sklearn", "numpy"}


def test_the_package_itself_is_free() -> None:
    assert modules_of("-c", "import normzoo") & HEAVY == set()


def test_the_zoo_serves_people_who_only_want_a_layer() -> None:
    modules = modules_of("-c", "import normzoo.norms")
    assert modules & (HEAVY - {"torch", "numpy"}) == set()  # torch itself imports numpy


LIGHT = [("--help",), *((name, "--help") for name in ("norms", "resume", "checkpoint"))]


@pytest.mark.parametrize("command", LIGHT, ids=" ".join)
def test_help_answers_without_the_heavy_imports(command: tuple[str, ...]) -> None:
    assert modules_of("-m", "normzoo", *command) & HEAVY == set()


@pytest.mark.parametrize("command", LIGHT, ids=" ".join)
def test_help_answers_at_once(command: tuple[str, ...]) -> None:
    """The processor's time, best of three: half a second of it, however busy the machine is."""
    times = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-m", "normzoo", *command], capture_output=True, timeout=120, check=True)
        after = os.times()
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(times) < 0.5
