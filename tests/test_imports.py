"""Which room may import which: downwards, never sideways or in a circle. And what an import costs."""

import ast
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "normzoo"
MODULES = {
    ".".join(["normzoo", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if "template" not in path.parts  # a project of its own
}

# A room imports from those after it. Within norms, a family imports from no other family.
ROOMS = [
    "__main__",
    "cli",
    "compare",
    "page",
    "callbacks",
    "tasks",
    "runs",
    "surgery",
    "monitoring",
    "data",
    "models",
    "distributed",
    "metrics",
    "testing",
    "norms",
]
# What a room may import besides the standard library and this package; a room that is not here may import anything.
LIBRARIES = {
    "errors": set(),
    "norms": {"torch"},
    "testing": {"torch"},
    "metrics": {"torch", "numpy"},
    "models": {"torch"},
}


def imports(module: str) -> set[str]:
    """The modules that the file of a module imports, those in functions included."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names}
    return names


def room(module: str) -> str:
    return [*module.split("."), "__init__"][1]


def test_only_folders_lie_at_the_top() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py", "errors.py"}
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} | {"__main__"} == set(ROOMS)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_rooms_below(module: str) -> None:
    here = room(module)
    for name in imports(module):
        if name in MODULES:
            there = room(name)
            if there not in (here, "errors", "__init__"):
                assert there in ROOMS[(*ROOMS, here).index(here) + 1 :], f"{module} imports {name}"
            family, other = (one.split(".")[2:-1] for one in (module, name))
            if here == there == "norms" and other and family:
                assert other[0] in (family[0], "_ops") or family[0] == "_ops", f"{module} imports {name}"
        elif name.split(".")[0] not in sys.stdlib_module_names and here in LIBRARIES:
            assert name.split(".")[0] in LIBRARIES[here], f"{module} imports {name}"


def test_no_imports_form_a_circle() -> None:
    TopologicalSorter({module: imports(module) & set(MODULES) - {module} for module in MODULES}).prepare()


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


def test_the_page_is_built_without_torch() -> None:
    assert (
        modules_of("-c", "import normzoo.page, normzoo.page.plugin") & {"torch", "lightning", "jsonargparse"} == set()
    )


LIGHT = [
    ("--help",),
    *((name, "--help") for name in ("new", "norms", "resume", "checkpoint", "convert", "export", "report", "claims")),
]


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
